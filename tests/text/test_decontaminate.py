"""Decontamination: planted evaluation items are found however they are written, and other text is left alone."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from chatbaker.errors import ChatBakerError
from chatbaker.text.decontaminate import Index, read_items
from chatbaker.text.korean import normalize

KO_PASSAGE = (
    "저녁이 되자 등대지기는 낡은 사다리를 타고 올라가 커다란 유리 등에 불을 붙였다. 먼바다에서 돌아오던 오징어잡이 배 "
    "세 척이 그 빛을 보고 뱃머리를 돌렸고, 항구에 모인 가족들은 손을 흔들며 이름을 불렀다."
)
EN_PASSAGE = (
    "The clockmaker's daughter kept a ledger of every bell in the town, noting its weight, its cracks, and the year in "
    "which it was cast. When the flood carried off the oldest, she was the only person who could say what it weighed."
)
RECORDS: dict[str, list[dict[str, Any]]] = {
    "ko_reading": [{"paragraph": KO_PASSAGE, "question": "배는 세 척이었나?", "label": 1}],
    "en_reading": [{"id": "a8f0-77c2-11d4-bb01-5e9f-0c44d1e2", "passage": EN_PASSAGE, "question": "Who knew?"}],
    "ko_cause": [{"premise": "할머니가 우산을 펼쳤다.", "first": "소나기가 쏟아졌다.", "second": "버스가 멈췄다."}],
    "en_choice": [
        {
            "stem": "What does a heron use to catch fish?",
            "choices": {"text": ["its long sharp beak", "its wet tail feathers"], "label": ["A", "B"]},
        }
    ],
    "ko_short": [{"sentence": "정말 잘 샀어요"}],
}
FILLER = {
    "ko": "이 문서는 시험과 관계없는 이야기다. 동생은 아침마다 강가를 달리고 나는 창가에서 책을 읽는다. 비 오면 쉰다. ",
    "en": "This document has nothing to do with a test. My brother runs by the river and I read at the window. ",
}


def items() -> list[tuple[str, str, list[str]]]:
    return [
        (name, f"{name}/test.jsonl:{line}", [value for value in record.values() if isinstance(value, str)])
        for name, records in RECORDS.items()
        for line, record in enumerate(records, 1)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, records in RECORDS.items():
        (root / "eval" / name).mkdir(parents=True)
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (root / "eval" / name / "test.jsonl").write_text(lines, encoding="utf-8")
    (root / "eval" / "README.md").write_text("about the sets", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def index(data: Path) -> Index:
    return Index.build(read_items(["eval/*"], data))


def plant(text: str, language: str) -> str:
    return normalize(FILLER[language] * 5 + "\n" + text + "\n" + FILLER[language] * 5)


def with_words_changed(text: str) -> str:
    words = text.split()
    for place in (3, len(words) // 2, len(words) - 4):
        words[place] = "망고" if "다" in text else "mango"
    return " ".join(words)


WRITINGS = {
    "verbatim": str,
    "no space": lambda text: "".join(text.split()),
    "more space": lambda text: "\n ".join(text),
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "case": str.upper,
    "punctuation": lambda text: "**" + text.replace(".", " ;").replace(",", " /") + "**",
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "words changed": with_words_changed,
    "half of it": lambda text: text[: int(len(text) * 0.6)],
}


@pytest.mark.parametrize("writing", WRITINGS)
@pytest.mark.parametrize(("name", "passage"), [("ko_reading", KO_PASSAGE), ("en_reading", EN_PASSAGE)])
def test_a_planted_passage_is_found(index: Index, name: str, passage: str, writing: str) -> None:
    leak = index.leak(plant(WRITINGS[writing](passage), name[:2]))
    assert leak is not None
    assert (leak.sets, leak.item) == ([name], f"{name}/test.jsonl:1")
    if writing in ("words changed", "half of it"):
        assert 0.5 <= leak.share < 0.95
    else:
        assert leak.share == 1


@pytest.mark.parametrize("name", ["ko_cause", "en_choice"])
@pytest.mark.parametrize(
    "label", ["{})", "보기 {}: 잘 읽고 생각해 보라. ", "Now look at answer number {} of this question: "]
)
def test_short_strings_are_found_together_and_between_labels(index: Index, name: str, label: str) -> None:
    record = RECORDS[name][0]
    strings = [record["stem"], *record["choices"]["text"]] if "stem" in record else list(record.values())
    leak = index.leak(plant("\n".join(label.format(number) + text for number, text in enumerate(strings)), name[:2]))
    assert leak is not None
    assert leak.sets == [name]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "짧다",
        "!?",
        *FILLER.values(),
        KO_PASSAGE[:30],
        EN_PASSAGE[:45],
        RECORDS["ko_short"][0]["sentence"],
        RECORDS["ko_cause"][0]["premise"],
        RECORDS["en_reading"][0]["id"],
    ],
)
def test_other_text_and_small_pieces_are_left_alone(index: Index, text: str) -> None:
    assert index.leak(text) is None
    assert index.leak(plant(text, "ko")) is None


@pytest.mark.parametrize("passage", [KO_PASSAGE, EN_PASSAGE])
def test_an_item_scattered_over_a_document_is_no_leak(index: Index, passage: str) -> None:
    words = passage.split()
    pieces = [" ".join(words[at : at + 5]) for at in range(0, len(words), 5)]
    assert index.leak(normalize("\n".join(piece + "\n" + FILLER["ko"] * 2 for piece in pieces))) is None


def test_words_in_another_order_are_no_leak(index: Index) -> None:
    for passage in (KO_PASSAGE, EN_PASSAGE):
        words = passage.split()
        random.Random(1).shuffle(words)
        assert index.leak(" ".join(words)) is None


def test_every_set_with_an_item_in_the_document_is_named(index: Index) -> None:
    leak = index.leak(normalize(EN_PASSAGE[:150] + FILLER["en"] + KO_PASSAGE))
    assert leak is not None
    assert leak.sets == ["en_reading", "ko_reading"]
    assert (leak.item, leak.share) == ("ko_reading/test.jsonl:1", 1)  # all of it is there
    leak = index.leak(normalize(EN_PASSAGE + FILLER["ko"]))  # its end is not that of the document
    assert leak is not None
    assert leak.share == 1


def test_an_item_of_two_sets_counts_for_both() -> None:
    index = Index.build(
        [("first", "first/a.jsonl:1", [EN_PASSAGE]), ("second", "second/b.jsonl:9", [EN_PASSAGE.upper()])]
    )
    leak = index.leak(EN_PASSAGE)
    assert leak is not None
    assert leak.sets == ["first", "second"]


def test_a_sentence_of_many_items_is_a_template() -> None:
    template = "Read the following text with care and then choose the one answer that fits it best."
    names = [
        "amber",
        "birch",
        "cedar",
        "daisy",
        "ember",
        "fjord",
        "grape",
        "hazel",
        "ivory",
        "juniper",
        "kelp",
        "lilac",
    ]
    questions = [
        f"{template} Why does the {name} merchant of {name} street count {name} coins twice?" for name in names
    ]
    index = Index.build(("made", f"made/test.jsonl:{line}", [question]) for line, question in enumerate(questions, 1))
    assert index.leak(f"{template} This is how the page begins.") is None
    leak = index.leak(f"Somebody wrote: {questions[4]}")
    assert leak is not None
    assert leak.item == "made/test.jsonl:5"


def test_a_paragraph_of_many_questions_is_one_item() -> None:
    questions = [f"{number}번째로 물어볼 것은 무엇인가?" for number in range(30)]
    index = Index.build(("ko", f"ko/test.jsonl:{line}", [KO_PASSAGE, text]) for line, text in enumerate(questions, 1))
    leak = index.leak(plant(KO_PASSAGE, "ko"))
    assert leak is not None
    assert leak.item == "ko/test.jsonl:1"


@pytest.mark.parametrize(
    "text",
    [
        "제12회 KOREA 국제 Robot 대회에서 3위를 한 팀은 ROS2와 모터를 썼다고 straße 신문이 2031년 4월에 전했다.",
        " ".join(chr(0x20000 + number * 7) for number in range(20)),  # hanja beyond 16 bits
    ],
)
def test_mixed_scripts_and_rare_letters(text: str) -> None:
    index = Index.build([("mixed", "mixed/a.jsonl:1", [unicodedata.normalize("NFD", text)])])
    for writing in (text.lower(), text.replace(" ", ""), unicodedata.normalize("NFD", text)):
        leak = index.leak(normalize(f"{FILLER['ko']}😀 {writing} 👍🏽{FILLER['en']}"))
        assert leak is not None
        assert leak.share == 1


def test_a_phrase_that_an_item_repeats_counts_once() -> None:
    item = "there could be a storm, there could be a flood, there could be a fire, there could be a quake"
    index = Index.build([("en", "en/a.jsonl:1", [item])])
    assert index.leak("They said that there could be a delay, and they were right.") is None
    assert index.leak(item) is not None


def test_a_string_within_another_of_its_record_is_no_item() -> None:
    start = EN_PASSAGE[:90]
    assert len(Index.build([("en", "en/a.jsonl:1", [start, EN_PASSAGE, start.upper()])]).names) == 1


def test_a_saved_index_is_the_same(index: Index, tmp_path: Path) -> None:
    index.save(tmp_path / "one")
    index.save(tmp_path / "one")  # over the old one
    Index.build(items()).save(tmp_path / "two")
    Index.build(items()).save(tmp_path / "three")
    loaded = Index.load(tmp_path / "one")
    for text in (plant(KO_PASSAGE, "ko"), FILLER["en"], plant(with_words_changed(EN_PASSAGE), "en")):
        assert loaded.leak(text) == index.leak(text)
    for path in (tmp_path / "two").iterdir():
        assert path.read_bytes() == (tmp_path / "three" / path.name).read_bytes()


def test_nothing_long_enough(data: Path) -> None:
    with pytest.raises(ChatBakerError, match="no evaluation item is long enough"):
        Index.build(read_items(["eval/ko_short"], data))
    with pytest.raises(ChatBakerError, match="no evaluation item is long enough"):
        Index.build([])


def test_items_are_read_from_folders_and_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "eval" / "one").mkdir(parents=True)
    (tmp_path / "eval" / "two").mkdir()
    line = json.dumps({"q": EN_PASSAGE, "meta": {"tags": ["two words", "label"], "n": None}}).encode()
    (tmp_path / "eval" / "one" / "train.jsonl.zst").write_bytes(zstandard.compress(line + b"\n\n" + line))
    parquet.write_table(pyarrow.table({"문장": [KO_PASSAGE], "n": [3]}), tmp_path / "eval" / "one" / "test.parquet")
    (tmp_path / "eval" / "one" / "README.md").write_text("not an item of it", encoding="utf-8")
    csv = '\ufeffid,question\n1,"첫 줄이 있고\n둘째 줄이 있다, 쉼표도"\n2,"say ""two words"""\n'
    (tmp_path / "eval" / "two" / "judge.csv").write_text(csv, encoding="utf-8")
    found = list(read_items(["eval/o*", "eval/two/*.csv"], tmp_path))
    assert sorted(found) == [
        ("one", "one/test.parquet:1", [KO_PASSAGE]),
        ("one", "one/train.jsonl.zst:1", [EN_PASSAGE, "two words"]),
        ("one", "one/train.jsonl.zst:3", [EN_PASSAGE, "two words"]),
        ("two/judge.csv", "two/judge.csv:1", ["첫 줄이 있고\n둘째 줄이 있다, 쉼표도"]),
        ("two/judge.csv", "two/judge.csv:2", ['say "two words"']),
    ]


def test_a_long_csv_with_line_breaks_in_its_fields(tmp_path: Path) -> None:
    rows = [f'{number},"{"말이 길다. " * 40}\n{number}번"' for number in range(3000)]
    (tmp_path / "long.csv").write_text("id,question\n" + "\n".join(rows), encoding="utf-8")
    assert [strings[0][-6:] for _, _, strings in read_items(["long.csv"], tmp_path)][-2:] == ["\n2998번", "\n2999번"]


@pytest.mark.parametrize("name", ["bad.csv", "bad.parquet", "bad.jsonl"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'a,b\n1,2,3\n"\xff\xfe')
    with pytest.raises(ChatBakerError, match=name):
        list(read_items([name], tmp_path))


@pytest.mark.parametrize("pattern", ["eval/none_*", "eval/README.md", "elsewhere"])
def test_a_glob_that_finds_nothing_to_read_is_an_error(data: Path, pattern: str) -> None:
    with pytest.raises(ChatBakerError, match="nothing to read matches"):
        list(read_items([pattern], data))
