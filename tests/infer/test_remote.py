from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import Sampling, TooLong
from chatbaker.infer.remote import RemoteEngine
from chatbaker.recipe import adhoc
from tests.infer import markov

PARTS = ["안녕", "하세", "요 🙂"]


class Handler(BaseHTTPRequestHandler):
    """A small OpenAI-compatible server. `picky` ones know no options but OpenAI's."""

    picky = False
    seen: list[dict[str, Any]] = []

    def reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer sesame":
            return self.reply(401, {"error": {"message": "bad key"}})
        self.reply(
            200, {"object": "list", "data": [{"id": "far-model", "object": "model", "created": 0, "owned_by": "x"}]}
        )

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(asked)
        if self.picky and "top_k" in asked:
            return self.reply(400, {"error": {"message": "unknown argument: top_k"}})
        if asked["messages"][-1]["content"] == "too long":
            error = {"message": f"context exceeded {self.headers['Authorization']}", "code": "context_length_exceeded"}
            return self.reply(400, {"error": error})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        base = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "far-model"}
        for i, part in enumerate(PARTS):
            choice = {"index": 0, "delta": {"content": part}, "finish_reason": "length" if i == 2 else None}
            if asked.get("logprobs"):
                one = {"token": part, "logprob": 0.0, "bytes": None}
                choice["logprobs"] = {"content": [one | {"top_logprobs": [one]}]}
            self.wfile.write(f"data: {json.dumps(base | {'choices': [choice]})}\n\n".encode())
        usage = {
            "prompt_tokens": 9,
            "completion_tokens": 4,
            "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 5},
        }
        self.wfile.write(f"data: {json.dumps(base | {'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("CHATBAKER_API_KEY", "sesame")
    monkeypatch.setattr(Handler, "seen", [])
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def ask(url: str, text: str, debug: int = 0) -> list[Any]:
    engine = RemoteEngine(url)
    try:
        return list(engine.stream(markov.messages(text), Sampling(seed=3), debug))
    finally:
        engine.close()


def test_an_answer_is_streamed_with_the_servers_own_counts(url: str) -> None:
    chunks = ask(url, "한\u1112\u1161\u11ab")
    assert [chunk.text for chunk in chunks] == [*PARTS, ""]
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (9, 4, 5)
    assert usage.finish_reason == "length"
    asked = Handler.seen[0]
    assert asked["messages"] == markov.messages("한한"), "NFC"
    assert (asked["model"], asked["top_k"], asked["repetition_penalty"], asked["seed"]) == ("far-model", 20, 1.2, 3)


def test_debug_candidates(url: str) -> None:
    assert ask(url, "a", debug=2)[0].candidates == (("안녕", 1.0),)


def test_a_server_that_knows_openai_options_only_is_asked_with_those(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "picky", True)
    assert "".join(chunk.text for chunk in ask(url, "a")) == "".join(PARTS)
    assert "top_k" not in Handler.seen[-1]


def test_what_goes_wrong_is_one_line_without_the_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooLong, match=r"context exceeded Bearer \*\*\*"):
        ask(url, "too long")
    monkeypatch.setenv("CHATBAKER_API_KEY", "wrong-key")
    with pytest.raises(ChatBakerError, match="refuses the key") as raised:
        ask(url, "a")
    assert "wrong-key" not in str(raised.value)


def test_another_refusal_leaves_the_options_as_they_are(url: str) -> None:
    engine = RemoteEngine(url)
    for text in ("a", "too long", "b"):
        with suppress(TooLong):
            list(engine.stream(markov.messages(text), Sampling()))
    engine.close()
    assert [asked.get("top_k") for asked in Handler.seen] == [20, 20, None, 20]


@pytest.mark.parametrize("bad", ["http://localhost:포트/v1", "http://localhost：8000/v1", "http://[::1/v1"])
def test_what_is_no_address_is_one_line(bad: str) -> None:
    with pytest.raises(ChatBakerError, match="not an address.*like http://localhost:8000/v1"):
        RemoteEngine(bad)


def test_secrets_belong_into_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChatBakerError, match="goes into CHATBAKER_API_KEY") as raised:
        RemoteEngine("http://me:pa55@localhost/v1")
    assert "pa55" not in str(raised.value) + adhoc("http://me:pa55@localhost/v1", []).name
    monkeypatch.setenv("CHATBAKER_API_KEY", "비밀")
    with pytest.raises(ChatBakerError, match="CHATBAKER_API_KEY: a key has ASCII characters only"):
        RemoteEngine("http://localhost/v1")


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._constants.DEFAULT_MAX_RETRIES", 0)
    with pytest.raises(ChatBakerError, match="no answer from this address"):
        RemoteEngine("http://127.0.0.1:9/v1")
