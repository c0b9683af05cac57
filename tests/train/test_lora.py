"""LoRA: gradients by hand, merging, an ordinary model at the end, exact resume."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from chatbaker.errors import ChatBakerError
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Linear, Llama, init_weights
from chatbaker.model.loss import cross_entropy_sum
from chatbaker.recipe import Parallel, Sft, parse
from chatbaker.stages import STAGES, execute
from chatbaker.train import loop
from chatbaker.train.lora import LoraLinear, attach, merge
from chatbaker.train.parallel import prepare

SECTION = Sft(lora_rank=4, lora_alpha=8.0)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda *_: (1e12, "not measured"))


def network(tied=True):
    model = Llama(LlamaConfig(97, 2, 4, 2, 32, 48, 16, tied=tied))
    init_weights(model, 0)
    torch.manual_seed(0)
    for block in model.model.layers:
        torch.nn.init.normal_(block.self_attn.o_proj.weight, std=0.1)
        torch.nn.init.normal_(block.mlp.down_proj.weight, std=0.1)
    return model


def adapted(tied=True):
    """A network with adapters that do something."""
    model = network(tied)
    attach(model, SECTION, seed=3)
    torch.manual_seed(5)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.normal_(module.lora_B, std=0.1)
    return model


def batch():
    torch.manual_seed(1)
    ids = torch.randint(0, 97, (3, 16))
    return ids, torch.randint(0, 97, (3, 16)), torch.arange(16).expand(3, 16) // 9 + 1


def loss(model):
    ids, targets, docs = batch()
    return cross_entropy_sum(model(ids, docs), model.lm_head.weight, targets)


def test_it_starts_as_the_network_and_trains_the_blocks_matrices_alone():
    model, plain = network(), network()
    attach(model, SECTION, seed=3)
    assert torch.equal(model(batch()[0]), plain(batch()[0]))
    trained = {name.rpartition(".") for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {last for _, _, last in trained} == {"lora_A", "lora_B"}
    linear = {name for name, module in plain.model.layers.named_modules() if isinstance(module, Linear)}
    assert {name.removeprefix("model.layers.") for name, _, _ in trained} == linear
    assert len(linear) == 2 * 7


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_the_formula(recompute):
    model, merged = adapted(), adapted()
    merge(merged)
    prepare(model, Sft(compile=False, recompute=recompute), torch.device("cpu"), Parallel())
    merged.requires_grad_(True)
    loss(model).backward()
    loss(merged).backward()
    full = dict(merged.named_modules())
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            dW = full[name].weight.grad  # W' = W + s B A, so dL/dB = s dL/dW' A^T and dL/dA = s B^T dL/dW'
            torch.testing.assert_close(module.lora_B.grad, 2.0 * dW @ module.lora_A.T, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(module.lora_A.grad, 2.0 * module.lora_B.T @ dW, rtol=1e-4, atol=1e-5)
            assert module.weight.grad is None
            assert module.lora_A.grad.abs().max() > 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_are_base_plus_adapter_and_give_the_same_logits(tied):
    model, base = adapted(tied), network(tied).state_dict()
    before = model.logits(model(batch()[0]))
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    parts = {name: (module.lora_A, module.lora_B) for name, module in linear}
    merge(model)
    assert model.state_dict().keys() == base.keys()
    for name, weight in model.state_dict().items():
        if name.removesuffix(".weight") in parts:
            a, b = parts[name.removesuffix(".weight")]
            torch.testing.assert_close(weight, base[name] + 8 / 4 * b @ a, rtol=0, atol=1e-5)
        else:
            assert torch.equal(weight, base[name])
    torch.testing.assert_close(model.logits(model(batch()[0])), before, rtol=0, atol=1e-5)


def tuned(recipe, **knobs):
    data = recipe.model_dump(mode="json", exclude_none=True)
    data["sft"] |= {"lora_rank": 4, "lr": 1e-2, "eval_every": 8, "checkpoint_every": 8, "prompts": ["안녕?"]} | knobs
    return parse(data, "x")


@pytest.fixture
def based(small_recipe, small_run):
    execute(STAGES["pretrain"], small_recipe, small_run)
    return small_run


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_stage_learns_and_leaves_a_plain_model(small_recipe, based, optimizer):
    execute(STAGES["sft"], tuned(small_recipe, optimizer=optimizer, validation=0.1, epochs=3), based)
    rows = [json.loads(line) for line in based.path("sft", "metrics.jsonl").read_text("utf-8").splitlines()]
    scores = [row["eval"]["ko"]["bits_per_byte"] for row in rows if "eval" in row]
    assert scores[-1] < scores[0]
    before, after = (load_file(based.path(s, "model", "model.safetensors")) for s in ("pretrain", "sft"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj." in name}


def test_stopped_and_resumed_it_is_bit_identical_and_another_rank_is_refused(small_recipe, based, stop_at):
    recipe = tuned(small_recipe)
    execute(STAGES["sft"], recipe, based)
    path = based.path("sft", "model", "model.safetensors")
    expected = load_file(path)
    shutil.rmtree(based.path("sft"))
    stop_at(3)
    with pytest.raises(ChatBakerError, match="stopped at step 3, saved"):
        execute(STAGES["sft"], recipe, based)
    with pytest.raises(ChatBakerError, match="lora_rank changed since this checkpoint: 4 then, 0 now"):
        execute(STAGES["sft"], tuned(small_recipe, lora_rank=0), based)
    execute(STAGES["sft"], recipe, based)
    again = load_file(path)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_fp8_is_refused():
    with pytest.raises(ChatBakerError, match="adapters do not multiply in FP8"):
        attach(network(), Sft(lora_rank=4, precision="fp8"), seed=3)
