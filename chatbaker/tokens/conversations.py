"""Conversations -> rows of tokens to tune on: several whole ones in a row, with loss on what the assistant says."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, groupby, islice, zip_longest
from operator import itemgetter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from chatbaker.errors import ChatBakerError
from chatbaker.log import say
from chatbaker.recipe import Recipe, SftSource
from chatbaker.rundir import RunDir
from chatbaker.tokens.bpe import load_tokenizer, special_id
from chatbaker.tokens.dialog import CHATML, END_OF_TEXT, Message, encode
from chatbaker.tokens.formats import read
from chatbaker.tokens.loader import IGNORE, Batch
from chatbaker.tokens.mixture import mix_hash, permute

# Ids, loss mask, and which document of a pair each token is in: 1 or 2.
Encoded = tuple[list[int], list[bool]] | tuple[list[int], list[bool], list[int]]
Loaded = tuple[Batch, dict[str, Batch], str]  # training rows, validation rows per language, the fingerprint of both
Found = Iterator[tuple[str, Encoded | str]]  # each answer with its tokens, or with why it is left out
TOO_LONG = "too long"


def tokenize(tokenizer: Tokenizer, messages: Sequence[Message], longest: int) -> tuple[Encoded | None, int]:
    """Ids and loss mask of the whole exchanges that fit into `longest` tokens, and how many messages those are.

    None where there is nothing to learn in them.
    """
    ids: list[int] = []
    mask: list[bool] = []
    fit = 0
    for end, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            more, its = encode(tokenizer, CHATML.segments(messages[fit:end]))
            if len(ids) + len(more) > longest:
                break
            ids += more
            mask += its
            fit = end
    return (ids, mask) if any(mask) else None, fit


def pack(conversations: Sequence[Encoded], seq_len: int, padding: int) -> Batch:
    """Rows of seq_len tokens [rows, seq_len] (int32), each conversation whole in the fullest row with room."""
    by_room: list[list[list[Encoded]]] = [[] for _ in range(seq_len + 1)]
    rows: list[list[Encoded]] = []
    for conversation in sorted(conversations, key=lambda conversation: -len(conversation[0])):
        length = len(conversation[0])
        room = next((room for room in range(length, seq_len + 1) if by_room[room]), seq_len)
        if not by_room[room]:
            rows.append([])
            by_room[room].append(rows[-1])
        row = by_room[room].pop()
        row.append(conversation)
        by_room[room - length].append(row)
    ids, targets, docs = (np.full((len(rows), seq_len), fill, dtype=np.int32) for fill in (padding, IGNORE, 0))
    for r, members in enumerate(rows):
        start = 0
        for conversation in members:
            tokens, mask, *part = map(np.array, conversation)
            end = start + len(tokens)
            ids[r, start:end], docs[r, start:end] = tokens, docs[r].max() + (part[0] if part else 1)
            targets[r, start : end - 1] = np.where(mask[1:], tokens[1:], IGNORE)
            start = end
    return Batch(ids, targets, docs)


def load(recipe: Recipe, tokenizer: Tokenizer) -> Loaded:
    """The conversations of the stage `sft`."""

    def encoded(source: SftSource) -> Found:
        cut = 0
        for _, messages in read(source, Path(recipe.data_root), recipe.seed):
            tokens, fit = tokenize(tokenizer, messages, recipe.model.seq_len)
            cut += tokens is not None and fit < len(messages)
            yield messages[-1]["content"], tokens or TOO_LONG
        if cut:
            say(f"sft: {source.path}: {cut:,} conversations cut to the context of {recipe.model.seq_len} tokens")

    return gather("sft", "conversation", encoded, recipe, tokenizer)


def gather(
    stage: str, thing: str, encoded: Callable[[SftSource], Found], recipe: Recipe, tokenizer: Tokenizer
) -> Loaded:
    """What a stage's sources give. A hash of the tokens holds out, whatever the order and the other sources."""
    section = getattr(recipe, stage)
    train: list[Encoded] = []
    held: dict[str, list[Encoded]] = {}
    left_out = Counter({TOO_LONG: 0})
    need_sources(section.sources, stage, thing)
    for number, source in enumerate(section.sources):
        wanted: list[Encoded] = []
        for answer, tokens in encoded(source):
            if isinstance(tokens, str):
                left_out[tokens] += 1
                continue
            key = hashlib.blake2b(np.array(tokens[0], dtype="<u2").tobytes(), digest_size=8).digest()
            if int.from_bytes(key, "big") < section.validation * 2**64:
                hangul = any("가" <= char <= "힣" for char in answer)
                held.setdefault("ko" if hangul else "en", []).append(tokens)
            else:
                wanted.append(tokens)
        draw, once_more = mix_hash(recipe.seed, "weight", number), round(source.weight % 1 * len(wanted))
        for i, tokens in enumerate(wanted):
            train += [tokens] * (int(source.weight) + (permute(i, len(wanted), draw) < once_more))
    rest = ", ".join([f"{sum(map(len, held.values())):,} held out", *(f"{n:,} {why}" for why, n in left_out.items())])
    if not train:
        raise ChatBakerError(f"no {thing} to learn from ({rest})", f"{stage}.sources", "Add others, or shorter ones")
    padding, seq_len = special_id(tokenizer, END_OF_TEXT), recipe.model.seq_len
    rows = pack(train, seq_len, padding)
    validation = {language: pack(items, seq_len, padding) for language, items in sorted(held.items())}
    sha = hashlib.sha256()
    for batch in (rows, *validation.values()):
        sha.update(batch.ids.tobytes() + batch.targets.tobytes())
    filled = float((rows.docs > 0).mean())
    say(
        f"{stage}: {len(train):,} {thing}s in {len(rows.ids):,} rows of {seq_len} ({filled:.0%} full, "
        f"{rows.valid:,} trained tokens); {rest}"
    )
    return rows, validation, sha.hexdigest()[:16]


def need_sources(sources: Sequence[SftSource], stage: str, thing: str) -> None:
    if not sources:
        raise ChatBakerError(f"the recipe names no {thing}s", f"{stage}.sources", f"Add a [[{stage}.sources]] table")


def show(recipe: Recipe, run: RunDir, count: int) -> None:
    """Print `count` conversations with trained tokens in green, or in [[ ]] where there are no colours."""
    from rich.console import Console
    from rich.text import Text

    need_sources(recipe.sft.sources, "sft", "conversation")
    tokenizer = load_tokenizer(run.need("tokenizer", "tokenizer.json", stage="tokenizer").parent)
    console, root = Console(), Path(recipe.data_root)
    plain = console.no_color or not console.color_system  # a file, a pipe
    sources = [read(source, root, recipe.seed) for source in recipe.sft.sources]
    rows = filter(None, chain.from_iterable(zip_longest(*sources)))  # a conversation of each source in turn
    for where, messages in islice(rows, count):
        encoded, fit = tokenize(tokenizer, messages, recipe.model.seq_len)
        if encoded is None:
            console.print(Text(f"{where}: longer than the context of {recipe.model.seq_len}, left out", style="yellow"))
            continue
        text = Text()
        for trained, pairs in groupby(zip(*encoded, strict=True), key=itemgetter(1)):
            piece = tokenizer.decode([i for i, _ in pairs], skip_special_tokens=False)
            text.append(f"[[{piece}]]" if trained and plain else piece, style="green" if trained else "dim")
        cut = f"; cut after {fit} of {len(messages)} messages" if fit < len(messages) else ""
        head = f"{where}: {sum(encoded[1])} of {len(encoded[0])} tokens trained ({'in [[ ]]' if plain else 'green'})"
        console.rule()
        console.print(Text(head + cut))  # not in the rule, which would cut it
        console.print(text)
