"""What a request to the server may say, the errors it may get, and what llama.cpp is asked in its stead.

Names and bounds are those of OpenAI's API; `top_k`, `repetition_penalty` and `truncate` are added. Types are strict; an
unknown or unsupported parameter is an error that names it. null means absent.
"""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator
from starlette.exceptions import HTTPException

from chatbaker.infer.engine import Sampling
from chatbaker.infer.llamacpp import samplers

UNSUPPORTED: dict[str, str] = json.loads(Path(__file__).with_name("unsupported.json").read_text(encoding="utf-8"))
"""Parameters of the API that these models cannot serve, and why; unless they have one of the values below."""
NO_EFFECT: tuple[Any, ...] = (None, False, [], {}, "none", "auto", "default")
TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}
HEADERS = {401: {"www-authenticate": "Bearer"}, 429: {"retry-after": "1"}, 503: {"retry-after": "1"}}
MAX_MARKS = 128  # combining marks in a row: to put them in order takes time by the square of their number
MAX_SCHEMA, MAX_PATTERN, MAX_COUNT = 16_384, 256, 4096
"""Characters of a JSON schema and of a pattern in it, and its largest length or count: more can stall the engine."""
COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties", "pattern")


class ApiError(HTTPException):
    """An answer that is an error, its body in the API's own form; its headers say how and when to try again."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message, HEADERS.get(status))
        kind = TYPES.get(status, "invalid_request_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def normalized(text: str) -> str:
    text.encode()  # half a surrogate pair is no text: a ValueError
    for marks, run in groupby("" if text.isascii() else text, key=lambda one: unicodedata.combining(one) > 0):
        if marks and sum(1 for _ in run) > MAX_MARKS:
            raise ValueError(f"more than {MAX_MARKS} combining marks in a row")
    return unicodedata.normalize("NFC", text)


Text = Annotated[str, AfterValidator(normalized)]
Stop = Annotated[Text, Field(min_length=1, max_length=1000)]
TokenId = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for key in data.keys() & UNSUPPORTED.keys():
            if data[key] not in NO_EFFECT:
                raise ApiError(400, f"'{key}' is not supported: {UNSUPPORTED[key]}", key, "unsupported_parameter")
        return {key: value for key, value in data.items() if value is not None and key not in UNSUPPORTED}


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Strict):
    include_usage: bool = False


def small(schema: dict[str, Any]) -> None:
    for value in filter(None, map(schema.get, COUNTS)):
        if (isinstance(value, int | float) and value > MAX_COUNT) or len(str(value)) > MAX_PATTERN:
            raise ValueError(f"too large: lengths and counts go to {MAX_COUNT:,}, a pattern to {MAX_PATTERN}")


class JsonSchema(Strict):
    name: str
    description: str = ""
    strict: bool = False
    schema_: dict[str, JsonValue] = Field(alias="schema")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _bounded(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with the type json_schema")
        text = json.dumps(self.json_schema.schema_) if self.json_schema else "{}"
        if len(text) > MAX_SCHEMA:
            raise ValueError(f"a schema may have {MAX_SCHEMA:,} characters")
        json.loads(text, object_hook=small)
        return self


class Request(Strict):
    """What both routes take."""

    model: str | None = None
    temperature: float = Field(Sampling.temperature, ge=0, le=100)
    top_p: float = Field(Sampling.top_p, ge=0, le=1)
    top_k: int = Field(Sampling.top_k, ge=0, le=1_000_000)
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] = []
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    max_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=128)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = {}
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = None

    def settings(self, vocabulary: int, context: int) -> dict[str, Any]:
        """What llama.cpp's /completion takes, without prompt, seed and length. Raises ApiError."""
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ApiError(400, "stream_options goes with stream", "stream_options")
        if not all(re.fullmatch("[0-9]{1,9}", key) and int(key) < vocabulary for key in self.logit_bias):
            raise ApiError(400, f"it goes by token numbers, below {vocabulary:,}", "logit_bias")
        return samplers(self, context) | {
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
            "logit_bias": [[int(key), value] for key, value in self.logit_bias.items()],
            "stream": True,
        }


class ChatRequest(Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat = ResponseFormat(type="text")
    metadata: dict[str, str] = {}
    truncate: Literal["oldest"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs", "top_logprobs")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ApiError(400, "max_tokens and max_completion_tokens differ", "max_tokens")
        self.max_tokens = self.max_completion_tokens or self.max_tokens
        return self

    @property
    def top(self) -> int | None:
        """How many likely tokens to name at each place of the answer; None: not even the one drawn."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def settings(self, vocabulary: int, context: int) -> dict[str, Any]:
        settings = super().settings(vocabulary, context)
        if self.response_format.type != "text":
            wanted = self.response_format.json_schema
            tight = {"x-guidance": {"whitespace_flexible": False}}  # small models like to go on with spaces for ever
            settings["json_schema"] = (wanted.schema_ if wanted else {"type": "object"}) | tight
        return settings


class CompletionRequest(Request):
    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def top(self) -> int | None:
        return self.logprobs
