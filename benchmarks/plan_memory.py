"""Memory of a training step on a CPU: what `chatbaker plan` predicts against the measured peak.

Each shape trains in a process of its own, through chatbaker.train. Weights and optimizer state are counted from their
tensors; the rest is the highest resident memory of a step (VmHWM, set back before it) less what is resident between
steps. Large blocks come from the system one by one (MALLOC_MMAP_THRESHOLD_), so resident memory is memory in use. Linux
only.

    python benchmarks/plan_memory.py [--only compiled] [--tuned]

--tuned: the allocator settings of real training instead; what it takes beyond the prediction is what it keeps back.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

from chatbaker.plan import memory_per_rank
from chatbaker.recipe import Model
from chatbaker.stages import ALLOCATOR

SMALL = {"layers": 4, "heads": 4, "kv_heads": 4, "dim": 256, "ffn_dim": 704, "seq_len": 512}
SHAPES = [
    # name, [model], vocabulary, micro-batch, micro-batches a step, what differs from bf16 AdamW
    ("small vocabulary", SMALL, 1_024, 4, 1, {}),
    ("large vocabulary", SMALL, 16_384, 4, 1, {}),
    ("fp32", SMALL, 1_024, 4, 1, {"precision": "fp32"}),
    ("recompute", SMALL | {"layers": 8}, 1_024, 8, 1, {"recompute": True}),
    ("recompute, fp32", SMALL | {"layers": 8}, 1_024, 8, 1, {"recompute": True, "precision": "fp32"}),
    ("accumulation", SMALL, 4_096, 4, 3, {}),
    ("Muon, untied", SMALL | {"tied": False}, 8_192, 8, 1, {"optimizer": "muon"}),
    ("grouped queries", SMALL | {"heads": 8, "kv_heads": 2, "seq_len": 1024}, 4_096, 4, 1, {}),
    ("wide", SMALL | {"dim": 768, "heads": 12, "kv_heads": 12, "ffn_dim": 2048}, 4_096, 4, 1, {}),
]


def predicted(model: dict, vocab: int, micro: int, steps: int, changes: dict, compiled: bool) -> dict[str, int]:
    base = {"optimizer": "adamw", "precision": "bf16", "recompute": False, "shard": 1}
    options = base | changes | {"device": "cpu", "compiled": compiled, "accumulation": steps}
    return memory_per_rank(Model(**model), vocab, micro, **options)


def measure(model: dict, vocab: int, micro: int, steps: int, changes: dict, compiled: bool) -> int:
    """Peak bytes of a step; run in a process that does nothing else."""
    import numpy as np
    import torch

    from chatbaker.model.config import LlamaConfig
    from chatbaker.model.llama import Llama, init_weights
    from chatbaker.recipe import Schedule
    from chatbaker.tokens.loader import window_batch
    from chatbaker.train.loop import train_step
    from chatbaker.train.optim import build_optimizers
    from chatbaker.train.parallel import prepare

    torch.set_num_threads(1)
    network = Llama(LlamaConfig(vocab_size=vocab, **Model(**model).model_dump()))
    init_weights(network, 0)
    schedule = Schedule(micro_batch=micro, compile=compiled, **{"precision": "bf16"} | changes)
    prepare(network, schedule, torch.device("cpu"))
    optimizers, parameters = build_optimizers(network, schedule), list(network.parameters())
    rng, dtype = np.random.default_rng(0), torch.float32 if schedule.precision == "fp32" else torch.bfloat16

    class Data:
        fingerprint, batch_rows = "", micro * steps

        def batch(self, step: int, rank: int = 0, world: int = 1):
            windows = rng.integers(1, vocab, (self.batch_rows, model["seq_len"] + 1))
            windows[:, ::200] = 0  # documents of about 200 tokens
            return window_batch(windows, 0)

    def step() -> None:
        train_step(network, Data(), schedule, 0, dtype, optimizers, parameters, 1.0, compiled)
        gc.collect()

    def resident(kind: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))

    for _ in range(2):  # compiles, and makes the optimizer's state
        step()
        ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    step()
    states = [value for each in optimizers for state in each.state.values() for value in state.values()]
    tensors = [*parameters, *(value for value in states if torch.is_tensor(value))]
    return resident("VmHWM") - before + sum(tensor.nbytes for tensor in tensors)


def measured(*shape: object, tuned: bool = False) -> int:
    """`measure` in a process of its own."""
    own = {"GLIBC_TUNABLES": ALLOCATOR} if tuned else {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, __file__, "--child", json.dumps(shape)]
    return int(subprocess.run(command, env=os.environ | own, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=["compiled", "eager"])
    parser.add_argument("--tuned", action="store_true")
    args = parser.parse_args()
    if args.child:
        print(measure(*json.loads(args.child)))
        return
    print(
        f"{'shape':18} {'mode':9} {'weights, optimizer':>19} {'the rest':>10} {'predicted':>10} {'measured':>10}   MB"
    )
    for name, *shape in SHAPES:
        for mode in [args.only] if args.only else ["eager", "compiled"]:
            parts = predicted(*shape, mode == "compiled")
            found, total = measured(*shape, mode == "compiled", tuned=args.tuned), sum(parts.values())
            state = parts["weights"] + parts["optimizer"]
            figures = f"{state / 1e6:19.1f} {(total - state) / 1e6:10.1f} {total / 1e6:10.1f} {found / 1e6:10.1f}"
            print(f"{name:18} {mode:9} {figures} {total / found - 1:+7.1%}", flush=True)


if __name__ == "__main__":
    main()
