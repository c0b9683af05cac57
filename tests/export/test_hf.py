"""The published folder loads elsewhere and answers the same; the hub gets it, or the person a clear line."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, AutoTokenizer

from chatbaker.errors import ChatBakerError
from chatbaker.export.hf import push, write_hf
from chatbaker.export.tensors import convert
from chatbaker.tokens import dialog

Make = Callable[..., Path]


@pytest.mark.parametrize("shard", ["1GB", "100KB"])
def test_it_loads_and_answers_greedily_as_the_source(shard: str, make: Make, tmp_path: Path) -> None:
    source = make(shard=shard)
    out = write_hf(source, tmp_path / "hf")
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    assert sum(p.stat().st_size for p in out.glob("*.safetensors")) < 0.6 * sum(
        p.stat().st_size for p in source.glob("*.safetensors")
    )
    tokenizer = AutoTokenizer.from_pretrained(out)
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.bfloat16) for f in (source, out))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    ids = tokenizer("안녕하세요, hello", return_tensors="pt")
    answers = [model.generate(**ids, max_new_tokens=12, do_sample=False)[0].tolist() for model in (ours, theirs)]
    assert answers[0] == answers[1]


def test_its_template_is_the_dialog(make: Make, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_hf(make(), tmp_path / "hf"))
    chat = [
        {"role": "user", "content": "안녕?"},
        {"role": "assistant", "content": "네."},
        {"role": "user", "content": "빵"},
    ]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    backend = tokenizer.backend_tokenizer
    assert ids == dialog.encode(backend, dialog.CHATML.segments(chat, generate=True))[0]


def test_bf16_rounds_as_torch_does() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    values = bits.to(torch.int32).view(torch.float32)
    values = torch.cat([values, torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, 1e-45])])
    stored = values.numpy().view(np.uint8)
    ours = torch.from_numpy(convert(stored, "F32", GGMLQuantizationType.BF16)).view(torch.bfloat16)
    assert torch.equal(ours.nan_to_num(7.0), values.to(torch.bfloat16).nan_to_num(7.0))


class Hub:
    """What of the hub's API an upload of small files needs, on loopback; keeps what it is sent."""

    def __init__(self) -> None:
        hub = self
        self.repositories: list[str] = []
        self.files: dict[str, bytes] = {}
        self.refuse = 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if hub.refuse or self.headers["Authorization"] != "Bearer hf_test":
                    return self.answer(hub.refuse or 401, {"error": "no"})
                return self.answer(200, hub.post(self.path, body))

            def answer(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def post(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.repositories.append(name)
            return {"url": f"{self.address}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        assert path.endswith("/commit/main"), path
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
        return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.address}/{self.repositories[-1]}/commit/0"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield hub
    hub.server.shutdown()
    thread.join()
    hub.server.server_close()


def test_push_sends_every_file(hub: Hub, make: Make) -> None:
    folder = make()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# 빵\n", encoding="utf-8")
    assert push(folder, "bakery/mini") == f"{hub.address}/bakery/mini"
    push(folder, "bakery/mini", "gguf")
    names = [path.name for path in folder.iterdir()]
    assert hub.repositories == ["bakery/mini"] * 2
    assert hub.files == {below + name: (folder / name).read_bytes() for below in ("", "gguf/") for name in names}


def test_push_without_a_token(hub: Hub, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ChatBakerError, match="hf auth login"):
        push(make(), "bakery/mini")
    assert hub.repositories == []


def test_push_refused(hub: Hub, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for status, message in ((403, "refuses the token for bakery/mini"), (500, "answers 500")):
        hub.refuse = status
        with pytest.raises(ChatBakerError, match=message):
            push(make(), "bakery/mini")


def test_push_with_no_hub_or_no_name(hub: Hub, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ChatBakerError, match="ORG/NAME"):
        push(make(), "mini")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(ChatBakerError, match="cannot upload to http://127.0.0.1:9"):
        push(make(), "bakery/mini")
