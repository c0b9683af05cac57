from __future__ import annotations

import pytest

from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import Messages, prompt_limit, trim
from tests.infer import markov

SYSTEM = {"role": "system", "content": "sss"}


def letters(messages: Messages) -> int:
    return sum(len(message["content"]) for message in messages)


def test_what_fits_is_left_alone() -> None:
    talk = [SYSTEM, *markov.messages("aa", "bb", "cc")]
    assert trim(talk, letters, 9) == (talk, 0)


def test_the_oldest_pairs_go_and_the_system_message_stays() -> None:
    talk = [SYSTEM, *markov.messages("1111", "2222", "3", "4", "5")]
    kept, dropped = trim(talk, letters, 10)
    assert kept == [SYSTEM, *talk[3:]]
    assert dropped == 2


@pytest.mark.parametrize("limit", range(4, 60))
@pytest.mark.parametrize("head", [[], [SYSTEM]])
def test_the_rest_fits_ends_with_the_question_and_begins_with_a_user(limit: int, head: Messages) -> None:
    talk = head + markov.messages(*("x" * (i % 5 + 1) for i in range(20)), "y")
    kept, dropped = trim(talk, letters, limit)
    assert letters(kept) <= limit
    assert kept[-1]["content"] == "y"
    assert kept[: len(head)] == head
    assert kept[len(head)]["role"] == "user"
    assert dropped == len(talk) - len(kept)
    assert dropped % 2 == 0


def test_a_cut_leaves_room_for_turns_to_come() -> None:
    talk = markov.messages(*("x" * 10 for _ in range(11)))
    kept, _ = trim(talk, letters, 100)
    assert letters(kept) <= 75


def test_a_question_that_is_too_long_by_itself_is_an_error_with_both_figures() -> None:
    with pytest.raises(ChatBakerError, match="question is 1,200 tokens long, but 100 fit"):
        trim(markov.messages("a", "b", "x" * 1200), letters, 100)
    with pytest.raises(ChatBakerError, match="question and the system message"):
        trim([SYSTEM, *markov.messages("x" * 100)], letters, 100)


def test_half_of_the_context_is_always_there_for_the_prompt() -> None:
    assert prompt_limit(2048, 512) == 1536
    assert prompt_limit(512, 512) == 256
