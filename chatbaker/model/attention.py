"""Causal attention, with or without document boundaries.

On a CPU, training takes its own path: PyTorch's fused CPU kernel spends most of its time in the backward pass, and
plain matmuls over slices of the queries, compiled, are three times as fast (see docs/log.md). On a GPU with flash
attention (Dao, 2023, arXiv:2307.08691), documents are given by where they start, and nothing of T x T exists.

Shape suffixes as in llama.py: B batch, T query time, S key time, H query heads, G key/value heads, K head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def document_mask(docs_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, T, T]: 0 where a token may look (same document, not later), -inf elsewhere.

    With flash attention: `document_starts`. There, a document is a run of equal numbers within a row.
    """
    if has_flash(docs_BT.device, dtype):
        return document_starts(docs_BT)
    T = docs_BT.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=docs_BT.device).tril()
    seen = (docs_BT[:, :, None] == docs_BT[:, None, :]) & causal
    return torch.zeros(seen.shape, dtype=dtype, device=docs_BT.device).masked_fill(~seen, float("-inf"))[:, None]


def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch's flash kernels compute in `dtype` there."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device)[0] >= 8


def document_starts(docs_BT: Tensor) -> Tensor:
    """Where each document starts among all B * T tokens, and B * T behind it: int32 [documents + 1].

    Counting them waits for the GPU, once a micro-batch.
    """
    first_BT = torch.ones_like(docs_BT, dtype=torch.bool)
    first_BT[:, 1:] = docs_BT[:, 1:] != docs_BT[:, :-1]
    starts = F.pad(first_BT.flatten().nonzero()[:, 0], (0, 1), value=docs_BT.numel()).int()
    torch._dynamo.mark_dynamic(starts, 0)  # one compilation of a block for any number of documents
    return starts


CPU_SLICE = 128
"""Queries attended at one time on a CPU; each slice reads only the keys up to its own end."""


def attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, mask: Tensor | None) -> Tensor:
    """[B, H, T, K]. Without a mask: causal, the queries being the last T of the S tokens. mask: see `document_mask`."""
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    if mask is not None and mask.ndim == 1:
        return _attend_starts(q_BHTK, k_BGSK, v_BGSK, mask)
    if q_BHTK.device.type == "cpu" and mask is not None and torch.is_grad_enabled():
        return _attend_sliced(q_BHTK, k_BGSK, v_BGSK, mask)
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if mask is None and 1 < T < S:
        rows = torch.arange(S - T, S, device=q_BHTK.device)[:, None]
        mask = torch.arange(S, device=q_BHTK.device)[None, :] <= rows
    return F.scaled_dot_product_attention(
        q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=mask is None and T > 1, enable_gqa=grouped
    )


def _repeated(x_BGTK: Tensor, heads: int) -> Tensor:
    groups = heads // x_BGTK.shape[1]
    return x_BGTK.repeat_interleave(groups, 1) if groups > 1 else x_BGTK


def _attend_starts(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, starts: Tensor) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # brings torch's whole compiler along

    B, H, T, K = q_BHTK.shape
    rows = [x.transpose(1, 2).reshape(B * T, H, K) for x in (q_BHTK, _repeated(k_BGTK, H), _repeated(v_BGTK, H))]
    if K % 8:  # what the kernel asks for
        rows = [F.pad(x, (0, -K % 8)) for x in rows]
    # No document is longer than T; its exact length would have to be waited for, and compiled anew.
    out = varlen_attn(*rows, starts, starts, T, T, scale=K**-0.5, window_size=(-1, 0))
    return out[..., :K].view(B, T, H, K).transpose(1, 2)


def _attend_sliced(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor, mask_B1TT: Tensor) -> Tensor:
    k_BGTK, v_BGTK = _repeated(k_BGTK, q_BHTK.shape[1]), _repeated(v_BGTK, q_BHTK.shape[1])
    q_BHTK = q_BHTK * q_BHTK.shape[-1] ** -0.5
    slices = []
    for start in range(0, q_BHTK.shape[2], CPU_SLICE):
        end = start + CPU_SLICE
        scores = q_BHTK[:, :, start:end] @ k_BGTK[:, :, :end].transpose(-1, -2)
        weights = torch.softmax(scores.float() + mask_B1TT[:, :, start:end, :end].float(), dim=-1)
        slices.append(weights.to(q_BHTK.dtype) @ v_BGTK[:, :, :end])
    return torch.cat(slices, dim=2)
