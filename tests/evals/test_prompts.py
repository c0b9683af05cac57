"""The project's own judge prompts: 121 in 10 categories, whole and clean, and the English twin asks the same."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

import chatbaker

COLUMNS = ["id", "question", "category", "task"]
CATEGORIES = {
    "Generation", "Chat", "Brainstorming", "OpenQA", "Rewrite",
    "Summarization", "ClosedQA", "Extract", "Classification", "Reasoning",
}  # fmt: skip


def text(language: str) -> str:
    path = Path(chatbaker.__file__).parent / "evals" / f"prompts.{language}.csv"
    return path.read_bytes().decode("utf-8")


def rows(language: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text(language), newline="")))


def hangul_share(value: str) -> float:
    letters = [c for c in value if c.isalpha()]
    return sum("가" <= c <= "힣" for c in letters) / len(letters)


@pytest.mark.parametrize("language", ["ko", "en"])
def test_file_is_plain_csv_that_any_reader_takes(language: str) -> None:
    read = list(csv.reader(io.StringIO(text(language), newline="")))
    assert read[0] == COLUMNS
    assert len(read) == 1 + 121
    assert {len(row) for row in read} == {len(COLUMNS)}
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator="\n").writerows(read)
    assert written.getvalue() == text(language)  # no BOM, no CR, no needless or missing quote


@pytest.mark.parametrize("language", ["ko", "en"])
def test_prompts_are_clean_and_distinct(language: str) -> None:
    assert unicodedata.is_normalized("NFC", text(language))
    for row in rows(language):
        for value in row.values():
            assert value
            assert value == value.strip()
            assert not re.search(r"[^\S\n ]|[\u200b\ufeff\ufffd]|[ ]\n|\n{3}", value), row["id"]
    for column in ("id", "question"):
        seen = Counter(re.sub(r"\W+", "", row[column]).casefold() for row in rows(language))
        assert [value for value, count in seen.items() if count > 1] == []


@pytest.mark.parametrize("language", ["ko", "en"])
def test_ten_categories_of_at_least_twelve(language: str) -> None:
    counts = Counter(row["category"] for row in rows(language))
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 12
    prefixes = {(row["category"], row["id"].partition("-")[0]) for row in rows(language)}
    assert len(prefixes) == len({prefix for _, prefix in prefixes}) == len(CATEGORIES)


def test_twins_agree() -> None:
    korean, english = rows("ko"), rows("en")
    assert [(row["id"], row["category"]) for row in korean] == [(row["id"], row["category"]) for row in english]
    # A task has one name in each language: as many pairs of names as names on either side.
    pairs = {(ko["task"], en["task"]) for ko, en in zip(korean, english, strict=True)}
    assert len(pairs) == len({ko for ko, _ in pairs}) == len({en for _, en in pairs})


def test_layout_of_the_given_material_is_the_same_in_both_twins() -> None:
    for ko, en in zip(rows("ko"), rows("en"), strict=True):
        for mark in ("```", "|", "\n- ", "\n1. ", "\n4. "):
            assert ko["question"].count(mark) == en["question"].count(mark), (ko["id"], mark)


def test_each_file_speaks_its_language() -> None:
    korean, english = rows("ko"), rows("en")
    assert hangul_share("".join(row["question"] for row in korean)) > 0.9
    assert hangul_share("".join(row["question"] for row in english)) < 0.05
    for ko, en in zip(korean, english, strict=True):
        assert hangul_share(ko["task"]) >= 0.5
        assert hangul_share(en["task"]) == 0
        # The request comes first, in the file's language even where the given text is not.
        assert hangul_share(ko["question"].partition("\n\n")[0]) > 0.5, ko["id"]
        assert hangul_share(en["question"].partition("\n\n")[0]) < 0.1, en["id"]
