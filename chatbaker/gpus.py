"""What is known of the cards that models are trained on: the makers' figures, in gpus.json."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from chatbaker.rundir import read_json

OTHER_KINDS = "(?! Laptop| PCIe| NVL)"
"""Slower cards under the same name."""


@cache
def figures() -> dict[str, Any]:
    """The assumptions that plans make, and under "gpus" the cards by the names that `--gpu` takes."""
    return read_json(Path(__file__).with_suffix(".json"))


def known(device: str) -> str | None:
    """The name under which the figures of a device are found, as its driver calls it; None: there are none."""
    cards = figures()["gpus"].items()  # whole words: a GH200 is no H200
    return next((name for name, card in cards if re.search(rf"\b{card['match']}\b{OTHER_KINDS}", device)), None)
