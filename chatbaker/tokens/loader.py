"""Batches for training: a pure function of the step, so that a run resumes exactly, on any number of processes.

Step s holds samples s * B ... (s + 1) * B - 1 of the global order; rank r of R takes each R-th of them. Shapes: B
sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from chatbaker.errors import ChatBakerError
from chatbaker.tokens.mixture import Mixture, mix_hash, permute
from chatbaker.tokens.shards import Index

IGNORE = -100  # target of a token without loss; the same number as in model/loss.py


@dataclass(frozen=True)
class Batch:
    """ids, targets, docs: int64 [B, T]. targets hold IGNORE where there is no loss; docs number the documents.

    reference: float32 [B, T], the base's log p(target), where documents 1 and 2, 3 and 4 ... are pairs, better first.
    """

    ids: np.ndarray
    targets: np.ndarray
    docs: np.ndarray
    reference: np.ndarray | None = None

    @property
    def arrays(self) -> list[np.ndarray]:
        return [self.ids, self.targets, self.docs, *([] if self.reference is None else [self.reference])]

    @property
    def valid(self) -> int:
        """What the loss is a mean over: tokens with loss, or pairs."""
        return self.trained if self.reference is None else int((self.docs.max(1) // 2).sum())

    @property
    def trained(self) -> int:
        """Tokens with loss."""
        return int((self.targets != IGNORE).sum())

    def take(self, rows: slice | list[int]) -> Batch:
        """Some of the sequences, in the int64 that the network reads."""
        return Batch(*(part[rows] if part.dtype.kind == "f" else part[rows].astype(np.int64) for part in self.arrays))

    def head(self, rows: int) -> Batch:
        return self.take(slice(rows))

    def split(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of at most `rows` sequences."""
        for start in range(0, len(self.ids), rows):
            yield self.take(slice(start, start + rows))


class Data(Protocol):
    """What the training loop reads."""

    fingerprint: str
    batch_rows: int  # sequences in a step over all ranks

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch: ...


class PretrainData:
    """Windows of seq_len tokens out of token shards, mixed by weight."""

    def __init__(self, index: Index, mix: dict[str, float], seq_len: int, batch_rows: int, seed: int) -> None:
        self.fingerprint, self.batch_rows = index.fingerprint, batch_rows
        self.seq_len, self.end_of_text = seq_len, index.end_of_text
        shards = [shard for shard in index.shards if shard.split == "train"]
        self.tokens = [index.tokens(shard) for shard in shards]
        sizes = [max(0, len(tokens) - 1) // seq_len for tokens in self.tokens]
        weights = mix_weights([(s.name, s.language) for s in shards], sizes, mix)
        self.mixture = Mixture(sizes, weights, seed)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        windows = []
        for row in range(rank, self.batch_rows, world):
            source, window = self.mixture(step * self.batch_rows + row)
            start = window * self.seq_len
            windows.append(self.tokens[source][start : start + self.seq_len + 1])
        return window_batch(np.stack(windows).astype(np.int64), self.end_of_text)


def window_batch(windows: np.ndarray, end_of_text: int) -> Batch:
    """Windows [B, T + 1] of a token stream as a batch: every token is the target of the one before it."""
    ids = windows[:, :-1]
    documents = np.cumsum(ids == end_of_text, axis=1)  # each starts at its end-of-text token
    return Batch(ids, windows[:, 1:], documents)


def mix_weights(sources: list[tuple[str, str]], sizes: list[int], mix: dict[str, float]) -> list[float]:
    """The share of each (name, language) source; a language's is spread by size. Raises ChatBakerError for no match."""
    if not any(sizes):
        raise ChatBakerError("no source has a whole context of text", "pack", "Add text, or lower model.seq_len")
    if not mix:
        return [float(size) for size in sizes]
    known = {name for name, _ in sources} | {language for _, language in sources}
    for key in mix:
        if key not in known:
            raise ChatBakerError(f"no source or language {key!r}", "pretrain.mix", f"Known: {', '.join(sorted(known))}")
    if not sum(mix.values()):
        raise ChatBakerError("every share is 0", "pretrain.mix")
    weights = [0.0] * len(sources)
    for key, share in mix.items():
        members = [i for i, (name, _) in enumerate(sources) if name == key]
        if not members:  # a language: those of its sources that are not named themselves
            members = [i for i, (name, language) in enumerate(sources) if language == key and name not in mix]
        total = sum(sizes[i] for i in members)
        if not total:
            raise ChatBakerError(f"{key!r} has no whole context of text", "pretrain.mix", "Take it out or add text")
        for i in members:
            weights[i] += share * sizes[i] / total
    return weights


class SftData:
    """Packed conversations: rows of seq_len tokens with targets and document numbers, reshuffled each epoch."""

    def __init__(self, rows: Batch, batch_rows: int, seed: int, fingerprint: str) -> None:
        self.rows, self.batch_rows, self.seed, self.fingerprint = rows, batch_rows, seed, fingerprint

    @property
    def steps_per_epoch(self) -> float:
        return len(self.rows.ids) / self.batch_rows

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        count = len(self.rows.ids)
        chosen = []
        for row in range(rank, self.batch_rows, world):
            epoch, index = divmod(step * self.batch_rows + row, count)
            chosen.append(permute(index, count, mix_hash(self.seed, "sft", epoch)))
        return self.rows.take(chosen)
