"""The engines of `clean`: the same bytes from any number of workers, from Ray, from Slurm, and after any kill."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatbaker import made
from chatbaker.errors import ChatBakerError
from chatbaker.recipe import Recipe, dump, load
from chatbaker.rundir import RunDir
from chatbaker.text import clean, engine
from tests.text.test_clean import content, make, write


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files a language, with near-duplicates and repeated paragraphs across files."""
    root = tmp_path_factory.mktemp("data")
    for number, language in enumerate(("ko", "en")):
        texts = list(made.documents(number, 120, language))
        long = ["\n".join(texts[i : i + 4]) for i in range(0, 120, 4)]
        long += [text + "\n같은 끝 문단이 여러 문서에 되풀이해서 나오는 경우입니다." for text in long[:14]]
        random.Random(0).shuffle(long)
        for part in range(4):
            write(root / f"{language}-a.{part}.jsonl", long[part::4])
    return root


def recipe(data: Path, **section: Any) -> Recipe:
    loaded = make(data, **{"dedup": "minhash", "paragraph_repeats": 3, "validation": 0.2} | section)
    sources = tuple(s.model_copy(update={"path": s.path.replace(".jsonl", ".*.jsonl")}) for s in loaded.clean.sources)
    return loaded.model_copy(update={"clean": loaded.clean.model_copy(update={"sources": sources})})


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "TASK_BYTES", 1)  # one file, one task


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "TASK_BYTES", 1)
        run = RunDir(tmp_path_factory.mktemp("run") / "t")
        clean.run(recipe(data), run)
    made = content(run.path("clean"))
    assert sum(name.startswith("documents/") for name in made) == 8
    funnel = json.loads(made["funnel.json"])
    assert funnel["ko-a"]["dropped"]["near_duplicate"]["documents"] > 5
    return made


def test_two_workers_give_the_same_bytes(data: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    run = RunDir(tmp_path / "t")
    clean.run(recipe(data, workers=2), run)
    assert content(run.path("clean")) == undisturbed


RAY = """
import sys
from pathlib import Path
import ray
from chatbaker import rundir
from chatbaker.text import clean
from chatbaker.recipe import load
clean.TASK_BYTES = 1
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
clean.run(load(sys.argv[1]), rundir.RunDir(Path(sys.argv[2])))
"""


def test_ray_gives_the_same_bytes(data: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    pytest.importorskip("ray")
    path = tmp_path / "r.toml"
    path.write_text(dump(recipe(data, engine="ray", workers=2)), encoding="utf-8")
    subprocess.run([sys.executable, "-c", RAY, str(path), str(tmp_path / "t")], check=True, timeout=240)
    assert content(tmp_path / "t" / "clean") == undisturbed


KILLED = """
import os, signal, sys
from pathlib import Path
from chatbaker import rundir
from chatbaker.text import clean, engine
from chatbaker.recipe import load
clean.TASK_BYTES = 1
left = int(sys.argv[3])
real = Path.replace
def replace(self, target):  # every finished file is put in place by a rename: die before the n-th
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = replace
clean.run(load(sys.argv[1]), rundir.RunDir(Path(sys.argv[2])))
"""


@pytest.mark.parametrize("renames", [3, 17, 29, 41])
def test_a_kill_costs_nothing_finished(
    data: Path, tmp_path: Path, undisturbed: dict[str, bytes], renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(dump(recipe(data)), encoding="utf-8")
    run = RunDir(tmp_path / "t")
    ended = subprocess.run([sys.executable, "-c", KILLED, str(path), str(run.root), str(renames)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert not run.path("clean").exists()
    steps: list[tuple[str, int]] = []
    completed = {(p.parent.parent.name, int(p.name)) for p in run.path("clean.work").glob("*/completions/*")}
    real = engine.Phase.__call__

    def spied(self: engine.Phase, data: object, rank: int = 0, world_size: int = 1) -> None:
        steps.append((self.folder.name, rank))
        real(self, data, rank, world_size)

    monkeypatch.setattr(engine.Phase, "__call__", spied)
    clean.run(load(path), run)
    assert content(run.path("clean")) == undisturbed
    assert not completed & set(steps), "a finished task was done again"
    assert not run.path("clean.work").exists()


@pytest.mark.parametrize("moment", ["rmdir", "rmtree"])
def test_a_kill_after_the_result_is_in_place_loses_nothing(
    data: Path, tmp_path: Path, undisturbed: dict[str, bytes], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "t")

    def die(path: Path, ignore_errors: bool = False) -> None:
        if run.path("clean", "documents").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "rmdir") if moment == "rmdir" else (clean.shutil, "rmtree")), die)
        with pytest.raises(KeyboardInterrupt):
            clean.run(recipe(data), run)
    assert content(run.path("clean")) == undisturbed
    clean.run(recipe(data), run)
    assert content(run.path("clean")) == undisturbed


SBATCH = """#!/bin/sh
# Stands in for Slurm: runs each task of the array at once, as a node would.
for last; do :; done
cp "$last" "$FAKE_SLURM/job.$$.sh"
echo "$@" >> "$FAKE_SLURM/calls"
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$last")
case "$(cat "$last")" in *merge_stats*) echo "Submitted batch job $$"; exit 0;; esac
for task in $(seq 0 "$tasks"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=node RUN_OFFSET=0 sh "$last" >> "$FAKE_SLURM/out" 2>&1 || exit 1
done
echo "Submitted batch job $$"
"""
SRUN = '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done\nexec "$@"\n'


def test_slurm_jobs_are_valid_and_give_the_same_bytes(
    data: Path, tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, script in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", "#!/bin/sh\necho node\n")):
        (fake / name).write_text(script, encoding="utf-8")
        (fake / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("FAKE_SLURM", str(fake))
    monkeypatch.setenv("PATH", f"{fake}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    run = RunDir(tmp_path / "t")
    slurm = {"partition": "p1", "time": "01:00:00", "memory_gb": 3, "setup": "true"}
    # Here the jobs are done when `sbatch` returns; on a cluster they are not.
    monkeypatch.setattr(engine.SlurmPipelineExecutor, "get_incomplete_ranks", incomplete)
    with pytest.raises(ChatBakerError, match="same command"):
        clean.run(recipe(data, engine="slurm", slurm=slurm, workers=2), run)
    monkeypatch.undo()
    monkeypatch.setattr(clean, "TASK_BYTES", 1)
    scripts = [path.read_text(encoding="utf-8") for path in sorted(fake.glob("job.*.sh"))]
    arrays = [script for script in scripts if "launch_pickled_pipeline" in script]
    assert len(arrays) >= 3
    for path in fake.glob("job.*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)
    for script in arrays:
        assert {"--partition=p1", "--time=01:00:00", "--mem-per-cpu=3G"} <= set(re.findall(r"#SBATCH (\S+)", script))
        assert re.search(r"#SBATCH --array=0-\d+%2", script)
    assert "--dependency=afterok:" in (fake / "calls").read_text(encoding="utf-8")
    clean.run(recipe(data, engine="slurm", slurm=slurm, workers=2), run)  # nothing is left to submit
    assert content(run.path("clean")) == undisturbed


def incomplete(self: engine.SlurmPipelineExecutor, ranks: object = None, skip_completed: object = None) -> list[int]:
    return list(range(self.world_size))


def test_without_slurm_the_line_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ChatBakerError, match="sbatch"):
        clean.run(recipe(data, engine="slurm"), RunDir(tmp_path / "t"))
