"""Token files: unsigned 16-bit ids, little-endian, memory-mapped, with an index that carries their fingerprint.

A document in a shard is the end-of-text token followed by its text, so that the model learns to say where one ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chatbaker.errors import ChatBakerError
from chatbaker.rundir import atomic, digest, read_json, write_json

TOKEN = np.dtype("<u2")
INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """One token file."""

    name: str
    language: str
    split: str
    file: str
    documents: int
    tokens: int
    text_bytes: int
    sha256: str


def write_shard(
    folder: Path, name: str, language: str, split: str, documents: Iterable[tuple[list[int], int]], end_of_text: int
) -> Shard:
    """Write (token ids, text bytes) pairs one after the other; the file appears only when complete."""
    file = f"{name}.{split}.bin"
    count = tokens = text_bytes = 0
    sha = hashlib.sha256()
    with atomic(folder / file, "wb") as out:
        for ids, size in documents:
            data = np.array([end_of_text, *ids], dtype=TOKEN).tobytes()
            out.write(data)
            sha.update(data)
            count, tokens, text_bytes = count + 1, tokens + len(ids) + 1, text_bytes + size
    return Shard(name, language, split, file, count, tokens, text_bytes, sha.hexdigest())


@dataclass(frozen=True)
class Index:
    """What a folder of shards holds."""

    folder: Path
    vocab_size: int
    end_of_text: int
    shards: tuple[Shard, ...]

    @property
    def fingerprint(self) -> str:
        """Changes whenever any token of any shard does."""
        return digest([self.vocab_size, self.end_of_text, [(s.name, s.split, s.sha256) for s in self.shards]])

    def save(self) -> None:
        record = asdict(self)
        del record["folder"]
        write_json(self.folder / INDEX, record)

    def tokens(self, shard: Shard) -> np.ndarray:
        """The shard's ids, memory-mapped [tokens]. Raises ChatBakerError where the file is missing or cut short."""
        path = self.folder / shard.file
        if not path.is_file() or path.stat().st_size != shard.tokens * TOKEN.itemsize:
            raise ChatBakerError("this token file is missing or not whole", str(path), "Run 'chatbaker pack' again")
        return np.memmap(path, dtype=TOKEN, mode="r") if shard.tokens else np.empty(0, dtype=TOKEN)


def load_index(folder: Path) -> Index:
    raw = read_json(folder / INDEX)
    try:
        return Index(folder, raw["vocab_size"], raw["end_of_text"], tuple(Shard(**shard) for shard in raw["shards"]))
    except (KeyError, TypeError):
        raise ChatBakerError("not an index of token files", str(folder / INDEX), "Run 'chatbaker pack' again") from None
