"""Faults in the numbers: a loss or gradient norm that is not finite, or that leaps above those of the last steps.

A step with a fault is refused before it reaches the weights: its batch is skipped. Several in a row mean that the
weights themselves went wrong earlier: they are taken back to the last checkpoint, and the batches since are skipped.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

WINDOW = 64
"""Good steps that a step is compared with; half as many are needed before a leap is called one."""

STREAK = 3
"""Faults in a row that take the weights back."""

FLOORS = {"loss": 0.02, "gradient's norm": 1.0}
"""The least deviation, as a share of the median: steps that hardly differ make no spike of the next one. Norms of four
times the median are everyday, and clipped."""


class Watch:
    """Judges every step; its state goes with each checkpoint, so that a resumed run judges alike."""

    def __init__(self, spike: float, state: dict[str, Any] | None = None) -> None:
        state = state or {}
        self.spike, self.streak = spike, state.get("streak", 0)
        self.skipped: list[list[int]] = state.get("skipped", [])
        """First and last step of every stretch of batches that were skipped, from 1."""
        self.good: deque[list[float]] = deque(state.get("good", ()), maxlen=WINDOW)

    def state(self) -> dict[str, Any]:
        return {"streak": self.streak, "skipped": list(self.skipped), "good": list(self.good)}

    def compare_with(self, state: dict[str, Any]) -> None:
        """Judge by the good steps of an earlier state."""
        self.good = deque(state["good"], maxlen=WINDOW)

    @property
    def lost(self) -> bool:
        """Whether the last faults in a row are so many that the weights are to be taken back."""
        return self.streak > 0 and self.streak % STREAK == 0

    def __call__(self, loss: float, norm: float) -> str | None:
        """What is wrong with a step, or None; remembers it."""
        fault = self._fault(loss, norm)
        if fault is None:
            self.good.append([loss, norm])
            self.streak = 0
        else:
            self.streak += 1
        return fault

    def _fault(self, loss: float, norm: float) -> str | None:
        if not math.isfinite(loss + norm):
            return f"the loss is {loss} and the gradient's norm {norm}"
        if self.spike and len(self.good) >= WINDOW // 2:
            for column, (name, value) in enumerate(zip(FLOORS, (loss, norm), strict=True)):
                seen = [row[column] for row in self.good]
                middle = median(seen)
                spread = 1.4826 * median(abs(one - middle) for one in seen)  # a normal distribution's deviation
                if value - middle > self.spike * max(spread, FLOORS[name] * middle):
                    return f"the {name} is {value:.4g}, {middle:.4g} in the steps before"
        return None
