"""A whole export: files, gate and card, from full records and from none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatbaker.errors import ChatBakerError
from chatbaker.export import parity, stage
from chatbaker.export.gguf import write_gguf
from chatbaker.recipe import Recipe, dump, parse
from chatbaker.rundir import RunDir, write_json

Make = Callable[..., Path]

RECIPE = {
    "name": "bread-mini",
    "clean": {
        "sources": [
            {"name": "wiki", "path": "wiki/*.txt", "origin": "Wikipedia", "language": "ko", "licence": "CC BY-SA 4.0"},
            {"name": "tales", "path": "made:en", "language": "en", "licence": "CC0", "limit": 10},
        ]
    },
    "pretrain": {"optimizer": "muon", "lr": 3e-4},
    "sft": {"sources": [{"path": "made:ko", "licence": "Apache-2.0", "limit": 10}]},
    "export": {"gguf": ["q8_0", "q4_0"], "title": "빵 Mini"},
}


def finished(root: Path, model: Path, stage: str = "sft") -> RunDir:
    run = RunDir(root)
    run.path(stage).mkdir(parents=True)
    model.rename(run.path(stage, "model"))
    return run


def write_records(run: RunDir, recipe: Recipe) -> None:
    run.path("recipe.toml").write_text(dump(recipe), encoding="utf-8")
    ledger = [
        {"source": "wiki", "language": "ko", "licence": "CC BY-SA 4.0", "documents": 12_345, "characters": 678_901},
        {"source": "tales", "language": "en", "licence": "CC0", "documents": 10, "characters": 4_000},
    ]
    write_json(run.path("clean", "ledger.json"), ledger)
    row = {"bytes_per_token": 5.31, "characters_per_token": 2.04, "tokens_per_word": 1.92, "tokens": 999}
    write_json(run.path("tokenizer", "fertility.json"), {"languages": {"ko": row}, "sources": {"wiki": row}})
    scores = {"ko": {"loss": 2.5, "bits_per_byte": 0.913}, "en": {"loss": 2.25, "bits_per_byte": 1.0625}}
    early = {"ko": {"loss": 9.0, "bits_per_byte": 3.5}, "en": {"loss": 9.0, "bits_per_byte": 3.75}}
    samples = [{"prompt": "옛날 옛적에", "text": "빵이\n```\n| 있었다"}]
    for name in ("pretrain", "sft"):
        lines = [
            {"step": 10, "tokens": 163_840, "loss": 5.125, "lr": 3e-4, "tokens_per_second": 1000.0, "mfu": 0.3},
            {"step": 10, "eval": early, "samples": []},
            {"step": 20, "tokens": 327_680, "loss": 3.875, "lr": 1e-4, "tokens_per_second": 2345.6, "mfu": 0.3},
            {"step": 20, "eval": scores, "samples": samples},
        ]
        run.path(name).mkdir(exist_ok=True)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        run.path(name, "metrics.jsonl").write_text(text, encoding="utf-8")


def test_a_full_export(make: Make, tmp_path: Path) -> None:
    recipe = parse(RECIPE, "test")
    run = finished(tmp_path / "run", make())
    write_records(run, recipe)
    stage.run(recipe, run)

    names = sorted(str(path.relative_to(run.root)) for path in run.path("export").rglob("*.[grj]*"))
    assert "export/gguf/bread-mini-q4_0.gguf" in names
    assert "export/gguf/bread-mini-q8_0.gguf" in names
    assert {"export/hf/README.md"} <= {str(p.relative_to(run.root)) for p in run.path("export", "hf").iterdir()}
    assert not run.path("export.part").exists()
    records = json.loads(run.path("export", "parity.json").read_text(encoding="utf-8"))
    assert [record["dtype"] for record in records] == ["q8_0", "q4_0"]
    assert all(record["texts"] == len(parity.LINES) + len(parity.CHATS) for record in records)
    assert records[0]["top1"] >= 0.99
    assert records[0]["tokens"] > 300

    card = run.path("export", "hf", "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "apache-2.0"
    assert header["language"] == ["en", "ko"]
    assert header["pipeline_tag"] == "text-generation"
    for fact in (
        "# 빵 Mini",
        "| wiki | Wikipedia | ko | CC BY-SA 4.0 | 12,345 | 678,901 |",
        "| made:ko |  | Apache-2.0 |",
        "| ko | 5.31 | 2.04 | 1.92 |",
        "| steps | 20 |",
        "| tokens seen | 327,680 |",
        "| last training loss | 3.875 |",
        "0.02 (Muon), 0.0003 (rest)",
        "| Korean | 0.913 | 2.5 |",
        "| English | 1.0625 | 2.25 |",
        "````text\n옛날 옛적에 → 빵이\n```\n| 있었다\n````",
        "chatbaker chat --model runs/bread-mini/export/hf",
        "A chat model of",
        "for Korean and English",
        "llama-cli -m bread-mini-q8_0.gguf",
        "AutoModelForCausalLM",
        "It makes things up",
        "Nothing filters",
    ):
        assert fact in card, fact
    assert "absent" not in card
    assert "3.5" not in card.replace("5.31", "")


def test_without_records_the_card_says_so(make: Make, tmp_path: Path) -> None:
    """A model that was only pretrained, its records lost: exported from pretrain/model, nothing made up."""
    run = finished(tmp_path / "run", make(), "pretrain")
    stage.run(parse({"name": "bare", "export": {"gguf": []}}, "test"), run)
    card = run.path("export", "hf", "README.md").read_text(encoding="utf-8")
    for record in ("clean/ledger.json", "tokenizer/fertility.json", "pretrain/metrics.jsonl", "sft/metrics.jsonl"):
        assert f"{record} is absent" in card
    assert "not tuned for conversations" in card
    assert "names no conversations" in card
    assert "llama-cli" not in card
    assert "bits per byte" not in card
    assert json.loads(run.path("export", "parity.json").read_text(encoding="utf-8")) == []


def test_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ChatBakerError, match="Run first: chatbaker pretrain"):
        stage.run(parse({"name": "none"}, "test"), RunDir(tmp_path))


def test_the_card_names_the_repository_it_is_pushed_to(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[tuple[str, ...]] = []
    monkeypatch.setattr(stage, "push_folder", lambda *a: pushed.append((a[0].name, *a[1:])) or "https://hub/org/mini")
    run = finished(tmp_path / "run", make())
    stage.run(parse({"name": "mini", "export": {"gguf": ["q8_0"]}}, "test"), run, push="org/mini")
    assert pushed == [("hf", "org/mini"), ("gguf", "org/mini", "gguf")]
    assert 'from_pretrained("org/mini")' in run.path("export", "hf", "README.md").read_text(encoding="utf-8")


def other_merges(folder: Path) -> None:
    """As if the tokenizer had been replaced between training and export."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][1:]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def other_template(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = config["chat_template"].replace("+ '<|im_end|>\\n'", "+ '<|im_end|>'")
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("spoil", [other_merges, other_template])
def test_the_gate_refuses_other_tokens_and_keeps_the_last_export(
    spoil: Callable[[Path], None], make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse({"name": "mini", "export": {"gguf": ["q8_0"]}}, "test")
    run = finished(tmp_path / "run", make())
    stage.run(recipe, run)
    before = run.path("export", "gguf", "mini-q8_0.gguf").stat().st_mtime_ns

    def wrong(folder: Path, *rest: Any) -> Path:
        other = make()
        spoil(other)
        return write_gguf(other, *rest)

    monkeypatch.setattr(stage, "write_gguf", wrong)
    with pytest.raises(ChatBakerError, match="Export is refused"):
        stage.run(recipe, run)
    assert run.path("export", "gguf", "mini-q8_0.gguf").stat().st_mtime_ns == before


def test_the_gate_refuses_other_weights(make: Make, tmp_path: Path) -> None:
    path = write_gguf(make(hidden_size=32), tmp_path / "m.gguf", "bf16")
    with pytest.raises(ChatBakerError, match="most likely tokens"):
        parity.compare(make(learn=["빵을 굽는 사람은 새벽에 일어나요"]), path, "bf16")
