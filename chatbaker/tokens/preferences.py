"""Pairs of answers, one preferred to the other, in the formats that people have -> rows of tokens for DPO.

A row holds whole pairs: documents 1 and 2 are the first one's chosen and rejected conversation, and so on.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from chatbaker.errors import ChatBakerError
from chatbaker.recipe import Recipe, SftSource
from chatbaker.tokens.conversations import TOO_LONG, Encoded, Found, Loaded, gather
from chatbaker.tokens.dialog import CHATML, Message, encode
from chatbaker.tokens.formats import NAMES, UnknownFormat, mend, read, recognise, to_turn

SIDES = ("chosen", "rejected")
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # in the transcripts of HH-RLHF
Sides = list[list[dict[str, Any]]]


def load_pairs(recipe: Recipe, tokenizer: Tokenizer) -> Loaded:
    """The pairs of the stage `dpo`."""

    def encoded(source: SftSource) -> Found:
        way = recognise_pair, mend_pair
        for _, (good, bad) in read(source, Path(recipe.data_root), recipe.seed, way):
            (ids, mask), (other, its) = (encode(tokenizer, CHATML.segments(messages)) for messages in (good, bad))
            both: Encoded = ids + other, mask + its, [1] * len(ids) + [2] * len(other)
            fits = len(both[0]) <= recipe.model.seq_len
            yield good[-1]["content"], "with one answer twice" if good == bad else both if fits else TOO_LONG

    return gather("dpo", "pair", encoded, recipe, tokenizer)


def recognise_pair(record: dict[str, Any], where: str) -> tuple[str, Sides]:
    """The format of a record, and the turns of the chosen and of the rejected conversation. Raises ChatBakerError."""
    if not record.keys() >= set(SIDES):
        keys = ", ".join(map(str, record)) or "none"
        raise UnknownFormat(f"no known format (the keys are: {keys})", where, "Known: prompt, chosen, rejected")
    try:
        names, sides = zip(*(_side(record, record[key], where) for key in SIDES), strict=True)
    except UnknownFormat as error:
        raise UnknownFormat(f"no question (the keys are: {', '.join(map(str, record))})", where, error.hint) from None
    return names[0], list(sides)


def _side(record: dict[str, Any], side: Any, where: str) -> tuple[str, list[dict[str, Any]]]:
    prompt = record.get("prompt") or ""
    transcript = f"{prompt}{side}".strip() if isinstance(prompt, str) and isinstance(side, str) else ""
    if transcript.startswith("Human:"):
        _, *parts = SPEAKER.split(transcript)
        spoken = zip(parts[::2], parts[1::2], strict=True)
        return "HH-RLHF", [to_turn({"role": who, "content": text}) for who, text in spoken]
    answer = {"role": "assistant", "content": side}
    said = [answer] if isinstance(side, str) else side if isinstance(side, list) else [side]
    turns, system = list(map(to_turn, said)), {key: record[key] for key in NAMES["system"] if key in record}
    if turns and turns[0]["role"] != "assistant":
        return "conversations", recognise(system | {"messages": said}, where)[1]
    asked = {key: record[key] for key in record.keys() - ({*SIDES, *NAMES["turns"]} if prompt else {*SIDES})}
    begun = system | {"messages": prompt} if isinstance(prompt, list) else asked | {"output": ""}
    name, before = recognise(begun, where)
    if before and before[-1] == {"role": "assistant", "content": ""}:  # the place of the answer
        del before[-1]
    if before and before[-1]["role"] != "user":
        raise ChatBakerError("the prompt does not end with a question", where)
    return name.partition("/")[0], before + turns


def mend_pair(sides: Sides, where: str, counts: Counter[str]) -> list[list[Message]]:
    """Two conversations that differ in their last answer alone. Raises ChatBakerError."""
    for key, turns in zip(SIDES, sides, strict=True):
        if not turns or isinstance(turns[-1]["content"], str) and not turns[-1]["content"].strip():
            raise ChatBakerError(f"the {key} answer is empty", where)
    chosen, rejected = (mend(turns, where, counts) for turns in sides)
    if chosen[:-1] != rejected[:-1]:
        raise ChatBakerError("the chosen and the rejected answer have different questions", where)
    return [chosen, rejected]
