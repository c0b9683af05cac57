"""The run folder: where a bake keeps everything, written so that a kill at any moment loses nothing finished.

A stage writes into its own folder and, at the very end, a stamp: its recipe sections, a digest of them and of all its
inputs, the code version, start and end. `bake` skips a stage whose stamp is fresh.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from chatbaker.errors import ChatBakerError

STAMP = "stamp.json"
BAKING = "CHATBAKER_BAKING"
"""Set for the stages that a bake runs, which holds the lock of all of them."""


@contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success flush it to disk and rename, on failure leave `path` alone."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_error(error: OSError, path: Path) -> ChatBakerError:
    """An OSError in words; a full disk says how to go on."""
    if error.errno == errno.ENOSPC:
        return ChatBakerError("the disk is full", str(path), "Free some space and type the same command again")
    return ChatBakerError(error.strerror or str(error), str(path))


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder made anew: written beside the old one, which it replaces when the block ends well."""
    part = final.with_name(f"{final.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        shutil.rmtree(final, ignore_errors=True)
        part.replace(final)
    except OSError as error:
        raise disk_error(error, final) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    with atomic(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=1)
        file.write("\n")


def read_json(path: Path) -> Any:
    """Raises ChatBakerError where the file is missing or cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ChatBakerError("no such file", str(path)) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ChatBakerError(f"not valid JSON ({error})", str(path)) from None


def digest(value: Any) -> str:
    """A short fingerprint of plain data."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_files(root: Path, pattern: str) -> list[Path]:
    """The files that a glob below `root` names, however its Hangul is composed, sorted; an absolute one is itself."""
    found = {}
    for form in (pattern, unicodedata.normalize("NFC", pattern), unicodedata.normalize("NFD", pattern)):  # as Macs do
        for name in glob.glob(str(Path(glob.escape(str(root)), form)), recursive=True):
            if (path := Path(name)).is_file():
                found[unicodedata.normalize("NFC", name), path.stat().st_ino] = path  # there one file answers to both
    return sorted(found.values())


def find_below(root: Path, pattern: str) -> list[Path]:
    """The files that a glob names, and all those in folders that it names."""
    return [*find_files(root, pattern), *find_files(root, f"{pattern}/**")]


def no_file(root: Path, pattern: str) -> str:
    """What to type where `find_files` finds none."""
    if (root / pattern).is_dir():
        return f"That is a folder: write {pattern.rstrip('/')}/*"
    bracket = "; a [ that is part of a name is written [[]" if "[" in pattern else ""
    return f"Type data_root=FOLDER after the recipe to say where the data is{bracket}"


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when a file is added, removed or written; contents are not read."""
    return digest([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)])


def machine() -> int:
    """Which one this is of the machines that Slurm's srun started the command on; the first, 0, keeps a run's books."""
    return int(os.environ.get("SLURM_NODEID", "0"))


@dataclass(frozen=True)
class RunDir:
    """runs/<name>. `path("pack", "index.json")` is a file in a stage's folder."""

    root: Path

    @classmethod
    def of(cls, name: str, runs: str | Path = "runs") -> RunDir:
        """The run of a recipe's name below the folder of all runs."""
        return cls(Path(runs) / name)

    def path(self, *parts: str) -> Path:
        return self.root.joinpath(*parts)

    @property
    def tuned(self) -> str:
        """The stage that made the chat model: dpo where there is one, else sft. Raises where dpo is of an older sft."""
        folder = self.path("dpo")
        if not (folder / "model").is_dir():
            return "sft"
        before, after = self.stamp("sft"), self.stamp("dpo")
        if before and after and after["started"] < before["ended"]:
            hint = "Type chatbaker dpo RECIPE, or remove this folder to go back to sft"
            raise ChatBakerError("made from an older sft/model than the one that is there", str(folder), hint)
        return "dpo"

    def need(self, *parts: str, stage: str) -> Path:
        """A file or folder that an earlier stage makes; says which stage to run where it is missing."""
        path = self.path(*parts)
        if not path.exists():
            raise ChatBakerError("not there yet", str(path), f"Run first: chatbaker {stage} RECIPE")
        return path

    def stamp(self, stage: str) -> dict[str, Any] | None:
        """What is known of a finished stage; None where it never finished."""
        path = self.path(stage, STAMP)
        return read_json(path) if path.exists() else None

    def write_stamp(self, stage: str, started: float, **facts: Any) -> None:
        ended = time.time()
        record = {"stage": stage, "started": started, "ended": ended, "seconds": round(ended - started, 1)}
        write_json(self.path(stage, STAMP), record | facts)

    @contextmanager
    def lock(self, name: str = ".lock") -> Iterator[None]:
        """One process at a time; the system frees the lock when its holder dies, however it dies.

        name: `.bake` is held by a bake from its first stage to its last one, and by any other stage as long as it runs.
        """
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield
            return
        with ExitStack() as stack:
            if name == ".lock" and BAKING not in os.environ:
                stack.enter_context(self.lock(".bake"))
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(self.path(name).open("a", encoding="utf-8"))
            except OSError as error:
                raise disk_error(error, self.root) from error
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not for children, who may outlive this process
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system that knows no locks, say
                    raise disk_error(error, self.path(name)) from error
                what, hint = "another chatbaker process is at work in this run", "Wait for it, or use name=OTHER"
                raise ChatBakerError(what, str(self.root), hint) from None
            yield
