"""Reading raw text: every kind of file, every kind of damage, and what a document looks like when it comes out."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import threading
import tracemalloc
import unicodedata
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from chatbaker import jsonl
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import fail, read_bytes, read_jsonl, write_jsonl
from chatbaker.recipe import Source
from chatbaker.text import html, sources

TEXTS = ["안녕하세요, 반갑습니다.", "Plain English.", "섞인 text 漢字 👨‍👩‍👧 é", 'quotes " and \\ and \u2028 line']
STORY = "옛날 옛적에 빵을 굽는 사람이 살았습니다. 그는 날마다 새벽에 일어나 반죽을 했습니다. "
NOT_TEXT = bytes(range(256)) * 3


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def pack(name: str, data: bytes) -> bytes:
    if name.endswith(".zst"):
        return zstandard.compress(data)
    return gzip.compress(data) if name.endswith(".gz") else data


def source(path: str, **more: Any) -> Source:
    return Source(name="s", path=path, language="ko", licence="CC0", **more)


def read(
    folder: Path, path: str, on_bad: Callable[[ChatBakerError], None] = fail, seed: int = 1, **more: Any
) -> list[sources.Document]:
    wanted = source(path, **more)
    return list(sources.read_all(wanted, sources.files(wanted, folder), seed, on_bad, lambda count: None))


def texts(folder: Path, path: str, **more: Any) -> list[str]:
    return [document.text for document in read(folder, path, **more)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.json", "A.JSON.GZ"])
def test_json_lines_of_every_container(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pack(name.lower(), lines(TEXTS)))
    assert texts(tmp_path, name) == TEXTS


def test_a_limit_counts_over_the_files_of_a_source(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_bytes(lines([f"{name}1", f"{name}2"]))
    assert texts(tmp_path, "*.jsonl", limit=3) == ["a1", "a2", "b1"]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst", "a.txt.gz"])
def test_a_text_file_is_one_document_as_it_stands(tmp_path: Path, name: str) -> None:
    text = unicodedata.normalize("NFD", STORY) + "\r\n\r\n둘째 문단\r끝"
    (tmp_path / name).write_bytes(pack(name, text.encode()))
    (document,) = read(tmp_path, name)
    assert (document.text, document.encoding, document.where) == (text, "utf-8", str(tmp_path / name))


@pytest.mark.parametrize(("codec", "named"), [("cp949", "cp949"), ("utf-16", "utf-16"), ("utf-8-sig", "utf-8-sig")])
def test_a_text_file_in_another_encoding(tmp_path: Path, codec: str, named: str) -> None:
    (tmp_path / "a.txt").write_bytes((STORY + "펲시").encode(codec))
    (document,) = read(tmp_path, "a.txt")
    assert (document.text, document.encoding) == (STORY + "펲시", named)


@pytest.mark.parametrize("name", ["a.txt", "a.html", "a.tar"])
def test_bytes_that_are_no_text_are_reported_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(archive({"x/y.txt": NOT_TEXT}) if name == "a.tar" else NOT_TEXT)
    bad: list[ChatBakerError] = []
    assert read(tmp_path, name, bad.append) == []
    (error,) = bad
    assert error.where == f"{tmp_path / name}{'!x/y.txt' if name == 'a.tar' else ''}"
    assert "encoding" in error.what


def test_a_document_says_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + lines(TEXTS[:1]))
    (document,) = read(tmp_path, "*.jsonl")
    assert document.where == f"{tmp_path / 'a.jsonl'}:2"
    assert (document.source, document.language, document.licence, document.encoding) == ("s", "ko", "CC0", "utf-8")


def test_files_come_in_the_order_of_their_names_and_through_folders(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines([name]))
    assert texts(tmp_path, "**/*.jsonl") == ["a/1.jsonl", "b/2.jsonl", "c.jsonl"]


def test_a_data_root_with_glob_characters(tmp_path: Path) -> None:
    root = tmp_path / "data [v1]*"
    root.mkdir()
    (root / "a.jsonl").write_bytes(lines(TEXTS))
    assert texts(root, "*.jsonl") == TEXTS


def test_several_zstd_frames_are_one_stream(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.compress(lines([text])) for text in TEXTS))
    assert texts(tmp_path, "a.jsonl.zst") == TEXTS


def test_lines_longer_than_a_chunk(tmp_path: Path) -> None:
    long = ["가나다" * 100_000, "x" * 300_000, "끝"]
    (tmp_path / "a.jsonl").write_bytes(lines(long))
    assert texts(tmp_path, "a.jsonl") == long


@pytest.mark.parametrize(
    ("name", "end", "size", "most"),
    [("a.jsonl.zst", b"\n", 200, 150), ("a.jsonl.gz", b"", 40, 10), ("a.jsonl", b"\n", 40, 10)],
)
def test_a_line_too_long_is_skipped_and_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, end: bytes, size: int, most: int
) -> None:
    monkeypatch.setattr(jsonl, "LARGEST", 1 << 20)
    after = lines(["셋"]) if end else b""
    (tmp_path / name).write_bytes(pack(name, lines(["하나"]) + b"a" * (size << 20) + end + after))
    bad: list[ChatBakerError] = []
    tracemalloc.start()
    try:
        read_back = texts(tmp_path, name, on_bad=bad.append)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read_back == ["하나", "셋"][: 2 if end else 1]
    assert [(error.what, error.where) for error in bad] == [("larger than 1 MiB, and skipped", f"{tmp_path / name}:2")]
    assert peak < most << 20


@pytest.mark.parametrize("name", ["a.txt.gz", "a.html", "a.tar"])
def test_a_document_too_large_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(jsonl, "LARGEST", 1000)
    large = b"a" * 1001
    (tmp_path / name).write_bytes(archive({"a.txt": large, "b.txt": b"b"}) if name == "a.tar" else pack(name, large))
    bad: list[ChatBakerError] = []
    assert texts(tmp_path, name, on_bad=bad.append) == (["b"] if name == "a.tar" else [])
    (error,) = bad
    assert "larger" in error.what
    assert error.where == f"{tmp_path / name}{'!a.txt' if name == 'a.tar' else ''}"


def test_no_file_names_the_source_the_glob_the_root_and_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ChatBakerError) as caught:
        texts(tmp_path, "ko_*.jsonl.zst")
    message = str(caught.value)
    assert "source 's'" in message
    assert "ko_*.jsonl.zst" in message
    assert str(tmp_path) in message
    assert "data_root=FOLDER" in message


def test_an_unknown_kind_of_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ChatBakerError, match=r"a\.pdf: cannot read this kind.*\.parquet"):
        texts(tmp_path, "a.*")


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / b"\xc7\xd1\xb1\xdb.txt".decode("utf-8", "surrogateescape")
    try:
        path.write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(ChatBakerError, match="not UTF-8.*Rename"):
        texts(tmp_path, "*.txt")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "cut', "not JSON"),
        (b"1" * 5000, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["text"]', "not a JSON object"),
        (b'{"text": "\\ud83d"}', "surrogate"),
        (b'{"text": 3}', 'no "text"'),
        (b'{"body": "x", "id": 1}', 'no "text" with a string; the keys are: body, id'),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_the_rest_is_read(tmp_path: Path, line: bytes, what: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["one"]) + line + b"\n" + lines(["three"]))
    bad: list[ChatBakerError] = []
    assert texts(tmp_path, "a.jsonl", on_bad=bad.append) == ["one", "three"]
    (error,) = bad
    assert what in error.what
    assert error.where == f"{tmp_path / 'a.jsonl'}:2"
    with pytest.raises(ChatBakerError, match="a.jsonl:2"):
        texts(tmp_path, "a.jsonl")


def test_another_column_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"body": "\xea\xb0\x80", "text": "x"}')
    assert texts(tmp_path, "a.jsonl", column="body") == ["가"]


def test_escaped_emoji_and_hangul_are_good_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": "가 😀"}).encode())
    assert texts(tmp_path, "a.jsonl") == ["가 😀"]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz"])
def test_a_file_cut_short_is_reported_after_what_it_gave(tmp_path: Path, name: str) -> None:
    many = [f"{i} " + "글" * (i % 50) for i in range(50_000)]
    whole = pack(name, lines(many))
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    bad: list[ChatBakerError] = []
    found = texts(tmp_path, name, on_bad=bad.append)
    assert 0 < len(found) < len(many)
    assert found == many[: len(found)]
    (error,) = bad
    assert "cut short" in error.what
    assert error.where == f"{tmp_path / name}:{len(found) + 1}"


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.txt.zst", "a.txt.gz", "a.tar.gz", "a.parquet"])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(lines(TEXTS))
    with pytest.raises(ChatBakerError, match=f"{name}.*damaged, or not"):
        texts(tmp_path, name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.parquet", "a.tar", "a.warc"])
def test_a_file_that_is_gone_is_reported_by_name(tmp_path: Path, name: str) -> None:
    bad: list[ChatBakerError] = []
    path = str(tmp_path / name)
    assert list(sources.read(source(name), path, 1, bad.append, lambda count: None)) == []
    (error,) = bad
    assert error.what == "no such file"
    assert str(error.where).startswith(path)


def test_bytes_read_add_up_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(pack(path.name, lines(TEXTS * 20_000)))
    counts: list[int] = []
    assert sum(map(len, read_bytes(path, counts.append))) == len(lines(TEXTS)) * 20_000
    assert sum(counts) == path.stat().st_size == sources.size(str(path))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.zst"])
def test_what_is_written_reads_back(tmp_path: Path, name: str) -> None:
    records = [{"text": text} for text in TEXTS]
    with write_jsonl(tmp_path / name) as write:
        for record in records:
            write(record)
    assert list(read_jsonl(tmp_path / name)) == list(enumerate(records, 1))


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.zst"])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"old")
    with pytest.raises(TypeError), write_jsonl(tmp_path / name) as write:
        write({"text": "new", "not": {"JSON"}})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_made_text_needs_a_limit_and_the_same_language(tmp_path: Path) -> None:
    with pytest.raises(ChatBakerError, match="limit"):
        texts(tmp_path, "made:ko")
    with pytest.raises(ChatBakerError, match="made:ko"):
        texts(tmp_path, "made:en", limit=3)


def test_made_text_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (texts(tmp_path, "made:ko", limit=5, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 5
    assert first == again != other
    assert sources.size("made:ko") == 0


# Parquet


def test_a_column_of_a_parquet_file(tmp_path: Path) -> None:
    table = pyarrow.table({"id": range(1000), "content": [f"{number}번 글" for number in range(1000)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    found = read(tmp_path, "a.parquet", column="content")
    assert [document.text for document in found] == [f"{number}번 글" for number in range(1000)]
    assert found[999].where == f"{tmp_path / 'a.parquet'}:1000"


@pytest.mark.parametrize("column", ["text", "id"])
def test_a_missing_column_names_those_there_are(tmp_path: Path, column: str) -> None:
    parquet.write_table(pyarrow.table({"id": [1], "content": ["글"]}), tmp_path / "a.parquet")
    with pytest.raises(ChatBakerError, match=rf"a\.parquet: no column '{column}'.*content \(string\).*column = 'NAME'"):
        texts(tmp_path, "a.parquet", column=column)


def test_rows_without_readable_text_are_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    values = pyarrow.array(["하나".encode(), None, b"\xff", "넷".encode()], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet")
    bad: list[ChatBakerError] = []
    assert texts(tmp_path, "a.parquet", on_bad=bad.append) == ["하나", "넷"]
    assert [str(error.where) for error in bad] == [f"{tmp_path / 'a.parquet'}:{row}" for row in (2, 3)]


def test_a_parquet_file_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [f"글 {i}" * 9 for i in range(5000)]}), path, row_group_size=1000)
    data, half = path.read_bytes(), path.stat().st_size // 2
    path.write_bytes(data[:half] + bytes(500) + data[half + 500 :])
    bad: list[ChatBakerError] = []
    found = texts(tmp_path, "a.parquet", on_bad=bad.append)
    assert 0 < len(found) < 5000
    (error,) = bad
    assert error.where == f"{path}:{len(found) + 1}"


# Archives


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.zst", "a.tar.gz"])
def test_the_text_and_pages_of_an_archive(tmp_path: Path, name: str) -> None:
    page = f"<html><body><p>{STORY}</p></body></html>"
    members = {
        "하나.txt": b"one",
        "picture.png": NOT_TEXT,
        "manual/index.html.ko.euc-kr": page.encode("euc-kr"),
        "folder.html/readme": b"no page",
        "긴 이름/" * 30 + "둘.txt.gz": b"kept as it is packed: unreadable",
        "셋.XHTML": page.encode(),
    }
    (tmp_path / name).write_bytes(pack(name, archive(members)))
    found = read(tmp_path, name)
    assert [document.where.removeprefix(f"{tmp_path / name}!") for document in found] == [
        "하나.txt",
        "manual/index.html.ko.euc-kr",
        "긴 이름/" * 30 + "둘.txt.gz",
        "셋.XHTML",
    ]
    assert [document.encoding for document in found] == ["utf-8", "cp949", "utf-8", "utf-8"]
    assert found[1].text == found[3].text == STORY.strip()


def test_after_a_damaged_member_the_rest_of_an_archive_is_read(tmp_path: Path) -> None:
    data = bytearray(archive({f"{i}.txt": f"{i}번 글".encode() for i in range(5)}))
    data[2 * 1024 : 2 * 1024 + 100] = b"\xff" * 100
    (tmp_path / "a.tar").write_bytes(data)
    bad: list[ChatBakerError] = []
    assert texts(tmp_path, "a.tar", on_bad=bad.append) == ["0번 글", "1번 글", "3번 글", "4번 글"]
    (error,) = bad
    assert "damaged between this and 3.txt" in error.what
    assert error.where == f"{tmp_path / 'a.tar'}!1.txt"


@pytest.mark.parametrize("size", [3 * 1024 + 100, 3 * 1024 + 600, 700])
@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.zst"])
def test_an_archive_cut_short_is_reported(tmp_path: Path, name: str, size: int) -> None:
    data = archive({f"{i}.txt": f"{i}번 글".encode() * 20 for i in range(5)})
    packed = pack(name, data)
    (tmp_path / name).write_bytes(packed[:size] if name == "a.tar" else packed[: len(packed) * 2 // 3])
    bad: list[ChatBakerError] = []
    found = texts(tmp_path, name, on_bad=bad.append)
    assert len(found) < 5
    (error,) = bad
    assert "cut short" in error.what
    assert str(error.where).startswith(str(tmp_path / name))


# Crawls


def record(
    number: int, body: bytes, kind: str = "response", media: str = "text/html", status: str = "200 OK", more: str = ""
) -> bytes:
    if kind == "response":
        body = f"HTTP/1.1 {status}\r\nContent-Type: {media}\r\n{more}\r\n".encode() + body
        media = "application/http; msgtype=response"
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{number:012}>\r\n"
        f"WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: http://host.example/{number}?쪽#끝\r\n"
        f"Content-Type: {media}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def page(number: int, codec: str = "utf-8", declared: str = "") -> bytes:
    return f"<html><head>{declared}</head><body><p>{number}번. {STORY}</p></body></html>".encode(codec)


def pack_records(name: str, records: list[bytes]) -> bytes:
    return b"".join(pack(name, record) for record in records)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst", "a.warc.wet.gz"])
def test_the_pages_of_a_crawl(tmp_path: Path, name: str) -> None:
    records = [
        record(0, b"software: x\r\n", "warcinfo", "application/warc-fields"),
        record(1, page(1, "cp949"), media="text/html; charset=EUC-KR"),
        record(2, page(2, "cp949"), media='text/html; charset="utf-8"'),
        record(3, page(3, "cp949", "<meta charset=utf-8>"), media="TEXT/HTML"),
        record(4, page(4), media="text/html; charset=euc-kr"),
        record(5, NOT_TEXT, media="image/png"),
        record(6, page(6), status="404 Not Found"),
        record(7, b"GET / HTTP/1.1\r\n\r\n", "request", "application/http; msgtype=request"),
        record(8, "글만 있는 쪽".encode(), "conversion", "text/plain"),
        record(9, gzip.compress(page(9)), more="Content-Encoding: gzip\r\n"),
    ]
    (tmp_path / name).write_bytes(pack_records(name, records))
    found = read(tmp_path, name)
    assert [document.where for document in found] == [
        f"{tmp_path / name}#http://host.example/{number}?쪽#끝" for number in (1, 2, 3, 4, 8, 9)
    ]
    assert [document.encoding for document in found] == ["cp949"] * 3 + ["utf-8"] * 3
    assert [document.text for document in found] == [
        "글만 있는 쪽" if number == 8 else f"{number}번. {STORY}".strip() for number in (1, 2, 3, 4, 8, 9)
    ]


@pytest.mark.parametrize(("name", "packed"), [("a.warc.gz", gzip.compress), ("a.warc.zst", zstandard.compress)])
def test_a_crawl_packed_as_a_whole_is_read_and_a_cut_one_reported(tmp_path: Path, name: str, packed: Any) -> None:
    whole = packed(b"".join(record(number, page(number)) for number in range(3)))
    (tmp_path / name).write_bytes(whole)
    assert [text[0] for text in texts(tmp_path, name)] == ["0", "1", "2"]
    (tmp_path / name).write_bytes(whole[:-9])
    bad: list[ChatBakerError] = []
    texts(tmp_path, name, on_bad=bad.append)
    assert "short" in bad[0].what or "damaged" in bad[0].what


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
@pytest.mark.parametrize("first", [0, 3])
def test_after_a_damaged_record_the_rest_of_a_crawl_is_read(tmp_path: Path, name: str, first: int) -> None:
    records = [pack(name, record(number, page(number))) for number in range(8)]
    for damaged in (first, first + 1):
        records[damaged] = b"broken" + records[damaged][6:]
    (tmp_path / name).write_bytes(b"".join(records))
    bad: list[ChatBakerError] = []
    found = texts(tmp_path, name, on_bad=bad.append)
    assert [text[0] for text in found] == [str(number) for number in range(8) if number not in (first, first + 1)]
    (error,) = bad
    last = sum(map(len, records[: max(0, first - 1)]))
    assert f"at byte {last} or after" in error.what
    assert error.where == str(tmp_path / name)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.warc.zst"])
@pytest.mark.parametrize("cut", [15, 120, 300])
def test_a_crawl_cut_short_is_reported(tmp_path: Path, name: str, cut: int) -> None:
    whole = [pack(name, record(number, page(number))) for number in range(3)]
    (tmp_path / name).write_bytes(b"".join(whole[:2]) + whole[2][:cut])
    bad: list[ChatBakerError] = []
    found = texts(tmp_path, name, on_bad=bad.append)
    assert [text[0] for text in found[:2]] == ["0", "1"]
    (error,) = bad
    assert "short" in error.what or "damaged" in error.what
    assert error.where == str(tmp_path / name)


def test_a_file_that_is_no_crawl(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(b"something else\n" * 9)
    with pytest.raises(ChatBakerError, match=r"a\.warc: a damaged record at byte 0"):
        texts(tmp_path, "a.warc")


# Pages


def test_a_page_gives_its_text_and_not_what_surrounds_it() -> None:
    links = "".join(f'<a href="/{name}">{name}</a> | ' for name in ("모듈", "지시어", "용어", "사이트맵"))
    text = html.extract(
        f"""<!doctype html><html><head><title>제목</title><style>p {{ color: red }}</style></head><body>
        <nav><a href="/">처음으로</a></nav><div id="menu"><p>{links}</p></div>
        <h1>빵 굽기</h1><script>alert("!")</script>
        <p>{STORY}</p><ul><li>밀가루 500그램을 체에 두 번 칩니다 <a href="/flour">(사진)</a></li><li>물</li></ul>
        <pre>for i in range(3):\n    if i &lt; 2:\n        bake(i)</pre>
        <p>{STORY * 3}</p><footer>회사 소개</footer></body></html>"""
    )
    for kept in ("빵 굽기", STORY.strip(), "- 밀가루 500그램을 체에 두 번 칩니다 (사진)", "- 물"):
        assert kept in text
    assert "for i in range(3):\n    if i < 2:\n        bake(i)" in text
    for dropped in ("처음으로", "모듈", "alert", "color", "회사 소개"):
        assert dropped not in text


def test_a_single_syllable_between_tags_stays() -> None:
    cells = "".join(f"<td>{cell}</td>" for cell in ("예", "일", "日", "무"))
    text = html.extract(
        f"<body><p>{STORY}<a href=x>위키</a>의 <b>문서</b>\n를 <i>읽</i>는다.</p><table><tr>{cells}</tr></table></body>"
    )
    assert f"{STORY}위키의 문서 를 읽는다." in text
    assert text.split()[-4:] == ["예", "일", "日", "무"]


def test_the_lists_of_a_page_without_a_body() -> None:
    assert html.extract("<ul><li>하나<ul><li>둘</ul></ul>\0").split() == ["-", "하나", "-", "둘"]


def test_entities_are_decoded_once_more_where_they_were_escaped_twice_but_not_in_code() -> None:
    text = html.extract(
        "<body><p>A&amp;B &amp;amp; C&amp;nbsp;D &amp;lt;b&amp;gt; &amp;#54620; <code>&amp;lt;</code>"
        "<p>AT&amp;T &amp;quot;<pre>x &amp;gt; y</pre></body>"
    )
    assert text.split() == ["A&B", "&", "C", "D", "<b>", "한", "&lt;", "AT&T", '"', "x", "&gt;", "y"]


@pytest.mark.parametrize("tags", ["<div>", "<ul><li>", "<table><tr><td>", "<a>", "<code>", "<b>"])
def test_deep_nesting_takes_no_long_time(tags: str) -> None:
    assert len(html.extract("&amp;lt;" + tags * 10_000 + "글")) < 100


@pytest.mark.parametrize(
    ("head", "charset"),
    [
        (b'<?xml version="1.0" encoding="EUC-KR"?><html>', "EUC-KR"),
        (b'<html><head><META http-equiv="Content-Type" content="text/html; charset=ks_c_5601-1987">', "ks_c_5601-1987"),
        (b"<meta name=x content='charset'><meta charset=utf-8 />", "utf-8"),
        (b"<p>charset=euc-kr</p>", None),
        (b"<html>" + b" " * 5000 + b"<meta charset=utf-8>", None),
    ],
)
def test_the_charset_that_a_page_declares(head: bytes, charset: str | None) -> None:
    assert html.declared(head) == charset


# The hub


class Hub:
    """What of the hub's API reading a data set needs, on loopback: bakery/bread, public, and bakery/secret, gated."""

    def __init__(self, files: dict[str, bytes]) -> None:
        hub = self
        self.ranges: list[str] = []
        self.failing = False

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = urlsplit(self.path).path
                repository, _, rest = path.removeprefix("/api").removeprefix("/datasets/bakery/").partition("/")
                if repository == "secret" and self.headers["Authorization"] != "Bearer hf_test":
                    self.answer(401, {"error": "no"}, "GatedRepo")
                elif repository not in ("bread", "secret"):
                    self.answer(404, {"error": "no"}, "RepoNotFound")
                elif rest.startswith("tree/"):
                    folder = unquote(rest.split("/", 2)[2]) if rest.count("/") > 1 else ""
                    below = folder + "/" if folder else ""
                    entries: dict[str, dict[str, Any]] = {}
                    for name, data in files.items():
                        if name.startswith(below):
                            child, slash, _ = name.removeprefix(below).partition("/")
                            kind = "directory" if slash else "file"
                            entries[child] = {"type": kind, "path": below + child, "size": len(data), "oid": "0" * 40}
                    self.answer(200, list(entries.values()))
                elif rest.startswith("resolve/") and hub.failing:
                    self.answer(403, {"error": "no"})
                elif rest.startswith("resolve/"):
                    hub.ranges.append(self.headers["Range"])
                    first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
                    self.answer(206, files[unquote(rest.split("/", 2)[2])][first : last + 1])
                else:
                    self.answer(200, {"id": f"bakery/{repository}", "sha": "0" * 40, "siblings": []})

            def answer(self, status: int, value: Any, error: str | None = None) -> None:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if error:
                    self.send_header("X-Error-Code", error)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    parquet.write_table(pyarrow.table({"content": ["쪽매", "마루"]}), tmp_path / "a.parquet")
    hub = Hub(
        {
            "README.md": b"# bread",
            "ko/a.1.jsonl.gz": gzip.compress(lines(["셋"])),
            "ko/a.0.jsonl.gz": gzip.compress(lines(["하나", "둘"])),
            "ko/deeper/a.2.jsonl.gz": gzip.compress(lines(["넷"])),
            "table/a.parquet": (tmp_path / "a.parquet").read_bytes(),
            "crawl/a.warc.gz": pack_records("a.warc.gz", [record(number, page(number)) for number in range(3)]),
        }
    )
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def test_a_data_set_of_the_hub_is_read_as_files_are(hub: Hub, tmp_path: Path) -> None:
    found = read(tmp_path, "hub:bakery/bread/ko/*.jsonl.gz")
    assert [document.text for document in found] == ["하나", "둘", "셋"]
    assert found[1].where == "hf://datasets/bakery/bread/ko/a.0.jsonl.gz:2"
    assert texts(tmp_path, "hub:bakery/bread/ko/**/*.gz") == ["하나", "둘", "셋", "넷"]
    assert texts(tmp_path, "hub:bakery/bread@refs/convert/parquet/table/*.parquet", column="content") == [
        "쪽매",
        "마루",
    ]
    assert [text[0] for text in texts(tmp_path, "hub:bakery/bread/crawl/*.warc.gz")] == ["0", "1", "2"]
    assert texts(tmp_path, "hub:bakery/secret/ko/a.1.*") == ["셋"]


def test_the_hub_is_asked_for_blocks_not_for_whole_files(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "BLOCK", 20)
    monkeypatch.setattr(jsonl, "CHUNK", 10)
    name = "hf://datasets/bakery/bread/ko/a.0.jsonl.gz"
    first = next(iter(sources.read(source("x"), name, 1, fail, lambda count: None)), None)
    assert first is not None
    assert sources.size(name) > int(hub.ranges[-1].split("-")[1])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("hub:bakery/cake/*.jsonl", r"bakery/cake/\*\.jsonl.*not on the hub.*hf auth login"),
        ("hub:bakery/bread/nothing/*.jsonl", "bakery/bread/nothing.*not on the hub"),
        ("hub:bakery/bread/ko/*.parquet", r"no file matches 'hub:bakery/bread/ko/\*\.parquet'.*hub:ORG/NAME/GLOB"),
        ("hub:bakery/bread", "no file matches 'hub:bakery/bread'.*hub:ORG/NAME/GLOB"),
        ("hub:bad name/bread/*.jsonl", "bad name.*not on the hub"),
        ("hub:bakery/bread/*.md", r"README\.md: cannot read this kind"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: Hub, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ChatBakerError, match=message):
        texts(tmp_path, path)


def test_a_gated_data_set_says_how_to_log_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(ChatBakerError, match="bakery/secret.*hf auth login"):
        texts(tmp_path, "hub:bakery/secret/ko/*.jsonl.gz")


def test_a_hub_out_of_reach_names_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(ChatBakerError, match="hub:bakery/bread.*cannot read from the hub.*HF_ENDPOINT"):
        texts(tmp_path, "hub:bakery/bread/ko/*.jsonl.gz")


@pytest.mark.parametrize("path", ["ko/a.0.jsonl.gz", "table/a.parquet", "crawl/a.warc.gz"])
def test_a_hub_that_fails_while_reading_is_reported(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.failing = True
    bad: list[ChatBakerError] = []
    assert texts(tmp_path, f"hub:bakery/bread/{path}", on_bad=bad.append, column="content") == []
    (error,) = bad
    assert f"hf://datasets/bakery/bread/{path}" in str(error.where)
