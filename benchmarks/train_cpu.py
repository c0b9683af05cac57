"""Training speed on a CPU: ours against transformers + AdamW, eager and compiled, in the same run.

Shape: LLaMA 9.0M (256 x 6 layers, FFN 704, 4 heads, vocabulary 16,384, context 512), bf16, batches of 16 x 512 tokens.
Contenders take turns, so that a change in the machine's mood meets all of them alike.

    python benchmarks/train_cpu.py [--rounds 3] [--steps 4] [--only ours]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

ALLOCATOR_NOTE = "allocator set through GLIBC_TUNABLES for every contender"
ROWS, SEQ, VOCAB, DIM, LAYERS, HEADS, FFN = 16, 512, 16_384, 256, 6, 4, 704


def ours(optimizer: str) -> Callable[[], None]:
    import numpy as np
    import torch

    from chatbaker.model.config import LlamaConfig
    from chatbaker.model.llama import Llama, init_weights
    from chatbaker.recipe import Schedule
    from chatbaker.tokens.loader import window_batch
    from chatbaker.train.loop import train_step
    from chatbaker.train.optim import build_optimizers
    from chatbaker.train.parallel import prepare

    model = Llama(LlamaConfig(VOCAB, LAYERS, HEADS, HEADS, DIM, FFN, SEQ))
    init_weights(model, 0)
    schedule = Schedule(optimizer=optimizer, micro_batch=ROWS)
    compiled = prepare(model, schedule, torch.device("cpu"))
    optimizers = build_optimizers(model, schedule)
    parameters = list(model.parameters())
    rng = np.random.default_rng(0)

    class Data:
        fingerprint, batch_rows = "", ROWS

        def batch(self, step: int, rank: int = 0, world: int = 1):
            windows = rng.integers(0, VOCAB, (ROWS, SEQ + 1))
            windows[:, ::200] = 0  # documents of about 200 tokens
            return window_batch(windows, 0)

    return lambda: train_step(model, Data(), schedule, 0, torch.bfloat16, optimizers, parameters, 1.0, compiled)


def theirs(compiled: bool) -> Callable[[], None]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=SEQ,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, fused=True)
    forward = torch.compile(model, dynamic=False) if compiled else model

    def step() -> None:
        ids = torch.randint(0, VOCAB, (ROWS, SEQ))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", default="", help="part of a contender's name")
    args = parser.parse_args()

    from chatbaker.model.sizes import flops_per_token
    from chatbaker.recipe import Model
    from chatbaker.stages import ALLOCATOR

    if "GLIBC_TUNABLES" not in os.environ and sys.platform == "linux":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"GLIBC_TUNABLES": ALLOCATOR})

    import torch

    from chatbaker.train.parallel import peak_flops

    contenders = {
        "ours, Muon": lambda: ours("muon"),
        "ours, AdamW": lambda: ours("adamw"),
        "transformers, AdamW, compiled": lambda: theirs(True),
        "transformers, AdamW, eager": lambda: theirs(False),
    }
    steps = {name: make() for name, make in contenders.items() if args.only in name}
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
    flops = flops_per_token(Model(), VOCAB)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, peak {peak / 1e12:.3f} TFLOP/s ({source})")
    print(ALLOCATOR_NOTE)
    print(f"{'contender':32} {'tokens/s':>9} {'min':>8} {'max':>8} {'MFU':>6}")
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"{name:32} {median:9,.0f} {min(values):8,.0f} {max(values):8,.0f} {median * flops / peak:6.1%}")


if __name__ == "__main__":
    main()
