"""The whole network, read top to bottom: a LLaMA decoder with Hugging Face parameter names.

Pre-norm RMSNorm, rotary positions (rotate-half), grouped-query attention, SwiGLU, no biases, tied or untied head
(Touvron et al., 2023, arXiv:2307.09288). A state dict of this module is a state dict of `LlamaForCausalLM`.

Activations have the dtype that `forward` is told to compute in; weights are cast to it where they are used, so the
parameters may be fp32 masters on a CPU or the bf16 copies that FSDP gathers.

Shape suffixes: B batch, T query time, S key time, D model, H query heads, G key/value heads, K head dimension,
F feed-forward, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatbaker.model.attention import attend, document_mask
from chatbaker.model.cache import KVCache
from chatbaker.model.config import LlamaConfig


class Linear(nn.Linear):
    """A matrix without bias, cast to the activation's dtype where it is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean taken in fp32 (Zhang and Sennrich, 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * wide.to(x.dtype)


def rope_tables(config: LlamaConfig, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin, each [seq_len, head_dim], fp32 (Su et al., 2021; the halves repeat, as rotate-half needs)."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    angle = torch.outer(
        torch.arange(config.seq_len, dtype=torch.float32, device=device), 1.0 / config.rope_theta**exponent
    )
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x_BHTK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn each pair (i, i + K/2) by its position's angle."""
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-second, first), dim=-1) * sin_TK


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = Linear(config.dim, config.heads * config.head_dim)
        self.k_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.v_proj = Linear(config.dim, config.kv_heads * config.head_dim)
        self.o_proj = Linear(config.heads * config.head_dim, config.dim)

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BHTK = self.q_proj(x_BTD).view(B, T, -1, self.head_dim).transpose(1, 2)
        k_BGTK = self.k_proj(x_BTD).view(B, T, -1, self.head_dim).transpose(1, 2)
        v_BGTK = self.v_proj(x_BTD).view(B, T, -1, self.head_dim).transpose(1, 2)
        q_BHTK, k_BGTK = rotate(q_BHTK, *rope), rotate(k_BGTK, *rope)
        if cache is not None:
            k_BGTK, v_BGTK = cache.extend(layer, k_BGTK, v_BGTK)  # now [B, G, S, K]
        out_BHTK = attend(q_BHTK, k_BGTK, v_BGTK, mask)
        return self.o_proj(out_BHTK.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, 2020, arXiv:2002.05202)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.dim, config.ffn_dim)
        self.up_proj = Linear(config.dim, config.ffn_dim)
        self.down_proj = Linear(config.ffn_dim, config.dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rope, mask, cache, layer)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)


class Llama(nn.Module):
    """`forward` gives hidden states; `logits` or `loss.cross_entropy_sum` turn them into what is wanted."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = Linear(config.dim, config.vocab_size)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self._rope: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(
        self,
        ids_BT: Tensor,
        docs_BT: Tensor | None = None,
        cache: KVCache | None = None,
        dtype: torch.dtype | None = None,
        tree: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] after the last norm.

        ids_BT: token ids, int64. docs_BT: a document number per token; a token sees only its own document. None: one
        document. cache: keys and values of earlier tokens; filled and advanced here. dtype: what to compute in,
        the embedding's own where None. tree: texts that share beginnings, each beginning given once; the position of
        each token [B, T] and which tokens it sees, itself too, bool [B, 1, T, T].
        """
        T, start = ids_BT.shape[1], cache.length if cache is not None else 0
        if tree is None and start + T > self.config.seq_len:
            raise ValueError(f"{start + T} tokens, but the context is {self.config.seq_len}")
        x_BTD = self.model.embed_tokens(ids_BT)
        if dtype is not None:
            x_BTD = x_BTD.to(dtype)
        mask = document_mask(docs_BT, x_BTD.dtype) if docs_BT is not None else None
        cos, sin = self._rope_for(x_BTD)
        rope = cos[start : start + T], sin[start : start + T]
        if tree is not None:
            positions_BT, mask = tree
            rope = cos[positions_BT][:, None], sin[positions_BT][:, None]
        for i, block in enumerate(self.model.layers):
            x_BTD = block(x_BTD, rope, mask, cache, i)
        if cache is not None:
            cache.length += T
        return self.model.norm(x_BTD)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self.lm_head(hidden)

    def _rope_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # Not buffers: they are no part of the weights, and a model built on the meta device must not lose them.
        key = (x.device, x.dtype)
        if key not in self._rope:
            cos, sin = rope_tables(self.config, x.device)
            self._rope[key] = (cos.to(x.dtype), sin.to(x.dtype))
        return self._rope[key]


@torch.no_grad()
def init_weights(model: Llama, seed: int) -> None:
    """The start of training, as a table. Blocks begin as the identity: what writes to the residual stream is zero.

    | parameter                    | start                        |
    |------------------------------|------------------------------|
    | embedding and (untied) head  | normal, 0.02                 |
    | q, k, v, gate, up            | normal, 1 / sqrt(inputs)     |
    | o, down                      | zero                         |
    | norms                        | one                          |
    """
    if model.config.tied:
        model.lm_head.weight = model.model.embed_tokens.weight  # a model built on meta comes here with two
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            value = torch.randn(parameter.shape, generator=generator) * 0.02
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            value = torch.zeros(parameter.shape)
        elif name.endswith("norm.weight"):
            value = torch.ones(parameter.shape)
        else:
            value = torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5
        parameter.copy_(value)
