"""Causal attention, with or without document boundaries.

On a CPU, training takes its own path: PyTorch's fused CPU kernel spends most of its time in the backward pass, and
plain matmuls over slices of the queries, compiled, are three times as fast (see docs/log.md).

Shape suffixes as in llama.py: B batch, T query time, S key time, H query heads, G key/value heads, K head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def document_mask(docs_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, T, T]: 0 where a token may look (same document, not later), -inf elsewhere."""
    T = docs_BT.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=docs_BT.device).tril()
    seen = (docs_BT[:, :, None] == docs_BT[:, None, :]) & causal
    return torch.zeros(seen.shape, dtype=dtype, device=docs_BT.device).masked_fill(~seen, float("-inf"))[:, None]


CPU_SLICE = 128
"""Queries attended at one time on a CPU; each slice reads only the keys up to its own end."""


def attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None) -> Tensor:
    """[B, H, T, K]. Without a mask: causal, the queries being the last T of the S tokens."""
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    if q_BHTK.device.type == "cpu" and mask is not None and torch.is_grad_enabled():
        return _attend_sliced(q_BHTK, k_BGSK, v_BGSK, mask)
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if mask is None and 1 < T < S:
        rows = torch.arange(S - T, S, device=q_BHTK.device)[:, None]
        mask = torch.arange(S, device=q_BHTK.device)[None, :] <= rows
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=grouped
    )


def _attend_sliced(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask_B1TT: Tensor) -> Tensor:
    groups = q_BHTK.shape[1] // k_BGTK.shape[1]
    if groups > 1:
        k_BGTK, v_BGTK = k_BGTK.repeat_interleave(groups, 1), v_BGTK.repeat_interleave(groups, 1)
    q_BHTK = q_BHTK * q_BHTK.shape[-1] ** -0.5
    slices = []
    for start in range(0, q_BHTK.shape[2], CPU_SLICE):
        end = start + CPU_SLICE
        scores = q_BHTK[:, :, start:end] @ k_BGTK[:, :, :end].transpose(-1, -2)
        weights = torch.softmax(scores.float() + mask_B1TT[:, :, start:end, :end].float(), dim=-1)
        slices.append(weights.to(q_BHTK.dtype) @ v_BGTK[:, :, :end])
    return torch.cat(slices, dim=2)
