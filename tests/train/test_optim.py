"""The schedule, and who gets which optimizer."""

import pytest
import torch

from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Llama, init_weights
from chatbaker.recipe import Schedule
from chatbaker.train.optim import build_optimizers, clip, rate, set_rate


def test_cosine_warms_up_and_ends_at_the_final_rate():
    schedule = Schedule(warmup=0.1, decay="cosine", final_lr=0.1)
    rates = [rate(schedule, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_wsd_is_flat_then_falls_in_a_line():
    schedule = Schedule(warmup=0.05, decay="wsd", decay_share=0.4, final_lr=0.0)
    rates = [rate(schedule, step, 100) for step in range(100)]
    assert set(rates[5:61]) == {1.0}
    assert rates[80] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(1 / 40)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_very_short_runs_have_a_rate(total):
    for decay in ("cosine", "wsd"):
        assert all(0 < rate(Schedule(decay=decay), step, total) <= 1 for step in range(total))


def test_muon_gets_the_matrices_of_the_blocks_and_every_parameter_is_trained_once():
    model = Llama(LlamaConfig(64, 2, 2, 2, 32, 48, 16, tied=False))
    adamw, muon = build_optimizers(model, Schedule(optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    in_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    in_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert in_muon == {n for n in names.values() if ".layers." in n and "norm" not in n}
    assert in_adamw == set(names.values()) - in_muon
    decayed = {names[id(p)] for g in adamw.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {"model.embed_tokens.weight", "lm_head.weight"}
    (only,) = build_optimizers(model, Schedule(optimizer="adamw"))
    assert sum(len(g["params"]) for g in only.param_groups) == len(names)


def test_rates_follow_the_share_of_each_peak():
    model = Llama(LlamaConfig(64, 1, 2, 2, 32, 48, 16))
    optimizers = build_optimizers(model, Schedule(optimizer="muon", lr=1e-3, muon_lr=0.02))
    set_rate(optimizers, 0.5)
    set_rate(optimizers, 0.25)  # of the peak, not of the rate before
    assert [o.param_groups[0]["lr"] for o in optimizers] == [pytest.approx(2.5e-4), pytest.approx(5e-3)]


def test_clip_scales_to_the_largest_norm_and_reports_the_one_before():
    model = Llama(LlamaConfig(64, 1, 2, 2, 32, 48, 16))
    init_weights(model, 0)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    size = sum(p.numel() for p in parameters) ** 0.5
    assert clip(parameters, 0) == pytest.approx(size, rel=1e-4)
    assert clip(parameters, 1.0) == pytest.approx(size, rel=1e-4)
    assert clip(parameters, 1.0) == pytest.approx(1.0, rel=1e-4)
