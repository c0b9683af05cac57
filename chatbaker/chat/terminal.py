"""The terminal chat: `run` is what the verb `chat` calls.

At a terminal prompt_toolkit reads (Hangul-wide, several lines) and rich streams Markdown. Elsewhere each line of
standard input is asked, answers are plain text, and the exit status is 0 if all were given. Notices go to standard
error, as does --debug.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbaker.chat.session import Session
from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import Chunk, Sampling, open_engine
from chatbaker.jsonl import decode
from chatbaker.log import say

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from rich.console import Console

CANDIDATES = 5  # per token, in what --debug reports
REDRAW_SECONDS = 0.08
INTERRUPTED = 130


def run(
    question: str | None = None,
    model: str | None = None,
    url: str | None = None,
    device: str = "auto",
    system: str | None = None,
    sampling: Sampling | None = None,
    quantize: str | None = None,
    debug: bool = False,
) -> int:
    """Chat until the input ends; the exit status. See `open_engine` for the options. Raises ChatBakerError."""
    with closing(open_engine(model, device, quantize, url=url)) as engine:
        terminal = Terminal(Session(engine, sampling or Sampling(), system), debug)
        if question is not None:
            return 0 if terminal.ask(question) else INTERRUPTED
        return terminal.converse() if terminal.console and sys.stdin and sys.stdin.isatty() else terminal.read_lines()


class Terminal:
    """A session with a person, a pipe or a file at the other end."""

    def __init__(self, session: Session, debug: bool) -> None:
        self.session = session
        self.debug = CANDIDATES if debug else 0
        self.console: Console | None = None
        if sys.stdout.isatty():
            from rich.console import Console

            self.console = Console(highlight=False)

    def converse(self) -> int:
        """Ask, answer, until Ctrl-D or /exit."""
        prompt = self._prompt()
        size = f", {self.session.engine.context:,} tokens of context" if self.session.engine.context else ""
        self.tell(f"{self.session.engine.name}{size}. /help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                self.take(prompt.prompt())
            except EOFError:
                return 0
            except ChatBakerError as error:
                self.tell(str(error))
            except KeyboardInterrupt:  # with no answer to stop
                self.tell("Ctrl-D leaves.")

    def read_lines(self) -> int:
        """Answer each line of standard input. A line that cannot be answered is reported; the exit status is then 1."""
        status = 0
        lines = sys.stdin.buffer if sys.stdin else ()  # None: it was closed before we began
        for number, line in enumerate(lines, 1):
            try:
                self.take(decode(line))
            except EOFError:
                break
            except (UnicodeDecodeError, ChatBakerError) as error:
                status, problem = 1, "neither UTF-8 nor CP949" if isinstance(error, UnicodeDecodeError) else error
                say(f"standard input, line {number}: {problem}")
        return status

    def take(self, text: str) -> None:
        """One input: a command, a question or nothing. Raises EOFError to leave."""
        text = text.strip()
        if text.startswith("/"):
            name, *rest = text[1:].split(maxsplit=1) or [""]
            if name not in COMMANDS:
                raise ChatBakerError(f"no command /{name}", hint="Type /help")
            COMMANDS[name][1](self, "".join(rest))
        elif text:
            self.ask(text)

    def ask(self, question: str) -> bool:
        return self.answer(self.session.ask(question, self.debug))

    def answer(self, chunks: Iterator[Chunk]) -> bool:
        """Show an answer while it is written. False: Ctrl-C stopped it; what was written stays in the conversation."""
        dropped, steps, finished = self.session.dropped, [], True
        page = _Page(self.console) if self.console else None
        show = page.add if page else partial(print, end="", flush=True)
        with closing(chunks):  # type: ignore[type-var]
            try:
                for chunk in chunks:
                    steps.append({"token": chunk.token, "candidates": chunk.candidates})
                    show(chunk.text)
            except KeyboardInterrupt:
                if not page:  # nobody is there to ask on
                    raise
                finished = False
            finally:
                if page:
                    page.close()
        if not page:
            print(flush=True)
        if not finished:
            self.tell("(stopped)")
        if (count := self.session.dropped - dropped) > 0:
            self.tell(f"(the conversation has outgrown the model's context: its {count} oldest messages were dropped)")
        if self.debug:
            say(json.dumps({"steps": steps} | self.figures(), ensure_ascii=False))
        return finished

    def figures(self) -> dict[str, Any]:
        """Usage and speed of the last answer."""
        usage = self.session.usage
        speeds = {"prompt": usage.prompt_speed, "decode": usage.decode_speed}
        speed = {f"{part}_tokens_per_second": round(value, 1) for part, value in speeds.items()}
        counts = asdict(usage)
        seconds = {f"{part}_seconds": round(counts.pop(f"{part}_seconds"), 4) for part in speeds}
        return {"usage": counts, "speed": speed | seconds}

    def tell(self, text: str) -> None:
        """A notice to the person, beside the conversation."""
        if self.console:
            self.console.print(text, style="dim", markup=False)
        else:
            say(text)

    def _prompt(self) -> PromptSession[str]:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "chatbaker", "history")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            history: FileHistory | InMemoryHistory = FileHistory(path)
        except OSError:  # a read-only home is no reason not to talk
            history = InMemoryHistory()
        commands = WordCompleter([f"/{name}" for name in COMMANDS], sentence=True)
        session = PromptSession[str]("> ", history=history, multiline=True, prompt_continuation="  ", key_bindings=keys)
        session.completer, session.complete_while_typing = commands, False
        return session

    # Commands. Each takes the rest of its line.

    def help(self, _: str) -> None:
        for name, (text, _run) in COMMANDS.items():
            self.tell(f"/{name:<8} {text}")
        self.tell("Esc Enter or Alt-Enter begins a new line. Ctrl-C stops an answer, Ctrl-D leaves.")

    def reset(self, _: str) -> None:
        self.session.reset()
        self.tell("a new conversation")

    def retry(self, _: str) -> None:
        self.answer(self.session.retry(self.debug))

    def undo(self, _: str) -> None:
        self.tell(f"forgotten: {self.session.undo()}")

    def system(self, text: str) -> None:
        if text:
            self.session.system = None if text == "none" else text
        self.tell(f"system: {self.session.system or 'none'}")

    def save(self, name: str) -> None:
        self.session.save(_path(name, "save"))
        self.tell(f"saved {name}")

    def load(self, name: str) -> None:
        self.session.load(_path(name, "load"))
        self.tell(f"loaded {len(self.session.messages) // 2} questions and answers")

    def set(self, text: str) -> None:
        name, _, value = text.replace("=", " ").partition(" ")
        if value.strip():
            self.session.sampling = self.session.sampling.set(name.replace("-", "_"), value.strip())
        self.tell("  ".join(f"{f.name}={getattr(self.session.sampling, f.name)}" for f in fields(Sampling)))

    def stats(self, _: str) -> None:
        self.tell(json.dumps({"engine": self.session.engine.name} | self.figures(), ensure_ascii=False))

    def exit(self, _: str) -> None:
        raise EOFError


COMMANDS: dict[str, tuple[str, Callable[[Terminal, str], None]]] = {
    "help": ("this list", Terminal.help),
    "reset": ("begin a new conversation", Terminal.reset),
    "retry": ("answer the last question again", Terminal.retry),
    "undo": ("forget the last question and its answer", Terminal.undo),
    "system": ("TEXT: what the model is told first; none removes it", Terminal.system),
    "save": ("FILE: write the conversation", Terminal.save),
    "load": ("FILE: go on with a saved conversation", Terminal.load),
    "set": ("OPTION VALUE: change how answers are drawn; alone it shows the options", Terminal.set),
    "stats": ("tokens and speed of the last answer", Terminal.stats),
    "exit": ("leave", Terminal.exit),
}


def _path(name: str, command: str) -> Path:
    if not name or "\0" in name:
        raise ChatBakerError("no file name", hint=f"Type: /{command} FILE")
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ChatBakerError("no such user", name) from None


class _Page:
    """Markdown while it is being written: finished blocks are printed for good, the last one is redrawn in place."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.markdown import Markdown

        self.console, self.markdown = console, Markdown
        self.text, self.drawn = "", 0.0
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.live.start()

    def add(self, text: str) -> None:
        from rich.segment import SegmentLines

        self.text += text
        now = time.monotonic()
        if text and now - self.drawn >= REDRAW_SECONDS:
            self.drawn = now
            done = finished_blocks(self.text)
            self._print(self.text[:done])
            self.text = self.text[done:]
            # As many of the last lines as the window shows: a live area taller than it cannot be redrawn.
            lines = self.console.render_lines(self.markdown(self.text), pad=False)
            self.live.update(SegmentLines(lines[-max(self.console.height - 2, 1) :], new_lines=True), refresh=True)

    def close(self) -> None:
        self.live.stop()
        self._print(self.text)

    def _print(self, text: str) -> None:
        if text.strip():
            self.console.print(self.markdown(text))


def finished_blocks(text: str) -> int:
    """Length of the beginning of `text` that more text cannot change: to the last blank line outside a code fence."""
    end, at, fence = 0, 0, ""
    for line in text.splitlines(keepends=True):
        at += len(line)
        mark = line.strip()
        if fence:
            if mark.startswith(fence) and not mark.strip(fence[0]):
                fence = ""
        elif mark.startswith(("```", "~~~")):
            fence = mark[: len(mark) - len(mark.lstrip(mark[0]))]
        elif not mark and line.endswith("\n"):
            end = at
    return end
