"""Conversations -> rows of tokens to tune on, packed without leaks, with loss on what the assistant says.

A row holds several whole conversations; attention never crosses from one to the next, and only assistant turns and
the token that ends them carry loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain, groupby, islice, zip_longest
from operator import itemgetter
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from chatbaker.errors import ChatBakerError
from chatbaker.log import say
from chatbaker.recipe import Recipe
from chatbaker.rundir import RunDir
from chatbaker.tokens.bpe import load_tokenizer, special_id
from chatbaker.tokens.dialog import CHATML, END_OF_TEXT, Message, encode
from chatbaker.tokens.formats import read
from chatbaker.tokens.loader import IGNORE, Batch
from chatbaker.tokens.mixture import mix_hash, permute

Encoded = tuple[list[int], list[bool]]


def tokenize(tokenizer: Tokenizer, messages: Sequence[Message], longest: int) -> Encoded | None:
    """Ids and loss mask of at most `longest` tokens, cut after a whole exchange; None where not even one fits."""
    turns = list(messages)
    while turns:
        ids, mask = encode(tokenizer, CHATML.segments(turns))
        if len(ids) <= longest:
            return ids, mask
        turns = turns[:-2]
        if turns and turns[-1]["role"] != "assistant":
            return None
    return None


def pack(conversations: Sequence[Encoded], seq_len: int, padding: int) -> Batch:
    """Rows of seq_len tokens [rows, seq_len] (int32), each conversation whole in the fullest row with room."""
    by_room: list[list[list[Encoded]]] = [[] for _ in range(seq_len + 1)]
    rows: list[list[Encoded]] = []
    for conversation in sorted(conversations, key=lambda conversation: -len(conversation[0])):
        length = len(conversation[0])
        room = next((r for r in range(length, seq_len + 1) if by_room[r]), None)
        if room is None:
            rows.append([])
            room = seq_len
            by_room[room].append(rows[-1])
        row = by_room[room].pop()
        row.append(conversation)
        by_room[room - length].append(row)
    ids, targets, docs = (np.full((len(rows), seq_len), fill, dtype=np.int32) for fill in (padding, IGNORE, 0))
    for r, members in enumerate(rows):
        start = 0
        for number, conversation in enumerate(members, 1):
            tokens, mask = map(np.array, conversation)
            end = start + len(tokens)
            ids[r, start:end], docs[r, start:end] = tokens, number
            targets[r, start : end - 1] = np.where(mask[1:], tokens[1:], IGNORE)
            start = end
    return Batch(ids, targets, docs)


def load(recipe: Recipe, tokenizer: Tokenizer) -> tuple[Batch, dict[str, Batch], str]:
    """Training rows, validation rows per language, and the fingerprint of both.

    A conversation is held out by a hash of its tokens, so the choice does not depend on order or on other sources.
    """
    train: list[Encoded] = []
    held: dict[str, list[Encoded]] = {}
    long = 0
    data_root = Path(recipe.data_root)
    if not recipe.sft.sources:
        raise ChatBakerError("the recipe names no conversations", "sft.sources", "Add a [[sft.sources]] table")
    for number, source in enumerate(recipe.sft.sources):
        wanted: list[Encoded] = []
        for _, messages in read(source, data_root, recipe.seed):
            encoded = tokenize(tokenizer, messages, recipe.model.seq_len)
            if encoded is None:
                long += 1
                continue
            key = hashlib.blake2b(np.array(encoded[0], dtype="<u2").tobytes(), digest_size=8).digest()
            if int.from_bytes(key, "big") < recipe.sft.validation * 2**64:
                hangul = any("가" <= char <= "힣" for char in messages[-1]["content"])
                held.setdefault("ko" if hangul else "en", []).append(encoded)
            else:
                wanted.append(encoded)
        draw, once_more = mix_hash(recipe.seed, "weight", number), round(source.weight % 1 * len(wanted))
        for i, encoded in enumerate(wanted):
            train += [encoded] * (int(source.weight) + (permute(i, len(wanted), draw) < once_more))
    if not train:
        raise ChatBakerError("no conversation fits the context", "model.seq_len", "Raise it, or add shorter ones")
    padding = special_id(tokenizer, END_OF_TEXT)
    rows = pack(train, recipe.model.seq_len, padding)
    validation = {language: pack(items, recipe.model.seq_len, padding) for language, items in sorted(held.items())}
    sha = hashlib.sha256()
    for batch in (rows, *validation.values()):
        sha.update(batch.ids.tobytes() + batch.targets.tobytes())
    filled = float((rows.docs > 0).mean())
    say(
        f"sft: {len(train):,} conversations in {len(rows.ids):,} rows of {recipe.model.seq_len} ({filled:.0%} full, "
        f"{rows.valid:,} trained tokens); {sum(map(len, held.values())):,} held out, {long:,} too long"
    )
    return rows, validation, sha.hexdigest()[:16]


def show(recipe: Recipe, run: RunDir, count: int) -> None:
    """Print `count` conversations with trained tokens in green and the rest dimmed."""
    from rich.console import Console
    from rich.text import Text

    tokenizer = load_tokenizer(run.need("tokenizer", "tokenizer.json", stage="tokenizer").parent)
    console, root = Console(), Path(recipe.data_root)
    sources = [read(source, root, recipe.seed) for source in recipe.sft.sources]
    rows = filter(None, chain.from_iterable(zip_longest(*sources)))  # a conversation of each source in turn
    for where, messages in islice(rows, count):
        encoded = tokenize(tokenizer, messages, recipe.model.seq_len)
        if encoded is None:
            console.print(f"{where}: longer than the context of {recipe.model.seq_len}, left out", style="yellow")
            continue
        text = Text()
        for trained, pairs in groupby(zip(*encoded, strict=True), key=itemgetter(1)):
            piece = tokenizer.decode([i for i, _ in pairs], skip_special_tokens=False)
            text.append(piece, style="green" if trained else "dim")
        console.rule(f"{where}: {sum(encoded[1])} of {len(encoded[0])} tokens trained (green)")
        console.print(text)
