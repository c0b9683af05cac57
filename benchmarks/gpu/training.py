"""What the training benchmarks share: generated batches, our step, other projects' steps at the same shape, the clock.

Every contender trains the same LLaMA on the same batches, with fp32 weights, AdamW and clipped gradients. Ours keeps
documents apart; the others attend over whole rows, torchtitan apart, which keeps them apart too.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from chatbaker.errors import ChatBakerError
from chatbaker.model.sizes import flops_per_token
from chatbaker.recipe import Model, Schedule, load

if TYPE_CHECKING:
    import torch

Step = Callable[[], None]
TINY = Model(layers=2, heads=4, kv_heads=4, dim=64, ffn_dim=96, seq_len=64, tied=False)
DOCUMENT = 512
"""Tokens of a generated document, about."""


def reference(tiny: bool) -> tuple[Model, int]:
    """The shape of recipes/1.3b.toml and its vocabulary, or one that a CPU trains in a moment."""
    recipe = load("1.3b")
    return (TINY, 512) if tiny else (recipe.model, recipe.tokenizer.vocab_size)


class Windows:
    """Random tokens as pretraining sees them; every step's batch is the same for everyone."""

    fingerprint = ""

    def __init__(self, model: Model, vocab: int, rows: int, document: int = DOCUMENT) -> None:
        self.batch_rows, self.seq_len, self.vocab, self.document = rows, model.seq_len, vocab, document

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Any:
        import numpy as np

        from chatbaker.tokens.loader import window_batch

        rng = np.random.default_rng(step)
        windows = rng.integers(1, self.vocab, (self.batch_rows, self.seq_len + 1))
        windows[rng.random(windows.shape) < 1 / self.document] = 0  # ends of documents
        return window_batch(windows, 0)


def build(model: Model, vocab: int, schedule: Schedule, device: torch.device, data: Any) -> tuple[Step, list[Any]]:
    """One optimizer step of chatbaker.train, and the tensors that live between steps."""
    import torch

    from chatbaker.model.config import LlamaConfig
    from chatbaker.model.llama import Llama
    from chatbaker.train.loop import train_step
    from chatbaker.train.optim import build_optimizers
    from chatbaker.train.parallel import pick_dtype, prepare, start

    with torch.device("meta"):
        network = Llama(LlamaConfig(vocab_size=vocab, **model.model_dump()))
    compiled = prepare(network, schedule, device)
    start(network, device, 0)
    optimizers, parameters = build_optimizers(network, schedule), list(network.parameters())
    dtype, done = pick_dtype(schedule, device), iter(range(10**9))

    def step() -> None:
        train_step(network, data, schedule, next(done), dtype, optimizers, parameters, 1.0, compiled)

    return step, parameters


def ours(model: Model, vocab: int, schedule: Schedule, device: torch.device, data: Any) -> Step:
    return build(model, vocab, schedule, device, data)[0]


def theirs(name: str, model: Model, vocab: int, schedule: Schedule, device: torch.device, data: Any) -> Step:
    """The same job by another project, in its usual precision: bf16 arithmetic by autocast over fp32 weights."""
    import torch

    from chatbaker.train.parallel import pick_dtype

    try:
        with torch.device(device):
            network, loss = OTHERS[name](model, vocab, schedule.compile)
    except ImportError as error:
        raise ChatBakerError(f"{name} is not installed here ({error})", "--against") from None
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=4e-4, fused=True)
    dtype, done = pick_dtype(schedule, device), iter(range(10**9))

    def step() -> None:
        parts = list(data.batch(next(done)).split(schedule.micro_batch))
        for part in parts:
            tensors = (torch.from_numpy(array).to(device) for array in (part.ids, part.targets, part.docs))
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                mean = loss(*tensors) / len(parts)
            mean.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _transformers(model: Model, vocab: int, compile: bool) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=model.dim,
        intermediate_size=model.ffn_dim,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.seq_len,
        tie_word_embeddings=model.tied,
        use_cache=False,
    )
    network = LlamaForCausalLM(config)
    forward = torch.compile(network, dynamic=False) if compile else network
    return network, lambda ids, targets, docs: forward(input_ids=ids, labels=ids).loss


def _litgpt(model: Model, vocab: int, compile: bool) -> Any:
    import torch
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    config = Config(
        block_size=model.seq_len,
        n_layer=model.layers,
        n_embd=model.dim,
        n_head=model.heads,
        n_query_groups=model.kv_heads,
        intermediate_size=model.ffn_dim,
        vocab_size=vocab,
        padded_vocab_size=vocab,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
    )
    network = GPT(config)
    if model.tied:
        network.lm_head.weight = network.transformer.wte.weight
    forward = torch.compile(network, dynamic=False) if compile else network
    return network, lambda ids, targets, docs: chunked_cross_entropy(forward(ids), targets)


def _torchtitan(model: Model, vocab: int, compile: bool) -> Any:
    """torchtitan 0.3: its blocks, compiled one by one, with flash attention over documents, as in its own recipes."""
    import torch
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.llama3 import Llama3Model, _build_llama3_layers

    if not torch.cuda.is_available():
        raise ChatBakerError("torchtitan's attention trains on a GPU alone", "--against torchtitan")
    dim, ones = model.dim, {"weight": torch.nn.init.ones_}
    normal = {"weight": partial(torch.nn.init.normal_, std=0.02)}
    blocks = _build_llama3_layers(
        n_layers=model.layers,
        dim=dim,
        n_heads=model.heads,
        n_kv_heads=model.kv_heads,
        hidden_dim=model.ffn_dim,
        rope=ComplexRoPE.Config(dim=dim // model.heads, max_seq_len=model.seq_len, theta=model.rope_theta),
        attn_backend="varlen",
    )
    config = Llama3Model.Config(
        dim=dim,
        vocab_size=vocab,
        enable_weight_tying=model.tied,
        tok_embeddings=Embedding.Config(num_embeddings=vocab, embedding_dim=dim, param_init=normal),
        norm=RMSNorm.Config(normalized_shape=dim, param_init=ones),
        lm_head=Linear.Config(in_features=dim, out_features=vocab, param_init=normal),
        layers=blocks,
    )
    network = config.build()
    network.init_states()
    entropy = torch.nn.functional.cross_entropy
    if compile:
        entropy = torch.compile(entropy)
        for block in network.layers.values():
            block.compile(fullgraph=True)

    def loss(ids: Any, targets: Any, docs: Any) -> Any:
        row = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        first = torch.ones_like(ids, dtype=torch.bool)
        first[:, 1:] = docs[:, 1:] != docs[:, :-1]
        positions = row - torch.where(first, row, 0).cummax(1).values  # they start anew in each document
        logits = network(ids, positions, network.get_attention_masks(positions))
        return entropy(logits.flatten(0, 1).float(), targets.flatten())

    return network, loss


OTHERS: dict[str, Callable[[Model, int, bool], Any]] = {
    "transformers": _transformers,
    "litgpt": _litgpt,
    "torchtitan": _torchtitan,
}


def wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Step, steps: int, device: torch.device) -> float:
    """Of one step, over `steps` of them."""
    wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - began) / steps


def measure(make: Callable[[], Step], rounds: int, steps: int, device: torch.device) -> list[float]:
    """Seconds a step in each round, after two that compile and warm up; the contender is gone afterwards."""
    import torch

    step = make()
    seconds(step, 2, device)
    found = [seconds(step, steps, device) for _ in range(rounds)]
    del step
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def speed(name: str, tokens: float, found: list[float], flops: float, peak: float) -> dict[str, Any]:
    """A row of the table. tokens: of a step. MFU = tokens/s x flops / peak."""
    rates = [tokens / one for one in found]
    middle = statistics.median(rates)
    row = {"contender": name, "tokens_per_second": middle, "min": min(rates), "max": max(rates)}
    return row | {"flops_per_token": flops, "mfu": middle * flops / peak}


def formula(model: Model, vocab: int, device: torch.device) -> dict[str, Any]:
    """What MFU is made of. The peak is bf16's for every precision, so that FP8 shows as more of it."""
    import torch

    from chatbaker.train.parallel import peak_flops

    peak, source = peak_flops(device, torch.bfloat16)
    return {"flops_per_token": flops_per_token(model, vocab), "peak_flops": peak, "peak_source": source}


def options(text: str, argv: list[str] | None, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """The options of every benchmark here, and `more`."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small shape, uncompiled: for a CPU, in seconds")
    parser.add_argument("--json", action="store_true")
    for name, how in more:
        parser.add_argument(name, **how)
    args = parser.parse_args(argv)
    args.command = " ".join(["python", *sys.argv[:1], *(argv if argv is not None else sys.argv[1:])])
    return args


def facts(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Where and with what a benchmark ran."""
    import torch

    name = f"{torch.get_num_threads()} threads of a CPU ({platform.machine()})"
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    for module in ("torchao", "transformers", "litgpt", "torchtitan"):
        if module in sys.modules:
            versions[module] = getattr(sys.modules[module], "__version__", "unknown")
    return {"device": name, "versions": versions, "command": args.command}


def show(args: argparse.Namespace, device: torch.device, rows: list[dict[str, Any]], **more: Any) -> None:
    """JSON, or the facts and the rows as a Markdown table."""
    result = facts(args, device) | more | {"rows": rows}
    if args.json:
        print(json.dumps(result, ensure_ascii=False, indent=1))
        return
    for key, value in result.items():
        if key != "rows":
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else _cell(key, value)
            print(f"{key.replace('_', ' ')}: {text}")
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(_cell(key, value) for key, value in row.items()) + " |")


def _cell(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if key in ("mfu", "share", "difference", "rows_filled", "of_pretraining"):
        return f"{value:.1%}"
    return f"{value:.4g}" if abs(value) < 1000 or value >= 1e12 else f"{value:,.0f}"


def device_here() -> torch.device:
    from chatbaker.train.parallel import pick_device

    return pick_device()


def run(main: Callable[[], None]) -> None:
    """A person's mistake is one line here too."""
    try:
        main()
    except ChatBakerError as error:
        sys.exit(str(error))
