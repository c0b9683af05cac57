"""A phase of cleaning as many tasks: here, on a Ray cluster or on Slurm.

datatrove gives out the tasks and skips finished ones; the bar, the one-line error and the order of phases are ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import multiprocess.forkserver
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from loguru import logger

from chatbaker.errors import ChatBakerError, missing_extra
from chatbaker.log import progress
from chatbaker.recipe import Clean
from chatbaker.rundir import read_json, write_json

Report = Callable[[int], None]  # told how much more of a task is done, in the phase's unit


@dataclass(frozen=True)
class Phase:
    """What datatrove calls for each of `tasks` tasks, maybe on another machine. total: of what `step` reports."""

    folder: Path
    step: Callable[[int, Report], None]
    tasks: int
    total: int

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        note = self.folder / "progress" / f"{rank:05d}"
        done, shown = 0, time.monotonic()

        def report(count: int) -> None:
            nonlocal done, shown
            done += count
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                note.write_text(str(done), encoding="utf-8")

        try:
            self.step(rank, report)
        except ChatBakerError as error:
            write_json(self.folder / "failed" / f"{rank:05d}.json", [error.what, error.where, error.hint])
            raise
        note.write_text(str(done), encoding="utf-8")


def _die_with_parent() -> None:
    """Linux: the process that datatrove forks to share a queue would outlive a killed parent, and its workers too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


os.register_at_fork(after_in_child=_die_with_parent)


class _Local(LocalPipelineExecutor):
    """Without a log on the terminal; it stays in the phase's folder."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            return super()._run_for_rank(rank, local_rank, node_rank)


def run(phases: list[Phase], section: Clean) -> None:
    """Run the phases one after another, but for finished tasks. Raises the first ChatBakerError that a task met."""
    logger.remove()
    executor = None
    for phase in phases:
        (phase.folder / "progress").mkdir(parents=True, exist_ok=True)
        shutil.rmtree(phase.folder / "failed", ignore_errors=True)
        executor = _executor(phase, section, executor)
        if section.engine != "slurm":
            with _watch(phase):
                _run(executor, phase.folder)
            if left := executor.get_incomplete_ranks():  # Ray goes on past a task that failed
                _raise_failed(phase.folder)
                raise ChatBakerError(f"{len(left)} of {phase.tasks} tasks failed", str(phase.folder / "logs"))
    if section.engine == "slurm":
        _run(executor, phase.folder)  # which hands in those before it first
        if any(_executor(phase, section, None).get_incomplete_ranks() for phase in phases):
            hint = "When its jobs are done, type the same command to finish"
            raise ChatBakerError("Slurm has the work now", str(phase.folder.parent), hint)


def _executor(phase: Phase, section: Clean, before: Any) -> Any:
    common: dict[str, Any] = {"pipeline": [phase], "tasks": phase.tasks, "logging_dir": str(phase.folder)}
    if section.engine == "slurm":
        slurm = section.slurm.model_dump(include={"time", "partition", "qos"})
        slurm |= {"mem_per_cpu_gb": section.slurm.memory_gb, "env_command": section.slurm.setup}
        name = f"chatbaker-{phase.folder.name}"
        return SlurmPipelineExecutor(**common, **slurm, workers=section.workers or -1, job_name=name, depends=before)
    if section.engine == "ray":
        try:
            import ray
        except ModuleNotFoundError:
            raise missing_extra("ray", "ray") from None
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR")
        return RayPipelineExecutor(**common, workers=section.workers or -1, mem_per_cpu_gb=1)
    workers = min(section.workers or len(os.sched_getaffinity(0)), phase.tasks)
    if workers > 1:  # Ctrl-C is for this process, which ends the workers
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        multiprocess.forkserver.ensure_running()
        signal.signal(signal.SIGINT, handler)
    return _Local(**common, workers=workers)


def _run(executor: Any, folder: Path) -> None:
    try:
        executor.run()
    except ChatBakerError:
        raise
    except FileNotFoundError as error:
        raise ChatBakerError(f"no command {error.filename!r} here", "clean.engine", "Is this a Slurm node?") from None
    except Exception as error:
        _raise_failed(folder)
        raise ChatBakerError(f"{type(error).__name__}: {error}", str(folder / "logs")) from error


def _raise_failed(folder: Path) -> None:
    for path in sorted(folder.glob("failed/*.json")):
        raise ChatBakerError(*read_json(path))


@contextlib.contextmanager
def _watch(phase: Phase) -> Iterator[None]:
    """A bar over what all tasks have done so far, wherever they run."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            with contextlib.suppress(OSError, ValueError):
                notes = (phase.folder / "progress").iterdir()
                bar.update(min(sum(int(note.read_text(encoding="utf-8") or 0) for note in notes), phase.total))

    with progress(f"clean: {phase.folder.name}", phase.total) as bar:
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
