from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from chatbaker.chat.session import Session
from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import Chunk, Messages, Sampling, TooLong, Usage
from tests.infer import markov


class Echo:
    """Answers with the number of messages it was shown; a token is a character."""

    name = "echo"

    def __init__(self, context: int | None = None) -> None:
        self.context = context
        self.shown: list[Messages] = []

    def count(self, messages: Messages) -> int:
        return sum(len(message["content"]) for message in messages)

    def stream(self, messages: Messages, sampling: Sampling, debug: int = 0) -> Iterator[Chunk]:
        self.shown.append(messages)
        yield Chunk("", Usage())
        yield Chunk(f"{len(messages)} ", Usage(completion_tokens=1))
        yield Chunk("끝", Usage(completion_tokens=2, finish_reason="stop"))

    def close(self) -> None: ...


def ask(session: Session, text: str) -> str:
    return "".join(chunk.text for chunk in session.ask(text))


def test_the_model_sees_the_conversation() -> None:
    session = Session(engine := Echo(), Sampling(), "정중하게")
    assert [ask(session, "하나"), ask(session, "둘")] == ["2 끝", "4 끝"]
    assert engine.shown[1] == [
        {"role": "system", "content": "정중하게"},
        *markov.messages("하나", "2 끝", "둘"),
    ]


def test_old_turns_are_dropped_and_stay_dropped() -> None:
    session = Session(engine := Echo(context=44), Sampling(max_new_tokens=10))
    for _ in range(3):
        ask(session, "x" * 10)
    assert session.dropped == 2
    assert engine.shown[-1][0]["role"] == "user"
    assert len(session.messages) == 6, "the person still has all of it"
    ask(session, "y")
    assert session.dropped == 2, "a short question needs no further cut"


def test_a_server_that_finds_all_too_long_is_asked_without_the_oldest() -> None:
    class Narrow(Echo):
        def stream(self, messages: Messages, sampling: Sampling, debug: int = 0) -> Iterator[Chunk]:
            if len(messages) > 4:
                raise TooLong("too long")
            return super().stream(messages, sampling, debug)

    session = Session(engine := Narrow(), Sampling(), "짧게")
    assert [ask(session, "가") for _ in range(4)] == ["2 끝", "4 끝", "4 끝", "4 끝"]
    assert (session.dropped, len(session.messages)) == (4, 8)
    assert [message["role"] for message in engine.shown[-1]] == ["system", "user", "assistant", "user"]


def test_a_question_too_long_changes_nothing() -> None:
    session = Session(Echo(context=40), Sampling(max_new_tokens=10))
    ask(session, "x")
    before = list(session.messages)
    with pytest.raises(ChatBakerError, match="too long|tokens long"):
        ask(session, "x" * 31)
    assert session.messages == before


def test_a_stopped_answer_is_kept_and_an_unbegun_one_is_not() -> None:
    session = Session(Echo(), Sampling())
    answer = session.ask("하나")
    next(answer)
    answer.close()
    assert session.messages == []
    answer = session.ask("하나")
    next(answer)
    next(answer)
    answer.close()
    assert session.messages == markov.messages("하나", "1")
    assert session.usage.finish_reason == "cancelled"


def test_undo_retry_reset() -> None:
    session = Session(Echo(), Sampling())
    ask(session, "하나")
    ask(session, "둘")
    assert session.undo() == "둘"
    assert session.messages == markov.messages("하나", "1 끝")
    assert "".join(chunk.text for chunk in session.retry()) == "1 끝"
    assert len(session.messages) == 2
    again = session.retry()
    next(again)
    again.close()
    assert session.messages == markov.messages("하나", "1 끝"), "the old answer stays where no new one comes"
    session.reset()
    with pytest.raises(ChatBakerError, match="nothing"):
        session.undo()


def test_saved_conversations_come_back(tmp_path: Path) -> None:
    session = Session(Echo(), Sampling(), "system")
    ask(session, "안녕\n둘째 줄 😀")
    path = tmp_path / "talk.jsonl"
    session.save(path)
    session.save(path)  # its own file may be written again
    other = Session(Echo(), Sampling())
    other.load(path)
    assert (other.system, other.messages) == ("system", session.messages)
    other.save(path)


def test_what_else_a_loaded_file_holds_is_not_written_over(tmp_path: Path) -> None:
    line = '{"messages": [{"role": "user", "content": "가"}, {"role": "assistant", "content": "나"}]}\n'
    path = tmp_path / "talk.jsonl"
    for count, encoding in ((2, "utf-8"), (1, "cp949")):
        path.write_bytes((line * count).encode(encoding))
        session = Session(Echo(), Sampling())
        session.load(path)
        assert session.messages == markov.messages("가", "나")
        ask(session, "다")
        with pytest.raises(ChatBakerError, match="already") if count == 2 else nullcontext():
            session.save(path)
    assert len(json.loads(path.read_text(encoding="utf-8"))["messages"]) == 4
    with pytest.raises(ChatBakerError, match="exists"):
        session.save(path / "x")


def test_saving_overwrites_no_other_file_and_nothing_is_saved_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("precious", encoding="utf-8")
    session = Session(Echo(), Sampling())
    with pytest.raises(ChatBakerError, match="nothing"):
        session.save(tmp_path / "new")
    ask(session, "a")
    with pytest.raises(ChatBakerError, match=r"thesis\.txt.*already"):
        session.save(path)
    assert path.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"[]", b"[" * 200_000, b'{"messages": []}', b"\xff\xfe",
     b'{"messages": [{"role": "user", "content": "a"}]}',
     b'{"messages": [{"role": "king", "content": "a"}]}', b'{"messages": [{"role": "system", "content": "a"}]}'],
)  # fmt: skip
def test_loading_something_else_is_an_error_and_changes_nothing(tmp_path: Path, content: bytes) -> None:
    session = Session(Echo(), Sampling())
    ask(session, "a")
    before = list(session.messages)
    path = tmp_path / "talk"
    path.write_bytes(content)
    with pytest.raises(ChatBakerError, match="talk"):
        session.load(path)
    with pytest.raises(ChatBakerError, match="none"):
        session.load(tmp_path / "none")
    assert session.messages == before
