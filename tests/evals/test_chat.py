"""The suite `chat`, over an engine that says what it is told to."""

import json
from collections.abc import Callable, Iterator

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.evals import chat
from chatbaker.evals.chat import SAMPLING, repeats, share
from chatbaker.evals.ledger import Ledger
from chatbaker.evals.register import register_of
from chatbaker.infer.engine import Chunk, FinishReason, Messages, Sampling, Usage

Answer = Callable[[Messages], str]


class Scripted:
    """Answers with a function of the conversation; it does not stop where that ends in a cut-off mark."""

    name = "scripted"

    def __init__(self, answer: Answer, context: int | None = 512) -> None:
        self.answer, self.context, self.asked = answer, context, []

    def count(self, messages: Messages) -> int:
        return 1

    def stream(self, messages: Messages, sampling: Sampling, debug: int = 0) -> Iterator[Chunk]:
        assert sampling == SAMPLING
        self.asked.append(messages)
        text = self.answer(messages)
        reason: FinishReason = "length" if text.endswith("…") else "stop"
        yield Chunk(text[:2], Usage(completion_tokens=1))
        yield Chunk(text[2:], Usage(completion_tokens=2, finish_reason=reason))

    def close(self) -> None: ...


def examine(engine, limit=None, ledger=None, source="a"):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "open_engine", lambda *_, **__: engine)
        return chat.examine(ledger or Ledger(), source, "http://model.test/v1", "cpu", limit)


def korean(messages: Messages) -> bool:
    return not messages[-1]["content"].isascii()


def test_a_polite_model_keeps_one_register_of_two():
    found = examine(Scripted(lambda messages: "네, 알겠습니다." if korean(messages) else "Sure, I can help."))
    json.dumps(found, ensure_ascii=False)
    assert found["items"] == len(found["answers"]) == 80
    assert found["register"]["kept"]["value"] == 0.5
    assert found["register"]["kept"]["n"] == 60
    assert found["register"]["formal"]["value"] == 1
    assert found["register"]["informal"]["value"] == 0
    assert found["stop_rate"]["value"] == 1
    assert found["repetition_rate"]["value"] == 0
    assert (found["empty"], found["wrong_language"], found["failed"]) == (0, 0, [])
    assert found["mean_length"]["tokens"] == 2
    assert found["sampling"]["temperature"] == 0
    assert found["sampling"]["repetition_penalty"] == Sampling().repetition_penalty


def test_bad_answers_are_counted_each_as_what_they_are():
    said = {1: "", 2: "Hello there.", 3: "반가워요. 뭐 해?", 4: "그래서 " * 40 + "…", 5: "사과"}
    engine = Scripted(lambda messages: said.get(len(engine.asked), "좋아요."))
    found = examine(engine)
    assert (found["empty"], found["wrong_language"]) == (1, 21), "no answer in English to the 20 English questions"
    assert (found["register"]["mixed"], found["register"]["unknown"]) == (1, 4)
    assert found["register"]["formal"]["value"] == pytest.approx(25 / 30)
    assert found["stop_rate"]["value"] == pytest.approx(79 / 80)
    assert found["repetition_rate"]["value"] == pytest.approx(1 / 80)
    assert found["answers"][3]["repeated"]
    assert not found["answers"][3]["stopped"]


def test_a_limit_takes_some_of_each_kind():
    found = examine(Scripted(lambda messages: "응."), limit=8)
    assert found["items"] == 8
    assert {row["expected"] for row in found["answers"]} == {"formal", "informal", None}
    assert examine(Scripted(lambda messages: "응."), limit=500)["items"] == 80


def test_the_conversations_are_what_they_say():
    rows = examine(Scripted(lambda messages: "응."))["answers"]
    assert len({row["id"] for row in rows}) == len({json.dumps(row["messages"]) for row in rows}) == 80
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        text = "".join(message["content"] for message in row["messages"])
        asked = any(word in text for word in ("존댓말", "반말", "높임말"))
        if row["expected"] and not asked:  # the conversation itself shows what is wanted
            assert {register_of(message["content"]) for message in row["messages"]} == {row["expected"]}
            assert row["expected"] == "formal" or len(roles) > 1, "a casual question alone asks for nothing"


def overlong(messages: Messages) -> str:
    raise ChatBakerError("the prompt is 90 tokens long, but the context is 64")


def test_a_conversation_that_does_not_fit_is_listed():
    found = examine(Scripted(lambda messages: overlong(messages) if len(messages) > 1 else "좋아요."))
    assert found["items"] + len(found["failed"]) == 80
    assert found["failed"][0]["reason"].startswith("the prompt is 90 tokens")
    assert found["items"] == len([row for row in found["answers"] if len(row["messages"]) == 1]) > 30


def test_a_model_that_cannot_answer_at_all_is_an_error():
    with pytest.raises(ChatBakerError, match="not one conversation could be answered"):
        examine(Scripted(overlong))


def test_a_server_that_is_not_there_is_asked_once():
    engine = Scripted(overlong, context=None)
    with pytest.raises(ChatBakerError, match="the prompt is 90 tokens"):
        examine(engine)
    assert len(engine.asked) == 1


def test_answers_are_kept_and_not_asked_for_again(tmp_path):
    path = tmp_path / "chat.jsonl"

    def dies(messages: Messages) -> str:
        if len(first.asked) > 5:
            raise KeyboardInterrupt
        return "좋아요."

    first = Scripted(dies)
    with pytest.raises(KeyboardInterrupt):
        examine(first, ledger=Ledger(path), source="a")
    second = Scripted(lambda messages: "싫어.")
    found = examine(second, ledger=Ledger(path), source="a")
    assert [row["answer"] for row in found["answers"]] == ["좋아요."] * 5 + ["싫어."] * 75
    assert len(second.asked) == 75
    other = Scripted(lambda messages: "그래.")
    examine(other, ledger=Ledger(path), source="b")
    assert len(other.asked) == 80, "another model's answers are not taken for its own"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("좋아요. " * 20, True),
        ("하" * 40, True),
        ("I like tea. " * 6, True),
        ("".join(f"{i}. 물을 천천히 끓입니다.\n" for i in range(1, 9)), True),
        ("오늘은 날씨가 맑고 바람이 시원해요. " * 2, False),
        ("오늘은 날씨가 맑아요. 내일은 비가 와요. 모레는 눈이 올지도 몰라요.", False),
        ("ㅋㅋ", False),
        ("", False),
    ],
)
def test_what_counts_as_repetition(text, wanted):
    assert repeats(text) is wanted


def test_wilson_interval():
    """8 of 10 and 0 of 20, as published tables have them."""
    assert share([True] * 8 + [False] * 2) == {
        "value": 0.8,
        "low": pytest.approx(0.4902, abs=1e-4),
        "high": pytest.approx(0.9433, abs=1e-4),
        "n": 10,
    }
    assert share([False] * 20)["high"] == pytest.approx(0.1611, abs=1e-4)
    assert share([])["value"] is None
