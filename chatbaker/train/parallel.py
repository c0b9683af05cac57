"""What is done to the model from outside, in this order: activation recompute, compile per block.

Also the choice of device and precision, and the arithmetic rate that MFU is measured against.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from chatbaker.dist import world
from chatbaker.errors import ChatBakerError
from chatbaker.log import say
from chatbaker.model.llama import Llama
from chatbaker.recipe import Parallel, Schedule

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bf16 rate by name of the card, from the makers' data sheets."""


def recomputed(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A block's forward that keeps only its inputs and runs again in the backward pass."""

    def wrapped(*args: Any) -> torch.Tensor:
        return checkpoint(forward, *args, use_reentrant=False)

    return wrapped


def pick_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def pick_dtype(schedule: Schedule, device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies it natively, else fp32; `precision` overrules."""
    if schedule.precision != "auto":
        return torch.bfloat16 if schedule.precision == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def set_threads(parallel: Parallel) -> None:
    if parallel.threads:
        torch.set_num_threads(parallel.threads)


def can_compile(device: torch.device) -> bool:
    """Inductor needs a C++ compiler on a CPU; without one training runs uncompiled."""
    return device.type == "cuda" or any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++"))


def prepare(model: Llama, schedule: Schedule, device: torch.device) -> bool:
    """Apply recompute and compile to every block, in place; returns whether it compiled. Names do not change."""
    if world().size > 1:
        raise ChatBakerError("this version trains in one process", hint="Start it without torchrun")
    if schedule.recompute:
        for block in model.model.layers:
            block.forward = recomputed(block.forward)  # type: ignore[method-assign]
    if not schedule.compile:
        return False
    if not can_compile(device):
        say("no C++ compiler found: training runs uncompiled, at about half the speed")
        return False
    for block in model.model.layers:
        block.compile(dynamic=False)
    return True


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s that MFU is a share of, and where the figure is from: a data sheet, or a matmul measured now."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for card, tflops in PEAK_TFLOPS.items():
            if card in name:
                return tflops * 1e12, f"{card} data sheet"
    a = torch.randn(2048, 2048, dtype=dtype, device=device)
    best = 0.0
    for _ in range(4):
        began = time.perf_counter()
        for _ in range(4):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * 2048**3 / (time.perf_counter() - began))
    return best, "measured 2048 x 2048 matmul"
