"""The one loss: summed cross-entropy of next tokens, computed in slices so that the full logits never exist.

Dividing by the number of valid tokens is left to the caller, who knows the global count over micro-batches and ranks.

Shape suffixes: N tokens, D model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

IGNORE = -100
"""The target of a token that carries no loss."""

SLICE = 1024
"""Tokens whose logits exist at one time on a CPU."""

GPU_LOGITS = 2**29
"""Bytes of logits at one time on a GPU: each slice also passes over the head's fp32 gradient, so they are few."""


def slice_size(tokens: int, logit_bytes: int, device: str) -> int:
    """Tokens of a slice; on a GPU all alike if they can be, so that one compilation fits. logit_bytes: of one token."""
    if device == "cpu":
        return SLICE
    least = max(1, math.ceil(tokens / max(SLICE, GPU_LOGITS // logit_bytes)))
    count = next((count for count in range(least, 2 * least) if tokens % count == 0), least)
    return max(1, math.ceil(tokens / count))


def token_losses(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Cross-entropy per token [N] in fp32; 0 where the target is IGNORE."""
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, ignore_index=IGNORE, reduction="none")


def _slice_loss_and_grad(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss (fp32) and d loss / d logits = softmax - one-hot (dtype of the logits)."""
    valid = targets_N != IGNORE
    wide = logits_NV.float()
    largest = wide.amax(-1, keepdim=True)
    log_z = largest + torch.exp(wide - largest).sum(-1, keepdim=True).log()
    target = wide.gather(1, targets_N.clamp(min=0)[:, None])
    loss = ((log_z - target).squeeze(1) * valid).sum()
    one_hot = torch.arange(wide.shape[1], device=wide.device) == targets_N[:, None]
    return loss, ((torch.exp(wide - log_z) - one_hot.float()) * valid[:, None]).to(logits_NV.dtype)


@lru_cache(maxsize=1)
def _compiled() -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_slice_loss_and_grad)


class _SlicedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, compiled: bool, trained: int
    ) -> Tensor:
        loss_and_grad = _compiled() if compiled else _slice_loss_and_grad
        weight = weight_VD.to(hidden_ND.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.zeros_like(hidden_ND)
        learning = ctx.needs_input_grad[1]  # a frozen head has no gradient
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if learning else None
        step = slice_size(len(hidden_ND), len(weight) * weight.element_size(), hidden_ND.device.type)
        order = (targets_N == IGNORE).int().argsort(stable=True)  # slices of one shape: the last ones nobody needs
        for start in range(0, trained, step):
            rows = order[start : start + step]
            hidden = hidden_ND[rows]
            loss, grad = loss_and_grad(hidden @ weight.T, targets_N[rows])
            total += loss
            grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ hidden
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight_VD.dtype) if grad_weight is not None else None)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        grad_weight = grad_weight * grads[0] if grad_weight is not None else None
        return grad_hidden * grads[0], grad_weight, None, None, None


def cross_entropy_sum(
    hidden: Tensor, weight_VD: Tensor, targets: Tensor, compiled: bool = False, trained: int | None = None
) -> Tensor:
    """Sum over valid tokens of -log p(target), fp32 scalar. hidden [..., D], targets [...] with IGNORE allowed.

    compiled: fuse the arithmetic between the matmuls; needs what torch.compile needs. trained: how many targets are not
    IGNORE, where it is known (a GPU would have to be waited for, to count): the others then have no logits, but for
    those that fill the last slice.
    """
    trained = targets.numel() if trained is None else trained
    hidden_ND = hidden.reshape(-1, hidden.shape[-1])
    return _SlicedCrossEntropy.apply(hidden_ND, weight_VD, targets.reshape(-1), compiled, trained)
