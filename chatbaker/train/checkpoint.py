"""Checkpoints for resuming: PyTorch distributed checkpoints, complete or absent.

A checkpoint is a copy of the state, written while training goes on: into a temporary folder, every process its part,
then a marker with the size of every file, then the folder is renamed. `latest` takes the newest whose files have their
sizes, so a kill or a full disk at any moment costs at most the steps since the last one. Any number of processes loads
what any other number saved.
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from chatbaker.dist import from_first, world
from chatbaker.errors import ChatBakerError
from chatbaker.log import say
from chatbaker.rundir import disk_error, read_json, write_json

MARKER = "complete.json"

TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
"""What stands still under LoRA comes from the base model again."""


class Saver:
    """Writes checkpoints into `folder` beside the training, one at a time, and keeps the newest `keep`.

    Leave it as a context manager: that waits for the last one. What went wrong in a save is raised by the next call.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.group = dist.new_group(backend="gloo") if world().size > 1 else None  # apart from the training's own talk
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self.thread.shutdown()

    @property
    def failed(self) -> bool:
        """Whether the last save went wrong; `wait` says how."""
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def wait(self) -> None:
        """Until the save under way is done."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def save(self, step: int, model: nn.Module, optimizers: list[Optimizer], facts: dict[str, Any]) -> None:
        """Begin to write folder/step-N. facts: plain data for the marker."""
        self.wait()
        weights, state = get_state_dict(model, optimizers, options=TRAINED)
        copied = tree_map_only(
            torch.Tensor, lambda t: t.detach().to("cpu", copy=True), {"model": weights, "optimizer": state}
        )
        self.writing = self.thread.submit(self._write, step, copied, facts)

    def _write(self, step: int, state: dict[str, Any], facts: dict[str, Any]) -> None:
        path = self.folder / f"step-{step:08d}"
        temporary = self.folder / (path.name + ".tmp")

        def begin() -> None:
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir(parents=True)
            except OSError as error:
                raise disk_error(error, path) from error

        def publish() -> None:
            try:
                sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
                write_json(temporary / MARKER, {"step": step, **facts, "files": sizes})
                for later in _all(self.folder):  # broken ones, which a resumed run passed over
                    if later.name >= path.name:
                        shutil.rmtree(later, ignore_errors=True)
                temporary.rename(path)
            except OSError as error:
                raise disk_error(error, path) from error
            prune(self.folder, self.keep)

        try:
            from_first(begin, self.group)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # "torch.distributed is unavailable": one process, as intended
                    writer = dcp.FileSystemWriter(temporary, per_thread_copy_ahead=0)  # all is in the CPU's memory
                    dcp.save(state, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            except (OSError, CheckpointException) as error:
                raise disk_error(_cause(error), path) from error
            from_first(publish, self.group)
        except ChatBakerError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def prune(folder: Path, keep: int) -> None:
    """Keep the newest `keep` checkpoints and two from before faults; remove others and what is half written."""
    for path in folder.glob("step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
    calm = list(filter(_calm, _all(folder)))[:2]
    for path in _all(folder)[keep:]:
        if path not in calm:
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path, calm: int = 0) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its marker; those cut short are named and passed over.

    calm: 0, or only those from before faults, and of them not the newest calm - 1, if there is an older one. Raises
    ChatBakerError where there are checkpoints but none is whole: starting anew must be the user's choice.
    """
    found = [path for path in _all(folder) if not calm or _calm(path)]
    for path in found[max(0, min(calm, len(found)) - 1) :]:
        problem = _problem(path)
        if problem is None:
            return path, read_json(path / MARKER)
        say(f"{path}: {problem}; looking for an older checkpoint")
    if found:
        raise ChatBakerError("no checkpoint here is whole", str(folder), f"To start anew: rm -r {folder}")
    return None


def load(path: Path, model: nn.Module, optimizers: list[Optimizer]) -> None:
    """Put a checkpoint's state into model and optimizers, in place."""
    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.CRITICAL)  # its tracebacks; the error says it
    weights, state = get_state_dict(model, optimizers, options=TRAINED)
    holder = {"model": weights, "optimizer": state}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(holder, checkpoint_id=path, no_dist=world().size == 1)
        except CheckpointException as error:
            raise ChatBakerError(
                "this checkpoint is damaged", str(path), f"Go on from an older one: rm -r {path}"
            ) from error
    set_state_dict(
        model, optimizers, model_state_dict=holder["model"], optim_state_dict=holder["optimizer"], options=TRAINED
    )


def _cause(error: OSError | CheckpointException) -> OSError:
    """torch wraps whatever went wrong once per rank, and the system's error in one of its own."""
    if isinstance(error, OSError):
        return error
    cause: BaseException | None = next(iter(error.failures.values()))[0]
    first = cause
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause or OSError(0, str(first).splitlines()[0])


def _all(folder: Path) -> list[Path]:
    paths = (path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))
    return sorted(paths, reverse=True)


def _calm(path: Path) -> bool:
    """Whether the step before it was no fault."""
    try:
        return not read_json(path / MARKER).get("watch", {}).get("streak")
    except (ChatBakerError, OSError):
        return True  # `latest` says what is wrong with it


def _problem(path: Path) -> str | None:
    marker = path / MARKER
    if not marker.exists():
        return "no completion marker"
    try:
        sizes = read_json(marker)["files"]
    except (ChatBakerError, KeyError):
        return "its completion marker is broken"
    for name, size in sizes.items():
        file = path / name
        if not file.exists() or file.stat().st_size != size:
            return f"{name} is missing or cut short"
    return None
