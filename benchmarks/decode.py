"""Decode speed and memory at the 1.3B shape, and how long the bundled chat takes to its first token.

    python benchmarks/decode.py [--rounds 3] [--tokens 48] [--out benchmarks/results/decode.json]

Decode: a q8_0 GGUF of the reference's shape (24 layers, 2,048 wide, 50,304 tokens, untied) with random weights. Each
round measures llama.cpp's own loop (one streaming request to a plain server, its own timings and defaults) and then
`chatbaker.infer` (default sampling options, one token a request) in fresh processes on the same file; the figure is
the median over the rounds, the ratio is taken round by round; other programs spoil it, so how many were running is
written beside it. Peak memory is the largest resident set, the mapped weights included, in GiB as the system counts.
Claims: ratio >= 0.95, peak <= 1.8.

First token: `chatbaker chat QUESTION` from process start to the first byte of the answer, model file and llama.cpp's
library dropped from the page cache before the cold run where the system allows it. Claim: < 1.5 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPE = {"layers": 24, "dim": 2048, "heads": 32, "ffn": 5632, "vocab": 50_304, "context": 2048}
PROMPT_TOKENS = 64


def write_random_gguf(path: Path, layers: int, dim: int, heads: int, ffn: int, vocab: int, context: int) -> None:
    """A LLaMA with random q8_0 blocks: as fast and as large as a trained one, and as talkative as noise."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType

    from chatbaker.tokens.dialog import CHATML, SPECIAL_TOKENS

    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = [*SPECIAL_TOKENS, *map(chr, visible), *(chr(0x100 + i) for i in range(256 - len(visible))), "Ġa"]
    types = [TokenType.CONTROL] * len(SPECIAL_TOKENS) + [TokenType.NORMAL] * (vocab - len(SPECIAL_TOKENS))
    tokens += [f"w{i}" for i in range(vocab - len(tokens))]
    writer = GGUFWriter(str(path), "llama")
    writer.add_chat_template(CHATML.jinja)
    writer.add_context_length(context)
    writer.add_embedding_length(dim)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim // heads)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["Ġ a"])
    writer.add_eos_token_id(SPECIAL_TOKENS.index("<|im_end|>"))
    dice = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        blocks = np.empty((rows * columns // 32, 34), np.uint8)  # a half-precision scale, then 32 signed bytes
        blocks[:, :2] = np.array([0.02 / 127], np.float16).view(np.uint8)
        blocks[:, 2:] = dice.integers(-127, 128, (len(blocks), 32), np.int8).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(rows, -1), raw_dtype=GGMLQuantizationType.Q8_0)

    matrix("token_embd.weight", vocab, dim)
    matrix("output.weight", vocab, dim)
    writer.add_tensor("output_norm.weight", np.ones(dim, np.float32))
    for i in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(dim, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{name}.weight", dim, dim)
        matrix(f"blk.{i}.ffn_gate.weight", ffn, dim)
        matrix(f"blk.{i}.ffn_up.weight", ffn, dim)
        matrix(f"blk.{i}.ffn_down.weight", dim, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def peak_gib() -> float:
    """The largest resident set of this process."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def ours(path: Path, tokens: int) -> dict[str, float]:
    """`chatbaker.infer`, as the chat uses it."""
    from chatbaker.infer.engine import Sampling
    from chatbaker.infer.llamacpp import LlamaCppEngine

    with LlamaCppEngine(path, "cpu") as engine:
        question = [{"role": "user", "content": "x" * PROMPT_TOKENS}]
        *_, last = engine.stream(question, Sampling(max_new_tokens=tokens, seed=0))
    usage = last.usage
    return {
        "tokens_per_second": usage.decode_speed,
        "prompt_tokens_per_second": usage.prompt_speed,
        "peak_gib": peak_gib(),
    }


def plain(path: Path, tokens: int) -> dict[str, float]:
    """llama.cpp as it comes: its server's defaults for one user, its own loop, its own clock."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.verbosity, params.n_gpu_layers = SHAPE["context"], 1, -1, 0
    server = xllamacpp.Server(params)
    request = {"prompt": [0, *range(3, 3 + PROMPT_TOKENS)], "n_predict": tokens, "ignore_eos": True, "stream": True}
    events: list[dict[str, Any]] = []
    server.handle_completions(request, lambda event: events.append(event))
    timings = events[-1]["timings"]
    return {
        "tokens_per_second": timings["predicted_per_second"],
        "prompt_tokens_per_second": timings["prompt_per_second"],
        "peak_gib": peak_gib(),
    }


def measure(how: str, path: Path, tokens: int) -> dict[str, float]:
    """One of the two above, in a process of its own."""
    command = [sys.executable, __file__, "--measure", how, "--model", str(path), "--tokens", str(tokens)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def first_token(model: str | None, cold: bool) -> float:
    """Seconds from the start of `chatbaker chat` to the first byte of its answer."""
    if cold and hasattr(os, "posix_fadvise"):
        import xllamacpp

        from chatbaker.infer.engine import bundled_model

        libraries = Path(xllamacpp.__file__).parent.glob("*.so")
        for path in (Path(model) if model else bundled_model(), *libraries):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, "-c", "from chatbaker.cli import main; main()", "chat", "안녕하세요", "--device", "cpu"]
    began = time.perf_counter()
    with subprocess.Popen(command + (["--model", model] if model else []), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1), "no answer"
        took = time.perf_counter() - began
        process.stdout.read()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description="decode speed, peak memory, time to the first token")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode.json")
    parser.add_argument("--model", help="with --measure: the GGUF; else: the chat model whose start is timed")
    parser.add_argument("--measure", choices=["ours", "plain"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps({"ours": ours, "plain": plain}[arguments.measure](Path(arguments.model), arguments.tokens)))
        return
    loadavg = Path("/proc/loadavg")
    busy = int(loadavg.read_text(encoding="utf-8").split()[3].split("/")[0]) - 1 if loadavg.exists() else None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random-1.3b-q8_0.gguf"
        write_random_gguf(path, **SHAPE)
        size = path.stat().st_size / 1e9
        rounds = [
            {how: measure(how, path, arguments.tokens) for how in ("plain", "ours")} for _ in range(arguments.rounds)
        ]
    ratios = [one["ours"]["tokens_per_second"] / one["plain"]["tokens_per_second"] for one in rounds]
    starts = [first_token(arguments.model, cold) for cold in (True, False, False)]
    speeds = {how: statistics.median(one[how]["tokens_per_second"] for one in rounds) for how in ("plain", "ours")}
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "other_programs_running": busy,
        "model": SHAPE | {"type": "q8_0", "file_gb": round(size, 3)},
        "rounds": rounds,
        "llamacpp_tokens_per_second": round(speeds["plain"], 2),
        "chatbaker_tokens_per_second": round(speeds["ours"], 2),
        "ratio": round(statistics.median(ratios), 3),
        "peak_gib": round(max(one["ours"]["peak_gib"] for one in rounds), 3),
        "llamacpp_peak_gib": round(max(one["plain"]["peak_gib"] for one in rounds), 3),
        "first_token_cold_seconds": round(starts[0], 2),
        "first_token_warm_seconds": round(min(starts[1:]), 2),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"| 1.3B q8_0 ({size:.2f} GB) | decode tokens/s | peak memory GiB |\n|---|---|---|")
    print(f"| llama.cpp, its own loop and defaults | {speeds['plain']:.2f} | {result['llamacpp_peak_gib']} |")
    print(f"| chatbaker | {speeds['ours']:.2f} ({result['ratio']:.1%}) | {result['peak_gib']} |\n")
    if busy:
        print(f"{busy} other programs were running: run this again on a quiet machine before quoting it")
    print(f"first token of the chat: {starts[0]:.2f} s cold, {min(starts[1:]):.2f} s warm; written {arguments.out}")


if __name__ == "__main__":
    main()
