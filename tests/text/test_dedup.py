"""Duplicates over a whole corpus: which are found, which are not made up, and that no order or kill changes the result.

The texts are of made-up words, so that two of them have nothing in common by chance.
"""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from chatbaker import made
from chatbaker.text import dedup
from chatbaker.text.korean import normalize

SYLLABLES = (
    "가고기나너누는다대도들라로를리마모무바보부사서수시아어에여오요우원위이인일자장저전정제조주지진차초치카타파하한해호"
)


def words(lang: str, count: int, rng: random.Random) -> list[str]:
    letters, sizes = (SYLLABLES, (1, 2, 2, 3, 4)) if lang == "ko" else ("abcdefghiklmnoprstuvwy", (2, 3, 4, 5, 7, 9))
    return ["".join(rng.choices(letters, k=rng.choice(sizes))) for _ in range(count)]


def prose(lang: str, size: int, rng: random.Random) -> str:
    """About `size` characters, in sentences."""
    text = ""
    while len(text) < size:
        text += " ".join(words(lang, rng.randint(5, 12), rng)).capitalize() + ". "
    return text[:size]


def edited(text: str, share: float, lang: str, rng: random.Random) -> str:
    parts = text.split(" ")
    for i in rng.sample(range(len(parts)), round(share * len(parts))):
        (other,) = words(lang, 1, rng)
        parts[i] = rng.choice((other, "", f"{parts[i]} {other}"))
    return " ".join(parts)


def sign(folder: Path, tasks: Sequence[Sequence[str]], paragraph: int = 60) -> None:
    for task, texts in enumerate(tasks):
        signer = dedup.Signer(paragraph)
        for text in texts:
            signer.sign(text)
        signer.write(folder, task)


def match(folder: Path, threshold: float | None = 0.6, world: int = 1, copies: int = 0) -> None:
    for rank in range(world):
        dedup.Corpus(folder, threshold).find_pairs(rank, world)
    dedup.Corpus(folder, threshold).settle(copies)


Places = dict[tuple[int, int], tuple[int, int, bool]]


def drops(folder: Path, task: int) -> tuple[Places, set[tuple[int, int, int]]]:
    """{(task, index): (task and index of the one that stays, same text)} and {(task, index, line)}."""
    with np.load(folder / f"{task:06d}.drops.npz") as saved:
        documents, lines = saved["documents"].tolist(), saved["lines"].tolist()
    assert documents == sorted(documents)
    assert lines == sorted(lines)
    gone = {(task, index): (other, stays, bool(same)) for index, other, stays, same in documents}
    return gone, {(task, line >> 32, line & 0xFFFFFFFF) for line in lines}


def found(folder: Path, texts: Sequence[str], threshold: float | None = 0.6) -> dict[int, tuple[int, bool]]:
    """What goes of texts that are all in one task: {index: (index of the one that stays, same text)}."""
    sign(folder, [texts])
    match(folder, threshold)
    return {index: (stays, same) for (_, index), (_, stays, same) in drops(folder, 0)[0].items()}


# ---- the same text ----------------------------------------------------------------------------------------------

SENTENCES = {
    "ko": "봄이 오면 마을 어귀의 느티나무에 새잎이 돋고, 아이들은 3학년이 되어 ABC를 배운다! 漢字도 조금.",
    "en": "In spring the old elm at the end of the village grows new leaves, and the 3rd form learns its ABC!",
}


@pytest.mark.parametrize("repeat", [1, 5], ids=["short", "long"])
@pytest.mark.parametrize("lang", ["ko", "en"])
def test_only_letters_and_digits_count(lang: str, repeat: int, tmp_path: Path) -> None:
    text = "\n".join([SENTENCES[lang]] * repeat)
    same = [
        re.sub(r"\s", "", text),
        " ".join(text),
        text.replace(",", " —").replace(".", "…") + " 🙂",
        text.swapcase(),
        "\ufeff" + text.replace(" ", "\u3000\n"),
        normalize(unicodedata.normalize("NFD", text)),
    ]
    others = [text.replace("3", "4"), text[:-6]]
    assert found(tmp_path, [text, *same, *others], None) == dict.fromkeys(range(1, 7), (0, True))


def test_same_documents_go_whatever_the_threshold_and_the_first_of_all_tasks_stays(tmp_path: Path) -> None:
    texts = ["짧은 글", prose("ko", 900, random.Random(1)), prose("en", 900, random.Random(2))]
    for threshold in (None, 0.6, 1.0):
        folder = tmp_path / str(threshold)
        sign(folder, [[], texts[:1], texts[::-1], texts + texts])
        match(folder, threshold, world=3)
        assert drops(folder, 0) == drops(folder, 1) == ({}, set())
        assert drops(folder, 2)[0] == {(2, 2): (1, 0, True)}
        last = {0: (1, 0), 1: (2, 1), 2: (2, 0)}
        assert drops(folder, 3)[0] == {(3, i): (*last[i % 3], True) for i in range(6)}


def test_text_without_letters_is_no_duplicate(tmp_path: Path) -> None:
    assert found(tmp_path, ["", "!?", "🙂🙂", "\n\n", "— —", "..."]) == {}


# ---- nearly the same text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_copies_with_ten_percent_of_the_words_edited_are_found_and_nothing_else(lang: str, tmp_path: Path) -> None:
    rng = random.Random(lang)
    texts = [prose(lang, int(200 * 25 ** rng.random()), rng) for _ in range(150)]
    copies = [edited(text, 0.1, lang, rng) for text in texts]
    order = rng.sample(range(300), 300)
    gone = found(tmp_path, [(texts + copies)[i] for i in order])
    assert all(order[i] % 150 == order[stays] % 150 and stays < i and not same for i, (stays, same) in gone.items())
    assert len(gone) >= 0.97 * 150
    assert len(found(tmp_path / "exact", [(texts + copies)[i] for i in order], None)) == 0


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_pages_with_a_shared_frame_stay(lang: str, tmp_path: Path) -> None:
    rng = random.Random(lang)
    head, foot = prose(lang, 500, rng), prose(lang, 500, rng)
    assert found(tmp_path, [f"{head}\n{prose(lang, 800, rng)}\n{foot}" for _ in range(300)]) == {}


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_texts_of_the_same_few_patterns_stay(lang: str, tmp_path: Path) -> None:
    assert found(tmp_path, [" ".join(made.documents(seed, 8, lang)) for seed in range(150)]) == {}


def test_a_syllable_is_one_letter_not_three(tmp_path: Path) -> None:
    """Another final consonant in each fourth syllable leaves a sixth of the 3-grams; of jamo, half of them."""
    texts = ["".join(words("ko", 500, random.Random(seed))) for seed in range(20)]

    def changed(step: int) -> list[str]:
        return ["".join(chr(ord(c) + 4) if i % step == 0 else c for i, c in enumerate(text)) for text in texts]

    assert found(tmp_path / "4", texts + changed(4), 0.3) == {}
    assert found(tmp_path / "24", texts + changed(24), 0.6) == {20 + i: (i, False) for i in range(20)}


def test_short_texts_are_the_same_or_stay(tmp_path: Path) -> None:
    review = "배우들 연기가 정말 좋았고 음악도 마음에 들었습니다. 다음 편도 꼭 극장에서 보고 싶어요"
    others = [review.replace("좋았고", "나빴고"), review + "!!", review + " ㅋㅋ", review.replace("음악", "화면")]
    assert found(tmp_path, [review, *others], 0.3) == {2: (0, True)}


def test_a_chain_of_likenesses_does_not_carry(tmp_path: Path) -> None:
    """Each text has 0.74 in common with the one before it, and 0.54 with the one before that."""
    stream = "".join(words("ko", 3000, random.Random(4)))
    gone = found(tmp_path, [stream[i : i + 1000] for i in range(0, 3000, 150)], 0.64)
    assert gone == {i: (i - 1, False) for i in range(1, 20, 2)}


def test_a_repeated_syllable_is_a_text_too(tmp_path: Path) -> None:
    texts = ["ㅋ" * 300, "ㅋ" * 500, "하" * 300, "아하" * 300, prose("ko", 300, random.Random(5))]
    assert found(tmp_path, texts) == {1: (0, False)}


# ---- paragraphs -------------------------------------------------------------------------------------------------


def test_a_paragraph_of_many_documents_stays_in_the_first_that_stays(tmp_path: Path) -> None:
    rng = random.Random(6)
    often, seldom, short = (prose("ko", size, rng) for size in (200, 200, 20))
    texts = [f"{prose('ko', 900, rng)}\n\n  {often.upper()}\n{short}" for _ in range(6)]
    texts[0] = texts[0].replace(often, "다른 끝")
    texts[1] = edited(texts[0], 0.05, "ko", rng) + "\n" + often  # the first with the paragraph, but it goes itself
    texts[4] = f"{often}\n{texts[4]}\n{seldom}"
    texts[5] += f"\n{seldom}"
    sign(tmp_path, [texts[:3], texts[3:]], paragraph=40)
    for copies, wanted in ((4, set()), (3, {(1, 0, 2), (1, 1, 0), (1, 1, 3), (1, 2, 2)}), (0, set())):
        match(tmp_path, copies=copies)
        (gone, first), (none, second) = drops(tmp_path, 0), drops(tmp_path, 1)
        assert (gone, none) == ({(0, 1): (0, 0, False)}, {})
        assert first | second == wanted
    match(tmp_path, copies=1)
    assert drops(tmp_path, 1)[1] == {(1, 0, 2), (1, 1, 0), (1, 1, 3), (1, 2, 2), (1, 2, 4)}


def test_the_first_document_keeps_all_copies_of_its_paragraph(tmp_path: Path) -> None:
    line, *rest = (prose("en", size, random.Random(size)) for size in (200, 900, 901, 902))
    sign(tmp_path, [[f"{line}\n{line}\n{rest[0]}\n{line}", f"{rest[1]}\n{line}\n{line}"], [rest[2]]])
    match(tmp_path, copies=1)
    assert (drops(tmp_path, 0)[1], drops(tmp_path, 1)[1]) == ({(0, 1, 1), (0, 1, 2)}, set())


# ---- the same result in any order of work -----------------------------------------------------------------------


def mixed() -> list[str]:
    """Documents of all sizes with copies of all kinds and shared paragraphs, in no order."""
    rng = random.Random(10)
    shared = [prose("ko", 150, rng) for _ in range(3)]
    texts = [prose(lang, rng.choice((30, 300, 3000)), rng) for lang in ("ko", "en") for _ in range(60)]
    texts += [edited(text, 0.05, "ko", rng) for text in texts[:40]] + texts[100:]
    texts = [f"{text}\n{rng.choice(shared)}" if rng.random() < 0.4 else text for text in texts]
    rng.shuffle(texts)
    return texts


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Places, set[tuple[int, int, int]]]:
    folder = tmp_path_factory.mktemp("whole")
    sign(folder, [mixed()])
    match(folder, copies=3)
    gone, lines = drops(folder, 0)
    assert len(gone) > 30
    assert len({same for _, _, same in gone.values()}) == 2
    assert len(lines) > 20
    return gone, lines


@pytest.mark.parametrize(("tasks", "world", "block"), [(1, 3, 1), (4, 1, 1 << 10), (7, 5, 1 << 20)])
def test_tasks_and_batches_do_not_matter(
    tasks: int, world: int, block: int, whole: tuple[Places, set[tuple[int, int, int]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(dedup, "BLOCK", block)
    monkeypatch.setattr(dedup, "PART", 20)
    texts = mixed()
    starts = [len(texts) * task // tasks for task in range(tasks + 1)]
    sign(tmp_path, [texts[a:b] for a, b in zip(starts, starts[1:], strict=False)])
    match(tmp_path, world=world, copies=3)
    gone, lines = {}, set()
    for task in range(tasks):
        mine, places = drops(tmp_path, task)
        gone |= {(0, starts[t] + i): (0, starts[other] + j, same) for (t, i), (other, j, same) in mine.items()}
        lines |= {(0, starts[t] + i, line) for t, i, line in places}
    assert (gone, lines) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
left = int(sys.argv[2])
real = Path.replace
def replace(self, target):  # every finished file is put in place by a rename: die before the n-th
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
Path.replace = replace
from tests.text import test_dedup
test_dedup.everything(Path(sys.argv[1]))
"""


def everything(folder: Path) -> None:
    texts = mixed()
    sign(folder, [texts[:90], texts[90:]])
    match(folder, world=2, copies=3)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.np[yz]")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    everything(folder)
    return content(folder)


@pytest.mark.parametrize("renames", [1, 9, 11], ids=["sign", "find_pairs", "settle"])
def test_a_killed_phase_done_again_leaves_the_same_files(
    renames: int, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(renames)]
    ended = subprocess.run(command, timeout=60, cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    assert len(content(tmp_path)) == renames
    assert len(undisturbed) == 12
    everything(tmp_path)
    assert content(tmp_path) == undisturbed
