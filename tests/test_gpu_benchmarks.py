"""benchmarks/gpu on a CPU, tiny: the figures follow from each other. And of the GPU's paths what a CPU can check."""

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from chatbaker.errors import ChatBakerError
from chatbaker.model import loss as losses
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Linear, Llama
from chatbaker.model.loss import cross_entropy_sum, slice_size
from chatbaker.recipe import Schedule
from chatbaker.train import parallel
from chatbaker.train.parallel import pick_dtype, prepare, to_fp8

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "gpu"
QUICK = ["--rounds", "2", "--steps", "1"]


@pytest.fixture
def bench(monkeypatch, capsys):
    """name, options -> what `python benchmarks/gpu/NAME.py --tiny --json OPTIONS` prints."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the figures below are a CPU's

    def run(name, *options):
        spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        capsys.readouterr()
        module.main(["--tiny", "--json", *options])
        found = json.loads(capsys.readouterr().out)
        assert found["versions"]["torch"] == torch.__version__
        assert found["command"].endswith(" ".join(["--tiny", "--json", *options]))
        assert found["device"]
        return found

    return run


def check_speeds(found):
    for row in found["rows"]:
        assert row["min"] <= row["tokens_per_second"] <= row["max"]
        expected = row["tokens_per_second"] * row["flops_per_token"] / found["peak_flops"]
        assert row["mfu"] == pytest.approx(expected)


def test_pretraining(bench):
    found = bench("pretrain", "--against", "transformers", *QUICK)
    check_speeds(found)
    assert [row["contender"].split(",")[0] for row in found["rows"]] == ["ours", "transformers"]
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 96) + 512 * 64
    assert found["flops_per_token"] == 6 * matrices + 12 * 2 * 64 * 64
    assert found["tokens_per_step"] == 64 * found["micro_batch"] * found["accumulate"]
    assert "transformers" in found["versions"]


def test_others_train_the_same_network(bench, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import training

    model, vocab = training.reference(tiny=True)
    schedule, device = Schedule(micro_batch=2, precision="fp32", compile=False), torch.device("cpu")
    data = training.Windows(model, vocab, 4)
    _, parameters = training.build(model, vocab, schedule, device, data)
    network, _ = training._transformers(model, vocab, False)
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in network.parameters())
    full, vocab = training.reference(tiny=False)
    assert (full.layers, full.dim, full.seq_len, vocab) == (24, 2048, 2048, 50_304)
    monkeypatch.setitem(sys.modules, "litgpt", None)
    with pytest.raises(ChatBakerError, match="--against: litgpt is not installed"):
        bench("pretrain", "--against", "litgpt", *QUICK)


def test_packed_sft_counts_no_padding(bench):
    found = bench("sft", *QUICK)
    check_speeds(found)
    plain, packed = found["rows"]
    assert packed["flops_per_token"] < plain["flops_per_token"] == found["flops_per_token"]  # half needs no logits
    assert found["of_pretraining"] == pytest.approx(packed["tokens_per_second"] / plain["tokens_per_second"])
    assert 0.7 < found["rows_filled"] < 1


def test_decoding(bench):
    found = bench("decode")
    for row in found["rows"]:
        assert row["tokens_per_second"] == pytest.approx(1000 / row["ms_per_token"])
        assert row["gb_per_second"] == pytest.approx(found["bytes_per_token"] * row["tokens_per_second"] / 1e9)
        assert row["share"] == pytest.approx(row["gb_per_second"] / found["copy_gb_per_second"])
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 96) + 512 * 64 + 5 * 64
    assert found["bytes_per_token"] == 4 * (weights + 2 * 2 * 64 * (8 + 8))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(bench):
    found = bench("memory", "--accumulate", "1")
    assert [row["recompute"] for row in found["rows"]] == ["none", "per block"]
    for row in found["rows"]:
        assert row["difference"] == pytest.approx(row["predicted_mb"] / row["measured_mb"] - 1)
        assert abs(row["difference"]) < 0.2
    assert found["rows"][1]["measured_mb"] < found["rows"][0]["measured_mb"]


def test_a_mistake_is_one_line():
    command = [sys.executable, str(FOLDER / "pretrain.py"), "--tiny", "--precision", "fp8"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        'precision: a CPU does not multiply FP8; cards from Ada and Hopper on do. Take "bf16", or "auto"'
    )


def test_a_table_for_people(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(FOLDER))
    import training

    args = training.options("text", ["--tiny"])
    rows = [{"contender": "ours", "tokens_per_second": 61_234.5, "ms": 0.1234567, "mfu": 0.5612}]
    training.show(args, torch.device("cpu"), rows, flops_per_token=9_225_000_000, rows_filled=0.98)
    *head, titles, line, row = capsys.readouterr().out.splitlines()
    assert f"versions: torch {torch.__version__}" in "\n".join(head)
    assert "rows filled: 98.0%" in head
    assert "flops per token: 9,225,000,000" in head
    assert (titles, line) == ("| contender | tokens_per_second | ms | mfu |", "|---|---|---|---|")
    assert row == "| ours | 61,234 | 0.1235 | 56.1% |"


def test_the_page_names_every_benchmark():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    for path in FOLDER.glob("*.py"):
        if path.stem != "training":
            assert f"python benchmarks/gpu/{path.name}" in page


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    return torch.device("cuda")


def test_fp8_takes_the_matrices_of_the_blocks(monkeypatch, hopper):
    """What torchao would be given; the conversion itself is torchao's."""
    taken = []

    def convert(module, *, module_filter_fn):
        for name, part in module.named_modules():
            if isinstance(part, torch.nn.Linear) and module_filter_fn(part, name):
                taken.append(name)

    library = types.SimpleNamespace(convert_to_float8_training=convert)
    monkeypatch.setitem(sys.modules, "torchao", types.SimpleNamespace(float8=library))
    monkeypatch.setitem(sys.modules, "torchao.float8", library)
    with torch.device("meta"):
        model = Llama(LlamaConfig(100, layers=2, heads=4, kv_heads=2, dim=64, ffn_dim=88, seq_len=16))
    schedule = Schedule(precision="fp8", compile=False)
    prepare(model, schedule, hopper)
    ours = [f"{i}.self_attn.{name}_proj" for i in range(2) for name in "qkvo"]  # 88 is no multiple of 16
    assert taken == ours
    assert isinstance(model.lm_head, Linear)
    assert pick_dtype(schedule, hopper) == torch.bfloat16


def test_fp8_without_the_card_or_the_library_is_one_line(monkeypatch, hopper):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ChatBakerError, match=r"needs the package 'torchao'.*\[fp8\]"):
        to_fp8(Llama(LlamaConfig(64, 1, 2, 2, 32, 48, 16)), hopper)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    with pytest.raises(ChatBakerError, match="NVIDIA A100 does not multiply FP8"):
        parallel.to_fp8(None, hopper)


def test_slices_of_logits_on_a_gpu_are_few_and_alike():
    assert slice_size(16_384, 2 * 50_304, "cpu") == losses.SLICE
    for rows, vocab, slices in ((8, 50_304, 4), (16, 50_304, 8), (12, 50_304, 6), (3, 65_536, 2), (64, 16_384, 8)):
        size = slice_size(rows * 2048, 2 * vocab, "cuda")
        assert size * 2 * vocab <= losses.GPU_LOGITS
        assert size * slices == rows * 2048
    assert slice_size(5_407, 2 * 50_304, "cuda") == 2_704  # a prime
    assert slice_size(0, 100, "cuda") == 1


def test_a_frozen_head_costs_no_gradient():
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    targets = torch.arange(6)
    cross_entropy_sum(hidden, weight, targets).backward()
    expected, hidden.grad = hidden.grad, None
    frozen = cross_entropy_sum(hidden, weight.detach(), targets)
    assert [tensor is None for tensor in frozen.grad_fn.saved_tensors] == [False, True]
    frozen.backward()
    assert torch.equal(hidden.grad, expected)
