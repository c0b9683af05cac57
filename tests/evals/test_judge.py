"""The stage: prompts, answers, the question about money, pairs in both orders, kills, and what scores.json says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.evals import chat, judge
from chatbaker.evals.ledger import Ledger
from chatbaker.evals.verdicts import read_reply
from chatbaker.infer.engine import Chunk, Messages, Sampling, Usage
from chatbaker.recipe import Recipe, parse
from chatbaker.rundir import RunDir, read_json
from tests.evals.test_verdicts import Faulty, Plan, score_text, serving

CATEGORIES = ["Chat", "생성"]
HEADER = "id,question,category,task\n"


def prompts_file(folder: Path, count: int) -> Path:
    rows = [f"p{i:03},질문 {i}번?,{CATEGORIES[i % 2]},대답하기\n" for i in range(count)]
    path = folder / "prompts.csv"
    path.write_text(HEADER + "".join(rows), encoding="utf-8")
    return path


class Parrot:
    """A model that answers each question with a text of its own. `long`: questions that do not fit its context."""

    name, context = "parrot", 512

    def __init__(self, says: Callable[[str], str]) -> None:
        self.says, self.asked, self.samplings = says, [], []

    def count(self, messages: Messages) -> int:
        return 1

    def stream(self, messages: Messages, sampling: Sampling, debug: int = 0) -> Iterator[Chunk]:
        question = messages[-1]["content"]
        self.asked.append(question)
        self.samplings.append(sampling)
        text = self.says(question)
        if text == "too long":
            raise ChatBakerError("the prompt is 900 tokens long, but the context is 512")
        if text == "interrupt":
            raise KeyboardInterrupt
        yield Chunk(text[:2], Usage())
        yield Chunk(text[2:], Usage(completion_tokens=len(text), finish_reason="stop"))

    def close(self) -> None: ...


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plan], Faulty]]:
    with serving(monkeypatch) as start:
        yield start


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    bird = Parrot(lambda question: f"{question}에 대한 대답")
    monkeypatch.setattr(chat, "open_engine", lambda model, device, url=None: bird)
    return bird


def recipe(tmp_path: Path, count: int = 4, **settings: Any) -> Recipe:
    path = prompts_file(tmp_path, count) if count else ""
    return parse({"name": "run", "judge": {"prompts": str(path), **settings}}, "test")


def go(made: Recipe, tmp_path: Path, **options: Any) -> RunDir:
    run = RunDir(tmp_path / made.name)
    judge.run(made, run, **{"url": "http://model.test/v1", "yes": True} | options)
    return run


def rows(run: RunDir, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.path("judge", name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("id,question,category\nx,y,z\n", 1, "no column 'task'"),
        ("", 1, "no column"),
        (HEADER, 1, "no prompts"),
        (HEADER + "a,b,c,d\na,e,c,d\n", 3, "'a' is there already"),
        (HEADER + "a,b,c,d\n\nb, ,c,d\n", 4, "no id or no question"),
        (HEADER + "a\n", 2, "no id or no question"),
        (HEADER + 'a,"b,c,d\n', 2, "unexpected end"),
    ],
)
def test_a_file_of_prompts_that_is_wrong_is_named_with_its_line(
    tmp_path: Path, text: str, where: int, what: str
) -> None:
    path = tmp_path / "p.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ChatBakerError, match=what) as raised:
        judge.read_prompts(path)
    assert raised.value.where == f"{path}:{where}"


def test_prompts_are_read_from_what_korean_programs_write(tmp_path: Path) -> None:
    text = HEADER + 'a,"여러 줄,\n쉼표 🙂",Chat,답하기\n'
    path = tmp_path / "p.csv"
    expected = [{"id": "a", "question": "여러 줄,\n쉼표 🙂", "category": "Chat", "task": "답하기"}]
    for data in (
        text.encode("utf-8-sig"),
        text.replace("\n", "\r\n").encode().replace(b",\r\n\xec", b",\n\xec"),
        unicodedata.normalize("NFD", text).encode(),
    ):
        path.write_bytes(data)
        assert judge.read_prompts(path) == expected
    path.write_bytes(text.replace(" 🙂", "").encode("cp949"))
    assert judge.read_prompts(path)[0]["task"] == "답하기"
    path.write_bytes((HEADER + "a,b,c,d\nb,").encode() + b"\xff\xfe\x81,c,d\n")
    with pytest.raises(ChatBakerError, match="neither UTF-8 nor CP949") as raised:
        judge.read_prompts(path)
    assert raised.value.where == f"{path}:3"


def test_answers_are_recorded_and_not_asked_again(tmp_path: Path, parrot: Parrot) -> None:
    run = go(recipe(tmp_path), tmp_path, answers_only=True)
    first = rows(run, "answers.jsonl")
    assert [row["id"] for row in first] == ["p000", "p001", "p002", "p003"]
    assert first[1]["answer"] == "질문 1번?에 대한 대답"
    assert (
        first[1] | {"category": "생성", "task": "대답하기", "finish_reason": "stop", "completion_tokens": 13}
        == first[1]
    )
    assert first[0]["sampling"]["temperature"] == 0.5
    assert first[0]["sampling"]["seed"] == 1234
    go(recipe(tmp_path), tmp_path, answers_only=True)
    assert len(parrot.asked) == 4
    go(recipe(tmp_path, count=5), tmp_path, answers_only=True)
    assert parrot.asked[4:] == ["질문 4번?"]
    go(recipe(tmp_path, temperature=0.7), tmp_path, answers_only=True)
    assert len(parrot.asked) == 9, "another temperature, other answers"
    go(recipe(tmp_path), tmp_path, answers_only=True, url="http://other.test/v1")
    assert len(parrot.asked) == 13, "another model, other answers"
    go(recipe(tmp_path), tmp_path, answers_only=True)
    assert len(parrot.asked) == 13
    assert rows(run, "answers.jsonl") == first


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, parrot: Parrot) -> None:
    parrot.says = lambda question: "interrupt" if "2번" in question else "대답"
    with pytest.raises(KeyboardInterrupt):
        go(recipe(tmp_path), tmp_path, answers_only=True)
    parrot.says = lambda question: "대답"
    go(recipe(tmp_path), tmp_path, answers_only=True)
    assert [question[3] for question in parrot.asked] == ["0", "1", "2", "2", "3"]


def test_a_server_that_is_not_there_is_one_line(
    tmp_path: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parrot, "context", None, raising=False)
    parrot.says = lambda question: "too long"
    with pytest.raises(ChatBakerError, match="900 tokens"):
        go(recipe(tmp_path), tmp_path, answers_only=True)


def test_what_is_missing_is_said_before_anything_is_answered(tmp_path: Path, parrot: Parrot) -> None:
    with pytest.raises(ChatBakerError, match="--answers-only"):
        go(recipe(tmp_path), tmp_path)
    with pytest.raises(ChatBakerError, match="not there yet"):
        go(recipe(tmp_path, url="http://judge.test/v1", against=(str(tmp_path / "no"),)), tmp_path)
    with pytest.raises(ChatBakerError, match="chatbaker sft RECIPE"):
        go(recipe(tmp_path), tmp_path, url=None, answers_only=True)
    assert parrot.asked == []


def verdict_plan(text: str, number: int) -> str:
    """Longer answers are better; A is preferred where both are the same."""
    if "winner" not in text:
        return score_text(1 if "[Answer]\n\n" in text or "[답변]\n\n" in text else 4)
    a, b = (text.split(f"[답변 {side}]\n")[1].split(f"\n[답변 {side} 끝]")[0] for side in "AB")
    winner = "A" if len(a) >= len(b) else "B"
    return json.dumps({"reason": "길어서", "winner": winner})


def test_scores_hold_what_the_verdicts_say(
    serve: Callable[[Plan], Faulty],
    tmp_path: Path,
    parrot: Parrot,
    capsys: pytest.CaptureFixture[str],
) -> None:
    says = {"0": "", "1": "too long", "2": "죄송하지만 도와드릴 수 없습니다.", "3": "좋은 대답입니다."}
    parrot.says = lambda question: says[question[3]]
    server = serve(verdict_plan)
    run = go(recipe(tmp_path, url=server.url, price_in=2.0, price_out=10.0), tmp_path)
    scores = read_json(run.path("judge", "scores.json"))
    assert (scores["judge"], scores["model"], scores["judged"]) == ("first", "parrot", 3)
    assert scores["unjudged"] == [{"id": "p001", "reason": "the prompt is 900 tokens long, but the context is 512"}]
    assert (scores["empty"], scores["refusals"]) == (1, 1)
    assert scores["total"]["of"] == 30
    assert scores["total"]["mean"] == 18
    assert scores["metrics"]["bias"]["mean"] == 3
    assert scores["categories"]["Chat"] | {"mean": 15, "n": 2} == scores["categories"]["Chat"]
    assert scores["length"]["correlation"] > 0.9
    assert scores["cost"] == {"requests": 3, "prompt_tokens": 300, "completion_tokens": 60, "usd": 0.0012}
    assert scores["prompts"]["count"] == 4
    verdict = rows(run, "verdicts.jsonl")[2]
    assert (verdict["id"], verdict["total"], verdict["scores"]["toxicity"]) == ("p003", 24, 4)
    assert verdict["explanations"]["accuracy"] == "이유 accuracy"
    out = capsys.readouterr().out
    assert "total            18.00" in out
    assert "생성" in out
    asked = len(server.asked)
    run.path("judge", "verdicts.jsonl").unlink()
    run.path("judge", "scores.json").unlink()
    go(recipe(tmp_path, url=server.url, price_in=2.0, price_out=10.0), tmp_path, yes=False)
    assert len(server.asked) == asked, "made anew from the replies, without a question"
    assert read_json(run.path("judge", "scores.json"))["total"] == scores["total"]


def test_pairs_are_judged_in_both_orders(serve: Callable[[Plan], Faulty], tmp_path: Path, parrot: Parrot) -> None:
    server = serve(verdict_plan)
    parrot.says = lambda question: {"0": "짧다", "1": "같은 길이", "2": "아주아주 긴 대답", "3": "too long"}[
        question[3]
    ]
    other = parse(recipe(tmp_path).model_dump() | {"name": "other"}, "test")
    go(other, tmp_path, answers_only=True)
    parrot.says = lambda question: "too long" if "3번" in question else "같은 길이"
    theirs = str(tmp_path / "other")
    run = go(recipe(tmp_path, url=server.url, against=(theirs,), temperature=0.1), tmp_path)
    (pair,) = read_json(run.path("judge", "scores.json"))["pairs"]
    assert (pair["against"], pair["judged"], pair["won"], pair["tied"], pair["lost"]) == ("other", 3, 1, 1, 1)
    assert pair["flip_rate"] == pytest.approx(1 / 3, abs=1e-4), "the same answer twice: A in both orders"
    assert pair["intervals"]["won"][0] <= 1 / 3 <= pair["intervals"]["won"][1]
    assert pair["length_controlled"] == pytest.approx(0.5, abs=0.02), "all of it was length"
    assert pair["by_total"]["judged"] == 0, "the other run has no verdicts yet"
    assert [(row["id"], row["result"], row["flipped"]) for row in rows(run, "pairs.jsonl")] == [
        ("p000", "won", False),
        ("p001", "tied", True),
        ("p002", "lost", False),
    ]
    judged = other.model_copy(update={"judge": other.judge.model_copy(update={"url": server.url})})
    go(judged, tmp_path)
    asked = len(server.asked)
    run = go(recipe(tmp_path, url=server.url, against=(theirs,), temperature=0.1), tmp_path)
    (pair,) = read_json(run.path("judge", "scores.json"))["pairs"]
    assert pair["by_total"] | {"judged": 3, "won": 0, "tied": 3, "lost": 0} == pair["by_total"]
    assert len(server.asked) == asked


def test_two_judges_and_two_rounds_of_one_are_held_against_each_other(
    serve: Callable[[Plan], Faulty],
    tmp_path: Path,
    parrot: Parrot,
) -> None:
    server = serve(lambda text, number: score_text(4 if number == 0 else 5))
    for name in ("m", "m#2"):
        run = go(recipe(tmp_path, url=server.url, model=name), tmp_path)
    scores = read_json(run.path("judge", "scores.json"))
    assert scores["judge"] == "m#2"
    assert scores["total"]["mean"] == 30
    assert scores["agreement"] == [{"judges": ["m#2", "m"], "n": 4, "exact": 0, "kappa": 0, "difference": 6}]
    assert {row["judge"] for row in rows(run, "verdicts.jsonl")} == {"m", "m#2"}


def test_a_judge_that_never_gives_json_is_one_line_and_keeps_what_it_said(
    serve: Callable[[Plan], Faulty],
    tmp_path: Path,
    parrot: Parrot,
) -> None:
    server = serve(lambda text, number: "talk")
    with pytest.raises(ChatBakerError, match=r"nothing could be judged \(no JSON object in the reply\)"):
        go(recipe(tmp_path, url=server.url), tmp_path)
    assert len(rows(RunDir(tmp_path / "run"), "replies.jsonl")) == 12
    with pytest.raises(ChatBakerError, match="nothing could be judged"):
        go(recipe(tmp_path, url=server.url), tmp_path)
    assert len(server.asked) == 12, "not a fourth time"


@pytest.mark.parametrize(
    ("terminal", "line", "price", "asked"),
    [
        (True, "y\n", 2.0, 4),
        (True, "네\n", 0.0, 4),
        (True, "\n", 2.0, 0),
        (True, "", 0.0, 0),
        (False, "", 2.0, 0),
        (False, "", 0.0, 4),
    ],
)
def test_money_is_spent_only_where_somebody_agrees(
    serve: Callable[[Plan], Faulty], tmp_path: Path, parrot: Parrot, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], terminal: bool, line: str, price: float, asked: int,
) -> None:  # fmt: skip
    server = serve(verdict_plan)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: terminal, readline=lambda: line))
    made = recipe(tmp_path, url=server.url, price_in=price, price_out=price)
    if asked:
        go(made, tmp_path, yes=False)
    else:
        with pytest.raises(ChatBakerError, match="--yes"):
            go(made, tmp_path, yes=False)
        assert len(rows(RunDir(tmp_path / "run"), "answers.jsonl")) == 4
    assert len(server.asked) == asked
    assert "4 requests to first: about 3," in capsys.readouterr().err


def replies(run: RunDir) -> list[dict[str, Any]]:
    """Read as the stage does: the kill may have cut the last line."""
    return Ledger(run.path("judge", "replies.jsonl")).rows


def test_killed_at_any_moment_nothing_is_lost_and_nothing_paid_twice(
    serve: Callable[[Plan], Faulty],
    tmp_path: Path,
    parrot: Parrot,
) -> None:
    """121 prompts through the command line, killed with SIGKILL, over a server full of faults."""
    acts = ["good", "429", "truncated", "good", "wrong", "range", "500"]

    def plan(text: str, number: int) -> str:
        i = int(text.partition("질문 ")[2].partition("번")[0])
        return "talk" if i == 77 else "good" if number else acts[i % len(acts)]

    server = serve(plan)
    made = recipe(tmp_path, count=121, url=server.url, concurrency=3)
    made = made.model_copy(update={"name": "model.test-v1"})  # as the command line names it
    run = go(made, tmp_path, answers_only=True)
    settings = [f"judge.url={server.url}", f"judge.prompts={made.judge.prompts}", "judge.concurrency=3"]
    command = [sys.executable, "-m", "chatbaker", "judge", *settings, "--url", "http://model.test/v1", "--yes"]
    child = subprocess.Popen([*command, "--runs", str(tmp_path)], stderr=subprocess.DEVNULL)
    with server.changed:
        assert server.changed.wait_for(lambda: len(server.sent) >= 50, timeout=60)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    finished = {row["id"] for row in replies(run) if read_reply("score", row["body"])[0]}
    assert len(finished) > 20
    begun = len(server.asked)
    go(made, tmp_path)
    again = {f"p{int(text.partition('질문 ')[2].partition('번')[0]):03}" for text in server.asked[begun:]}
    assert not again & finished, "asked again although a good reply was stored"
    scores = read_json(run.path("judge", "scores.json"))
    assert scores["judged"] == 120
    assert [fault["id"] for fault in scores["unjudged"]] == ["p077"]
    assert scores["unjudged"][0]["reason"] == "no JSON object in the reply"
    assert len(replies(run)) >= len(server.sent) - 3, "all but the replies under way at the kill"
