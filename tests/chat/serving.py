"""A server for tests: in a thread of this process, on a free port."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbaker.chat.server import Hall, HttpServer
from chatbaker.infer.llamacpp import LlamaCppEngine

NAME = "chatbaker-mini"


@dataclass
class Served:
    port: int
    hall: Hall
    http: HttpServer

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of one request; `body` is sent as JSON, bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, text

    def chat(self, content: str = "안녕하세요?", **more: Any) -> dict[str, Any]:
        status, _, text = self.ask("POST", "/v1/chat/completions", question(content, **more))
        assert status == 200, text
        answer: dict[str, Any] = json.loads(text)
        return answer

    def error(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        status, _, text = self.ask("POST", path, body, headers)
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return status, error

    def begin(self, **more: Any) -> socket.socket:
        """A streamed answer without end, of which the first bytes have come."""
        connection = self.send("/v1/chat/completions", question(stream=True, **more))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        return connection

    def send(self, path: str, body: Any) -> socket.socket:
        """A request whose answer has not been read."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        return connection

    def until(self, done: Any) -> None:
        """Wait for a state that must come."""
        end = time.monotonic() + 15
        while not done():
            assert time.monotonic() < end, "it never came"
            self.ask("GET", "/health")


def question(content: str = "안녕하세요?", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **more}


@contextmanager
def serving(model: Path, slots: int = 2, key: str | None = None, context: int | None = None) -> Iterator[Served]:
    engine = LlamaCppEngine(model, "cpu", context, slots)
    hall = Hall(engine, NAME)
    server = HttpServer(hall, key, True)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        served = Served(listener.getsockname()[1], hall, server)
        served.until(lambda: server.started)
        yield served
    finally:
        server.should_exit = True
        thread.join()
        engine.close()


def events(text: str) -> list[dict[str, Any]]:
    """The JSON events of a stream, which must end as streams end."""
    lines = text.strip().split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]
