"""Which window of which source is sample number i: a pure function, so that data order needs no state.

Every block of `BLOCK` samples holds the same number of each source, shuffled by (seed, block). A source's windows come
in a permutation drawn anew each pass, by a Feistel network that needs no memory (Black and Rogaway, 2002).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

BLOCK = 4096


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, proportional to `weights` (largest remainders); 0 for a weight of 0 alone."""
    exact = np.array(weights, dtype=float) * (total / sum(weights))
    counts = np.maximum(exact.astype(int), exact > 0)
    counts[np.argsort(counts - exact, kind="stable")[: max(0, total - counts.sum())]] += 1
    while counts.sum() > total:  # many small ones: the largest make room
        counts[counts.argmax()] -= 1
    return counts.tolist()


def mix_hash(*key: int | str) -> int:
    """64 well-mixed bits of a key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in a permutation of range(size) chosen by `key`. Constant time and memory."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:  # walk the cycle until the value is back inside; fewer than four turns on average
        left, right = index >> half, index & mask
        for turn in range(4):
            mixed = (right * 0x9E3779B97F4A7C15 + key + turn * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
            mixed = ((mixed ^ (mixed >> 31)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 29) & mask)
        index = (left << half) | right
        if index < size:
            return index


class Mixture:
    """sizes: windows per source. weights: their shares of the samples; a source without windows must have weight 0."""

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        assert all(size > 0 or weight == 0 for size, weight in zip(sizes, weights, strict=True))
        assert sum(weights) > 0
        self.sizes, self.seed = tuple(sizes), seed
        self.counts = apportion(weights, BLOCK)
        self._labels = np.repeat(np.arange(len(sizes)), self.counts)
        self._block = lru_cache(maxsize=4)(self._draw_block)

    def _draw_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Source of each sample of a block, and how many of that source come before it in the block."""
        sources = np.random.Generator(np.random.Philox(key=[self.seed, block])).permutation(self._labels)
        ranks = np.empty(BLOCK, dtype=np.int64)
        for source, count in enumerate(self.counts):
            ranks[sources == source] = np.arange(count)
        return sources, ranks

    def __call__(self, sample: int) -> tuple[int, int]:
        """(source, window) of sample number `sample`."""
        block, place = divmod(sample, BLOCK)
        sources, ranks = self._block(block)
        source = int(sources[place])
        epoch, index = divmod(block * self.counts[source] + int(ranks[place]), self.sizes[source])
        return source, permute(index, self.sizes[source], mix_hash(self.seed, source, epoch))
