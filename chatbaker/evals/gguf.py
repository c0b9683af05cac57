"""Log-likelihoods from llama.cpp, which gives those of the token it draws only.

So each wanted token is drawn, pinned by a bias; its reported figure is from before the bias. A token that ends within
a character is never reported: its odds are taken against the letter "a", which is then measured by itself.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import xllamacpp

from chatbaker.errors import ChatBakerError
from chatbaker.evals.score import Score, Text, TokenLM
from chatbaker.infer.llamacpp import LlamaCppEngine
from chatbaker.infer.metadata import read_metadata

PIN = 100.0  # a bias above any difference of logits, small enough for 32 bits to hold the rest


class Scoring(LlamaCppEngine):
    """llama.cpp computing attention in fp32, for a file of any chat format or none."""

    def __init__(self, path: Path, device: str) -> None:
        self.about = read_metadata(path)
        self.context, self.slots, self._key = min(self.about.context, 4096), 1, secrets.token_hex(16)
        self._worker = ThreadPoolExecutor(1, "llama.cpp")
        self._server, where = self._open(path, self.about, device)
        self._address = self._server.listening_address.rpartition("://")[2]
        self.name = f"{path.name} (llama.cpp, {where})"

    def _params(self, path: Path, gpu: int | None, small_kv: bool) -> Any:
        params = super()._params(path, gpu, False)
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # computes in 16 bits
        return params

    def drawn(self, ids: list[int], bias: dict[int, float], **options: Any) -> Any:
        """What is said of the token drawn after `ids`, and of the likeliest; None where it is held back."""
        request = {"prompt": ids, "n_predict": 1, "samplers": ["top_k"], "top_k": len(bias), "logprobs": len(bias)}
        request |= {"logit_bias": list(map(list, bias.items())), "seed": 0, "verbose": True}
        found = self._complete(request | options)["__verbose"].get("completion_probabilities")
        return found and found[0]


class GgufLM(TokenLM):
    """A GGUF file; BOS as the file asks for it."""

    def __init__(self, path: Path, device: str) -> None:
        super().__init__()
        self.engine = engine = Scoring(path, device)
        self.context = engine.context - 1  # llama.cpp keeps room for the drawn token
        self.name, self.close = engine.name, engine.close
        ends = (engine.about.get(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos"))
        self.prefix = next((token for token in ends if token is not None), 0)
        begin = [self.prefix] if engine.about.get("tokenizer.ggml.add_bos_token", False) else []
        self.ids_of = lru_cache(4096)(lambda text, special: (begin if special else []) + engine._tokenize(text))
        self.letter = engine._tokenize("a")[0]

    def score(self, texts: list[Text]) -> Iterator[tuple[int, Score]]:
        for number in sorted(range(len(texts)), key=lambda i: texts[i][0]):  # neighbours share most of the KV cache
            ids, targets = texts[number]
            start = len(ids) - len(targets) + 1
            chances = [self._chance(ids[: start + i], token) for i, token in enumerate(targets)]
            yield number, (sum(chance for chance, _ in chances), all(best for _, best in chances))

    def _chance(self, ids: list[int], token: int) -> Score:
        """log P(token | ids), and whether no token is more likely."""
        if said := self.engine.drawn(ids, {token: 1e6}):
            return said["logprob"], said["top_logprobs"][0]["id"] == token
        letter = self.engine.drawn(ids, {self.letter: 1e6})
        for more in (10.0, 30.0, 60.0, 90.0):  # until the letter is drawn
            bias = {token: PIN, self.letter: PIN + more}
            if said := self.engine.drawn(ids, bias, post_sampling_probs=True, temperature=1.0):
                odds = {one["id"]: max(one["prob"], 1e-38) for one in said["top_probs"]}
                chance = letter["logprob"] + math.log(odds[token] / odds[self.letter]) + more
                return chance, letter["top_logprobs"][0]["id"] == token
        raise ChatBakerError("llama.cpp reports no probability of a token", self.name)
