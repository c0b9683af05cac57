"""Load on `chatbaker serve`: 1, 4, 16 and 64 streams at once, beside llama.cpp's own server on the same file.

    python benchmarks/serve.py [--model X] [--slots 16] [--seconds 5] [--rounds 3] [--out benchmarks/results/serve.json]

Each round starts both servers one after the other, in turns, and has every number of streams ask for answers of 256
tokens (their end is forbidden) one after another for some seconds: events a second over all streams, time to the first
text, the server's resident memory before and after. More streams than slots wait in line. Figures are medians over the
rounds, ratios are taken round by round; other programs spoil them, so the load average is written beside. Last comes
the time from the start of the process to a ready server.
Claims: 16 streams >= 3 times one stream's total, >= 95 % of llama.cpp's own, ready in < 2 s with the bundled model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

QUESTIONS = (
    "오늘 저녁은 뭘 먹을까요?",
    "Tell me about the sea.",
    "서울에서 가 볼 만한 곳은?",
    "How do I learn Korean?",
)
OWN = """
import sys
from chatbaker.chat.server import serve
serve(sys.argv[1] or None, port=int(sys.argv[2]), slots=int(sys.argv[3]))
"""
DIRECT = """
import sys, time
from pathlib import Path
from chatbaker.infer.engine import bundled_model
from chatbaker.infer.llamacpp import LlamaCppEngine
class Direct(LlamaCppEngine):
    def _params(self, *args):
        params = super()._params(*args)
        params.port, params.api_keys = int(sys.argv[2]), []
        return params
engine = Direct(Path(sys.argv[1]) if sys.argv[1] else bundled_model(), "auto", None, int(sys.argv[3]))
time.sleep(3600)
"""


class Server:
    """One of the two, in a process of its own; `ready` after so many seconds."""

    def __init__(self, code: str, model: str, slots: int, path: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        began = time.perf_counter()
        command = [sys.executable, "-c", code, model, str(self.port), str(slots)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not self._answers(path):
            if self.process.poll() is not None:
                raise SystemExit("the server ended")
            time.sleep(0.01)
        self.ready = time.perf_counter() - began

    def _answers(self, path: str) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                return b" 200 " in connection.recv(64)
        except OSError:
            return False

    @property
    def memory(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 2**20

    @property
    def cpu(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


async def stream(port: int, body: bytes, until: float, firsts: list[float]) -> int:
    """Ask again and again until the time is over; the events that came before it."""
    events = 0
    while time.perf_counter() < until:
        began, first = time.perf_counter(), 0.0
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        try:
            while data := await asyncio.wait_for(reader.read(1 << 16), max(until - time.perf_counter(), 0.001)):
                if not first and b'"content":"' in data.replace(b'"content":""', b""):
                    first = time.perf_counter() - began
                    firsts.append(first)
                events += data.count(b"data: ")
        except TimeoutError:
            pass
        finally:
            writer.transport.abort()
    return events


async def load(port: int, streams: int, seconds: float, bias: Any) -> dict[str, float]:
    bodies = []
    for i in range(streams):
        messages = [{"role": "user", "content": QUESTIONS[i % len(QUESTIONS)] + " " * (i // len(QUESTIONS)) + str(i)}]
        request = {"messages": messages, "stream": True, "max_tokens": 256, "temperature": 0.5, "top_k": 20}
        bodies.append(json.dumps(request | {"logit_bias": bias}).encode())
    firsts: list[float] = []
    began = time.perf_counter()
    events = await asyncio.gather(*(stream(port, body, began + seconds, firsts) for body in bodies))
    ordered = sorted(firsts)
    return {
        "tokens_per_second": sum(events) / (time.perf_counter() - began),
        "first_token_p50": statistics.median(ordered),
        "first_token_p95": ordered[int(len(ordered) * 0.95)],
        "streams_that_began": len(ordered),
    }


def measure(name: str, args: argparse.Namespace, ends: list[int]) -> dict[str, Any]:
    own = name == "own"
    server = Server(OWN if own else DIRECT, args.model, args.slots, "/ready" if own else "/health")
    try:
        bias: Any = {str(end): -100 for end in ends} if own else [[end, -100] for end in ends]
        asyncio.run(load(server.port, 2, 1, bias))  # pages and caches
        result: dict[str, Any] = {"ready_seconds": server.ready, "memory_before": server.memory}
        for streams in args.streams:
            spent = server.cpu
            result[str(streams)] = asyncio.run(load(server.port, streams, args.seconds, bias))
            result[str(streams)]["cpu_seconds_per_second"] = (server.cpu - spent) / args.seconds
            print(name, streams, json.dumps(result[str(streams)]), flush=True)
        time.sleep(1)
        result["memory_after"] = server.memory
        return result
    finally:
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a .gguf file; the bundled model where none is given")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    from chatbaker.infer.engine import bundled_model
    from chatbaker.infer.metadata import read_metadata

    about = read_metadata(Path(args.model) if args.model else bundled_model())
    ends = [number for name, number in about.specials.items() if re.search("end|eos", name)]
    rounds = [{name: measure(name, args, ends) for name in ("direct", "own")} for _ in range(args.rounds)]
    summary: dict[str, Any] = {"load_average": os.getloadavg(), "slots": args.slots, "model": args.model or "bundled"}
    for name in ("own", "direct"):
        for key in ("ready_seconds", "memory_before", "memory_after"):
            summary[f"{name}_{key}"] = statistics.median(one[name][key] for one in rounds)
    for streams in map(str, args.streams):
        for name in ("own", "direct"):
            keys = rounds[0][name][streams]
            medians = {key: round(statistics.median(one[name][streams][key] for one in rounds), 4) for key in keys}
            summary[f"{name}_{streams}"] = medians
        speed = [[one[name][streams]["tokens_per_second"] for name in ("own", "direct")] for one in rounds]
        summary[f"ratio_{streams}"] = statistics.median(own / direct for own, direct in speed)
    print(json.dumps(summary, indent=2))
    if args.out:
        args.out.write_text(json.dumps({"summary": summary, "rounds": rounds}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
