"""Faults in the numbers: a bad batch is skipped, bad weights are taken back, and a hopeless run ends with one line."""

import json
import math
import os
import shutil
import signal

import pytest
import torch

from chatbaker.errors import ChatBakerError
from chatbaker.train import loop
from chatbaker.train.faults import Watch
from tests.train.test_pretrain import pretrain, rows, with_

GOOD = [(4.0 + 0.1 * (i % 3), 1.0 + 0.05 * (i % 4)) for i in range(40)]


def watched(steps, spike=10.0):
    watch = Watch(spike)
    return watch, [watch(*step) for step in steps]


def test_ordinary_steps_are_no_faults():
    falling = [(8.0 * 0.95**i + 0.2 * (i % 5), 2.0 * 0.97**i) for i in range(200)]
    assert watched(GOOD)[1] == [None] * len(GOOD)
    assert watched([*GOOD, (4.0, 5.0)])[1][-1] is None  # such a norm is clipped, and all is well
    assert watched(falling)[1] == [None] * len(falling)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ((math.nan, 1.0), "the loss is nan"),
        ((4.0, math.inf), "the gradient's norm inf"),
        ((9.0, 1.0), "the loss is 9, 4.1 in the steps before"),
        ((4.0, 50.0), "the gradient's norm is 50, 1.07"),
    ],
)
def test_what_leaps_or_is_not_finite_is_a_fault(step, said):
    watch, _ = watched(GOOD)
    assert said in watch(*step)
    assert watch.streak == 1
    assert watch(*GOOD[0]) is None
    assert watch.streak == 0


def test_a_leap_is_none_before_there_is_anything_to_compare_with_nor_when_switched_off():
    assert watched([*GOOD[:10], (9.0, 1.0)])[1][-1] is None
    assert watched([*GOOD, (9.0, 50.0)], spike=0.0)[1][-1] is None
    assert watched([*GOOD, (math.nan, 1.0)], spike=0.0)[1][-1] is not None


def test_a_watch_restored_from_its_state_judges_alike():
    watch, _ = watched([*GOOD, (math.nan, 1.0)])
    again = Watch(10.0, json.loads(json.dumps(watch.state())))
    for step in [(9.0, 1.0), (4.0, 1.0), (4.0, 50.0)]:
        assert watch(*step) == again(*step)
    assert watch.state() == again.state()


STEP, LOSS = loop.train_step, loop.cross_entropy_sum


class Poison:
    """Makes the losses of chosen steps not finite or too large, as a broken batch does."""

    def __init__(self, monkeypatch, steps):
        self.factors, self.seen = dict(steps), []
        monkeypatch.setattr(loop, "train_step", self.step)

    def step(self, model, data, schedule, number, *rest):
        self.seen.append(number + 1)
        factor = self.factors.get(number + 1, 1.0)
        loop.cross_entropy_sum = (lambda *given: LOSS(*given) * factor) if factor != 1.0 else LOSS
        try:
            return STEP(model, data, schedule, number, *rest)
        finally:
            loop.cross_entropy_sum = LOSS


def test_one_bad_batch_is_skipped_and_the_run_ends_well(small_recipe, small_run, monkeypatch, capsys):
    Poison(monkeypatch, {6: math.nan})
    weights = pretrain(small_recipe, small_run)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert [row["skipped"] for row in rows(small_run) if "fault" in row] == [[6, 6]]
    assert "step 6: the loss is nan and the gradient's norm nan; skipped batch 6" in capsys.readouterr().err
    assert [row["step"] for row in rows(small_run) if "loss" in row] == [1, 2, 3, 4, 5, *range(7, 17)]


def test_a_spike_is_skipped(small_recipe, small_run, monkeypatch):
    Poison(monkeypatch, {40: 8.0})
    pretrain(with_(small_recipe, tokens=44 * 512, lr=1e-3), small_run)
    (fault,) = [row for row in rows(small_run) if "fault" in row]
    assert fault["skipped"] == [40, 40]
    assert "in the steps before" in fault["fault"]


def test_three_in_a_row_take_the_weights_back_and_a_resumed_run_skips_the_same(small_recipe, small_run, monkeypatch):
    bad = {6: math.nan, 7: math.inf, 8: math.nan}
    Poison(monkeypatch, bad)
    straight = pretrain(small_recipe, small_run)
    assert [row["skipped"] for row in rows(small_run) if "fault" in row] == [[6, 6], [7, 7], [5, 8]]

    class Killed(BaseException):
        pass

    poison = Poison(monkeypatch, bad)

    def dies(model, data, schedule, number, *rest):
        if number == 9:
            raise Killed
        return poison.step(model, data, schedule, number, *rest)

    monkeypatch.setattr(loop, "train_step", dies)
    other = type(small_run)(small_run.root.parent / "other")
    small_run.root.joinpath("pretrain").rename(small_run.root.parent / "first")
    small_run.root.rename(other.root)
    with pytest.raises(Killed):
        pretrain(small_recipe, other)
    assert sorted(p.name for p in other.path("pretrain", "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]
    poison = Poison(monkeypatch, bad)
    resumed = pretrain(small_recipe, other)
    assert poison.seen[0] == 9
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_a_stop_between_faults_changes_nothing(small_recipe, small_run, monkeypatch):
    bad = {6: math.nan, 7: math.nan, 8: math.nan}
    Poison(monkeypatch, bad)
    straight = pretrain(small_recipe, small_run)
    faults = [row["skipped"] for row in rows(small_run) if "fault" in row]
    shutil.rmtree(small_run.path("pretrain"))
    poison = Poison(monkeypatch, bad)

    def stopped(model, data, schedule, number, *rest):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return poison.step(model, data, schedule, number, *rest)

    monkeypatch.setattr(loop, "train_step", stopped)
    with pytest.raises(ChatBakerError, match="stopped at step 7, saved"):
        pretrain(small_recipe, small_run)
    Poison(monkeypatch, bad)
    resumed = pretrain(small_recipe, small_run)
    assert [row["skipped"] for row in rows(small_run) if "fault" in row] == faults == [[6, 6], [7, 7], [5, 8]]
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_a_checkpoint_that_went_wrong_already_is_passed_over(small_recipe, small_run, monkeypatch):
    def poisons(model, *rest):
        found = STEP(model, *rest)
        if rest[2] == 7 and not small_run.path("pretrain", "checkpoints", "step-00000008").exists():
            with torch.no_grad():
                model.model.norm.weight[0] = math.nan  # after the step, before it is saved
        return found

    monkeypatch.setattr(loop, "train_step", poisons)
    weights = pretrain(with_(small_recipe, tokens=24 * 512), small_run)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    assert [row["skipped"] for row in rows(small_run) if "fault" in row][-1] == [5, 14]


@pytest.mark.parametrize(("lr", "said"), [(1e20, "more was skipped than learned"), (1e38, "not finite")])
def test_a_run_that_came_to_nothing_hands_nothing_over(small_recipe, small_run, lr, said):
    with pytest.raises(ChatBakerError, match=rf"came to nothing.*{said}.*Lower lr"):
        pretrain(with_(small_recipe, lr=lr), small_run)
    assert not small_run.path("pretrain", "model").exists()


def test_too_many_faults_end_the_run_with_one_line_and_the_weights_are_kept(small_recipe, small_run, monkeypatch):
    Poison(monkeypatch, dict.fromkeys(range(6, 17), math.nan))
    with pytest.raises(ChatBakerError, match="at step 11, and the 1,000 steps before had 5 such.*Lower lr"):
        pretrain(with_(small_recipe, faults=5), small_run)
    assert small_run.path("pretrain", "checkpoints", "step-00000004").exists()
