"""Bytes to text, and Korean text to one way of writing it: `decode`, then `repair`, then `normalize`.

What tells a right reading from a wrong one is the hundred commonest syllables: two thirds of running Korean, hardly
any of what bytes become when read with the wrong codec. Hanja and lone jamo (ㅇㅋ) stay, as NFC has them.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from contextlib import suppress

from chatbaker.errors import ChatBakerError
from chatbaker.text.patterns import read_patterns

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
# What bytes 0x80-0x9F become in CP1252.
WINDOWS = {ord(char): byte for byte in range(0x80, 0xA0) if (char := bytes([byte]).decode("cp1252", "ignore"))}
PATTERNS = read_patterns(
    __name__,
    rare_syllables="".join(c for c in map(chr, range(0xAC00, 0xD7A4)) if len(c.encode("euc_kr")) > 2),
    hanja=b"".join(bytes([lead, tail]) for lead in b"\xea\xeb\xec\xed" for tail in range(0xA1, 0xC0)).decode("cp949"),
)
COMMON, HANGUL, WIDE, PLAIN, RARE, SUSPECT, LOST = (
    re.compile(PATTERNS[name]) for name in ("common", "hangul", "wide", "plain", "rare", "suspect", "lost")
)
ODD, EDIT, OLD_OR_LONE, LAUGHS, SHOUTS = (
    re.compile(PATTERNS[name]) for name in ("odd", "edit", "old_or_lone", "laughs", "shouts")
)
MISREADINGS = (  # a sign of it in the text, the runs to read again, the codec they were read with, the right one
    ("korean_as_latin", "utf8_run", "latin-1", "utf-8"),
    ("four_as_latin", "cp949_run", "latin-1", "cp949"),
    ("sign", "utf8_run", "latin-1", "utf-8"),
    ("hanja_run", "hanja_run", "cp949", "utf-8"),
)
ALONE = {  # a conjoining or half-width jamo -> the letter that stands alone
    chr(code): unicodedata.lookup("HANGUL LETTER " + name.split()[-1])
    for code in (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3), *range(0xFFA1, 0xFFDD))
    if (name := unicodedata.name(chr(code), ""))
}
FULL_WIDTH = map(chr, (*range(0xFF01, 0xFF5F), *range(0xFFE0, 0xFFE3), *range(0xFFE4, 0xFFEF)))
INSTEAD = ALONE | {char: unicodedata.normalize("NFKC", char) for char in FULL_WIDTH}
INSTEAD |= {chr(byte): chr(code) for code, byte in WINDOWS.items()}  # as browsers read C1 characters
INSTEAD |= dict.fromkeys("\x0b\x0c\u2028\u2029", "\n") | dict.fromkeys("\u3164\uffa0", " ")


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
        if re.search(PATTERNS[sign], text) and (fixed := _reread(text, runs, wrong, right)) != text:
            return repair(fixed)  # which may still be misread in another way, or the same way twice
    lost = len(LOST.findall(text))
    lines = ((RARE.findall(line), line) for line in (text, *text.split("\n")))
    lost += sum(len(rare) for rare, line in lines if len(set(rare)) > 4 and 5 * len(rare) > len(HANGUL.findall(line)))
    return text if lost <= 1 + len(text) / 1000 else None


def _reread(text: str, runs: str, wrong: str, right: str) -> str:
    """The text with its runs read again; as it was where that gives no Korean after all."""
    news = []

    def read(match: re.Match[str]) -> str:
        with suppress(UnicodeError):
            run = match[0].translate(WINDOWS) if wrong == "latin-1" else match[0]
            news.append(run.encode(wrong).decode(right))
            return news[-1]
        return match[0]

    fixed = re.sub(PATTERNS[runs], read, text)
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
