"""A head start for embedding and head: which token follows which, learned from counts before the network reads a text.

Blocks begin as the identity, so the network begins as a bigram model: the head times the normed embedding. That model
alone is trained here, on the distribution of next tokens after each of many tokens at a time, which a batch of running
text shows once. One step costs as much as training on about a thousand tokens, and stands for millions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.experimental import implicit_replication

from chatbaker.dist import from_first
from chatbaker.log import progress, say
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Llama
from chatbaker.tokens.loader import PretrainData

COUNTED = 2**25  # tokens of text that are counted at most
ROWS = 2048  # tokens whose followers are learned in one step
RATE = 1e-2  # peak rate of AdamW
WARMUP, DECAY = 10, 0.6  # steps in which it climbs; share of the steps in which it falls
SCALE = 4.0  # root mean square of an embedding at the end: what the blocks add at first must not drown it


@dataclass(frozen=True)
class Bigrams:
    """Pairs of tokens in the order of the first. followers, counts: [pairs]; begin: [V + 1], where each first's are."""

    followers: np.ndarray
    counts: np.ndarray
    begin: np.ndarray


def count(data: PretrainData, vocab_size: int, most: int = COUNTED) -> Bigrams:
    """How often each token follows each other one in `most` tokens, the sources having their shares of the mixture."""
    shares = np.array(data.mixture.counts) / sum(data.mixture.counts)
    pairs, counts = [], []
    for tokens, share in zip(data.tokens, shares, strict=True):
        if share and len(tokens) > 1:
            every = max(1, int(len(tokens) // (share * most)))  # windows evenly spread where not all are wanted
            starts = np.arange(0, len(tokens) - 1, every * data.seq_len)
            parts = [np.asarray(tokens[start : start + data.seq_len + 1], np.int64) for start in starts]
            found, times = np.unique(
                np.concatenate([part[:-1] * vocab_size + part[1:] for part in parts]), return_counts=True
            )
            pairs.append(found)
            counts.append(times * (share / times.sum()))
    merged, where = np.unique(np.concatenate(pairs), return_inverse=True)
    begin = np.searchsorted(merged // vocab_size, np.arange(vocab_size + 1))
    return Bigrams(merged % vocab_size, np.bincount(where, np.concatenate(counts)), begin)


def learn(
    bigrams: Bigrams, config: LlamaConfig, steps: int, seed: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Embedding and head [V, D], fp32, after `steps` steps. dtype: of the matmuls."""
    size, dim = config.vocab_size, config.dim
    share = np.diff(np.concatenate(([0.0], np.cumsum(bigrams.counts)))[bigrams.begin])
    chance = np.sqrt(share) / np.sqrt(share).sum()  # rare tokens come up more often, and count for less then
    draw, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    tables = (torch.randn(size, dim, generator=generator) * 0.02 for _ in range(2))
    embedding, head = (table.to(device).requires_grad_() for table in tables)
    optimizer = torch.optim.AdamW([embedding, head], lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    with progress("bigrams", steps) as bar:
        for step in range(steps):
            rate = min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))
            optimizer.param_groups[0]["lr"] = RATE * rate
            rows = np.sort(draw.choice(size, min(ROWS, int(np.count_nonzero(share))), replace=False, p=chance))
            pairs = np.concatenate([np.arange(bigrams.begin[row], bigrams.begin[row + 1]) for row in rows])
            row = np.repeat(np.arange(len(rows)), np.diff(bigrams.begin)[rows])
            wanted = bigrams.counts[pairs] / chance[rows][row]
            hidden = F.rms_norm(embedding[torch.from_numpy(rows)], (dim,), eps=config.norm_eps).to(dtype)
            places = torch.from_numpy(np.stack([row, bigrams.followers[pairs]])).to(device)
            target = torch.from_numpy(wanted / wanted.sum()).to(device, torch.float32)
            loss, to_hidden, head.grad = gradients(hidden.detach(), head.detach(), places, target)
            hidden.backward(to_hidden)
            optimizer.step()
            optimizer.zero_grad()
            bar.update(step + 1, f"loss {float(loss):.3f}")
    say(f"bigrams: {steps:,} steps, loss {float(loss):.3f}")
    return F.rms_norm(embedding.detach(), (dim,)) * SCALE, head.detach()


def gradients(hidden_ND: Tensor, head_VD: Tensor, places: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy in nats, and its gradients of hidden and head. target: shares of the (row, token) at `places`."""
    head, at = head_VD.to(hidden_ND.dtype), tuple(places)
    weights_N1 = hidden_ND.new_zeros(len(hidden_ND), 1, dtype=torch.float32).index_add(0, at[0], target[:, None])
    probabilities_NV = torch.softmax(hidden_ND @ head.T, -1, dtype=torch.float32)
    loss = -(target * probabilities_NV[at].log()).sum()
    grad_NV = probabilities_NV.mul_(weights_N1).index_put_(at, -target, accumulate=True).to(hidden_ND.dtype)
    return loss, grad_NV @ head, (grad_NV.T @ hidden_ND).float()


@torch.no_grad()
def head_start(model: Llama, data: PretrainData, steps: int, seed: int, dtype: torch.dtype) -> None:
    """Put what is learned into a model that is about to begin, in place; the first process works. 0 steps: nothing."""
    if not steps:
        return
    config, device = model.config, model.model.embed_tokens.weight.device

    def make() -> list[Tensor]:
        with torch.enable_grad():
            tables = learn(count(data, config.vocab_size), config, steps, seed, dtype, device)
        return [table.cpu() for table in tables]

    embedding, head = from_first(make)
    with implicit_replication():
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(head)
