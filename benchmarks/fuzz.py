"""Requests made from the server's own /openapi.json, right and wrong ones, against a `chatbaker serve` of its own.

    python benchmarks/fuzz.py [--requests 10000] [--model X] [--seed 1]

Schemathesis makes them: bodies that follow the schema, three in four of them made to reach the engine, and bodies that
break it. Counted are the answers by status. Claims: no status of 500 or above (503 is for a shutdown or a time limit,
and neither happens here), no traceback in a body, every error in the API's form, every slot free afterwards, memory
back near where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.request
from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from serve import OWN, Server


def text_at(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return str(answer.read().decode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--model", default="", help="a .gguf file; the bundled model where none is given")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    server = Server(OWN, args.model, 4, "/ready")
    statuses: Counter[str] = Counter()
    bad: list[Any] = []
    try:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        posts = [one for one in operations if one.method == "post"]
        gets = [one for one in operations if one.method == "get"]
        plan = [(one, mode, 0.225) for one in posts for mode in GenerationMode] + [
            (one, GenerationMode.POSITIVE, 0.1 / len(gets)) for one in gets
        ]
        memory = server.memory
        for operation, mode, share in plan:
            right = mode == GenerationMode.POSITIVE
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Exception as error:  # such as an operation that has nothing to break
                print(operation.label, mode, error)
                continue

            @seed(args.seed)
            @settings(
                max_examples=max(1, int(args.requests * share)),
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def send(case: Any) -> None:
                if right and isinstance(case.body, dict) and statuses.total() % 4:  # noqa: B023, it runs within the loop
                    case.body.pop("model", None)  # else nearly all end at the first check
                    if "messages" in case.body:
                        case.body["messages"] = [{"role": "user", "content": "안녕하세요?"}]
                response = case.call(timeout=60)
                statuses[f"{case.method} {response.status_code}"] += 1
                text = response.text
                broken = response.status_code >= 500 or "Traceback" in text
                if response.status_code >= 400 and not broken:
                    broken = set(json.loads(text)) != {"error"}
                if broken:
                    bad.append((case.method, case.path, case.body, response.status_code, text[:300]))

            began = time.perf_counter()
            send()
            print(
                f"{operation.label} {mode.value}: {time.perf_counter() - began:.0f} s, {sum(statuses.values())} sent",
                flush=True,
            )
        time.sleep(1)
        metrics = text_at(server.port, "/metrics")
        free = "chatbaker_answers_running 0" in metrics and "llamacpp:requests_processing 0" in metrics
        print(json.dumps(statuses, indent=2))
        print(f"bad: {len(bad)}; slots free: {free}; memory {memory:.0f} -> {server.memory:.0f} MiB")
        for one in bad[:10]:
            print(repr(one)[:600])
        sys.exit(bool(bad) or not free)
    finally:
        server.close()


if __name__ == "__main__":
    main()
