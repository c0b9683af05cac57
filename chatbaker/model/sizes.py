"""How large a network is: parameters and floating-point operations, by formula; no tensor is made."""

from __future__ import annotations

from chatbaker.recipe import Model


def matmul_parameters(model: Model, vocab_size: int) -> int:
    """Parameters that multiply activations: the blocks' matrices and the head, not the embedding look-up."""
    head_dim = model.dim // model.heads
    attention = 2 * model.dim * model.dim + 2 * model.dim * model.kv_heads * head_dim
    return model.layers * (attention + 3 * model.dim * model.ffn_dim) + vocab_size * model.dim


def parameters(model: Model, vocab_size: int) -> int:
    """All parameters; a tied head counts once."""
    norms = (2 * model.layers + 1) * model.dim
    untied = 0 if model.tied else vocab_size * model.dim
    return matmul_parameters(model, vocab_size) + norms + untied


def flops_per_token(model: Model, vocab_size: int) -> int:
    """Forward and backward: 6 per matmul parameter + 12 * layers * dim * seq_len for attention counted in full.

    The convention of the PaLM paper (Chowdhery et al., 2022, appendix B); recomputation does not count.
    """
    return 6 * matmul_parameters(model, vocab_size) + 12 * model.layers * model.dim * model.seq_len
