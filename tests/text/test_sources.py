"""Reading raw text: every container, every kind of damage, and what a document looks like when it comes out."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import zstandard

from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import fail, read_bytes, read_jsonl, write_jsonl
from chatbaker.recipe import Source
from chatbaker.text import sources

TEXTS = ["안녕하세요, 반갑습니다.", "Plain English.", "섞인 text 漢字 👨‍👩‍👧 é", 'quotes " and \\ and \u2028 line']


def lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def pack(name: str, data: bytes) -> bytes:
    if name.endswith(".zst"):
        return zstandard.compress(data)
    return gzip.compress(data) if name.endswith(".gz") else data


def source(path: str, **more: Any) -> Source:
    return Source(name="s", path=path, language="ko", licence="CC0", **more)


def texts(folder: Path, path: str, **more: Any) -> list[str]:
    return [document.text for document in sources.read(source(path, **more), folder, 1, fail)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz"])
def test_json_lines_of_every_container(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pack(name, lines(TEXTS)))
    assert texts(tmp_path, name) == TEXTS
    assert texts(tmp_path, name, limit=2) == TEXTS[:2]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst", "a.txt.gz"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pack(name, "\ufeff첫 문단\r\n\r\n둘째 문단\r끝".encode()))
    assert texts(tmp_path, name) == ["첫 문단\n\n둘째 문단\n끝"]


def test_text_comes_out_in_nfc_with_line_feeds(tmp_path: Path) -> None:
    wanted = "한글과 café\n값"
    (tmp_path / "a.jsonl").write_bytes(lines([unicodedata.normalize("NFD", wanted).replace("\n", "\r\n")]))
    assert texts(tmp_path, "a.jsonl") == [wanted]


def test_a_document_says_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + lines(TEXTS[:1]))
    (document,) = sources.read(source("*.jsonl"), tmp_path, 1, fail)
    assert document.where == f"{tmp_path / 'a.jsonl'}:2"
    assert (document.source, document.language, document.licence) == ("s", "ko", "CC0")


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


def test_no_file_names_the_glob_the_root_and_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(ChatBakerError) as caught:
        texts(tmp_path, "ko_*.jsonl.zst")
    message = str(caught.value)
    assert "ko_*.jsonl.zst" in message
    assert str(tmp_path) in message
    assert "data_root=FOLDER" in message


def test_an_unknown_kind_of_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ChatBakerError, match=r"a\.parquet.*jsonl\.zst"):
        texts(tmp_path, "a.*")


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
        (b'{"body": "x"}', 'no "text"'),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_the_rest_is_read(tmp_path: Path, line: bytes, what: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(["one"]) + line + b"\n" + lines(["three"]))
    bad: list[ChatBakerError] = []
    read = [document.text for document in sources.read(source("a.jsonl"), tmp_path, 1, bad.append)]
    assert read == ["one", "three"]
    (error,) = bad
    assert what in error.what
    assert error.where == f"{tmp_path / 'a.jsonl'}:2"
    with pytest.raises(ChatBakerError, match="a.jsonl:2"):
        texts(tmp_path, "a.jsonl")


def test_escaped_emoji_and_hangul_are_good_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": "가 😀"}).encode())
    assert texts(tmp_path, "a.jsonl") == ["가 😀"]


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz"])
def test_a_file_cut_short_is_reported_after_what_it_gave(tmp_path: Path, name: str) -> None:
    many = [f"{i} " + unicodedata.normalize("NFC", "글") * (i % 50) for i in range(50_000)]
    whole = pack(name, lines(many))
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    bad: list[ChatBakerError] = []
    read = [document.text for document in sources.read(source(name), tmp_path, 1, bad.append)]
    assert 0 < len(read) < len(many)
    assert read == many[: len(read)]
    (error,) = bad
    assert "cut short" in error.what
    assert error.where == f"{tmp_path / name}:{len(read) + 1}"


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.txt.zst", "a.txt.gz"])
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(lines(TEXTS))
    with pytest.raises(ChatBakerError, match=f"{name}.*damaged, or not"):
        texts(tmp_path, name)


def test_a_text_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("한글".encode("cp949"))
    with pytest.raises(ChatBakerError, match=r"a\.txt: not UTF-8"):
        texts(tmp_path, "a.txt")


def test_bytes_read_add_up_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(pack(path.name, lines(TEXTS * 20_000)))
    counts: list[int] = []
    assert sum(map(len, read_bytes(path, counts.append))) == len(lines(TEXTS)) * 20_000
    assert sum(counts) == path.stat().st_size


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
    first, again, other = (
        [document.text for document in sources.read(source("made:ko", limit=5), tmp_path, seed, fail)]
        for seed in (1, 1, 2)
    )
    assert len(first) == 5
    assert first == again != other


def test_the_fingerprint_ignores_case_space_and_punctuation_only() -> None:
    def print_of(text: str) -> int:
        return sources.Document(text, "s", "en", "", "").fingerprint

    assert print_of("Hello, World!") == print_of("hello   world") == print_of("HELLO\n“world”")
    assert print_of("오늘은, 비가 온다.") == print_of("오늘은 비가 온다")
    assert print_of("오늘은 비가 온다") != print_of("오늘도 비가 온다")
    assert print_of("!!!") != print_of("???")
