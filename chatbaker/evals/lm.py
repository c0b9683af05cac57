"""Any model as lm-eval sees one: who scores it, and scores that are never computed or paid for twice.

`torch`: a LLaMA's folder or a run folder, by our own network (score.py). `hf`: any other causal model's folder or hub
id, through transformers. `gguf`: a .gguf file, through llama.cpp (gguf.py). `remote`: a server.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unicodedata import normalize

from lm_eval.api.model import LM

from chatbaker.errors import ChatBakerError, missing_extra
from chatbaker.evals.ledger import Ledger
from chatbaker.infer.engine import bundled_model, cuda_device, find_model, identity
from chatbaker.infer.remote import RemoteEngine
from chatbaker.log import Progress, progress
from chatbaker.model.config import read_config
from chatbaker.rundir import digest

AT_ONCE, RETRIES = 8, 8  # requests under way at a server; times that a busy one is asked again
DOCUMENTS = 64  # whole texts given to a back end at a time, as transformers' tells of none before it has finished all


def open_lm(
    model: str | None, url: str | None = None, device: str = "auto", batch_size: int = 0, cache: Path | None = None
) -> Scorer:
    """Choose and load. With `url`, model is the name that the server knows it by. Raises ChatBakerError.

    batch_size: rows at a time; 0: as memory and speed allow. cache: file for finished scores; models may share one.
    """
    if url:
        remote = RemoteLM(url, model)
        return Scorer(remote, "remote", [url, remote.model], cache)
    gguf, folder = find_model(model, "bf16") if model else (bundled_model(), None)
    if folder is None:
        from chatbaker.evals.gguf import GgufLM

        assert gguf is not None
        return Scorer(GgufLM(gguf, device), "gguf", identity(str(gguf)), cache)
    number = cuda_device(device, folder)
    place = f"cuda:{number}" if number is not None else "mps" if device == "mps" else "cpu"
    source = identity(str(folder))
    try:
        read_config(folder)
        ours = (folder / "tokenizer.json").is_file() and any(folder.glob("*.safetensors"))
    except ChatBakerError:
        ours = False
    if ours:
        from chatbaker.evals.score import TorchLM

        return Scorer(TorchLM(folder, place, batch_size), "torch", source, cache)
    name = str(folder) if Path(str(model)).expanduser().exists() else str(model)
    return Scorer(_open_hf(name, place, batch_size), "hf", source, cache)


def _open_hf(model: str, device: str, batch_size: int) -> LM:
    try:
        from lm_eval.models.huggingface import HFLM
        from transformers.utils.logging import disable_progress_bar
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "accelerate", "eval") from None
    disable_progress_bar()
    rows, dtype = (batch_size or 4, "float32") if device == "cpu" else (batch_size or "auto", "auto")
    with _one_line("load", model, "A causal language model's folder holds config.json, weights, a tokenizer's files"):
        lm = HFLM(pretrained=model, device=device, batch_size=rows, dtype=dtype, trust_remote_code=False)
        if len(lm.tokenizer) < 100:  # it makes an empty one where the files are missing
            raise FileNotFoundError("no tokenizer")
    longest = lm._max_length = min(lm.max_length, getattr(lm.config, "max_seq_len", lm.max_length))  # MPT's own name
    score = lm._loglikelihood_tokens

    def cut(requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = True, **options: Any) -> Any:
        """Of an answer longer than the context its end, as of all else; lm-eval stops there."""
        short = [(args, context, answer[-longest:]) for args, context, answer in requests]
        with _one_line("run", model, "A smaller eval.batch_size, or --device cpu, takes less memory"):
            return score(requests=short, disable_tqdm=True, **options)

    lm._loglikelihood_tokens = cut
    lm.name = f"{Path(model).name} (transformers, {device})"
    return lm


@contextmanager
def _one_line(verb: str, model: str, hint: str) -> Iterator[None]:
    try:
        yield
    except ChatBakerError:  # of the cache hook
        raise
    except Exception as error:  # transformers raises a score of kinds: no weights, no tokenizer, unknown, no network
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ChatBakerError(f"transformers cannot {verb} it ({reason})", model, hint) from None


class Scorer(LM):
    """A back end behind its finished scores, and its cache hook, told of each at once. Requests go on in NFC."""

    def __init__(self, inner: Any, kind: str, source: Any, cache: Path | None) -> None:
        super().__init__()
        self.inner, self.kind, self.name, self.source = inner, kind, str(inner.name), source
        self.ledger, self.done = Ledger(cache, "score"), 0
        self.bar: Progress
        inner.cache_hook = self

    def key(self, request: str, args: Sequence[str]) -> str:
        return digest([self.kind, self.source, request, *args])

    def add_partial(self, request: str, args: Sequence[str], score: Any) -> None:
        self.ledger.append({"key": self.key(request, args), "score": score}, sync=False)
        self.done += 1
        self.bar.update(self.done)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(chance, best) for chance, best in self._ask("loglikelihood", requests, len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        if self.kind == "remote":
            raise ChatBakerError("a server tells nothing of a text's first token: no bits per byte", self.name)
        return self._ask("loglikelihood_rolling", requests, DOCUMENTS)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError  # no task in suites.json lets the model write

    def _ask(self, name: str, requests: list[Any], step: int) -> list[Any]:
        texts = [tuple(normalize("NFC", text) for text in request.args) for request in requests]
        keys, known = [self.key(name, args) for args in texts], self.ledger.by_key
        new = {key: SimpleNamespace(args=args) for key, args in zip(keys, texts, strict=True) if key not in known}
        self.done, missing = len(set(keys)) - len(new), list(new.values())
        # Some of what lies below prints; standard output is for the result.
        with progress("scores", len(set(keys)), self.done) as self.bar, redirect_stdout(sys.stderr):
            for start in range(0, len(missing), step):
                getattr(self.inner, name)(missing[start : start + step], disable_tqdm=True)
        return [known[key][0]["score"] for key in keys]

    def close(self) -> None:
        if hasattr(self.inner, "close"):
            self.inner.close()


class RemoteLM(RemoteEngine):
    """Scores from a server's `/completions`. An empty context stands for a line feed: who knows the server's BOS."""

    cache_hook: Scorer
    tokens = 0  # max_tokens: a server that refuses 0 is asked for one token, which is left out

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda request: self._score(request.args), requests))

    def _score(self, args: tuple[str, str]) -> None:
        context, continuation = args[0] or "\n", args[1]
        prompt, boundary = context + continuation, len(context.rstrip()) or len(context)
        said = self._echo(prompt)
        offsets = list(said.text_offset)
        if len(offsets) > 1 and not prompt.startswith(said.tokens[0]):  # a BOS token is no part of the prompt
            offsets = [offset - offsets[1] for offset in offsets]
        total, greedy = 0.0, True
        for i, (start, end) in enumerate(zip(offsets, [*offsets[1:], len(prompt)], strict=True)):
            if said.token_logprobs[i] is not None and start < len(prompt) and end > boundary:
                total += said.token_logprobs[i]
                greedy &= said.token_logprobs[i] >= max((said.top_logprobs[i] or {"": 0.0}).values())
        self.cache_hook.add_partial("loglikelihood", args, (total, greedy))

    def _echo(self, prompt: str) -> Any:
        """The `logprobs` of a prompt's tokens: tokens, token_logprobs, top_logprobs, text_offset."""
        ask, tokens = self._client.with_options(max_retries=RETRIES).completions.create, self.tokens
        try:
            said = ask(model=self.model, prompt=prompt, echo=True, logprobs=1, temperature=0, max_tokens=tokens)
            found = said.choices[0].logprobs
        except (self._openai.OpenAIError, ValueError, AttributeError, TypeError, IndexError) as error:
            refused = isinstance(error, (self._openai.BadRequestError, self._openai.UnprocessableEntityError))
            if not refused:
                raise self._plain(error) from None
            if not tokens:
                self.tokens = 1
                return self._echo(prompt)
            found = None
        if not (found and found.token_logprobs and found.text_offset and found.tokens and found.top_logprobs):
            hint = "It takes a server whose /completions has echo with logprobs, such as vLLM"
            raise ChatBakerError("this server gives no log-probabilities of a prompt", self.url, hint)
        return found
