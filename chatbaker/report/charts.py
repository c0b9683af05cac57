"""The report's pictures, from plain data to PNG, in colours that the colour-blind tell apart.

Bars lie on their side, so that long names stay readable.
"""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from chatbaker.log import say

KOREAN = ("Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Malgun Gothic", "Apple SD Gothic Neo", "AppleGothic")
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")  # of Okabe and Ito, 2008
GREYS = ("#D4D4D4", "#BBBBBB", "#A2A2A2", "#888888", "#6E6E6E")
INK = "#222222"


class Series(NamedTuple):
    """A model's bars; NaN is a gap. low, high: ends of the intervals. weak: hatched. colour: None, a model of ours."""

    name: str
    values: NDArray[np.float64]
    low: NDArray[np.float64] | float = np.nan
    high: NDArray[np.float64] | float = np.nan
    weak: Sequence[bool] = ()
    colour: str | None = None


@functools.cache
def fonts() -> list[str]:
    """Families to draw with: one that has Hangul, where there is one, and matplotlib's own."""
    known = {font.name for font in font_manager.fontManager.ttflist}
    found = [name for name in KOREAN if name in known][:1]
    package = None if found else importlib.util.find_spec("koreanize_matplotlib")
    for file in Path(package.origin or "").parent.glob("fonts/NanumGothic*.ttf") if package else ():
        font_manager.fontManager.addfont(file)
        found = ["NanumGothic"]
    if not found:
        say("no font with Korean letters: the charts go without them. Install NanumGothic or Noto Sans CJK KR")
    return [*found, "DejaVu Sans"]


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset().union(*(font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in fonts()))


def label(text: object) -> str:
    """A text as charts show it: composed, without letters that no font has, cut in the middle where it is long."""
    letters = unicodedata.normalize("NFC", str(text))
    shown = " ".join("".join(one for one in letters if one.isspace() or ord(one) in _glyphs()).split())
    return shown if len(shown) <= 30 else f"{shown[:15]}…{shown[-14:]}"


@contextmanager
def _chart(path: Path, height: float, rows: int = 1, columns: int = 1) -> Iterator[tuple[Figure, list[Any]]]:
    """A figure, as wide as all are so that letters come out alike, and its axes. height: inches."""
    with rc_context({"font.family": fonts()}, fname=Path(__file__).with_name("charts.mplstyle")):
        figure = Figure(figsize=(6.4, height))
        yield figure, list(figure.subplots(rows, columns, squeeze=False).flat)
        figure.savefig(path)


def _finish(figure: Figure, names: Sequence[str], places: Any, ends: tuple[float, float], keys: dict[str, Any]) -> None:
    """Names at the left, the first on top, and the legend above."""
    axis = figure.axes[0]
    axis.set_yticks(places, [label(name) for name in names])
    axis.set_ylim(ends)
    axis.grid(False, axis="y")
    handles = [Patch(color=key) if isinstance(key, str) else key for key in keys.values()]
    figure.legend(handles, [label(name) for name in keys], loc="outside upper left", ncols=3)


def curves(path: Path, panels: Mapping[str, Mapping[str, Any]], columns: int = 1, height: float = 2.6) -> None:
    """Panels over training steps. panels: title -> name -> (steps, values); held-out figures are drawn as points."""
    rows = -(-len(panels) // columns)
    with _chart(path, height * rows, rows, columns) as (_, axes):
        for axis, (title, lines) in zip(axes, panels.items(), strict=False):
            for (name, (steps, values)), colour in zip(lines.items(), PALETTE, strict=False):
                held = name.startswith("held-out")
                style = {"marker": "o", "color": colour} if held else {"color": INK if len(lines) < 2 else GREYS[3]}
                axis.plot(steps, values, label=name, zorder=3 if held else 2, **style)
            axis.set(title=title, xlabel="step")
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            if len(lines) > 1:
                axis.legend()


def bars(
    path: Path, names: Sequence[str], series: Sequence[Series], unit: str, limit: float | None, marks: dict[str, Any]
) -> None:
    """Groups of bars, the first series on top. marks: name -> one line a group, such as the score of guessing."""
    thick = 0.2 if len(series) < 4 else 0.13  # inches
    group = thick * len(series) + 0.14
    tops = np.arange(len(names)) * group
    keys: dict[str, Any] = {}
    plate = {"pad": 0.3, "facecolor": "white", "edgecolor": "none"}
    with _chart(path, 1.0 + 0.22 * -(-len(series) // 3) + group * len(names)) as (figure, (axis,)):
        for place, one in enumerate(series):
            y = tops + (place + 0.5) * thick
            keys[one.name] = colour = one.colour or PALETTE[place % len(PALETTE)]
            hatch = ["////" if weak else "" for weak in one.weak] or None
            axis.barh(y, one.values, thick * 0.9, color=colour, edgecolor="white", hatch=hatch)
            axis.hlines(y, one.low, one.high, color=INK, linewidth=1.2, zorder=4)
            for at, value, end in zip(y, one.values, np.fmax(one.values, one.high), strict=True):
                if np.isfinite(value) and one.colour is None:
                    axis.text(end, at, f" {value:.2f}", va="center", fontsize=8.5, zorder=5, bbox=plate)
        for (name, values), dashes in zip(marks.items(), ("-", (0, (2, 1))), strict=False):
            line = {"color": PALETTE[5], "linestyles": dashes, "linewidth": 1.6, "zorder": 3}
            keys[name] = axis.vlines(np.array(values, float), tops - 0.04, tops + group - 0.1, **line)
        axis.set(xlim=(0, limit), xlabel=unit)
        _finish(figure, names, tops + thick * len(series) / 2, (group * len(names) - 0.06, -0.1), keys)


def stacked(path: Path, names: Sequence[str], parts: Mapping[str, Any], borders: Sequence[Any] = ()) -> None:
    """Rows of shares. parts: name -> (colour, counts by row). borders: (row, from, to), where a border may lie."""
    with _chart(path, 0.8 + 0.22 * -(-len(parts) // 3) + 0.42 * len(names)) as (figure, (axis,)):
        begun, whole = np.zeros(len(names)), np.sum([counts for _, counts in parts.values()], axis=0)
        for colour, counts in parts.values():
            shares = np.array(counts) / np.maximum(whole, 1)
            drawn = axis.barh(range(len(names)), shares, 0.66, left=begun, color=colour, edgecolor="white")
            texts = [f"{share:.0%}" if share >= 0.06 else "" for share in shares]
            ink = "white" if colour in (PALETTE[0], PALETTE[5]) else INK
            axis.bar_label(drawn, texts, label_type="center", fontsize=9, color=ink)
            begun += shares
        for row, low, high in borders:
            axis.hlines(row, low, high, color=INK, linewidth=2)
        axis.set_xlim(0, 1)
        axis.xaxis.set_major_formatter(PercentFormatter(1))
        keys = {name: colour for name, (colour, _) in parts.items()}
        _finish(figure, names, range(len(names)), (len(names) - 0.5, -0.5), keys)
