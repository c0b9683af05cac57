"""Training by several processes: the same losses as one, checkpoints for any number of them, clear refusals."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.rendezvous.api import RendezvousTimeoutError
from torch.distributed.launcher import api

from chatbaker import dist
from chatbaker.cli import _stage
from chatbaker.errors import ChatBakerError
from chatbaker.recipe import dump, load, parse
from chatbaker.rundir import RunDir
from chatbaker.train import parallel
from chatbaker.train.launch import launched

STEPS = 20


class Jobs:
    """Pretrainings of the shared bake, each in a run folder of its own."""

    def __init__(self, recipe, packed, folder):
        self.recipe, self.packed, self.folder, self.jobs = recipe, packed, folder, []

    def add(self, name, ranks, shard=0, batch=8, like=None, stage="pretrain", bigram_steps=0, optimizer="adamw", **job):
        data = self.recipe.model_dump(mode="json", exclude_none=True)
        data["parallel"] |= {"shard": shard}
        data["pretrain"] |= {
            "optimizer": optimizer,  # Muon rounds to bf16, which makes much of little
            "precision": "fp32",
            "batch_tokens": batch * 64,
            "tokens": STEPS * batch * 64,
            "micro_batch": 1,
            "eval_every": 10,
            "checkpoint_every": 10,
            "prompts": ["The"],
            "bigram_steps": bigram_steps,
        }
        data["model"] |= {"tied": not bigram_steps}
        exact = {"optimizer": "adamw", "precision": "fp32", "micro_batch": 1, "log_every": 1}
        data["sft"] |= exact | {"lora_rank": 4, "prompts": ["Hello!"]}
        run = self.folder / name
        shutil.copytree(self.folder / like if like else self.packed.root, run)
        path = run / "test.toml"
        path.write_text(dump(parse(data, "x")), encoding="utf-8")
        self.jobs.append({"ranks": ranks, "stage": stage, "recipe": str(path), "run": str(run)} | job)
        return RunDir(run)

    def start(self):
        path = self.folder / "jobs.json"
        path.write_text(json.dumps(self.jobs), encoding="utf-8")
        self.jobs = []
        command = [sys.executable, "-m", "tests.train.ranks", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=os.environ)
        assert done.returncode == 0, done.stderr
        return done.stderr


def rows(run, key, stage="pretrain"):
    lines = run.path(stage, "metrics.jsonl").read_text("utf-8").splitlines()
    return {row["step"]: row[key] for row in map(json.loads, lines) if key in row}


@pytest.fixture(scope="module")
def jobs(small_recipe, packed, tmp_path_factory):
    jobs = Jobs(small_recipe, packed, tmp_path_factory.mktemp("ranks"))
    jobs.add("one", 1)
    jobs.add("fsdp", 2)
    jobs.add("hsdp", 4, shard=2)
    jobs.add("poisoned", 1, poison=6)
    jobs.add("poisoned-card", 4, shard=2, poison=6)
    jobs.add("stopped", 2, signal=6)
    jobs.add("uneven", 2, batch=9)
    jobs.add("wide", 2, shard=3)
    jobs.add("muon", 1, optimizer="muon")
    jobs.add("muon-by-two", 2, optimizer="muon")
    jobs.add("ahead", 1, bigram_steps=5)
    jobs.add("ahead-by-two", 2, bigram_steps=5)
    jobs.said = jobs.start()
    for ranks in (1, 4):  # what two processes saved at step 10
        run = jobs.add(f"on-{ranks}", ranks, like="fsdp")
        shutil.rmtree(run.path("pretrain", "checkpoints", f"step-{STEPS:08d}"))
        shutil.rmtree(run.path("pretrain", "model"))
        metrics = run.path("pretrain", "metrics.jsonl")  # nor was what they saved looked at
        kept = [line for line in metrics.read_text("utf-8").splitlines(keepends=True) if '"eval"' not in line]
        metrics.write_text("".join(kept), encoding="utf-8")
    jobs.add("resumed", 2, like="stopped")
    jobs.add("tuned", 1, like="one", stage="sft")
    jobs.add("tuned-by-two", 2, like="one", stage="sft")
    jobs.start()
    return jobs


@pytest.mark.parametrize("name", ["fsdp", "hsdp", "on-1", "on-4", "resumed"])
def test_losses_and_weights_are_those_of_one_process(jobs, name):
    one, other = RunDir(jobs.folder / "one"), RunDir(jobs.folder / name)
    for key in ("loss", "grad_norm"):
        expected, found = rows(one, key), rows(other, key)
        assert list(found) == list(range(1, STEPS + 1))
        assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-5 if key == "loss" else 1e-3)
    expected, found = rows(one, "eval"), rows(other, "eval")
    assert expected.keys() == found.keys() == {10, 20}
    for step in expected:
        for language, scores in expected[step].items():
            assert found[step][language] == pytest.approx(scores, rel=1e-4)
    assert rows(one, "samples").keys() == rows(other, "samples").keys()
    expected, found = (load_file(run.path("pretrain", "model", "model.safetensors")) for run in (one, other))
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4)


def test_muon_takes_the_same_steps_by_two(jobs):
    names = ("muon", "muon-by-two", "one")
    one, two, adamw = (list(rows(RunDir(jobs.folder / name), "loss").values()) for name in names)
    assert two == pytest.approx(one, rel=1e-3)
    assert one != pytest.approx(adamw, rel=1e-3)


def test_a_gradient_gone_wrong_on_one_card_is_skipped_by_all(jobs):
    one, four = (RunDir(jobs.folder / name) for name in ("poisoned", "poisoned-card"))
    assert rows(one, "skipped") == rows(four, "skipped") == {6: [6, 6]}
    assert list(rows(four, "loss").values()) == pytest.approx(list(rows(one, "loss").values()), rel=1e-5)


def test_a_head_start_is_the_same_for_two(jobs):
    one, two, plain = (rows(RunDir(jobs.folder / name), "loss") for name in ("ahead", "ahead-by-two", "one"))
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
    assert one[1] < plain[1] - 0.1


def test_adapters_are_tuned_alike_by_two(jobs):
    one, two = RunDir(jobs.folder / "tuned"), RunDir(jobs.folder / "tuned-by-two")
    assert list(rows(two, "loss", "sft").values()) == pytest.approx(list(rows(one, "loss", "sft").values()), rel=1e-5)
    expected, found = (load_file(run.path("sft", "model", "model.safetensors")) for run in (one, two))
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[key], tensor, atol=1e-4) for key, tensor in expected.items())


def test_a_job_that_resumes_on_as_many_processes_is_bit_identical(jobs):
    straight, resumed = RunDir(jobs.folder / "fsdp"), RunDir(jobs.folder / "resumed")
    assert rows(straight, "loss") == rows(resumed, "loss")
    expected, found = (load_file(run.path("pretrain", "model", "model.safetensors")) for run in (straight, resumed))
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_sigterm_in_one_process_saves_once_and_ends_all(jobs):
    run = RunDir(jobs.folder / "stopped")
    assert [path.name for path in run.path("pretrain", "checkpoints").iterdir()] == ["step-00000006"]
    for number in range(2):
        assert "stopped at step 6, saved" in run.path(f"rank-{number}.txt").read_text("utf-8")
    assert not run.path("pretrain", "model").exists()


def test_only_the_first_process_speaks(jobs):
    assert (
        jobs.said.count(f"{STEPS} steps of 512 tokens in float32 on 2 x cpu") == 4
    )  # fsdp, stopped, muon- and ahead-by-two
    assert jobs.said.count("steps of 512 tokens in float32 on 4 x cpu") == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uneven", "a batch of 9 sequences cannot be shared by 2 processes"),
        ("wide", "groups of 3 cannot be made of 2 process(es)"),
    ],
)
def test_a_job_that_does_not_fit_is_refused_in_one_line(jobs, name, message):
    for number in range(2):
        text = jobs.folder.joinpath(name, f"rank-{number}.txt").read_text("utf-8")
        assert message in text
        assert len(text.splitlines()) == 1


def test_the_first_of_256_processes_holds_what_plan_says():
    command = [sys.executable, "-m", "tests.train.fake_ranks", "256", "1.3b", "parallel.shard=8"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["planned"] == pytest.approx(found["measured"], rel=0.02)


def test_two_machines_meet_and_the_first_keeps_the_books(jobs):
    run = jobs.add("apart", 2)
    path, root = run.path("test.toml"), run.root.parent / "runs"
    root.mkdir()
    shutil.move(run.root, root / "tiny")
    command = [sys.executable, "-m", "chatbaker", "pretrain", str(root / "tiny" / path.name), "--runs", str(root)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"GLIBC_TUNABLES": "", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    machines = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, encoding="utf-8", env=os.environ | shared | {"SLURM_NODEID": n}
        )
        for n in "01"
    ]
    said = [machine.communicate()[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert said[0].count("1 processes on each of 2 machines") == 1
    assert "tokens in float32 on 2 x cpu" in "".join(said)
    run = RunDir(root / "tiny")
    assert run.stamp("pretrain") is not None
    assert rows(run, "loss") == rows(RunDir(jobs.folder / "fsdp"), "loss")


def test_the_slurm_script_runs_the_same_command_on_every_machine(tmp_path):
    script = tmp_path / "큰 일.sh"
    arguments = ["mini", "parallel.nodes=4", "parallel.processes=8", "pretrain.prompts=['한국']"]
    _stage("pretrain", arguments[0], arguments[1:], "my runs", str(script))
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = script.read_text("utf-8").splitlines()
    assert {"#SBATCH --nodes=4", "#SBATCH --gpus-per-node=8"} <= set(lines)
    (line,) = [line for line in lines if line.startswith("srun")]
    assert shlex.split(line)[-7:] == ["pretrain", *arguments, "--runs", "my runs"]
    with pytest.raises(ChatBakerError, match="say how many GPUs a machine has"):
        _stage("pretrain", "mini", [], "runs", str(tmp_path / "other.sh"))
    with pytest.raises(ChatBakerError, match="already there"):
        _stage("pretrain", arguments[0], arguments[1:], "runs", str(script))


@pytest.mark.parametrize(("card", "share"), [("NVIDIA H100 80GB HBM3", 989e12), ("AMD Instinct MI300X", 1307e12)])
def test_a_known_card_is_measured_against_its_data_sheet(monkeypatch, card, share):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: card)
    peak, source = parallel.peak_flops(torch.device("cuda"), torch.bfloat16)
    assert (peak, source.endswith("data sheet")) == (share, True)


def test_a_stopped_job_has_minutes_to_save_in(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    seen = []
    monkeypatch.setattr(api, "elastic_launch", lambda config, _: seen.append(config) or (lambda *_: None))
    dist.launch(["-m", "none"], 1, 0, tmp_path / "note.json")
    assert seen[0].shutdown_timeout == 170


def test_machines_that_do_not_meet_are_one_line(monkeypatch, tmp_path):
    def alone(*_):
        raise RendezvousTimeoutError

    monkeypatch.setattr(api, "elastic_launch", lambda *_: alone)
    with pytest.raises(ChatBakerError, match="did not meet at localhost:0.*RendezvousTimeoutError.*same command"):
        dist.launch(["-m", "none"], 1, 0, tmp_path / "note.json")


def test_more_processes_than_gpus_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ChatBakerError, match=r"8 processes for 2 GPU\(s\).*at most 2"):
        launched("pretrain", load("tiny", ["parallel.processes=8"]), RunDir(tmp_path))


LAUNCH = """
from chatbaker.train import launch
plain = launch.launch
launch.launch = lambda command, *rest: plain(["-m", "tests.train.victim", *command[2:]], *rest)
from chatbaker.cli import main
main()
"""


def test_a_lost_process_restarts_all_and_the_end_is_bit_identical(jobs):
    run = jobs.add("lost", 2)
    shutil.move(run.root, run.root.parent / "tiny")
    run = RunDir(run.root.parent / "tiny")
    arguments = ["pretrain", run.path("test.toml"), "--runs", run.root.parent, "parallel.processes=2"]
    command = [sys.executable, "-c", LAUNCH, *map(str, arguments)]
    environment = os.environ | {"GLIBC_TUNABLES": ""}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    assert "a process was lost; all start anew (1 of 3)" in done.stderr
    assert "going on from step 10" in done.stderr
    assert run.stamp("pretrain") is not None
    straight = RunDir(jobs.folder / "fsdp")
    assert rows(straight, "loss") == rows(run, "loss")
    expected, found = (load_file(one.path("pretrain", "model", "model.safetensors")) for one in (straight, run))
    assert all(torch.equal(expected[key], found[key]) for key in expected)

    refused = subprocess.run([*command, "pretrain.lr=0.5"], capture_output=True, text=True, encoding="utf-8")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert refused.stderr.count("lr changed since this checkpoint") == 1
    assert refused.stderr.splitlines()[-1].startswith("chatbaker: ")


def test_no_process_outlives_the_command_that_started_it(jobs):
    root = RunDir(jobs.add("orphans", 2).root.parent / "later")
    shutil.move(jobs.folder / "orphans", root.path("tiny"))
    arguments = ["pretrain", root.path("tiny", "test.toml"), "--runs", root.root, "parallel.processes=2"]
    more = ["pretrain.tokens=5_000_000", "pretrain.eval_every=100000"]
    command = [sys.executable, "-m", "chatbaker", *map(str, arguments), *more]
    environment = os.environ | {"GLIBC_TUNABLES": ""}
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", env=environment) as job:
        assert any("steps of 512 tokens" in line for line in job.stderr)  # both train now
        workers = [one for one in psutil.Process(job.pid).children() if "chatbaker.train.launch" in one.cmdline()]
        job.kill()
        gone, alive = psutil.wait_procs(workers, timeout=30)
    assert len(gone) == 2
    assert not alive
