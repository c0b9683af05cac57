"""JSON lines, plain or compressed, read as a stream that knows where it is, and written so that no half file stays.

Memory holds one chunk and one line, whatever the file's size. A line ends at a line feed and at nothing else, so
line numbers agree with every other tool.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import zstandard

from chatbaker.errors import ChatBakerError
from chatbaker.rundir import atomic, disk_error

CHUNK = 1 << 16  # compressed bytes read at a time

OnBad = Callable[[ChatBakerError], None]
OnBytes = Callable[[int], None]


def fail(error: ChatBakerError) -> None:
    """The `on_bad` of a reader that accepts nothing unreadable."""
    raise error


def read_bytes(path: Path, on_bytes: OnBytes | None = None) -> Iterator[bytes]:
    """The decompressed content of a plain, .gz or .zst file, in chunks of no fixed size.

    on_bytes is told how many bytes of the file itself were read. Raises ChatBakerError where the file is missing,
    not what its name says, damaged, or cut short.
    """
    try:
        with path.open("rb") as raw:
            chunks = _read(raw, on_bytes)
            if path.suffix == ".zst":
                yield from _unzst(chunks, path)
            elif path.suffix == ".gz":
                yield from _ungzip(chunks, path)
            else:
                yield from chunks
    except FileNotFoundError:
        raise ChatBakerError("no such file", str(path)) from None
    except OSError as error:
        raise disk_error(error, path) from error


def _read(raw: IO[bytes], on_bytes: OnBytes | None) -> Iterator[bytes]:
    while chunk := raw.read(CHUNK):
        if on_bytes is not None:
            on_bytes(len(chunk))
        yield chunk


def _unzst(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    frame = None
    try:
        for chunk in chunks:
            while chunk:
                if frame is None:
                    frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
                yield frame.decompress(chunk)
                chunk = b""
                if frame.eof:
                    chunk, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise ChatBakerError(f"damaged, or not zstd: {error}", str(path)) from None
    if frame is not None:
        raise ChatBakerError("the zstd data is cut short", str(path), "Copy or download the file again")


def _ungzip(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    member = None
    try:
        for chunk in chunks:
            while chunk:
                if member is None:
                    member = zlib.decompressobj(wbits=31)
                yield member.decompress(chunk)
                chunk = b""
                if member.eof:
                    chunk, member = member.unused_data, None
    except zlib.error as error:
        raise ChatBakerError(f"damaged, or not gzip: {error}", str(path)) from None
    if member is not None:
        raise ChatBakerError("the gzip data is cut short", str(path), "Copy or download the file again")


def read_jsonl(
    path: Path, on_bad: OnBad = fail, on_bytes: OnBytes | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank.

    A line that is not UTF-8, not JSON, not an object, or not writable as UTF-8 goes to `on_bad` as a ChatBakerError
    naming file and line, and reading goes on; so does damage to the file itself, which ends it.
    """
    for number, line in _lines(path, on_bad, on_bytes):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text or text.isspace():
                continue
            record = json.loads(text)
            if "\\u" in text:
                json.dumps(record, ensure_ascii=False).encode()  # an escape can hide half a surrogate pair
        except UnicodeDecodeError as error:
            on_bad(ChatBakerError(f"not UTF-8 (byte {error.start + 1} of the line)", f"{path}:{number}"))
        except UnicodeEncodeError:
            on_bad(ChatBakerError("half a surrogate pair, which is not a character", f"{path}:{number}"))
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            on_bad(ChatBakerError(f"not JSON ({getattr(error, 'msg', error)})", f"{path}:{number}"))
        else:
            if isinstance(record, dict):
                yield number, record
            else:
                on_bad(ChatBakerError("not a JSON object", f"{path}:{number}"))


def _lines(path: Path, on_bad: OnBad, on_bytes: OnBytes | None) -> Iterator[tuple[int, bytes]]:
    number = 0
    begun: list[bytes] = []
    try:
        for chunk in read_bytes(path, on_bytes):
            *complete, rest = chunk.split(b"\n")
            for end in complete:
                number += 1
                yield number, b"".join((*begun, end))
                begun.clear()
            if rest:
                begun.append(rest)
    except ChatBakerError as error:
        on_bad(ChatBakerError(error.what, f"{path}:{number + 1}", error.hint))
        return
    if begun:
        yield number + 1, b"".join(begun)


@contextmanager
def write_jsonl(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes one object as a line; the file appears when the block ends well. .zst compresses."""
    with atomic(path, "wb") as raw:
        if path.suffix == ".zst":
            with zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False) as packed:
                yield _writer(packed)
        else:
            yield _writer(raw)


def _writer(file: Any) -> Callable[[dict[str, Any]], None]:
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

    def write(record: dict[str, Any]) -> None:
        file.write(encode(record).encode() + b"\n")

    return write
