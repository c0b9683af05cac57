"""What is done to the model from outside, in this order: FP8, activation recompute, compile per block, sharding.

Sharding is FSDP2 (Zhao et al., 2023, arXiv:2304.11277): the fp32 weights, gradients and optimizer state are spread by
rows over the processes of a group; a block's weights are gathered where they are used. With smaller groups than there
are processes (HSDP), each holds one copy and gradients are summed between groups as well.

Also the choice of device and precision, and the arithmetic rate that MFU is measured against.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.experimental import implicit_replication
from torch.utils.checkpoint import checkpoint

from chatbaker.dist import world
from chatbaker.errors import ChatBakerError, missing_extra
from chatbaker.gpus import figures, known
from chatbaker.log import say
from chatbaker.model.llama import Llama, init_weights
from chatbaker.recipe import Parallel, Schedule


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
    """Of activations: bf16 where the hardware multiplies it natively, else fp32; `precision` overrules."""
    if schedule.precision != "auto":
        return torch.float32 if schedule.precision == "fp32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def set_threads(parallel: Parallel) -> None:
    if parallel.threads:
        torch.set_num_threads(parallel.threads)


def can_compile(device: torch.device) -> bool:
    """Whether Inductor works: it needs a C++ compiler (for a GPU a C compiler) and Python's headers."""
    problem = "no C++ compiler found"
    if device.type == "cuda" or any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++")):
        try:
            torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
            return True
        except RuntimeError as error:
            problem = f"torch.compile does not work here ({str(error).splitlines()[0]})"
    say(f"{problem}: training runs uncompiled, at about half the speed")
    return False


def to_fp8(model: Llama, device: torch.device) -> None:
    """The blocks' matrices multiply in FP8, one scale a tensor, found anew each time; the weights stay as they are.

    Micikevicius et al., 2022 (arXiv:2209.05433). The head and all else stay in bf16.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
        hint = 'Take "bf16", or "auto"'
        raise ChatBakerError(f"{name} does not multiply FP8; cards from Ada and Hopper on do", "precision", hint)
    try:
        from torchao.float8 import convert_to_float8_training  # type: ignore[import-not-found]
    except ImportError:
        raise missing_extra("torchao", "fp8") from None

    def fits(matrix: nn.Linear, name: str) -> bool:
        return matrix.in_features % 16 == matrix.out_features % 16 == 0

    convert_to_float8_training(model.model.layers, module_filter_fn=fits)


def prepare(model: Llama, schedule: Schedule, device: torch.device, parallel: Parallel | None = None) -> bool:
    """Apply FP8, recompute, compile and sharding, in place; returns whether it compiled. Names do not change.

    The model may be on the meta device still; what is not, moves to `device` where there are several processes.
    """
    if schedule.precision == "fp8":
        if model.config.seq_len % 16:
            raise ChatBakerError("FP8 needs a multiple of 16", "model.seq_len", 'Or take precision = "bf16"')
        to_fp8(model, device)
    if schedule.recompute:
        for block in model.model.layers:
            block.forward = recomputed(block.forward)  # type: ignore[method-assign]
    compiled = schedule.compile and can_compile(device)
    if compiled:
        for block in model.model.layers:
            block.compile(dynamic=False)
    mesh = make_mesh(parallel or Parallel(), device)
    if mesh is not None:
        policy = MixedPrecisionPolicy(pick_dtype(schedule, device), torch.float32, cast_forward_inputs=False)
        for module in (*model.model.layers, model):
            sharded = fully_shard(module, mesh=mesh, mp_policy=policy)
            sharded.set_gradient_divide_factor(1.0)  # the loss is divided by the count of all processes' tokens
            sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    return compiled


def make_mesh(parallel: Parallel, device: torch.device) -> DeviceMesh | None:
    """How the processes share the weights: all of them, or groups of `parallel.shard`; None where there is but one."""
    size = world().size
    shard = parallel.shard or size
    if size % shard:
        hint = "Take a number that divides the processes, or 0 for all of them"
        raise ChatBakerError(f"groups of {shard} cannot be made of {size} process(es)", "parallel.shard", hint)
    if size == 1:
        return None
    if shard == size:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (size // shard, shard), mesh_dim_names=("replicate", "shard"))


def start(model: Llama, device: torch.device, seed: int) -> None:
    """Give a model on the meta device its first weights, the same for any number of processes."""
    model.to_empty(device=device)
    with implicit_replication():  # each process draws a whole matrix at a time, and keeps its rows
        init_weights(model, seed)


def shards(model: nn.Module) -> list[FSDPModule]:
    """The parts whose weights are gathered together, the root first; none in one process."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def last_micro_batch(model: nn.Module, last: bool) -> None:
    """Before a micro-batch: gradients are kept whole until the last one of the step, and only then summed."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_is_last_backward(last)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Every process holds all weights, so that each may run the network as often as it likes."""
    parts = shards(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.set_reshard_after_forward(part is not model, recurse=False)
        part.reshard()


def whole(model: Llama) -> Llama | None:
    """The model with all its weights, to be written: itself in one process, else a copy in the first process alone."""
    if not isinstance(model, FSDPModule):
        return model
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if world().rank:
        return None
    with torch.device("meta"):
        copy = Llama(model.config)
    copy.load_state_dict(state, assign=True)
    if model.config.tied:
        copy.lm_head.weight = copy.model.embed_tokens.weight
    return copy


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s that MFU is a share of, and where the figure is from: a data sheet, or a matmul measured now."""
    card = known(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if card:
        return figures()["gpus"][card]["bf16_tflops"] * 1e12, f"{card} data sheet"
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
