"""JSON lines, plain or compressed, of this machine or the hub (`hf://...`), as a stream that knows where it is.

Memory holds one chunk and one line. A line ends at a line feed only, so line numbers agree with every other tool.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import zstandard

from chatbaker.errors import ChatBakerError
from chatbaker.rundir import atomic, disk_error

CHUNK = 1 << 16  # compressed bytes read at a time
SLICE = 1 << 10  # of them unpacked at a time: 32 MiB at the very most, where zstd found nothing but repetition
BLOCK = 8 << 20  # bytes asked of the hub at a time, each with its own retries
LARGEST = 256 << 20  # bytes of a line, or of another document, that are held in memory
HUB = "hf://"
PACKED: dict[str, tuple[str, Callable[[], Any], type[Exception]]] = {
    ".zst": ("zstd", lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(), zstandard.ZstdError),
    ".gz": ("gzip", lambda: zlib.decompressobj(wbits=31), zlib.error),
}

OnBad = Callable[[ChatBakerError], None]
OnBytes = Callable[[int], None]


def decode(data: bytes) -> str:
    """Text in UTF-8, with a mark or without, or in CP949, as Korean Windows writes it; else UnicodeDecodeError."""
    with suppress(UnicodeDecodeError):
        return data.decode("utf-8-sig")
    return data.decode("cp949")


def fail(error: ChatBakerError) -> None:
    """The `on_bad` of a reader that accepts nothing unreadable."""
    raise error


def hub() -> Any:
    """The hub as a file system, with HF_ENDPOINT and HF_TOKEN or the token of `hf auth login`."""
    from huggingface_hub import HfFileSystem

    return HfFileSystem(endpoint=os.environ.get("HF_ENDPOINT"))


def find_on_hub(pattern: str, where: str) -> list[str]:
    """The files that a glob such as `datasets/ORG/NAME/*.parquet` names, sorted. Raises ChatBakerError at `where`."""
    with hub_errors(where):
        try:
            found = hub().glob(pattern, detail=True)
        except ValueError as error:  # nothing can have this name
            raise FileNotFoundError(error) from None
    return sorted(HUB + path for path, facts in found.items() if facts["type"] == "file")


@contextmanager
def hub_errors(where: str) -> Iterator[None]:
    """What can go wrong on the hub, as a ChatBakerError."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except FileNotFoundError as error:
        hint = "Check the name; for a private or gated one type: hf auth login (or set HF_TOKEN)"
        raise ChatBakerError(f"not on the hub: {str(error).removesuffix('.')}", where, hint) from None
    except (HTTPError, OSError) as error:
        hint = "Check the network (or HF_ENDPOINT) and type the same command again"
        raise ChatBakerError(f"cannot read from the hub: {error}", where, hint) from None


@contextmanager
def open_file(path: Path | str) -> Iterator[IO[bytes]]:
    """A file of this machine or of the hub, to read. Raises ChatBakerError where that fails, now or later."""
    try:
        if str(path).startswith(HUB):
            with hub_errors(str(path)), hub().open(str(path), block_size=BLOCK) as raw:
                yield raw
        else:
            with Path(path).open("rb") as raw:
                yield raw
    except FileNotFoundError:
        raise ChatBakerError("no such file", str(path)) from None
    except OSError as error:
        raise disk_error(error, Path(path)) from error


def read_bytes(path: Path | str, on_bytes: OnBytes | None = None) -> Iterator[bytes]:
    """The content of a plain, .gz or .zst file, in chunks of no fixed size. Raises ChatBakerError where that fails."""
    with open_file(path) as raw:
        chunks = read_chunks(raw, on_bytes)
        first = next(chunks, b"")
        if not first and Path(path).suffix.lower() in PACKED:  # packed, even nothing has some bytes
            raise _cut_short(path)
        yield from unpack(chain([first], chunks), path)


def read_chunks(raw: IO[bytes], on_bytes: OnBytes | None = None) -> Iterator[bytes]:
    while chunk := raw.read(CHUNK):
        if on_bytes is not None:
            on_bytes(len(chunk))
        yield chunk


def find(raw: IO[bytes], wanted: bytes, start: int) -> int:
    """Where some bytes are next in a file, from `start` on; or its end."""
    window, end = b"", raw.seek(start)
    while chunk := raw.read(CHUNK):
        window, end = window[-len(wanted) :] + chunk, end + len(chunk)
        if wanted in window:
            return end - len(window) + window.index(wanted)
    return end


def unpack(chunks: Iterator[bytes], path: Path | str) -> Iterator[bytes]:
    """Chunks of a file, decompressed as its name asks. Raises ChatBakerError where that fails."""
    packed = PACKED.get(Path(path).suffix.lower())
    if packed is None:
        yield from chunks
        return
    name, new_part, damage = packed
    part = None  # a frame (zstd) or member (gzip) of the file
    try:
        for rest in (chunk[start : start + SLICE] for chunk in chunks for start in range(0, len(chunk), SLICE)):
            while rest:
                part = part or new_part()
                yield part.decompress(rest)
                rest, part = (part.unused_data, None) if part.eof else (b"", part)
    except damage as error:
        raise ChatBakerError(f"damaged, or not {name}: {error}", str(path)) from None
    if part is not None:
        raise _cut_short(path)


def _cut_short(path: Path | str) -> ChatBakerError:
    name = PACKED[Path(path).suffix.lower()][0]
    return ChatBakerError(f"the {name} data is cut short", str(path), "Copy or download the file again")


class Stream:
    """Chunks of bytes as a file, for libraries that no exception may reach: an error ends it, and waits for `check`."""

    def __init__(self, chunks: Iterator[bytes], place: int = 0) -> None:
        self.chunks, self.place, self.rest = chunks, place, bytearray()
        self.error: Exception | None = None

    def read(self, count: int) -> bytes:
        try:
            while len(self.rest) < count:
                self.rest += next(self.chunks)
        except Exception as error:
            self.error = self.error or error
        data = bytes(self.rest[:count])
        del self.rest[:count]
        self.place += len(data)
        return data

    def tell(self) -> int:
        return self.place

    def check(self) -> None:
        """Raise what ended the stream, if that was not the last chunk."""
        if self.error is not None and not isinstance(self.error, StopIteration):
            raise self.error


def read_jsonl(
    path: Path | str, on_bad: OnBad = fail, on_bytes: OnBytes | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of each line that is not blank; damage goes to `on_bad` with file and line."""
    for number, line in _lines(path, on_bad, on_bytes):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text or text.isspace():
                continue
            record = json.loads(text)
            if "\\u" in text:
                json.dumps(record, ensure_ascii=False).encode()  # an escape can hide half a surrogate pair
        except UnicodeDecodeError as error:
            hint = f"If it is CP949: iconv -f cp949 -t utf-8 {Path(path).name} > new.jsonl"
            on_bad(ChatBakerError(f"not UTF-8 (byte {error.start + 1} of the line)", f"{path}:{number}", hint))
        except UnicodeEncodeError:
            on_bad(ChatBakerError("half a surrogate pair, which is not a character", f"{path}:{number}"))
        except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
            on_bad(ChatBakerError(f"not JSON ({getattr(error, 'msg', error)})", f"{path}:{number}"))
        else:
            if isinstance(record, dict):
                yield number, record
            else:
                on_bad(ChatBakerError("not a JSON object", f"{path}:{number}"))


def _lines(path: Path | str, on_bad: OnBad, on_bytes: OnBytes | None) -> Iterator[tuple[int, bytes]]:
    number, size = 1, 0
    begun: list[bytes] = []
    try:
        for chunk in chain(read_bytes(path, on_bytes), [b"\n"]):  # which ends a last line that nothing else ends
            *complete, rest = chunk.split(b"\n")
            for end in complete:
                if size + len(end) <= LARGEST:
                    yield number, b"".join((*begun, end))
                else:
                    on_bad(too_large(f"{path}:{number}"))
                number, size = number + 1, 0
                begun.clear()
            size += len(rest)
            if size > LARGEST:
                begun.clear()
            else:
                begun.append(rest)
    except ChatBakerError as error:
        on_bad(ChatBakerError(error.what, f"{path}:{number}", error.hint))


def too_large(where: str) -> ChatBakerError:
    return ChatBakerError(f"larger than {LARGEST >> 20} MiB, and skipped", where)


def read_shards(folder: Path) -> Iterator[dict[str, Any]]:
    """The objects of all files in a folder, in the order of their names; none where there is no folder."""
    for path in sorted(folder.glob("*.jsonl.zst")):
        for _, record in read_jsonl(path):
            yield record


@contextmanager
def write_jsonl(path: Path) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """A function that writes one object as a line; the file appears when the block ends well. .zst compresses."""
    encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    with ExitStack() as stack:
        file: Any = stack.enter_context(atomic(path, "wb"))
        if path.suffix == ".zst":
            file = stack.enter_context(zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False))
        yield lambda record: file.write(encode(record).encode() + b"\n")
