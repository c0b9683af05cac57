"""The zero-shot tasks of suites.json: prompts and scoring are lm-eval's; what a score is worth beside guessing.

A set that cannot be had is absent with its reason; a set that is there but wrong is an error.
"""

from __future__ import annotations

import difflib
import functools
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unicodedata import normalize

import datasets
import lm_eval.api.task
import numpy as np
from huggingface_hub import constants
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks.super_glue.record.t5_utils import normalize_squad

from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_jsonl
from chatbaker.log import say
from chatbaker.rundir import read_json

HERE = Path(__file__).parent
REFERENCE = "ChatBaker-PLM 1.3B"  # the published model that stands beside every score


class Task(NamedTuple):
    """A row of suites.json. config: folder of lm-eval's tasks. metrics: metric -> label in the published table.

    data: folder of the local copy, if not the task's name. Without columns it is a group, from the hub alone.
    gold_first: the right choice always stands first, so that no position is a baseline.
    """

    suite: str
    task: str
    config: str
    version: float
    metrics: dict[str, str]
    split: str = ""
    data: str = ""
    columns: Sequence[str] = ()
    gold_first: bool = False


class Loaded(NamedTuple):
    """A task with its items. baselines: metric -> (chance, best constant answer or None). n: items to be scored."""

    task: Task
    built: dict[str, Any]
    version: float
    n: int
    baselines: dict[str, tuple[float, float | None]]


def published(suites: Sequence[str]) -> dict[str, Any]:
    """{suite: {"metric", "models": {name: {label: value}}, "averages", "note"}} of the suites that have a table."""
    return {suite: figures for suite, figures in read_json(HERE / "published.json").items() if suite in suites}


def select(suites: Sequence[str], names: Sequence[str]) -> list[Task]:
    """The suites' tasks, or those of them that are named. Raises ChatBakerError for a name that is not theirs."""
    tasks = [Task(suite, **row) for suite, rows in read_json(HERE / "suites.json").items() for row in rows]
    home = {task.task: task.suite for task in tasks}
    for name in names:
        if home.get(name) not in suites:
            close = difflib.get_close_matches(name, home, 1, 0.5)
            hint = f"Did you mean {close[0]!r}, of suite {home[close[0]]}?" if close else f"Tasks: {', '.join(home)}"
            raise ChatBakerError(f"no task {name!r} in the suites {', '.join(suites)}", "eval.tasks", hint)
    return [task for task in tasks if task.suite in suites and (not names or task.task in names)]


def load(tasks: Sequence[Task], data: Path | None, limit: int | None) -> tuple[list[Loaded], list[dict[str, str]]]:
    """The tasks that can be had, and [{"suite", "task", "reason"}] of the others. data: None reads from the hub.

    limit: first items of a set to take. Raises ChatBakerError for a local file that is wrong.
    """
    if data and not data.is_dir():
        raise ChatBakerError("no such folder", str(data), "eval.data (--data) holds one folder a task")
    for talkative in ("lm_eval", "huggingface_hub"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    lm_eval.api.task.tqdm = functools.partial(lm_eval.api.task.tqdm, disable=True)  # has no switch of its own
    templates = lm_eval.utils.env  # compiled anew for every item: most of the time of a large set
    templates.from_string = functools.lru_cache(templates.from_string)
    folders = {Path(lm_eval.__file__).parent / "tasks" / task.config for task in tasks}
    manager = TaskManager(include_defaults=False, include_path=sorted(folders))  # all of lm-eval's take 20 s
    squad: Any = SimpleNamespace(compute_f1=_f1, compute_exact=lambda a, b: normalize_squad(a) == normalize_squad(b))
    squad.squad_metrics = squad  # lm-eval's ReCoRD needs this module, which transformers 5 has dropped
    sys.modules["transformers.data.metrics"] = sys.modules["transformers.data.metrics.squad_metrics"] = squad
    found = [(task, _load(manager, task, data, limit)) for task in tasks]
    absent = [{"suite": task.suite, "task": task.task, "reason": why} for task, why in found if isinstance(why, str)]
    return [one for _, one in found if isinstance(one, Loaded)], absent


def _f1(gold: str, said: str) -> float:
    a, b = (Counter(normalize_squad(text).split()) for text in (gold, said))
    return 2 * (a & b).total() / max((a + b).total(), 1)


def _load(manager: Any, task: Task, data: Path | None, limit: int | None) -> Loaded | str:
    """The task, or the reason why it is absent."""
    where, splits = "hub", {"training_split": None, "validation_split": None, "test_split": task.split}
    spec: dict[str, Any] = {"task": task.task} | splits
    # Left to itself, lm-eval fetches the code of F1 from the hub.
    how = {"aggregation": macro_f1 if "macro_f1" in task.metrics else "mean", "higher_is_better": True}
    spec["metric_list"] = [{"metric": name.removeprefix("macro_")} | how for name in task.metrics]
    if data:
        if not task.columns:
            return "a group of sets that is read from the hub alone: leave --data out"
        folder = data / (task.data or task.task)
        names = (f"{task.split}.jsonl{packed}" for packed in ("", ".zst", ".gz"))
        if not (paths := [folder / name for name in names if (folder / name).is_file()]):
            return f"no {folder.name}/{task.split}.jsonl (.zst, .gz) there"
        where, rows = str(paths[0]), read_rows(task, paths[0])
        spec["custom_dataset"] = lambda **_: {task.split: datasets.Dataset.from_list(rows)}
    try:  # a group with one member is the form in which lm-eval takes changes to a task that it knows
        built = manager.load([{"group": "changed", "task": [spec]}] if task.columns else [task.task])
        picks = [row for one in built["tasks"].values() for row in _picks(one, limit)]
    except Exception as error:  # the hub and datasets raise a score of kinds: HTTP, offline, gated, moved, mixed types
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if data:
            raise ChatBakerError(f"{task.task} cannot read these items ({reason})", where) from None
        if isinstance(error, ConnectionError):  # of half a minute each; what the hub's cache holds is still found
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        return f"not to be had from the hub ({reason})"
    found = (built["tasks"] | built["groups"])[task.task]
    version = float(getattr(found, "VERSION", None) or found.version)
    if version != task.version:  # no error: with a newer lm-eval one gets one's scores, and is told what they are
        say(f"eval: {task.task} is version {version} in this lm-eval; the published figures belong to {task.version}")
    baselines = {}
    for name in task.metrics:
        values = [[pick[name.removeprefix("macro_")] for pick in row] for row in picks]
        chance, majority = baseline(values, f"{task.task}, {where}")
        baselines[name] = (chance, None if task.gold_first else majority)
    return Loaded(task, built, version, len(picks), baselines)


def read_rows(task: Task, path: Path) -> list[dict[str, Any]]:
    """The items of a local file, in NFC, with the columns that the task reads. Raises ChatBakerError."""
    rows = []
    for number, record in read_jsonl(path):
        if missing := [name for name in task.columns if record.get(name) is None]:
            hint = f"{task.task} needs: {', '.join(task.columns)}"
            raise ChatBakerError(f"no column {missing[0]!r}", f"{path}:{number}", hint)
        values = ((name, record[name]) for name in task.columns)
        rows.append({name: normalize("NFC", of) if isinstance(of, str) else of for name, of in values})
    if not rows:
        raise ChatBakerError("no items", str(path))
    return rows


def _picks(task: Any, limit: int | None) -> Iterator[list[dict[str, Any]]]:
    """For each item, what the metrics say of a model that prefers its first choice, its second, ..."""
    for _, doc in task.doc_iterator(rank=0, limit=limit, world_size=1):
        task.doc_to_text(doc)  # a wrong item shows now, not after hours
        count = range(len(task.doc_to_choice(doc)))
        picks = count if int(doc.get("label", 0)) in count else ()  # COPA would take any other for the second
        yield [task.process_results(doc, [(-1.0 if i == pick else -1e9, False) for i in count]) for pick in picks]


def baseline(rows: list[list[Any]], where: str) -> tuple[float, float]:
    """(chance, best constant answer) of a metric. rows: its value, per item, for each choice that may be picked.

    For macro-F1 the values are (gold, picked). Raises ChatBakerError for an item without a right choice.
    """
    pairs = any(isinstance(value, tuple) for value in rows[0])
    for number, row in enumerate(rows, 1):
        if not row or ((row[0][0] < 0) if pairs else max(row) <= 0):
            raise ChatBakerError(f"item {number} has no right answer among its choices", where)
    width = max(map(len, rows))
    if pairs:
        gold = np.array([row[0][0] for row in rows])
        counts = np.bincount(gold, minlength=width)
        chance = float(np.mean(2 * counts / width / (counts + len(gold) / width)))
        return chance, max(macro_f1([(label, pick) for label in gold]) for pick in range(width))
    constant = [sum(row[pick] for row in rows if pick < len(row)) / len(rows) for pick in range(width)]
    return float(np.mean([np.mean(row) for row in rows])), max(constant)


def macro_f1(pairs: Any) -> float:
    """The mean, over the labels that occur in (gold, predicted) pairs, of each one's F1."""
    gold, picked = np.asarray(pairs).T
    labels = np.union1d(gold, picked)[:, None]
    is_gold, is_picked = gold == labels, picked == labels
    return float(np.mean(2 * (is_gold & is_picked).sum(1) / (is_gold.sum(1) + is_picked.sum(1))))


def score(loaded: Loaded, lm: Any, limit: int | None) -> list[dict[str, Any]]:
    """A row of results.json for each metric of a task, scored by an lm-eval model."""
    task, rows, results = loaded.task, [], evaluate(lm, loaded.built, limit=limit)
    figures = results["results"][task.task]
    for metric, label in task.metrics.items():
        name = metric.removeprefix("macro_")
        value, error = float(figures[f"{name},none"]), figures[f"{name}_stderr,none"]
        if metric == "macro_f1":
            pairs, draw = np.array([sample["f1"] for sample in results["samples"][task.task]]), np.random.default_rng(0)
            error = np.std([macro_f1(pairs[draw.integers(loaded.n, size=loaded.n)]) for _ in range(1000)])  # bootstrap
        stderr = float(error) if isinstance(error, float) else None  # lm-eval has none for a single item
        chance, majority = loaded.baselines[metric]
        facts = {"suite": task.suite, "label": label, "task": task.task, "version": loaded.version, "metric": metric}
        facts |= {"value": value, "stderr": stderr, "n": loaded.n, "chance": chance, "majority": majority}
        rows.append(facts | {"above": above(value, stderr, loaded.n, max(chance, majority or 0.0))})
    return rows


def above(value: float, stderr: float | None, n: int, baseline: float) -> bool:
    """Whether a score's 95 % interval is above a baseline. An error of 0 has the rule of three: 3/n."""
    return stderr is not None and value - max(1.96 * stderr, 3 / n) > baseline


def average(suite: str, scores: Sequence[dict[str, Any]], limit: int | None) -> dict[str, Any]:
    """The unweighted mean over a published table's rows, as there, and the reference's over the same rows."""
    values = {row["label"]: row["value"] for row in scores if row["suite"] == suite}
    reference = published([suite])[suite]["models"][REFERENCE]
    known = {"n": len(values), "of": len(reference), "complete": values.keys() == reference.keys() and limit is None}
    means = {"value": list(values.values()), "published": [reference[label] for label in values]}
    return known | {"limit": limit} | {name: float(np.mean(row)) if row else None for name, row in means.items()}
