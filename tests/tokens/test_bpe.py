"""The tokenizer: exact size, special tokens out of reach, every text back unchanged, sampling and fertility."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from chatbaker import recipe as recipes
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import write_jsonl
from chatbaker.rundir import RunDir, read_json, write_json
from chatbaker.tokens import bpe, dialog

KO = "안녕하세요 오늘 날씨가 좋아서 공원에서 빵을 먹었습니다 내일은 비가 온다고 합니다 집으로 왔어요"
EN = "hello the weather is lovely today and we walked in the park, don't worry; they're baking bread at home"
NASTY = [
    "", " ", "\n\n \t x\n", "가나다 값싼 닭볶음탕을 읽었습니다.", "I'm, you'LL   see: 12345", "漢字かな", "a\u0301b",
    "👨\u200d👩\u200d👧🇰🇷❤️", "한글English섞기", "ㅋㅋㅋ ㅠㅠ", "\u3000전각 공백", "def f(x):\n    return x ** 2\n",
    "हिन्दी العربية", "\x00\x7f\u200b\ufeff", "<|im_start|>system\n명령<|im_end|><|endoftext|>", "<|im_end|", "\ufffd",
]  # fmt: skip


def words(language: str, count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices((KO if language == "ko" else EN).split(), k=12)) + "." for _ in range(count)]


def corpus() -> list[str]:
    return words("ko", 300, 1) + words("en", 300, 2)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bpe.train(iter(corpus()), 400)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_the_vocabulary_is_exactly_as_asked_and_starts_with_the_special_tokens(tokenizer: Tokenizer) -> None:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    assert sorted(vocabulary.values()) == list(range(400))
    assert [tokenizer.token_to_id(token) for token in dialog.SPECIAL_TOKENS] == [0, 1, 2]
    assert sum(len(token) == 1 for token in vocabulary) == 256


@pytest.mark.parametrize("text", NASTY)
def test_every_text_comes_back_unchanged_in_nfc(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(ids(tokenizer, text), skip_special_tokens=False) == unicodedata.normalize("NFC", text)
    assert ids(tokenizer, unicodedata.normalize("NFD", text)) == ids(tokenizer, unicodedata.normalize("NFC", text))


def test_random_characters_come_back_unchanged(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    pools: list[Sequence[int]] = [
        range(0xAC00, 0xD7A4),
        range(0x20, 0x7F),
        range(0x1F300, 0x1F700),
        range(0x4E00, 0x9FFF),
        [0x200D, 10, 13, 32],
    ]
    for _ in range(300):
        text = unicodedata.normalize("NFC", "".join(chr(rng.choice(rng.choice(pools))) for _ in range(40)))
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_typed_special_tokens_are_ordinary_text(tokenizer: Tokenizer) -> None:
    for text in ("".join(dialog.SPECIAL_TOKENS), "x<|im_end|>y", "<|im_start|> 가"):
        assert min(ids(tokenizer, text)) >= len(dialog.SPECIAL_TOKENS)


def test_training_text_full_of_special_tokens_makes_no_second_one() -> None:
    texts = [f"{text} <|im_end|><|im_end|> <|endoftext|>\n" for text in corpus()]
    vocabulary = bpe.train(iter(texts), 420).get_vocab()
    assert sorted(token for token in vocabulary if re.search(r"<\|.*\|>", token)) == sorted(dialog.SPECIAL_TOKENS)


def test_digits_stand_alone_and_letters_stay_apart_from_signs(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.pre_tokenizer.pre_tokenize_str("They're 123, ok!\n\n  끝")
    assert [span for _, span in pieces] == [
        (0, 4), (4, 7), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12), (12, 15), (15, 18), (18, 19), (19, 21),
    ]  # fmt: skip


def test_training_twice_gives_the_same_file() -> None:
    assert bpe.train(iter(corpus()), 400).to_str() == bpe.train(iter(corpus()), 400).to_str()


def test_a_vocabulary_larger_than_the_text_allows_says_what_it_gives() -> None:
    with pytest.raises(ChatBakerError, match=r"tokenizer\.vocab_size.*not 60,000") as caught:
        bpe.train(iter(corpus()), 60_000)
    assert caught.value.hint is not None
    size = int(caught.value.hint.split("vocab_size=")[1].split()[0])
    assert bpe.train(iter(corpus()), size).get_vocab_size() == size


def entry(source: str, language: str, documents: int, size: int) -> dict[str, Any]:
    return {"source": source, "language": language, "licence": "CC0", "documents": documents, "bytes": size}


LEDGER = [entry("a", "ko", 1000, 600_000), entry("b", "ko", 1000, 200_000), entry("c", "en", 500, 100_000)]


def shares(**section: Any) -> dict[str, float]:
    return bpe.sample_shares(LEDGER, recipes.Tokenizer(**section))


def test_shares_give_each_language_its_part_of_the_bytes() -> None:
    assert shares() == {"ko": 1.0, "en": 1.0}
    even = shares(balance={"ko": 1, "en": 1})
    assert even == {"ko": pytest.approx(0.125), "en": pytest.approx(1.0)}
    mostly_korean = shares(balance={"ko": 0.9, "en": 0.1})
    assert mostly_korean["ko"] == 1.0
    assert mostly_korean["ko"] * 800_000 == pytest.approx(9 * mostly_korean["en"] * 100_000)


def test_shares_keep_to_sample_docs_and_to_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(sample_docs=250) == {"ko": pytest.approx(0.1), "en": pytest.approx(0.1)}
    even = shares(balance={"ko": 0.5, "en": 0.5}, sample_docs=300)
    assert 2000 * even["ko"] + 500 * even["en"] == pytest.approx(300)
    assert 800_000 * even["ko"] == pytest.approx(100_000 * even["en"])
    monkeypatch.setattr(bpe, "SAMPLE_BYTES", 90_000)
    assert shares() == {"ko": pytest.approx(0.1), "en": pytest.approx(0.1)}


@pytest.mark.parametrize("balance", [{"ko": 1}, {"ko": 0.5, "en": 0.5, "ja": 0.1}, {"ko": 1, "en": 0}])
def test_a_balance_that_does_not_fit_the_languages(balance: dict[str, float]) -> None:
    with pytest.raises(ChatBakerError, match=r"tokenizer\.balance.*en, ko"):
        shares(balance=balance)


TRAIN = {"ko-a": words("ko", 400, 3), "en-a": words("en", 400, 4)}
HELD_OUT = {"ko-a": ["안녕하세요 날씨가 👋 좋아요"], "en-a": words("en", 20, 6)}


def run_folder(root: Path) -> RunDir:
    run = RunDir(root)
    ledger = []
    for source, texts in TRAIN.items():
        ledger.append(entry(source, source[:2], len(texts), sum(len(text.encode()) for text in texts)))
        for folder, content in (("documents", texts), ("validation", HELD_OUT[source])):
            with write_jsonl(run.path("clean", folder, source, "00000.jsonl.zst")) as write:
                for text in content:
                    write({"text": text, "source": source, "lang": source[:2], "licence": "CC0"})
    write_json(run.path("clean", "ledger.json"), ledger)
    return run


def make(**section: Any) -> recipes.Recipe:
    return recipes.parse({"name": "t", "tokenizer": {"vocab_size": 400} | section}, "test")


def test_the_sample_is_spread_over_the_documents_and_long_ones_are_cut(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    ledger = read_json(run.path("clean", "ledger.json"))
    sampled = list(bpe.sample(run.path("clean", "documents"), ledger, {"ko": 0.25, "en": 0.0}, None))
    assert sampled == TRAIN["ko-a"][3::4]
    with write_jsonl(run.path("clean", "documents", "ko-a", "00000.jsonl.zst")) as write:
        write({"text": "가" * (2 * bpe.PIECE + 5)})
    pieces = list(bpe.sample(run.path("clean", "documents"), ledger[:1], {"ko": 1.0}, None))
    assert [len(piece) for piece in pieces] == [bpe.PIECE, bpe.PIECE, 5]


def test_the_stage_writes_a_folder_that_transformers_reads_alike(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    run = run_folder(tmp_path)
    bpe.run(make(balance={"ko": 0.5, "en": 0.5}), run)
    ours, theirs = bpe.load_tokenizer(run.path("tokenizer")), AutoTokenizer.from_pretrained(run.path("tokenizer"))
    assert (theirs.eos_token_id, theirs.pad_token_id) == (2, 0)
    for text in NASTY[:-3]:
        assert theirs(text)["input_ids"] == ids(ours, text)
        assert theirs.decode(ids(ours, text)) == ours.decode(ids(ours, text))
    messages = [{"role": "system", "content": "짧게"}, {"role": "user", "content": "안녕? hello"}]
    rendered, _ = dialog.encode(ours, dialog.CHATML.segments(messages, generate=True))
    assert theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == rendered


def test_fertility_is_counted_on_held_out_text(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    bpe.run(make(), run)
    fertility = read_json(run.path("tokenizer", "fertility.json"))
    (text,) = HELD_OUT["ko-a"]
    tokens = len(ids(bpe.load_tokenizer(run.path("tokenizer")), text))
    assert fertility["sources"]["ko-a"] == fertility["languages"]["ko"]
    assert fertility["languages"]["ko"] == {
        "bytes_per_token": round(len(text.encode()) / tokens, 3),
        "characters_per_token": round(len(text) / tokens, 3),
        "tokens_per_word": round(tokens / 4, 3),
        "tokens": tokens,
    }


def test_damaged_input_and_failed_training_leave_the_earlier_tokenizer(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    bpe.run(make(), run)
    before = run.path("tokenizer", "tokenizer.json").read_bytes()
    with pytest.raises(ChatBakerError, match=r"vocab_size"):
        bpe.run(make(vocab_size=60_000), run)
    documents = run.path("clean", "documents", "ko-a", "00000.jsonl.zst")
    documents.write_bytes(documents.read_bytes()[:-20])
    with pytest.raises(ChatBakerError, match=r"ko-a.00000\.jsonl\.zst.*cut short"):
        bpe.run(make(), run)
    assert run.path("tokenizer", "tokenizer.json").read_bytes() == before


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChatBakerError, match=r"tokenizer\.json: no such file"):
        bpe.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model":', encoding="utf-8")
    with pytest.raises(ChatBakerError, match=r"tokenizer\.json: not a tokenizer"):
        bpe.load_tokenizer(tmp_path)


def test_the_stage_before_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChatBakerError, match="chatbaker clean"):
        bpe.run(make(), RunDir(tmp_path))
