"""What the engines that hold the weights share: messages -> token ids -> one token after another -> text."""

from __future__ import annotations

import random
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace

from chatbaker.errors import ChatBakerError
from chatbaker.infer.detokenize import TextStream
from chatbaker.infer.engine import Chunk, Messages, Sampling, Usage
from chatbaker.tokens.dialog import Template, clean_messages


def shared_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens two prompts have in common from their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class LocalEngine(ABC):
    """`stream` is here, once. An engine adds its tokenizer, `prefill` and `next_token`."""

    name: str
    context: int
    template: Template
    specials: dict[str, int]  # special tokens and their ids
    stops: frozenset[int]  # token ids that end an answer

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Ordinary text; special tokens in it are not recognized."""

    @abstractmethod
    def piece(self, token: int) -> bytes:
        """What a token adds to the text; nothing for a special one."""

    @abstractmethod
    def prefill(self, ids: list[int]) -> int:
        """Read all of the prompt but its last token into the KV cache, step by step; how many were there already."""

    @abstractmethod
    def next_token(
        self, ids: list[int], generated: int, sampling: Sampling, seed: int, debug: int
    ) -> tuple[int, list[tuple[int, float]]]:
        """Draw the token after `ids`, whose last `generated` are this answer; with it, `debug` candidates."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode(self, messages: Messages) -> list[int]:
        """The prompt. Each segment is tokenized by itself, so no text can become a special token."""
        ids: list[int] = []
        for segment in self.template.segments(clean_messages(messages), generate=True):
            ids += [self.specials[segment.text]] if segment.special else self.tokenize(segment.text)
        return ids

    def count(self, messages: Messages) -> int:
        return len(self.encode(messages))

    def stream(self, messages: Messages, sampling: Sampling, debug: int = 0) -> Iterator[Chunk]:
        """See `Engine.stream`."""
        ids = self.encode(messages)
        room = min(sampling.max_new_tokens, self.context - len(ids))
        if room < 1:
            raise ChatBakerError(f"the prompt is {len(ids):,} tokens long, but the context is {self.context:,}")
        dice = random.Random(sampling.seed if sampling.seed is not None else secrets.randbits(64))
        text = TextStream(sampling.stop)
        begun = False
        started = time.perf_counter()
        usage = Usage(prompt_tokens=len(ids), cached_tokens=self.prefill(ids))
        first = started
        for generated in range(room):
            token, candidates = self.next_token(ids, generated, sampling, dice.getrandbits(31), debug)
            now = time.perf_counter()
            first = first if generated else now
            usage = replace(usage, prompt_seconds=first - started, decode_seconds=now - first)
            if token in self.stops:
                usage, shown = replace(usage, finish_reason="stop"), text.finish()
            else:
                ids.append(token)
                usage, shown = replace(usage, completion_tokens=generated + 1), text.feed(self.piece(token))
                if text.stopped:
                    usage = replace(usage, finish_reason="stop")
                elif generated + 1 == room:
                    usage, shown = replace(usage, finish_reason="length"), shown + text.finish()
            if not begun:  # some formats have a space between the prompt and the answer
                shown = shown.lstrip()
                begun = bool(shown)
            named = tuple((self.name_of(candidate), chance) for candidate, chance in candidates)
            yield Chunk(shown, usage, self.name_of(token) if debug else "", named)
            if usage.finish_reason:
                return

    def name_of(self, token: int) -> str:
        """A token for a person: a special one by its name, bytes of half a character as \\xNN."""
        special = next((name for name, number in self.specials.items() if number == token), None)
        return special or self.piece(token).decode(errors="backslashreplace")
