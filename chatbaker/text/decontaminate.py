"""Finds the documents that hold an item of an evaluation set.

Only letters and digits count, without case. An n-gram is 6 letters of a wide script (Hangul, kana, hanja) or 12 of
another, and a wide letter is three wide. An item is a string of an evaluation record, or its shorter strings together;
a document leaks it if n-grams found in one place cover MIN and SHARE of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_jsonl
from chatbaker.rundir import find_files, new_folder
from chatbaker.text.dedup import fold
from chatbaker.text.korean import normalize

MIN, SHARE = 40, 0.5  # 14 syllables or 40 letters
MANY = 8  # an n-gram in more items than this is a template or common language, and left out
SEEDS = 24  # at most this many n-grams are kept of an item, and at least half, evenly spread: enough to tell its share
NEAR = 64  # letters that may come between one n-gram of an item and another, more than there are in the item
WIDE = 0x1100  # Hangul jamo; a letter from here on is wide
KINDS = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".csv", ".parquet")
BASE = {n: np.uint32(pow(0x9E3779B1, n, 1 << 32)) for n in (1, 2, 6)}  # powers of the rolling hash's base


class Leak(NamedTuple):
    sets: list[str]  # every set with an item in the document
    item: str  # file and line of the one found most fully
    share: float  # how much of it was found


def read_items(patterns: Iterable[str], data_root: Path) -> Iterator[tuple[str, str, list[str]]]:
    """(set, file and line, strings) of each record in the folders (with all their splits) and files that globs name.

    A string without a space is no text but a label. Raises ChatBakerError where nothing is found or can be read.
    """
    for pattern in patterns:
        found = {path: f"{path.parent.name}/{path.name}" for path in find_files(data_root, pattern)}
        found |= {path: path.parent.name for path in find_files(data_root, f"{pattern}/**")}
        found = {path: name for path, name in found.items() if path.name.endswith(KINDS)}
        if not found:
            raise ChatBakerError(f"nothing to read matches {pattern!r} below {str(data_root)!r}", "clean.decontaminate")
        for path, name in found.items():
            for number, record in _records(path):
                strings = [text for text in _strings(record) if len(text.split()) > 1]
                yield name, f"{path.parent.name}/{path.name}:{number}", strings


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if path.suffix not in (".csv", ".parquet"):
        return read_jsonl(path)
    from pyarrow import ArrowException, csv, parquet

    lines = csv.ParseOptions(newlines_in_values=True)
    try:
        table = parquet.read_table(path) if path.suffix == ".parquet" else csv.read_csv(path, parse_options=lines)
    except (ArrowException, OSError) as error:
        raise ChatBakerError(f"cannot be read: {error}", str(path)) from None
    return enumerate(table.to_pylist(), 1)


def _strings(value: Any) -> list[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if isinstance(value, str) else [text for part in inner for text in _strings(part)]


def _letters(text: str) -> np.ndarray:
    codes = fold().take(np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32), mode="clip")
    return codes[codes != 0]


def _grams(letters: np.ndarray) -> np.ndarray:
    """Hash of the n-gram that begins at each letter and is as long as this letter's script has it; 0: cut short."""
    two = letters[:-1] * BASE[1] + letters[1:]
    four = two[:-2] * BASE[2] + two[2:]
    six = four[:-2] * BASE[2] + two[4:]
    twelve = np.zeros_like(six)
    twelve[: max(0, len(six) - 6)] = six[:-6] * BASE[6] + six[6:]
    return np.where(letters[: len(six)] >= WIDE, six, twelve)


def _items(strings: list[str]) -> Iterator[np.ndarray]:
    """The letters of each string that is wide enough alone, and of all that are hardly so, together."""
    parts = list(dict.fromkeys(_letters(normalize(text)).tobytes() for text in strings))
    letters = [np.frombuffer(part, np.uint32) for part in parts if sum(part in other for other in parts) == 1]
    width = [len(part) + 2 * np.count_nonzero(part >= WIDE) for part in letters]
    yield from (part for part, size in zip(letters, width, strict=True) if size >= MIN)
    if sum(size for size in width if size < 2 * MIN) >= MIN:
        yield np.concatenate([part for part, size in zip(letters, width, strict=True) if size < 2 * MIN])


def _cover(group: np.ndarray, place: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """The width that the n-grams of each group cover, given in order of group and place."""
    gap = np.full(len(group), 12)
    gap[:-1] = np.where(group[1:] == group[:-1], place[1:] - place[:-1], 12)
    return np.bincount(group, np.where(wide, 3 * np.minimum(gap, 6), np.minimum(gap, 12)))


class Index(NamedTuple):
    """The n-grams of all items in the order of their hashes. Saved as arrays that processes map and share."""

    grams: np.ndarray  # (N, 4): hash, item, place in the item, whether wide
    known: np.ndarray  # a bit for each value of a hash's first bits: whether an n-gram has it
    start: np.ndarray  # for each value of fewer bits: where its n-grams begin
    width: np.ndarray  # of each item, as far as n-grams cover it
    names: np.ndarray  # of each item: set, file and line

    @classmethod
    def build(cls, items: Iterable[tuple[str, str, list[str]]]) -> Index:
        """From what `read_items` gives. Raises ChatBakerError where no item is wide enough."""
        seen: dict[tuple[str, bytes], str] = {}
        parts = [np.empty((0, 4), np.uint32)]
        for name, line, strings in items:
            for letters in _items(strings):
                if (name, letters.tobytes()) not in seen:
                    hashes = _grams(letters)
                    place = np.sort(np.unique(hashes, return_index=True)[1])
                    place = place[hashes[place] != 0]
                    columns = (hashes[place], np.full(len(place), len(seen)), place, letters[place] >= WIDE)
                    parts.append(np.column_stack(columns).astype(np.uint32))
                    seen[name, letters.tobytes()] = line
        grams = np.concatenate(parts)
        _, same, count = np.unique(grams[:, 0], return_inverse=True, return_counts=True)
        grams = grams[count[same] <= MANY]
        if not grams.size:
            raise ChatBakerError("no evaluation item is long enough to be found in a document", "clean.decontaminate")
        count = np.bincount(grams[:, 1])
        rank = np.arange(len(grams)) - (np.cumsum(count) - count)[grams[:, 1]]
        grams = grams[rank % (1 + count // SEEDS)[grams[:, 1]] == 0]
        width = _cover(*grams[:, 1:].astype(np.int64).T)
        grams = grams[np.argsort(grams[:, 0])]
        bits = max(1, len(grams).bit_length() - 1)
        known = np.zeros(1 << bits + 5, bool)
        known[grams[:, 0] >> np.uint32(27 - bits)] = True
        firsts = np.arange(0, 2**32 + 1, 2 ** (32 - bits))
        start = np.searchsorted(grams[:, 0].astype(np.int64), firsts).astype(np.int32)
        names = np.array([(name.encode(), line.encode()) for (name, _), line in seen.items()])
        return cls(grams, np.packbits(known, bitorder="little"), start, width, names)

    def leak(self, text: str) -> Leak | None:
        """What a text leaks; it must be normalized, as the items are."""
        hashes = _grams(_letters(text))
        bit = hashes >> np.uint32(30 - len(self.known).bit_length())
        at = np.flatnonzero(self.known.take(bit >> 3) >> (bit & 7).astype(np.uint8) & 1)
        hashes = hashes[at]
        bucket = hashes >> np.uint32(33 - len(self.start).bit_length())
        first = self.start.take(bucket)
        count = self.start.take(bucket + 1) - first
        rows = self.grams.take(np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum()), axis=0)
        same = rows[:, 0] == hashes.repeat(count)
        item, place, wide = rows[same, 1:].astype(np.int64).T
        key = (item << 32) + at.repeat(count)[same] - place  # close together for n-grams of one item in one place
        order = key.argsort()
        key = key[order]
        if not (key[2:] - key[:-2] <= 2 * NEAR).any():  # two n-grams cannot cover MIN
            return None
        group = np.concatenate(([0], np.cumsum(np.diff(key) > NEAR)))
        order = order[np.lexsort((place[order], group))]
        found = _cover(group, place[order], wide[order])
        item = item[order[np.searchsorted(group, np.arange(len(found)))]]
        share = found / self.width[item]
        leaked = np.flatnonzero((found >= MIN) & (share >= SHARE))
        if not leaked.size:
            return None
        best = leaked[share[leaked].argmax()]
        sets = sorted({name.decode() for name in self.names[item[leaked], 0]})
        return Leak(sets, self.names[item[best], 1].decode(), min(1.0, float(share[best])))

    def save(self, folder: Path) -> None:
        with new_folder(folder) as part:
            for name, array in self._asdict().items():
                np.save(part / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Index:
        return cls(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in cls._fields))
