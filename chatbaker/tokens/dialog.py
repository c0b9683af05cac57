"""The chat format, once: messages -> segments -> token ids with a loss mask, and the same as a Jinja template.

Special tokens are segments of their own and everything else is ordinary text, tokenized with specials switched off, so
a user who types `<|im_end|>` never ends a turn. Two formats are built in: `chatml` for the models baked here, and
`human-bot` for the weights published as `42dot/42dot_LLM-SFT-1.3B`, which ship without a template.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chatbaker.errors import ChatBakerError

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
HUMAN_BOT_START = "<||bos||>"  # of the published 42dot tokenizer
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
ROLES = ("system", "user", "assistant")

Message = dict[str, str]
"""role and content; "weight": "0" where an answer is read and not trained on."""


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation. special: the text is one special token. trained: it carries loss."""

    text: str
    special: bool = False
    trained: bool = False


@dataclass(frozen=True)
class Template:
    """A chat format. stop: the special tokens that end an answer.

    segments(messages, generate=False): cleaned messages, rendered; with `generate`, up to the next answer's beginning.
    """

    name: str
    stop: tuple[str, ...]
    segments: Callable[..., list[Segment]]

    @cached_property
    def jinja(self) -> str:
        """The same format for other programs; no line feed of its file is part of it."""
        return Path(__file__).with_name(f"{self.name}.jinja").read_text(encoding="utf-8").replace("\n", "")


def _chatml(messages: Sequence[Message], generate: bool = False) -> list[Segment]:
    segments = []
    for message in messages:
        trained = message["role"] == "assistant" and "weight" not in message
        segments += [Segment(IM_START, special=True), Segment(message["role"] + "\n")]
        segments += [Segment(message["content"], trained=trained), Segment(IM_END, special=True, trained=trained)]
        segments.append(Segment("\n"))
    if generate:
        segments += [Segment(IM_START, special=True), Segment("assistant\n")]
    return segments


def _human_bot(messages: Sequence[Message], generate: bool = False) -> list[Segment]:
    segments = [Segment(HUMAN_BOT_START, special=True)]
    space = ""
    for message in messages:
        if message["role"] == "system":
            segments.append(Segment(message["content"]))
            space = " "
        elif message["role"] == "user":
            segments.append(Segment(f"{space}<human>: {message['content']} <bot>:"))
            space = ""
        else:
            trained = "weight" not in message
            segments.append(Segment(" " + message["content"], trained=trained))
            segments.append(Segment(END_OF_TEXT, special=True, trained=trained))
    return segments


CHATML = Template("chatml", (IM_END, END_OF_TEXT), _chatml)
HUMAN_BOT = Template("human-bot", (END_OF_TEXT,), _human_bot)
TEMPLATES = {template.name: template for template in (CHATML, HUMAN_BOT)}


def detect(jinja: str | None, special_tokens: Iterable[str]) -> Template:
    """The template of a model, from its Jinja text or, where none ships, from its special tokens."""
    for template in TEMPLATES.values():
        if jinja == template.jinja:
            return template
    specials = set(special_tokens)
    if {IM_START, IM_END} <= specials:
        return CHATML
    if jinja is None and {HUMAN_BOT_START, END_OF_TEXT} <= specials:
        return HUMAN_BOT
    hint = "Known formats: ChatML and the 42dot <human>/<bot> format. Serve the model elsewhere and use chat --url"
    raise ChatBakerError("this model's chat format is not one that ChatBaker speaks", hint=hint)


def clean_messages(messages: Any, where: str | None = None) -> list[Message]:
    """The messages in NFC, with line feeds alone, outer whitespace stripped.

    Raises ChatBakerError naming one whose role or order is wrong.
    """

    def fail(index: int, what: str) -> ChatBakerError:
        return ChatBakerError(f"message {index + 1}: {what}", where)

    if not isinstance(messages, list) or not messages:
        raise ChatBakerError('expected a non-empty list of {"role": ..., "content": ...}', where)
    cleaned: list[Message] = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise fail(i, 'expected {"role": ..., "content": "text"}')
        role = message.get("role")
        if role not in ROLES:
            raise fail(i, f"unknown role {role!r}; use one of {', '.join(ROLES)}")
        content = unicodedata.normalize("NFC", message["content"].replace("\r\n", "\n").replace("\r", "\n")).strip()
        if not content.isascii() and any("\ud800" <= char <= "\udfff" for char in content):
            raise fail(i, "bytes that are not UTF-8 text")
        previous = cleaned[-1]["role"] if cleaned else None
        if role == "system" and previous is not None:
            raise fail(i, "a system message must come first")
        if role == "system" and not content:
            continue
        if not content:
            raise fail(i, f"the {role} message is empty")
        if role == previous:
            raise fail(i, f"two {role} messages in a row")
        if role == "assistant" and previous != "user":
            raise fail(i, "an assistant message must follow a user message")
        cleaned.append({"role": role, "content": content})
    return cleaned


def encode(tokenizer: Any, segments: Sequence[Segment]) -> tuple[list[int], list[bool]]:
    """Token ids and their loss mask, one entry each. tokenizer: one of `tokenizers`, set by `load_tokenizer`."""
    ids: list[int] = []
    mask: list[bool] = []
    for segment in segments:
        if segment.special:
            piece = [tokenizer.token_to_id(segment.text)]
            assert piece != [None], segment.text
        else:
            piece = tokenizer.encode(segment.text, add_special_tokens=False).ids
        ids += piece
        mask += [segment.trained] * len(piece)
    return ids, mask
