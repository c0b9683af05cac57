"""The pictures: Korean letters, names of any kind, gaps. A missing glyph is a warning, and warnings are errors here."""

import importlib.util
import unicodedata

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from chatbaker.report import charts

NAMES = ["한글 이름", unicodedata.normalize("NFD", "분해된 글자"), "emoji 🍞 $x_1$ & <b>", "가" * 80]


@pytest.fixture
def other_fonts(monkeypatch):
    """set(keep) leaves only fonts whose family keep() is true for; afterwards all are back."""

    def choose(keep):
        manager = font_manager.fontManager
        monkeypatch.setattr(manager, "ttflist", [font for font in manager.ttflist if keep(font.name)])
        charts.fonts.cache_clear()
        charts._glyphs.cache_clear()
        font_manager.findfont.__self__._findfont_cached.cache_clear()

    yield choose
    monkeypatch.undo()
    choose(lambda name: True)


def series(name, *values, **more):
    return charts.Series(name, np.array(values, float), **more)


def ink(path):
    with Image.open(path) as picture:
        return (np.asarray(picture.convert("L")) < 128).sum()


def test_any_name_can_be_drawn(tmp_path):
    values = series("모델 🍞", 0.1, None, 0.3, 0.4, low=np.array([0, 0, 0.2, 0.3]), weak=[True, False, False, False])
    other = series("published", 0.2, 0.2, None, 0.1, colour=charts.GREYS[0])
    charts.bars(tmp_path / "bars.png", NAMES, [values, other], "점수", 1, {"chance": [0.5, None, 0.25, 0.5]})
    charts.stacked(
        tmp_path / "stacked.png", NAMES, {"남음": ("#0072B2", [1, 0, 0, 3]), "🍞": ("#D4D4D4", [1, 0, 2, 0])}
    )
    charts.curves(tmp_path / "curves.png", {"손실": {"held-out ko": ([1, 2], [3.0, 2.0]), "training": ([], [])}})
    for name in ("bars", "stacked", "curves"):
        assert ink(tmp_path / f"{name}.png") > 1000


def test_labels_are_composed_cut_and_without_missing_glyphs():
    shown = [charts.label(name) for name in NAMES]
    assert shown == ["한글 이름", "분해된 글자", "emoji $x_1$ & <b>", "가" * 15 + "…" + "가" * 14]


def test_hangul_is_drawn_as_hangul(tmp_path):
    for name in ("가", "뷁"):
        charts.stacked(tmp_path / f"{name}.png", [name], {"a": ("#0072B2", [1])})
    assert (tmp_path / "가.png").read_bytes() != (tmp_path / "뷁.png").read_bytes(), "two boxes would look the same"


def test_without_a_korean_font_on_the_system_the_installed_one_is_taken(other_fonts, tmp_path):
    if importlib.util.find_spec("koreanize_matplotlib") is None:
        pytest.skip("the package with the font is not installed")
    other_fonts(lambda name: name.startswith("DejaVu"))
    assert charts.fonts() == ["NanumGothic", "DejaVu Sans"]
    assert charts.label("한글") == "한글"
    charts.stacked(tmp_path / "a.png", ["한글"], {"남음": ("#0072B2", [1])})


def test_with_no_korean_font_at_all_one_line_says_so(other_fonts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda name: None)
    other_fonts(lambda name: name.startswith("DejaVu"))
    charts.stacked(tmp_path / "a.png", ["한글 ko"], {"남음": ("#0072B2", [1])})
    assert charts.label("한글 ko") == "ko"
    assert capsys.readouterr().err.count("no font with Korean letters") == 1


def test_an_interval_is_drawn_where_it_belongs(tmp_path):
    """A bar of 0.5 with an interval from 0.4 to 0.8 has ink beyond its end, and one without has none."""
    for name, high in (("with", 0.8), ("without", np.nan)):
        one = series("a", 0.5, low=np.array([0.4]), high=np.array([high]))
        charts.bars(tmp_path / f"{name}.png", ["x"], [one], "score", 1, {})
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
