"""A model as a folder: there and back, and what is said of a broken one."""

import json

import pytest
import torch

from chatbaker.errors import ChatBakerError
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Llama, init_weights
from chatbaker.model.sizes import matmul_parameters, parameters
from chatbaker.model.weights import load_model, save_model
from chatbaker.recipe import Model


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def saved(request, tmp_path):
    model = Llama(LlamaConfig(64, 2, 4, 2, 32, 48, 32, tied=request.param))
    init_weights(model, 3)
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tokenizer / name).write_text("{}", encoding="utf-8")
    save_model(model, tmp_path / "model", tokenizer, 0, 2)
    return model, tmp_path / "model"


def test_round_trip_and_transformers_reads_it(saved):
    from transformers import LlamaForCausalLM

    model, folder = saved
    ids = torch.arange(20)[None]
    again, theirs = load_model(folder), LlamaForCausalLM.from_pretrained(folder)
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(again(ids), model(ids))
        assert (theirs(ids).logits - model.logits(model(ids))).abs().max() <= 1e-5
    assert theirs.config.eos_token_id == 2
    assert load_model(folder, dtype=torch.bfloat16).model.norm.weight.dtype == torch.bfloat16


def test_the_count_of_parameters_is_the_formula(saved):
    model, _ = saved
    shape = Model(layers=2, heads=4, kv_heads=2, dim=32, ffn_dim=48, seq_len=32, tied=model.config.tied)
    assert parameters(shape, 64) == sum(p.numel() for p in model.parameters())
    reference = Model(layers=24, heads=32, kv_heads=32, dim=2048, ffn_dim=5632, seq_len=2048, tied=False)
    assert round(parameters(reference, 50_304) / 1e9, 2) == 1.44
    assert matmul_parameters(reference, 50_304) < parameters(reference, 50_304)


def test_a_broken_folder_is_named(saved, tmp_path):
    _, folder = saved
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ChatBakerError, match="broken weights file"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(ChatBakerError, match="no such file"):
        load_model(folder)
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for change, message in (
        ({"num_hidden_layers": 3}, "do not fit"),
        ({"model_type": "gpt2"}, "not a LLaMA"),
        ({"rope_scaling": {"rope_type": "yarn"}, "rope_parameters": None}, "rotary scaling"),
        ({"attention_bias": True}, "biases"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
        with pytest.raises(ChatBakerError, match=message):
            load_model(folder)
    with pytest.raises(ChatBakerError, match="not a model folder"):
        load_model(tmp_path)
