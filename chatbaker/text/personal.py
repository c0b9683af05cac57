"""Personal data replaced by a tag of its kind: `mask("call 010-2345-6789")` gives "call [PHONE]" and {"PHONE": 1}.

One quick search finds the few long runs of digits, and only there the rules look closer: the form, what such numbers
obey (date, checksum, prefix), and the nearest word that tells what it is: the last one before, or the first one after.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address

from chatbaker.text.patterns import read_patterns

KINDS = ("EMAIL", "PHONE", "RRN", "CARD", "ACCOUNT", "IP")  # what each means is said in personal.toml
PATTERNS = read_patterns(__name__)
LABEL, ZONE, SURE, EMAIL = (re.compile(PATTERNS[name]) for name in ("label", "zone", "sure_phone", "email"))
ORDER = ("RRN", "CARD", "IP", "PHONE_ABROAD", "PHONE_KOREAN", "ACCOUNT", "PHONE_AMERICAN")
EDGED = r"(?a)(?<!\d)(?:%s)(?![0-9A-Za-z]|[-._]\d)"
FORMS = [(name.partition("_")[0], re.compile(EDGED % PATTERNS[name])) for name in ORDER]


def mask(text: str) -> tuple[str, Counter[str]]:
    """The text with every find replaced by [KIND], and how many of each kind. Masking again changes nothing."""
    found: Counter[str] = Counter()
    total = -1
    while total < (total := found.total()):  # again after a find: a tag is short and brings words nearer
        if True in map(text.__contains__, ("@", "골뱅이", "at)", "at]", "AT)", "AT]", " dot ")):
            text, emails = EMAIL.subn(r"\1[EMAIL]", text)
            found["EMAIL"] += emails
        text = ZONE.sub(lambda zone: _numbers(zone, found), text)
    return text, +found


def _numbers(zone: re.Match[str], found: Counter[str]) -> str:
    text, (start, end) = zone[0], zone.span()
    for kind, form in FORMS:
        for number in reversed([*form.finditer(text)]):
            before = (zone.string[max(0, start - 30) : start] + text[: number.start()])[-30:]
            after = (text[number.end() :] + zone.string[end : end + 16])[:16].lstrip(" (")
            near = [*LABEL.finditer(before)][-1:] or [*LABEL.finditer(f"{after}\n")]
            if (label := near[0].lastgroup if near else None) != "TAIL" and _valid(kind, number[0], label):
                text = f"{text[: number.start()]}[{kind}]{text[number.end() :]}"
                found[kind] += 1
    return text


def _valid(kind: str, found: str, label: str | None) -> bool:
    digits, bare, named = [int(sign) for sign in found if sign.isdecimal()], found.isdecimal(), label == kind
    odd = label == "OTHER" and (found[:2] == "00" or (bare and found[:3] != "010"))
    if kind == "RRN":
        odd |= bare and (label == "ACCOUNT" or (found[:3] == "880" and not named))  # 880: the bar codes of Korea
        total = sum(digit * (2 + place % 8) for place, digit in enumerate(digits[:12]))
        return (named and not bare) or (not odd and ((13 if digits[6] > 4 else 11) - total % 11) % 10 == digits[12])
    if kind == "CARD":
        total = sum(sum(divmod(digit * (1 + place % 2), 10)) for place, digit in enumerate(reversed(digits)))
        return total % 10 == 0 and not odd and (not bare or named or digits[0] != 9)
    if kind != "IP":
        clear = named or (kind == "PHONE" and not odd and bool(SURE.match(found)))
        return clear and 9 <= len(digits) <= 15 and max(digits) > 1
    with suppress(ValueError):
        ip = ip_address(found)
        clear = named or (label not in ("VERSION", "OTHER") and max(ip.packed) > 30)
        return clear and ip.is_global and not ip.is_multicast and found[-2:] != ".0"
    return False
