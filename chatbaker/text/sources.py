"""Where raw text comes from: a recipe's source -> `Document`s, one at a time, in a fixed order.

A source is a glob below the data root (JSON lines with a "text" field, or text files, one document each) or text that
the project makes itself (`made:ko`, `made:en`). Every text leaves here in NFC with line feeds for line ends.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import OnBad, OnBytes, read_bytes, read_jsonl
from chatbaker.recipe import Source
from chatbaker.rundir import find_files

MADE = "made:"
JSONL = (".jsonl", ".jsonl.zst", ".jsonl.gz")
TXT = (".txt", ".txt.zst", ".txt.gz")
NOT_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Document:
    """source: the recipe's name for it. where: file and line, or what made it, for a person to find it again."""

    text: str
    source: str
    language: str
    licence: str
    where: str

    @cached_property
    def fingerprint(self) -> int:
        """64 bits of the text that do not depend on case, white space and punctuation."""
        letters = NOT_LETTERS.sub("", self.text.casefold()) or self.text
        return int.from_bytes(hashlib.blake2b(letters.encode(), digest_size=8).digest(), "big")


def files(source: Source, data_root: Path) -> list[Path]:
    """The files of a source, sorted; none for text that is made.

    Raises ChatBakerError where the glob finds nothing or a file of an unknown kind.
    """
    if source.path.startswith(MADE):
        if source.path not in (MADE + source.language, f"{MADE}{source.language}:small"):
            raise ChatBakerError(
                f"its path is {source.path!r} and its language {source.language!r}",
                f"source {source.name!r}",
                f"Write path = '{MADE}{source.language}', or change the language",
            )
        if source.limit is None:
            raise ChatBakerError("made text does not end by itself", f"source {source.name!r}", "Give it a limit")
        return []
    found = find_files(data_root, source.path)
    if not found:
        raise ChatBakerError(
            f"source {source.name!r}: no file matches {source.path!r} below {str(data_root)!r}",
            hint="Type data_root=FOLDER after the recipe to say where the data is",
        )
    for path in found:
        if not path.name.endswith(JSONL + TXT):
            raise ChatBakerError("cannot read this kind of file", str(path), f"Known kinds: {', '.join(JSONL + TXT)}")
    return found


def read(
    source: Source, data_root: Path, seed: int, on_bad: OnBad, on_bytes: OnBytes | None = None
) -> Iterator[Document]:
    """The documents of a source, at most `limit`. What cannot be read goes to `on_bad`, naming file and line."""
    if source.path.startswith(MADE):
        files(source, data_root)
        texts = _made(source, seed)
    else:
        texts = _read_files(files(source, data_root), on_bad, on_bytes)
    for text, where in islice(texts, source.limit):
        yield Document(tidy(text), source.name, source.language, source.licence, where)


def tidy(text: str) -> str:
    """NFC, and every line end a line feed."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text)


def _made(source: Source, seed: int) -> Iterator[tuple[str, str]]:
    from chatbaker import made

    assert source.limit is not None
    for number, text in enumerate(made.documents(seed, source.limit, source.path.removeprefix(MADE)), 1):
        yield text, f"{source.path}:{number}"


def _read_files(paths: list[Path], on_bad: OnBad, on_bytes: OnBytes | None) -> Iterator[tuple[str, str]]:
    for path in paths:
        if path.name.endswith(TXT):
            try:
                yield b"".join(read_bytes(path, on_bytes)).decode("utf-8-sig"), str(path)
            except ChatBakerError as error:
                on_bad(error)
            except UnicodeDecodeError as error:
                on_bad(ChatBakerError(f"not UTF-8 (byte {error.start + 1})", str(path)))
            continue
        for number, record in read_jsonl(path, on_bad, on_bytes):
            text = record.get("text")
            if isinstance(text, str):
                yield text, f"{path}:{number}"
            else:
                on_bad(ChatBakerError('no "text" with a string', f"{path}:{number}"))
