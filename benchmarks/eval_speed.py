"""Scores a second of `chatbaker eval` against lm-eval's own Hugging Face back end: same model, items, machine, run.

    python benchmarks/eval_speed.py --model FOLDER --data DIR [--random 100] [--limit 200] [--batches 1,8,32]

Requests are what lm-eval's tasks ask of a model, made from local copies of the sets (one folder a set, the hub's
columns). The Hugging Face back end is tried at several batch sizes and its best is taken, ours finds its own; each
figure is the best of all rounds, as other programs only ever slow one. `--random N`: a LLaMA of about N million random
parameters with the folder's tokenizer. What it measured is in docs/log.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Pair = tuple[str, str]


def kobest_copa(row: dict[str, Any]) -> list[Pair]:
    joint = {"원인": " 왜냐하면", "결과": " 그래서"}[row["question"].strip()]
    return [(f"{row['premise']} {joint}", f" {row[key]}") for key in ("alternative_1", "alternative_2")]


def hellaswag(row: dict[str, Any]) -> list[Pair]:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}".replace("  ", " ")
    return [(context, f" {ending}") for ending in row["endings"]]


SETS: dict[str, tuple[str, Callable[[dict[str, Any]], list[Pair]]]] = {
    "hellaswag": ("hellaswag/validation.jsonl.zst", hellaswag),
    "arc_easy": (
        "arc_easy/test.jsonl",
        lambda row: [(f"Question: {row['question']}\nAnswer:", f" {text}") for text in row["choices"]["text"]],
    ),
    "boolq": (
        "boolq/validation.jsonl.zst",
        lambda row: [(f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", text) for text in (" no", " yes")],
    ),
    "kobest_hellaswag": (
        "kobest_hellaswag/test.jsonl",
        lambda row: [(f"문장: {row['context']}", f" {row[f'ending_{i}']}") for i in range(1, 5)],
    ),
    "kobest_copa": ("kobest_copa/test.jsonl", kobest_copa),
}


def random_folder(folder: Path, millions: int, out: Path) -> Path:
    """A LLaMA of random weights beside a copy of the folder's tokenizer."""
    from chatbaker.model.config import LlamaConfig
    from chatbaker.model.llama import Llama, init_weights
    from chatbaker.model.weights import save_model
    from chatbaker.rundir import read_json

    config, width, layers = read_json(folder / "config.json"), 768, max(1, round((millions * 1e6 - 9.4e6) / 7.1e6))
    model = Llama(LlamaConfig(config["vocab_size"], layers, width // 64, width // 64, width, width * 8 // 3, 1024))
    init_weights(model, 0)
    print(f"random: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, {layers} layers")
    save_model(model, out, folder, 0, 2)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    from lm_eval.models.huggingface import HFLM

    from chatbaker.evals.lm import open_lm
    from chatbaker.jsonl import read_jsonl

    temporary = Path(tempfile.mkdtemp())
    folder = random_folder(args.model, args.random, temporary / "random") if args.random else args.model
    ours = open_lm(str(folder), device=args.device)
    theirs = HFLM(pretrained=str(folder), device=args.device, batch_size=1)
    results: list[dict[str, Any]] = []
    print(f"{'set':18}{'requests':>9}{'ours/s':>9}{'HF/s':>9}{'(batch)':>8}{'ratio':>7}{'(1)':>7}{'difference':>12}")
    for name in args.sets.split(","):
        file, make = SETS[name]
        items = [make(item) for _, item in islice(read_jsonl(args.data / file), args.limit)]
        requests: list[Any] = [SimpleNamespace(args=pair, task_name=name) for pairs in items for pair in pairs]
        ours.inner.loglikelihood(requests[:4], disable_tqdm=True)
        theirs.loglikelihood(requests[:4], disable_tqdm=True)
        rate: dict[int, float] = {}
        for batch in [0, *map(int, args.batches.split(","))] * args.rounds:
            theirs.batch_size_per_gpu = batch
            began = time.perf_counter()
            if batch:
                expected = theirs.loglikelihood(requests, disable_tqdm=True)
            else:
                scores = ours.inner.loglikelihood(requests, disable_tqdm=True)
            rate[batch] = max(rate.get(batch, 0), len(requests) / (time.perf_counter() - began))
        mine = rate.pop(0)
        best = max(rate, key=lambda batch: rate[batch])
        worst = max(abs(a[0] - b[0]) for a, b in zip(scores, expected, strict=True))
        row = {"set": name, "requests": len(requests), "ours": mine, "hf": rate, "ratio": mine / rate[best]}
        results.append(row | {"difference": worst})
        default = f"{mine / rate[1]:.2f}" if 1 in rate else "-"
        print(
            f"{name:18}{len(requests):9,}{mine:9.1f}{rate[best]:9.1f}{best:8}{mine / rate[best]:7.2f}{default:>7}"
            f"{worst:12.6f}",
            flush=True,
        )
    if args.out:
        args.out.write_text(json.dumps({"load": os.getloadavg(), "sets": results}, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
