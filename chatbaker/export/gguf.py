"""A Hugging Face LLaMA folder as one GGUF file for llama.cpp: weights, tokenizer, chat template.

Needs no torch, and tens of megabytes of memory whatever the model's size: tensors are mapped and converted some rows
at a time. Rows of the query and key matrices are reordered, as llama.cpp rotates neighbouring pairs where Hugging Face
rotates halves. The pre-tokenizer is named, not described: a rule without a known name is refused, as a wrong name
silently gives other tokens. llama.cpp does not normalize: text must come in as NFC.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from io import BufferedWriter
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.gguf_writer import WriterState

from chatbaker.errors import ChatBakerError
from chatbaker.export.hf import chat_template
from chatbaker.export.tensors import Array, Entry, convert, entries
from chatbaker.log import progress
from chatbaker.model.config import LlamaConfig, read_config
from chatbaker.rundir import atomic, read_json
from chatbaker.tokens import dialog
from chatbaker.tokens.bpe import QWEN2

GgufType = Literal["f32", "bf16", "q8_0", "q4_0"]
LAYOUT = read_json(Path(__file__).with_name("gguf_layout.json"))  # in names of LlamaConfig, with kv_dim
ROWS = 2048  # converted at a time
DEFAULTS = {"add_prefix_space": False, "use_regex": True, "invert": False}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{"type": "ByteLevel"}],
    "qwen2": [
        {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated"},
        {"type": "ByteLevel", "use_regex": False},
    ],
}
"""llama.cpp's name for a rule -> its steps in tokenizer.json, what is DEFAULTS left out."""


class Planned(NamedTuple):
    """One tensor of the GGUF file. heads: the query or key heads whose rows are reordered; 0 leaves them."""

    source: str
    name: str
    shape: tuple[int, ...]
    heads: int = 0


def write_gguf(folder: Path, out: Path, dtype: GgufType = "q8_0", title: str = "", licence: str = "") -> Path:
    """Convert a model folder; returns `out`, which appears only when it is whole.

    dtype: of the matrices, but with q4_0 the head stays at q8_0, and what is no multiple of 32 wide at bf16. title: the
    folder's name where empty. Raises ChatBakerError for what is not a whole, plain LLaMA with a byte-level BPE.
    """
    config, tensors = read_config(folder), entries(folder)
    sizes = asdict(config) | {"head_dim": config.head_dim, "kv_dim": config.kv_heads * config.head_dim}
    plan = list(_plan(sizes))
    _check(plan, tensors, config, folder)
    head = plan[0].name if config.tied else "output.weight"
    types = {item.name: _type(item, dtype, head) for item in plan}

    writer = GGUFWriter(None, "llama")
    writer.add_type("model")
    writer.add_name(title or folder.resolve().name)
    writer.add_license(licence)
    for name, size in LAYOUT["metadata"].items():
        getattr(writer, f"add_{name}")(sizes[size])
    writer.add_file_type(LlamaFileType[("ALL_" if dtype == "f32" else "MOSTLY_") + dtype.upper()])
    writer.add_quantization_version(2)
    _add_tokenizer(writer, folder, config.vocab_size)
    for item in plan:
        block, size = GGML_QUANT_SIZES[types[item.name]]
        nbytes = math.prod(item.shape) // block * size
        writer.add_tensor_info(item.name, item.shape, np.dtype(np.float32), nbytes, types[item.name])

    total, done = sum(math.prod(item.shape) for item in plan), 0
    with atomic(out, "wb") as file, progress(f"{out.name}: values", total) as bar:
        writer.fout, writer.state = [cast(BufferedWriter, file)], WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(file, file.tell())
        for item in plan:
            pieces = _pieces(item, tensors[item.source], types[item.name])
            writer.write_padding(file, sum(file.write(piece.data) for piece in pieces))
            done += math.prod(item.shape)
            bar.update(done)
    return out


def _plan(sizes: dict[str, Any]) -> Iterator[Planned]:
    """Every tensor in file order, with the shape that config.json promises."""
    parts = [("first", 0), *(("block", i) for i in range(sizes["layers"])), ("last", 0)]
    for part, i in parts if sizes["tied"] else [*parts, ("untied", 0)]:
        for row in LAYOUT[part]:
            source, name = (f"{row[key].format(i)}.weight" for key in ("source", "name"))
            yield Planned(source, name, tuple(sizes[one] for one in row["shape"]), sizes.get(row.get("reordered"), 0))


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
        yield convert(raw[order[start : start + ROWS]], entry.dtype, kind)


def pre_tokenizer(tokenizer: dict[str, Any], where: str) -> str:
    """llama.cpp's name for the rule that a parsed tokenizer.json splits text by; raises ChatBakerError if none."""
    normalizer, rule = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer") or {}
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or not model.get("merges") or model.get("ignore_merges"):
        raise ChatBakerError("not a byte-level BPE tokenizer with merges", where)
    if normalizer not in (None, {"type": "NFC"}):
        raise ChatBakerError(f"the normalizer {normalizer.get('type')!r} is not known to llama.cpp", where)
    steps = rule.get("pretokenizers", [rule])
    plain = [{key: value for key, value in (DEFAULTS | step).items() if key != "trim_offsets"} for step in steps]
    for name, known in PRE_TOKENIZERS.items():
        if plain == [DEFAULTS | step for step in known]:
            return name
    kinds = " + ".join(str(step.get("type")) for step in steps) or "none"
    hint = "Known: the byte-level rules of GPT-2 and of Qwen2; use the folder itself with --device cuda or transformers"
    raise ChatBakerError(f"the pre-tokenizer ({kinds}) is not one that ChatBaker can name for llama.cpp", where, hint)


def _add_tokenizer(writer: GGUFWriter, folder: Path, rows: int) -> None:
    path = folder / "tokenizer.json"
    tokenizer, config = read_json(path), read_json(folder / "tokenizer_config.json")
    pre = pre_tokenizer(tokenizer, str(path))
    added = tokenizer.get("added_tokens", [])
    kinds = {one["content"]: TokenType.CONTROL if one.get("special") else TokenType.USER_DEFINED for one in added}
    ids: dict[str, int] = tokenizer["model"]["vocab"] | {one["content"]: one["id"] for one in added}
    if max(ids.values()) >= rows:
        raise ChatBakerError(f"{max(ids.values()) + 1} tokens, but the embedding has {rows} rows", str(path))
    tokens, types = [f"[unused{i}]" for i in range(rows)], [TokenType.UNUSED] * rows
    for text, i in ids.items():
        tokens[i], types[i] = text, kinds.get(text, TokenType.NORMAL)
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
