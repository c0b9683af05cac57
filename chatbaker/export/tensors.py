"""Safetensors files, read and written one tensor at a time, memory-mapped and without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, quants
from safetensors import SafetensorError, safe_open

from chatbaker.errors import ChatBakerError
from chatbaker.rundir import atomic, read_json

Array = np.ndarray[Any, Any]
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a value
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Entry(NamedTuple):
    """Where one tensor lies. dtype: a key of WIDTHS. offset: bytes from the start of the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def raw(self) -> Array:
        """The bytes of the tensor, row by row, mapped from the file."""
        *rows, width = self.shape
        return np.memmap(self.path, np.uint8, "r", self.offset, (*rows, width * WIDTHS[self.dtype]))


def entries(folder: Path) -> dict[str, Entry]:
    """The tensors of a model folder, by name. Raises ChatBakerError for a missing, cut or foreign file."""
    return {name: entry for file in shards(folder) for name, entry in _header(folder / file).items()}


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
        with safe_open(path, "np"), path.open("rb") as file:  # safe_open checks the whole layout, but tells no offsets
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except FileNotFoundError:
        raise ChatBakerError("no such file", str(path)) from None
    except SafetensorError:
        hint = "Copy or write the file again"
        raise ChatBakerError("not a whole safetensors file; it may be cut short", str(path), hint) from None
    header.pop("__metadata__", None)
    for name, item in header.items():
        if item["dtype"] not in WIDTHS:
            raise ChatBakerError(f"{name} is stored as {item['dtype']}; known are {', '.join(WIDTHS)}", str(path))
        header[name] = Entry(path, item["dtype"], tuple(item["shape"]), 8 + size + item["data_offsets"][0])
    return header


def convert(raw: Array, dtype: str, kind: GGMLQuantizationType) -> Array:
    """The bytes of some rows as another type of ggml's; bf16 is rounded to nearest even."""
    if dtype == kind.name:
        return raw
    return quants.quantize(quants.dequantize(raw, GGMLQuantizationType[dtype]), kind)


def write_bf16(source: Path, out: Path) -> Iterator[int]:
    """Write the safetensors file `source` as bf16; yields the number of values of each finished tensor."""
    found, end = _header(source), 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, entry in found.items():
        begin, end = end, end + 2 * entry.size
        header[name] = {"dtype": "BF16", "shape": entry.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic(out, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in found.values():
            file.write(convert(entry.raw(), entry.dtype, GGMLQuantizationType.BF16).data)
            yield entry.size
