"""The planner: the reference's own days, memory against real training, advice that works when taken, the ladder."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from chatbaker import plan as planner
from chatbaker.errors import ChatBakerError
from chatbaker.model.config import LlamaConfig, to_hf
from chatbaker.plan import climb, communication, extrapolate, fit, memory_per_rank, plan, predict, rung
from chatbaker.recipe import Model, dump, load
from chatbaker.rundir import RunDir, write_json

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "plan_memory.py"
REFERENCE = load("1.3b")


@pytest.fixture
def no_card(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def test_the_references_six_days():
    found = predict(REFERENCE, 256, "a100-80gb", mfu=0.223)
    assert found["total"]["days"] == pytest.approx(6, rel=0.1)
    assert found["speed"]["per_gpu"] == pytest.approx(7_535, rel=0.01)
    assert found["flops_per_token"]["attention_full"] == pytest.approx(9.225e9, rel=1e-3)
    assert found["total"]["gpu_hours"] == pytest.approx(256 * 24 * found["total"]["days"])
    others = predict(REFERENCE, 256, "a100-80gb")  # at what others measured with this shape and card
    assert others["speed"]["per_gpu"] == pytest.approx(20_513, rel=0.02)
    assert others["total"]["days"] < 2.5


@pytest.mark.parametrize("recipe", [REFERENCE, load("tiny")], ids=lambda recipe: recipe.name)
def test_parameters_are_those_of_the_network(recipe):
    import torch

    from chatbaker.model.llama import Llama

    with torch.device("meta"):
        network = Llama(LlamaConfig(vocab_size=recipe.tokenizer.vocab_size, **recipe.model.model_dump()))
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    if recipe.model.tied:
        sizes.pop("lm_head.weight", None)
    found = predict(recipe, 1, "h100")["parameters"]
    assert found["total"] == sum(sizes.values()) == found["embedding"] + found["blocks"] + found["head"]
    assert found["head"] == sizes.get("lm_head.weight", 0)


def test_slices_are_those_of_the_network():
    from chatbaker.model import attention, loss

    assert (planner.CPU_SLICE, planner.LOSS_SLICE) == (attention.CPU_SLICE, loss.SLICE)
    assert planner.GPU_LOGITS == loss.GPU_LOGITS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_what_a_real_step_takes():
    spec = importlib.util.spec_from_file_location("plan_memory", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    shape = ({**benchmark.SMALL, "layers": 3}, 1_024, 4, 1, {})
    parts = benchmark.predicted(*shape, compiled=False)
    assert parts["activations"] > 0.5 * sum(parts.values())
    assert sum(parts.values()) == pytest.approx(benchmark.measured(*shape, False), rel=0.1)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_activations_on_a_gpu_are_what_autograd_saves(kv_heads, monkeypatch):
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from chatbaker.model import attention
    from chatbaker.model.llama import Llama

    def fused(q, k, v, mask):
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=kv_heads < 4)

    monkeypatch.setattr(attention, "_attend_sliced", fused)
    model, rows = Model(layers=3, heads=4, kv_heads=kv_heads, dim=128, ffn_dim=352, seq_len=256), 2
    network = Llama(LlamaConfig(vocab_size=64, **model.model_dump())).bfloat16()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes() if storage.data_ptr() not in weights else 0
        return tensor

    ids = torch.zeros(rows, model.seq_len, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = network(ids, ids)
    parts = memory_per_rank(model, 65_536, rows, "adamw", "bf16", False, 8, compiled=False)  # the loss is the peak
    assert parts["activations"] == pytest.approx(sum(saved.values()) + hidden.nbytes, rel=0.05)


def test_parts_follow_sharding_optimizer_and_accumulation():
    def parts(optimizer="adamw", shard=1, recompute=False, **more):
        return memory_per_rank(REFERENCE.model, 50_304, 8, optimizer, "bf16", recompute, shard, **more)

    size = 1_439_270_912
    assert parts()["weights"] == 4 * size
    assert parts()["optimizer"] == 8 * size
    assert parts("muon")["optimizer"] == 8 * size - 4 * 24 * (4 * 2048**2 + 3 * 2048 * 5632)
    assert parts(shard=256)["optimizer"] == 8 * size // 256
    assert parts(accumulation=2)["gradients"] == 4 * size
    assert parts(shard=256)["activations"] > 7 * parts(shard=256, recompute=True)["activations"]


@pytest.mark.parametrize(
    ("gpus", "gpu", "shard"), [(1, "a100-40gb", 0), (8, "rtx-4090", 0), (1, "rtx-4090", 0), (64, "l40s", 1)]
)
def test_advice_taken_makes_it_fit(gpus, gpu, shard):
    changes = ["pretrain.micro_batch=64", f"parallel.shard={shard}"]
    found = predict(load("1.3b", changes), gpus, gpu)
    assert not found["fits"]
    words = found["verdict"].partition("would with ")[2].split()
    if "--gpus" in words:
        at = words.index("--gpus")
        gpus = int(words.pop(at + 1))
        words.pop(at)
    assert words
    again = predict(load("1.3b", [*changes, *words]), gpus, gpu)
    assert again["fits"], found["verdict"]


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    most = predict(REFERENCE, 64, "h100")["batch"]["largest_micro_batch"]["none"]
    for micro, fits in ((most, True), (most + 1, False)):
        assert predict(load("1.3b", [f"pretrain.micro_batch={micro}"]), 64, "h100")["fits"] is fits


def test_nothing_helps_where_nothing_fits(no_card):
    verdict = predict(load("1.3b", ["model.dim=65536"]), 1, "cpu")["verdict"]
    assert verdict == "does not fit; nor would more of these help"


def test_communication_by_hand():
    card = {"node": 8, "link_gb_s": 100, "net_gb_s": 10}
    size = 10**9
    one_node = communication(card, size, 2, 1, 8, 8)
    assert one_node == {"gather_and_scatter": pytest.approx(8 * 7 / 8 / 100), "all_reduce": 0}
    groups = communication(card, size, 2, 1, 8, 32)  # an eighth of the fp32 gradients round a ring of four, twice
    assert groups["all_reduce"] == pytest.approx(2 * 4 / 8 * 3 / 4 / 10)
    wide = communication(card, size, 2, 1, 32, 32)  # three quarters of it come from other nodes, by eight ports
    assert wide["gather_and_scatter"] == pytest.approx(max(8 * 31 / 32 / 100, 8 * 3 / 4 / 80))
    slow = predict(load("1.3b", ["pretrain.micro_batch=1"]), 64, "rtx-4090")
    assert not slow["step_seconds"]["hidden"]
    assert slow["step_seconds"]["step"] > slow["step_seconds"]["compute"]


def test_bad_input_is_one_clear_line():
    with pytest.raises(ChatBakerError, match="'a100'.*a100-80gb"):
        predict(REFERENCE, 8, "a100")
    with pytest.raises(ChatBakerError, match="batch_tokens: .*seq_len 2,048 x 7 GPUs"):
        predict(REFERENCE, 7, "h100")
    with pytest.raises(ChatBakerError, match=r"parallel\.shard"):
        predict(load("1.3b", ["parallel.shard=3"]), 8, "h100")


def test_the_machines_own_devices(no_card):
    assert predict(load("tiny"))["gpu"]["name"] == "cpu"
    program = no_card / "nvidia-smi"
    program.write_text("#!/bin/sh\necho NVIDIA A100-SXM4-80GB\necho NVIDIA A100-SXM4-80GB\n", encoding="utf-8")
    program.chmod(0o755)
    found = predict(load("tiny"))["gpu"]
    assert (found["name"], found["count"]) == ("a100-80gb", 2)
    for unknown in ("GeForce 9", "NVIDIA GH200 480GB", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 PCIe"):
        program.write_text(f"#!/bin/sh\necho {unknown}\n", encoding="utf-8")
        with pytest.raises(ChatBakerError, match=unknown.lower()):
            predict(load("tiny"))


def test_planning_needs_no_torch():
    code = "import sys; from chatbaker.plan import plan; from chatbaker.recipe import load; "
    code += "print(plan(load('1.3b'), gpus=256, gpu='h100')); assert 'torch' not in sys.modules"
    page = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, encoding="utf-8")
    assert "1,439,270,912 parameters" in page.stdout


def law(flops):
    return 1.1 + 90 * flops**-0.15


def bake(folder, name, tokens, dim):
    recipe = load("tiny", [f"name={name}", f"pretrain.tokens={tokens}", f"model.dim={dim}"])
    run = RunDir(folder / name)
    config = LlamaConfig(vocab_size=1_000, **recipe.model.model_dump())
    write_json(run.path("pretrain", "model", "config.json"), to_hf(config, "float32", 0, 1))
    run.path("recipe.toml").write_text(dump(recipe), encoding="utf-8")
    steps = tokens // recipe.pretrain.batch_tokens
    rows = [{"step": 1, "eval": {"ko": {"bits_per_byte": 9.0}}}, {"step": steps, "loss": 1.0}]
    run.path("pretrain", "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return run, steps


def test_a_ladder_of_bakes_foretells_the_next(tmp_path):
    paths = []
    for i, dim in enumerate((32, 48, 64, 96, 128)):
        run, steps = bake(tmp_path, f"rung-{i}", 4_096 * 50 * 2**i, dim)
        value = law(steps * 4_096 * _flops(run))
        with open(run.path("pretrain", "metrics.jsonl"), "a", encoding="utf-8") as file:
            scores = {"ko": {"bits_per_byte": value}, "en": {"bits_per_byte": 2 * value}}
            file.write(json.dumps({"step": steps, "eval": scores}) + "\n")
        paths.append(run.root)
    recipe = load("tiny", ["pretrain.tokens=20_000_000"])
    found = json.loads(plan(recipe, as_json=True, ladder=paths[::-1], gpu="cpu"))["ladder"]
    assert [one["run"] for one in found["rungs"]] == [str(path) for path in paths]
    korean = found["languages"]["ko"]
    assert korean["value"] == pytest.approx(law(found["target_flops"]), rel=0.01)
    assert korean["held_out"]["value"] == pytest.approx(korean["held_out"]["measured"], rel=0.01)
    assert korean["low"] <= korean["value"] <= korean["high"]
    assert found["languages"]["en"]["value"] == pytest.approx(2 * korean["value"], rel=0.02)
    text = plan(recipe, gpu="cpu", ladder=paths)
    assert f"ko: {korean['value']:.3f}" in text
    assert "measured" in text


def _flops(run):
    from chatbaker.model.sizes import flops_per_token

    return flops_per_token(load(run.path("recipe.toml")).model, 1_000)  # the tokenizer's size, not the recipe's


def test_three_points_are_a_line_of_logarithms_and_noise_widens_the_interval():
    flops = [1e12, 4e12, 16e12]
    a, b, c = fit(flops, [3.0, 2.4, 1.92])
    assert (a, c) == (0, pytest.approx(0.161, abs=0.001))
    exact = extrapolate(flops, [3.0, 2.4, 1.92], 64e12)
    noisy = extrapolate(flops, [3.0, 2.5, 1.92], 64e12)
    assert exact["value"] == pytest.approx(1.536)
    assert exact["high"] - exact["low"] < 1e-6
    assert noisy["high"] - noisy["low"] > 0.1


def test_what_is_no_ladder(tmp_path):
    run, _ = bake(tmp_path, "one", 409_600, 32)
    points = [rung(run)] * 3
    for rungs in (points[:2], points):
        with pytest.raises(ChatBakerError, match="three or more bakes"):
            climb(rungs, 1e15)
    run.path("pretrain", "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    with pytest.raises(ChatBakerError, match="no evaluation"):
        rung(run)
    with pytest.raises(ChatBakerError, match="not there yet"):
        rung(RunDir(tmp_path / "nothing"))
