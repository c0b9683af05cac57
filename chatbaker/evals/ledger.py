"""Rows in an append-only file, so that nothing computed or paid for is lost. And text from any file, made clean."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import defaultdict
from pathlib import Path
from threading import Lock
from typing import Any

from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import decode, read_bytes, read_jsonl
from chatbaker.log import say
from chatbaker.rundir import disk_error

Row = dict[str, Any]


class Ledger:
    """JSON lines found by their `key`, each in the file when `append` returns. None: kept in memory alone.

    fields: what every row has. A line cut short by a kill, or without them, is left out and told of.
    """

    def __init__(self, path: Path | None = None, *fields: str) -> None:
        self._path, self._lock, self._joint = path, Lock(), b""
        self.by_key: dict[str, list[Row]] = defaultdict(list)
        if path and path.exists():
            rows = [row for _, row in read_jsonl(path, on_bad=lambda error: say(f"left out: {error}"))]
            whole = [row for row in rows if row.keys() >= {"key", *fields}]
            for row in whole:
                self.by_key[row["key"]].append(row)
            if foreign := len(rows) - len(whole):
                say(f"left out: {foreign:,} lines of {path} without {', '.join(('key', *fields))}")
            self._joint = b"" if path.read_bytes().endswith(b"\n") else b"\n"

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.by_key.values() for row in rows]

    def append(self, row: Row, sync: bool = True) -> None:
        """sync: it outlives even a power cut; a thousand rows a second do not ask for that."""
        line = json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n"
        with self._lock:
            self.by_key[row["key"]].append(row)
            if self._path is None:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as file:
                    file.write(self._joint + line)
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
                self._joint = b""
            except OSError as error:
                raise disk_error(error, self._path) from error


def clean(text: str) -> str:
    """NFC, without half surrogate pairs, which no file can hold, and outer white space."""
    return unicodedata.normalize("NFC", text.encode(errors="replace").decode()).strip()


def read_text(path: Path) -> str:
    """A file in UTF-8 or CP949, plain, .zst or .gz, in NFC. Raises ChatBakerError naming the line."""
    data = b"".join(read_bytes(path))
    try:
        return unicodedata.normalize("NFC", decode(data))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ChatBakerError("neither UTF-8 nor CP949", f"{path}:{line}") from None
