"""Which encodings are read rightly, which mojibake is undone, whether good text is left alone, and what it costs.

    python benchmarks/clean/encodings.py --data FOLDER [--documents 20000]

FOLDER holds raw/encodings, raw/html and pretrain. A file is right when its codec is the true one (or a superset: CP949
for EUC-KR, UTF-8 for ASCII) and its text is the true text (its hash, where the truth gives one; before `normalize`).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tarfile
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_bytes, read_jsonl
from chatbaker.text.korean import decode, normalize, repair

CODECS = {  # what the truth calls it -> what `decode` should report
    "ASCII": "utf-8",
    "UTF-8": "utf-8",
    "UTF-8-BOM": "utf-8-sig",
    "EUC-KR": "cp949",
    "CP949": "cp949",
    "JOHAB": "johab",
    "ISO-2022-KR": "iso2022_kr",
    "ISO-8859-1": "iso8859-1",
    "UTF-16LE": "utf-16-le",
    "UTF-16LE-BOM": "utf-16",
    "UTF-16BE-BOM": "utf-16",
}
GARBLED = "CP949-read-as-ISO-8859-1-saved-as-UTF-8"
LOSSY = "UTF-8-read-as-CP949-saved-as-UTF-8-BOM(lossy)"


def archive(path: Path) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(read_bytes(path)))) as tar:
        return {
            member.name.removeprefix("./"): file.read()
            for member in tar.getmembers()
            if member.isfile() and (file := tar.extractfile(member))
        }


def sha(text: str) -> str:
    return hashlib.sha256(unicodedata.normalize("NFC", text).encode()).hexdigest()


class Table:
    """Right and wrong per kind, and which files were wrong."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.wrong: list[str] = []

    def add(self, kind: str, right: bool, what: str) -> None:
        self.rows[kind][0] += right
        self.rows[kind][1] += 1
        if not right:
            self.wrong.append(f"  wrong: {kind}: {what}")

    def show(self, title: str) -> None:
        print(f"{title}: {sum(r for r, _ in self.rows.values())} of {sum(n for _, n in self.rows.values())} right")
        for kind, (right, number) in sorted(self.rows.items()):
            print(f"  {kind:50} {right:5} of {number}")
        print("\n".join(self.wrong), end="\n" if self.wrong else "")


def files(data: Path) -> None:
    contents = archive(data / "raw/encodings/files.tar.zst")
    table, undone, changed = Table(), Table(), []
    for _, truth in read_jsonl(data / "raw/encodings/truth.jsonl"):
        kind, name, goal = truth["encoding"], truth["file"], truth["sha256_of_utf8_nfc_text"]
        row = kind + (", made" if truth["made"] else ", real")
        try:
            text, codec = decode(contents[name], truth.get("declared"))
        except ChatBakerError as error:
            table.add(row, False, f"{name}: {error}")
            continue
        fixed = repair(text)
        if kind == GARBLED:
            undone.add(row, fixed is not None and sha(fixed) == goal, name)
        elif kind == LOSSY:
            undone.add(f"{row}: dropped", fixed is None, name)
        else:
            table.add(row, codec == CODECS[kind] and sha(text) == goal, f"{name}: {codec}")
            if fixed != text:
                changed.append(f"  {Path(name).name}: {text.count(chr(0xFFFD))} U+FFFD, {words_changed(text, fixed)}")
    table.show("raw/encodings, codec and text")
    undone.show("mojibake")
    print(f"repair changes {len(changed)} of the other files (judge them yourself)", *changed, sep="\n")


def pages(data: Path) -> None:
    contents: dict[str, bytes] = {}
    for path in sorted((data / "raw/html").glob("*.tar.zst")):
        contents |= archive(path)
    for title, lie in (("raw/html", False), ("raw/html, declared as what it is not", True)):
        table = Table()
        for _, page in read_jsonl(data / "raw/html/index.jsonl.zst"):
            kind, name = page["true_encoding"], page["file"]
            declared = page.get("declared_charset")
            if lie:
                declared = "utf-8" if kind in ("EUC-KR", "ISO-8859-1") else "euc-kr"
            text, codec = decode(contents[name], declared)
            table.add(kind, codec == CODECS[kind] and text == contents[name].decode(CODECS[kind]), f"{name}: {codec}")
        table.show(title)


def documents(paths: list[Path], number: int) -> list[str]:
    """The first documents of each file in NFC, `number` in all where there are as many; small files give all."""
    texts: list[str] = []
    for n, path in enumerate(sorted(paths, key=lambda path: path.stat().st_size)):
        share = (number - len(texts)) // (len(paths) - n)
        texts += [unicodedata.normalize("NFC", record["text"]) for _, record in islice(read_jsonl(path), share)]
    return texts


def made(texts: list[str]) -> None:
    """Good Korean documents written in each encoding."""
    table = Table()
    for codec in ("cp949", "johab", "iso2022_kr", "utf-16-le", "utf-16-be", "utf-16", "utf-8-sig"):
        for text in texts:
            data = text.encode(codec, "ignore")
            table.add(codec, decode(data, "utf-8") == (data.decode(codec), codec), repr(text[:40]))
    table.show("good Korean documents, written in each encoding")


def cp1252(data: bytes) -> str:
    """As browsers read it: the five bytes that CP1252 leaves out are control characters."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in data)


REPAIRABLE: dict[str, Callable[[str], str]] = {
    "CP949 as ISO-8859-1": lambda text: text.encode("cp949").decode("latin-1"),
    "CP949 as CP1252": lambda text: cp1252(text.encode("cp949")),
    "UTF-8 as ISO-8859-1": lambda text: text.encode().decode("latin-1"),
    "UTF-8 as CP1252": lambda text: cp1252(text.encode()),
    "UTF-8 as CP1252, twice": lambda text: cp1252(cp1252(text.encode()).encode()),
}
LOST: dict[str, Callable[[str], str]] = {
    "CP949 as UTF-8": lambda text: text.encode("cp949").decode("utf-8", "replace"),
    "UTF-8 as CP949": lambda text: text.encode().decode("cp949", "replace"),
    "UTF-8 as CP949, no mark where bytes are lost": lambda text: text.encode().decode("cp949", "ignore"),
}


def garbled(texts: list[str]) -> None:
    """Good Korean documents misread in each of the ways: the whole of it, or every third line."""
    table = Table()
    for text in (text.encode("cp949", "ignore").decode("cp949") for text in texts):
        lines = text.split("\n")
        for name, wrong in (REPAIRABLE | LOST).items():
            goal = text if name in REPAIRABLE else None
            table.add(f"{name}: {'undone' if goal else 'dropped'}", repair(wrong(text)) == goal, repr(text[:40]))
            if len(lines) >= 3:
                some = "\n".join(wrong(line) if n % 3 == 0 else line for n, line in enumerate(lines))
                table.add(f"{name}, every third line", repair(some) == goal, repr(text[:40]))
    table.show("good Korean documents, misread")


def words_changed(text: str, fixed: str | None) -> str:
    if fixed is None:
        return f"dropped: {text[:60]!r}"
    old, new = text.split(), fixed.split()
    return ", ".join(f"{a} -> {b}" for a, b in zip(old, new, strict=False) if a != b)[:100]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=20_000, help="documents of pretrain that repair must leave")
    args = parser.parse_args()
    files(args.data)
    pages(args.data)
    paths = sorted((args.data / "pretrain").glob("*.jsonl.zst"))
    texts = documents(paths, args.documents)
    changed = [(text, fixed) for text in texts if (fixed := repair(text)) != text]
    print(f"repair changes {len(changed)} of {len(texts)} documents of pretrain (judge them yourself)")
    print("".join(f"  {words_changed(text, fixed)}\n" for text, fixed in changed), end="")
    korean = [text for path in paths if path.name.startswith("ko_") for text in documents([path], 200)]
    korean = [text for text in korean if len(text) >= 20]
    made(korean)
    garbled(korean)
    for path in paths:
        if "wiki" in path.name or "nsmc" in path.name:
            clock(documents([path], 2000), path.name)


def clock(texts: list[str], name: str) -> None:
    """Time of the process on one core, the best of five rounds."""
    size = sum(len(text.encode()) for text in texts)
    times = [timed(repair, texts), timed(normalize, texts)]
    times += [timed(decode, [text.encode(codec, "ignore") for text in texts]) for codec in ("utf-8", "cp949")]
    a, b, c, d = (f"{seconds / size * 1e9:.1f}" for seconds in times)
    print(f"{name}: ns a byte of UTF-8: repair {a}, normalize {b}, decode {c}, decode from CP949 {d}")


def timed(step: Callable[[Any], Any], inputs: Sequence[Any]) -> float:
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for value in inputs:
            step(value)
        best = min(best, time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
