"""A model behind a URL: any OpenAI-compatible server, this project's own included."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import Chunk, FinishReason, Messages, Sampling, TooLong, Usage
from chatbaker.tokens.dialog import clean_messages

MAX_CANDIDATES = 20  # what the API allows


def plain_key(key: str, where: str) -> str:
    """The key as a header can carry it. Raises ChatBakerError, which does not show it."""
    if not (key.isascii() and key.strip().isprintable()):
        raise ChatBakerError("a key has ASCII characters only", where)
    return key.strip()


def connect(url: str, variable: str, **options: Any) -> tuple[str, Any]:
    """(key, client) of openai's package; the key is in that variable or in OPENAI_API_KEY. Raises ChatBakerError."""
    import openai  # two thirds of a second; only who talks to a URL waits for it

    key = plain_key(os.environ.get(variable) or os.environ.get("OPENAI_API_KEY") or "no-key", variable)
    if "@" in url.partition("//")[2].partition("/")[0]:
        raise ChatBakerError("no name and password in an address", hint=f"The key goes into {variable}")
    try:
        return key, openai.OpenAI(base_url=url, api_key=key, **options)
    except Exception:  # of whichever HTTP library it brings along
        raise ChatBakerError("not an address", url, "It is like http://localhost:8000/v1") from None


class RemoteEngine:
    """The key is CHATBAKER_API_KEY or OPENAI_API_KEY and is shown nowhere. `TooLong` where the messages do not fit."""

    context = None

    def __init__(self, url: str, model: str | None = None) -> None:
        import openai  # two thirds of a second; only who chats with a URL waits for it

        self._openai = openai
        self.url = url
        self._key, self._client = connect(url, "CHATBAKER_API_KEY")
        try:
            self.model = model or self._client.models.list().data[0].id
        except (openai.OpenAIError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise self._plain(error) from None
        self.name = f"{self.model} ({url})"
        self._extras = True

    def count(self, messages: Messages) -> int:
        return 0

    def stream(self, messages: Messages, sampling: Sampling, debug: int = 0) -> Iterator[Chunk]:
        """See `Engine.stream`. Token counts are the server's; without them, its chunks are counted."""
        started = first = time.perf_counter()
        reason, usage = None, Usage()
        try:
            with self._open(clean_messages(messages), sampling, debug) as answer:
                for event in answer:
                    now = time.perf_counter()
                    if said := event.usage:
                        cached = (said.prompt_tokens_details and said.prompt_tokens_details.cached_tokens) or 0
                        usage = replace(usage, prompt_tokens=said.prompt_tokens, cached_tokens=cached)
                        usage = replace(usage, completion_tokens=said.completion_tokens)
                    for choice in (event.choices or ())[:1]:
                        reason = choice.finish_reason or reason
                        if text := choice.delta.content:
                            first = first if usage.completion_tokens else now
                            usage = replace(usage, prompt_seconds=first - started, decode_seconds=now - first)
                            usage = replace(usage, completion_tokens=usage.completion_tokens + 1)
                            yield Chunk(text, usage, *_debug(choice.logprobs))
        except (self._openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
            raise self._plain(error) from None
        ended: FinishReason = "length" if reason == "length" else "stop"
        yield Chunk("", replace(usage, finish_reason=ended))

    def _open(self, messages: Messages, sampling: Sampling, debug: int) -> Any:
        """The event stream. Servers that refuse options beyond OpenAI's own are asked again without them."""
        options: dict[str, Any] = {"model": self.model, "messages": messages, "temperature": sampling.temperature}
        options |= {"top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens}
        options |= {"stream": True, "stream_options": {"include_usage": True}}
        if sampling.seed is not None:
            options["seed"] = sampling.seed
        if sampling.stop:
            options["stop"] = list(sampling.stop)
        if debug:
            options |= {"logprobs": True, "top_logprobs": min(debug, MAX_CANDIDATES)}
        extras = {"top_k": sampling.top_k, "repetition_penalty": sampling.repetition_penalty}
        if not self._extras:
            return self._client.chat.completions.create(**options)
        try:
            return self._client.chat.completions.create(**options, extra_body=extras)
        except (self._openai.BadRequestError, self._openai.UnprocessableEntityError):
            answer = self._client.chat.completions.create(**options)
            self._extras = False  # it was these that the server refused
            return answer

    def _plain(self, error: Exception) -> ChatBakerError:
        """What went wrong, in one line and without the key."""
        if isinstance(error, self._openai.APIConnectionError):
            hint = "Check the URL and that the server is running"
            return ChatBakerError("no answer from this address", self.url, hint)
        if isinstance(error, self._openai.AuthenticationError):
            return ChatBakerError("the server refuses the key", self.url, "Set CHATBAKER_API_KEY")
        if isinstance(error, self._openai.APIStatusError):
            body = error.body if isinstance(error.body, dict) else {}
            what = (
                str(body.get("message") or f"status {error.status_code}")
                .replace(self._key, "***")
                .splitlines()[0][:300]
            )
            kind = TooLong if error.code == "context_length_exceeded" else ChatBakerError
            return kind(f"the server says: {what}", self.url)
        return ChatBakerError("this is not an OpenAI-compatible server", self.url, "The address usually ends in /v1")

    def close(self) -> None:
        self._client.close()


def _debug(logprobs: Any) -> tuple[str, tuple[tuple[str, float], ...]]:
    if not logprobs or not logprobs.content:
        return "", ()
    token = logprobs.content[0]
    return token.token, tuple((one.token, math.exp(one.logprob)) for one in token.top_logprobs)
