"""A recipe's source -> files in a fixed order, and each file -> `Document`s, as a stream.

A source is a glob below the data root, one on the hub (`hub:ORG/NAME/GLOB`, never stored), or own text (`made:ko`). A
file's name says its kind. A document too large, damaged or unreadable goes to `on_bad` by name, and the rest is read.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from chatbaker import jsonl, made
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import OnBad, OnBytes, Stream, open_file, read_bytes, read_chunks, read_jsonl
from chatbaker.recipe import Source
from chatbaker.rundir import find_files, no_file
from chatbaker.text import html, korean

MADE, HUB = "made:", "hub:"
# Web servers add the language and the charset of a page to its name.
KIND = re.compile(r"\.(jsonl?|x?html?|txt|tar|parquet|warc)(\.(ko|en|utf-?8|euc-?kr|cp949|wet))*(\.(gz|zst))?$", re.I)
KINDS = ".jsonl, .json, .txt, .html, .htm, .xhtml, .tar, .warc (each also with .gz or .zst), .parquet"
PAGES = ("txt", "html", "htm", "xhtml")
WEB = {"text/html": "html", "application/xhtml+xml": "html", "text/plain": "txt"}
CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:-]+)""", re.I)
COLUMN = "Write column = 'NAME' in the source to read another one"
RECORD = {".gz": b"\x1f\x8b\x08", ".zst": b"\x28\xb5\x2f\xfd"}  # how one of an archive of pages begins; or WARC/1
Text = tuple[str, str, str]  # text, where it was found, encoding


class Document(NamedTuple):
    """source: the recipe's name for it. where: FILE:LINE, FILE!MEMBER or FILE#URL, to find it again."""

    text: str
    source: str
    language: str
    licence: str
    where: str
    encoding: str = "utf-8"


def files(source: Source, data_root: Path) -> list[str]:
    """The files of a source, sorted: paths, `hf://` names, or `made:..` itself. Raises ChatBakerError for none."""
    where, path = f"source {source.name!r}", source.path
    if path.startswith(MADE):
        if path not in (MADE + source.language, f"{MADE}{source.language}:small"):
            what = f"its path is {path!r} and its language {source.language!r}"
            raise ChatBakerError(what, where, f"Write path = '{MADE}{source.language}', or change the language")
        if source.limit is None:
            raise ChatBakerError("made text does not end by itself", where, "Give it a limit")
        return [path]
    if path.startswith(HUB):
        hint = f"Write path = '{HUB}ORG/NAME/GLOB', as the data set's page on the hub names its files"
        found = jsonl.find_on_hub(f"datasets/{path[len(HUB) :]}", f"{where} ({path})") if path.count("/") > 1 else []
    else:
        hint = no_file(data_root, path)
        found = [str(file) for file in find_files(data_root, path)]
        where += f" below {str(data_root)!r}"
    if not found:
        raise ChatBakerError(f"no file matches {path!r}", where, hint)
    for file in found:
        if _kind(file) not in READERS:
            raise ChatBakerError("cannot read this kind of file", file, f"Known kinds: {KINDS}")
        if file != file.encode("utf-8", "replace").decode():
            raise ChatBakerError("the file's name is not UTF-8", ascii(file), "Rename it")
    return found


def size(file: str) -> int:
    """Bytes of a file that `files` names, for progress; 0 for made text."""
    if file.startswith(jsonl.HUB):
        return int(jsonl.hub().info(file)["size"])
    return 0 if file.startswith(MADE) else Path(file).stat().st_size


def read_all(source: Source, names: Iterable[str], seed: int, on_bad: OnBad, on_bytes: OnBytes) -> Iterator[Document]:
    """The documents of several files of a source, at most `limit`."""
    return islice((found for file in names for found in read(source, file, seed, on_bad, on_bytes)), source.limit)


def read(source: Source, file: str, seed: int, on_bad: OnBad, on_bytes: OnBytes) -> Iterator[Document]:
    """The documents of one file. What cannot be read goes to `on_bad`, naming file and line, member or address."""
    if file.startswith(MADE):
        own = made.documents(seed, source.limit or 0, file.removeprefix(MADE))
        texts: Iterator[Text] = ((text, f"{file}:{number}", "utf-8") for number, text in enumerate(own, 1))
    else:
        texts = READERS[_kind(file)](file, source.column, on_bad, on_bytes)
    try:
        for text, where, encoding in texts:
            yield Document(text, source.name, source.language, source.licence, where, encoding)
    except ChatBakerError as error:
        on_bad(error)


def _kind(name: str) -> str:
    """What the name of a file or member says it is; "" for what is not known."""
    return found[1].lower() if (found := KIND.search(name)) else ""


def _lines(file: str, column: str, on_bad: OnBad, on_bytes: OnBytes) -> Iterator[Text]:
    for number, record in read_jsonl(file, on_bad, on_bytes):
        text = record.get(column)
        if isinstance(text, str):
            yield text, f"{file}:{number}", "utf-8"
        else:
            keys = ", ".join(islice(record, 20))
            on_bad(ChatBakerError(f'no "{column}" with a string; the keys are: {keys}', f"{file}:{number}", COLUMN))


def _parquet(file: str, column: str, on_bad: OnBad, on_bytes: OnBytes) -> Iterator[Text]:
    from pyarrow import ArrowException, parquet

    row = 0
    with open_file(file) as raw:
        try:
            table = parquet.ParquetFile(raw)
            kinds = {field.name: str(field.type) for field in table.schema_arrow}
            if not kinds.get(column, "").endswith("string"):
                there = ", ".join(f"{name} ({kind})" for name, kind in islice(kinds.items(), 20))
                raise ChatBakerError(f"no column {column!r} with text; the columns are: {there}", file, COLUMN)
            batches = table.iter_batches(256, columns=[column])
            for row, value in enumerate((value for batch in batches for value in batch.column(0)), 1):
                try:
                    if (text := value.as_py()) is not None:
                        yield text, f"{file}:{row}", "utf-8"
                        continue
                    what = f"nothing in the column {column!r}"
                except UnicodeDecodeError:
                    what = "not UTF-8"
                on_bad(ChatBakerError(what, f"{file}:{row}"))
            on_bytes(raw.seek(0, 2))
        except (ArrowException, OSError) as error:
            raise ChatBakerError(f"damaged, or not parquet: {error}", f"{file}:{row + 1}") from None


def _whole(file: str, column: str, on_bad: OnBad, on_bytes: OnBytes) -> Iterator[Text]:
    stream = Stream(read_bytes(file, on_bytes))
    data = stream.read(jsonl.LARGEST + 1)
    stream.check()
    yield from _decode(data, _kind(file), file, on_bad)


def _decode(data: bytes, kind: str, where: str, on_bad: OnBad, charset: str | None = None) -> Iterator[Text]:
    """The text of a page or a text file. charset: what a server says; the page itself is asked first."""
    try:
        if len(data) > jsonl.LARGEST:
            raise jsonl.too_large(where)
        text, encoding = korean.decode(data, (kind != "txt" and html.declared(data)) or charset)
    except ChatBakerError as error:
        on_bad(ChatBakerError(error.what, where, error.hint))
    else:
        yield text if kind == "txt" else html.extract(text), where, encoding


def _tar(file: str, column: str, on_bad: OnBad, on_bytes: OnBytes) -> Iterator[Text]:
    """The text files and pages of an archive. After a damaged member reading goes on where a header is found."""
    stream: Any = Stream(read_bytes(file, on_bytes))
    last, damaged = file, False

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
            nonlocal damaged
            try:
                return super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError:
                damaged = damaged or any(buf)  # zeros are the end
                raise

    try:
        tar: Any = tarfile.TarFile.open(mode="r|", fileobj=stream, tarinfo=Header, errors="replace", ignore_zeros=True)
        while member := tar.next():
            tar.members.clear()  # which tarfile remembers for random access
            where, kind = f"{file}!{member.name}", _kind(member.name)
            if damaged:
                on_bad(ChatBakerError(f"the archive is damaged between this and {member.name}", last))
            last, damaged = where, False
            if member.isfile() and kind in PAGES:
                yield from _decode(tar.extractfile(member).read(jsonl.LARGEST + 1), kind, where, on_bad)
    except tarfile.TarError:
        damaged = True
    stream.check()
    if damaged:
        raise ChatBakerError("the archive is damaged or cut short from here on", last)


def _warc(file: str, column: str, on_bad: OnBad, on_bytes: OnBytes) -> Iterator[Text]:
    """The pages of a crawl. After a damaged record reading goes on where the next one begins."""
    from fastwarc import ArchiveIterator, WarcRecordType

    kinds = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    place, damaged, end, magic = 0, False, b"", RECORD.get(Path(file).suffix.lower(), b"WARC/1")
    with open_file(file) as raw:
        while True:
            stream: Any = Stream(read_chunks(raw, on_bytes), raw.seek(place))
            try:
                for record in ArchiveIterator(stream, record_types=kinds, auto_decode="all"):
                    place, damaged = record.stream_pos, False
                    yield from _record(record, file, on_bad)
                break
            except OSError as error:
                stream.check()
                if not damaged:
                    on_bad(ChatBakerError(f"a damaged record at byte {place} or after it: {error}", file))
                damaged = True
            place = jsonl.find(raw, magic, place + 1)
        stream.check()
        raw.seek(place)  # fastwarc takes a file that is cut short for a whole one
        alone = damaged or raw.read(len(magic)) == magic  # else its records were not packed one by one
        raw.seek(place if alone else 0)
        for chunk in jsonl.unpack(read_chunks(raw), file):
            end = (end + chunk)[-4:]
        if end != b"\r\n\r\n" and not damaged:
            raise ChatBakerError("the file is cut short", file, "Copy or download it again")


def _record(record: Any, file: str, on_bad: OnBad) -> Iterator[Text]:
    """The text of a record that holds some. Answers of a server other than 200 OK hold none."""
    media = (record.http_headers if record.is_http else record.headers).get("Content-Type") or ""
    kind = WEB.get(media.partition(";")[0].strip().lower())
    if kind and not (record.is_http and record.http_headers.status_code not in (200, None)):
        where = f"{file}#{record.headers.get('WARC-Target-URI') or record.record_id}"
        charset = found[1] if (found := CHARSET.search(media)) else None
        yield from _decode(record.reader.read(jsonl.LARGEST + 1), kind, where, on_bad, charset)


READERS: dict[str, Callable[[str, str, OnBad, OnBytes], Iterator[Text]]] = dict.fromkeys(PAGES, _whole)
READERS |= {"jsonl": _lines, "json": _lines, "parquet": _parquet, "tar": _tar, "warc": _warc}
