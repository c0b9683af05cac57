"""The model card, README.md of the published folder: card.md.jinja filled in with figures from the run's own files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from chatbaker import recipe as recipes
from chatbaker.export.tensors import entries
from chatbaker.jsonl import read_jsonl
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir, read_json


def write_card(recipe: Recipe, run: RunDir, folder: Path, name: str, tuned: bool, gguf: list[Any]) -> None:
    """Write README.md into the published folder. A stage's settings are those it was run with, as its stamp says.

    name: how it is loaded (ORG/NAME). tuned: it learnt conversations. gguf: records of `parity.compare`.
    """
    settings = recipe.model_dump(mode="json", exclude_none=True)
    for stage in ("clean", "tokenizer", "pretrain", "sft", "dpo"):
        settings |= (run.stamp(stage) or {}).get("sections", {})
    recipe = recipes.parse(settings, str(run.root))
    records = run.path("clean", "ledger.json"), run.path("tokenizer", "fertility.json")
    ledger, fertility = (read_json(path) if path.is_file() else None for path in records)
    sources = recipe.clean.sources
    config = read_json(folder / "config.json")
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    cached = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * width  # keys and values of a token
    loader, strict = FileSystemLoader(Path(__file__).parent), StrictUndefined
    environment = Environment(loader=loader, trim_blocks=True, undefined=strict, keep_trailing_newline=True)
    environment.filters |= {"json": lambda value: json.dumps(value, ensure_ascii=False), "quoted": _quoted}
    card = environment.get_template("card.md.jinja").render(
        recipe=recipe,
        name=name,
        tuned=tuned,
        gguf=gguf,
        config=config,
        parameters=sum(entry.size for entry in entries(folder).values()),
        file_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        cache_bytes=2 * cached * config["max_position_embeddings"],  # at two bytes each
        ledger=ledger,
        languages=sorted({entry["language"] for entry in ledger or ()} or {source.language for source in sources}),
        origins={source.name: source.origin for source in sources},
        fertility=fertility,
        curves={stage: _ends(run.path(stage, "metrics.jsonl")) for stage in ("pretrain", "sft", "dpo")},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _ends(metrics: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last training step and the last evaluation that a stage recorded; {} for what it did not."""
    rows = [row for _, row in read_jsonl(metrics)] if metrics.is_file() else []
    last: dict[str, Any] = next((row for row in reversed(rows) if "loss" in row), {})
    final: dict[str, Any] = next((row for row in reversed(rows) if "eval" in row), {})
    return last, {"samples": []} | final if final else {}


def _quoted(text: str) -> str:
    """A fenced block that nothing in the text can end."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"
