"""The stage `judge`: a model answers a set of prompts; another one scores the answers and compares them with others'.

generated.jsonl, replies.jsonl   all that models and judges ever said here: append-only, so nothing is asked twice
answers.jsonl                    the present answers, in the order of the prompts
verdicts.jsonl, pairs.jsonl      what the replies say of them, by every judge asked, and of pairs
scores.json                      the sums, with intervals
"""

from __future__ import annotations

import csv
import io
import re
import sys
import time
from dataclasses import asdict
from itertools import combinations
from math import log
from pathlib import Path
from string import Template

from chatbaker.errors import ChatBakerError
from chatbaker.evals.chat import ANSWER, answer
from chatbaker.evals.ledger import Ledger, Row, clean, read_text
from chatbaker.evals.statistics import RESULTS, agreement, correlation, equal_length, refused, summary, tally
from chatbaker.evals.verdicts import METRICS, Judge, Request
from chatbaker.infer.engine import Sampling
from chatbaker.jsonl import read_jsonl, write_jsonl
from chatbaker.log import duration, say
from chatbaker.recipe import Judge as Section
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir, write_json

COLUMNS = ("id", "question", "category", "task")
TYPICAL = {"score": 500, "pair": 120}  # tokens of a reply, for the estimate; a prompt token is taken for three bytes
FIELDS = ("judge", "kind", "id", "body", "seconds")  # of a reply
ORDERS = ({"A": "won", "B": "lost", "tie": "tied"}, {"A": "lost", "B": "won", "tie": "tied"})
Rows = dict[str, Row]  # by their id
Pairs = dict[str, tuple[Request, Request]]  # our answer is A in the first, B in the second


def run(
    recipe: Recipe,
    run: RunDir,
    model: str | None = None,
    url: str | None = None,
    device: str = "auto",
    answers_only: bool = False,
    yes: bool = False,
) -> None:
    """Answer, then judge. model, url: what answers; else the run's own chat model. Raises ChatBakerError."""
    section, home = recipe.judge, run.path("judge")
    if not (section.url or answers_only):
        raise ChatBakerError("no judge", "judge.url", "Add judge.url=http://HOST/v1, or --answers-only")
    own = Path(__file__).with_name(f"prompts.{section.language}.csv")
    prompts = read_prompts(Path(recipe.data_root, section.prompts or own))
    against = [RunDir(Path(folder)).need("judge", "answers.jsonl", stage="judge") for folder in section.against]
    sampling = Sampling(section.temperature, max_new_tokens=section.max_new_tokens, seed=recipe.seed)
    name = model if model or url else str(run.need("sft", stage="sft").parent)
    judge = None if answers_only else Judge(section.url, section.model, Ledger(home / "replies.jsonl", *FIELDS))
    asked_of = [[{"role": "user", "content": row["question"]}] for row in prompts]
    given = answer(asked_of, sampling, Ledger(home / "generated.jsonl", *ANSWER), name, url, device)
    answers = [row | said for row, said in zip(prompts, given, strict=True)]
    said = {row["id"]: row for row in answers if "reason" not in row}
    _write(home / "answers.jsonl", answers)
    say(f"{len(said)} of {len(prompts)} prompts answered: {home / 'answers.jsonl'}")
    if judge is None:
        return
    asked = {id: ask("score", section.language, row, answer=row["answer"]) for id, row in said.items()}
    pairs = {path: match(section.language, said, _read(path)) for path in against}
    left = judge.left([*asked.values(), *(one for each in pairs.values() for both in each.values() for one in both)])
    if left:
        confirm(judge, left, section, yes)
        judge.settle(left, section.concurrency)
    verdicts: dict[str, Rows] = {}
    for label in dict.fromkeys([judge.label, *(row["judge"] for row in judge.ledger.rows)]):
        found = {id: judge.verdict(one, label)[0] for id, one in asked.items()}
        verdicts[label] = {id: {"id": id, "judge": label, **flat(one)} for id, one in found.items() if one}
    mine = verdicts[judge.label]
    compared = [compare(judge, path, each, said, mine) for path, each in pairs.items()]
    _write(home / "verdicts.jsonl", [row for rows in verdicts.values() for row in rows.values()])
    _write(home / "pairs.jsonl", [row for _, rows in compared for row in rows])
    faults = [{"id": row["id"], "reason": row["reason"]} for row in answers if "reason" in row]
    faults += [{"id": id, "reason": judge.verdict(one)[1]} for id, one in asked.items() if id not in mine]
    if not mine:
        raise ChatBakerError(f"nothing could be judged ({faults[0]['reason']})", judge.label, "The replies are kept")
    scores = {"model": answers[0]["model"], "judge": judge.label, "date": time.strftime("%Y-%m-%d")}
    scores |= {"prompts": {"file": section.prompts or own.name, "count": len(prompts)}, "sampling": asdict(sampling)}
    scores |= summarize(said, mine) | {"unjudged": faults, "cost": cost(judge, section)}
    points = {label: {id: list(row["scores"].values()) for id, row in rows.items()} for label, rows in verdicts.items()}
    scores["pairs"] = [entry for entry, _ in compared]
    scores["agreement"] = [{"judges": [a, b], **agreement(points[a], points[b])} for a, b in combinations(points, 2)]
    write_json(home / "scores.json", scores)
    show(scores)


def read_prompts(path: Path) -> list[Row]:
    """The rows of a CSV file, UTF-8 or CP949, in NFC. Raises ChatBakerError naming the line (a row's last)."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    prompts: Rows = {}
    try:
        if missing := set(COLUMNS) - set(reader.fieldnames or ()):
            raise ValueError(f"no column {min(missing)!r}; the first line is {','.join(COLUMNS)}")
        for row in reader:
            prompt = {column: clean(row[column] or "") for column in COLUMNS}
            if not (prompt["id"] and prompt["question"]):
                raise ValueError("no id or no question")
            if prompt["id"] in prompts:
                raise ValueError(f"the id {prompt['id']!r} is there already")
            prompts[prompt["id"]] = prompt
        if not prompts:
            raise ValueError("no prompts")
    except (ValueError, csv.Error) as error:
        raise ChatBakerError(str(error), f"{path}:{max(reader.reader.line_num, 1)}") from None
    return list(prompts.values())


def ask(kind: str, language: str, row: Row, **answers: str) -> Request:
    form = Template(Path(__file__).with_name(f"judge_{kind}.{language}.txt").read_text(encoding="utf-8"))
    return Request(kind, row["id"], form.substitute(task=row["task"], question=row["question"], **answers))


def match(language: str, ours: Rows, theirs: Rows) -> Pairs:
    """Requests for each question that both answered."""
    pairs = {}
    for id, row in ours.items():
        if id in theirs and theirs[id]["question"] == row["question"] and "reason" not in theirs[id]:
            a, b = row["answer"], theirs[id]["answer"]
            pairs[id] = ask("pair", language, row, a=a, b=b), ask("pair", language, row, a=b, b=a)
    return pairs


def confirm(judge: Judge, left: list[Request], section: Section, yes: bool) -> None:
    """Say what is going to be spent and ask. Raises ChatBakerError where it is not agreed to."""
    size, back = sum(len(one.text.encode()) for one in left) // 3, sum(TYPICAL[one.kind] for one in left)
    price = (size * section.price_in + back * section.price_out) / 1e6
    took = [row["seconds"] for row in judge.ledger.rows if row["judge"] == judge.label] or [10.0]
    wait = duration(sum(took) / len(took) * len(left) / section.concurrency)
    say(f"{len(left)} requests to {judge.label}: about {size:,} tokens, {back:,} in reply, ${price:.2f}, {wait}")
    if not yes and sys.stdin.isatty():
        print("Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        yes = sys.stdin.readline().strip().lower() in ("y", "yes", "예", "네")
    elif not price:
        yes = True
    if not yes:
        raise ChatBakerError("nothing was asked of the judge", hint="Agree with y on a terminal, or with --yes")


def flat(verdict: Row) -> Row:
    row: Row = {f"{part}s": {name: verdict[name][part] for name in METRICS} for part in ("score", "explanation")}
    return row | {"total": sum(row["scores"].values())}


def compare(judge: Judge, path: Path, pairs: Pairs, ours: Rows, mine: Rows) -> tuple[Row, list[Row]]:
    """This run against another: the sums, and a row for each pair. It is won or lost where both orders say so."""
    against, theirs, rows, faults = path.parent.parent.name, _read(path), [], []
    for id, both in pairs.items():
        (one, fault), (two, other) = map(judge.verdict, both)
        if not (one and two):
            faults.append({"id": id, "reason": fault or other})
            continue
        first, second = ORDERS[0][one["winner"]], ORDERS[1][two["winner"]]
        row: Row = {"id": id, "against": against, "judge": judge.label, "result": first if first == second else "tied"}
        rows.append(row | {"flipped": first != second, "reasons": [one["reason"], two["reason"]]})
    results = [row["result"] for row in rows]
    ratios = [log((len(ours[row["id"]]["answer"]) + 1) / (len(theirs[row["id"]]["answer"]) + 1)) for row in rows]
    totals = _read(path.with_name("verdicts.jsonl"), judge.label)
    ahead = [mine[id]["total"] - totals[id]["total"] for id in pairs if id in mine and id in totals]
    flips = summary([row["flipped"] for row in rows])["mean"]
    by_total = tally([RESULTS[1 - (points > 0) + (points < 0)] for points in ahead])
    facts = {"flip_rate": flips, "length_controlled": equal_length(results, ratios), "by_total": by_total}
    return {"against": against, **tally(results), **facts, "unjudged": faults}, rows


def summarize(said: Rows, mine: Rows) -> Row:
    """What one judge's verdicts of the answers come to."""
    totals = [row["total"] for row in mine.values()]
    kinds: dict[str, list[int]] = {}
    for id, row in mine.items():
        kinds.setdefault(said[id]["category"], []).append(row["total"])
    lengths = {id: len(row["answer"]) for id, row in said.items()}
    by_length = correlation([log(lengths[id] + 1) for id in mine], totals)
    return {
        "total": summary(totals) | {"of": 5 * len(METRICS)},
        "metrics": {metric: summary([row["scores"][metric] for row in mine.values()]) for metric in METRICS},
        "categories": {kind: summary(some) | {"n": len(some)} for kind, some in kinds.items()},
        "judged": len(mine),
        "empty": sum(not row["answer"] for row in said.values()),
        "refusals": sum(refused(row["answer"]) for row in said.values()),
        "length": {"mean_characters": round(sum(lengths.values()) / len(lengths), 1), "correlation": by_length},
    }


def cost(judge: Judge, section: Section) -> Row:
    """What all of this judge's replies took, by the server's own counts."""
    bodies = [row["body"] for row in judge.ledger.rows if row["judge"] == judge.label]
    spent = {"requests": len(bodies)}
    for name in ("prompt_tokens", "completion_tokens"):
        spent[name] = sum(int(count) for body in bodies for count in re.findall(rf'"{name}": ?(\d+)', body)[:1])
    price = spent["prompt_tokens"] * section.price_in + spent["completion_tokens"] * section.price_out
    return spent | {"usd": round(price / 1e6, 4)}


def show(scores: Row) -> None:
    for name, row in {"total": scores["total"], **scores["metrics"], **scores["categories"]}.items():
        print(f"{name:<16}{row['mean']:6.2f}  [{row['low']:.2f}, {row['high']:.2f}]")
    for pair in scores["pairs"]:
        print("won {won}, tied {tied}, lost {lost} of {judged} against {against}".format_map(pair))
    print(f"{scores['judged']} judged by {scores['judge']}, {len(scores['unjudged'])} not")


def _read(path: Path, judge: str | None = None) -> Rows:
    rows = [row for _, row in read_jsonl(path)] if path.exists() else []
    return {row["id"]: row for row in rows if row.get("judge") == judge}


def _write(path: Path, rows: list[Row]) -> None:
    with write_jsonl(path) as write:
        for row in rows:
            write(row)
