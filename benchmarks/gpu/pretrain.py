"""Pretraining speed at the reference shape (recipes/1.3b.toml): tokens/s and MFU, ours and others on one card.

MFU = tokens/s x FLOP per token / the card's dense bf16 rate; FLOP per token = 6 per parameter in a matmul + 12 x layers
x dim x context, attention counted in full. Contenders run one after another in one process; the figure is the median
round.

    python benchmarks/gpu/pretrain.py [--precision fp8] [--against transformers] [--tiny] [--json]
"""

from __future__ import annotations

from functools import partial

from training import OTHERS, Windows, device_here, formula, measure, options, ours, reference, run, show, speed, theirs

from chatbaker.recipe import Schedule


def main(argv: list[str] | None = None) -> None:
    args = options(
        __doc__,
        argv,
        ("--precision", {"choices": ["auto", "bf16", "fp8"], "default": "auto"}),
        ("--against", {"choices": OTHERS, "action": "append", "default": [], "help": "may be given again"}),
        ("--micro-batch", {"type": int, "default": None, "help": "sequences; default 8, as in the recipe"}),
        ("--accumulate", {"type": int, "default": None, "help": "micro-batches a step; default 16"}),
        ("--optimizer", {"choices": ["adamw", "muon"], "default": "adamw"}),
        ("--recompute", {"action": "store_true"}),
        ("--rounds", {"type": int, "default": 3}),
        ("--steps", {"type": int, "default": 2}),
    )
    model, vocab = reference(args.tiny)
    micro, accumulate = args.micro_batch or (2 if args.tiny else 8), args.accumulate or (2 if args.tiny else 16)
    choices = {"micro_batch": micro, "recompute": args.recompute, "compile": not args.tiny}
    schedule = Schedule(precision=args.precision, optimizer=args.optimizer, **choices)
    device, data = device_here(), Windows(model, vocab, micro * accumulate)
    job = (model, vocab, schedule, device, data)
    contenders = {f"ours, {args.precision}, {args.optimizer}": partial(ours, *job)}
    contenders |= {f"{name}, bf16, adamw": partial(theirs, name, *job) for name in args.against}
    tokens, mfu = micro * accumulate * model.seq_len, formula(model, vocab, device)
    rows = []
    for name, make in contenders.items():
        found = measure(make, args.rounds, args.steps, device)
        rows.append(speed(name, tokens, found, mfu["flops_per_token"], mfu["peak_flops"]))
    show(args, device, rows, micro_batch=micro, accumulate=accumulate, tokens_per_step=tokens, **mfu)


if __name__ == "__main__":
    run(main)
