"""Optimizers and the learning-rate schedule.

`muon` gives the blocks' matrices to Muon (momentum orthogonalized by Newton-Schulz steps; Jordan et al., 2024) and
everything else to AdamW; `adamw` gives all to AdamW. Norms and vectors are never decayed.

Where the matrices are spread over processes, each is put together on one process, orthogonalized there as in a single
process, and its rows handed back: every process of a group has a matrix of its own, and all work at the same time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import AdamW, Muon, Optimizer
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

from chatbaker.dist import add_up, world
from chatbaker.recipe import Schedule


class ShardedMuon(Muon):
    """Muon over matrices whose rows are spread over a mesh, the last dimension of which shards."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step; `closure` is there for the base class alone."""
        for group in self.param_groups:
            parameters: list[DTensor] = [p for p in group["params"] if p.grad is not None]
            sharing = parameters[0].device_mesh.get_group(-1)
            for first in range(0, len(parameters), sharing.size()):
                self._take_turns(parameters[first : first + sharing.size()], sharing, group)

    def _take_turns(self, parameters: list[DTensor], sharing: dist.ProcessGroup, group: dict[str, Any]) -> None:
        own, device = torch.empty(0), parameters[0].device
        for turn, parameter in enumerate(parameters):
            state, grad = self.state[parameter], parameter.grad
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(grad)
            state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
            matrix = grad.lerp(state["momentum_buffer"], group["momentum"]).full_tensor()
            if turn == sharing.rank():
                own = matrix
        if sharing.rank() < len(parameters):  # all at the same time: only after the last one is gathered
            own = _zeropower_via_newtonschulz(own, group["ns_coefficients"], group["ns_steps"], group["eps"])
        for turn, parameter in enumerate(parameters):
            mine = turn == sharing.rank()
            update = own.contiguous() if mine else torch.empty(parameter.shape, dtype=torch.bfloat16, device=device)
            dist.broadcast(update, group=sharing, group_src=turn)
            mesh = parameter.device_mesh
            rows = DTensor.from_local(update, mesh, [Replicate()] * mesh.ndim, run_check=False)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameter.shape)
            parameter.add_(rows.redistribute(mesh, parameter.placements), alpha=-rate)


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
        muon = ShardedMuon if isinstance(matrices[0], DTensor) else Muon
        optimizers.append(muon(matrices, lr=schedule.muon_lr, weight_decay=schedule.weight_decay, momentum=0.95))
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
    """Scale gradients to at most `largest` in norm over all processes (0: only measure); return the norm before.

    Copies of a gradient (HSDP) differ where a card errs: with their mean, every process sees the same fault.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = add_up(norm.full_tensor()) / world().size if isinstance(norm, DTensor) else norm
    if largest:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return float(torch.as_tensor(norm))
