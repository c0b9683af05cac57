"""What a stage tells the person in front of it: lines, and a progress bar with an ETA.

All of it goes to standard error, so that a verb's result can be piped. The bar is drawn on a terminal; elsewhere (a log
file, a batch system) one line is written every half minute.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

REDRAW_SECONDS, LINE_SECONDS = 0.2, 30.0


def say(text: str) -> None:
    """One line for the person; of several processes of one job, from the first only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """'41 s', '3 min 05 s', '2 h 10 min', '3 d 4 h'."""
    total = int(round(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    if total < 86400:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} d {total % 86400 // 3600} h"


class Progress:
    """A count towards a total. `update(done, note)` is cheap enough to call on every step."""

    def __init__(self, title: str, total: int, start: int = 0) -> None:
        self.title, self.total, self.start = title, max(total, 1), start
        self.began = self.drawn = time.monotonic()
        self.live = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=False)
            self.live.start()

    def line(self, done: int, note: str) -> str:
        elapsed = time.monotonic() - self.began
        fresh = done - self.start
        eta = duration(elapsed / fresh * (self.total - done)) if fresh > 0 else "..."
        return f"{self.title} {done:,}/{self.total:,} ({done / self.total:.0%})  {note}  ETA {eta}"

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if self.live is not None:
            if now - self.drawn >= REDRAW_SECONDS or done >= self.total:
                self.drawn = now
                self.live.update(self.line(done, note), refresh=True)
        elif now - self.drawn >= LINE_SECONDS:
            self.drawn = now
            say(self.line(done, note))


@contextmanager
def progress(title: str, total: int, start: int = 0) -> Iterator[Progress]:
    """A `Progress` that leaves the terminal in order whatever happens."""
    bar = Progress(title, total, start)
    try:
        yield bar
    finally:
        if bar.live is not None:
            bar.live.stop()
