"""Stage `pack`: cleaned documents -> token shards, one per source and split."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_jsonl
from chatbaker.log import progress, say
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir, read_json
from chatbaker.tokens.bpe import load_tokenizer, special_id
from chatbaker.tokens.dialog import END_OF_TEXT
from chatbaker.tokens.shards import Index, write_shard

BATCH = 512
"""Documents tokenized at a time; bounds memory."""


def _encoded(tokenizer: Tokenizer, path: Path) -> Iterator[tuple[list[int], int]]:
    texts = (row["text"] for _, row in read_jsonl(path))
    while batch := list(islice(texts, BATCH)):
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        for text, encoding in zip(batch, encodings, strict=True):
            yield encoding.ids, len(text.encode())


def run(recipe: Recipe, run: RunDir) -> None:
    """Tokenize every document of `clean/`. Raises ChatBakerError where a stage before is missing."""
    ledger = read_json(run.need("clean", "ledger.json", stage="clean"))
    tokenizer = load_tokenizer(run.need("tokenizer", "tokenizer.json", stage="tokenizer").parent)
    end_of_text = special_id(tokenizer, END_OF_TEXT)
    folder = run.clear("pack")
    languages = {source.name: source.language for source in recipe.clean.sources}
    total = sum(entry["documents"] for entry in ledger)  # of training; validation adds a little at the end
    shards, done = [], 0
    with progress("pack: documents", total) as bar:

        def counted(documents: Iterator[tuple[list[int], int]]) -> Iterator[tuple[list[int], int]]:
            nonlocal done
            for document in documents:
                yield document
                done += 1
                bar.update(min(done, total))

        for split, subfolder in (("train", "documents"), ("validation", "validation")):
            for name, language in languages.items():
                path = run.path("clean", subfolder, f"{name}.jsonl.zst")
                if path.exists():
                    encoded = counted(_encoded(tokenizer, path))
                    shards.append(write_shard(folder, name, language, split, encoded, end_of_text))
    index = Index(folder, tokenizer.get_vocab_size(), end_of_text, tuple(shards))
    trained = sum(shard.tokens for shard in shards if shard.split == "train")
    if trained <= recipe.model.seq_len:
        raise ChatBakerError(
            f"only {trained} training tokens, fewer than one context of {recipe.model.seq_len}",
            hint="Add documents to [clean] or lower model.seq_len",
        )
    index.save()
    say(f"pack: {trained:,} training tokens from {done:,} documents, fingerprint {index.fingerprint}")
