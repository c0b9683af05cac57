"""Tasks and what their scores are worth: local sets, baselines, published figures, errors. All items are invented."""

from __future__ import annotations

import json
import math
import socket
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import zstandard
from lm_eval.api.model import LM
from sklearn.metrics import f1_score

from chatbaker.errors import ChatBakerError
from chatbaker.evals import suites
from chatbaker.rundir import read_json

COPA = [
    {
        "premise": f"비가 {i}일 동안 왔다.",
        "question": "결과" if i % 2 else "원인",
        "alternative_1": "강물이 불었다.",
        "alternative_2": "날이 갰다.",
        "label": int(i > 7),
    }
    for i in range(12)
]
BOOLQ = [{"passage": f"Tin {i} holds tea.", "question": "is it tea", "label": int(i < 9)} for i in range(12)]
ARC = [
    {
        "question": f"How many are {i} and one?",
        "choices": {"text": [str(i + 1), str(i), "none"][: 2 + i % 2], "label": ["A", "B", "C"][: 2 + i % 2]},
        "answerKey": "A" if i % 3 else "B",
    }
    for i in range(12)
]
RECORD = [
    {
        "passage": "Ann met Bo.\n@highlight\nAnn left",
        "query": "@placeholder waved",
        "entities": ["Bo", "Ann Lee", "Ann"],
        "answers": ["Ann"],
    }
]
TRUTH = [{"question": "Is tea hot?", "mc2_targets": {"choices": ["Often", "Yes", "Never"], "labels": [1, 1, 0]}}]


class Chooser(LM):
    """Prefers the continuation that its rule likes best."""

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.rule = rule

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(-1.0 if self.rule(*request.args) else -50.0, False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return path


def load(folder: Path, *names: str, limit: int | None = None) -> tuple[list[suites.Loaded], list[dict[str, str]]]:
    return suites.load(suites.select(("ko", "en", "more"), names), folder, limit)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("suite", ["ko", "en"])
def test_printed_averages_are_those_of_the_printed_rows(suite: str) -> None:
    figures = suites.published([suite])[suite]
    assert len(figures["models"]) == 5
    for name, rows in figures["models"].items():
        assert f"{np.mean(list(rows.values())):.3f}" == f"{figures['averages'][name]:.3f}", name


@pytest.mark.parametrize(("suite", "count"), [("ko", 5), ("en", 21)])
def test_every_published_row_is_measured(suite: str, count: int) -> None:
    labels = [label for task in suites.select([suite], ()) for label in task.metrics.values()]
    assert len(labels) == len(set(labels)) == count
    for rows in suites.published([suite])[suite]["models"].values():
        assert rows.keys() == set(labels)


def test_every_task_is_in_the_installed_lm_eval_with_its_version_and_split() -> None:
    """lm-eval's own word on split, version and columns; KMMLU, HAE-RAE and CLIcK are groups."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    root = Path(suites.lm_eval.__file__).parent / "tasks"
    tasks = suites.select(("ko", "en", "more"), ())
    manager = TaskManager(include_defaults=False, include_path=sorted({root / task.config for task in tasks}))
    for task in tasks:
        config = load_yaml(manager.task_index[task.task].yaml_path, resolve_func=False)
        assert config["metadata"]["version"] == task.version, task.task
        assert isinstance(config["task"], list) == (not task.columns), task.task
        if task.columns:
            assert task.split == (config.get("test_split") or config["validation_split"]), task.task


def test_a_typo_and_a_task_of_another_suite_are_one_line_with_a_suggestion() -> None:
    with pytest.raises(ChatBakerError, match="no task 'helaswag' in the suites ko, en. Did you mean 'hellaswag'"):
        suites.select(("ko", "en"), ("helaswag",))
    with pytest.raises(ChatBakerError, match="Did you mean 'kmmlu', of suite more"):
        suites.select(("ko",), ("kmmlu",))
    assert [task.task for task in suites.select(("ko", "en"), ("wic", "kobest_wic"))] == ["kobest_wic", "wic"]


def test_local_sets_plain_or_packed_are_scored_without_the_network(tmp_path: Path) -> None:
    write(tmp_path, "kobest_copa/test.jsonl", COPA)
    write(tmp_path, "boolq/validation.jsonl.zst", BOOLQ)
    loaded, absent = load(tmp_path, "kobest_copa", "boolq")
    assert [one.n for one in loaded] == [12, 12]
    assert absent == []
    copa, boolq = (
        suites.score(one, Chooser(lambda _, answer: answer in (" yes", " 강물이 불었다.")), None) for one in loaded
    )
    assert copa[0]["value"] == pytest.approx(copa[0]["majority"]) == pytest.approx(0.4)  # F1 of 0.8 and 0
    assert boolq[0]["value"] == boolq[0]["majority"] == 0.75
    assert boolq[0]["stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 11))
    assert not copa[0]["above"]
    assert not boolq[0]["above"]


def test_a_model_that_knows_is_above_and_a_part_is_the_first_items(tmp_path: Path) -> None:
    write(tmp_path, "kobest_copa/test.jsonl", COPA)
    (loaded,), _ = load(tmp_path, "kobest_copa")
    knows = Chooser(lambda premise, answer: ("강물" in answer) == any(f"비가 {i}일" in premise for i in range(8)))
    (row,) = suites.score(loaded, knows, None)
    assert (row["value"], row["stderr"], row["above"]) == (1.0, 0.0, True)
    (part,), _ = load(tmp_path, "kobest_copa", limit=5)
    (row,) = suites.score(part, knows, 5)
    assert (row["n"], row["majority"], row["above"]) == (5, 1.0, False)  # the first five have one label


def test_decomposed_korean_is_the_same_set(tmp_path: Path) -> None:
    rows = [{k: unicodedata.normalize("NFD", v) if isinstance(v, str) else v for k, v in row.items()} for row in COPA]
    write(tmp_path, "kobest_copa/test.jsonl", rows)
    (loaded,), _ = load(tmp_path, "kobest_copa")
    (row,) = suites.score(loaded, Chooser(lambda premise, _: unicodedata.is_normalized("NFC", premise)), None)
    assert row["n"] == 12


def test_absent_sets_are_listed_with_their_reason(tmp_path: Path) -> None:
    write(tmp_path, "boolq/train.jsonl", BOOLQ)
    write(tmp_path, "record_partial/validation.jsonl", RECORD)
    loaded, absent = load(tmp_path, "boolq", "record", "kmmlu")
    assert loaded == []
    assert [row["task"] for row in absent] == ["boolq", "record", "kmmlu"]
    assert "no boolq/validation.jsonl" in absent[0]["reason"]
    assert "from the hub alone" in absent[2]["reason"]
    with pytest.raises(ChatBakerError, match="no such folder"):
        load(tmp_path / "elsewhere", "boolq")


def test_a_hub_out_of_reach_is_a_reason_and_is_not_asked_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(**_: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(suites.constants, "HF_HUB_OFFLINE", False)
    loaded, absent = suites.load(suites.select(("ko", "more"), ("kobest_wic", "haerae")), None, None)
    assert loaded == []
    assert {row["reason"] for row in absent} == {"not to be had from the hub (ConnectionError: Couldn't reach the hub)"}
    assert datasets.config.HF_HUB_OFFLINE
    assert suites.constants.HF_HUB_OFFLINE


def test_a_group_from_the_hub_is_one_score_over_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"query": f"{i}?", "answer": "(A)" if i < 6 else "(E)"} for i in range(8)]

    def hub(path: str, name: str, **_: Any) -> Any:
        count = 8 if name == "history" else 4
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows[:count])})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    (loaded,), absent = suites.load(suites.select(("more",), ("haerae",)), None, None)
    assert absent == []
    (row,) = suites.score(loaded, Chooser(lambda _, answer: answer == " (A)"), None)
    assert (row["n"], row["chance"]) == (24, pytest.approx(0.2))
    assert row["value"] == pytest.approx(22 / 24) == pytest.approx(row["majority"])
    assert row["stderr"] > 0


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "kobest_copa/test",
            {"alternative_2": None},
            r"test.jsonl:3: no column 'alternative_2'. kobest_copa needs: pre",
        ),
        ("kobest_copa/test", {"label": "둘"}, "kobest_copa cannot read these items"),
        ("kobest_copa/test", {"label": 7}, "item 3 has no right answer among its choices"),
        ("kobest_copa/test", {"question": "왜"}, "kobest_copa cannot read these items .KeyError"),
        ("boolq/validation", {"label": 7}, "item 3 has no right answer among its choices"),
        ("boolq/validation", {"label": [1]}, "boolq cannot read these items"),
    ],
)
def test_a_wrong_item_is_one_line(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    rows = [dict(row) for row in (COPA if "copa" in name else BOOLQ)]
    rows[2] |= change
    write(tmp_path, f"{name}.jsonl", rows)
    with pytest.raises(ChatBakerError, match=message) as caught:
        load(tmp_path, name.split("/")[0])
    assert "\n" not in str(caught.value)
    assert "validation.jsonl" in str(caught.value) or "test.jsonl" in str(caught.value)


def test_an_empty_set_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "boolq/validation.jsonl", [])
    with pytest.raises(ChatBakerError, match="no items"):
        load(tmp_path, "boolq")


def test_baselines_of_choices_that_differ_in_number_of_f1_and_of_truth(tmp_path: Path) -> None:
    write(tmp_path, "arc_easy/test.jsonl", ARC)
    write(tmp_path, "record/validation.jsonl", RECORD)
    write(tmp_path, "truthfulqa_mc/validation.jsonl", TRUTH)
    (arc, record, truth), _ = load(tmp_path, "arc_easy", "record", "truthfulqa_mc2")
    assert arc.baselines["acc_norm"] == arc.baselines["acc"] == (pytest.approx(5 / 12), pytest.approx(2 / 3))
    assert record.baselines["em"] == (pytest.approx(1 / 3), 1.0)
    assert record.baselines["f1"] == (pytest.approx((1 + 2 / 3) / 3), 1.0)
    assert truth.baselines["acc"] == (pytest.approx(2 / 3), None)  # a position means nothing there


def test_macro_f1_is_that_of_scikit_learn_and_its_chance_that_of_guessing() -> None:
    draw = np.random.default_rng(5)
    gold = draw.choice(3, size=400, p=[0.6, 0.3, 0.1])
    guesses = draw.integers(3, size=(200, 400))
    for guess in guesses[:5]:
        assert suites.macro_f1(np.stack((gold, guess), 1)) == pytest.approx(f1_score(gold, guess, average="macro"))
    chance, majority = suites.baseline([[(label, pick) for pick in range(3)] for label in gold], "here")
    assert chance == pytest.approx(
        np.mean([suites.macro_f1(np.stack((gold, guess), 1)) for guess in guesses]), abs=0.005
    )
    assert majority == pytest.approx(f1_score(gold, np.zeros_like(gold), average="macro"))


def test_the_error_of_macro_f1_is_the_spread_of_scores(tmp_path: Path) -> None:
    """Against the spread over many fresh draws of a set of the same kind."""
    draw = np.random.default_rng(6)
    rows = [COPA[0] | {"premise": f"{i}.", "label": int(i % 2)} for i in range(200)]
    write(tmp_path, "kobest_copa/test.jsonl", rows)
    (loaded,), _ = load(tmp_path, "kobest_copa")
    wrong = set(draw.choice(200, size=60, replace=False).tolist())

    def rule(premise: str, answer: str) -> bool:
        number = int(premise.split(".")[0])
        return ("강물" in answer) == ((number % 2 == 0) != (number in wrong))

    (row,) = suites.score(loaded, Chooser(rule), None)
    gold = np.arange(200) % 2
    fresh = [suites.macro_f1(np.stack((gold, gold ^ (draw.random(200) < 0.3)), 1)) for _ in range(2000)]
    assert row["stderr"] == pytest.approx(np.std(fresh), rel=0.1)


def test_above_needs_more_than_the_interval() -> None:
    assert suites.above(0.60, 0.04, 150, 0.5)
    assert not suites.above(0.57, 0.04, 150, 0.5)
    assert not suites.above(1.0, None, 1, 0.5)
    assert not suites.above(1.0, 0.0, 5, 0.5)  # five right answers of five prove nothing
    assert suites.above(1.0, 0.0, 20, 0.5)


def test_an_average_says_what_it_is_made_of() -> None:
    rows = [{"suite": "ko", "label": label, "value": value} for label, value in (("copa", 0.7), ("wic", 0.3))]
    mean = suites.average("ko", rows, None)
    assert mean == {"n": 2, "of": 5, "complete": False, "limit": None, "value": 0.5, "published": pytest.approx(0.513)}
    reference = suites.published(["en"])["en"]["models"][suites.REFERENCE]
    whole = [{"suite": "en", "label": label, "value": value} for label, value in reference.items()]
    assert suites.average("en", whole, None)["complete"]
    assert round(suites.average("en", whole, None)["value"], 3) == 0.485
    assert not suites.average("en", whole, 50)["complete"]


def test_another_version_of_a_task_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "boolq/validation.jsonl", BOOLQ)
    tables = read_json(suites.HERE / "suites.json")
    next(row for row in tables["en"] if row["task"] == "boolq")["version"] = 1.0
    monkeypatch.setattr(suites, "read_json", lambda _: tables)
    (loaded,), _ = load(tmp_path, "boolq")
    assert loaded.version == 2.0
    assert "boolq is version 2.0 in this lm-eval; the published figures belong to 1.0" in capsys.readouterr().err
