"""The engine of laptops and CPUs: llama.cpp, embedded through the prebuilt xllamacpp wheels.

Its server applies the repetition penalty to the last N tokens, prompt included. Here N is how many were generated
so far, so every token is a request of its own: exact at any length, stoppable between two tokens, and 0.5 ms dearer.
The KV cache stays in the server's slot. The tokenizer can only be reached at the server's HTTP address, which is bound
to this machine and locked with a random key; there `events` asks for whole answers, as many at once as there are slots.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import os
import secrets
import sys
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from pydantic_core import from_json

from chatbaker.errors import ChatBakerError
from chatbaker.infer.detokenize import byte_level, sentence_piece
from chatbaker.infer.engine import Sampling
from chatbaker.infer.local import LocalEngine, shared_prefix
from chatbaker.infer.metadata import CONTROL, Metadata, read_metadata
from chatbaker.tokens.dialog import detect


def crowded(loadavg: str, cores: int, threads: int) -> bool:
    """Whether the programs running now leave fewer cores free than llama.cpp wants. loadavg: text of /proc/loadavg."""
    return int(loadavg.split()[3].split("/")[0]) - 1 + threads > cores


# llama.cpp's threads wait for each other by spinning. That is best on cores of their own and ten times slower than
# sleeping where another program, a training run say, has one of them. The OpenMP of Linux reads this as it is loaded.
if sys.platform == "linux" and crowded(
    Path("/proc/loadavg").read_text(encoding="utf-8"), psutil.cpu_count() or 1, psutil.cpu_count(logical=False) or 1
):
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
try:
    import xllamacpp
except ImportError as error:  # the package, or the OpenMP runtime that its Linux wheels expect of the system
    hint = "Type: pip install xllamacpp (and where libgomp.so.1 is missing: apt-get install libgomp1)"
    raise ChatBakerError(f"llama.cpp cannot start ({error})", hint=hint) from None

PREFILL_STEP = 128  # prompt tokens read at once: as fast as 512 on a CPU, and Ctrl-C need not wait for more
SMALL_MODEL = 64 << 20  # a file of fewer bytes is read by one thread: two would wait longer than they save
SMALL_KV = 128 << 20  # a KV cache of more bytes than this in 16 bits is kept in 8
CACHED_CHARACTERS = 500_000
GPU_TYPES = ("GPU", "IGPU")


def gpus() -> list[dict[str, Any]]:
    """GPUs that this build of llama.cpp can use (CUDA, Metal, Vulkan), in its order: name, memory_free in bytes."""
    return [d for d in xllamacpp.get_device_info() if d["type"].name.rpartition("_")[2] in GPU_TYPES]


def choose_gpu(device: str, free: list[int], need: int) -> int | None:
    """The GPU to use, None for the CPU. free: bytes on each; need: bytes, for auto to take the one with most room."""
    if device == "cpu":
        return None
    best = max(range(len(free)), key=lambda i: free[i], default=None)
    if device == "auto":
        return best if best is not None and free[best] >= need else None
    number = int(device.partition(":")[2] or (best or 0))
    if number >= len(free):
        hint = "Use --device cpu, or install a GPU build of xllamacpp"
        raise ChatBakerError("no such GPU for llama.cpp", f"--device {device}", hint)
    return number


def samplers(asked: Any, window: int) -> dict[str, Any]:
    """How to draw, in llama.cpp's words. asked: a Sampling or what has its names. window: tokens the penalty sees."""
    settings = {"repeat_penalty": asked.repetition_penalty, "repeat_last_n": window}
    if asked.temperature == 0:
        return settings | {"samplers": ["penalties", "top_k"], "top_k": 1}
    settings |= {"temperature": asked.temperature, "top_k": asked.top_k, "top_p": asked.top_p}
    return settings | {"samplers": ["penalties", "temperature", "top_k", "top_p"]}


class LlamaCppEngine(LocalEngine):
    """A GGUF file, memory-mapped. Raises ChatBakerError for a file that is none, cut short, or of a foreign format."""

    def __init__(self, path: Path, device: str = "auto", context: int | None = None, slots: int = 1) -> None:
        """slots: answers written at once through `events`, each with a context of its own; `stream` wants one alone."""
        about = read_metadata(path)
        self.specials = about.specials
        self.template = detect(about.get("tokenizer.chat_template"), self.specials)
        self.context, self.slots = min(context or 4096, about.context), slots
        ends = [self.specials.get(text) for text in self.template.stop] + [about.get("tokenizer.ggml.eos_token_id")]
        self.stops = frozenset(token for token in ends if token is not None)
        self._tokens = about.tokens
        self.vocabulary = len(self._tokens)
        self._longest = max(map(len, self._tokens))
        self._types = about.get("tokenizer.ggml.token_type", [])
        self._bytes = sentence_piece if about.get("tokenizer.ggml.model") == "llama" else byte_level
        self._key = secrets.token_hex(16)
        self._text_ids: dict[str, list[int]] = {}
        self._cached = 0
        self._held: list[int] = []  # the tokens whose keys and values are known to be in the slot
        self._server, where = self._open(path, about, device)
        self.name = f"{path.name} (llama.cpp, {where})"
        self._address = self._server.listening_address.rpartition("://")[2]
        self._worker = ThreadPoolExecutor(1, "llama.cpp")

    def _open(self, path: Path, about: Metadata, device: str) -> tuple[Any, str]:
        """The loaded server and the place it runs on; a GPU that fails in auto mode means the CPU."""
        kv_bytes = self.slots * self.context * about.kv_width * 2
        found = gpus()
        gpu = choose_gpu(device, [d["memory_free"] for d in found], int((path.stat().st_size + kv_bytes) * 1.2))
        for number in dict.fromkeys((gpu, None if device == "auto" else gpu)):
            try:
                server = xllamacpp.Server(self._params(path, number, kv_bytes > SMALL_KV and about.head_dim % 32 == 0))
            except RuntimeError:
                continue
            server.handle_metrics()  # answered once its loop runs; closing it before that would wait for ever
            return server, "CPU" if number is None else found[number]["name"]
        what = "llama.cpp cannot load this file: cut short, damaged, or of a kind it does not know"
        raise ChatBakerError(what, str(path), "Copy, download or export it again")

    def _params(self, path: Path, gpu: int | None, small_kv: bool) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel = self.context * self.slots, self.slots
        params.n_batch = params.n_ubatch = max(PREFILL_STEP if gpu is None else 512, self.slots)
        params.n_gpu_layers, params.main_gpu = (0, 0) if gpu is None else (999, gpu)
        params.split_mode = xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE
        params.endpoint_metrics = True
        params.warmup = params.fit_params = params.ui = params.endpoint_slots = False
        params.cache_ram_mib, params.verbosity = 0, -1
        params.port, params.api_keys, params.n_threads_http = 0, [self._key], self.slots + 4
        if small_kv:
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        if usable != os.cpu_count():  # else llama.cpp counts the physical cores itself
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = usable
        if path.stat().st_size < SMALL_MODEL:
            params.cpuparams.n_threads = 1
        return params

    def tokenize(self, text: str) -> list[int]:
        if len(text) > self.context * self._longest:  # will not fit; what it would be exactly is not worth the time
            return [0] * (len(text) // self._longest)
        if (ids := self._text_ids.get(text)) is None:
            ids = self._worker.submit(self._tokenize, text).result()
            self._cached += len(text) + len(ids)
            if self._cached > CACHED_CHARACTERS:
                self._text_ids, self._cached = {}, 0
            self._text_ids[text] = ids
        return ids

    def _tokenize(self, text: str) -> list[int]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        body = json.dumps({"content": text, "add_special": False, "parse_special": False})
        # A new connection each time: the server closes one that was idle while the person thought.
        with closing(http.client.HTTPConnection(self._address)) as connection:
            connection.request("POST", "/tokenize", body, headers)
            ids: list[int] = json.loads(connection.getresponse().read())["tokens"]
        return ids

    def piece(self, token: int) -> bytes:
        if token < len(self._types) and self._types[token] == CONTROL:
            return b""
        return self._bytes(self._tokens[token])

    def prefill(self, ids: list[int]) -> int:
        held, self._held = self._held, []
        last = len(ids) - 1
        known = min(shared_prefix(held, ids), last)
        cached: list[int] = []
        for end in (*range(known + PREFILL_STEP, last, PREFILL_STEP), last):
            cached.append(self._complete({"prompt": ids[:end], "n_predict": 0})["timings"]["cache_n"])
            self._held = ids[:end]
        return cached[0]

    def next_token(
        self, ids: list[int], generated: int, sampling: Sampling, seed: int, debug: int
    ) -> tuple[int, list[tuple[int, float]]]:
        request = {"prompt": ids, "n_predict": 1, "seed": seed, "logprobs": debug}
        request |= {"verbose": True, "return_tokens": True}  # the only way to the token's number
        answer = self._complete(request | samplers(sampling, generated))
        self._held = ids
        return answer["__verbose"]["tokens"][0], self._candidates(ids, answer, debug) if debug else []

    def _candidates(self, ids: list[int], answer: dict[str, Any], debug: int) -> list[tuple[int, float]]:
        """The likeliest tokens after `ids`. llama.cpp names none with half a character: then make it stop there."""
        if not (found := answer["choices"][0]["logprobs"]):
            answer = self._complete({"prompt": ids, "logprobs": debug} | self._lure())
            found = answer["choices"][0]["logprobs"]
        return [(one["id"], math.exp(one["logprob"])) for one in found["content"][0]["top_logprobs"]]

    def _lure(self) -> dict[str, Any]:
        """Options that make llama.cpp end the answer with its next token, where it may."""
        return {"logit_bias": [[min(self.stops), 1000.0]], "samplers": ["top_k"], "top_k": 1, "n_predict": 1}

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request. In a thread, because a call into llama.cpp cannot be interrupted but waiting for it can."""
        answer: dict[str, Any] = self._worker.submit(self._server.handle_completions, request).result()
        if "error" in answer:
            raise ChatBakerError(f"llama.cpp: {answer['error']['message']}")
        return answer

    async def events(self, request: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Events of llama.cpp's /completion, as many at a time as have come. Closing it frees the slot at once.

        Each comes as an HTTP chunk, so the sizes of chunks stand on lines of their own. Raises ChatBakerError for a
        request that llama.cpp refuses, OSError where it breaks off.
        """
        body, writer = json.dumps(request).encode(), None
        head = f"POST /completion HTTP/1.1\r\nHost: {self._address}\r\nAuthorization: Bearer {self._key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        try:
            reader, writer = await asyncio.open_connection(*self._address.rsplit(":", 1))
            writer.write(head.encode() + body)
            status = (await reader.readuntil(b"\r\n\r\n")).split(maxsplit=2)[1]
            if status == b"400":
                message = json.loads((await reader.read()).decode(errors="replace"))["error"]["message"]
                raise ChatBakerError(f"llama.cpp: {message}")
            rest, done = b"", False
            while status == b"200" and (data := await reader.read(1 << 16)):
                *lines, rest = (rest + data).split(b"\n")
                if found := [from_json(line[6:]) for line in lines if line.startswith(b"data: ")]:
                    done = found[-1]["stop"]  # an error has none
                    yield found
            if not done:
                raise EOFError
        except (EOFError, ValueError, LookupError) as error:
            raise ConnectionError("llama.cpp broke off") from error
        finally:
            if writer:
                writer.transport.abort()

    async def check_schema(self, request: dict[str, Any]) -> None:
        """Raises ChatBakerError for a schema that llama.cpp cannot follow: only then it can be lured to end at once."""
        async for found in self.events(request | self._lure()):
            if found[-1].get("stop_type") == "eos":
                raise ChatBakerError("the engine cannot follow this schema", "response_format")

    def metrics(self) -> str:
        """llama.cpp's own counters; that they come shows that its loop runs."""
        return str(self._server.handle_metrics())

    def close(self) -> None:
        self._worker.shutdown()
        del self._server
