from __future__ import annotations

import ctypes
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.infer import engine
from chatbaker.infer.engine import Sampling, bundled_model, content_key, convert, cuda_device, find_model, open_engine
from chatbaker.rundir import RunDir
from tests.infer import markov


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as far as the choice looks into it."""
    path = tmp_path / "my-model"
    path.mkdir()
    (path / "config.json").write_text("{}", encoding="utf-8")
    (path / "model.safetensors").write_bytes(b"w" * 100_000)
    return path


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []

    def write_gguf(folder: Path, out: Path, dtype: str) -> None:
        done.append(dtype)
        out.parent.mkdir(parents=True, exist_ok=True)
        markov.parrot(out, "변환됨")

    monkeypatch.setattr("chatbaker.export.gguf.write_gguf", write_gguf)
    return done


def test_a_model_folder_is_converted_once_and_again_where_it_changes(folder: Path, conversions: list[str]) -> None:
    for _ in range(2):
        with open_engine(str(folder), "cpu") as opened:  # type: ignore[attr-defined]
            said = "".join(chunk.text for chunk in opened.stream(markov.messages("?"), Sampling(temperature=0)))
        assert said == "변환됨"
    assert conversions == ["q8_0"]
    convert(folder, "q4_0")
    assert conversions == ["q8_0", "q4_0"]
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[50_000] ^= 1
    before, status = content_key(folder), (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(weights)
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync and cp -p leave it
    assert content_key(folder) != before
    convert(folder, "q8_0")
    assert conversions == ["q8_0", "q4_0", "q8_0"]


def test_a_conversion_that_fails_leaves_nothing_behind(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ChatBakerError, match="model"):
        convert(folder, "q8_0")
    assert list(engine.cache_dir().rglob("*.*")) == []


def test_an_export_older_than_the_chat_model_is_not_used(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path("sft", "model").mkdir(parents=True)
    gguf = run.path("export", "gguf", "x-q8_0.gguf")
    gguf.parent.mkdir(parents=True)
    gguf.touch()
    run.write_stamp("sft", 1.0)
    run.write_stamp("export", time.time() + 1)
    assert find_model(str(run.root), "q8_0")[0] == gguf
    run.write_stamp("export", 1.0)
    assert find_model(str(run.root), "q8_0")[0] is None


def test_a_run_folder_gives_its_export_or_its_chat_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "sft" / "model").mkdir(parents=True)
    (run / "recipe.toml").touch()
    assert find_model(str(run), "q8_0") == (None, run / "sft" / "model")
    gguf = run / "export" / "gguf"
    gguf.mkdir(parents=True)
    for name in ("x-bf16.gguf", "x-Q8_0.gguf"):
        (gguf / name).touch()
    assert find_model(str(run), "q8_0") == (gguf / "x-Q8_0.gguf", run / "sft" / "model")
    assert find_model(str(run), "q4_0") == (None, run / "sft" / "model")


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "pretrain").mkdir(parents=True)
    (tmp_path / "run" / "recipe.toml").touch()
    for name, message in (
        ("run", "Run first: chatbaker sft"),
        (".", "neither a model folder"),
        ("none.gguf", "no such"),
    ):
        with pytest.raises(ChatBakerError, match=message):
            find_model(str(tmp_path / name), "q8_0")


def test_a_quantized_file_is_not_quantized_again(parrot_gguf: Path) -> None:
    with pytest.raises(ChatBakerError, match="quantized already"):
        open_engine(str(parrot_gguf), "cpu", "q4_0")


def test_the_bundled_model_is_found_in_a_package_and_in_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "chatbaker"
    monkeypatch.setattr(engine, "PACKAGE", package)
    with pytest.raises(ChatBakerError, match="bundled model is missing"):
        bundled_model()
    for place in (tmp_path / "models" / "chatbaker-mini", package / "_models" / "chatbaker-mini"):
        place.mkdir(parents=True)
        (place / "mini.gguf").touch()
        assert bundled_model() == place / "mini.gguf"


class Cuda:
    """A stand-in for torch with some GPUs; a number of free bytes that is negative means a GPU that is in use."""

    def __init__(self, *free: int) -> None:
        self.free = free

    def device_count(self) -> int:
        return len(self.free)

    def mem_get_info(self, number: int) -> tuple[int, int]:
        if self.free[number] < 0:
            raise RuntimeError("all CUDA-capable devices are busy or unavailable")
        return self.free[number], 1 << 40


@pytest.mark.parametrize(
    ("device", "free", "chosen"),
    [
        ("auto", (), None),
        ("auto", (-1, -1), None),
        ("auto", (50_000,), None),
        ("auto", (-1, 500_000, 400_000), 1),
        ("cpu", (500_000,), None),
        ("mps", (500_000,), None),
        ("cuda", (1, 2), 1),
        ("cuda:0", (1, 2), 0),
    ],
)
def test_auto_takes_the_gpu_with_room_and_never_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, free: tuple[int, ...], chosen: int | None
) -> None:
    torch: Any = types.ModuleType("torch")
    torch.cuda = Cuda(*free)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(engine, "find_spec", lambda name: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    assert cuda_device(device, folder) == chosen


def test_asking_for_a_gpu_that_is_not_there_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_free_cuda_memory", dict)
    with pytest.raises(ChatBakerError, match="no usable CUDA GPU"):
        cuda_device("cuda", folder)
    monkeypatch.setattr(engine, "_free_cuda_memory", lambda: {0: 1})
    with pytest.raises(ChatBakerError, match="no such GPU"):
        cuda_device("cuda:3", folder)
