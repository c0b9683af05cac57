"""Safetensors files read and written one tensor at a time, memory-mapped, without torch.

A safetensors file is eight bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data.
numpy has no bfloat16, so a bf16 tensor travels as its raw uint16 halves; `to_f32` and `to_bf16` convert.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chatbaker.errors import ChatBakerError
from chatbaker.rundir import atomic, read_json

Array = np.ndarray[Any, Any]
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies. dtype: a key of DTYPES. offset: bytes from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    def raw(self) -> Array:
        """The tensor as it is stored, mapped from the file; uint16 halves where it is bf16."""
        return np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)


def entries(folder: Path) -> dict[str, Entry]:
    """The tensors of a model folder, by name; sharded folders too.

    Raises ChatBakerError where a file is missing, cut short or of an unknown kind.
    """
    return {name: entry for file in shards(folder) for name, entry in _header(folder / file).items()}


def count(found: Mapping[str, Entry]) -> int:
    """How many numbers some tensors hold."""
    return sum(math.prod(entry.shape) for entry in found.values())


def shards(folder: Path) -> list[str]:
    """The names of a folder's weight files."""
    if (folder / INDEX).exists():
        return sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    if not (folder / SINGLE).exists() and (folder / "pytorch_model.bin").exists():
        hint = "Load it once with transformers and save it again: save_pretrained writes safetensors"
        raise ChatBakerError(f"the weights are a PyTorch pickle, not {SINGLE}", str(folder), hint)
    return [SINGLE]


def _header(path: Path) -> dict[str, Entry]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            if not 8 < start <= size:
                raise ValueError
            header = json.loads(file.read(start - 8))
        header.pop("__metadata__", None)
        found = {}
        for name, item in header.items():
            shape, (begin, end) = tuple(item["shape"]), item["data_offsets"]
            if item["dtype"] not in DTYPES:
                raise ChatBakerError(f"{name} is stored as {item['dtype']}; known are {', '.join(DTYPES)}", str(path))
            if end - begin != math.prod(shape) * DTYPES[item["dtype"]].itemsize or start + end > size:
                raise ValueError
            found[name] = Entry(path, item["dtype"], shape, start + begin)
        return found
    except FileNotFoundError:
        raise ChatBakerError("no such file", str(path)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        hint = "Copy or write the file again"
        raise ChatBakerError("not a whole safetensors file; it may be cut short", str(path), hint) from None


def to_f32(raw: Array, dtype: str) -> Array:
    """Stored values as float32."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)


def to_bf16(raw: Array, dtype: str) -> Array:
    """Stored values as bf16 halves, rounded to nearest even; a NaN stays one."""
    if dtype == "BF16":
        return raw
    values = to_f32(raw, dtype)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def write_bf16(source: Path, out: Path) -> Iterator[int]:
    """Write the safetensors file `source` as bf16; yields the number of values of each finished tensor."""
    found, end = _header(source), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, entry in found.items():
        begin, end = end, end + 2 * math.prod(entry.shape)
        header[name] = {"dtype": "BF16", "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(out, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in found.values():
            file.write(np.ascontiguousarray(to_bf16(entry.raw(), entry.dtype)).data)
            yield math.prod(entry.shape)
