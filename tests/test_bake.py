"""The whole chain, as a user types it."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from chatbaker import bake
from chatbaker.errors import ChatBakerError
from chatbaker.recipe import dump, load, parse
from chatbaker.rundir import RunDir
from chatbaker.stages import STAGES, fresh, key, planned
from chatbaker.tokens import pack


def chatbaker(*args, cwd=None, stdin=""):
    command = [sys.executable, "-m", "chatbaker", *map(str, args)]
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def baked(small_recipe, tmp_path_factory):
    """A small recipe baked by the command line; returns (folder, recipe file, what was said)."""
    folder = tmp_path_factory.mktemp("bake")
    path = folder / "small.toml"
    path.write_text(dump(small_recipe), encoding="utf-8")
    result = chatbaker("bake", path, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, path, result


def test_every_stage_runs_and_is_stamped(baked, small_recipe):
    folder, _, result = baked
    run = RunDir.of("tiny", folder / "runs")
    stages = planned(small_recipe)
    assert [stage.name for stage in stages] == [name for name in STAGES if name not in ("dpo", "judge")]
    for number, name in enumerate((stage.name for stage in stages), 1):
        assert f"[{number}/{len(stages)}] {name}" in result.stderr
        stamp = run.stamp(name)
        assert stamp["stage"] == name
        assert stamp["ended"] >= stamp["started"]
        assert fresh(STAGES[name], small_recipe, run)
    assert load(run.path("recipe.toml")) == small_recipe
    assert (run.path("export", "hf", "README.md")).exists()
    assert "chatbaker chat --model runs/tiny" in result.stdout


def test_a_second_bake_does_nothing_and_says_so(baked, small_recipe):
    folder, path, _ = baked
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*") if p.is_file()}
    result = chatbaker("bake", path, cwd=folder)
    assert result.stderr.count("fresh") == len(planned(small_recipe))
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*") if p.is_file()} == before


def test_a_change_makes_its_stage_and_the_later_ones_stale(baked, small_recipe):
    folder, _, _ = baked
    run = RunDir.of("tiny", folder / "runs")
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["sft"]["lr"] = 1e-4
    changed = parse(data, "x")
    stale = [name for name in STAGES if not fresh(STAGES[name], changed, run)]
    assert stale == [
        "sft",
        "dpo",
        "judge",
    ]  # export and eval: once sft has run again
    data["clean"]["validation"] = 0.5
    assert not fresh(STAGES["clean"], parse(data, "x"), run)


def test_the_model_talks_from_its_run_folder(baked):
    folder, _, _ = baked
    result = chatbaker("chat", "--model", "runs/tiny", "--temperature", 0, cwd=folder, stdin="안녕\nhello\n")
    assert result.returncode == 0, result.stderr
    assert "\ufffd" not in result.stdout


def test_new_evaluation_sets_make_clean_stale(small_recipe, tmp_path):
    data = small_recipe.model_dump(mode="json", exclude_none=True) | {"data_root": str(tmp_path)}
    data["clean"] |= {"decontaminate": ["sets"]}
    recipe, run = parse(data, "x"), RunDir(tmp_path)
    run.write_stamp("clean", 0, key=key(STAGES["clean"], recipe, run))
    assert fresh(STAGES["clean"], recipe, run)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "more.jsonl").write_text("{}", encoding="utf-8")
    assert not fresh(STAGES["clean"], recipe, run)


def test_pack_takes_what_was_cleaned_or_nothing(baked, small_recipe):
    folder, _, _ = baked
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["clean"]["sources"][0]["name"] = "renamed"
    with pytest.raises(ChatBakerError, match="other sources than were cleaned.*Run clean again"):
        pack.run(parse(data, "x"), RunDir.of("tiny", folder / "runs"))


def test_a_recipe_that_changes_during_the_bake_ends_it(small_recipe, tmp_path, monkeypatch):
    path = tmp_path / "mine.toml"
    path.write_text(dump(small_recipe), encoding="utf-8")

    def edits(process):
        path.write_text(dump(small_recipe).replace("seed = 1234", "seed = 1"), encoding="utf-8")
        return process.wait() and 0

    monkeypatch.setattr(bake, "_wait", edits)
    monkeypatch.setattr(bake.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda: 0))
    with pytest.raises(ChatBakerError, match=r"the recipe was changed during the bake.*bake again"):
        bake.bake(str(path), [], str(tmp_path))


def test_a_stage_that_fails_ends_the_bake_with_its_reason(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'name = "x"\n[[clean.sources]]\nname = "a"\npath = "none/*.txt"\nlanguage = "ko"\n', encoding="utf-8"
    )
    result = chatbaker("bake", path, cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "none/*.txt" in result.stderr
    assert "the bake stopped in 'clean'" in result.stderr


class TestCommandLine:
    def test_help_and_version_import_nothing_heavy(self):
        code = "import sys; sys.argv = ['chatbaker', '--help']\nfrom chatbaker.cli import main\ntry: main()\n"
        code += "except SystemExit: pass\n"
        code += "print([m for m in ('torch', 'numpy', 'openai', 'transformers') if m in sys.modules])"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
        assert result.stdout.strip().endswith("[]")
        for verb in ("chat", "new", "bake", *STAGES):
            assert re.search(rf"^  {verb} ", result.stdout, re.MULTILINE)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("bake", "nope"), "no recipe 'nope'"),
            (("pretrain", "tiny", "pretrain.lerning_rate=1"), "unknown key 'pretrain.lerning_rate'"),
            (("pack", "tiny", "--runs", "nowhere"), "Run first: chatbaker clean"),
            (("chat", "--model", "missing.gguf", "hi"), "missing.gguf"),
        ],
    )
    def test_mistakes_are_one_line_and_exit_1(self, args, message, tmp_path):
        result = chatbaker(*args, cwd=tmp_path)
        assert result.returncode == 1
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1

    def test_new_copies_a_recipe_and_never_overwrites(self, tmp_path):
        assert chatbaker("new", "tiny", "mine.toml", cwd=tmp_path).returncode == 0
        assert load(tmp_path / "mine.toml") == load("tiny")
        assert "already there" in chatbaker("new", "mini", "mine.toml", cwd=tmp_path).stderr

    def test_show_mask(self, baked):
        folder, path, _ = baked
        result = chatbaker("sft", path, "--show-mask", 2, cwd=folder)
        assert result.returncode == 0
        assert "tokens trained (in [[ ]])" in result.stdout

    def test_metrics_are_plain_json(self, baked):
        folder, _, _ = baked
        for line in (folder / "runs/tiny/pretrain/metrics.jsonl").read_text("utf-8").splitlines():
            assert json.loads(line)["step"] > 0
