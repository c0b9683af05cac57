"""The GGUF file holds the model that the folder holds, and llama.cpp reads text as training does."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from chatbaker.errors import ChatBakerError
from chatbaker.export.gguf import write_gguf
from chatbaker.export.parity import Probe
from chatbaker.tokens import dialog

Lines = Callable[[int, int], list[str]]
Make = Callable[..., Path]

SHAPES: dict[str, dict[str, Any]] = {
    "mha-tied": {},
    "mha-untied": {"tie_word_embeddings": False},
    "gqa-tied": {"num_key_value_heads": 2, "rope_theta": 500_000.0},
    "gqa-untied": {"num_key_value_heads": 1, "tie_word_embeddings": False},
}


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def matrices(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """{name: (type, dequantized values)}."""
    reader = gguf.GGUFReader(path)
    return {t.name: (t.tensor_type.name, gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors}


@pytest.mark.parametrize("kind", ["ours", "published"])
def test_token_ids_are_equal(
    kind: str, make: Make, lines: Lines, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    ours, texts = tokenizers[kind], [unicodedata.normalize("NFC", line) for line in lines(2000, 2)]
    probe = Probe(write_gguf(make(kind), tmp_path / "m.gguf"))
    assert [t for t in texts if ours.encode(t, add_special_tokens=False).ids != probe.tokens(t)] == []


def test_decomposed_text_is_for_the_caller_to_compose(
    make: Make, tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    text = unicodedata.normalize("NFD", "닭볶음탕 값 café")
    ids = tokenizers["ours"].encode(text, add_special_tokens=False).ids
    probe = Probe(write_gguf(make(), tmp_path / "m.gguf"))
    assert probe.tokens(unicodedata.normalize("NFC", text)) == ids != probe.tokens(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_top1_is_equal(shape: str, make: Make, lines: Lines, tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    texts = lines(16, 3)
    folder = make(learn=texts, dtype=torch.bfloat16, **SHAPES[shape])
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    same: list[bool] = []
    probe = Probe(write_gguf(folder, tmp_path / "m.gguf", "bf16"))
    for text in texts:
        ids = tokenizers["ours"].encode(text, add_special_tokens=False).ids
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        same += [a == b for a, b in zip(expected, probe.top1(ids), strict=True)]
    assert len(same) > 200
    assert sum(same) / len(same) >= 0.99


@pytest.mark.parametrize(("dtype", "tolerance"), [("f32", 0), ("bf16", 2**-8), ("q8_0", 1 / 127), ("q4_0", 1 / 7)])
@pytest.mark.parametrize("tied", [True, False])
def test_values_are_those_of_the_folder(dtype: Any, tolerance: float, tied: bool, make: Make, tmp_path: Path) -> None:
    """Within half a step of each block's largest value (a whole step at its ends), 32 values to a block."""
    folder = make(tie_word_embeddings=tied)
    source = LlamaForCausalLM.from_pretrained(folder).state_dict()
    written = matrices(write_gguf(folder, tmp_path / "m.gguf", dtype))
    assert ("output.weight" in written) == (not tied)
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    }
    head = "token_embd.weight" if tied else "output.weight"
    for name in names.keys() & written.keys():
        kind, values = written[name]
        assert kind == ("Q8_0" if dtype == "q4_0" and name == head else dtype.upper())
        expected = source[names[name]].numpy()
        scale = abs(expected).reshape(len(expected), -1, 32).max(-1).repeat(32, axis=-1)
        assert (abs(values - expected) <= tolerance * scale + 1e-9).all()
    kind, norm = written["output_norm.weight"]
    assert kind == "F32"
    assert (norm == source["model.norm.weight"].numpy()).all()


def test_rows_that_no_block_fits_stay_bf16(make: Make, tmp_path: Path) -> None:
    written = matrices(write_gguf(make(intermediate_size=100), tmp_path / "m.gguf", "q4_0"))
    assert written["blk.0.ffn_down.weight"][0] == "BF16"
    assert written["blk.0.ffn_up.weight"][0] == "Q4_0"


def test_metadata_of_ours(make: Make, tmp_path: Path) -> None:
    folder = make(num_key_value_heads=2, rope_theta=50_000.0)
    have = fields(write_gguf(folder, tmp_path / "m.gguf", "q8_0", "빵 모델", "apache-2.0"))
    assert have["general.architecture"] == "llama"
    assert have["general.name"] == "빵 모델"
    assert have["general.license"] == "apache-2.0"
    assert have["llama.attention.head_count_kv"] == 2
    assert have["llama.rope.freq_base"] == 50_000
    assert have["llama.context_length"] == 256
    assert have["llama.vocab_size"] == 608
    assert have["tokenizer.ggml.pre"] == "qwen2"
    assert have["tokenizer.chat_template"] == dialog.CHATML.jinja
    assert have["tokenizer.ggml.eos_token_id"] == have["tokenizer.ggml.eot_token_id"] == 2
    assert have["tokenizer.ggml.bos_token_id"] == have["tokenizer.ggml.padding_token_id"] == 0
    assert have["tokenizer.ggml.add_bos_token"] is False
    kinds = have["tokenizer.ggml.token_type"]
    assert kinds[:4] == [3, 3, 3, 1]
    assert kinds[600:] == [5] * 8


def test_metadata_of_the_published_kind(make: Make, tmp_path: Path) -> None:
    """No template is named in its files: the built-in one goes along."""
    have = fields(write_gguf(make("published"), tmp_path / "m.gguf"))
    assert have["tokenizer.ggml.pre"] == "gpt-2"
    assert have["tokenizer.chat_template"] == dialog.HUMAN_BOT.jinja
    assert have["tokenizer.ggml.eos_token_id"] == have["tokenizer.ggml.eot_token_id"] == 0
    assert "tokenizer.ggml.bos_token_id" not in have


def test_shards_and_bf16_sources_give_the_same_file(make: Make, tmp_path: Path) -> None:
    whole, shards = make(dtype=torch.bfloat16), make(dtype=torch.bfloat16, shard="50KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    files = [write_gguf(folder, tmp_path / f"{i}.gguf", "bf16") for i, folder in enumerate((whole, shards))]
    assert files[0].read_bytes() == files[1].read_bytes()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def unknown_split(folder: Path) -> None:
    step = {"type": "Split", "pattern": {"Regex": r"\\p{Hangul}+"}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": [step, last]})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "not a model folder"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "save_pretrained"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (lambda f: (f / "tokenizer.json").write_text('{"model": '), "not valid JSON"),
        (lambda f: truncate(f / "model.safetensors"), "cut short"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "cut short"),
        (unknown_split, r"pre-tokenizer \(Split \+ ByteLevel\)"),
        (lambda f: edit(f / "tokenizer.json", normalizer={"type": "NFKC"}), "normalizer 'NFKC'"),
        (lambda f: edit(f / "tokenizer_config.json", eos_token="<eos>"), "'<eos>' is not in the vocabulary"),
        (lambda f: edit(f / "config.json", model_type="mamba"), "not a LLaMA"),
        (lambda f: edit(f / "config.json", rope_parameters={"rope_type": "yarn"}), "rotary scaling"),
        (lambda f: edit(f / "config.json", num_hidden_layers=3), "no tensor 'model.layers.2"),
        (lambda f: edit(f / "config.json", num_hidden_layers=1), "has no place"),
        (lambda f: edit(f / "config.json", vocab_size=700), "config.json says"),
        (lambda f: edit(f / "config.json", hidden_size=None), "hidden_size is missing"),
    ],
)  # fmt: skip
def test_a_broken_folder_is_named(spoil: Callable[[Path], Any], message: str, make: Make, tmp_path: Path) -> None:
    folder = make()
    spoil(folder)
    with pytest.raises(ChatBakerError, match=message):
        write_gguf(folder, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_survives_a_failure(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_gguf(make(), tmp_path / "m.gguf")
    before = out.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.quants, "quantize", full)
    with pytest.raises(ChatBakerError, match="disk is full"):
        write_gguf(make(), out)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_the_probe_names_what_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF then nothing")
    for name, message in (("bad.gguf", "not a GGUF file"), ("none.gguf", "no such file")):
        with pytest.raises(ChatBakerError, match=message):
            Probe(tmp_path / name)
