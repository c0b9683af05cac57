"""Stage `pretrain`: token shards -> a base model."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from chatbaker.dist import process_group
from chatbaker.errors import ChatBakerError
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Llama
from chatbaker.model.sizes import flops_per_token
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir
from chatbaker.tokens.bpe import load_tokenizer, special_id, token_bytes
from chatbaker.tokens.dialog import IM_END
from chatbaker.tokens.loader import PretrainData, window_batch
from chatbaker.tokens.shards import Index, load_index
from chatbaker.train.bigrams import head_start
from chatbaker.train.evaluate import Sets, bits_per_byte, samples
from chatbaker.train.launch import launched
from chatbaker.train.loop import checkpoint_meta, hand_over, train
from chatbaker.train.parallel import pick_device, pick_dtype, prepare, set_threads, start

EVAL_TOKENS = 65_536
"""Validation tokens per language in the loop."""


def network(recipe: Recipe, vocab_size: int) -> LlamaConfig:
    """The recipe's [model] with the tokenizer's size."""
    return LlamaConfig(vocab_size=vocab_size, **recipe.model.model_dump())


def validation_sets(index: Index, seq_len: int, rows: int) -> Sets:
    """Up to EVAL_TOKENS of every language's validation shards, spread evenly, in micro-batches of `rows`."""
    sets: Sets = {}
    for language in sorted({shard.language for shard in index.shards if shard.split == "validation"}):
        windows = []
        for shard in index.shards:
            if shard.split == "validation" and shard.language == language:
                tokens = index.tokens(shard)
                count = max(0, len(tokens) - 1) // seq_len
                windows += [tokens[i * seq_len : i * seq_len + seq_len + 1] for i in range(count)]
        if windows:
            keep = max(1, min(len(windows), EVAL_TOKENS // seq_len))
            chosen = [windows[i * len(windows) // keep] for i in range(keep)]
            batch = window_batch(np.stack(chosen).astype(np.int64), index.end_of_text)
            sets[language] = list(batch.split(rows))
    return sets


def run(recipe: Recipe, run: RunDir) -> None:
    """Train from scratch, or go on from the newest checkpoint; ends with pretrain/model."""
    if launched("pretrain", recipe, run):
        return
    device = pick_device()
    with process_group(device):
        _run(recipe, run, device)


def _run(recipe: Recipe, run: RunDir, device: torch.device) -> None:
    section = recipe.pretrain
    set_threads(recipe.parallel)
    index = load_index(run.need("pack", "index.json", stage="pack").parent)
    tokenizer_folder = run.need("tokenizer", "tokenizer.json", stage="tokenizer").parent
    tokenizer = load_tokenizer(tokenizer_folder)
    seq_len = recipe.model.seq_len
    if section.batch_tokens % seq_len:
        raise ChatBakerError(
            f"batch_tokens {section.batch_tokens} is no multiple of seq_len {seq_len}", "pretrain.batch_tokens"
        )
    rows = section.batch_tokens // seq_len
    data = PretrainData(index, section.mix, seq_len, rows, recipe.seed)
    config = network(recipe, index.vocab_size)
    with torch.device("meta"):
        model = Llama(config)
    compiled = prepare(model, section, device, recipe.parallel)
    start(model, device, recipe.seed)
    dtype = pick_dtype(section, device)
    sets = validation_sets(index, seq_len, section.micro_batch)
    sizes = token_bytes(tokenizer)
    prompts = {p: [index.end_of_text, *tokenizer.encode(p, add_special_tokens=False).ids] for p in section.prompts}

    train(
        model,
        data,
        section,
        max(1, section.tokens // section.batch_tokens),
        run.path("pretrain"),
        flops_per_token(recipe.model, index.vocab_size),
        lambda: {
            "eval": bits_per_byte(model, sets, sizes, dtype),
            "samples": samples(model, tokenizer, prompts, [index.end_of_text], dtype),
        },
        checkpoint_meta(recipe, section),
        compiled,
        begin=partial(head_start, model, data, section.bigram_steps, recipe.seed, dtype),
    )
    end_of_turn = special_id(tokenizer, IM_END)
    hand_over(model, run.path("pretrain", "model"), tokenizer_folder, index.end_of_text, end_of_turn)
