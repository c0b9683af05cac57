"""Decoding with the PyTorch engine at the reference shape, batch 1: time to the first token, then ms a token.

A model folder with random weights is written to a temporary place and opened as `chatbaker chat` opens it. A token
reads all weights but the embedding table, and the keys and values so far: bytes x tokens/s is held against the
bandwidth of a copy on the same device.

    python benchmarks/gpu/decode.py [--tokens 128] [--tiny] [--json]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from training import device_here, options, reference, run, show, wait

from chatbaker.recipe import Model

if TYPE_CHECKING:
    import torch

TOKENIZER = Path(__file__).parents[2] / "models" / "chatbaker-mini"


def write_random(folder: Path, model: Model, vocab: int, device: torch.device) -> None:
    import torch

    from chatbaker.model.config import LlamaConfig
    from chatbaker.model.llama import Llama
    from chatbaker.model.weights import save_model

    with torch.device("meta"):
        network = Llama(LlamaConfig(vocab_size=vocab, **model.model_dump())).bfloat16()
    network.to_empty(device=device)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    save_model(network, folder, TOKENIZER, 0, 2)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes per second of a copy, read and written."""
    import torch

    source = torch.ones(size, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(8):
        wait(device)
        began = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def main(argv: list[str] | None = None) -> None:
    args = options(
        __doc__,
        argv,
        ("--prompt", {"type": int, "default": 512, "help": "tokens"}),
        ("--tokens", {"type": int, "default": 128, "help": "to decode"}),
        ("--rounds", {"type": int, "default": 3}),
    )
    from chatbaker.infer.engine import Sampling
    from chatbaker.infer.torch_engine import TorchEngine

    (model, vocab), device = reference(args.tiny), device_here()
    if args.tiny:
        args.prompt, args.tokens = 8, 16
    with tempfile.TemporaryDirectory() as folder:
        write_random(Path(folder, "model"), model, vocab, device)
        engine = TorchEngine(Path(folder, "model"), str(device))
    width = engine._dtype.itemsize
    weights = sum(p.numel() for p in engine._model.parameters()) - (0 if model.tied else vocab * model.dim)
    key_value = 2 * model.layers * model.kv_heads * (model.dim // model.heads)
    peak, rows = bandwidth(device, 2**24 if args.tiny else 2**31), []
    for number in range(args.rounds + 1):  # the first warms up
        ids = [(7 * i + number) % vocab for i in range(args.prompt)]
        began = time.perf_counter()
        engine.prefill(ids)
        times = []
        for generated in range(args.tokens):
            token, _ = engine.next_token(ids, generated, Sampling(), generated, 0)
            times.append(time.perf_counter())
            ids.append(token)
        if number:
            each = statistics.median(b - a for a, b in zip(times, times[1:], strict=False))
            size = width * (weights + key_value * (args.prompt + args.tokens // 2))
            row = {"prompt": args.prompt, "first_token_ms": 1000 * (times[0] - began), "ms_per_token": 1000 * each}
            row |= {"tokens_per_second": 1 / each, "gb_per_second": size / each / 1e9, "share": size / each / peak}
            rows.append(row)
    engine.close()
    show(args, device, rows, bytes_per_token=size, copy_gb_per_second=peak / 1e9, engine=engine.name)


if __name__ == "__main__":
    run(main)
