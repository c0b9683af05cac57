"""Stage `sft`: a base model and conversations -> a chat model, by the same loop as pretraining."""

from __future__ import annotations

import hashlib
import math

import torch

from chatbaker.dist import process_group, world
from chatbaker.model.sizes import flops_per_token
from chatbaker.model.weights import load_model
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir
from chatbaker.tokens.bpe import load_tokenizer, special_id, token_bytes
from chatbaker.tokens.conversations import load
from chatbaker.tokens.dialog import CHATML, END_OF_TEXT, IM_END, encode
from chatbaker.tokens.loader import SftData
from chatbaker.train.evaluate import bits_per_byte, samples
from chatbaker.train.launch import launched, write_slurm_script  # noqa: F401 - for --slurm
from chatbaker.train.loop import checkpoint_meta, hand_over, train
from chatbaker.train.parallel import pick_device, pick_dtype, prepare, set_threads

EVAL_ROWS = 64
"""Validation rows per language in the loop."""


def run(recipe: Recipe, run: RunDir) -> None:
    """Tune pretrain/model, or go on from the newest checkpoint; ends with sft/model."""
    if launched("sft", recipe, run):
        return
    device = pick_device()
    with process_group(device):
        _run(recipe, run, device)


def _run(recipe: Recipe, run: RunDir, device: torch.device) -> None:
    section = recipe.sft
    set_threads(recipe.parallel)
    base = run.need("pretrain", "model", stage="pretrain")
    with open(base / "model.safetensors", "rb") as file:
        base_sha = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    tokenizer = load_tokenizer(base)
    rows, validation, fingerprint = load(recipe, tokenizer)
    data = SftData(rows, section.batch_size, recipe.seed, fingerprint)
    model = load_model(base, str(device) if world().size == 1 else "cpu")  # sharding moves it, block by block
    model.requires_grad_(True)
    compiled = prepare(model, section, device, recipe.parallel)
    dtype = pick_dtype(section, device)
    sets = {name: list(batch.head(EVAL_ROWS).split(section.micro_batch)) for name, batch in validation.items()}
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
        run.path("sft"),
        flops_per_token(recipe.model, model.config.vocab_size),
        lambda: {
            "eval": bits_per_byte(model, sets, sizes, dtype),
            "samples": samples(model, tokenizer, prompts, list(ids), dtype),
        },
        checkpoint_meta(recipe, section) | {"base": base_sha},
        compiled,
    )
    hand_over(model, run.path("sft", "model"), base, *ids)
