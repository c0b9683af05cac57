"""The stage `clean`: what is kept, what is dropped and why, and that it does the same thing twice."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from chatbaker import recipe as recipes
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_jsonl, read_shards
from chatbaker.rundir import RunDir, read_json
from chatbaker.text import clean

KO = [f"{i}번째 문서입니다. 오늘은 날씨가 참 좋아서 공원에서 {i * 7}걸음을 걸었습니다." for i in range(400)]
EN = [f"This is document {i}. The weather was fine and we walked {i * 7} steps in the park." for i in range(400)]


def write(path: Path, texts: list[str]) -> None:
    path.write_bytes(b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts))


def make(root: Path, **section: Any) -> recipes.Recipe:
    names = (("ko-a", "ko", "CC0"), ("en-a", "en", "MIT"))
    sources = [{"name": n, "path": f"{n}.jsonl", "language": lang, "licence": terms} for n, lang, terms in names]
    section = {"sources": sources, "dedup": "exact", "paragraph_repeats": 0, "workers": 1} | section
    return recipes.parse({"name": "t", "data_root": str(root), "clean": section}, "test")


def kept(run: RunDir, folder: str, source: str) -> list[str]:
    return [record["text"] for record in read_shards(run.path("clean", folder, source))]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    write(root / "ko-a.jsonl", KO)
    write(root / "en-a.jsonl", EN)
    return root


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def test_every_document_is_kept_or_held_out_once(data: Path, run: RunDir) -> None:
    clean.run(make(data, validation=0.1), run)
    for source, texts in (("ko-a", KO), ("en-a", EN)):
        train, held_out = kept(run, "documents", source), kept(run, "validation", source)
        assert sorted(train + held_out) == sorted(texts)
        assert 15 <= len(held_out) <= 70
    first = next(read_shards(run.path("clean", "documents", "ko-a")))
    assert {**first, "text": ""} == {"text": "", "source": "ko-a", "lang": "ko", "licence": "CC0"}


def test_the_funnel_adds_up_and_the_ledger_agrees(data: Path, run: RunDir) -> None:
    with Path(data / "ko-a.jsonl").open("ab") as file:
        file.write(b"not json\n" + json.dumps({"text": "짧다"}).encode() + b"\n" + json.dumps({"text": KO[0]}).encode())
    clean.run(make(data, validation=0.1, strict=False), run)
    row = read_json(run.path("clean", "funnel.json"))["ko-a"]
    assert {reason: pair["documents"] for reason, pair in row["dropped"].items()} == {
        "unreadable": 1, "too_short": 1, "duplicate": 1,
    }  # fmt: skip
    for unit in ("documents", "characters"):
        parts = [row["kept"], row["validation"], *row["dropped"].values()]
        assert row["read"][unit] == sum(part[unit] for part in parts)
    train = kept(run, "documents", "ko-a")
    ledger = {entry["source"]: entry for entry in read_json(run.path("clean", "ledger.json"))}
    assert ledger["ko-a"] == {
        "source": "ko-a", "language": "ko", "licence": "CC0", "documents": len(train),
        "characters": sum(map(len, train)), "bytes": sum(len(text.encode()) for text in train),
    }  # fmt: skip


def test_every_drop_has_a_sample_that_can_be_found_again(data: Path, run: RunDir) -> None:
    write(data / "ko-a.jsonl", [*KO, *KO[:30], "짧다"])
    clean.run(make(data), run)
    duplicates = [record for _, record in read_jsonl(run.path("clean", "dropped", "duplicate.jsonl"))]
    assert [record["text"] for record in duplicates] == KO[: clean.SAMPLES]
    assert duplicates[0]["where"].endswith("ko-a.jsonl:401")
    assert [record["text"] for _, record in read_jsonl(run.path("clean", "dropped", "too_short.jsonl"))] == ["짧다"]
    assert not run.path("clean", "dropped", "unreadable.jsonl").exists()


def test_duplicates_are_found_across_sources_forms_and_punctuation(data: Path, run: RunDir) -> None:
    copies = [unicodedata.normalize("NFD", KO[0]), KO[1].replace(".", " !"), "  " + KO[2] + "\r\n", EN[0].upper()]
    write(data / "en-a.jsonl", EN + copies)
    clean.run(make(data, filters={"own_language": 0}), run)
    assert read_json(run.path("clean", "funnel.json"))["en-a"]["dropped"]["duplicate"]["documents"] == 4


def test_dedup_can_be_switched_off_and_copies_stay_on_one_side(data: Path, run: RunDir) -> None:
    write(data / "ko-a.jsonl", KO * 2)
    clean.run(make(data, dedup="none", validation=0.3), run)
    train, held_out = kept(run, "documents", "ko-a"), kept(run, "validation", "ko-a")
    assert len(train + held_out) == 2 * len(KO)
    assert not set(train) & set(held_out)


def test_a_rerun_is_the_same_to_the_byte(data: Path, run: RunDir) -> None:
    clean.run(make(data), run)
    before = content(run.path("clean"))
    clean.run(make(data), run)
    assert content(run.path("clean")) == before
    assert {"funnel.json", "ledger.json", "encodings.json", "README.md"} < set(before)


def test_the_held_out_documents_stay_when_others_come(data: Path, run: RunDir) -> None:
    clean.run(make(data, validation=0.1), run)
    before = set(kept(run, "validation", "ko-a"))
    write(data / "ko-a.jsonl", [text.replace("문서", "새 글") for text in KO] + KO[::-1])
    clean.run(make(data, validation=0.1), run)
    assert before
    assert before <= set(kept(run, "validation", "ko-a"))


def test_a_source_cut_short_is_reported_and_the_rest_kept(
    data: Path, run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path(data / "ko-a.jsonl").open("ab") as file:
        file.write(b'{"text": "\xff\xfe"}\n')
    clean.run(make(data, strict=False), run)
    assert f"{data / 'ko-a.jsonl'}:401: not UTF-8" in capsys.readouterr().err
    (bad,) = (record for _, record in read_jsonl(run.path("clean", "dropped", "unreadable.jsonl")))
    assert bad["where"].endswith("ko-a.jsonl:401")


@pytest.mark.parametrize("damage", ["strict", "missing", "empty"])
def test_a_failure_leaves_the_earlier_result(data: Path, run: RunDir, damage: str) -> None:
    clean.run(make(data), run)
    before = content(run.path("clean"))
    if damage == "missing":
        (data / "en-a.jsonl").unlink()
    else:
        (data / "en-a.jsonl").write_bytes(b"{\n" if damage == "strict" else b"")
        write(data / "ko-a.jsonl", ["짧다"])
    wanted = {"strict": r"en-a\.jsonl:1: not JSON", "missing": "en-a.*data_root=FOLDER", "empty": "no document is left"}
    with pytest.raises(ChatBakerError, match=wanted[damage]):
        clean.run(make(data, strict=damage == "strict"), run)
    assert content(run.path("clean")) == before


def test_a_recipe_without_sources_says_so(data: Path, run: RunDir) -> None:
    with pytest.raises(ChatBakerError, match=r"clean\.sources"):
        clean.run(recipes.parse({"name": "t"}, "test"), run)
