"""Is a Korean text in 존댓말 (formal) or in 반말 (informal)? Told from how its sentences end.

A text is cut into clauses: at marks, line ends, ㅋㅋ, emoji, and behind an unmistakable polite ending. Each is
합쇼체, 해요체 (both formal), 반말 (해체, 해라체, plain -다), or nothing: nouns, 음슴체, English. What is not the
speaker's own voice is left out: quotations, code, headings, tables, brackets, the plain -다 of list items, a polite
speaker's thinking aloud (그러시구나). The endings are data: register_endings.json.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from chatbaker.rundir import read_json

Register = Literal["formal", "informal", "mixed", "unknown"]
Style = Literal["hapsyo", "haeyo", "banmal"]
STYLES: dict[str, Style] = {"hapsyo": "hapsyo", "haeyo": "haeyo", "banmal": "banmal"}
STYLES |= {"polite": "haeyo", "plain": "banmal"}  # by the first word of a group's name

CODE = re.compile(
    r"```.*?(?:```|\Z)|^\s*(?:#+ |>|\|)[^\n]*$|^\s*\*\*[^*\n]*[^*\n.!?]\*\*:?\s*$", re.DOTALL | re.MULTILINE
)
PAIRS = ('""', "“”", "‘’", "「」", "『』", "《》", "〈〉", "``")
QUOTED = re.compile("|".join(f"{pair[0]}[^{pair}\n]*{pair[1]}" for pair in PAIRS) + r"|(?<!\w)'[^'\n]+'")
ASIDE = re.compile(r"[:;=]-?[()DP]+|\([^()\n]*\)|\[[^][\n]*\]|https?://\S+|[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}")
ITEM = re.compile(r"\s*(?:[-*•·]|\d+[.)]|[①-⑳])\s+")
LAUGH = re.compile(r"(?<![ㄱ-ㅎ])[ㅋㅎㅠㅜ]+|\^+[_.]*\^+|[\u2190-\u2bff\U0001f000-\U0001faff]")
END = re.compile(r"([.!?…。！？~]+)(?=\s|$|[가-힣])")
CITED = re.compile(r"(?:이?라[고는며]|라|란|하[고며는던]|말|인사)")
FINALS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"


def spell(text: str) -> str:
    """합니다 -> 하ㅂ니다: every final consonant behind its syllable, so that endings can be matched as text."""
    code = ((char, ord(char) - 0xAC00) for char in text)
    return "".join(chr(ord(char) - n % 28) + FINALS[n % 28] if 0 <= n < 11172 and n % 28 else char for char, n in code)


@cache
def endings() -> dict[str, re.Pattern[str]]:
    """The groups of register_endings.json, each as one pattern over the end of a spelled text.

    A lone consonant ends the syllable before it (ㅂ니다 fits 합니다), ^ begins a word, * before a noun is anything.
    """
    table = read_json(Path(__file__).with_name("register_endings.json"))
    table["nouns"] = [word[1:] if word[0] == "*" else f"^{word}" for word in table["nouns"]]
    for name in ("polite words", "plain words"):
        table[name] = [rf"\A{word}" for word in table[name]]
    start = r"(?<!\S)"
    return {
        name: re.compile(f"(?:{'|'.join(spell(one).replace('^', start) for one in group)}),?$")
        for name, group in table.items()
    }


def first(text: str, *groups: str) -> Style | None:
    """The style of the first group with an ending that fits."""
    return next((STYLES[name.split()[0]] for name in groups if endings()[name].search(text)), None)


def style(clause: str, mark: str = "") -> Style | None:
    """How a clause ends. mark: the punctuation behind it, which tells 바빠서. and 했고? from half a sentence."""
    text = spell(" ".join(re.sub(r"[^\w\s]+", " ", clause).split()))
    marked = ["banmal before a mark"] * bool(mark) + ["banmal in a question"] * ("?" in mark)
    found = first(text, "polite words", "plain words")
    if not found and not endings()["nouns"].search(text):
        found = first(text, "hapsyo", "haeyo", "banmal", *marked)
    for word in reversed(text.split()[:-1]):  # 재미있더라 그 드라마
        found = found or first(word, "banmal within")
    return found


def clauses(text: str) -> Iterator[tuple[str, Style | None]]:
    """The clauses of a text in the speaker's own voice, each with its style."""
    text = LAUGH.sub("! ", ASIDE.sub(" ", QUOTED.sub("X", CODE.sub("", unicodedata.normalize("NFC", text)))))
    for line in text.split("\n"):
        item = ITEM.match(line)
        parts = END.split(line[item.end() :] if item else line)
        for sentence, mark in zip(parts[::2], [*parts[1::2], ""], strict=True):
            words, begin = sentence.split(), 0
            for end, word in enumerate(words, 1):
                last = end == len(words)
                within = not last and not CITED.match(words[end])
                if last or (within and first(spell(word), "hapsyo within", "haeyo within", "plain within")):
                    clause, begin = " ".join(words[begin:end]), end
                    found = style(clause, mark if last else ".")
                    yield clause, None if item and found == "banmal" and clause.endswith("다") else found


def register_of(text: str) -> Register:
    """formal: every clause that shows a register shows 존댓말; informal: 반말; mixed: both are there; unknown: none."""
    found: set[Register] = {"informal" if one == "banmal" else "formal" for _, one in clauses(text) if one}
    return "mixed" if len(found) == 2 else found.pop() if found else "unknown"
