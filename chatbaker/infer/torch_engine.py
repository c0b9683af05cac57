"""The engine of CUDA GPUs: a model folder as it is, computed by this project's own network in PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from chatbaker.errors import ChatBakerError
from chatbaker.export.hf import chat_template
from chatbaker.infer.detokenize import byte_level
from chatbaker.infer.engine import Sampling
from chatbaker.infer.local import LocalEngine, shared_prefix
from chatbaker.model.cache import KVCache
from chatbaker.model.weights import load_model
from chatbaker.tokens.dialog import detect

PREFILL_STEP = 512


def sample(logits_V: torch.Tensor, generated: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token. logits_V: [V] float32. Order: repetition penalty over `generated`, temperature, top-k, top-p."""
    if generated and sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(generated)), device=logits_V.device)
        old = logits_V[seen]
        penalty = sampling.repetition_penalty
        logits_V = logits_V.index_copy(0, seen, torch.where(old > 0, old / penalty, old * penalty))
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    kept, tokens = (logits_V / sampling.temperature).topk(min(sampling.top_k or len(logits_V), len(logits_V)))
    chances = kept.softmax(0)
    chances = chances * (chances.cumsum(0) - chances < sampling.top_p)
    return int(tokens[torch.multinomial(chances, 1, generator=generator)])


class TorchEngine(LocalEngine):
    """A Hugging Face folder on `device`, in bf16 on a GPU and fp32 on a CPU. Raises ChatBakerError."""

    def __init__(self, folder: Path, device: str, context: int | None = None) -> None:
        self._dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._model = load_model(folder, device, self._dtype).eval()
        self._device = device
        config = self._model.config
        self.context = min(context or 4096, config.seq_len)
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise ChatBakerError(f"no usable tokenizer.json ({error})", str(folder)) from None
        self._tokenizer.encode_special_tokens = True
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {token.content: number for number, token in added.items() if token.special}
        self.template = detect(chat_template(folder), self.specials)
        self.stops = frozenset(self.specials[text] for text in self.template.stop if text in self.specials)
        self.name = f"{folder.name} (PyTorch, {device})"
        self._cache = KVCache(config, 1, self.context, self._dtype, device)
        self._held: list[int] = []

    def tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def piece(self, token: int) -> bytes:
        name = self._tokenizer.id_to_token(token)
        return b"" if name is None or name in self.specials else byte_level(name)

    def prefill(self, ids: list[int]) -> int:
        last = len(ids) - 1
        cached = min(shared_prefix(self._held, ids), last)
        self._cache.truncate(cached)
        self._held = ids[:cached]
        for start in range(cached, last, PREFILL_STEP):
            self._read(ids[start : min(start + PREFILL_STEP, last)])
        return cached

    def _read(self, ids: list[int]) -> torch.Tensor:
        """Hidden states [1, T, D] of new tokens, their keys and values kept."""
        with torch.inference_mode():
            tokens_1T = torch.tensor([ids], device=self._device)
            hidden: torch.Tensor = self._model(tokens_1T, cache=self._cache, dtype=self._dtype)
        self._held += ids
        return hidden

    def next_token(
        self, ids: list[int], generated: int, sampling: Sampling, seed: int, debug: int
    ) -> tuple[int, list[tuple[int, float]]]:
        with torch.inference_mode():
            logits_V = self._model.logits(self._read(ids[-1:])[0, -1]).float()
            generator = torch.Generator(self._device).manual_seed(seed)
            token = sample(logits_V, ids[len(ids) - generated :], sampling, generator)
            best = logits_V.softmax(0).topk(min(debug, len(logits_V)))
        return token, list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def close(self) -> None:
        del self._model, self._cache
