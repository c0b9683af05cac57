"""Keys and values of the tokens already read, as an explicit argument, and greedy generation with them.

Shape suffixes as in llama.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from chatbaker.model.config import LlamaConfig
    from chatbaker.model.llama import Llama


class KVCache:
    """Room for `capacity` tokens in every layer. length: tokens held; `truncate` forgets the rest."""

    def __init__(
        self, config: LlamaConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values behind the old; return all, [B, G, S, K]. The model advances `length`."""
        end = self.length + k_BGTK.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BGTK
        self.values[layer, :, :, self.length : end] = v_BGTK
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        self.length = length


@torch.no_grad()  # not inference_mode: what the model keeps from here (rotary tables) is used in training too
def greedy(model: Llama, ids: Sequence[int], new_tokens: int, stop: Sequence[int], dtype: torch.dtype) -> list[int]:
    """The most likely continuation of `ids`, without the stop token that ended it."""
    weight = model.model.embed_tokens.weight
    budget = min(new_tokens, model.config.seq_len - len(ids))
    cache = KVCache(model.config, 1, len(ids) + budget, dtype, weight.device)
    feed, out = list(ids), []
    for _ in range(budget):
        hidden = model(torch.tensor([feed], device=weight.device), cache=cache, dtype=dtype)
        token = int(model.logits(hidden[:, -1]).argmax())
        if token in stop:
            break
        out.append(token)
        feed = [token]
    return out
