"""What a GGUF file says of itself, read in milliseconds without numpy: architecture, context, vocabulary, template."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbaker.errors import ChatBakerError

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's token types
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Metadata:
    """context: tokens trained for. kv_width: numbers per token in keys and values together, all layers."""

    values: dict[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """A value; `{arch}` in the key stands for the architecture."""
        return self.values.get(key.replace("{arch}", self.values.get("general.architecture", "")), default)

    @property
    def context(self) -> int:
        return int(self.get("{arch}.context_length", 2048))

    @property
    def head_dim(self) -> int:
        heads = self.get("{arch}.attention.head_count", 1)
        return int(self.get("{arch}.attention.key_length", self.get("{arch}.embedding_length", 0) // heads))

    @property
    def kv_width(self) -> int:
        heads = self.get("{arch}.attention.head_count_kv", self.get("{arch}.attention.head_count", 1))
        return 2 * int(self.get("{arch}.block_count", 1)) * int(heads) * self.head_dim

    @property
    def tokens(self) -> list[str]:
        return list(self.values["tokenizer.ggml.tokens"])

    @property
    def specials(self) -> dict[str, int]:
        """Special tokens and their ids."""
        kinds = zip(self.tokens, self.get("tokenizer.ggml.token_type", []), strict=False)
        return {token: i for i, (token, kind) in enumerate(kinds) if kind in (CONTROL, USER_DEFINED)}


def read_metadata(path: Path) -> Metadata:
    """Raises ChatBakerError where the file is missing, is no GGUF, or ends before its metadata do."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                hint = "Give --model a .gguf file, a model folder or a hub id"
                raise ChatBakerError("not a GGUF file", str(path), hint)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return Metadata(_read(data))
    except OSError as error:
        raise ChatBakerError(error.strerror or str(error), str(path)) from None
    except (struct.error, KeyError, UnicodeDecodeError, ValueError):
        raise ChatBakerError("a broken or cut-off GGUF file", str(path), "Copy, download or export it again") from None


def _read(data: mmap.mmap) -> dict[str, Any]:
    at = 4

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal at
        values = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return values

    def string() -> str:
        nonlocal at
        start = at + 8
        at = start + int.from_bytes(data[at:start], "little")
        if at > len(data):
            raise ValueError("text beyond the end of the file")
        return data[start:at].decode()

    def value(kind: int) -> Any:
        if kind == _STRING:
            return string()
        if kind != _ARRAY:
            return take(_SCALARS[kind])[0]
        item, count = take("IQ")
        if item in (_STRING, _ARRAY):
            return [value(item) for _ in range(count)]
        return list(take(f"{count}{_SCALARS[item]}"))

    version, _, entries = take("IQQ")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}")
    result = {string(): value(take("I")[0]) for _ in range(entries)}
    tokens = result["tokenizer.ggml.tokens"]
    if len(set(tokens)) != len(tokens):  # llama.cpp would abort the process
        raise ValueError("a vocabulary with doubles")
    return result
