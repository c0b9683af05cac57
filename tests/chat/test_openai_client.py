"""The official client drives every route, as its users do, sync and async."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from chatbaker.infer.engine import bundled_model
from tests.chat.serving import NAME, Served, serving

HELLO: Any = [{"role": "user", "content": "안녕하세요? 자기소개 해 주세요."}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(bundled_model(), key="sk-test") as one:
        yield one


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="sk-test", max_retries=0) as one:
        yield one


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == NAME
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"


def test_chat_streamed_and_whole_say_the_same(client):
    whole = client.chat.completions.create(model=NAME, messages=HELLO, temperature=0)
    assert whole.object == "chat.completion"
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_every_parameter_of_the_chat(client):
    answer = client.chat.completions.create(
        model=NAME,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        ],
        temperature=0.7,
        top_p=0.9,
        frequency_penalty=0.5,
        presence_penalty=0.5,
        stop=["\n"],
        seed=7,
        max_completion_tokens=6,
        n=2,
        logprobs=True,
        top_logprobs=3,
        logit_bias={"100": -100},
        response_format={"type": "text"},
        user="u",
        metadata={"a": "b"},
        extra_body={"top_k": 10, "repetition_penalty": 1.1, "truncate": "oldest"},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert "".join(one.token for one in tokens).strip() == choice.message.content.strip()
        assert all(len(one.top_logprobs) == 3 and one.logprob <= 0 for one in tokens)
        assert bytes(tokens[0].bytes).decode() == tokens[0].token


def test_json_schema_by_the_clients_helper(client):
    schema = {"type": "object", "properties": {"나이": {"type": "integer", "minimum": 0, "maximum": 99}}}
    schema |= {"required": ["나이"], "additionalProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "age", "strict": True, "schema": schema}}
    answer = client.chat.completions.create(model=NAME, messages=HELLO, temperature=0, response_format=form)
    assert 0 <= json.loads(answer.choices[0].message.content)["나이"] <= 99


def test_completions(client):
    answer = client.completions.create(model=NAME, prompt="서울은", temperature=0, max_tokens=4, logprobs=2, n=2)
    assert answer.object == "text_completion"
    first, second = answer.choices
    assert first.text == second.text
    logprobs = first.logprobs
    assert "".join(logprobs.tokens) == first.text
    assert [len(one) for one in logprobs.top_logprobs] == [2] * len(logprobs.tokens)
    assert logprobs.text_offset[1] == len(logprobs.tokens[0])
    drawn = client.completions.create(model=NAME, prompt="서울은", temperature=0, max_tokens=4, logprobs=0).choices[0]
    assert (drawn.logprobs.tokens, drawn.logprobs.top_logprobs) == (logprobs.tokens[:4], None)
    several = client.completions.create(model=NAME, prompt=["서울은", "부산은"], temperature=0, max_tokens=4)
    assert several.choices[0].text == first.text
    chunks = client.completions.create(model=NAME, prompt="서울은", temperature=0, max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == first.text


def test_errors_are_the_clients_own(client, served):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=NAME, messages=HELLO, temperature=101)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(
            model=NAME, messages=HELLO, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
        )
    assert unsupported.value.param == "tools"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "가나 " * 1000}])
    assert long.value.code == "context_length_exceeded"
    wrong = openai.OpenAI(base_url=str(client.base_url), api_key="sk-wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError) as refused:
        wrong.models.list()
    assert "sk-" not in str(refused.value)


def test_async_client_many_at_once(served):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="sk-test") as client:

            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model=NAME, messages=HELLO, temperature=0, max_tokens=8, stream=i % 2 == 0
                )
                if i % 2:
                    return stream.choices[0].message.content
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(i) for i in range(10)))

    assert all("�" not in answer and answer for answer in asyncio.run(ask()))
    assert served.hall.admitted == 0
