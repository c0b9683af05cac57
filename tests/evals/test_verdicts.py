"""The judge's side: what a reply is taken for, and a server that does everything wrong that servers do."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.evals import verdicts
from chatbaker.evals.ledger import Ledger
from chatbaker.evals.verdicts import ASKS, METRICS, RETRIES, Judge, Request, read_reply

Plan = Callable[[str, int], str]  # text, how often it was asked before -> what to do


def score_text(*scores: Any) -> str:
    given = scores * 6 if len(scores) == 1 else scores
    return json.dumps(
        {m: {"explanation": f"이유 {m}", "score": s} for m, s in zip(METRICS, given, strict=True)}, ensure_ascii=False
    )


def completion(text: Any) -> str:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return json.dumps(
        {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    )


class Faulty(ThreadingHTTPServer):
    """An OpenAI-compatible judge that follows a plan. asked: every request's text; sent: those replied to in full."""

    daemon_threads = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.asked, self.sent, self.bodies = plan, [], [], []
        self.seen: Counter[str] = Counter()
        self.wait = {"Retry-After": "0", "retry-after-ms": "1"}
        self.lock, self.over, self.changed = threading.Lock(), threading.Event(), threading.Condition()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: object) -> None: ...


class Handler(BaseHTTPRequestHandler):
    server: Faulty

    def do_GET(self) -> None:
        self.reply(200, json.dumps({"object": "list", "data": [{"id": "first", "object": "model"}]}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][0]["content"].partition("\n\n(Not usable")[0]
        with self.server.lock:
            number = self.server.seen[text]
            self.server.seen[text] += 1
            self.server.asked.append(text)
            self.server.bodies.append(asked | {"key": self.headers["Authorization"]})
        act = self.server.plan(text, number)
        if act in ("429", "500", "400", "401", "413"):
            message = "temperature is not supported" if act == "400" and "temperature" in asked else f"no: {act}"
            return self.reply(int(act), json.dumps({"error": {"message": message}}))
        if act == "hang up":
            return self.connection.close()
        if act == "time out":
            self.server.over.wait(20)
            return None
        bad = {
            "truncated": score_text(4)[:90],
            "wrong": '{"grade": "B+"}',
            "range": score_text(4, 4, 9, 4, 4, 4),
            "nothing": None,
            "talk": "I would rather not say.",
        }
        text_back = bad.get(act, act)
        body = completion(score_text(4) if act == "good" else text_back)
        if act == "no json":
            body = "<html>busy</html>"
        if act == "half":
            return self.reply(200, body, len(body.encode()) + 50)
        self.reply(200, body)
        with self.server.changed:
            self.server.sent.append(text)
            self.server.changed.notify_all()

    def reply(self, status: int, body: str, length: int | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in self.server.wait.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plan], Faulty]]:
    """Starts servers; the client's waits are cut to nothing."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0)
    monkeypatch.setattr(verdicts, "TIMEOUT", 0.5)
    monkeypatch.setenv("CHATBAKER_JUDGE_KEY", "sesame-open")
    servers: list[tuple[Faulty, threading.Thread]] = []

    def start(plan: Plan) -> Faulty:
        server = Faulty(plan)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return server

    yield start
    for server, thread in servers:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Plan], Faulty]]:
    with serving(monkeypatch) as start:
        yield start


GOOD = score_text(5, 4, 3, 2, 1, 5)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"물론입니다. {{점수}}는 다음과 같습니다:\n{GOOD}\n도움이 되었기를 바랍니다 {{끝}}",
        f"<think>maybe {score_text(1)}, hm</think>\n{GOOD}",
        f"Draft: {score_text(1)}\nFinal: {GOOD}",
        GOOD[:-1] + ",}",
        GOOD[:-2] + ",}}",
        GOOD[:-1],
        f"```json\n{GOOD[:-1]}\n```",
        score_text("5", "4 ", 3.0, "2.0", 1, 5),
        json.dumps({"verdict": json.loads(GOOD)}),
        json.dumps(json.loads(GOOD) | {"extra": 7}),
    ],
)
def test_a_reply_that_can_be_mended_is(text: str) -> None:
    verdict, fault = read_reply("score", completion(text))
    assert fault == ""
    assert verdict is not None
    assert [verdict[metric]["score"] for metric in METRICS] == [5, 4, 3, 2, 1, 5]
    assert verdict["fairness"]["explanation"] == "이유 fairness"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no JSON object"),
        (None, "holds no text"),
        ("I cannot judge this.", "no JSON object"),
        ("[1, 2, 3]", "no JSON object"),
        (GOOD[: len(GOOD) // 2], "no accuracy|no JSON object|no robustness"),
        ('{"accuracy": 5}', "the verdict has no robustness"),
        (score_text(5, 4, 3, 2, 1, 6), "efficiency score is 6"),
        (score_text(0), "accuracy score is 0"),
        (score_text(4.5), "accuracy score is 4.5"),
        (score_text("4/5"), "accuracy score is"),
        (score_text(True), "accuracy score is true"),
        (score_text(None), "accuracy score is null"),
        (score_text([4]), "accuracy score is"),
        (score_text(float("nan")), "accuracy score is NaN"),
        ('{"a":' * 50_000, "no JSON object"),
    ],
)
def test_a_score_that_is_none_is_never_mended(text: Any, fault: str) -> None:
    verdict, reason = read_reply("score", completion(text))
    assert verdict is None
    assert re.search(fault, reason), reason


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", '{"choices": []}', '{"choices": [{"message": null}]}', "[" * 90_000]
)
def test_a_body_that_is_no_completion_has_a_reason(body: str) -> None:
    assert read_reply("score", body) == (None, "the server's reply holds no text")


def test_pairs_and_text_that_no_file_could_hold() -> None:
    text = r'{"reason": "\u1112\u1161\u11ab \ud83d", "winner": "tie"}'
    assert read_reply("pair", completion(text))[0] == {"reason": "한 ?", "winner": "tie"}
    assert read_reply("pair", completion('{"reason": "x", "winner": "C"}'))[0] is None


def test_the_ledger_survives_a_line_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "judge" / "replies.jsonl"
    Ledger(path).append({"key": "a", "body": "하나"})
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "b", "bo')
    Ledger(path).append({"key": "c"})
    assert [row["key"] for row in Ledger(path).rows] == ["a", "c"]
    assert "replies.jsonl:2" in capsys.readouterr().err
    assert [row["key"] for row in Ledger(path, "body").rows] == ["a"]
    assert "left out: 1 lines of" in capsys.readouterr().err


def requests(count: int) -> list[Request]:
    return [Request("score", f"p{i}", f"judge this: {i}") for i in range(count)]


def test_every_fault_ends_in_a_verdict_or_a_reason_and_nothing_is_paid_twice(
    serve: Callable[[Plan], Faulty], tmp_path: Path
) -> None:
    acts = ["429", "500", "hang up", "time out", "half", "truncated", "wrong", "range", "nothing", "talk", "no json"]
    ever = {40: "500", 41: "hang up", 42: "talk", 43: "413"}

    def plan(text: str, number: int) -> str:
        i = int(text.rpartition(" ")[2])
        if i in ever:
            return ever[i]
        return acts[i % len(acts)] if number == 0 and i % 2 == 0 else "good"

    server = serve(plan)
    path = tmp_path / "replies.jsonl"
    judge = Judge(server.url, "m", Ledger(path))
    asked = requests(60)
    judge.settle(judge.left(asked), width=8)
    faults = {one.id: judge.verdict(one)[1] for one in asked if not judge.verdict(one)[0]}
    assert faults.keys() == {"p40", "p41", "p42", "p43"}
    assert "500" in faults["p40"]
    assert "onnection" in faults["p41"]
    assert faults["p42"] == "no JSON object in the reply"
    assert "413" in faults["p43"]
    assert server.seen["judge this: 40"] == RETRIES + 1
    assert server.seen["judge this: 42"] == ASKS
    assert server.seen["judge this: 43"] == 1
    stored = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert Counter(row["id"] for row in stored) == Counter(f"p{text.rpartition(' ')[2]}" for text in server.sent), (
        "every reply that was sent is stored, raw"
    )

    before = len(server.asked)
    again = Judge(server.url, "m", Ledger(path))
    assert {one.id for one in again.left(asked)} == {"p40", "p41", "p43"}, "only what never had a reply"
    server.plan = lambda text, number: "good"
    again.settle(again.left(asked), width=2)
    assert len(server.asked) == before + 3
    assert [one.id for one in asked if not again.verdict(one)[0]] == ["p42"]


def test_a_bad_reply_is_asked_for_again_with_what_was_wrong(serve: Callable[[Plan], Faulty], tmp_path: Path) -> None:
    server = serve(lambda text, number: "range" if number == 0 else "good")
    judge = Judge(server.url, "", Ledger(tmp_path / "r.jsonl"))
    assert judge.label == "first", "the only model there"
    judge.settle(requests(1), 1)
    first, second = (body["messages"][0]["content"] for body in server.bodies)
    assert "fairness score is 9" in second.removeprefix(first)
    assert server.bodies[0]["response_format"]["json_schema"]["schema"]["required"] == list(METRICS)
    assert server.bodies[0]["key"] == "Bearer sesame-open"


def test_options_that_a_server_refuses_are_left_out_from_then_on(
    serve: Callable[[Plan], Faulty], tmp_path: Path
) -> None:
    """First temperature, which the refusal names, then response_format, the first of the rest."""
    server = serve(lambda text, number: "400" if number < 2 and text.endswith(" 0") else "good")
    judge = Judge(server.url, "m", Ledger(tmp_path / "r.jsonl"))
    judge.settle(requests(2), 1)
    names = [set(body) & {"temperature", "response_format", "max_tokens"} for body in server.bodies]
    assert names == [
        {"temperature", "response_format", "max_tokens"},
        {"response_format", "max_tokens"},
        {"max_tokens"},
        {"max_tokens"},
    ]


def test_a_refused_key_or_nobody_there_ends_it_in_one_line(serve: Callable[[Plan], Faulty], tmp_path: Path) -> None:
    server = serve(lambda text, number: "401")
    judge = Judge(server.url, "m", Ledger(tmp_path / "r.jsonl"))
    with pytest.raises(ChatBakerError, match="the key is refused") as raised:
        judge.settle(requests(20), 2)
    assert "sesame" not in str(raised.value)
    assert len(server.asked) < 20
    nobody = Judge("http://127.0.0.1:9/v1", "m", Ledger(tmp_path / "r.jsonl"))
    with pytest.raises(ChatBakerError, match=r"no judge here: Connection error\. Check"):
        nobody.settle(requests(3), 1)
    with pytest.raises(ChatBakerError, match="no judge here"):
        Judge("http://127.0.0.1:9/v1", "", Ledger(tmp_path / "r.jsonl"))


def test_another_round_of_one_judge_is_kept_apart(serve: Callable[[Plan], Faulty], tmp_path: Path) -> None:
    server = serve(lambda text, number: "good")
    ledger = Ledger(tmp_path / "r.jsonl")
    one, two = Judge(server.url, "m", ledger), Judge(server.url, "m#2", ledger)
    one.settle(one.left(requests(2)), 1)
    assert len(two.left(requests(2))) == 2
    two.settle(two.left(requests(2)), 1)
    assert {body["model"] for body in server.bodies} == {"m"}
    assert two.verdict(requests(1)[0], "m")[0] is not None
    assert {row["judge"] for row in ledger.rows} == {"m", "m#2"}


def test_the_client_waits_as_long_as_a_busy_judge_asks(
    serve: Callable[[Plan], Faulty], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("openai._base_client.time.sleep", waits.append)
    server = serve(lambda text, number: "429" if number < 2 else "good")
    server.wait = {"Retry-After": "17"}
    judge = Judge(server.url, "m", Ledger(tmp_path / "r.jsonl"))
    judge.settle(requests(1), 1)
    assert waits == [17, 17]
    assert judge.verdict(requests(1)[0])[0] is not None
