"""Bits per byte: a figure that no tokenizer changes, of text as people keep it."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import zstandard

from chatbaker.errors import ChatBakerError
from chatbaker.evals import bits
from chatbaker.rundir import RunDir

KO = "옛날 옛적에 호랑이가 살았다. 🐯\n떡 하나 주면 안 잡아먹지!"
EN = "Once upon a time there was a tiger."


class Uniform:
    """Every byte is as likely as any other; a token is `width` characters."""

    def __init__(self, width: int) -> None:
        self.width = width

    def tok_encode(self, text: str) -> list[str]:
        return [text[i : i + self.width] for i in range(0, len(text), self.width)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [
            sum(-math.log(256) * len(token.encode()) for token in self.tok_encode(request.args[0]))
            for request in requests
        ]


def test_two_tokenizers_give_one_figure() -> None:
    short, long = (bits.measure(Uniform(width), {"a.txt": [KO, EN]}) for width in (1, 4))
    assert short[0]["bits_per_byte"] == long[0]["bits_per_byte"] == 8.0
    assert short[0]["tokens"] > 3 * long[0]["tokens"]
    assert short[0]["bytes"] == len((KO + EN).encode())


def test_files_of_one_language_are_summed_by_their_bytes() -> None:
    class Two:
        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [-math.log(2) * 80, -math.log(2) * 100, -math.log(2) * 10]

    rows = bits.measure(Two(), {"a": ["x" * 40], "b": ["y" * 20], "ko": ["가나다"]})
    assert [(row["file"], row["language"], row["bits_per_byte"]) for row in rows] == [
        ("a", "en", 2.0),
        ("b", "en", 5.0),
        ("ko", "ko", round(10 / 9, 5)),
        ("all en", "en", 3.0),
    ]
    assert rows[0]["tokens"] is None


@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst", "a.jsonl", "a.jsonl.zst"])
def test_any_form_of_the_same_text_reads_the_same(tmp_path: Path, name: str) -> None:
    text = unicodedata.normalize("NFD", KO)
    data = (json.dumps({"text": text}) + "\n\n" if "jsonl" in name else text).encode()
    path = tmp_path / name
    path.write_bytes(zstandard.compress(data) if name.endswith(".zst") else data)
    assert bits.read(path) == [KO]
    assert bits.find([name[:2] + "*"], tmp_path, None) == {str(path): [KO]}


def test_cp949_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.txt"
    path.write_bytes("값싼 닭볶음탕".encode("cp949"))
    assert bits.read(path) == ["값싼 닭볶음탕"]
    path.write_bytes("값싼 닭볶음탕".encode("utf-8-sig"))
    assert bits.read(path) == ["값싼 닭볶음탕"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b" \n", "no text in it"),
        ("a.txt", b"\xff\xff\xff\x80", "neither UTF-8 nor CP949"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "a.jsonl:2: no column 'text'"),
        ("b.txt", b"x", "no such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ChatBakerError, match=message):
        bits.find(["a.*"], tmp_path, None)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (KO, "ko"),
        (EN, "en"),
        ("GPU 서버에서 학습했습니다", "ko"),
        ("the word 정 has no English twin", "en"),
        ("123", "en"),
    ],
)
def test_language_by_its_letters(text: str, language: str) -> None:
    assert bits.language(text) == language


def test_without_texts_a_runs_held_out_documents_are_taken_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bits, "HELD_OUT", 50)
    run = RunDir(tmp_path)
    assert bits.find([], tmp_path, run) == {}
    folder = run.path("clean", "validation", "ko-web")
    folder.mkdir(parents=True)
    lines = "".join(json.dumps({"text": "가" * 10}) + "\n" for _ in range(9))
    (folder / "00000.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    assert bits.find([], tmp_path, run) == {"clean/validation/ko-web": ["가" * 10] * 2}
    assert bits.find([], tmp_path, None) == {}
