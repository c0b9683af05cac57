"""A Hugging Face LLaMA folder as one GGUF file for llama.cpp: weights, tokenizer, chat template.

Needs no torch: tensors are mapped from the folder, converted a few thousand rows at a time and written straight out,
so memory stays at tens of megabytes whatever the model's size. What llama.cpp wants otherwise than the folder has it:

- rows of the query and key matrices are reordered, because it rotates neighbouring pairs where Hugging Face rotates
  halves; norms are f32;
- the pre-tokenizer is named, not described: only names whose rule is known to be the same are written, anything else
  is refused, as a wrong name silently gives other tokens. It does not normalize: text must come in as NFC.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType, quants
from gguf.gguf_writer import WriterState

from chatbaker.errors import ChatBakerError
from chatbaker.export.hf import chat_template
from chatbaker.export.tensors import Array, Entry, entries, to_bf16, to_f32
from chatbaker.log import progress
from chatbaker.model.config import LlamaConfig, read_config
from chatbaker.rundir import atomic, read_json
from chatbaker.tokens import dialog
from chatbaker.tokens.bpe import QWEN2

GgufType = Literal["f32", "bf16", "q8_0", "q4_0"]
ROWS = 2048
"""Rows converted at a time."""


@dataclass(frozen=True)
class Planned:
    """One tensor of the GGUF file. heads: the query or key heads whose rows are reordered; 0 leaves them."""

    source: str
    name: str
    shape: tuple[int, ...]
    heads: int = 0


def write_gguf(folder: Path, out: Path, dtype: GgufType = "q8_0", title: str = "", licence: str = "") -> Path:
    """Convert a model folder; returns `out`, which appears only when it is whole.

    dtype is that of the matrices. Norms are always f32; with q4_0 the matrix that predicts tokens stays at q8_0, and a
    matrix whose rows are not a multiple of 32 at bf16. title, licence: for the file's metadata; the title's default is
    the folder's name. Raises ChatBakerError for a folder that is not a whole, plain LLaMA with a byte-level BPE.
    """
    config = read_config(folder)
    tensors = entries(folder)
    plan = list(_plan(config))
    _check(plan, tensors, config, folder)
    head = plan[0].name if config.tied else "output.weight"
    types = {item.name: _type(item, dtype, head) for item in plan}

    writer = GGUFWriter(None, "llama")
    writer.add_type("model")
    writer.add_name(title or folder.resolve().name)
    writer.add_license(licence)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ffn_dim)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_file_type(LlamaFileType[("ALL_" if dtype == "f32" else "MOSTLY_") + dtype.upper()])
    writer.add_quantization_version(2)
    _add_tokenizer(writer, folder, config.vocab_size)
    for item in plan:
        block, size = GGML_QUANT_SIZES[types[item.name]]
        nbytes = math.prod(item.shape) // block * size
        writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), nbytes, types[item.name])

    total = sum(math.prod(item.shape) for item in plan)
    with atomic(out, "wb") as file, progress(f"{out.name}: values", total) as bar:
        writer.fout, writer.state = [cast(BufferedWriter, file)], WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(file, file.tell())
        done = 0
        for item in plan:
            pieces = _pieces(item, tensors[item.source], types[item.name])
            writer.write_padding(file, sum(file.write(piece.data) for piece in pieces))
            done += math.prod(item.shape)
            bar.update(done)
    return out


def _plan(config: LlamaConfig) -> Iterator[Planned]:
    """Every tensor in file order, with the shape that config.json promises."""
    dim, ffn, vocab = config.dim, config.ffn_dim, config.vocab_size
    heads, kv_heads, width = config.heads, config.kv_heads, config.head_dim
    yield Planned("model.embed_tokens.weight", "token_embd.weight", (vocab, dim))
    for i in range(config.layers):
        source, name = f"model.layers.{i}", f"blk.{i}"
        yield Planned(f"{source}.input_layernorm.weight", f"{name}.attn_norm.weight", (dim,))
        yield Planned(f"{source}.self_attn.q_proj.weight", f"{name}.attn_q.weight", (heads * width, dim), heads)
        yield Planned(f"{source}.self_attn.k_proj.weight", f"{name}.attn_k.weight", (kv_heads * width, dim), kv_heads)
        yield Planned(f"{source}.self_attn.v_proj.weight", f"{name}.attn_v.weight", (kv_heads * width, dim))
        yield Planned(f"{source}.self_attn.o_proj.weight", f"{name}.attn_output.weight", (dim, heads * width))
        yield Planned(f"{source}.post_attention_layernorm.weight", f"{name}.ffn_norm.weight", (dim,))
        yield Planned(f"{source}.mlp.gate_proj.weight", f"{name}.ffn_gate.weight", (ffn, dim))
        yield Planned(f"{source}.mlp.up_proj.weight", f"{name}.ffn_up.weight", (ffn, dim))
        yield Planned(f"{source}.mlp.down_proj.weight", f"{name}.ffn_down.weight", (dim, ffn))
    yield Planned("model.norm.weight", "output_norm.weight", (dim,))
    if not config.tied:
        yield Planned("lm_head.weight", "output.weight", (vocab, dim))


def _check(plan: list[Planned], tensors: dict[str, Entry], config: LlamaConfig, folder: Path) -> None:
    """The folder holds what config.json promises, and nothing that the GGUF file would leave out."""
    for item in plan:
        if item.source not in tensors:
            raise ChatBakerError(f"no tensor {item.source!r}, which config.json asks for", str(folder))
        if tensors[item.source].shape != item.shape:
            have, want = list(tensors[item.source].shape), list(item.shape)
            raise ChatBakerError(f"{item.source} is {have}, config.json says {want}", str(folder))
    # older transformers stored the rotary table, and some trainers store a tied head: neither carries information
    known = {item.source for item in plan} | ({"lm_head.weight"} if config.tied else set())
    foreign = sorted(name for name in tensors if name not in known and not name.endswith("rotary_emb.inv_freq"))
    if foreign:
        raise ChatBakerError(f"tensor {foreign[0]!r} has no place in a plain LLaMA", str(folder))


def _type(item: Planned, dtype: GgufType, head: str) -> GGMLQuantizationType:
    if len(item.shape) == 1:
        return GGMLQuantizationType.F32
    kind = GGMLQuantizationType["Q8_0" if dtype == "q4_0" and item.name == head else dtype.upper()]
    return GGMLQuantizationType.BF16 if item.shape[-1] % GGML_QUANT_SIZES[kind][0] else kind


def _pieces(item: Planned, entry: Entry, kind: GGMLQuantizationType) -> Iterator[Array]:
    """The converted tensor, some rows at a time."""
    raw = entry.raw()
    order = np.arange(len(raw))
    if item.heads:  # row (head, half, i) becomes row (head, i, half)
        order = order.reshape(item.heads, 2, -1).swapaxes(1, 2).ravel()
    for start in range(0, len(raw), ROWS):
        rows, bf16 = raw[order[start : start + ROWS]], kind == GGMLQuantizationType.BF16
        piece = to_bf16(rows, entry.dtype) if bf16 else quants.quantize(to_f32(rows, entry.dtype), kind)
        yield np.ascontiguousarray(piece)


def pre_tokenizer(tokenizer: dict[str, Any], where: str) -> str:
    """llama.cpp's name for the rule that a parsed tokenizer.json splits text by; raises ChatBakerError if none."""
    normalizer, rule = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer") or {}
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or not model.get("merges") or model.get("ignore_merges"):
        raise ChatBakerError("not a byte-level BPE tokenizer with merges", where)
    if normalizer not in (None, {"type": "NFC"}):
        raise ChatBakerError(f"the normalizer {normalizer.get('type')!r} is not known to llama.cpp", where)
    steps = rule.get("pretokenizers", []) if rule.get("type") == "Sequence" else [rule]
    *splits, last = steps or [{}]
    if last.get("type") == "ByteLevel" and not last.get("add_prefix_space"):
        if not splits and last.get("use_regex", True):
            return "gpt-2"
        if len(splits) == 1 and splits[0].get("type") == "Split" and not last.get("use_regex", True):
            pattern = (splits[0].get("pattern") or {}).get("Regex")
            if pattern == QWEN2 and splits[0].get("behavior") == "Isolated" and not splits[0].get("invert"):
                return "qwen2"
    kinds = " + ".join(str(step.get("type")) for step in steps) or "none"
    hint = "Known: the byte-level rules of GPT-2 and of Qwen2; use the folder itself with --device cuda or transformers"
    raise ChatBakerError(f"the pre-tokenizer ({kinds}) is not one that ChatBaker can name for llama.cpp", where, hint)


def _add_tokenizer(writer: GGUFWriter, folder: Path, rows: int) -> None:
    path = folder / "tokenizer.json"
    tokenizer, config = read_json(path), read_json(folder / "tokenizer_config.json")
    pre = pre_tokenizer(tokenizer, str(path))
    ids: dict[str, int] = dict(tokenizer["model"]["vocab"])
    kinds = dict.fromkeys(ids, TokenType.NORMAL)
    for added in tokenizer.get("added_tokens", []):
        ids[added["content"]] = added["id"]
        kinds[added["content"]] = TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    if max(ids.values()) >= rows:
        raise ChatBakerError(f"{max(ids.values()) + 1} tokens, but the embedding has {rows} rows", str(path))
    tokens = [f"[unused{i}]" for i in range(rows)]
    types = [TokenType.UNUSED] * rows
    for text, i in ids.items():
        tokens[i], types[i] = text, kinds[text]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(bool(config.get("add_bos_token")))
    adders = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    for role, add in adders.items():
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if token not in ids:
                raise ChatBakerError(f"{role}_token {token!r} is not in the vocabulary", str(path))
            add(ids[token])
    jinja = chat_template(folder)
    try:
        template = dialog.detect(jinja, ids)
    except ChatBakerError:  # a foreign format: its own template goes along, which token ends a turn is not known
        if jinja is not None:
            writer.add_chat_template(jinja)
        return
    writer.add_chat_template(jinja or template.jinja)
    writer.add_eot_token_id(ids[template.stop[0]])
