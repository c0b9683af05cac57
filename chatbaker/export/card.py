"""The model card, README.md of the published folder, made from the run's own records.

Every figure is read from a file of the run: recipe.toml, clean/ledger.json, tokenizer/fertility.json, the stages'
metrics.jsonl, and what was exported. A record that is not there is said to be absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatbaker import recipe as recipes
from chatbaker.export.tensors import Tensors
from chatbaker.jsonl import read_jsonl
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir, read_json

LANGUAGES = {"ko": "Korean", "en": "English"}
LIMITS = """\
- **It makes things up.** Names, numbers, dates and sources in an answer may be false, however sure they sound. Check
  whatever matters.
- **It knows what its chat data taught it to do, and little else.** Tasks, topics and registers that the conversations
  above lack are answered poorly or not at all.
- **The wording counts.** Another phrasing, a system message or another random seed can turn a good answer into a bad
  one.
- **Nothing filters its answers.** They may be biased, rude or unsuitable for children. Put a filter of your own in
  front of people.
- It is made for Korean and English only, and it does not know the date or any event after its training text.
"""


@dataclass(frozen=True)
class Published:
    """What the card speaks of. name: how it is loaded (ORG/NAME). tuned: it learnt conversations. gguf: records of
    `parity.compare`."""

    name: str
    tuned: bool
    folder: Path
    gguf: Sequence[dict[str, Any]]


def write_card(recipe: Recipe, run: RunDir, published: Published) -> None:
    """Write README.md into the published folder. A stage's settings are those it was run with, as its stamp says."""
    settings = recipe.model_dump(mode="json", exclude_none=True)
    for stage in ("clean", "tokenizer", "pretrain", "sft"):
        settings |= (run.stamp(stage) or {}).get("sections", {})
    recipe = recipes.parse(settings, str(run.root))
    ledger = _json(run, "clean", "ledger.json") or []
    languages = sorted({entry["language"] for entry in ledger} or {source.language for source in recipe.clean.sources})
    title = recipe.export.title or recipe.name
    facts = _Facts.of(published.folder)
    sections = [
        _header(recipe, languages),
        f"# {title}\n\n{_summary(facts, languages, published)}",
        f"## Use\n\n{_use(published)}",
        f"## Memory\n\n{_memory(facts, published)}",
        f"## Network\n\n{_network(facts)}",
        f"## Data\n\n{_data(ledger, recipe)}",
        f"## Tokenizer\n\n{_tokenizer(_json(run, 'tokenizer', 'fertility.json'))}",
        f"## Training\n\n{_training('pretrain', 'Pretraining', recipe.pretrain, run)}\n\n"
        + _training("sft", "Fine-tuning on conversations", recipe.sft, run),
        f"## Limits\n\n{LIMITS}",
        f"## Licence\n\nThe weights: {recipe.export.licence}. The training text keeps the licences of the table above.",
    ]
    (published.folder / "README.md").write_text("\n\n".join(part.strip() for part in sections) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Facts:
    config: dict[str, Any]
    parameters: int
    file_bytes: int

    @staticmethod
    def of(folder: Path) -> _Facts:
        tensors = Tensors(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return _Facts(read_json(folder / "config.json"), sum(math.prod(t.shape) for t in tensors.values()), size)

    @property
    def cache_bytes(self) -> int:
        """Keys and values of a full context at two bytes each."""
        config = self.config
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        heads = config["num_key_value_heads"]
        values: int = 2 * config["num_hidden_layers"] * heads * width * config["max_position_embeddings"]
        return 2 * values


def _json(run: RunDir, *parts: str) -> Any:
    path = run.path(*parts)
    return read_json(path) if path.is_file() else None


def _header(recipe: Recipe, languages: list[str]) -> str:
    """The YAML block that the hub reads; JSON strings are valid YAML."""
    fields: dict[str, Any] = {
        "license": recipe.export.licence,
        "language": languages,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llama", "gguf", "chat", "chatbaker"],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _summary(facts: _Facts, languages: list[str], published: Published) -> str:
    kind = "A chat model" if published.tuned else "A language model, not tuned for conversations,"
    names = " and ".join(LANGUAGES.get(code, code) for code in reversed(languages)) or "languages of which no record is"
    return (
        f"{kind} of {_count(facts.parameters)} parameters for {names}, trained from scratch with ChatBaker. This page "
        "was written from the run's own records."
    )


def _use(published: Published) -> str:
    file = published.gguf[0]["file"] if published.gguf else None
    llama = f"\nllama.cpp:\n\n```sh\nllama-cli -m {file} -cnv\n```\n" if file else ""
    return f"""\
ChatBaker, in the terminal:

```sh
chatbaker chat --model {published.name}
```

transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{published.name}")
model = AutoModelForCausalLM.from_pretrained("{published.name}")
messages = [{{"role": "user", "content": "안녕하세요?"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```
{llama}
Give Korean text in composed form (Unicode NFC); llama.cpp does not compose it by itself."""


def _memory(facts: _Facts, published: Published) -> str:
    context = facts.config["max_position_embeddings"]
    rows = [("safetensors, bf16", facts.file_bytes, "the reference")]
    for record in published.gguf:
        rows.append((record["file"], record["bytes"], f"{record['top1']:.1%} of {record['tokens']} positions"))
    table = [(name, _bytes(size), _bytes(size + facts.cache_bytes), agreement) for name, size, agreement in rows]
    note = (
        f"\n\nNeeded: weights and the keys and values of a full context ({context:,} tokens) at 2 bytes each; "
        "what a program needs for itself comes on top."
    )
    return _table(("file", "size", "memory needed", "same most likely token"), table) + note


def _network(facts: _Facts) -> str:
    config = facts.config
    rows = [
        ("parameters", f"{facts.parameters:,}"),
        ("layers", config["num_hidden_layers"]),
        ("width", config["hidden_size"]),
        ("feed-forward width", config["intermediate_size"]),
        ("attention heads (key/value heads)", f"{config['num_attention_heads']} ({config['num_key_value_heads']})"),
        ("vocabulary", f"{config['vocab_size']:,}"),
        ("context", f"{config['max_position_embeddings']:,} tokens"),
        ("output head", "shared with the embedding" if config.get("tie_word_embeddings") else "its own"),
    ]
    return "A LLaMA decoder: RMSNorm, rotary positions, SwiGLU, no biases.\n\n" + _table(("", ""), rows)


def _data(ledger: list[dict[str, Any]], recipe: Recipe) -> str:
    if ledger:
        origins = {source.name: source.origin for source in recipe.clean.sources}
        rows = [
            (
                entry["source"],
                origins.get(entry["source"], ""),
                entry["language"],
                entry["licence"],
                f"{entry['documents']:,}",
                f"{entry['characters']:,}",
            )
            for entry in ledger
        ]
        text = _table(("source", "from", "language", "licence", "documents", "characters"), rows)
    else:
        text = "The run has no record of its training text (clean/ledger.json is absent)."
    chats = [(source.path, source.origin, source.licence) for source in recipe.sft.sources]
    if chats:
        return f"{text}\n\nConversations, as the recipe names them:\n\n" + _table(("source", "from", "licence"), chats)
    return f"{text}\n\nThe recipe names no conversations."


def _tokenizer(fertility: dict[str, Any] | None) -> str:
    text = "Byte-level BPE over NFC text: every text can be encoded."
    if fertility is None:
        return f"{text} The run has no record of its fertility (tokenizer/fertility.json is absent)."
    rows = [
        (name, row["bytes_per_token"], row["characters_per_token"], row["tokens_per_word"])
        for part in ("languages", "sources")
        for name, row in fertility[part].items()
    ]
    head = ("language or source", "bytes per token", "characters per token", "tokens per word")
    return f"{text} On held-out text:\n\n{_table(head, rows)}"


def _training(stage: str, title: str, schedule: recipes.Schedule, run: RunDir) -> str:
    path = run.path(stage, "metrics.jsonl")
    records = [record for _, record in read_jsonl(path)] if path.is_file() else []
    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "eval" in record]
    if not steps:
        return f"### {title}\n\nThe run has no record of this stage ({stage}/metrics.jsonl is absent or empty)."
    last = steps[-1]
    peak = (
        f"{schedule.lr:g}" if schedule.optimizer == "adamw" else f"{schedule.muon_lr:g} (Muon), {schedule.lr:g} (rest)"
    )
    rows = [
        ("steps", f"{last['step']:,}"),
        ("tokens seen", f"{last['tokens']:,}"),
        ("last training loss", last["loss"]),
        ("optimizer", schedule.optimizer),
        ("peak learning rate", peak),
        ("schedule", schedule.decay),
        ("tokens per second, last", f"{last['tokens_per_second']:,.0f}"),
    ]
    parts = [f"### {title}", _table(("", ""), rows)]
    if not evaluations:
        return "\n\n".join([*parts, "The run has no record of an evaluation of this stage."])
    final = evaluations[-1]
    scores = [(LANGUAGES.get(name, name), row["bits_per_byte"], row["loss"]) for name, row in final["eval"].items()]
    parts.append(f"Held-out text at step {final['step']:,}:")
    parts.append(_table(("language", "bits per byte", "loss per token"), scores))
    if final.get("samples"):
        parts.append("What it said at that step, greedily, as it came:")
        parts += [_quote(f"{sample['prompt']} → {sample['text']}") for sample in final["samples"]]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)])


def _quote(text: str) -> str:
    """A fenced block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _count(number: int) -> str:
    """1_300_000_000 -> '1.3B'."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return str(number)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
