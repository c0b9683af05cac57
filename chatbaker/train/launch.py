"""A training stage as one process a GPU: `launched` starts them, `main` is one of them.

On several machines the same command runs once on each, as the script that `write_slurm_script` writes has it; the first
keeps the books.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import sys
from importlib import import_module
from pathlib import Path

from chatbaker.dist import launch, nodes
from chatbaker.errors import ChatBakerError
from chatbaker.log import say
from chatbaker.recipe import Recipe, dump, load
from chatbaker.rundir import RunDir, atomic

NOTE = "error.json"


def launched(stage: str, recipe: Recipe, run: RunDir) -> bool:
    """Whether the stage's work was done here by several processes; if not, it is this process's own.

    Several are started for several visible GPUs, or for `parallel.processes`. When one is lost, all start anew and go
    on from the newest checkpoint, at most `parallel.restarts` times.
    """
    if "RANK" in os.environ:
        return False
    import torch

    gpus = torch.cuda.device_count()
    machines, count = nodes().size, recipe.parallel.processes or max(1, gpus)
    if 0 < gpus < count:
        raise ChatBakerError(f"{count} processes for {gpus} GPU(s)", "parallel.processes", f"Take at most {gpus}, or 0")
    if machines * count < 2:
        return False
    path, note = run.path(stage, "recipe.toml"), run.path(stage, NOTE)
    if nodes().rank == 0:
        with atomic(path) as file:
            file.write(dump(recipe))
        say(f"{stage}: {count} processes on " + ("this machine" if machines == 1 else f"each of {machines} machines"))
    command = ["-m", "chatbaker.train.launch", stage, str(path), str(run.root)]
    launch(command, count, recipe.parallel.restarts, note)
    return True


def write_slurm_script(path: Path, stage: str, recipe: Recipe, arguments: list[str]) -> None:
    """A batch script for `chatbaker STAGE ARGUMENTS` on `parallel.nodes` machines of `parallel.processes` GPUs."""
    from jinja2 import Template

    if not recipe.parallel.processes:
        raise ChatBakerError("say how many GPUs a machine has", "parallel.processes", "Such as parallel.processes=8")
    if path.exists():
        raise ChatBakerError("already there", str(path), "Give another name")
    template = Template(Path(__file__).with_name("slurm.sh.jinja").read_text("utf-8"), keep_trailing_newline=True)
    command = shlex.join([sys.executable, "-m", "chatbaker", stage, *arguments])
    with atomic(path) as file:
        file.write(template.render(name=recipe.name, stage=stage, parallel=recipe.parallel, command=command))
    print(f"{path}: add your partition and account, then type: sbatch {path}")


def main() -> None:
    """One process of those: an error that the user can mend goes into the note, for the process that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not without the process that started it,
        if os.getppid() == 1:  # whose lock on the run is gone with it
            sys.exit(1)
    stage, recipe, root = sys.argv[1:]
    run = RunDir(Path(root))
    note = run.path(stage, NOTE)
    if note.exists():  # a new start cannot mend it
        return
    if restarts := int(os.environ["TORCHELASTIC_RESTART_COUNT"]):
        say(f"{stage}: a process was lost; all start anew ({restarts} of {os.environ['TORCHELASTIC_MAX_RESTARTS']})")
    from torch.distributed import DistError

    try:
        import_module(f"chatbaker.train.{stage}").run(load(recipe), run)
    except ChatBakerError as error:
        with atomic(note) as file:
            json.dump([error.what, error.where, error.hint], file)
        sys.exit(1)
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, DistError):
            raise
        print(f"process {os.environ['RANK']} lost touch with another", file=sys.stderr)  # whose own end says why
        sys.exit(1)


if __name__ == "__main__":
    main()
