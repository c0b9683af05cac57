"""A conversation: what was said, what the model still sees of it, and the next answer. No input or output here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import Chunk, Engine, Messages, Sampling, TooLong, Usage, prompt_limit, trim
from chatbaker.jsonl import decode
from chatbaker.rundir import atomic, disk_error
from chatbaker.tokens.dialog import clean_messages


class Session:
    """messages: user and assistant turns. usage: of the last answer. dropped: messages the model no longer sees."""

    def __init__(self, engine: Engine, sampling: Sampling, system: str | None = None) -> None:
        self.engine, self.sampling, self.system = engine, sampling, system
        self.messages: Messages = []
        self.usage = Usage()
        self.dropped = 0
        self._files: set[Path] = set()  # that hold this conversation and nothing else

    def ask(self, question: str, debug: int = 0) -> Iterator[Chunk]:
        """Answer, and remember both; also where the iterator is closed halfway, but not before the first character.

        Raises ChatBakerError, e.g. for a question that is too long; the conversation is then as it was.
        """
        asked = clean_messages([{"role": "user", "content": question}])
        prompt, cut = self._head + self.messages[self.dropped :] + asked, 0
        if self.engine.context is not None:
            limit = prompt_limit(self.engine.context, self.sampling.max_new_tokens)
            prompt, cut = trim(prompt, self.engine.count, limit)
        answer = ""
        self.usage = Usage()
        try:
            for chunk in self._stream(prompt, cut, debug):
                answer += chunk.text
                self.usage = chunk.usage
                yield chunk
        finally:
            if self.usage.finish_reason is None:
                self.usage = replace(self.usage, finish_reason="cancelled")
            if answer.strip():
                self.messages += [*asked, *clean_messages([*asked, {"role": "assistant", "content": answer}])[1:]]

    def _stream(self, prompt: Messages, cut: int, debug: int) -> Iterator[Chunk]:
        """The answer; of a server, whose context is not known, without the oldest turns where it says so."""
        before, self.dropped = self.dropped, self.dropped + cut
        while True:
            try:
                yield from self.engine.stream(prompt, self.sampling, debug)
                return
            except TooLong:
                first = prompt[0]["role"] == "system"
                if len(prompt) - first < 3:
                    self.dropped = before
                    raise
                prompt = prompt[:first] + prompt[first + 2 :]
                self.dropped += 2

    def undo(self) -> str:
        """Forget the last question and its answer; the question. Raises ChatBakerError where there is none."""
        if not self.messages:
            raise ChatBakerError("nothing has been said yet")
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        self.dropped = min(self.dropped, len(self.messages))
        return question

    def retry(self, debug: int = 0) -> Iterator[Chunk]:
        """Answer the last question anew. The old answer stays where no new one comes."""
        old = self.messages[-2:]
        question = self.undo()
        before = len(self.messages)
        try:
            yield from self.ask(question, debug)
        finally:
            if len(self.messages) == before:
                self.messages += old

    def reset(self) -> None:
        self.messages, self.dropped, self.usage = [], 0, Usage()

    def save(self, path: Path) -> None:
        """Write a line that `chatbaker sft` also reads. Raises ChatBakerError for a file this session did not touch."""
        if not self.messages:
            raise ChatBakerError("nothing to save yet")
        try:
            if path.exists() and path.resolve() not in self._files:
                raise ChatBakerError("there is a file of this name already", str(path), "Choose another name")
        except OSError as error:
            raise disk_error(error, path) from None
        with atomic(path) as file:
            file.write(self._line())
        self._files.add(path.resolve())

    @property
    def _head(self) -> Messages:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _line(self) -> str:
        return json.dumps({"messages": self._head + self.messages}, ensure_ascii=False) + "\n"

    def load(self, path: Path) -> None:
        """Go on with a saved conversation. Raises ChatBakerError; the present one is then untouched."""
        try:
            text = decode(path.read_bytes())
            raw = json.loads(text.partition("\n")[0])
        except OSError as error:
            raise disk_error(error, path) from None
        except (ValueError, RecursionError):
            raise ChatBakerError("not a saved conversation", str(path)) from None
        messages = clean_messages(raw.get("messages") if isinstance(raw, dict) else None, str(path))
        system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else None
        if not messages or messages[-1]["role"] != "assistant":
            raise ChatBakerError("the conversation does not end with an answer", str(path))
        self.reset()
        self.messages, self.system = messages, system
        if text == self._line():
            self._files.add(path.resolve())
