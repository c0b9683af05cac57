"""Personal data replaced by a tag of its kind: `mask("call 010-2345-6789")` gives "call [PHONE]" and {"PHONE": 1}.

One quick search finds the few long runs of digits, and only there the rules look closer: the form, what such numbers
obey (date, checksum, prefix), and the nearest word that tells what it is: the last one before, or the first one after.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address

KINDS = {  # left alone as nobody's own: private and example IPs, lines of companies (1588-0000, like a span of years)
    "EMAIL": "name@host.tld, also (at), [dot], 골뱅이, 네이버; not @mentions, git@host:path, //user:password@host",
    "PHONE": "010-, 02-, 070-, 0507-, 080-, +82, +CC, (212) 555-0100; spaced or bare where clear or called a phone",
    "RRN": "resident or foreigner registration number: date, century, checksum or (random since 2020) its name near",
    "CARD": "15 or 16 digits with a known prefix and a Luhn checksum",
    "ACCOUNT": "9 to 15 digits, in groups or not, called an account or with a bank's name",
    "IP": "public IPv4 and IPv6 addresses; not versions and section numbers",
}
BANK = r"(?:국민|신한|우리|하나|기업|부산|대구|광주|전북|경남|제주|씨티|산업|토스|카카오|제일|\b(?:KB|IBK|NH|SC))"
LABEL = re.compile(  # (?=...): where no word begins, look no further
    r"(?ai)(?=[^\d\s.,()-]|\d.?\Z)(?:(?P<ACCOUNT>계좌|입금|송금|이체|예금|은행|뱅|농협|수협|신협|통장|새마을|우체국"
    rf"|\b(?:accounts?|acct|a/c|bank)\b|{BANK}[ :()/]{{0,2}}\Z|\A{BANK})|(?P<RRN>주민|외국인|\b(?:resident|alien)\b)"
    r"|(?P<PHONE>전화|연락|폰|문의|문자|팩스|[☎☏]|\b(?:phone|tel|h\.?p|call|text|fax|mobile|cell|contact)\b)"
    r"|(?P<CARD>카드|\b(?:cards?|visa)\b)|(?P<IP>아이피|서버|접속|\b(?:ip|server|host|ping|ssh)\b)|(?P<TAG>\[[A-Z]+\])"
    r"|(?P<VERSION>버전|릴리스|제\s?\Z|§|[=<>~!^]=\s?\Z|\b(?:v|ver|versions?|release|build|section)\b)"
    r"|(?P<OTHER>주문|송장|사업자|접수|바코드|일련|승인|추적|코드|일시|\b(?:order|track\w*|isbn|invoice|serial|ticket|ref\w*"
    r"|barcode|timestamp|id|code)\b)|(?P<TAIL>(?:[0-9a-z][-_/=]?|[0-9][.,:])\Z))"  # TAIL: the end of a longer word
)
ZONE = re.compile(  # starts with one set of characters: the regex engine then skips quickly from one to the next
    r"(?a)[+(0-9](?=[-–‐‑−—ㅡ~./· ()+:0-9A-Fa-f]{6})(?:\d{0,2}(?:\.\d{1,3}){3}(?!\.?\d)|(?<=\d)\w{3}:\w{0,4}:[\w:]+"
    r"|(?:[-–‐‑−—ㅡ~./· ()+]{0,3}\d(?!\w{0,3}:\w{0,4}:)){8,400})(?: ?원|\w)?"
)
SURE = re.compile(r"[+(]|00.{12}|01[016-9](?:\D|\d{4}\D|\d{7}$)|0[2-9]\d?(?! ?\d)|0[35]0\d\D|0[1-9]\d{9}$|[1-9]\d*[-.]")
D = r" ?[-–‐‑−—ㅡ~./·)]? ?"  # between groups of digits
CC = r"(?:[17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|(?:2[1-689]|3[578]|42|50|59|67|69|85|9[67])\d)"
RULES = (  # in this order
    ("RRN", rf"(?=.{{6}}\D*[1256]|[0-2])\d\d(?!00|1[3-9]|..00|..3[2-9]|023|0[469]31|1131)[01]\d[0-3]\d{D}[1-8]\d{{6}}"),
    ("CARD", rf"(?:[49]\d|5[1-5]|2[2-7]|35|6[0245])\d\d({D})(?:\d{{4}}\1){{2}}\d{{4}}|3[47]\d\d({D})\d{{6}}\2\d{{5}}"),
    ("IP", r"\d{1,3}(?:\.\d{1,3}){3}|[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?<![^:]:)"),
    ("PHONE", rf"(?:\((?:\+{CC}|82)\)|\+ ?{CC}|00[- ]?{CC}(?=[- ])|82(?=[-)]\d{{1,3}}-))(?:{D}\(?\d{{1,5}}){{2,5}}"),
    ("PHONE", rf"(?:\(0\d{{1,4}}\)|0\d{{1,4}}){D}\d{{3,4}}{D}\d{{4}}"),
    ("ACCOUNT", rf"\d{{2,6}}({D})(?<!\d)\d{{1,8}}(?:\1\d{{1,8}}){{0,3}}(?! ?원)|\d{{9,15}}(?! ?원)"),
    ("PHONE", rf"(?!\d+\.\d{{4}})(?:1[-.])?(?:\(\d{{3}}\)|[2-9]\d\d){D}\d{{3}}{D}\d{{4}}"),
)
FORMS = [(kind, re.compile(rf"(?a)(?<!\d)(?:{form})(?![0-9A-Za-z]|[-._]\d)")) for kind, form in RULES]
DOT = r"(?:\.| ?[\[(] ?(?:\.|dot|점|닷) ?[])] ?| dot | ?[닷점] ?)"
KNOWN = rf"(?:(?:naver|gmail|daum|hanmail|kakao|nate)\b|네이버|지메일|한메일|네이트)(?:{DOT}(?:[a-z]{{2,4}}|컴|넷))?"
EMAIL = re.compile(
    r"(?ai)(?<![@\w.%+:-])(?=[\w.%+:-]++ ?(?:[@(\[골]|at ))(?<!//)([\w-]*+:)?(?!git@)[a-z0-9][\w.%+-]*+(?:"
    rf" ?@ ?{KNOWN}|(?: @ [\w.-]+\.| at [\w-]+ dot )(?:com|net|kr)|(?:@| ?[\[(] ?(?:@|at|골뱅이) ?[])] ?| ?골뱅이 ?)"
    rf"(?:{KNOWN}|(?!v?\d+\.\d)(?:[a-z0-9-]+{DOT})+(?!png|jpg|svg)(?:[a-z]{{2,24}}|컴|넷)))(?![\w-]|\.[a-z0-9]|:[\w/~])"
)


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
