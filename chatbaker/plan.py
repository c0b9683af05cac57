"""What pretraining will need, before it runs: operations, memory, time, money. No accelerator and no torch needed.

`memory_per_rank` follows the tensors that chatbaker.model and chatbaker.train keep alive; benchmarks/plan_memory.py
holds it against measured peaks. Speed is arithmetic at a stated MFU. `climb` draws a power law through finished bakes.
"""

from __future__ import annotations

import difflib
import json
import math
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from chatbaker.errors import ChatBakerError
from chatbaker.gpus import figures, known
from chatbaker.log import duration
from chatbaker.model.config import read_config
from chatbaker.model.sizes import flops_per_token, parameters
from chatbaker.recipe import Model, Recipe, load
from chatbaker.rundir import RunDir, read_json

GIB, CPU_SLICE, LOSS_SLICE, GPU_LOGITS = 2**30, 128, 1024, 2**29
"""The slices as in model/attention.py and model/loss.py, which need torch."""


def memory_per_rank(
    model: Model,
    vocab_size: int,
    micro_batch: int,
    optimizer: str,
    precision: str,
    recompute: bool,
    shard: int,
    *,
    device: str = "cuda",
    compiled: bool = True,
    accumulation: int = 1,
) -> dict[str, int]:
    """Bytes by part at the moment of a step when most is held; their sum is the peak.

    precision: "fp32", "bf16" or "fp8", over fp32 weights. shard: ranks that FSDP shares the state among. compiled: what
    Inductor's partitioner saves instead of what eager autograd does. accumulation: micro-batches a step.
    """
    c = 4 if precision == "fp32" else 2
    D, F, H, T = model.dim, model.ffn_dim, model.heads, model.seq_len
    E, n = model.kv_heads * (D // H), micro_batch * T
    block = 2 * D * D + 2 * D * E + 3 * D * F  # parameters of a block's matrices
    table, matrices = vocab_size * D, model.layers * block
    tables, total = table * (1 if model.tied else 2), parameters(model, vocab_size)

    # What a block saves for its backward pass. Norms in eager mode: the fp32 input, the normed and the weighted one.
    saved = n * c * (4 * D + 3 * F) if compiled else n * (2 * (4 + 2 * c) * D + 4 * c * F)
    if device == "cpu":  # slices of the queries; keys and values are copied for each where heads lie inside rows
        ends = {s: min(s + CPU_SLICE, T) for s in range(0, T, CPU_SLICE)}
        keys = sum(ends.values()) if model.kv_heads == H and micro_batch > 1 else T
        scores = sum((end - s) * end for s, end in ends.items()) * (6 if c == 2 and not compiled else 4)
        saved += micro_batch * (c * D * (2 * T + 2 * keys) + H * scores)
    else:  # a fused kernel: query, key, value, output and the logarithm of the sums
        saved += n * (c * (2 * D + 2 * E) + 4 * H)
    kept = c * n * D if recompute else saved  # by each block from its forward pass to its backward pass
    last_norm, mask = n * (4 + 2 * c) * D, c * n * T if device == "cpu" or c == 4 else 0  # flash attention has none
    live = model.layers * kept + last_norm + mask
    in_hand = 2 * c * n * F  # estimate: what a backward pass holds besides what was saved

    state, gradients = 8 * total - (4 * matrices if optimizer == "muon" else 0), 4 * total // shard
    constant = {"weights": 4 * total // shard, "optimizer": state // shard}
    held = 4 * total if accumulation > 1 else 0  # whole on every rank: they are reduced after the last micro-batch
    if shard > 1:  # the root's weights stay gathered; two blocks are: the one at work and the next
        gathered = c * (tables + 2 * block)
        forward, backward, casts = gathered, gathered + (c + 4) * block, 0  # a block's gradient, and its copy to reduce
        root = (gradients, 0, 0, (2 * c + 4) * tables)
    else:  # weights are cast where they are used, and the copies saved
        casts = c * block if precision == "bf16" else 0  # FP8 scales and casts anew
        forward = backward = casts * (1 if recompute else model.layers)
        root = (gradients + 4 * table, c * n * D, 0, 0)
    tokens = min(n, LOSS_SLICE)
    if device != "cpu":  # as slice_size in model/loss.py
        least = math.ceil(n / max(LOSS_SLICE, GPU_LOGITS // (c * vocab_size)))
        tokens = math.ceil(n / next((count for count in range(least, 2 * least) if n % count == 0), least))
    logits = tokens * vocab_size * (3 * c if compiled else 21)  # and what their softmax takes
    loss = logits + (4 + (c if c == 2 and shard == 1 else 0)) * table + c * n * D
    head = (4 if shard == 1 else c) * table + c * n * D  # gradients of the head and of its input
    moments = (  # gradients, activations, loss, buffers
        (held, live, loss, forward),
        (held, live + (saved if recompute else 0) + in_hand, 2 * head, backward),  # the last block's backward pass
        (max(gradients, held), mask + saved + c * n * D + in_hand, 0, backward if shard > 1 else casts),  # the first's
        root,  # the embedding's
    )
    return constant | dict(zip(("gradients", "activations", "loss", "buffers"), max(moments, key=sum), strict=True))


def predict(
    recipe: Recipe,
    gpus: int | None = None,
    gpu: str | None = None,
    mfu: float | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """Everything that `chatbaker plan` tells, as plain data: bytes, seconds, US dollars.

    gpus, gpu: None takes what is in this machine. mfu: share of the card's rate, attention counted in full; None: the
    card's default. price: US dollars per GPU-hour. Raises ChatBakerError where a batch or a group does not divide over
    the GPUs.
    """
    facts = figures()
    gpu, gpus, card = _device(facts["gpus"], gpu, gpus)
    model, section, vocab = recipe.model, recipe.pretrain, recipe.tokenizer.vocab_size
    rows, rest = divmod(section.batch_tokens, model.seq_len)
    if rest or rows % gpus:
        problem = f"{section.batch_tokens:,} tokens a step are no multiple of seq_len {model.seq_len:,} x {gpus:,} GPUs"
        raise ChatBakerError(problem, "pretrain.batch_tokens")
    asked = recipe.parallel.shard
    shard = asked or gpus
    if gpus % shard:
        raise ChatBakerError(f"{gpus:,} GPUs do not divide into groups of {shard:,}", "parallel.shard")
    precision = card["precision"] if section.precision == "auto" else section.precision
    if precision == "fp8" and not card["fp8_tflops"]:
        raise ChatBakerError(f"{gpu} does not multiply FP8", "pretrain.precision", 'Take "bf16", or "auto"')
    capacity, reserve, width = card["memory_gib"] * GIB, facts["reserve"], 4 if precision == "fp32" else 2

    def need(micro: int, recompute: bool, shard: int, gpus: int) -> dict[str, int]:
        device, steps = "cpu" if gpu == "cpu" else "cuda", math.ceil(rows / gpus / micro)
        shape = (model, vocab, micro, section.optimizer, precision, recompute, shard)
        parts = memory_per_rank(*shape, device=device, compiled=section.compile, accumulation=steps)
        fixed = GIB * (reserve[device] + reserve["collectives"] * (gpus > 1))
        return parts | {"reserve": int(fixed + reserve["share"] * sum(parts.values()))}

    def largest(recompute: bool, shard: int, gpus: int) -> int:
        sizes = range(rows // gpus, 0, -1)
        return next((m for m in sizes if sum(need(m, recompute, shard, gpus).values()) <= capacity), 0)

    micro = min(section.micro_batch, rows // gpus)
    steps = math.ceil(rows / gpus / micro)
    memory = {name: need(micro, name == "per block", shard, gpus) for name in ("none", "per block")}
    most = {name: largest(name == "per block", shard, gpus) for name in memory}
    chosen = "per block" if section.recompute else "none"
    size, flops = parameters(model, vocab), flops_per_token(model, vocab)
    traffic = communication(card, size, width, steps, shard, gpus)
    if fits := sum(memory[chosen].values()) <= capacity:
        verdict = f"fits; the largest micro-batch that does is {most[chosen]}"
        if shard > (node := card["node"]) and gpus % node == 0 and largest(section.recompute, node, gpus) >= micro:
            seconds = sum(communication(card, size, width, steps, node, gpus).values())
            verdict += f"; parallel.shard={node} fits too, with {seconds:.3f} s of communication a step"
    else:
        wider = [gpus * 2**i for i in range(1 if gpu == "cpu" else 13) if rows % (gpus * 2**i) == 0]
        layouts = [(section.recompute, shard, gpus), (True, shard, gpus), *((True, many, many) for many in wider)]
        again, group, many = next((layout for layout in layouts if largest(*layout)), (False, 0, 0))
        changes = [f"pretrain.micro_batch={min(micro, largest(again, group, many))}"] if many else []
        changes += ["pretrain.recompute=true"] * (again and not section.recompute)
        changes += ["parallel.shard=0"] * (group > asked > 0) + [f"--gpus {many}"] * (many > gpus)
        verdict = f"does not fit; {'would with ' + ' '.join(changes) if changes else 'nor would more of these help'}"

    mfu, price = mfu or card["mfu"], card["price"] if price is None else price
    work = flops + (section.recompute and (flops - 6 * vocab * model.dim) / 3)  # the blocks' forward pass again
    rate = card["fp32_tflops" if precision == "fp32" else "bf16_tflops"]  # FP8 at what bf16 reaches: not less
    compute = work * section.batch_tokens / gpus / (rate * 1e12 * mfu)
    step = max(compute, sum(traffic.values()))
    hours, speed = max(1, section.tokens // section.batch_tokens) * step / 3600, section.batch_tokens / step
    table, half = vocab * model.dim, flops - 6 * model.layers * model.dim * model.seq_len
    head = 0 if model.tied else table
    return {
        "parameters": {"total": size, "embedding": table, "blocks": size - table - head, "head": head},
        "flops_per_token": {"attention_full": flops, "attention_half": half},
        "gpu": {"name": gpu, "count": gpus, **card},
        "parallel": {"shard": shard, "replicate": gpus // shard, "precision": precision, "recompute": chosen},
        "batch": {"micro_batch": micro, "accumulation": steps, "largest_micro_batch": most},
        "memory": memory,
        "fits": fits,
        "verdict": verdict,
        "step_seconds": {"compute": compute, **traffic, "step": step, "hidden": compute >= step},
        "speed": {"mfu": mfu, "tokens_per_second": speed, "per_gpu": speed / gpus},
        "total": {"tokens": section.tokens, "seconds": hours * 3600, "days": hours / 24, "gpu_hours": hours * gpus},
        "cost": {"dollars": hours * gpus * price, "per_gpu_hour": price},
        "megawatt_hours": hours * gpus * card["power_w"] * facts["pue"] / 1e6,
        "assumptions": facts["assumptions"],
    }


def communication(card: dict[str, Any], size: int, width: int, steps: int, shard: int, gpus: int) -> dict[str, float]:
    """Seconds of a step: weights gathered twice a micro-batch, fp32 gradients scattered once and summed over groups."""
    volume, node, link, net = 2 * steps * width * size + 4 * size, card["node"], card["link_gb_s"], card["net_gb_s"]
    nodes, groups = math.ceil(shard / node), gpus // shard
    within = volume * (shard - 1) / shard / link
    across = volume * (nodes - 1) / nodes / (net * min(shard, node))  # every card of a node has its own network port
    total = 2 * 4 * size / shard * (groups - 1) / groups / (net if gpus > node else link)
    return {"gather_and_scatter": max(within, across) / 1e9, "all_reduce": total / 1e9}


def _device(cards: dict[str, Any], name: str | None, gpus: int | None) -> tuple[str, int, dict[str, Any]]:
    found: list[str] = []
    if name is None:
        ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            found = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
        own = (found or ["cpu"])[0]
        name = known(own) or own
    name = name.strip().lower()
    if name not in cards:
        close = difflib.get_close_matches(name, cards, n=3, cutoff=0.4) or list(cards)
        raise ChatBakerError(f"no figures for the GPU {name!r}", "--gpu", f"Nearest: {', '.join(close)}")
    card = {"precision": "bf16", **cards[name]}
    if name == "cpu":  # the table's figures are for one core
        cores = psutil.cpu_count(logical=False) or 1
        card |= {key: card[key] * cores for key in ("bf16_tflops", "fp32_tflops", "power_w", "price")}
        flags = Path("/proc/cpuinfo")
        bf16 = flags.exists() and "avx512_bf16" in flags.read_text(encoding="utf-8")
        card |= {"memory_gib": psutil.virtual_memory().total / GIB, "precision": "bf16" if bf16 else "fp32"}
    return name, gpus or len(found) or 1, card


def rung(run: RunDir) -> dict[str, Any]:
    """A finished bake as a point of the ladder: its operations and its last bits per byte, per language."""
    recipe = load(run.need("recipe.toml", stage="pretrain"))
    vocab = read_config(run.need("pretrain", "model", stage="pretrain")).vocab_size
    lines = run.need("pretrain", "metrics.jsonl", stage="pretrain").read_text(encoding="utf-8").splitlines()
    last = next((row for row in map(json.loads, reversed(lines)) if row.get("eval")), None)
    if last is None:
        raise ChatBakerError("no evaluation on held-out text", str(run.path("pretrain", "metrics.jsonl")))
    tokens, bits = last["step"] * recipe.pretrain.batch_tokens, {k: v["bits_per_byte"] for k, v in last["eval"].items()}
    facts = {"run": str(run.root), "parameters": parameters(recipe.model, vocab), "tokens": tokens}
    return facts | {"flops": float(tokens * flops_per_token(recipe.model, vocab)), "bits_per_byte": bits}


def fit(flops: Sequence[float], loss: Sequence[float]) -> tuple[float, float, float]:
    """(a, b, c) of loss = a + b x flops^-c by least squares of the logarithms; a = 0 where there are under 4 points."""
    x, y = np.log(flops), np.asarray(loss, dtype=float)
    best: tuple[float, tuple[float, float, float]] = (math.inf, (0.0, 0.0, 0.0))
    for a in np.linspace(0, 0.95 * y.min(), 96) if len(y) > 3 else (0.0,):
        slope, start = np.polyfit(x, np.log(y - a), 1)
        off = float(np.square(np.log(a + np.exp(start + slope * x)) - np.log(y)).sum())
        best = min(best, (off, (float(a), float(np.exp(start)), float(-slope))))
    return best[1]


def extrapolate(flops: Sequence[float], loss: Sequence[float], target: float) -> dict[str, float]:
    """The loss at `target` operations; low and high: two jackknife errors, each rung left out in turn (Efron, 1982)."""
    a, b, c = fit(flops, loss)
    n, value = len(flops), a + b * target**-c
    fits = [fit([*flops[:i], *flops[i + 1 :]], [*loss[:i], *loss[i + 1 :]]) for i in range(n)]
    error = math.sqrt((n - 1) * float(np.var([p + q * target**-r for p, q, r in fits])))
    return {"value": value, "low": value - 2 * error, "high": value + 2 * error, "a": a, "b": b, "c": c}


def climb(rungs: Sequence[dict[str, Any]], target: float) -> dict[str, Any]:
    """Each language's bits per byte at `target` operations, and how the other rungs would have foretold the largest."""
    rungs = sorted(rungs, key=lambda one: one["flops"])
    flops = [one["flops"] for one in rungs]
    if len(set(flops)) < max(3, len(flops)):
        raise ChatBakerError("a ladder needs three or more bakes, each of another size", "--ladder")
    languages = {}
    for name in sorted(set.intersection(*(set(one["bits_per_byte"]) for one in rungs))):
        loss = [one["bits_per_byte"][name] for one in rungs]
        held = extrapolate(flops[:-1], loss[:-1], flops[-1]) | {"measured": loss[-1]} if len(loss) > 3 else None
        languages[name] = extrapolate(flops, loss, target) | {"held_out": held}
    return {"rungs": rungs, "target_flops": target, "reach": target / flops[-1], "languages": languages}


def plan(recipe: Recipe, as_json: bool = False, ladder: Sequence[Path] = (), **asked: Any) -> str:
    """What the verb prints. ladder: run folders of finished bakes. asked: what `predict` takes besides the recipe."""
    result = predict(recipe, **asked)
    target = float(recipe.pretrain.tokens * result["flops_per_token"]["attention_full"])
    result |= {"ladder": climb([rung(RunDir(path)) for path in ladder], target)} if ladder else {}
    if as_json:
        return json.dumps(result, ensure_ascii=False, indent=1)
    texts = read_json(Path(__file__).with_name("plan_texts.json"))
    gib = {name: {part: size / GIB for part, size in parts.items()} for name, parts in result["memory"].items()}
    totals = {name: sum(parts.values()) for name, parts in gib.items()}
    values = result | {
        "recipe": recipe,
        "gib": gib,
        "totals": totals,
        "time": duration(result["total"]["seconds"]),
        "head": f"{result['parameters']['head']:,}" if result["parameters"]["head"] else "none of its own",
        "fp8": f"fp8 {result['gpu']['fp8_tflops']:g}" if result["gpu"]["fp8_tflops"] else "no fp8",
        "hides": "hides" if result["step_seconds"]["hidden"] else "does not hide",
    }
    lines = [line.format(**values) for line in texts["page"]] + [f"- {note}" for note in result["assumptions"]]
    lines += [texts["ladder"].format(**result["ladder"])] if ladder else []
    for name, line in result["ladder"]["languages"].items() if ladder else ():
        lines.append(texts["language"].format(name, **line))
        lines += [texts["held_out"].format(**line["held_out"])] if line["held_out"] else []
    return "\n".join(lines)
