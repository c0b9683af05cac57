"""Tuning: the same loop, the base model's weights, exact resume, answers that end."""

import json

import pytest
import torch
from safetensors.torch import load_file

from chatbaker.errors import ChatBakerError
from chatbaker.recipe import parse
from chatbaker.rundir import RunDir
from chatbaker.stages import STAGES, execute


@pytest.fixture
def based(small_recipe, small_run):
    execute(STAGES["pretrain"], small_recipe, small_run)
    return small_run


def test_it_lowers_the_loss_on_held_out_answers(small_recipe, based):
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["sft"] |= {"epochs": 6, "eval_every": 10, "validation": 0.1}
    execute(STAGES["sft"], parse(data, "x"), based)
    rows = [json.loads(line) for line in based.path("sft", "metrics.jsonl").read_text("utf-8").splitlines()]
    scores = [row["eval"]["ko"]["bits_per_byte"] for row in rows if "eval" in row]
    assert len(scores) >= 2
    assert scores[-1] < scores[0]
    config = json.loads(based.path("sft", "model", "tokenizer_config.json").read_text("utf-8"))
    assert "<|im_start|>" in config["chat_template"]
    assert config["model_max_length"] == small_recipe.model.seq_len
    before, after = (load_file(based.path(s, "model", "model.safetensors")) for s in ("pretrain", "sft"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[k], after[k]) for k in before if "proj" in k)


def test_without_a_base_the_stage_to_run_is_named(small_recipe, tmp_path):
    with pytest.raises(ChatBakerError, match="Run first: chatbaker pretrain"):
        execute(STAGES["sft"], small_recipe, RunDir.of("tiny", tmp_path))
