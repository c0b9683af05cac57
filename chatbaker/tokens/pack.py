"""Stage `pack`: cleaned documents -> token shards, one per source and split."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_shards
from chatbaker.log import progress, say
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir, new_folder, read_json
from chatbaker.tokens.bpe import load_tokenizer, special_id
from chatbaker.tokens.dialog import END_OF_TEXT
from chatbaker.tokens.shards import Index, write_shard

BATCH = 512  # documents tokenized at a time; bounds memory


def run(recipe: Recipe, run: RunDir) -> None:
    """Tokenize every document of `clean/`. Raises ChatBakerError where a stage is missing or text too little."""
    ledger = read_json(run.need("clean", "ledger.json", stage="clean"))
    if [entry["source"] for entry in ledger] != [source.name for source in recipe.clean.sources]:
        raise ChatBakerError("the recipe names other sources than were cleaned", "clean.sources", "Run clean again")
    tokenizer = load_tokenizer(run.need("tokenizer", "tokenizer.json", stage="tokenizer").parent)
    end_of_text = special_id(tokenizer, END_OF_TEXT)
    total = sum(entry["documents"] for entry in ledger)  # of training; validation adds a little at the end
    done = 0
    with new_folder(run.path("pack")) as folder, progress("pack: documents", total) as bar:

        def encoded(documents: Path) -> Iterator[tuple[list[int], int]]:
            nonlocal done
            texts = (row["text"] for row in read_shards(documents))
            while batch := list(islice(texts, BATCH)):
                encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
                for text, encoding in zip(batch, encodings, strict=True):
                    yield encoding.ids, len(text.encode())
                done += len(batch)
                bar.update(min(done, total))

        shards = []
        for split, subfolder in (("train", "documents"), ("validation", "validation")):
            for source in recipe.clean.sources:
                documents = run.path("clean", subfolder, source.name)
                if documents.exists():
                    pairs = encoded(documents)
                    shards.append(write_shard(folder, source.name, source.language, split, pairs, end_of_text))
        index = Index(folder, tokenizer.get_vocab_size(), end_of_text, tuple(shards))
        training = [shard.tokens for shard in shards if shard.split == "train"]
        seq_len = recipe.model.seq_len
        if not any(tokens > seq_len for tokens in training):
            what = f"{sum(training)} training tokens, and no source fills one context of {seq_len}"
            raise ChatBakerError(what, hint="Add documents to [clean] or lower model.seq_len")
        index.save()
    say(f"pack: {sum(training):,} training tokens from {done:,} documents, fingerprint {index.fingerprint}")
