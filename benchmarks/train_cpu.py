"""Training speed on a CPU: ours against transformers + AdamW, eager and compiled, in the same run.

Shapes by parameters in matmuls: LLaMA 9.0M (256 x 6 layers, FFN 704, 4 heads) or 20.5M (384 x 8, FFN 1,024, 6 heads),
vocabulary 16,384, context 512; bf16, batches of 16 x 512 tokens. Contenders take turns, so that a change in the
machine's mood meets all of them alike.

    python benchmarks/train_cpu.py [--shape 20.5M] [--rounds 3] [--steps 4] [--only ours]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

from gpu.training import Step, Windows, ours, theirs

from chatbaker.recipe import Model, Schedule

ALLOCATOR_NOTE = "allocator set through GLIBC_TUNABLES for every contender"
ROWS, SEQ, VOCAB = 16, 512, 16_384
SHAPES = {"9.0M": Model(), "20.5M": Model(layers=8, heads=6, kv_heads=6, dim=384, ffn_dim=1024)}


def contenders(model: Model) -> dict[str, Callable[[], Step]]:
    import torch

    device, data = torch.device("cpu"), Windows(model, VOCAB, ROWS, document=200)
    muon, adamw, eager = (
        Schedule(micro_batch=ROWS, precision="bf16", optimizer=name, compile=compile)
        for name, compile in (("muon", True), ("adamw", True), ("adamw", False))
    )
    return {
        "ours, Muon": lambda: ours(model, VOCAB, muon, device, data),
        "ours, AdamW": lambda: ours(model, VOCAB, adamw, device, data),
        "transformers, AdamW, compiled": lambda: theirs("transformers", model, VOCAB, adamw, device, data),
        "transformers, AdamW, eager": lambda: theirs("transformers", model, VOCAB, eager, device, data),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="9.0M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", default="", help="part of a contender's name")
    args = parser.parse_args()

    from chatbaker.model.sizes import flops_per_token
    from chatbaker.stages import ALLOCATOR

    if "GLIBC_TUNABLES" not in os.environ and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GLIBC_TUNABLES": ALLOCATOR})

    import torch

    from chatbaker.train.parallel import peak_flops

    steps = {name: make() for name, make in contenders(SHAPES[args.shape]).items() if args.only in name}
    for name, step in steps.items():
        print(f"warming up: {name}", file=sys.stderr)
        step(), step()
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(args.steps):
                step()
            speeds[name].append(args.steps * ROWS * SEQ / (time.perf_counter() - began))
    peak, source = peak_flops(torch.device("cpu"), torch.bfloat16)
    flops = flops_per_token(SHAPES[args.shape], VOCAB)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, peak {peak / 1e12:.3f} TFLOP/s ({source})")
    print(ALLOCATOR_NOTE)
    print(f"{'contender':32} {'tokens/s':>9} {'min':>8} {'max':>8} {'MFU':>6}")
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"{name:32} {median:9,.0f} {min(values):8,.0f} {max(values):8,.0f} {median * flops / peak:6.1%}")


if __name__ == "__main__":
    main()
