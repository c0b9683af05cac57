"""Optimizers and the learning-rate schedule.

`muon` gives the blocks' matrices to Muon (momentum orthogonalized by Newton-Schulz steps; Jordan et al., 2024) and
everything else to AdamW; `adamw` gives all to AdamW. Norms and vectors are never decayed.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from chatbaker.recipe import Schedule


def build_optimizers(model: nn.Module, schedule: Schedule) -> list[Optimizer]:
    """One or two optimizers over all parameters; each group remembers its peak rate as `peak`."""
    matrices, tables, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif ".layers." in name and schedule.optimizer == "muon":
            matrices.append(parameter)
        else:
            tables.append(parameter)
    groups = [{"params": tables, "weight_decay": schedule.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = [
        AdamW(groups, lr=schedule.lr, betas=(schedule.beta1, schedule.beta2), eps=1e-8, fused=True)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=schedule.muon_lr, weight_decay=schedule.weight_decay, momentum=0.95))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def rate(schedule: Schedule, step: int, total: int) -> float:
    """The learning rate of step `step` (from 0) as a share of the peak."""
    warmup = max(1, round(schedule.warmup * total))
    if step < warmup:
        return (step + 1) / warmup
    if schedule.decay == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return schedule.final_lr + (1 - schedule.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    falling = max(1, round(schedule.decay_share * total))
    remaining = min(1.0, (total - step) / falling)
    return schedule.final_lr + (1 - schedule.final_lr) * remaining


def set_rate(optimizers: list[Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share


def clip(parameters: list[nn.Parameter], largest: float) -> float:
    """Scale gradients to at most `largest` in norm (0: only measure); return the norm before."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return float(torch.as_tensor(norm))
