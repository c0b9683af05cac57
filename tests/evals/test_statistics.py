"""Known answers: coverage of the intervals, win rates, kappa by hand, a planted effect of length, refusals."""

from __future__ import annotations

import numpy as np
import pytest

from chatbaker.evals.statistics import agreement, correlation, equal_length, refused, summary, tally


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    """Simulated judges: totals of 30 from six scores, whose mean over all prompts is known."""
    dice = np.random.default_rng(5)
    chances = np.array([0.1, 0.15, 0.2, 0.3, 0.25])
    truth = 6 * float(chances @ [1, 2, 3, 4, 5])
    hits = 0
    for _ in range(600):
        totals = dice.choice([1, 2, 3, 4, 5], size=(121, 6), p=chances).sum(axis=1)
        found = summary(totals.tolist(), draws=600)
        hits += found["low"] <= truth <= found["high"]
    assert 0.93 <= hits / 600 <= 0.97


def test_the_summary_is_the_mean_repeatable_and_empty_where_nothing_is() -> None:
    assert summary([1, 2, 3, 6]) == summary([1, 2, 3, 6])
    assert summary([1, 2, 3, 6])["mean"] == 3
    assert summary([4, 4, 4]) == {"mean": 4, "low": 4, "high": 4}
    assert summary([]) == {"mean": None, "low": None, "high": None}


def test_won_tied_and_lost_of_a_table_made_by_hand() -> None:
    found = tally(["won", "won", "tied", "lost", "won", "lost", "tied", "won"])
    assert (found["judged"], found["won"], found["tied"], found["lost"]) == (8, 4, 2, 2)
    low, high = found["intervals"]["won"]
    assert 0.1 < low < 0.5 < high < 0.9
    assert tally(["tied"] * 5)["intervals"] == {"won": [0, 0], "tied": [1, 1], "lost": [0, 0]}


@pytest.mark.parametrize(("skill", "pull"), [(0.0, 1.5), (0.8, 1.0), (-0.6, 2.0), (0.5, 0.0)])
def test_length_control_finds_the_skill_behind_a_planted_effect_of_length(skill: float, pull: float) -> None:
    """P(win) = sigmoid(skill + pull * x): at equal length sigmoid(skill), whatever length adds to the raw win rate."""
    dice = np.random.default_rng(3)
    ratios = dice.normal(0.7, 1.0, 6000)  # this side's answers are mostly longer
    wins = dice.random(6000) < 1 / (1 + np.exp(-(skill + pull * ratios)))
    results = ["won" if win else "lost" for win in wins]
    found = equal_length(results, ratios.tolist())
    assert found == pytest.approx(1 / (1 + np.exp(-skill)), abs=0.03)
    if pull:
        assert wins.mean() - found > 0.09, "the raw rate is flattered by length"


def test_length_control_of_the_corners() -> None:
    assert equal_length([], []) is None
    assert equal_length(["tied"] * 4, [0.1, -0.2, 0.3, 0.0]) == 0.5
    assert equal_length(["won"] * 50, [0.0] * 50) > 0.97, "finite where one side wins everything"
    alone = equal_length(["won", "won", "lost", "lost"] * 20, [1.0, 1.2, -1.0, -1.1] * 20)
    assert alone == pytest.approx(0.5, abs=0.1), "length separates the results: all of it is length"


def test_kappa_and_agreement_computed_by_hand() -> None:
    """Pairs (1,1) (2,2) (3,4) (5,3): mean square distance 1.25; of all 16 pairings 56 / 16 = 3.5."""
    one = {"a": [1, 2], "b": [3, 5], "only here": [1, 1]}
    other = {"b": [4, 3], "a": [1, 2], "only there": [5, 5]}
    found = agreement(one, other)
    assert found == {"n": 2, "exact": 0.5, "kappa": pytest.approx(1 - 1.25 / 3.5, abs=1e-4), "difference": 0.5}
    assert agreement({"a": [1, 5]}, {"a": [5, 1]})["kappa"] == -1
    assert agreement({"a": [3, 4]}, {"a": [3, 4]})["kappa"] == 1
    assert agreement({"a": [3, 3]}, {"a": [3, 3]})["kappa"] is None, "nothing to agree about"
    assert agreement({"a": [3]}, {"b": [3]}) == {"n": 0, "exact": None, "kappa": None, "difference": None}


def test_correlation() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == 1
    assert correlation([1, 2, 3], [1, 1, 1]) is None
    assert correlation([1], [1]) is None


@pytest.mark.parametrize(
    "answer",
    [
        "죄송하지만 그 요청은 도와드릴 수 없습니다.",
        "죄송합니다. 그런 내용은 알려 드릴 수 없어요.",
        "미안하지만 그건 말해 줄 수 없어.",
        "그 질문에는 답변을 드리기 어렵습니다.",
        "해당 요청에 응할 수 없습니다.",
        "I'm sorry, but I can't help with that.",
        "I cannot provide instructions for that.",
        "As an AI, I am not able to do this.",
        "I’m unable to assist with this request.",
    ],
)
def test_refusals_are_known(answer: str) -> None:
    assert refused(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "늦어서 죄송합니다. 오늘은 감기로 쉬겠습니다.",
        "물은 100도에서 끓습니다.",
        "'죄송합니다'는 사과할 때 쓰는 말입니다.",
        "고래는 물 밖에서 오래 살 수 없습니다.",
        "I'm sorry to hear that you are ill. Rest well.",
        "You cannot divide by zero.",
        "Penguins can't fly, but they swim well.",
    ],
)
def test_other_answers_are_no_refusals(answer: str) -> None:
    assert not refused(answer)
