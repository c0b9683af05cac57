"""The processes of one job: who this is among how many, how they start, meet and agree.

torch's elastic agent (`torchrun`) starts them and says in the environment who is who; where nothing does, this is the
only process, and nothing here communicates.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbaker.errors import ChatBakerError
from chatbaker.rundir import machine, read_json

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    rank: int
    size: int


def world() -> World:
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def nodes() -> World:
    """Which machine this is among how many that started the same command, as Slurm's srun says it."""
    return World(machine(), int(os.environ.get("SLURM_STEP_NUM_NODES", "1")))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Meet the other processes, and part again when the block ends well: gloo for tensors in memory, NCCL on GPUs."""
    if world().size == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    yield
    dist.destroy_process_group()


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place."""
    if world().size > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def anywhere(flag: bool) -> bool:
    """Whether it is true in any process."""
    if world().size == 1:
        return flag
    import torch

    return bool(add_up(torch.tensor(float(flag))))


def from_first(make: Callable[[], Any], group: Any = None) -> Any:
    """What the first process makes, in every process; so is its ChatBakerError. Used as a barrier too."""
    if world().size == 1:
        return make()
    import torch.distributed as dist

    box: list[Any] = [None, None]
    if world().rank == 0:
        try:
            box[0] = make()
        except ChatBakerError as error:
            box[1] = error.what, error.where, error.hint
    dist.broadcast_object_list(box, src=0, group=group)
    if box[1] is not None:
        raise ChatBakerError(*box[1])
    return box[0]


def launch(command: list[str], count: int, restarts: int, note: Path) -> None:
    """Run `python COMMAND` in `count` processes of each machine under torch's elastic agent, which starts all anew when
    one is lost.

    The agents of several machines meet at MASTER_ADDR:MASTER_PORT. note: the file in which a process leaves the
    ChatBakerError that it met, as JSON; raised here.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its tables say less than the processes
    note.parent.mkdir(parents=True, exist_ok=True)
    machine, place = nodes(), "localhost:0"
    if machine.size > 1:
        try:
            place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        except KeyError as error:
            hint = "Let --slurm FILE write the script"
            raise ChatBakerError(f"{machine.size} machines, but {error} is not set", hint=hint) from None
    if machine.rank == 0:
        note.unlink(missing_ok=True)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "170")  # seconds between SIGTERM and SIGKILL, to save in
    config = LaunchConfig(  # which reads it
        machine.size,
        machine.size,
        count,
        run_id=os.environ.get("SLURM_JOB_ID", "chatbaker"),
        rdzv_backend="c10d",
        rdzv_endpoint=place,
        max_restarts=restarts,
    )
    failed = ""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # or a new start meets the addresses of the lost processes
    try:
        elastic_launch(config, sys.executable)(*command)
    except SignalException as error:
        failed = f"stopped by {error.sigval.name} before it could save"
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        failed = f"process {rank} ended with {failure.exitcode}; new starts: {restarts}"
    except RendezvousError as error:
        failed = f"the {machine.size} machines did not meet at {place} ({str(error) or type(error).__name__})"
    if note.exists():  # left by the last start, whose processes then end well at once
        raise ChatBakerError(*read_json(note))
    if failed:
        raise ChatBakerError(failed, hint="The same command goes on from the newest checkpoint")
