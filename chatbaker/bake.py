"""A whole bake: every stage of a recipe in order, each in a process of its own, the fresh ones skipped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from chatbaker.errors import ChatBakerError
from chatbaker.log import duration, say
from chatbaker.recipe import load
from chatbaker.rundir import BAKING, RunDir
from chatbaker.stages import fresh, planned


def bake(recipe_path: str, overrides: Sequence[str], runs: str) -> RunDir:
    """Run what is not fresh; returns the run folder. A stage that fails has said why and ends the bake."""
    recipe = load(recipe_path, overrides)
    run = RunDir.of(recipe.name, runs)
    stages = planned(recipe)
    with run.lock(".bake"):
        for number, stage in enumerate(stages, 1):
            title = f"[{number}/{len(stages)}] {stage.name}"
            stamp = run.stamp(stage.name)
            if stamp and fresh(stage, recipe, run):
                say(f"{title}: fresh, made in {duration(stamp['seconds'])}")
                continue
            if load(recipe_path, overrides) != recipe:
                raise ChatBakerError("the recipe was changed during the bake", recipe_path, "Type bake again")
            say(f"{title}: {stage.help}")
            command = [sys.executable, "-m", "chatbaker", stage.name, recipe_path, *overrides, "--runs", runs]
            if _wait(subprocess.Popen(command, env=os.environ | {BAKING: "1"})):
                raise ChatBakerError(f"the bake stopped in '{stage.name}'", hint="The same command goes on from there")
    return run


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The stage's exit code. Ctrl-C reaches the stage by itself and SIGTERM is passed on: it saves before it stops."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
