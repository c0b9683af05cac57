"""A person at a real (pseudo-)terminal: typing Korean, editing, interrupting, leaving."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")
pyte = pytest.importorskip("pyte")

ROWS, COLUMNS, PATIENCE = 30, 80, 30
UP, LEFT, HOME, BACKSPACE, ALT_ENTER = "\x1b[A", "\x1b[D", "\x1b[H", "\x7f", "\x1b\r"
CTRL_C, CTRL_D = "\x03", "\x04"


class Screen:
    """A chat in a pseudo-terminal and what a person sees of it."""

    def __init__(self, model: Path, home: Path, *options: str) -> None:
        code = (
            "import sys; from chatbaker.chat.terminal import run; from chatbaker.infer.engine import Sampling; "
            "sys.exit(run(model=sys.argv[1], device='cpu', sampling=Sampling(temperature=0, max_new_tokens=60_000)))"
        )
        environment = os.environ | {"TERM": "xterm-256color", "XDG_STATE_HOME": str(home), "NO_COLOR": "1"}
        self.child = pexpect.spawn(
            sys.executable, ["-c", code, str(model)], dimensions=(ROWS, COLUMNS), env=environment, timeout=PATIENCE
        )
        self.grid = pyte.Screen(COLUMNS, ROWS)
        self.feed = pyte.ByteStream(self.grid)
        self.raw = b""

    @property
    def lines(self) -> list[str]:
        # A wide character has an empty cell behind it.
        return [
            "".join(row[x].data for x in range(COLUMNS)).rstrip()
            for row in map(self.grid.buffer.__getitem__, range(ROWS))
        ]

    def wait(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not seen():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            try:
                data = self.child.read_nonblocking(65536, timeout=1)
            except pexpect.TIMEOUT:
                continue
            self.raw += data
            self.feed.feed(data)
            if b"\x1b[6n" in data:  # "where is the cursor?"
                self.child.send(f"\x1b[{self.grid.cursor.y + 1};{self.grid.cursor.x + 1}R")

    def see(self, text: str) -> None:
        self.wait(lambda: any(text in line for line in self.lines))

    def prompt(self) -> None:
        """Wait for an empty prompt with the cursor in it."""
        self.wait(lambda: self.lines[self.grid.cursor.y] == ">" and self.grid.cursor.x == 2)

    def type(self, text: str) -> None:
        self.child.send(text)

    def leaves(self) -> int:
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[Path], Screen]]:
    screens: list[Screen] = []

    def begin(model: Path) -> Screen:
        screens.append(Screen(model, tmp_path / "state"))
        screens[-1].prompt()
        return screens[-1]

    yield begin
    for screen in screens:
        screen.child.close(force=True)


def test_korean_is_typed_edited_sent_and_found_again(
    start: Callable[[Path], Screen], parrot_gguf: Path, tmp_path: Path
) -> None:
    screen = start(parrot_gguf)
    screen.type("안녕하세용")
    screen.wait(lambda: screen.lines[screen.grid.cursor.y] == "> 안녕하세용" and screen.grid.cursor.x == 2 + 10)
    screen.type(BACKSPACE + "요")
    screen.wait(lambda: screen.lines[screen.grid.cursor.y] == "> 안녕하세요")
    screen.type(LEFT * 3)
    screen.wait(lambda: screen.grid.cursor.x == 2 + 4)
    screen.type(BACKSPACE + "영")
    screen.wait(lambda: screen.lines[screen.grid.cursor.y] == "> 안영하세요" and screen.grid.cursor.x == 2 + 4)
    screen.type(HOME)
    screen.wait(lambda: screen.grid.cursor.x == 2)
    screen.type("네 ")
    screen.wait(lambda: screen.lines[screen.grid.cursor.y] == "> 네 안영하세요" and screen.grid.cursor.x == 2 + 3)
    screen.type("\r")
    screen.see("안녕하세요! 저는 앵무새예요 🙂")
    assert "\ufffd".encode() not in screen.raw
    screen.prompt()
    screen.type(UP)
    screen.wait(lambda: screen.lines[screen.grid.cursor.y] == "> 네 안영하세요")
    screen.type(CTRL_C)
    screen.prompt()
    screen.type(CTRL_D)
    assert screen.leaves() == 0
    assert "+네 안영하세요" in (tmp_path / "state" / "chatbaker" / "history").read_text(encoding="utf-8").splitlines()


def test_several_lines_are_one_question(start: Callable[[Path], Screen], parrot_gguf: Path, tmp_path: Path) -> None:
    screen = start(parrot_gguf)
    screen.type("첫째 줄" + ALT_ENTER + "둘째 줄")
    screen.see("  둘째 줄")
    screen.type("\r")
    screen.see("앵무새")
    screen.prompt()
    path = tmp_path / "talk.jsonl"
    screen.type(f"/save {path}\r")
    screen.see("saved")
    assert "첫째 줄\\n둘째 줄" in path.read_text(encoding="utf-8")
    screen.prompt()
    screen.type("/exit\r")
    assert screen.leaves() == 0


def test_ctrl_c_stops_the_answer_and_the_talk_goes_on(start: Callable[[Path], Screen], endless_gguf: Path) -> None:
    screen = start(endless_gguf)
    for _ in range(2):
        screen.type("말해 봐\r")
        screen.wait(lambda: sum("끝없이 말해요" in line for line in screen.lines) >= 3)
        asked = time.monotonic()
        screen.type(CTRL_C)
        screen.see("(stopped)")
        assert time.monotonic() - asked < 5
        screen.prompt()
        screen.type("/reset\r")
        screen.see("a new conversation")
        screen.prompt()
        screen.type("\x0c")  # a clean screen
        screen.wait(lambda: not any("(stopped)" in line for line in screen.lines))
    screen.type(CTRL_D)
    assert screen.leaves() == 0
    assert b"Traceback" not in screen.raw
