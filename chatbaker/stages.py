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
from chatbaker.rundir import RunDir, atomic, digest, find_below, find_files, fingerprint, machine

if TYPE_CHECKING:
    from chatbaker.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """name: verb, recipe section and run subfolder in one. module: holds its `run`. after, sections: what it needs."""

    name: str
    module: str
    help: str
    after: tuple[str, ...]
    sections: tuple[str, ...]

    @property
    def trains(self) -> bool:
        return self.module.startswith("chatbaker.train.")


STAGES = {
    name: Stage(name, f"chatbaker.{module}", text, tuple(after.split()), tuple(sections.split()))
    for name, module, text, after, sections in (
        ("clean", "text.clean", "Read the sources, drop what is not wanted, keep count.", "", "clean"),
        ("tokenizer", "tokens.bpe", "Train the byte-level BPE tokenizer.", "clean", "tokenizer"),
        ("pack", "tokens.pack", "Tokenize the documents into memory-mapped shards.", "clean tokenizer", ""),
        ("pretrain", "train.pretrain", "Train the base model; resumes by itself.", "pack", "model pretrain parallel"),
        ("sft", "train.sft", "Tune it on conversations; resumes by itself.", "pretrain", "model sft parallel"),
        ("dpo", "train.dpo", "Tune it on pairs of answers; resumes by itself.", "sft", "model dpo parallel"),
        ("export", "export.stage", "Write the Hugging Face folder, GGUF files and model card.", "sft dpo", "export"),
        ("eval", "evals.stage", "Zero-shot tasks, bits per byte, register, stop, repetition.", "sft dpo", "eval"),
        ("judge", "evals.judge", "Answer prompts, and let another model score the answers.", "sft dpo", "judge"),
    )
}


def planned(recipe: Recipe) -> list[Stage]:
    """The stages of a bake. No pairs, no dpo; without a suite nothing is evaluated, nothing judged without a judge."""
    wanted = {"dpo": bool(recipe.dpo.sources), "eval": bool(recipe.eval.suites), "judge": bool(recipe.judge.url)}
    return [stage for stage in STAGES.values() if wanted.get(stage.name, True)]


ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
"""Large pages, and freed memory kept for the next step: about a third of CPU training speed (see docs/log.md)."""


def sections(stage: Stage, recipe: Recipe) -> dict[str, Any]:
    """The recipe sections that decide a stage's result, as plain data."""
    return {name: getattr(recipe, name).decisive() for name in stage.sections}


def key(stage: Stage, recipe: Recipe, run: RunDir) -> str:
    """What a stage's result depends on: its sections, its files, the seed and the stages before it."""
    before = [stamp["key"] for stamp in map(run.stamp, stage.after) if stamp]
    paths: set[Path] = set()
    read = {"eval": [recipe.eval.data, *recipe.eval.texts], "judge": [recipe.judge.prompts]}
    read["clean"] = [*recipe.clean.decontaminate]
    for pattern in filter(None, read.get(stage.name, ())):
        paths.update(find_below(Path(recipe.data_root), pattern))
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


def code(stage: Stage, function: str = "run", module: str | None = None) -> Any:
    """A function of a stage's module, or of another that needs the same extra, imported now.

    Raises ChatBakerError where the extra is not installed.
    """
    try:
        return getattr(importlib.import_module(module or stage.module), function)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("chatbaker"):
            raise
        extra = stage.name if stage.name in ("clean", "eval") else "train"
        raise missing_extra(error.name or stage.module, extra) from None


def execute(stage: Stage, recipe: Recipe, run: RunDir, **options: Any) -> None:
    """Run one stage in this process. A stage that fails leaves the run's recipe, stamps and results as they were."""
    from chatbaker.recipe import dump

    stage_run = code(stage)
    if stage.trains and machine():  # the first machine keeps the books
        return stage_run(recipe, run, **options)
    with run.lock():
        depends = key(stage, recipe, run)
        started = time.time()
        stage_run(recipe, run, **options)
        facts = {"version": __version__, "sections": sections(stage, recipe), "seed": recipe.seed}
        run.write_stamp(stage.name, started, key=depends, **facts)
        with atomic(run.path("recipe.toml")) as file:
            file.write(dump(recipe))


def tune_allocator() -> None:
    """Start this command again with glibc's allocator set for training; glibc reads its settings only at the start."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        command = [sys.executable, "-m", "chatbaker", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {"GLIBC_TUNABLES": ALLOCATOR})
