"""Packed SFT at the reference shape: tokens/s, padding not counted, beside pretraining's in the same run.

Conversations of random tokens, 32 to all of the context long (log-normal, median 300), are packed as `chatbaker sft`
packs them. The aim is 90 % of pretraining's speed.

    python benchmarks/gpu/sft.py [--tiny] [--json]
"""

from __future__ import annotations

from functools import partial
from typing import Any

from training import Windows, device_here, formula, measure, options, ours, reference, run, show, speed

from chatbaker.model.sizes import flops_per_token
from chatbaker.recipe import Model, Schedule


def conversations(model: Model, vocab: int, rows: int) -> Any:
    """At least `rows` full rows of packed conversations."""
    import numpy as np

    from chatbaker.tokens.conversations import pack

    rng, least = np.random.default_rng(0), min(32, model.seq_len // 4)
    lengths: list[int] = []
    while sum(lengths) < rows * model.seq_len:
        lengths.append(int(np.clip(rng.lognormal(np.log(min(300, model.seq_len / 4)), 0.8), least, model.seq_len)))
    encoded = []
    for length in lengths:
        answer = rng.random(length) < 0.5
        answer[-1] = True  # the end of the turn
        encoded.append((rng.integers(1, vocab, length).tolist(), answer.tolist()))
    return pack(encoded, model.seq_len, 0)


def main(argv: list[str] | None = None) -> None:
    args = options(
        __doc__,
        argv,
        ("--micro-batch", {"type": int, "default": None, "help": "sequences; default 8"}),
        ("--accumulate", {"type": int, "default": None, "help": "micro-batches a step; default 8"}),
        ("--rounds", {"type": int, "default": 3}),
        ("--steps", {"type": int, "default": 2}),
    )
    from chatbaker.tokens.loader import SftData

    model, vocab = reference(args.tiny)
    micro, accumulate = args.micro_batch or (2 if args.tiny else 8), args.accumulate or (2 if args.tiny else 8)
    rows = micro * accumulate
    schedule, device = Schedule(micro_batch=micro, compile=not args.tiny), device_here()
    packed, mfu = conversations(model, vocab, 4 * rows), formula(model, vocab, device)
    full, sizes = float((packed.docs > 0).mean()), rows * model.seq_len
    trained = flops_per_token(model, round(vocab * packed.trained / packed.targets.size))  # the others need no head
    jobs = {  # what is counted of a step's tokens, the work that one is, and the batches
        "pretraining": (sizes, mfu["flops_per_token"], Windows(model, vocab, rows)),
        "packed SFT": (sizes * full, trained, SftData(packed, rows, 0, "")),
    }
    table = []
    for name, (tokens, flops, data) in jobs.items():
        found = measure(partial(ours, model, vocab, schedule, device, data), args.rounds, args.steps, device)
        table.append(speed(name, tokens, found, flops, mfu["peak_flops"]))
    share = table[1]["tokens_per_second"] / table[0]["tokens_per_second"]
    more = {"micro_batch": micro, "accumulate": accumulate, "rows_filled": full, "of_pretraining": share}
    show(args, device, table, **more, **mfu)


if __name__ == "__main__":
    run(main)
