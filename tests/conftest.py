"""A small bake that tests share: generated text, cleaned, tokenized and packed once per session."""

import os
import shutil

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small lose more to thread barriers than they gain

import pytest

from chatbaker.recipe import load, parse
from chatbaker.rundir import RunDir
from chatbaker.stages import STAGES, execute

SMALL = (
    "tokenizer.vocab_size=512",
    "model.layers=2",
    "model.dim=32",
    "model.heads=2",
    "model.kv_heads=1",
    "model.ffn_dim=64",
    "model.seq_len=64",
    "pretrain.batch_tokens=512",
    "pretrain.micro_batch=4",
    "pretrain.tokens=8192",
    "pretrain.compile=false",
    "pretrain.log_every=1",
    "pretrain.eval_every=8",
    "pretrain.checkpoint_every=4",
    "sft.compile=false",
    "sft.batch_size=8",
    "sft.micro_batch=4",
    "sft.epochs=1",
    "sft.checkpoint_every=4",
)


@pytest.fixture(scope="session")
def small_recipe(tmp_path_factory):
    """The tiny recipe, made smaller still."""
    text = load("tiny", SMALL).model_dump(mode="json", exclude_none=True)
    for source in text["clean"]["sources"]:
        source["limit"] = 300
    for source in text["sft"]["sources"]:
        source["limit"] = 200
    text["eval"]["limit"] = 2
    return parse(text, "small")


@pytest.fixture(scope="session")
def packed(small_recipe, tmp_path_factory):
    """A run folder with clean, tokenizer and pack done. Do not write to it: see `small_run`."""
    run = RunDir.of("tiny", tmp_path_factory.mktemp("runs"))
    for name in ("clean", "tokenizer", "pack"):
        execute(STAGES[name], small_recipe, run)
    return run


@pytest.fixture
def small_run(packed, tmp_path):
    """A copy of `packed` of one's own."""
    shutil.copytree(packed.root, tmp_path / "runs" / "tiny")
    return RunDir.of("tiny", tmp_path / "runs")
