"""Peak memory of a training step against what `chatbaker plan` predicts: micro-batches, with and without recomputation.

On a GPU: the allocator's peak over a step, weights and optimizer included; the reserve that `plan` adds for the driver
and for fragmentation is left out on both sides. On a CPU: as benchmarks/plan_memory.py measures it (Linux).

    python benchmarks/gpu/memory.py [--micro-batch 1 4 8] [--tiny] [--json]
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from training import TINY, Windows, build, device_here, options, reference, run, show

from chatbaker.plan import memory_per_rank
from chatbaker.recipe import Model, Schedule

if TYPE_CHECKING:
    import torch


def peak(model: Model, vocab: int, micro: int, steps: int, schedule: Schedule, device: torch.device) -> int:
    """Bytes at the worst moment of the third step."""
    import torch

    step, _ = build(model, vocab, schedule, device, Windows(model, vocab, micro * steps))
    step(), step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    found = torch.cuda.max_memory_allocated(device)
    del step
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    return found


def main(argv: list[str] | None = None) -> None:
    args = options(
        __doc__,
        argv,
        ("--micro-batch", {"type": int, "nargs": "+", "default": None, "help": "default: 1 4 8"}),
        ("--accumulate", {"type": int, "default": 2, "help": "micro-batches a step"}),
    )
    device = device_here()
    model, vocab = reference(args.tiny)
    if args.tiny:
        model = TINY.model_copy(update={"dim": 128, "ffn_dim": 352, "seq_len": 256})  # large enough to be seen
    rows = []
    for micro in args.micro_batch or ([4] if args.tiny else [1, 4, 8]):
        for recompute in (False, True):
            options_ = {"optimizer": "adamw", "precision": "bf16", "recompute": recompute}
            how = {"compiled": not args.tiny, "accumulation": args.accumulate, "device": device.type}
            parts = memory_per_rank(model, vocab, micro, **options_, shard=1, **how)
            if device.type == "cuda":
                schedule = Schedule(micro_batch=micro, compile=not args.tiny, **options_)
                found = peak(model, vocab, micro, args.accumulate, schedule, device)
            else:
                sys.path.append(str(Path(__file__).parents[1]))
                from plan_memory import measured

                found = measured(model.model_dump(), vocab, micro, args.accumulate, options_, not args.tiny)
            predicted = sum(parts.values())
            row = {"micro_batch": micro, "recompute": "per block" if recompute else "none"}
            row |= {"predicted_mb": predicted / 1e6, "measured_mb": found / 1e6}
            rows.append(row | {"difference": predicted / found - 1})
    show(args, device, rows, accumulate=args.accumulate)


if __name__ == "__main__":
    run(main)
