"""Stage `eval`: zero-shot tasks and bits per byte of the base model, how the chat model talks; or all of one model.

Scores go into an append-only file as they are found: the same command after a kill goes on where it was.
"""

from __future__ import annotations

import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chatbaker import __version__
from chatbaker.errors import ChatBakerError
from chatbaker.evals import bits, suites
from chatbaker.evals.chat import ANSWER, examine
from chatbaker.evals.ledger import Ledger
from chatbaker.evals.lm import open_lm
from chatbaker.infer.engine import identity
from chatbaker.log import duration, say
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir, write_json


def run(recipe: Recipe, run: RunDir, model: str | None = None, url: str | None = None, device: str = "auto") -> None:
    """Write eval/results.json and print it as a table. Raises ChatBakerError where nothing at all can be measured."""
    section, home, began, given = recipe.eval, Path(recipe.data_root), time.time(), bool(model or url)
    if given:
        identity(model, url)  # a wrong name is told of now
    tasks = suites.select(section.suites, section.tasks)
    texts = bits.find(section.texts, home, None if section.tasks else run)
    say(f"eval: reading {len(tasks)} sets")
    loaded, absent = suites.load(tasks, home / section.data if section.data else None, section.limit)
    results: dict[str, Any] = {"model": recipe.name, "kind": None, "date": time.strftime("%Y-%m-%d %H:%M:%S")}
    results["versions"] = {"chatbaker": __version__} | {name: version(name) for name in ("lm_eval", "torch")}
    results |= {"limit": section.limit, "seconds": 0.0, "scores": [], "averages": {}, "absent": absent}
    results |= {"bits_per_byte": [], "chat": None, "published": suites.published(section.suites)}
    if loaded or texts:
        scored = model if given else str(run.need("pretrain", "model", stage="pretrain"))
        with closing(open_lm(scored, url, device, section.batch_size, run.path("eval", "scores.jsonl"))) as lm:
            results["kind"] = lm.kind
            for number, task in enumerate(loaded, 1):
                say(f"eval: {task.task.task} ({number} of {len(loaded)}), {task.n:,} items")
                results["scores"] += suites.score(task, lm, section.limit)
            try:
                results["bits_per_byte"] = bits.measure(lm, texts) if texts else []
            except ChatBakerError as error:  # not every server can; the scores stay
                absent.append({"suite": "texts", "task": "bits per byte", "reason": str(error)})
    for suite in sorted({row["suite"] for row in results["scores"]} & results["published"].keys()):
        results["averages"][suite] = suites.average(suite, results["scores"], section.limit)
    if "chat" in section.suites and not section.tasks:
        answers = Ledger(run.path("eval", "answers.jsonl"), *ANSWER)
        try:
            results["chat"] = examine(answers, model if given else str(run.root), url, device, section.limit)
        except ChatBakerError as error:  # no chat model yet, say, or no template; the scores stay
            absent.append({"suite": "chat", "task": "chat", "reason": str(error)})
    if not (results["scores"] or results["bits_per_byte"] or results["chat"]):
        reason = f"{absent[0]['task']}: {absent[0]['reason']}" if absent else "No suite and no text was asked for"
        raise ChatBakerError("nothing could be measured", recipe.name, reason)
    results["seconds"] = round(time.time() - began, 1)
    write_json(path := run.path("eval", "results.json"), results)
    show(results)
    say(f"eval: {path}, after {duration(results['seconds'])}")


def show(results: dict[str, Any]) -> None:
    """Print the results, at most 110 columns wide."""
    line = "{:<18}{:<10}{:>7}{:>7}{:>8}{:>8}{:>10}  {:<11}{:>19}".format
    if results["scores"]:
        limit = f", the first {results['limit']} items of each set" if results["limit"] else ""
        print(f"{results['model']}: zero-shot{limit}\nMarked: not above chance and majority (95 %)\n")
        print(line("task", "metric", "score", "±", "items", "chance", "majority", "", suites.REFERENCE))
    for suite in dict.fromkeys(row["suite"] for row in results["scores"]):
        published = results["published"][suite]["models"][suites.REFERENCE] if suite in results["published"] else {}
        for row in [row for row in results["scores"] if row["suite"] == suite]:
            cells = [_cell(row[name]) for name in ("value", "stderr", "n", "chance", "majority")]
            mark = "" if row["above"] else "not above"
            print(line(row["task"], row["metric"], *cells, mark, _cell(published.get(row["label"]))))
        if mean := results["averages"].get(suite):
            of = f"{mean['n']} of {mean['of']}"
            print(line(f"{suite}: mean", of, _cell(mean["value"]), *[""] * 5, _cell(mean["published"])))
        print()
    for row in results["absent"]:
        print(f"absent: {row['suite']}, {row['task']}: {row['reason']}")
    for row in results["bits_per_byte"]:
        print(f"{row['bits_per_byte']:.4f} bits per byte: {row['file']} ({row['language']}, {row['bytes']:,})")
    if chat := results["chat"]:
        shares = {f"register kept, {name}": chat["register"][name] for name in ("formal", "informal")}
        for name, share in (shares | {"stop rate": chat["stop_rate"], "repetition": chat["repetition_rate"]}).items():
            span = f"{_cell(share['value'])} [{_cell(share['low'])}, {_cell(share['high'])}] of {share['n']}"
            print(f"{name}: {span}")


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
