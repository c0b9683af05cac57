"""What every engine can do, how it draws tokens, and which one answers: `Engine`, `Sampling`, `open_engine`.

A URL: `remote`. A .gguf file: `llamacpp`. A model folder, that of a run, or a hub id: `torch_engine` where a CUDA GPU
has room, else `llamacpp` on a GGUF made once and kept in the user's cache. Nothing heavy is imported before its time.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

from chatbaker.errors import ChatBakerError
from chatbaker.log import say
from chatbaker.rundir import RunDir, fingerprint

Messages = list[dict[str, str]]
FinishReason = Literal["stop", "length", "cancelled"]
Quantization = Literal["bf16", "q8_0", "q4_0"]
PACKAGE = Path(__file__).parent.parent


class TooLong(ChatBakerError):
    """The messages do not fit the context of a server's model."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Order: repetition penalty, temperature, top-k, top-p."""

    temperature: float = 0.5  # 0 is greedy: always the most likely token
    top_p: float = 0.95
    top_k: int = 20  # 0 keeps the whole vocabulary
    repetition_penalty: float = 1.2  # divides positive, multiplies negative logits of tokens already in this answer
    max_new_tokens: int = 512
    seed: int | None = None  # the same seed, question and model give the same answer; None: a new one each time
    stop: tuple[str, ...] = ()  # texts that end the answer, besides the model's own end of turn

    def __post_init__(self) -> None:
        for name, (_, valid, allowed) in _OPTIONS.items():
            if not valid(value := getattr(self, name)):
                raise ChatBakerError(f"{name} must be {allowed}, not {value}")

    def set(self, name: str, text: str) -> Sampling:
        """A copy with one option changed, its value given as text. Raises ChatBakerError."""
        if name not in _OPTIONS:
            raise ChatBakerError(f"no option {name!r}", hint=f"Options: {', '.join(_OPTIONS)}")
        try:
            return replace(self, **{name: _OPTIONS[name][0](text)})
        except ValueError:
            raise ChatBakerError(f"{name} cannot be {text!r}") from None


_OPTIONS: dict[str, tuple[Callable[[str], Any], Callable[[Any], bool], str]] = {
    "temperature": (float, lambda value: 0 <= value <= 100, "0 to 100"),
    "top_p": (float, lambda value: 0 < value <= 1, "above 0, at most 1"),
    "top_k": (int, lambda value: value >= 0, "0 or more"),
    "repetition_penalty": (float, lambda value: 0 < value <= 100, "above 0, at most 100"),
    "max_new_tokens": (int, lambda value: value >= 1, "1 or more"),
    "seed": (lambda text: None if text == "none" else int(text), lambda seed: seed is None or seed >= 0, "0 or more"),
    "stop": (lambda text: tuple(text.split()), lambda _: True, "texts"),
}
"""How each is read from text, what it may be, and that in words."""


@dataclass(frozen=True)
class Usage:
    """Where an answer stands. Tokens are counted without the one that ends the turn."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # of them, those whose keys and values were still there from an earlier turn
    completion_tokens: int = 0
    finish_reason: FinishReason | None = None  # None while the answer is still being written
    prompt_seconds: float = 0.0  # from the question to the first token
    decode_seconds: float = 0.0  # from the first token on

    @property
    def prompt_speed(self) -> float:
        """Newly read prompt tokens a second."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_speed(self) -> float:
        """Tokens a second after the first."""
        return max(self.completion_tokens - 1, 0) / self.decode_seconds if self.decode_seconds else 0.0


@dataclass(frozen=True)
class Chunk:
    """One step of an answer. The last chunk's usage has a finish_reason."""

    text: str  # what can be shown now, often empty
    usage: Usage
    token: str = ""  # with debug: the token drawn
    candidates: tuple[tuple[str, float], ...] = ()  # with debug: the likeliest, before the sampling options act


class Engine(Protocol):
    """A model that answers. `context` is in tokens; None: the other side looks after it."""

    name: str

    @property
    def context(self) -> int | None: ...

    def count(self, messages: Messages) -> int:
        """Tokens of the prompt."""

    def stream(self, messages: Messages, sampling: Sampling, debug: int = 0) -> Iterator[Chunk]:
        """The answer. debug: how many candidate tokens to report. Closing the iterator stops the engine."""

    def close(self) -> None: ...


def trim(messages: Messages, count: Callable[[Messages], int], limit: int) -> tuple[Messages, int]:
    """Drop the oldest question-answer pairs until `limit` tokens hold the rest; (what is kept, messages dropped).

    System message and last question always stay. It makes a quarter of room, so that the next turns find their
    beginning unchanged in the KV cache. Raises ChatBakerError where the question alone is too long.
    """
    if count(messages) <= limit:
        return messages, 0
    head = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(head) :]
    if (least := count(head + turns[-1:])) > limit:
        what = "the question and the system message are" if head else "the question is"
        raise ChatBakerError(f"{what} {least:,} tokens long, but {limit:,} fit this model", hint="Shorten it")
    starts = range(2, len(turns) - 1, 2)
    start = 2 + 2 * bisect_left(starts, True, key=lambda start: count(head + turns[start:]) <= limit * 3 // 4)
    return head + turns[start:], start


def prompt_limit(context: int, max_new_tokens: int) -> int:
    """Tokens a prompt may have: the context less room for the answer, but never less than half of it."""
    return context - min(max_new_tokens, context // 2)


def bundled_model() -> Path:
    """The GGUF that comes with the project, installed or in a clone. Raises ChatBakerError."""
    for folder in (PACKAGE / "_models" / "chatbaker-mini", PACKAGE.parent / "models" / "chatbaker-mini"):
        if found := sorted(folder.glob("*.gguf")):
            return found[0]
    hint = "Give one: chatbaker chat --model FOLDER, FILE.gguf or HUB/ID"
    raise ChatBakerError("the bundled model is missing", hint=hint)


def open_engine(
    model: str | None = None,
    device: str = "auto",
    quantize: str | None = None,
    context: int | None = None,
    url: str | None = None,
    slots: int | None = None,
) -> Engine:
    """Choose and load. With `url`, model is the name that the server knows it by. Raises ChatBakerError.

    device: auto, cpu, cuda, cuda:N or mps. quantize: how to convert a model folder for llama.cpp, q8_0 where None.
    context: tokens; the model's own, at most 4,096, where None. slots: llama.cpp, and no other, for so many at once.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise ChatBakerError(f"unknown device {device!r}", hint="Use auto, cpu, cuda, cuda:N or mps")
    if quantize not in (None, *get_args(Quantization)):
        raise ChatBakerError(f"unknown quantization {quantize!r}", hint=f"Use {', '.join(get_args(Quantization))}")
    if url:
        from chatbaker.infer.remote import RemoteEngine

        return RemoteEngine(url, model)
    gguf, folder = find_model(model, quantize or "q8_0") if model else (bundled_model(), None)
    if gguf and not folder and quantize and quantize not in gguf.name.lower():
        raise ChatBakerError("a GGUF file is quantized already", str(gguf), "Leave --quantize out")
    if folder and not slots and (number := cuda_device(device, folder)) is not None:
        from chatbaker.infer.torch_engine import TorchEngine

        try:
            return TorchEngine(folder, f"cuda:{number}", context)
        except RuntimeError as error:  # out of memory after all, or a card that this torch has no code for
            reason = str(error).splitlines()[0]
            if device != "auto":
                raise ChatBakerError(f"the GPU cannot run it ({reason})", device, "Use --device cpu") from None
            say(f"the GPU cannot run it ({reason}); answering on the CPU")
    from chatbaker.infer.llamacpp import LlamaCppEngine

    path = gguf or convert(folder, cast(Quantization, quantize or "q8_0"))
    return LlamaCppEngine(path, device, context, slots or 1)


def find_model(model: str, quantize: str) -> tuple[Path | None, Path | None]:
    """(GGUF file, Hugging Face folder) behind a name, at least one of them there. Raises ChatBakerError."""
    path = Path(model).expanduser()
    if path.is_file():
        return path, None
    if not path.is_dir():
        if path.suffix == ".gguf" or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
            hint = "Give a .gguf file, a model or run folder, or a hub id ORG/NAME"
            raise ChatBakerError("no such model", model, hint)
        path = from_hub(model)
    if (path / "recipe.toml").exists() or (path / "sft").exists():
        run = RunDir(path)
        tuned = run.path(run.tuned, "model")
        stale = (run.stamp("export") or {}).get("started", 0) < (run.stamp(run.tuned) or {}).get("ended", 0)
        files = [] if stale else sorted(run.path("export", "gguf").glob("*.gguf"))
        exported = next((file for file in files if quantize in file.name.lower()), None)
        if exported or tuned.is_dir():
            return exported, tuned if tuned.is_dir() else None
        raise ChatBakerError("no chat model in this run yet", str(path), "Run first: chatbaker sft RECIPE")
    if (path / "config.json").exists():
        return None, path
    if files := sorted(path.glob("*.gguf")):
        return next((file for file in files if quantize in file.name.lower()), files[0]), None
    raise ChatBakerError("neither a model folder (config.json), a run folder nor a GGUF in it", str(path))


def identity(model: str | None, url: str | None = None) -> object:
    """What an answer hangs on besides its question, for a key: the model's files, or a server and a name there."""
    if url or not model:
        return [url, model]
    gguf, folder = find_model(model, "q8_0")
    files = [*folder.iterdir()] if folder else [gguf] if gguf else []
    return fingerprint(path.resolve() for path in files if path.is_file())


def from_hub(name: str) -> Path:
    """Download a repository from the Hugging Face hub, or find it in the hub's cache."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "merges.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub raises a score of kinds: HTTP, offline, gated, unknown, no space
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        what = f"no such folder, and not to be had from the Hugging Face hub ({reason})"
        raise ChatBakerError(what, name, "Check the name and the network, or give a folder or a .gguf file") from None


def cuda_device(device: str, folder: Path) -> int | None:
    """The GPU for the torch engine, or None where llama.cpp is to answer.

    auto takes the one with the most free memory if the weights fit with a fifth to spare, and never fails. An explicit
    cuda or cuda:N that cannot be had is a ChatBakerError.
    """
    if device in ("cpu", "mps"):
        return None
    free = _free_cuda_memory()
    best = max(free, key=lambda number: free[number], default=None)
    if device == "auto":
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return best if best is not None and free[best] > weights * 1.2 else None
    if best is None:
        from chatbaker.infer.llamacpp import gpus

        if not gpus():
            hint = "Type: pip install 'chatbaker[train]'" if find_spec("torch") is None else "Use --device cpu"
            raise ChatBakerError("no usable CUDA GPU", f"--device {device}", hint)
        return None
    number = int(device.partition(":")[2] or best)
    if number not in free:
        raise ChatBakerError(f"no such GPU; there are {sorted(free)}", f"--device {device}")
    return number


def _free_cuda_memory() -> dict[int, int]:
    """Free bytes per GPU that answers. torch is imported only where a driver and torch itself are installed."""
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        import torch
    except (OSError, ImportError):
        return {}
    free = {}
    for number in range(torch.cuda.device_count()):
        with suppress(RuntimeError, AssertionError):  # in exclusive use by another program, or broken
            free[number] = torch.cuda.mem_get_info(number)[0]
    return free


def convert(folder: Path | None, quantize: Quantization) -> Path:
    """The folder as GGUF: from the user's cache, or written there now. Needs about the model's size of disk."""
    assert folder is not None
    target = cache_dir() / "gguf" / f"{folder.resolve().name}-{content_key(folder)}-{quantize}.gguf"
    if not target.exists():
        from chatbaker.export.gguf import write_gguf

        say(f"converting {folder} to GGUF {quantize}, once; kept as {target}")
        write_gguf(folder, target, quantize)
    return target


def content_key(folder: Path) -> str:
    """Changes with the model, also where a copy keeps size and time: 4 KiB at 64 places of every file are read."""
    hasher = hashlib.sha256()
    for path in sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".jinja")):
        status = path.stat()
        hasher.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        with path.open("rb") as file:
            for i in range(64):
                file.seek(status.st_size * i // 64)
                hasher.update(file.read(4096))
    return hasher.hexdigest()[:16]


def cache_dir() -> Path:
    """Where the system keeps what can be made again."""
    if override := os.environ.get("CHATBAKER_CACHE"):
        return Path(override)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "chatbaker"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "chatbaker"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatbaker"
