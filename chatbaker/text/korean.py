"""Bytes to text, and Korean text to one way of writing it: `decode`, then `repair`, then `normalize`.

What tells a right reading from a wrong one is the hundred commonest syllables: two thirds of running Korean, hardly
any of what bytes become when read with the wrong codec. Hanja stay as typed, but NFC turns compatibility ideographs
into the usual ones, which look the same (U+F914 into U+6A02). Lone jamo stay: people write them (ㅇㅋ).
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from contextlib import suppress

from chatbaker.errors import ChatBakerError

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
COMMON = re.compile(
    "[이다는에하의을가지고로한서어기요은사를아도해있니나인리시수자정대보스으게라들화그만면영전일제부주세적과장여상데"
    "마성할거드구되용생무것재했미트국동작었연우내음모오소위야진와래공원습중비안유좋신려러선경간네문계조까없터말합관르개노된]"
)
HANGUL, WIDE, PLAIN = re.compile("[가-힣]"), re.compile("[^\x00-\x7f]+"), re.compile("[\t\n\r -~가-힣]")
RARE = re.compile("[" + "".join(c for c in map(chr, range(0xAC00, 0xD7A4)) if len(c.encode("euc_kr")) > 2) + "]")
# RARE: not in KS X 1001. C1: what bytes 0x80-0x9F become in ISO-8859-1 and CP1252. T: what the tail bytes of UTF-8 do.
WINDOWS = {ord(char): byte for byte in range(0x80, 0xA0) if (char := bytes([byte]).decode("cp1252", "ignore"))}
C1 = "\x80-\x9f" + "".join(map(chr, WINDOWS))
T, LATIN = f"[\xa0-\xbf{C1}]", f"[\t -~\xa0-\xff{C1}]"
SUSPECT = re.compile(f"{RARE.pattern[:-1]}\ufffd\xa1-\xff](?:(?<![\xa1-\xff])|[\xa0-\xff{C1}])")
CP949_RUN = re.compile(f"(?<!{LATIN})(?={LATIN}*?([\xa1-\xff])(?!\\1)[\xa1-\xff]){LATIN}+")  # no row of dots
UTF8_RUN = re.compile(f"[Â-ß]{T}|[à-ï]{T}{T}|[ð-ô]{T}{T}{T}")
# Two characters, or one that nobody could have typed: French has é, a no-break space and » side by side.
SIGN = f"[ÂÃà-ð](?:{T}{{1,2}}[ÂÃà-ï]{T}|(?<=[âð]){T}{T}|(?<=[ê-í])(?<![A-z].){T}{T}|(?<=[ÂÃ])(?<![A-Z].)[\xa0-\xbf])"
HANJA = b"".join(bytes([lead, tail]) for lead in b"\xea\xeb\xec\xed" for tail in range(0xA1, 0xC0)).decode("cp949")
HANJA_RUN = f"[{HANJA}][^\\s!-~\ufffd]+"  # how Hangul in UTF-8 begins where no byte was lost in CP949
MISREADINGS = (  # a sign of it in the text, the runs to read again, the codec they were read with, the right one
    (re.compile(f"[ê-í]{T}{T}[ê-í]{T}{T}"), UTF8_RUN, "latin-1", "utf-8"),
    (re.compile("[\xa1-\xff]{4}"), CP949_RUN, "latin-1", "cp949"),
    (re.compile(SIGN), UTF8_RUN, "latin-1", "utf-8"),
    (re.compile(HANJA_RUN), re.compile(HANJA_RUN), "cp949", "utf-8"),
)
JUNK = (
    "\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000"
    "\u3164\ud800-\uf8ff\ufdd0-\ufdef\ufeff\uff01-\uff5e\uffa0-\uffe2\uffe4-\uffff"
    "\U0001fffe\U0001ffff\U0002fffe\U0002ffff\U0003fffe-\U0010ffff"
)
ODD = re.compile(f"[{JUNK}\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")  # or a conjoining jamo
EMOJI, LEADS = "[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff]", "[\u1100-\u115e\ua960-\ua97f]"
EDIT = re.compile(f"(🏴[\U000e0020-\U000e007f]+|{EMOJI}\u200d(?={EMOJI}))|[{JUNK}]")
OLD_OR_LONE = re.compile(f"((?<!{LEADS}){LEADS}+[\u1161-\u11a7\ud7b0-\ud7ca]+[\u11a8-\u11ff]*)|[\u1100-\u11ff]")
ALONE = {  # a conjoining or half-width jamo -> the letter that stands alone
    chr(code): unicodedata.lookup("HANGUL LETTER " + name.split()[-1])
    for code in (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3), *range(0xFFA1, 0xFFDD))
    if (name := unicodedata.name(chr(code), ""))
}
FULL_WIDTH = map(chr, (*range(0xFF01, 0xFF5F), *range(0xFFE0, 0xFFE3), *range(0xFFE4, 0xFFEF)))
INSTEAD = ALONE | {char: unicodedata.normalize("NFKC", char) for char in FULL_WIDTH}
INSTEAD |= {chr(byte): chr(code) for code, byte in WINDOWS.items()}  # as browsers read C1 characters
INSTEAD |= dict.fromkeys("\x0b\x0c\u2028\u2029", "\n") | dict.fromkeys("\u3164\uffa0", " ")
LAUGHS = re.compile(r"([ㅋㅎㅠㅜ])\1\1+")  # cut to two, which people write more often than one, three or more
# A run of .~^ that does not follow a word is structure: a fence, the line below a heading, the marks in a traceback.
SHOUTS = re.compile(r"([!?…~.^])(?:(?<=[!?…])|(?<=[\w)\]'\"”’!?].))\1{3,}")


def decode(data: bytes, declared: str | None = None) -> tuple[str, str]:
    """The text and its codec, as the bytes show it; what they were declared as counts only where they do not.

    A character cut off at the end is left out, other broken bytes become U+FFFD. Raises ChatBakerError if nothing fits.
    """
    marked = [MARKS[mark] for mark in MARKS if data.startswith(mark)] + ["iso2022_kr"] * (b"\x1b$)C" in data)
    with suppress(UnicodeDecodeError):
        if not marked and b"\0" not in data:
            return data.decode(), "utf-8"
    binary = re.search(rb"[\x00-\x08\x0e-\x1a]", data)
    western = not binary and not re.search(rb"(?:([\x80-\xff])(?!\1)){5}", data)
    for codec in marked or ("utf-8", "cp949", *(("utf-16-le", "utf-16-be", "johab") * (not western))):
        text = codecs.getincrementaldecoder(codec)("replace").decode(data)
        lost, wide, nul = text.count("\ufffd"), len(text) - len(text.encode("ascii", "ignore")), text.count("\0")
        fits = codec[:6] == "utf-16" and not nul and b"\0" in data and len(PLAIN.findall(text)) > 0.8 * len(text)
        if codec == "utf-8":
            fits = 4 * lost <= wide and 100 * nul <= len(text)
        elif codec == "cp949":  # a few names, or only signs and hanja: no commonest syllables to know them by
            fits = not (lost or nul or RARE.search(text)) and (wide <= 20 or not HANGUL.search(text))
        if marked or fits or (codec != "utf-8" and _korean(text) >= 0.2):
            return text, codec
    with suppress(LookupError, ValueError):  # an encoding, not a codec such as zip or idna
        codec = codecs.lookup(declared or "?").name.replace("euc_kr", "cp949")
        if not binary and codec.startswith(("cp", "euc", "koi8", "mac", "gb", "big5", "shift")):
            return data.decode(codec), codec
    if not western:
        raise ChatBakerError("unreadable encoding", hint="Save the file as UTF-8")
    codec = "cp1252" if re.search(rb"[\x80-\x9f]", data) else "iso8859-1"
    return data.decode(codec, "replace"), codec


def _korean(text: str) -> float:
    """How usual is the Korean in what is not ASCII: about 0.65 if rightly read, below 0.1 if not."""
    wide, lost = "".join(WIDE.findall(text)), max(text.count("\ufffd") - 1, 0)
    some = wide[:: (step := len(wide) // 500 + 1)]
    return len(COMMON.findall(some)) / (len(HANGUL.findall(some)) * 0.9 + len(some) / 10 + 50 * lost / step + 1e-9)


def repair(text: str) -> str | None:
    """The text with mojibake undone; None where too much is lost, which is "mojibake" as a reason to drop it."""
    if not SUSPECT.search(text):
        return text
    for sign, runs, wrong, right in MISREADINGS:
        if sign.search(text) and (fixed := _reread(text, runs, wrong, right)) != text:
            return repair(fixed)  # which may still be misread in another way, or the same way twice
    lost = len(re.findall(f"\ufffd|(?:[°-¿][À-þ]|[À-È][¡-¿]){{2}}|[ê-í]{T}{T}?[ê-í]{T}", text))
    lines = ((RARE.findall(line), line) for line in (text, *text.split("\n")))
    lost += sum(len(rare) for rare, line in lines if len(set(rare)) > 4 and 5 * len(rare) > len(HANGUL.findall(line)))
    return text if lost <= 1 + len(text) / 1000 else None


def _reread(text: str, runs: re.Pattern[str], wrong: str, right: str) -> str:
    """The text with its runs read again; as it was where that gives no Korean after all."""
    news = []

    def read(match: re.Match[str]) -> str:
        with suppress(UnicodeError):
            run = match[0].translate(WINDOWS) if wrong == "latin-1" else match[0]
            news.append(run.encode(wrong).decode(right))
            return news[-1]
        return match[0]

    fixed = runs.sub(read, text)
    return fixed if right == "utf-8" or _korean("".join(news)) >= 0.2 else text


def normalize(text: str) -> str:
    """NFC; no invisible or private characters, no U+FFFD; one kind of space, line end, width; short laughs, shouts."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    odd = ODD.search(text)
    text = EDIT.sub(lambda match: match[1] or INSTEAD.get(match[0], " " * match[0].isspace()), text) if odd else text
    text = unicodedata.normalize("NFC", text)
    text = OLD_OR_LONE.sub(lambda match: match[1] or ALONE.get(match[0], match[0]), text) if odd else text
    text = SHOUTS.sub(r"\1\1\1", LAUGHS.sub(r"\1\1", text))
    if " \n" in text or "\t\n" in text or text.endswith((" ", "\t")):
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return re.sub("\n{4,}", "\n\n", text) if "\n\n\n\n" in text else text
