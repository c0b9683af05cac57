"""The one table of stages: where each one's code is, what it needs, which recipe sections decide its result.

The command line and `bake` know stages only through this table, as strings; nothing is imported until it runs.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbaker import __version__
from chatbaker.errors import missing_extra

if TYPE_CHECKING:
    from chatbaker.recipe import Recipe
    from chatbaker.rundir import RunDir


@dataclass(frozen=True)
class Stage:
    """name: verb, recipe section and run subfolder in one. module: holds its `run`. extra: what pip installs for it."""

    name: str
    module: str
    help: str
    after: tuple[str, ...]
    sections: tuple[str, ...]
    extra: str
    trains: bool = False


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "clean",
            "chatbaker.text.clean",
            "Read the sources, drop what is not wanted, keep count.",
            after=(),
            sections=("clean",),
            extra="clean",
        ),
        Stage(
            "tokenizer",
            "chatbaker.tokens.bpe",
            "Train the byte-level BPE tokenizer.",
            after=("clean",),
            sections=("tokenizer",),
            extra="train",
        ),
        Stage(
            "pack",
            "chatbaker.tokens.pack",
            "Tokenize the documents into memory-mapped shards.",
            after=("clean", "tokenizer"),
            sections=(),
            extra="train",
        ),
        Stage(
            "pretrain",
            "chatbaker.train.pretrain",
            "Train the base model; resumes by itself.",
            after=("pack",),
            sections=("model", "pretrain", "parallel"),
            extra="train",
            trains=True,
        ),
        Stage(
            "sft",
            "chatbaker.train.sft",
            "Tune the base model on conversations; resumes by itself.",
            after=("pretrain",),
            sections=("model", "sft", "parallel"),
            extra="train",
            trains=True,
        ),
        Stage(
            "export",
            "chatbaker.export.stage",
            "Write the Hugging Face folder, the GGUF files and the model card.",
            after=("sft",),
            sections=("export",),
            extra="train",
        ),
    )
}

ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
"""Large pages, and freed memory kept for the next step: about a third of CPU training speed (see docs/log.md)."""


def sections(stage: Stage, recipe: Recipe) -> dict[str, Any]:
    """The recipe sections that decide a stage's result, as plain data."""
    return {name: getattr(recipe, name).decisive() for name in stage.sections}


def key(stage: Stage, recipe: Recipe, run: RunDir) -> str:
    """What a stage's result depends on: its sections, its files, the seed and the stages before it."""
    from chatbaker.rundir import digest, find_files, fingerprint

    before = [(run.stamp(name) or {}).get("key") for name in stage.after]
    paths: set[Path] = set()
    for section in stage.sections:
        for source in getattr(getattr(recipe, section), "sources", ()):
            if source.path.startswith("made:"):
                paths.update(Path(__file__).parent.glob("made/*.*"))
            elif not source.path.startswith("hub:"):
                paths.update(find_files(Path(recipe.data_root), source.path))
    return digest([stage.name, sections(stage, recipe), recipe.seed, fingerprint(paths), before, __version__])


def fresh(stage: Stage, recipe: Recipe, run: RunDir) -> bool:
    """Whether the stage finished with this recipe and these inputs, and no stage before it has run since."""
    stamp = run.stamp(stage.name)
    if stamp is None or stamp["key"] != key(stage, recipe, run):
        return False
    return all((run.stamp(name) or {}).get("ended", 0) <= stamp["started"] for name in stage.after)


def code(stage: Stage, function: str = "run") -> Any:
    """A function of a stage's module, which is imported now. Raises ChatBakerError where its extra is not installed."""
    module = stage.module
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("chatbaker"):
            raise
        raise missing_extra(error.name or module, stage.extra) from None


def execute(stage: Stage, recipe: Recipe, run: RunDir, **options: Any) -> None:
    """Run one stage in this process. A stage that fails leaves the run's recipe, stamps and results as they were."""
    from chatbaker.recipe import dump
    from chatbaker.rundir import atomic

    stage_run = code(stage)
    with run.lock():
        depends = key(stage, recipe, run)
        started = time.time()
        stage_run(recipe, run, **options)
        run.write_stamp(
            stage.name, started, key=depends, version=__version__, sections=sections(stage, recipe), seed=recipe.seed
        )
        with atomic(run.path("recipe.toml")) as file:
            file.write(dump(recipe))


def tune_allocator() -> None:
    """Start this command again with glibc's allocator set for training; glibc reads its settings only at the start."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        command = [sys.executable, "-m", "chatbaker", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"GLIBC_TUNABLES": ALLOCATOR})
