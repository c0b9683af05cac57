"""Stage `sft`: a base model and conversations -> a chat model, by the same loop as pretraining; `tune` is dpo's too."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer

from chatbaker.dist import process_group, world
from chatbaker.errors import ChatBakerError
from chatbaker.model.llama import Llama
from chatbaker.model.sizes import flops_per_token
from chatbaker.model.weights import load_model
from chatbaker.recipe import Recipe, Sft
from chatbaker.rundir import RunDir
from chatbaker.tokens.bpe import load_tokenizer, special_id, token_bytes
from chatbaker.tokens.conversations import Loaded, load
from chatbaker.tokens.dialog import CHATML, END_OF_TEXT, IM_END, encode
from chatbaker.tokens.loader import Batch, SftData
from chatbaker.train.evaluate import bits_per_byte, samples
from chatbaker.train.launch import launched
from chatbaker.train.loop import Objective, checkpoint_meta, hand_over, next_token, train
from chatbaker.train.lora import attach, merge
from chatbaker.train.parallel import pick_device, pick_dtype, prepare, set_threads
from chatbaker.train.pretrain import network

EVAL_ROWS = 64
"""Validation rows per language in the loop."""
Load = Callable[[Recipe, Tokenizer], Loaded]


def run(recipe: Recipe, run: RunDir) -> None:
    """Tune pretrain/model, or go on from the newest checkpoint; ends with sft/model."""
    tune("sft", "pretrain", load, recipe, run)


def tune(
    stage: str,
    before: str,
    load: Load,
    recipe: Recipe,
    run: RunDir,
    objective: Objective = next_token,
    refer: Callable[[Llama, Batch, int, torch.dtype], Batch] | None = None,
    score: Callable[..., Any] = bits_per_byte,
) -> None:
    """Train what the stage `before` made on what `load` reads, into the stage's folder.

    refer: adds to rows what the objective wants to know of the model as it is at first. score: of held-out rows.
    """
    if launched(stage, recipe, run):
        return
    device = pick_device()
    with process_group(device):
        section: Sft = getattr(recipe, stage)
        set_threads(recipe.parallel)
        base = run.need(before, "model", stage=before)
        with open(base / "model.safetensors", "rb") as file:
            base_sha = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        tokenizer = load_tokenizer(base)
        rows, held, fingerprint = load(recipe, tokenizer)
        model = load_model(base, str(device) if world().size == 1 else "cpu")  # sharding moves it, block by block
        for key, value in vars(network(recipe, model.config.vocab_size)).items():
            if (its := getattr(model.config, key)) != value:
                hint = "Undo the change of [model], or train a base of that shape: chatbaker pretrain"
                raise ChatBakerError(f"{key} is {value} in the recipe, and {its} in the base", str(base), hint)
        model.requires_grad_(True)
        if section.lora_rank:
            attach(model, section, recipe.seed)
        compiled = prepare(model, section, device, recipe.parallel)
        dtype = pick_dtype(section, device)
        held = {name: batch.head(EVAL_ROWS) for name, batch in held.items()}
        if refer:  # before a checkpoint is read: the reference is the base
            rows, *others = (refer(model, batch, section.micro_batch, dtype) for batch in (rows, *held.values()))
            held = dict(zip(held, others, strict=True))
        data = SftData(rows, section.batch_size, recipe.seed, fingerprint)
        trained = rows.trained / rows.targets.size  # the others need no head
        sets = {name: list(batch.split(section.micro_batch)) for name, batch in held.items()}
        sizes = token_bytes(tokenizer)
        prompts = {
            prompt: encode(tokenizer, CHATML.segments([{"role": "user", "content": prompt}], generate=True))[0]
            for prompt in section.prompts
        }
        ids = special_id(tokenizer, END_OF_TEXT), special_id(tokenizer, IM_END)
        train(
            model,
            data,
            section,
            max(1, math.ceil(section.epochs * data.steps_per_epoch)),
            run.path(stage),
            flops_per_token(recipe.model, round(model.config.vocab_size * trained)),
            lambda: {
                "eval": score(model, sets, sizes, dtype),
                "samples": samples(model, tokenizer, prompts, list(ids), dtype),
            },
            checkpoint_meta(recipe, section) | {"base": base_sha},
            compiled,
            objective,
        )
        if section.lora_rank:
            merge(model)
        hand_over(model, run.path(stage, "model"), base, *ids)
