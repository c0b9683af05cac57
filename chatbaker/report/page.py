"""`chatbaker report`: one index.html, and the pictures in it, from the plain files of run folders.

Its content security policy lets nothing else in: what a model wrote can only be read. Any record may be missing; its
section then names the verb that makes it. All words are in page.html.jinja.
"""

from __future__ import annotations

import base64
import hashlib
import math
import time
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChainableUndefined, Environment, FileSystemLoader, TemplateError
from safetensors import safe_open

from chatbaker import __version__
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_jsonl
from chatbaker.log import duration, say
from chatbaker.report.charts import GREYS, PALETTE, Series, bars, curves, stacked
from chatbaker.rundir import STAMP, new_folder, read_json

STAGES = ("clean", "tokenizer", "pack", "pretrain", "sft", "dpo", "export", "eval", "judge")
RECORDS = (
    *("clean/funnel.json", "clean/ledger.json", "clean/encodings.json", "tokenizer/fertility.json", "pack/index.json"),
    *("pretrain/metrics.jsonl", "sft/metrics.jsonl", "dpo/metrics.jsonl", "export/parity.json", "eval/results.json"),
    *("judge/answers.jsonl", "judge/verdicts.jsonl", "judge/pairs.jsonl", "judge/scores.json"),
    *(f"{stage}/{STAMP}" for stage in STAGES),
)
Table = dict[str, Any]  # a JSON object; or a run: root, name, recipe, and the text of each file by its path


def write_report(runs: Sequence[Path]) -> Path:
    """Write the first run's report, compared with the others; index.html's path. ChatBakerError for damaged records."""
    roots = list(dict.fromkeys(path.resolve() for path in runs))
    taken = Counter(root.name for root in roots)
    read = [_read(root, root.name if taken[root.name] == 1 else f"{root.parent.name}/{root.name}") for root in roots]
    if len(read[0]) == 2:
        raise ChatBakerError("no records of a bake are here", str(roots[0]), "Give a run folder, such as runs/NAME")
    with new_folder(roots[0] / "report") as folder:
        if reason := _fill(folder, read):
            alone = (({"root": run["root"], "name": "", file: run[file]}, file) for run in read for file in run)
            files = [run["root"] / file for run, file in alone if file in RECORDS and _fill(folder, [run])]
            raise ChatBakerError(f"not what a verb writes ({reason})", str((files or roots)[0]), "Run its verb again")
    return runs[0] / "report" / "index.html"


def _fill(folder: Path, runs: Sequence[Table]) -> str:
    """Draw the pictures and write the page; why not, where a record is JSON but not what is expected of it."""
    try:
        _draw(folder, runs[0], runs)
        (folder / "index.html").write_text(_page(folder, runs), encoding="utf-8")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ""


def _read(root: Path, name: str) -> Table:
    if not root.is_dir():
        raise ChatBakerError("no such run folder", str(root))
    run: Table = {"root": root, "name": name}
    for file in filter(lambda file: (root / file).is_file(), RECORDS):
        rows = read_jsonl(root / file, lambda error: say(f"left out: {error}"))  # such as a line not yet whole
        run[file] = [row for _, row in rows] if file.endswith(".jsonl") else read_json(root / file)
    if (recipe := root / "recipe.toml").is_file():
        run["recipe.toml"] = recipe.read_text(encoding="utf-8", errors="replace")
        with suppress(tomllib.TOMLDecodeError):  # then it is shown, and nothing is made of it
            run["recipe"] = tomllib.loads(run["recipe.toml"])
    return run


def _parameters(root: Path) -> int:
    """Counted in the weights' headers; 0 where there are no weights."""
    models = ("dpo/model", "sft/model", "pretrain/model", "export/hf")
    found = (list(root.glob(f"{model}/*.safetensors")) for model in models)
    weights: Any = [safe_open(file, "np") for file in next(filter(None, found), [])]
    return sum(math.prod(one.get_slice(name).get_shape()) for one in weights for name in one.keys())  # noqa: SIM118


def _draw(folder: Path, own: Table, runs: Sequence[Table]) -> None:
    if funnel := own.get("clean/funnel.json"):
        _funnel(folder / "data.png", funnel)
    if sources := own.get("tokenizer/fertility.json", {}).get("sources"):
        words = _series("tokens per word", list(sources.values()), "tokens_per_word")
        bars(folder / "tokenizer.png", list(sources), [words], "tokens per word", None, {})
    for stage in ("pretrain", "sft", "dpo"):
        if rows := own.get(f"{stage}/metrics.jsonl"):
            _training(folder, stage, rows)
    results = {run["name"]: run["eval/results.json"] for run in runs if "eval/results.json" in run}
    for suite in dict.fromkeys(score["suite"] for one in results.values() for score in one["scores"]):
        _scores(folder / f"eval-{suite}.png", results, suite)
    if chats := {name: {**chat, **chat["register"]} for name, one in results.items() if (chat := one.get("chat"))}:
        rates = {"register kept": "kept", "in 존댓말": "formal", "in 반말": "informal"}
        rates |= {"answers that stop": "stop_rate", "answers that repeat": "repetition_rate"}
        series = [_series(name, map(chat.get, rates.values()), "value") for name, chat in chats.items()]
        bars(folder / "chat.png", list(rates), series, "share of answers, with 95 % interval", 1, {})
    if judged := {run["name"]: run["judge/scores.json"] for run in runs if "judge/scores.json" in run}:
        total = _series("mean total", [one["total"] for one in judged.values()], "mean")
        bars(folder / "judge-total.png", list(judged), [total], "points, of 30, with 95 % interval", 30, {})
    for part, limit in (("metrics", 5), ("categories", 30)):
        if names := list(dict.fromkeys(name for one in judged.values() for name in one[part])):
            series = [_series(run, map(one[part].get, names), "mean") for run, one in judged.items()]
            bars(folder / f"judge-{part}.png", names, series, f"points, of {limit}, with 95 % interval", limit, {})
    if pairs := own.get("judge/scores.json", {}).get("pairs"):
        _pairs(folder / "judge-pairs.png", pairs)


def _funnel(path: Path, funnel: Table) -> None:
    """Shares of each source's documents: kept, held out, and dropped for the reasons that take most."""
    tables = [{"kept": one["kept"], "held out": one["validation"], **one["dropped"]} for one in funnel.values()]
    counts = [Counter({part: pair["documents"] for part, pair in table.items()}) for table in tables]
    found = dict.fromkeys(["kept", "held out", *(part for part, _ in sum(counts, Counter[str]()).most_common())])
    colours = dict(zip(found, (PALETTE[place] for place in (0, 4, 1, 3, 6, 5, 2)), strict=False))
    parts = {name.replace("_", " "): (colour, [one[name] for one in counts]) for name, colour in colours.items()}
    rest = [one.total() - sum(one[name] for name in colours) for one in counts]
    stacked(path, list(funnel), parts | ({"other reasons": (GREYS[3], rest)} if any(rest) else {}))


def _training(folder: Path, stage: str, rows: list[Table]) -> None:
    def logged(key: str) -> tuple[list[float], list[float]]:
        found = [row for row in rows if row.get(key) is not None]
        return [row["step"] for row in found], [row[key] for row in found]

    def held(key: str) -> dict[str, Any]:
        looks = ((one, [row for row in rows if one in row.get("eval", ())]) for one in ("ko", "en"))
        return {f"held-out {k}": ([r["step"] for r in v], [r["eval"][k][key] for r in v]) for k, v in looks if v}

    loss = {"loss, nats per token": held("loss") | {"training": logged("loss")}}
    curves(folder / f"{stage}.png", loss | ({"bits per byte": held("bits_per_byte")} if held("loss") else {}))
    keys = {"tokens_per_second": "tokens per second", "mfu": "MFU", "lr": "learning rate", "grad_norm": "gradient norm"}
    curves(folder / f"{stage}-speed.png", {title: {title: logged(key)} for key, title in keys.items()}, 2, 2.0)


def _series(name: str, found: Iterable[Table | None], key: str) -> Series:
    """Bars of figures that carry their interval, or a standard error, of which it is 1.96 to each side."""
    rows = [row or {} for row in found]
    values, low, high, error = (np.array([row.get(k) for row in rows], float) for k in (key, "low", "high", "stderr"))
    low, high = np.fmin(low, values - 1.96 * error), np.fmax(high, values + 1.96 * error)
    return Series(name, values, low, high, [row.get("above") is False for row in rows])


def _scores(path: Path, results: dict[str, Table], suite: str) -> None:
    """A suite's scores, task by task, and its average where no task is missing; published figures beside."""
    scores = {name: {s["label"]: s for s in one["scores"] if s["suite"] == suite} for name, one in results.items()}
    published: Table = {}
    for name, one in results.items():
        average = one["averages"].get(suite, {})
        scores[name] |= {"average": average} if average.get("complete") else {}
        published = published or one.get("published", {}).get(suite, {})
    known = {task: one for table in reversed(scores.values()) for task, one in table.items()}  # first of all, the own
    series = [_series(name, map(one.get, known), "value") for name, one in scores.items() if one]
    for (name, figures), grey in zip(published.get("models", {}).items(), GREYS, strict=False):
        figures = figures | {"average": published.get("averages", {}).get(name)}
        series.append(Series(name, np.array([figures.get(task) for task in known], float), colour=grey))
    marks = {mark: [one.get(mark) for one in known.values()] for mark in ("chance", "majority")}
    bars(path, list(known), series, "score, with 95 % interval; hatched: not above guessing", 1, marks)


def _pairs(path: Path, pairs: Sequence[Table]) -> None:
    """Each model compared, by the judge's choice and by the higher total; with intervals of won and of lost."""
    rows = {Path(pair["against"]).name: pair for pair in pairs}
    rows |= {f"{name}, by total": pair["by_total"] for name, pair in rows.items() if pair.get("by_total")}
    colours = {"won": PALETTE[0], "tied": GREYS[0], "lost": PALETTE[5]}
    parts = {part: (colour, [row[part] for row in rows.values()]) for part, colour in colours.items()}
    known = [(place, row["intervals"]) for place, row in enumerate(rows.values()) if row.get("intervals")]
    borders = [(place + 0.24, *ends["won"]) for place, ends in known if None not in ends["won"]]
    borders += [(place + 0.28, *(1 - end for end in ends["lost"])) for place, ends in known if None not in ends["lost"]]
    stacked(path, list(rows), parts, borders)


def _page(folder: Path, runs: Sequence[Table]) -> str:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=ChainableUndefined)
    environment.filters["duration"] = duration
    environment.filters["moment"] = lambda seconds: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    environment.filters["sha256"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    facts = {"runs": runs, "stages": STAGES, "version": __version__, "parameters": _parameters(runs[0]["root"])}
    pictures = {file.stem: base64.b64encode(file.read_bytes()).decode() for file in folder.glob("*.png")}
    text = environment.get_template("page.html.jinja").render(facts, pictures=pictures)
    return unicodedata.normalize("NFC", text.strip()).encode("utf-8", "replace").decode()
