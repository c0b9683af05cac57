"""Filling templates: Korean particles that fit the word before them, English articles, number words.

`{name}` puts a field in; `{name:은}` adds the right one of a pair of Korean particles, `{name:'은}` sets the
word in quotes too; `{name:a}` puts a or an before it. A field at the start gets a capital.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

_TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
DIGITS, ENGLISH = _TABLES["digits"], _TABLES["english"]
PARTICLES = {pair.split("/")[0]: pair.split("/") for pair in _TABLES["particles"]}
_SLOT = re.compile(r"\{(\w+)(?::([^}]+))?\}")
_RIEUL = 8  # index of ㄹ among the final consonants of a Hangul syllable


def final(word: str) -> int:
    """The final consonant of `word` as it is read aloud: 0 for none, 8 for ㄹ. ValueError for English words."""
    for char in reversed(word):
        if "가" <= char <= "힣":
            return (ord(char) - ord("가")) % 28
        if char.isdigit():
            # A number above zero that ends in 0 is read 십, 백, 천 or 만, each with a final consonant.
            return final(DIGITS[int(char)]) if char != "0" else 1
        if char.isascii() and char.isupper():
            return _RIEUL if char in "LR" else int(char in "MN")
        if char.isalpha():
            break
    raise ValueError(f"no particle for {word!r}")


def particle(word: str, kind: str) -> str:
    """The particle of the pair named by its after-consonant form: particle("물", "을") is "을"."""
    closed, open_ = PARTICLES[kind]
    end = final(word)
    return open_ if end == 0 or (kind == "으로" and end == _RIEUL) else closed


def article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" and not word.lower().startswith(("uni", "eu", "one", "us")) else "a"


def fill(template: str, row: Mapping[str, str]) -> str:
    """`template` with the fields of `row` put in; KeyError for a field or a particle that is not there."""

    def put(slot: re.Match[str]) -> str:
        word, form = row[slot[1]], slot[2]
        if form is None:
            return word
        if form == "a":
            return f"{article(word)} {word}"
        shown = f"'{word}'" if form[0] == "'" else word
        return shown + particle(word, form.lstrip("'"))

    text = _SLOT.sub(put, template)
    return text[0].upper() + text[1:] if template.startswith("{") else text


def number_word(n: int, lang: str) -> str:
    """0-100 in words; Korean in the Sino-Korean reading (이십삼)."""
    tens, ones = divmod(n, 10)
    if n == 100:
        return "백" if lang == "ko" else "one hundred"
    if n < (10 if lang == "ko" else 20):
        return (DIGITS if lang == "ko" else ENGLISH)[n]
    if lang == "ko":
        return (DIGITS[tens] if tens > 1 else "") + "십" + (DIGITS[ones] if ones else "")
    return _TABLES["english_tens"][tens] + (f"-{ENGLISH[ones]}" if ones else "")


def native_word(n: int) -> str:
    """1-99 in native Korean numerals (스물셋)."""
    return _TABLES["native_tens"][n // 10] + _TABLES["native_ones"][n % 10]
