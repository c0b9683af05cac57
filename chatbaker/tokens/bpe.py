"""The stage `tokenizer`: a byte-level BPE vocabulary from the cleaned text, and how well it fits each language.

The parts are the ones that llama.cpp knows by the name `qwen2`, so that training, transformers and GGUF split text
alike: NFC, a regular expression that keeps single digits and runs of letters apart, then bytes. Every byte has a
token, so no text is ever unknown. The special tokens are the first ids.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from chatbaker import recipe as recipes
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_shards
from chatbaker.log import Progress, duration, progress, say
from chatbaker.rundir import RunDir, new_folder, read_json, write_json
from chatbaker.tokens.dialog import CHATML, SPECIAL_TOKENS

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SAMPLE_BYTES = 2_000_000_000  # the trainer remembers every different word: about 3 GB of memory for 400 MB, 9 GB here
PIECE = 10_000  # characters of a document given to the trainer at a time
FERTILITY_DOCS = 1_000  # held-out documents measured per source


def run(recipe: recipes.Recipe, run: RunDir) -> None:
    """Train on the cleaned text. Raises ChatBakerError where `balance` or the vocabulary does not fit it."""
    section = recipe.tokenizer
    clean = run.need("clean", stage="clean")
    ledger = read_json(run.need("clean", "ledger.json", stage="clean"))
    shares = sample_shares(ledger, section)
    began = time.monotonic()
    count, size = (round(sum(row[unit] * shares[row["language"]] for row in ledger)) for unit in ("documents", "bytes"))
    with nullcontext() if sys.stderr.isatty() else progress("tokenizer: bytes", size) as bar:
        tokenizer = train(sample(clean / "documents", ledger, shares, bar), section.vocab_size, count)
    fertility = measure(tokenizer, clean / "validation", ledger)
    took = duration(time.monotonic() - began)
    say(f"tokenizer: {section.vocab_size:,} entries from {count:,} documents ({size / 1e6:,.1f} MB) in {took}")

    with new_folder(run.path("tokenizer")) as folder:
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        write_json(folder / "tokenizer_config.json", config())
        write_json(folder / "fertility.json", fertility)
    for language, row in fertility["languages"].items():
        say(f"{language}: {row['bytes_per_token']} bytes/token, {row['tokens_per_word']} tokens/word")


def sample_shares(ledger: list[dict[str, Any]], section: recipes.Tokenizer) -> dict[str, float]:
    """Per language, the share of its documents to train on: as much as `balance`, `sample_docs` and memory allow."""
    documents, size = Counter[str](), Counter[str]()
    for entry in ledger:
        documents[entry["language"]] += entry["documents"]
        size[entry["language"]] += entry["bytes"]
    languages = sorted(+size)
    balance = section.balance or {language: size[language] for language in languages}
    if sorted(balance) != languages or min(balance.values()) <= 0:
        what = f"it must give each language of the cleaned text ({', '.join(languages)}) a share above 0"
        raise ChatBakerError(what, "tokenizer.balance")
    unit = min(size[language] / weight for language, weight in balance.items())
    shares = {language: unit * weight / size[language] for language, weight in balance.items()}
    total = sum(documents[language] * share for language, share in shares.items())
    taken = sum(size[language] * share for language, share in shares.items())
    fit = min(1.0, section.sample_docs / total, SAMPLE_BYTES / taken)
    return {language: shares.get(language, 0.0) * fit for language in size}


def sample(
    documents: Path, ledger: list[dict[str, Any]], shares: dict[str, float], bar: Progress | None
) -> Iterator[str]:
    """Pieces of the sampled documents, spread evenly over each source. bar: None where the trainer draws its own."""
    seen = dict.fromkeys(shares, 0)
    done = 0
    for entry in ledger:
        language = entry["language"]
        for record in read_shards(documents / entry["source"]):
            seen[language] += 1
            if int(seen[language] * shares[language]) == int((seen[language] - 1) * shares[language]):
                continue
            text = record["text"]
            done += len(text.encode())
            if bar is not None:
                bar.update(done, entry["source"])
            for start in range(0, len(text), PIECE):
                yield text[start : start + PIECE]
    if bar is not None:
        say("tokenizer: words counted; now merging, which takes about twice as long")


def train(texts: Iterator[str], vocab_size: int, length: int | None = None) -> Tokenizer:
    """A tokenizer of exactly `vocab_size` entries, or ChatBakerError. length: for the trainer's own progress bar."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=sys.stderr.isatty(),
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer, length)
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        what = f"the text gives a vocabulary of {size:,} entries at most, not {vocab_size:,}"
        hint = f"Add text, or type tokenizer.vocab_size={size} after the recipe"
        raise ChatBakerError(what, "tokenizer.vocab_size", hint)
    tokenizer.encode_special_tokens = True
    return tokenizer


def config() -> dict[str, Any]:
    """tokenizer_config.json, with the chat format for other programs. No token is added to a text by itself."""
    return read_json(Path(__file__).with_name("tokenizer_config.json")) | {"chat_template": CHATML.jinja}


def measure(tokenizer: Tokenizer, validation: Path, ledger: list[dict[str, Any]]) -> dict[str, Any]:
    """Fertility per source and per language. A word is what stands between white space."""
    counts: dict[str, dict[str, Counter[str]]] = {"language": defaultdict(Counter), "source": defaultdict(Counter)}
    for entry in ledger:
        for record in islice(read_shards(validation / entry["source"]), FERTILITY_DOCS):
            text = record["text"]
            tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
            sizes = {"bytes": len(text.encode()), "characters": len(text), "words": len(text.split()), "tokens": tokens}
            for key, groups in counts.items():
                groups[entry[key]].update(sizes)

    def ratios(n: Counter[str]) -> dict[str, float]:
        per_token = {f"{unit}_per_token": round(n[unit] / n["tokens"], 3) for unit in ("bytes", "characters")}
        return per_token | {"tokens_per_word": round(n["tokens"] / max(n["words"], 1), 3), "tokens": n["tokens"]}

    return {f"{key}s": {name: ratios(n) for name, n in groups.items() if n["tokens"]} for key, groups in counts.items()}


def load_tokenizer(folder: Path) -> Tokenizer:
    """A folder's tokenizer, set so that text never becomes a special token. Raises ChatBakerError for none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ChatBakerError("no such file", str(path), "Run first: chatbaker tokenizer RECIPE")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ChatBakerError(f"not a tokenizer ({error})", str(path)) from None
    tokenizer.encode_special_tokens = True
    return tokenizer


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of one of our special tokens; raises ChatBakerError for a tokenizer that does not have it."""
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ChatBakerError(f"the tokenizer has no {token!r}", hint="Run 'chatbaker tokenizer' again")
    return found


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """How many bytes of text each token id stands for, int64 [V]; 0 for special tokens."""
    sizes = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, i in tokenizer.get_vocab().items():
        sizes[i] = 0 if token in SPECIAL_TOKENS else len(token)  # in byte-level BPE a character stands for a byte
    return sizes
