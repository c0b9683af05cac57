"""The stage `export`: the finished model as others use it, checked before it appears.

hf/            weights in bf16, tokenizer, model card: for transformers, vLLM and the hub
gguf/          one file per entry of export.gguf, made from hf/, for llama.cpp
parity.json    what the gate measured per GGUF file
"""

from __future__ import annotations

from chatbaker.export.card import write_card
from chatbaker.export.gguf import write_gguf
from chatbaker.export.hf import push as push_folder
from chatbaker.export.hf import write_hf
from chatbaker.export.parity import compare
from chatbaker.log import say
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir, new_folder, write_json


def run(recipe: Recipe, run: RunDir, push: str | None = None) -> None:
    """Export dpo/model, else sft/model, else pretrain/model; with `push` (ORG/NAME) upload it too.

    Raises ChatBakerError where a model is missing or broken, or llama.cpp reads it otherwise than training did.
    """
    model = run.path(run.tuned, "model")
    tuned = model.is_dir()
    if not tuned:
        model = run.need("pretrain", "model", stage="pretrain")
    with new_folder(run.path("export")) as part:
        hf = write_hf(model, part / "hf")
        (part / "gguf").mkdir()
        records = []
        for dtype in recipe.export.gguf:
            title, licence = recipe.export.title or recipe.name, recipe.export.licence
            path = write_gguf(hf, part / "gguf" / f"{recipe.name}-{dtype}.gguf", dtype, title, licence)
            record = compare(hf, path, dtype)
            say(f"{path.name}: {record['texts']} texts with equal tokens, same top token at {record['top1']:.1%}")
            records.append(record)
        write_json(part / "parity.json", records)
        write_card(recipe, run, hf, push or f"runs/{recipe.name}/export/hf", tuned, records)
    say(f"exported to {run.path('export')}")
    if push:
        address = push_folder(run.path("export", "hf"), push)
        if records:
            push_folder(run.path("export", "gguf"), push, "gguf")
        say(f"uploaded to {address}")
