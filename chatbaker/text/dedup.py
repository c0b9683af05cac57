"""Finds text that was there before: the same document, nearly the same one, the same paragraph.

Only letters and digits count, in one case. Near duplicates share most n-grams: of 3 letters where one is a syllable or
a word, of 5 elsewhere. Each task has a `Signer` that writes TASK.NAME.npy; of these `find_pairs` (any number of tasks)
and `settle` (one) make TASK.drops.npz. A document goes only where an earlier one that stays is verified to be like it.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from chatbaker.rundir import atomic

BINS, BANDS, ROWS = 256, 42, 6  # of 100 pairs with a Jaccard index of 0.6 (0.7), 87 (99) share a band
SHORT, WIDE = 100, 0x2E80  # letters too few to compare n-grams; code point where letters begin to be syllables or words
BLOCK, PART = 1 << 15, 1 << 23  # characters signed at once, so that they stay in the cache; paragraphs compared at once
BASE, BACK, ODD, LOW = 0x9E3779B97F4A7C15, 0xF1DE83E19937733D, 0xD6E8FEB86659FD93, 0xFFFFFFFF  # BASE * BACK = 1
Array = np.ndarray


def _mix(x: Array) -> Array:
    x = (x ^ (x >> 32)) * ODD
    return x ^ (x >> 32)


@cache
def fold() -> Array:
    """Code point -> the letter that it counts as, the same for both cases, or 0."""
    return np.array([ord(c.casefold()[0]) if c.isalnum() else 0 for c in map(chr, range(0x40000))], np.uint32)


@cache
def _values() -> Array:
    return _mix(fold() * np.uint64(BASE))  # a random number for each


class Signer:
    """Notes what matters of one task's documents (text: NFC) and of their lines with at least `paragraph` letters."""

    def __init__(self, paragraph: int = 60) -> None:
        self.paragraph, self.texts, self.parts = paragraph, list[str](), list[tuple[Array, ...]]()
        self.size = self.documents = 0

    def sign(self, text: str) -> None:
        """Note the next document."""
        self.texts.append(text)
        self.size += len(text)
        if self.size >= BLOCK:
            self._flush()

    def write(self, folder: Path, task: int) -> None:
        self._flush()
        for name, *parts in zip(("print", "bands", "paragraph", "sketch"), *self.parts, strict=True):
            with atomic(folder / f"{task:06d}.{name}.npy", "wb") as file:
                np.save(file, np.concatenate(parts) if name == "sketch" else np.asfortranarray(np.concatenate(parts)))

    def _flush(self) -> None:
        def spans(start: Array, stop: Array) -> Array:  # hashes of the letters from start to stop
            return _mix((prefix[stop] - prefix[start]) * inverse[start])

        codes = np.frombuffer("".join(f"{text}\n" for text in self.texts).encode("utf-32-le"), np.uint32)
        kept = np.flatnonzero(values := _values().take(codes, mode="clip"))
        power, inverse = np.multiply.accumulate(np.full((2, len(kept) + ROWS), [[BASE], [BACK]], np.uint64), axis=1)
        prefix = np.append(np.uint64(0), np.cumsum(values[kept] * power[: len(kept)]))
        lines = np.array([text.count("\n") + 1 for text in self.texts], np.int64)
        first = np.cumsum(lines) - lines
        border = np.append(0, np.searchsorted(kept, np.flatnonzero(codes == 10)))  # letters before each line
        long = np.flatnonzero(np.diff(border) >= self.paragraph)
        owner = np.repeat(np.arange(len(lines)), lines)[long]
        place = (self.documents + owner << 32) + long - first[owner]
        paragraphs = np.stack([spans(border[long], border[long + 1]).view(np.int64), place], axis=1)

        start, stop = border[first], border[first + lines]
        judged = stop - start >= SHORT
        end = np.arange(len(kept)) + np.where(codes[kept] < WIDE, 5, 3)
        at = np.flatnonzero(end <= np.repeat(np.where(judged, stop, 0), stop - start))
        grams, row = spans(at, end[at]), np.repeat(np.arange(len(lines)), stop - start)[at]
        # One permutation hashing: each bin's smallest n-gram; an empty bin borrows another's, in a fixed random order.
        drawn = np.repeat(judged * np.uint32(LOW), BINS).reshape(-1, BINS)  # all 0: not judged
        np.minimum.at(drawn.reshape(-1), row * BINS + (grams >> 56).view(np.int64), grams.astype(np.uint32))
        bins, empty, turn = drawn.copy(), np.flatnonzero(drawn == LOW), 0
        while len(empty) and turn < 32:
            other = _mix((empty % BINS + turn * BINS).view(np.uint64) * BASE) >> 56
            bins.flat[empty] = drawn.flat[empty // BINS * BINS + other.view(np.int64)]
            empty, turn = empty[bins.flat[empty] == LOW], turn + 1
        bins.flat[empty] = drawn.min(axis=1)[empty // BINS]  # of a text that repeats a few n-grams
        bands = _mix(bins[:, : BANDS * ROWS].reshape(-1, BANDS, ROWS).astype(np.uint64) @ power[:ROWS]) >> 32
        self.parts.append((spans(start, stop), bands.astype(np.uint32), paragraphs, bins.astype(np.uint8)))
        self.texts, self.size, self.documents = [], 0, self.documents + len(lines)


class Corpus:
    """What the signers of all tasks wrote. threshold: the least Jaccard index to be alike; None: only the same text."""

    def __init__(self, folder: Path, threshold: float | None) -> None:
        self.folder, self.threshold = folder, threshold
        self.prints, self.sketches = self._load("*.print"), self._load("*.sketch")
        self.starts = np.cumsum([0, *map(len, self.prints)]).tolist()  # documents are numbered through all tasks

    def _load(self, name: str) -> list[Array]:
        return [np.asarray(np.load(path, mmap_mode="r")) for path in sorted(self.folder.glob(f"{name}.npy"))]

    def _sketch(self, number: int) -> Array:
        task = bisect_right(self.starts, number) - 1
        return self.sketches[task][number - self.starts[task]]

    def _alike(self, a: int, b: int) -> bool:  # the share of equal bins estimates the Jaccard index
        return bool(np.count_nonzero(self._sketch(a) == self._sketch(b)) >= (self.threshold or 0) * BINS)

    def find_pairs(self, rank: int, world: int) -> None:
        """Write pairs/RANK.npy: (earlier << 32 | later) of documents alike, as far as their keys fall to this rank."""
        bands, found = self._load("*.bands"), []
        for column in [self.prints, *([of[:, i] for of in bands] for i in range(BANDS if self.threshold else 0))]:
            keys = np.concatenate(column)
            rows = np.flatnonzero((keys > 0) & (keys % world == rank))
            rows = rows[np.argsort(keys[rows], kind="stable")]
            first = np.searchsorted(keys[rows], keys[rows])
            at = np.flatnonzero(first < np.arange(len(first)))
            found.append(np.unique([rows[of] << 32 | rows[at] for of in (first[at], at - 1)]))
        pairs = [pair for pair in np.unique(np.concatenate(found)).tolist() if self._alike(pair >> 32, pair & LOW)]
        with atomic(self.folder / "pairs" / f"{rank:06d}.npy", "wb") as file:
            np.save(file, np.array(pairs, np.int64))

    def settle(self, copies: int) -> None:
        """Write TASK.drops.npz, sorted: documents (index, task and index of the one that stays, whether the text is the
        same), and lines (index << 32 | line) of paragraphs that over `copies` others have, but for the first; 0: none.
        """
        stays = dict[int, int]()
        for pair in np.unique(np.concatenate(self._load("pairs/*"))).tolist():
            first, later = stays.get(pair >> 32, pair >> 32), pair & LOW  # what is before `later` has been settled
            if later not in stays and (first == pair >> 32 or self._alike(first, later)):
                stays[later] = first
        gone, kept = np.array(sorted(stays.items()), np.int64).reshape(-1, 2).T
        prints, of = np.concatenate(self.prints), np.searchsorted(self.starts, kept, "right") - 1
        drops = np.stack([gone, of, kept - np.array(self.starts)[of], prints[gone] == prints[kept]], axis=1)
        tables, lines = self._load("*.paragraph"), []
        for part in range(parts := 1 + sum(map(len, tables)) // PART):
            rows = [of[of[:, 0] % parts == part] + [0, at << 32] for of, at in zip(tables, self.starts, strict=False)]
            keys, places = (table := np.concatenate(rows))[~np.isin(table[:, 1] >> 32, gone)].T
            documents, (_, first, group) = places >> 32, np.unique(keys, return_index=True, return_inverse=True)
            copied = np.bincount(np.unique(group << 32 | documents) >> 32)[group] > (copies or LOW)
            lines.append(places[copied & (documents > documents[first[group]])])
        places = np.sort(np.concatenate(lines))
        for task, (start, stop) in enumerate(pairwise(self.starts)):
            mine = drops[slice(*np.searchsorted(gone, (start, stop)))] - [start, 0, 0, 0]
            extra = places[slice(*np.searchsorted(places, (start << 32, stop << 32)))] - (start << 32)
            with atomic(self.folder / f"{task:06d}.drops.npz", "wb") as file:
                np.savez(file, documents=mine, lines=extra)
