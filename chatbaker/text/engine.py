"""A phase of cleaning as many tasks: on this machine, on a Ray cluster or on Slurm.

datatrove's executors do the work: they give out the tasks, mark each one that has finished, and skip those when the
same phase runs again. What is ours is the bar, the one-line error, and the order of the phases.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
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

Report = Callable[[int], None]
"""Told how much more of a task is done, in the phase's unit."""


@dataclass(frozen=True)
class Phase:
    """step(task, report) does one of `tasks` tasks, and the same again if it was cut short. total: for the bar."""

    name: str
    step: Callable[[int, Report], None]
    tasks: int
    total: int


@dataclass(frozen=True)
class Task:
    """What datatrove calls, maybe on another machine: a step that leaves its progress and its error in `folder`."""

    step: Callable[[int, Report], None]
    folder: Path

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


def run(phases: list[Phase], section: Clean, work: Path) -> None:
    """Run the phases one after another, each where the one before it has ended; finished tasks are skipped.

    Raises the ChatBakerError of the first task that met one, and one that says so where Slurm now has the work.
    """
    logger.remove()
    executor = None
    for phase in phases:
        folder = work / phase.name
        for name in ("progress", "failed"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for path in (folder / "failed").iterdir():
            path.unlink()
        executor = _executor(phase, section, folder, executor)
        if section.engine != "slurm":
            with _watch(phase, folder):
                _run(executor, folder)
            if left := executor.get_incomplete_ranks():  # Ray goes on past a task that failed
                _raise_failed(folder)
                raise ChatBakerError(f"{len(left)} of {phase.tasks} tasks failed", str(folder / "logs"))
    if section.engine == "slurm":
        _run(executor, work / phases[-1].name)  # which hands in those before it first
        if any(_executor(phase, section, work / phase.name, None).get_incomplete_ranks() for phase in phases):
            hint = "When its jobs are done, type the same command to finish"
            raise ChatBakerError("Slurm has the work now", str(work), hint)


def _executor(phase: Phase, section: Clean, folder: Path, before: Any) -> Any:
    common: dict[str, Any] = {"pipeline": [Task(phase.step, folder)], "tasks": phase.tasks, "logging_dir": str(folder)}
    if section.engine == "slurm":
        slurm = section.slurm.model_dump(include={"time", "partition", "qos"})
        slurm |= {"mem_per_cpu_gb": section.slurm.memory_gb, "env_command": section.slurm.setup}
        name = f"chatbaker-{phase.name}"
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
    for path in sorted((folder / "failed").iterdir()):
        raise ChatBakerError(*read_json(path))


@contextlib.contextmanager
def _watch(phase: Phase, folder: Path) -> Iterator[None]:
    """A bar over what all tasks have done so far, wherever they run."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            with contextlib.suppress(OSError, ValueError):
                done = sum(int(path.read_text(encoding="utf-8") or 0) for path in (folder / "progress").iterdir())
                bar.update(min(done, phase.total))

    with progress(f"clean: {phase.name}", phase.total) as bar:
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
