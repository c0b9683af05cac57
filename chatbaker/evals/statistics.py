"""What a set of verdicts is worth: intervals, win rates at equal length, agreement, refusals. All of it repeatable.

Intervals are 95 % percentile bootstraps of the mean over items (Efron 1979). They say how far another set of such
prompts could move a number, not how far the judge errs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chatbaker.rundir import read_json

RESULTS = ("won", "tied", "lost")
RIDGE = 0.01  # keeps the logistic fit finite where one side wins everything; worth a hundredth of an item
_REFUSALS = re.compile("|".join(read_json(Path(__file__).with_name("judge_refusals.json"))), re.IGNORECASE)


def summary(values: Sequence[float], draws: int = 2000) -> dict[str, Any]:
    """{"mean", "low", "high"}: the mean and its 95 % interval; None each where there are no values."""
    if not values:
        return {"mean": None, "low": None, "high": None}
    sample, dice = np.asarray(values, dtype=float), np.random.default_rng(0)
    means = [sample[dice.integers(len(sample), size=(100, len(sample)))].mean(axis=1) for _ in range(draws // 100)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return {"mean": round(float(sample.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def tally(results: Sequence[str]) -> dict[str, Any]:
    """How many were won, tied and lost, and the intervals of their shares."""
    spans = {name: summary([float(result == name) for result in results]) for name in RESULTS}
    intervals = {name: [span["low"], span["high"]] for name, span in spans.items()}
    return {"judged": len(results), **{name: results.count(name) for name in RESULTS}, "intervals": intervals}


def equal_length(results: Sequence[str], log_ratios: Sequence[float]) -> float | None:
    """The win rate, a tie counting half, that answers as long as the other side's would have.

    P(win) = sigmoid(a + b x) with x = log(our length / their length) over its standard deviation, fitted by Newton's
    method under a small ridge; the rate is sigmoid(a). After the length control of AlpacaEval (Dubois et al. 2024).
    """
    if not results:
        return None
    wins = np.array([{"won": 1.0, "tied": 0.5, "lost": 0.0}[result] for result in results])
    ratios = np.asarray(log_ratios, dtype=float)
    design = np.column_stack([np.ones_like(ratios), ratios / (ratios.std() or 1.0)])
    weights = np.zeros(2)
    for _ in range(50):
        rates = 1 / (1 + np.exp(-design @ weights))
        curvature = (design.T * (rates * (1 - rates))) @ design + RIDGE * np.eye(2)
        weights += np.clip(np.linalg.solve(curvature, design.T @ (wins - rates) - RIDGE * weights), -1, 1)
    return round(float(1 / (1 + np.exp(-weights[0]))), 4)


def correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Pearson's; None where one side never changes."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return round(float(np.corrcoef(a, b)[0, 1]), 4)


def agreement(one: Mapping[str, Sequence[int]], other: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """How alike two judges score the items that both judged. one, other: {item: its scores}.

    exact: share of equal scores. kappa: Cohen's, with quadratic weights (1968), over all scores; None where all are
    one. difference: mean distance of an item's two totals.
    """
    both = sorted(one.keys() & other.keys())
    if not both:
        return {"n": 0, "exact": None, "kappa": None, "difference": None}
    a, b = np.array([one[item] for item in both], float), np.array([other[item] for item in both], float)
    by_chance = a.var() + b.var() + (a.mean() - b.mean()) ** 2  # mean square distance of scores paired at random
    return {
        "n": len(both),
        "exact": round(float((a == b).mean()), 4),
        "kappa": round(float(1 - ((a - b) ** 2).mean() / by_chance), 4) if by_chance else None,
        "difference": round(float(abs(a.sum(axis=1) - b.sum(axis=1)).mean()), 4),
    }


def refused(answer: str) -> bool:
    """Whether an answer begins by declining, in Korean or English. Known by its wording, so an estimate."""
    return bool(_REFUSALS.search(answer[:160]))
