"""Tuning: the same loop on the base model's weights, resumed exactly, refused on another base."""

import json
import shutil

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


def test_a_recipe_of_another_shape_is_refused(small_recipe, based):
    other = small_recipe.model_copy(update={"model": small_recipe.model.model_copy(update={"layers": 7})})
    with pytest.raises(ChatBakerError, match="layers is 7 in the recipe, and 2 in the base.*chatbaker pretrain"):
        execute(STAGES["sft"], other, based)


def test_without_held_out_rows_it_goes_on_from_a_step_that_was_not_looked_at(small_recipe, based, stop_at):
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["sft"] |= {"validation": 0, "eval_every": 2, "checkpoint_every": 2}
    stop_at(2)
    with pytest.raises(ChatBakerError, match="stopped at step 2, saved"):
        execute(STAGES["sft"], parse(data, "x"), based)
    execute(STAGES["sft"], parse(data, "x"), based)
    assert based.path("sft", "model").is_dir()


def test_stopped_and_resumed_it_is_bit_identical(small_recipe, based, stop_at):
    execute(STAGES["sft"], small_recipe, based)
    path = based.path("sft", "model", "model.safetensors")
    expected = load_file(path)
    shutil.rmtree(based.path("sft"))
    stop_at(3)
    with pytest.raises(ChatBakerError, match="stopped at step 3, saved"):
        execute(STAGES["sft"], small_recipe, based)
    assert not path.exists()
    execute(STAGES["sft"], small_recipe, based)
    again = load_file(path)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_another_base_is_refused_and_the_same_one_made_again_is_not(small_recipe, based):
    execute(STAGES["sft"], small_recipe, based)
    execute(STAGES["pretrain"], small_recipe, based)  # finished: writes the same weights
    execute(STAGES["sft"], small_recipe, based)
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["pretrain"] |= {"lr": 1e-4}
    shutil.rmtree(based.path("pretrain"))
    execute(STAGES["pretrain"], parse(data, "x"), based)
    with pytest.raises(ChatBakerError, match="base changed since this checkpoint"):
        execute(STAGES["sft"], small_recipe, based)


def test_a_checkpoint_older_than_a_knob_goes_on_where_the_knob_has_its_default(small_recipe, based, capsys):
    execute(STAGES["sft"], small_recipe, based)
    marker = max(based.path("sft", "checkpoints").glob("step-*")) / "complete.json"
    facts = json.loads(marker.read_text("utf-8"))
    del facts["meta"]["lora_rank"], facts["meta"]["lora_alpha"]
    marker.write_text(json.dumps(facts), encoding="utf-8")
    execute(STAGES["sft"], small_recipe, based)
    assert "going on from step" in capsys.readouterr().err
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["sft"] |= {"lora_rank": 2}
    with pytest.raises(ChatBakerError, match="lora_rank changed since this checkpoint: 0 then, 2 now"):
        execute(STAGES["sft"], parse(data, "x"), based)
