"""The stage `eval`, on a tiny random model: what is measured, what is kept, what is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.evals import stage
from chatbaker.evals.score import TorchLM
from chatbaker.recipe import adhoc, parse
from chatbaker.rundir import RunDir, read_json
from tests.evals.test_suites import ARC, BOOLQ, COPA, write

SHARE = {"value": 0.5, "low": 0.1, "high": 0.9, "n": 4}
CHAT = {"register": {"kept": SHARE, "formal": SHARE, "informal": SHARE}, "stop_rate": SHARE, "repetition_rate": SHARE}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path, "data/kobest_copa/test.jsonl", COPA)
    write(tmp_path, "data/boolq/validation.jsonl.zst", BOOLQ)
    write(tmp_path, "data/arc_easy/test.jsonl", ARC)
    (tmp_path / "data/note.txt").write_text("오늘은 빵을 굽는다. Bread is baked today.", encoding="utf-8")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def folder(make: Any) -> Path:
    return make()


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands in for the chat model: what was examined."""
    opened: list[Any] = []

    def examined(ledger: Any, model: str | None, *_: Any) -> Any:
        opened.append(model)
        return CHAT

    monkeypatch.setattr(stage, "examine", examined)
    return opened


def examine(run: RunDir, model: str | None, *overrides: str) -> dict[str, Any]:
    stage.run(adhoc(model or "own", overrides), run, model=model, device="cpu")
    return read_json(run.path("eval", "results.json"))


def test_tasks_text_and_chat_of_one_model(
    tmp_path: Path, data: Path, folder: Path, chat: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    found = examine(run, str(folder), f"eval.data={data}", f'eval.texts=["{data}/*.txt"]')
    assert found["kind"] == "torch"
    assert [row["task"] for row in found["scores"]] == ["kobest_copa", "arc_easy", "arc_easy", "boolq"]
    assert {row["task"] for row in found["absent"]} >= {"kobest_boolq", "hellaswag", "record", "truthfulqa_mc1"}
    assert found["averages"]["en"] | {"value": 0, "published": 0} == {
        "n": 3, "of": 21, "complete": False, "limit": None, "value": 0, "published": 0,
    }  # fmt: skip
    assert found["bits_per_byte"][0]["bytes"] == (data / "note.txt").stat().st_size
    assert found["bits_per_byte"][0]["bits_per_byte"] > 1  # random weights
    assert found["chat"] == CHAT
    assert chat == [str(folder)]
    assert found["published"]["ko"]["models"]["Polyglot-Ko 1.3B"]["copa"] == 0.721
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 110
    assert re.search(r"kobest_copa .* macro_f1 .* 12 .* not above .* 0\.698", printed)
    assert "absent: en, record: no record/validation.jsonl" in printed
    assert "ko: mean" in printed
    assert "1 of 5" in printed
    assert "stop rate: 0.500 [0.100, 0.900] of 4" in printed


def test_a_second_run_scores_nothing_again(
    tmp_path: Path, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = RunDir(tmp_path / "run"), (f"eval.data={data}", 'eval.tasks=["boolq", "kobest_copa"]')
    first = examine(run, str(folder), *options)
    lines = run.path("eval", "scores.jsonl").read_bytes().splitlines(keepends=True)
    run.path("eval", "scores.jsonl").write_bytes(b"".join(lines[:-3]) + lines[-3][:9])  # as a kill leaves it
    asked: list[int] = []
    plain = TorchLM.loglikelihood

    def counted(self: Any, requests: list[Any], **options: Any) -> Any:
        asked.append(len(requests))
        return plain(self, requests, **options)

    monkeypatch.setattr(TorchLM, "loglikelihood", counted)
    again = examine(run, str(folder), *options)
    assert sum(asked) == 3
    assert again["scores"] == [
        row | {name: pytest.approx(row[name]) for name in ("value", "stderr")} for row in first["scores"]
    ]
    assert first["chat"] is None  # tasks were named


def test_a_recipes_run_takes_base_and_chat_model(tmp_path: Path, data: Path, folder: Path, chat: list[Any]) -> None:
    run = RunDir(tmp_path / "runs" / "mine")
    recipe = parse({"name": "mine", "data_root": str(data.parent), "eval": {"data": "data", "limit": 4}}, "here")
    with pytest.raises(ChatBakerError, match="not there yet. Run first: chatbaker pretrain RECIPE"):
        stage.run(recipe, run)
    run.path("pretrain").mkdir(parents=True)
    run.path("pretrain", "model").symlink_to(folder)
    write(run.path("clean", "validation"), "ko-web/00000.jsonl.zst", [{"text": "빵을 굽습니다."}])
    stage.run(recipe, run, device="cpu")
    found = read_json(run.path("eval", "results.json"))
    assert found["model"] == "mine"
    assert {row["n"] for row in found["scores"]} == {4}
    assert found["averages"]["ko"]["limit"] == 4
    assert [row["file"] for row in found["bits_per_byte"]] == ["clean/validation/ko-web"]
    assert chat == [str(run.root)]


def test_without_a_chat_model_the_scores_stay(
    tmp_path: Path, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise ChatBakerError("no chat template", "tokenizer_config.json")

    monkeypatch.setattr(stage, "examine", none)
    found = examine(RunDir(tmp_path / "run"), str(folder), f"eval.data={data}", "eval.limit=2")
    assert found["absent"][-1] == {"suite": "chat", "task": "chat", "reason": "tokenizer_config.json: no chat template"}
    assert found["chat"] is None
    assert found["scores"]


def test_a_wrong_name_is_told_of_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage.suites, "load", lambda *_: pytest.fail("went to the hub first"))
    with pytest.raises(ChatBakerError, match="no such model"):
        examine(RunDir(tmp_path / "run"), str(tmp_path / "no such.gguf"))


def test_nothing_at_all_is_an_error_and_leaves_the_results_as_they_were(
    tmp_path: Path, folder: Path, chat: list[Any]
) -> None:
    run = RunDir(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    run.path("eval").mkdir(parents=True)
    run.path("eval", "results.json").write_text(json.dumps({"before": 1}), encoding="utf-8")
    with pytest.raises(ChatBakerError, match="nothing could be measured. kobest_wic: no kobest_wic/test.jsonl"):
        examine(run, str(folder), f"eval.data={tmp_path / 'empty'}", 'eval.tasks=["kobest_wic"]')
    assert read_json(run.path("eval", "results.json")) == {"before": 1}
    assert chat == []
