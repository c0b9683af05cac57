from __future__ import annotations

import itertools
import random

import pytest

from chatbaker.infer.detokenize import TextStream, byte_level, sentence_piece

TEXTS = ["안녕", "a한😀", "é각\n힣", "👩‍👩‍👧 가", "\u1112\u1161\u11ab NFD", "日本"]


def stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    text = TextStream(stop)
    return [*map(text.feed, pieces), text.finish()], text


def cuts(data: bytes) -> list[list[bytes]]:
    """Every way to cut `data`, or 2,000 random ones where there are too many."""
    places = range(1, len(data))
    if len(data) <= 12:
        chosen = [c for n in range(len(data)) for c in itertools.combinations(places, n)]
    else:
        dice = random.Random(0)
        chosen = [tuple(sorted(dice.sample(places, dice.randrange(len(data))))) for _ in range(2000)]
    return [[data[a:b] for a, b in itertools.pairwise((0, *c, len(data)))] for c in chosen]


@pytest.mark.parametrize("text", TEXTS)
def test_every_cut_gives_the_text_and_never_a_broken_character(text: str) -> None:
    for pieces in cuts(text.encode()):
        out, _ = stream(pieces)
        assert "".join(out) == text
        assert not any("\ufffd" in part for part in out)


@pytest.mark.parametrize(
    "data",
    [
        b"\xec\x95",
        b"a\xec\x95",
        b"\xff\xec\x95\x88",
        b"\xec\x95a\xeb",
        b"\x80\x80\xf0\x9f",
        b"\xed\xa0\x80b",
        b"\xc0\xafc",
    ],
)
def test_bytes_that_are_no_text_vanish_however_they_are_cut(data: bytes) -> None:
    whole = data.decode("utf-8", errors="ignore")
    for pieces in cuts(data):
        out, _ = stream(pieces)
        assert "".join(out) == whole
        assert "\ufffd" not in whole


def test_a_character_is_given_as_soon_as_it_is_whole() -> None:
    text = TextStream()
    assert [text.feed(bytes([byte])) for byte in "안a".encode()] == ["", "", "안", "a"]


@pytest.mark.parametrize("data", ["가나<끝>다라".encode(), b"xx<\xeb\x81\x9d>", "가<끝<끝>나".encode()])
def test_a_stop_text_and_what_follows_are_never_shown(data: bytes) -> None:
    before = data.decode().partition("<끝>")[0]
    for pieces in cuts(data):
        out, text = stream(pieces, ("<끝>", "never"))
        assert "".join(out) == before
        assert text.stopped


def test_the_beginning_of_a_stop_text_is_shown_once_it_is_none() -> None:
    for pieces in cuts("가<끝 나<".encode()):
        out, text = stream(pieces, ("<끝>",))
        assert "".join(out) == "가<끝 나<"
        assert not text.stopped


def test_pieces_of_both_kinds_of_vocabulary() -> None:
    assert byte_level("ìķĪ") == "안".encode()
    assert byte_level("Ġhi") == b" hi"
    assert byte_level("안") == "안".encode()  # an added token
    assert sentence_piece("▁안") == " 안".encode()
    assert sentence_piece("<0xEC>") == b"\xec"
