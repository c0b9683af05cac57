"""In-loop validation: bits per byte per language, and what the model says to a few prompts.

Bits per byte = summed loss / ln 2 / bytes of the text predicted; it does not depend on the tokenizer.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from chatbaker.dist import add_up, world
from chatbaker.model.cache import greedy
from chatbaker.model.llama import Llama
from chatbaker.model.loss import token_losses
from chatbaker.tokens.loader import Batch

Sets = dict[str, list[Batch]]
"""Validation micro-batches per language."""


@torch.no_grad()  # not inference_mode: what the model keeps from here (rotary tables) is used in training too
def bits_per_byte(model: Llama, sets: Sets, token_bytes: np.ndarray, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """{language: {"loss": nats per token, "bits_per_byte": ...}}. token_bytes: bytes of each token id, int [V].

    Each process takes its share of the batches.
    """
    device = model.model.embed_tokens.weight.device
    result = {}
    for language, batches in sets.items():
        nats = count = size = 0.0
        for batch in batches[world().rank :: world().size]:
            ids, targets, docs = (torch.from_numpy(a).to(device) for a in (batch.ids, batch.targets, batch.docs))
            hidden = model(ids, docs, dtype=dtype)
            for row in range(len(ids)):
                nats += float(token_losses(model.logits(hidden[row]), targets[row]).sum(dtype=torch.float64))
            valid = batch.targets[batch.targets >= 0]
            count, size = count + valid.size, size + float(token_bytes[valid].sum())
        nats, count, size = add_up(torch.tensor([nats, count, size], dtype=torch.float64)).tolist()
        result[language] = {
            "loss": round(nats / max(count, 1), 5),
            "bits_per_byte": round(nats / math.log(2) / max(size, 1), 5),
        }
    return result


def samples(
    model: Llama, tokenizer: Tokenizer, prompts: dict[str, list[int]], stop: list[int], dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Greedy continuations of tokenized prompts, as [{"prompt", "text"}]; by the first process."""
    out = []
    for prompt, ids in prompts.items() if world().rank == 0 else ():
        text = tokenizer.decode(greedy(model, ids, 48, stop, dtype), skip_special_tokens=True)
        out.append({"prompt": prompt, "text": text})
    return out
