"""The shape of a network, and the same as the config.json of `LlamaForCausalLM`. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbaker.errors import ChatBakerError
from chatbaker.rundir import read_json


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    ffn_dim: int
    seq_len: int
    tied: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


def to_hf(config: LlamaConfig, dtype: str, end_of_text: int, end_of_turn: int) -> dict[str, Any]:
    """config.json of `LlamaForCausalLM`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "max_position_embeddings": config.seq_len,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_turn,
        "pad_token_id": end_of_text,
        "dtype": dtype,
        "use_cache": True,
    }


def from_hf(raw: dict[str, Any], where: str) -> LlamaConfig:
    """Read config.json; raises ChatBakerError where the network is not a LLaMA that this code computes exactly."""
    if raw.get("model_type") != "llama":
        raise ChatBakerError(f"a {raw.get('model_type')!r} model, not a LLaMA", where)
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) not in ("default", None):
        raise ChatBakerError(f"rotary scaling {rope!r} is not supported", where)
    if raw.get("attention_bias") or raw.get("mlp_bias") or raw.get("hidden_act", "silu") != "silu":
        raise ChatBakerError("biases and other activations than silu are not supported", where)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(raw.get(key), int):
            raise ChatBakerError(f"{key} is missing or not a number", where)
    config = LlamaConfig(
        vocab_size=raw["vocab_size"],
        layers=raw["num_hidden_layers"],
        heads=raw["num_attention_heads"],
        kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        dim=raw["hidden_size"],
        ffn_dim=raw["intermediate_size"],
        seq_len=raw.get("max_position_embeddings", 2048),
        tied=raw.get("tie_word_embeddings", False),
        rope_theta=float(raw.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
    )
    if raw.get("head_dim") not in (None, config.head_dim):
        raise ChatBakerError(f"head_dim {raw['head_dim']} is not hidden_size / num_attention_heads", where)
    return config


def read_config(folder: Path) -> LlamaConfig:
    """The network of a model folder; raises ChatBakerError where there is none, or another one."""
    path = folder / "config.json"
    if not path.is_file():
        raise ChatBakerError("no config.json: not a model folder", str(folder))
    return from_hf(read_json(path), str(path))
