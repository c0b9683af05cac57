"""Pretraining as a user runs it: it learns, it survives kills, and what resumes is bit-identical."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from chatbaker.errors import ChatBakerError
from chatbaker.model.weights import load_model
from chatbaker.recipe import dump, parse
from chatbaker.rundir import RunDir
from chatbaker.stages import STAGES, execute
from chatbaker.tokens.bpe import load_tokenizer, token_bytes
from chatbaker.tokens.shards import load_index
from chatbaker.train import checkpoint
from chatbaker.train.evaluate import bits_per_byte
from chatbaker.train.pretrain import validation_sets


def with_(recipe, **pretrain):
    data = recipe.model_dump(mode="json", exclude_none=True)
    data["pretrain"] |= pretrain
    return parse(data, "test")


def pretrain(recipe, run):
    execute(STAGES["pretrain"], recipe, run)
    return load_file(run.path("pretrain", "model", "model.safetensors"))


def rows(run):
    return [json.loads(line) for line in run.path("pretrain", "metrics.jsonl").read_text("utf-8").splitlines()]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_records_what_it_saw(small_recipe, small_run):
    pretrain(with_(small_recipe, tokens=40 * 512, lr=1e-2), small_run)
    metrics = rows(small_run)
    losses = [row["loss"] for row in metrics if "loss" in row]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 1.0
    evaluations = [row for row in metrics if "eval" in row]
    assert [row["step"] for row in evaluations] == [8, 16, 24, 32, 40]
    for language in ("ko", "en"):
        scores = [row["eval"][language]["bits_per_byte"] for row in evaluations]
        assert scores[-1] < scores[0]
    assert [sample["prompt"] for sample in evaluations[-1]["samples"]] == list(small_recipe.pretrain.prompts)


@pytest.mark.parametrize("tied", [True, False])
def test_the_saved_folder_is_the_model_that_was_evaluated(small_recipe, small_run, tied):
    recipe = with_(small_recipe, tokens=24 * 512, lr=1e-2, precision="fp32")
    recipe = parse(
        recipe.model_dump(mode="json", exclude_none=True) | {"model": small_recipe.model.model_dump() | {"tied": tied}},
        "x",
    )
    weights = pretrain(recipe, small_run)
    assert ("lm_head.weight" in weights) is not tied
    index = load_index(small_run.path("pack"))
    sets = validation_sets(index, recipe.model.seq_len, recipe.pretrain.micro_batch)
    model = load_model(small_run.path("pretrain", "model"))
    found = bits_per_byte(model, sets, token_bytes(load_tokenizer(small_run.path("tokenizer"))), torch.float32)
    logged = next(row["eval"] for row in reversed(rows(small_run)) if "eval" in row)
    for language, score in found.items():
        assert score["bits_per_byte"] == pytest.approx(logged[language]["bits_per_byte"], abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_kill_9_at_a_random_step_then_resume_is_bit_identical(small_recipe, packed, tmp_path, precision, optimizer):
    recipe = with_(small_recipe, precision=precision, optimizer=optimizer, checkpoint_every=3)
    straight, broken = RunDir.of("tiny", tmp_path / "a"), RunDir.of("tiny", tmp_path / "b")
    for run in (straight, broken):
        shutil.copytree(packed.root, run.root)
    expected = pretrain(recipe, straight)

    path = tmp_path / "recipe.toml"
    path.write_text(dump(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "chatbaker", "pretrain", str(path), "--runs", str(tmp_path / "b")]
    victim = random.Random(f"{precision}{optimizer}").randrange(4, 16)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"GLIBC_TUNABLES": ""})
    metrics = broken.path("pretrain", "metrics.jsonl")
    while process.poll() is None:
        if metrics.exists() and f'"step": {victim},' in metrics.read_text(encoding="utf-8"):
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not broken.path("pretrain", "model").exists()
    assert equal(pretrain(recipe, broken), expected)
    kept = [row["step"] for row in rows(broken) if "loss" in row]
    assert kept == list(range(1, 17))  # no step twice, none missing


def test_micro_batches_do_not_change_the_result(small_recipe, packed, tmp_path):
    losses = []
    for size in (2, 8):
        run = RunDir.of("tiny", tmp_path / str(size))
        shutil.copytree(packed.root, run.root)
        pretrain(with_(small_recipe, precision="fp32", micro_batch=size, tokens=6 * 512), run)
        losses.append([row["loss"] for row in rows(run) if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_recompute_and_compile_change_nothing_but_speed(small_recipe, packed, tmp_path):
    weights, losses = [], []
    for number, options in enumerate(({}, {"recompute": True}, {"compile": True})):
        run = RunDir.of("tiny", tmp_path / str(number))
        shutil.copytree(packed.root, run.root)
        weights.append(pretrain(with_(small_recipe, precision="fp32", tokens=6 * 512, **options), run))
        losses.append([row["loss"] for row in rows(run) if "loss" in row])
    assert equal(weights[0], weights[1])
    assert losses[0] == pytest.approx(losses[2], abs=1e-3)


def test_without_a_compiler_training_goes_on_uncompiled(small_recipe, small_run, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    pretrain(with_(small_recipe, compile=True, tokens=2 * 512), small_run)
    assert "no C++ compiler found" in capsys.readouterr().err


def test_with_a_compiler_that_does_not_work_too(small_recipe, small_run, monkeypatch, capsys):
    torch._dynamo.reset()  # what other tests compiled in this process
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "false"))
    pretrain(with_(small_recipe, compile=True, tokens=2 * 512), small_run)
    assert "torch.compile does not work here" in capsys.readouterr().err


class TestCheckpoints:
    @pytest.fixture
    def trained(self, small_recipe, small_run):
        pretrain(small_recipe, small_run)
        return small_run.path("pretrain", "checkpoints")

    def test_only_the_newest_are_kept(self, trained):
        assert sorted(path.name for path in trained.iterdir()) == ["step-00000012", "step-00000016"]

    def test_a_checkpoint_cut_short_is_named_and_the_one_before_is_taken(self, trained, capsys):
        newest = trained / "step-00000016"
        part = next(path for path in newest.iterdir() if path.suffix == ".distcp")
        part.write_bytes(part.read_bytes()[:100])
        path, marker = checkpoint.latest(trained)
        assert path.name == "step-00000012"
        assert marker["step"] == 12
        assert "step-00000016: " in capsys.readouterr().err

    def test_when_none_is_whole_nothing_is_started_anew(self, trained):
        for path in trained.iterdir():
            (path / checkpoint.MARKER).unlink()
        with pytest.raises(ChatBakerError, match=r"no checkpoint here is whole.*rm -r"):
            checkpoint.latest(trained)
        assert len(list(trained.iterdir())) == 2

    def test_changed_data_are_refused(self, trained, small_recipe, small_run):
        index = small_run.path("pack", "index.json")
        index.write_text(index.read_text("utf-8").replace('"sha256": "', '"sha256": "0', 1), encoding="utf-8")
        with pytest.raises(ChatBakerError, match="data changed since this checkpoint"):
            pretrain(small_recipe, small_run)

    def test_a_changed_recipe_is_refused(self, trained, small_recipe, small_run):
        with pytest.raises(ChatBakerError, match="tokens changed since this checkpoint: 8192 then, 16384 now"):
            pretrain(with_(small_recipe, tokens=32 * 512), small_run)
        with pytest.raises(ChatBakerError, match=r"lr changed since this checkpoint: 0\.006 then, 0\.5 now"):
            pretrain(with_(small_recipe, lr=0.5), small_run)


def test_ctrl_c_saves_and_the_same_command_goes_on(small_recipe, small_run, monkeypatch):
    from chatbaker.train import loop

    plain = loop.train_step
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(ChatBakerError, match=r"stopped at step 6, saved.*same command"):
        pretrain(small_recipe, small_run)
    assert small_run.path("pretrain", "checkpoints", "step-00000006").is_dir()
    pretrain(small_recipe, small_run)
    assert len(calls) == 16


def test_a_full_disk_is_one_line_and_the_checkpoint_before_is_kept(small_recipe, small_run, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(dump(small_recipe), encoding="utf-8")
    code = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))\n"
    code += "from chatbaker.cli import main; main()"
    command = [sys.executable, "-c", code, "pretrain", str(path), "--runs", str(small_run.root.parent)]
    result = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=os.environ | {"GLIBC_TUNABLES": ""}
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("chatbaker: ")
    assert "checkpoints" in result.stderr.splitlines()[-1]
    assert not list(small_run.path("pretrain", "checkpoints").iterdir())
    pretrain(small_recipe, small_run)  # with room again the same command goes on


def test_a_refused_run_leaves_stamp_and_recipe_as_they_were(small_recipe, small_run):
    pretrain(small_recipe, small_run)
    stamp, recipe = small_run.stamp("pretrain"), small_run.path("recipe.toml").read_bytes()
    with pytest.raises(ChatBakerError, match="lr changed"):
        pretrain(with_(small_recipe, lr=0.5), small_run)
    assert small_run.stamp("pretrain") == stamp
    assert small_run.path("recipe.toml").read_bytes() == recipe
    expected = load_file(small_run.path("pretrain", "model", "model.safetensors"))
    assert equal(pretrain(small_recipe, small_run), expected)  # again, when all is done: nothing changes


def test_two_at_once_in_one_run_are_refused(small_recipe, small_run):
    code = "import sys, pathlib; from chatbaker.rundir import RunDir\n"
    code += "with RunDir(pathlib.Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(small_run.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ChatBakerError, match="another chatbaker process"):
            pretrain(small_recipe, small_run)


def test_an_evaluation_lost_to_a_kill_is_made_up_for(small_recipe, small_run):
    pretrain(small_recipe, small_run)
    metrics = small_run.path("pretrain", "metrics.jsonl")
    whole = metrics.read_text(encoding="utf-8")
    *lines, last = whole.splitlines(keepends=True)
    assert '"eval"' in last
    metrics.write_text("".join(lines), encoding="utf-8")
    pretrain(small_recipe, small_run)
    assert metrics.read_text(encoding="utf-8") == whole


def test_a_batch_that_is_no_multiple_of_the_context_is_refused(small_recipe, small_run):
    with pytest.raises(ChatBakerError, match="no multiple of seq_len 64"):
        pretrain(with_(small_recipe, batch_tokens=1000), small_run)


def test_a_missing_stage_is_named(small_recipe, tmp_path):
    with pytest.raises(ChatBakerError, match="Run first: chatbaker pack"):
        pretrain(small_recipe, RunDir.of("tiny", tmp_path))
