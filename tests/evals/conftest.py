"""Requests as lm-eval makes them, and tiny model folders to ask."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.export.conftest import make, mixed_lines, tokenizers  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ask(*pairs: tuple[str, ...]) -> list[Any]:
    return [SimpleNamespace(args=pair, task_name="task") for pair in pairs]


def choices(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Questions of two to five answers; some answers are one token, some begin alike, some hold half characters."""
    lines = mixed_lines(count * 6, seed)
    pairs = []
    for i in range(count):
        question, *answers = lines[6 * i : 6 * i + 6]
        answers = answers[: 2 + i % 4]
        if i % 3 == 0:
            answers = ["yes", "no", "뷁", "🦖 뷁"]
        if i % 5 == 1:
            answers = [f"{answers[0]} {answer}" for answer in answers]
        pairs += [(f"Question: {question}\nAnswer:", f" {answer}") for answer in answers]
    return pairs
