"""Bits per byte of text under any lm-eval model: the figure that compares models with different tokenizers.

-log2 P(text) / UTF-8 bytes of the text in NFC, every document from its own start.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from chatbaker.errors import ChatBakerError
from chatbaker.evals.ledger import read_text
from chatbaker.jsonl import read_jsonl, read_shards
from chatbaker.rundir import RunDir, find_files

HELD_OUT = 100_000  # bytes of a source's held-out documents from which on no more are measured


def find(patterns: Sequence[str], root: Path, run: RunDir | None) -> dict[str, list[str]]:
    """{file: its documents} for globs below `root`; without any, the first HELD_OUT bytes of a run's every source."""
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        if not (paths := find_files(root, pattern)):
            raise ChatBakerError("no such file", str(root / pattern), "eval.texts (--text) names text files")
        found |= {str(path): read(path) for path in paths}
    for folder in [] if patterns or run is None else sorted(run.path("clean", "validation").glob("*")):
        documents, size = [], 0
        for row in read_shards(folder):
            documents.append(row["text"])
            if (size := size + len(row["text"].encode())) >= HELD_OUT:
                break
        found |= {f"clean/validation/{folder.name}": documents} if documents else {}
    return found


def read(path: Path) -> list[str]:
    """The documents of a file in NFC: the `text` of JSON lines, else the whole; UTF-8 or CP949, plain, .zst or .gz."""
    texts: list[str] = []
    if ".jsonl" in path.suffixes:
        for number, record in read_jsonl(path):
            if not isinstance(record.get("text"), str):
                raise ChatBakerError("no column 'text'", f"{path}:{number}")
            texts.append(record["text"])
    else:
        texts = [read_text(path)]
    if texts := [unicodedata.normalize("NFC", text) for text in texts if text.strip()]:
        return texts
    raise ChatBakerError("no text in it", str(path))


def language(text: str) -> str:
    """ko where three letters in ten are Hangul; else en."""
    letters = [letter for letter in text if letter.isalpha()]
    return "ko" if sum("가" <= letter <= "힣" for letter in letters) > 0.3 * len(letters) else "en"


def measure(lm: Any, texts: dict[str, list[str]]) -> list[dict[str, Any]]:
    """A row of results.json for each file, then for each language of several files."""
    documents = [text for file in texts.values() for text in file]
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(documents)]
    nats = iter(lm.loglikelihood_rolling(requests))
    encode = getattr(getattr(lm, "inner", lm), "tok_encode", None)  # not every model shows its tokens
    rows = []
    for name, file in texts.items():
        tokens = sum(len(encode(text)) for text in file) if encode else 0
        size, bits = sum(len(text.encode()) for text in file), -sum(next(nats) for _ in file) / math.log(2)
        rows.append((name, language("".join(file)), len(file), size, tokens, bits))
    for code in ("ko", "en"):
        if len(same := [row[2:] for row in rows if row[1] == code]) > 1:
            rows.append((f"all {code}", code, *map(sum, zip(*same, strict=True))))  # type: ignore[arg-type]
    names = ("file", "language", "documents", "bytes", "tokens", "bits_per_byte")
    return [dict(zip(names, (*row[:4], row[4] or None, round(row[5] / row[3], 5)), strict=True)) for row in rows]
