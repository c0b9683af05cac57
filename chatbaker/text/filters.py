"""What each filter thinks of one document, and the boilerplate lines to take out of a good one.

`trim` takes out menus, notices, bylines and the like; `findings` measures what it leaves, partly after Gopher (Rae et
al. 2021, appendix A). Both are pure functions of NFC text. Shares are of UTF-16 units; an emoji counts twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from resiliparse.parse.lang import detect_fast

from chatbaker.recipe import Filters
from chatbaker.text.patterns import read_patterns

HANGUL, JAMO, LATIN, LETTER, DIGIT, SYMBOL, MARK, SPACE = range(8)  # kinds: the low bits of the table
PARTICLE, ENDING, STOP = 8, 16, 32  # flags above them
RANGES = [(HANGUL, "가힣"), (JAMO, "\u1100\u11ff"), (JAMO, "\u3131\u318e")]
RANGES += [(LATIN, ends) for ends in ("AZ", "az", "ÀÖ", "Øö", "ø\u024f", "\u1e00\u1eff")]
RANGES += [(MARK, mark * 2) for mark in ".,!?;:'\"()-…~·%“”‘’「」『』《》〈〉、。"]
PATTERNS = read_patterns(__name__)
SPAM, ROOTS, MARKS = (re.compile(PATTERNS[name]) for name in ("spam", "spam_roots", "marks"))
FUNCTION_WORDS = frozenset(PATTERNS["function_words"].split("|"))
FLAGS = ((PARTICLE, PATTERNS["particles"]), (ENDING, PATTERNS["endings"]), (STOP, ".!?…。\n"))
ENGLISH = 0.15  # share of these words that no other language reaches
SAMPLE = 2000  # characters from the beginning and from the middle tell the language
PHRASE = 32  # characters; a power of two
ENOUGH, REPEATS = 4, 3  # fewer different terms are no advertisement; what returns more often is what a text is about
LEAST = {
    "min_chars": "too_short", "own_language": "wrong_language", "grammar": "keywords", "function_words": "keywords",
}  # fmt: skip


class Finding(NamedTuple):
    """filter: its key in the recipe. value: what it measured. reason: why the document is dropped; None: passed."""

    filter: str
    value: float
    limit: float
    reason: str | None


def findings(text: str, language: str, limits: Filters) -> Iterator[Finding]:
    """What each filter thinks of the text without its boilerplate. For the names in LEAST the limit is a lower one."""
    for name, value in _measures(text, language, limits.judged_from):
        limit = getattr(limits, name)
        failed = value < limit if name in LEAST else value > limit
        yield Finding(name, value, limit, LEAST.get(name, name) if failed else None)


@lru_cache(maxsize=1)  # whoever asks for findings asks for this too
def trim(text: str, language: str) -> str:
    """The text without lines of boilerplate and without datelines; the text itself where there is none."""
    pattern = _boilerplate(language, MARKS.search(text) is not None)
    trimmed, found = pattern.subn(lambda match: "\n" if match["dateline"] else "", "\n" + text)
    return re.sub(r"\n{3,}", "\n\n", trimmed).strip() if found else text


@cache
def _boilerplate(language: str, marked: bool) -> re.Pattern[str]:
    """Lines of up to 250 characters. The plain line feed in front lets the search jump from line to line."""
    kinds = ["plain", *["korean"] * (language == "ko"), *["marked"] * marked]
    lines = "|".join(PATTERNS[kind] for kind in kinds)
    whole = rf"(?:{PATTERNS['menu_line']}|(?=.{{,250}}(?:\n|\Z))(?:{lines}))[ \t]*(?=\n|\Z)"
    return re.compile(rf"\n[ \t]*(?:{whole}|(?P<dateline>[(\[【]{PATTERNS['dateline']}))", re.IGNORECASE)


def _measures(text: str, language: str, judged_from: int) -> Iterator[tuple[str, float]]:
    """(filter, value); shares of a text shorter than `judged_from` say little and are left out."""
    whole, text = len(text.strip()), trim(text, language).strip()
    yield "boilerplate", (whole - len(text)) / (whole or 1)
    yield "min_chars", len(text)
    units = np.frombuffer(f"\n{text.lower()}\n".encode("utf-16-le", "surrogatepass"), np.uint16)
    flags = _table()[units]
    kinds = flags & 7
    counts = np.bincount(kinds, minlength=8).tolist()
    letters = units[(kinds == HANGUL) | (kinds == LATIN)].tobytes().decode("utf-16-le")
    found = Counter(SPAM.findall(letters) if ROOTS.search(letters) else ())
    taken = sum(len(term) * min(count, REPEATS) for term, count in found.items())
    yield "spam", taken / len(letters) if len(found) >= ENOUGH else 0.0

    ink = len(units) - counts[SPACE] or 1
    share = (counts[HANGUL] + counts[JAMO] if language == "ko" else counts[LATIN]) / (sum(counts[:DIGIT]) or 1)
    judged = len(text) >= judged_from
    if language == "en" and judged:
        sample = text[:SAMPLE] + text[max(SAMPLE, len(text) // 2) :][:SAMPLE]
        words = sample.lower().split()
        functional = sum(map(FUNCTION_WORDS.__contains__, words)) / len(words)
        if functional < ENGLISH and detect_fast(sample)[0] != "en":
            share = 0.0
    yield "own_language", share
    if judged:
        yield "symbols", counts[SYMBOL] / ink
        yield "digits", counts[DIGIT] / ink
        yield "word_length", ink / np.count_nonzero((kinds[:-1] != SPACE) & (kinds[1:] == SPACE))
        yield "repeated_characters", np.count_nonzero((units[1:] == units[:-1]) & (kinds[1:] != SPACE)) / ink
        if language == "ko" and counts[HANGUL]:
            hangul = kinds == HANGUL
            ends = flags[:-1][hangul[:-1] > hangul[1:]]
            places = np.flatnonzero(hangul)
            before = places.searchsorted(np.flatnonzero(flags & STOP))  # Hangul before each end of a sentence or line
            ended = flags[places[before[1:] - 1]] & ENDING > 0
            particles = np.count_nonzero(ends & PARTICLE) / len(ends)
            yield "grammar", particles + (before[1:] - before[:-1])[ended].sum() / len(places)
        elif language == "en":
            yield "function_words", functional
        lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
        yield "repeated_lines", 1 - sum(map(len, set(lines))) / sum(map(len, lines))
        hashes, step, factor = units.astype(np.uint32), 1, 2_654_435_761
        while step < PHRASE:  # a polynomial hash of every run of characters; each step doubles the runs
            hashes = hashes[:-step] * np.uint32(factor) + hashes[step:]
            step, factor = 2 * step, factor * factor % 2**32
        hashes.sort()
        yield "repeated_phrases", np.count_nonzero(hashes[1:] == hashes[:-1]) / (len(hashes) or 1)


@cache
def _table() -> NDArray[np.uint8]:
    """Kind and flags of every UTF-16 unit; half a surrogate pair is a symbol."""
    tests = ((str.isalpha, LETTER), (str.isnumeric, DIGIT), (str.isspace, SPACE))
    kinds = (next((kind for test, kind in tests if test(chr(unit))), SYMBOL) for unit in range(65_536))
    table = np.fromiter(kinds, np.uint8)
    for kind, ends in RANGES:
        table[ord(ends[0]) : ord(ends[1]) + 1] = kind
    for flag, characters in FLAGS:
        table[[ord(character) for character in characters]] |= flag
    return table
