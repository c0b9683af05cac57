"""`chatbaker serve`: an OpenAI-compatible server in front of llama.cpp's own, which batches the answers of its slots.

llama.cpp listens at a random port, locked with a random key, and gets one request for each answer; this server checks,
queues, limits and translates. Prompts go as token ids, encoded segment by segment, so no user's text can become a
special token. Every answer is a stream upstream, also where the client wants it whole, so that both say the same.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import json
import math
import mimetypes
import os
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from chatbaker import __version__
from chatbaker.chat.api import ApiError, ChatRequest, CompletionRequest
from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import Messages, Sampling, bundled_model, open_engine, prompt_limit, trim
from chatbaker.infer.llamacpp import LlamaCppEngine
from chatbaker.infer.remote import plain_key
from chatbaker.log import say
from chatbaker.tokens.dialog import clean_messages

Json = dict[str, Any]
BODY_BYTES = 1 << 20
UPLOAD_SECONDS, ANSWER_SECONDS, LAST_WORD_SECONDS, GRACE_SECONDS = 30.0, 600.0, 5.0, 20.0
WAITING_PER_SLOT = 4
ERRORS: Any = {"4XX": {"description": "An error"}, "503": {"description": "Not now"}}
WHOLE_OR_STREAM: Any = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
HEADERS: dict[str, str] = json.loads(Path(__file__).with_name("headers.json").read_text(encoding="utf-8"))


class Hall:
    """The engine and the places before it: how many answers run and wait, how long, and whether the doors close."""

    def __init__(self, engine: LlamaCppEngine, name: str) -> None:
        self.engine, self.name, self.closing = engine, name, False
        self.admitted, self.capacity = 0, engine.slots * (1 + WAITING_PER_SLOT)
        self.slots = asyncio.Semaphore(engine.slots)
        self.deadlines: set[asyncio.Timeout] = set()
        self.counts: Any = Counter()

    def fit(self, messages: Messages, max_tokens: int | None, cut: bool) -> tuple[list[int], int]:
        """The prompt's token ids, and how many of the oldest messages were dropped for it."""
        messages, dropped = clean_messages(messages, "messages"), 0
        if not messages or messages[-1]["role"] != "user":
            raise ApiError(400, "the last message must be the user's", "messages")
        limit = prompt_limit(self.engine.context, max_tokens or Sampling.max_new_tokens)
        with suppress(ChatBakerError):  # the question alone is too long; then the check says so
            messages, dropped = trim(messages, self.engine.count, limit) if cut else (messages, 0)
        return self.checked(self.engine.encode(messages), "messages"), dropped

    def checked(self, ids: list[int], param: str) -> list[int]:
        """The same ids, if they can be a prompt. Raises ApiError."""
        if len(ids) >= self.engine.context:
            what = f"the prompt has {len(ids):,} tokens or more; with the answer it may have {self.engine.context:,}"
            raise ApiError(400, what, param, "context_length_exceeded")
        if not ids or max(ids) >= self.engine.vocabulary:
            raise ApiError(400, f"a prompt needs tokens, numbered below {self.engine.vocabulary:,}", param)
        return ids

    @asynccontextmanager
    async def places(self, answers: int) -> AsyncIterator[None]:
        """Room for so many answers, and the time they may take. Raises ApiError: 429 where there is none."""
        if self.closing:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        if answers > self.capacity:
            raise ApiError(400, f"{answers} answers at once, but this server takes {self.capacity} in all", "n")
        if self.admitted + answers > self.capacity:
            raise ApiError(429, "every place is taken; try again soon", code="rate_limit_exceeded")
        self.admitted += answers
        deadline = asyncio.timeout(ANSWER_SECONDS)
        self.deadlines.add(deadline)
        try:
            async with deadline:
                yield
        except TimeoutError:
            late = "the server is shutting down" if self.closing else f"not done within {ANSWER_SECONDS:g} seconds"
            raise ApiError(503, late, code="timeout") from None
        finally:
            self.deadlines.discard(deadline)
            self.admitted -= answers

    def metrics(self) -> str:
        """In the text format of Prometheus."""
        running = min(self.admitted, self.engine.slots)
        now = {"answers_running": running, "answers_waiting": self.admitted - running, "slots": self.engine.slots}
        return "".join(f"chatbaker_{name} {value}\n" for name, value in sorted({**self.counts, **now}.items()))


class Answer(StreamingResponse):
    """A request's answers, streamed or whole. A client that leaves frees its places and slots at once."""

    def __init__(
        self, hall: Hall, request: ChatRequest | CompletionRequest, prompts: list[list[int]], dropped: int = 0
    ) -> None:
        kind = "text/event-stream" if request.stream else "application/json"
        super().__init__(iter(()), headers={"x-accel-buffering": "no"}, media_type=kind)
        self.hall, self.request, self.prompts = hall, request, prompts
        self.chat, self.top = isinstance(request, ChatRequest), request.top
        self.settings = request.settings(hall.engine.vocabulary, hall.engine.context)
        self.settings["n_probs"] = 0 if self.top is None else max(1, self.top)
        self.extra: Json = {"truncated": {"messages": dropped}} if dropped else {}
        kind = ("chat.completion.chunk" if request.stream else "chat.completion") if self.chat else "text_completion"
        self.head: Json = {"id": ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12), "object": kind}
        self.head |= {"created": int(time.time()), "model": hall.name}
        self.head |= {"usage": None} if request.stream_options.include_usage else {}
        self.usage: Counter[str] = Counter(prompt_tokens=sum(map(len, prompts)), completion_tokens=0, cached_tokens=0)
        self.begun = False

    async def stream_response(self, send: Any) -> None:
        jobs = [(ids, turn) for ids in self.prompts for turn in range(self.request.n)]
        self.send = send
        try:
            async with self.hall.places(len(jobs)), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._choice(i, *job)) for i, job in enumerate(jobs)]
        except asyncio.CancelledError:
            self.hall.counts["cut_off_total"] += 1
            raise
        except Exception as caught:
            error = caught.exceptions[0] if isinstance(caught, ExceptionGroup) else caught
            shown = api_error(error)
            if not self.begun or shown.status_code == 500:
                raise error from None
            with suppress(TimeoutError):  # a client that does not read must not hold us up
                await asyncio.wait_for(self._write(event(shown.body), last=True), LAST_WORD_SECONDS)
            return
        self.hall.counts.update({f"{key}_total": count for key, count in self.usage.items()})
        cached = {"cached_tokens": self.usage.pop("cached_tokens")}
        usage = {**self.usage, "total_tokens": self.usage.total(), "prompt_tokens_details": cached}
        if self.request.stream:
            last = event({**self.head, "choices": [], "usage": usage}) if "usage" in self.head else b""
            return await self._write(last + b"data: [DONE]\n\n", last=True)
        choices = [task.result() for task in tasks]
        await self._write(to_json({**self.head, "choices": choices, "usage": usage, **self.extra}), last=True)

    async def _choice(self, index: int, ids: list[int], turn: int) -> Json:
        """Have one answer written: stream it as it comes, or return it."""
        request, engine = self.request, self.hall.engine
        room = engine.context - len(ids)
        seed = secrets.randbits(31) if request.seed is None else (request.seed + turn) % (1 << 31)
        asked = {**self.settings, "prompt": ids, "n_predict": min(request.max_tokens or room, room), "seed": seed}
        out = [self._chunk(index, "", role="assistant")] if self.chat else []
        text, drawn, said = "", list[Json](), Json()
        async with self.hall.slots:
            if "json_schema" in asked:
                await engine.check_schema(asked)
            async with aclosing(engine.events(asked)) as blocks:
                async for block in blocks:
                    for said in block:
                        new = said["content"].replace("\ufffd", "")  # bytes that are no text
                        if self.chat and not text:  # some formats have a space between the prompt and the answer
                            new = new.lstrip()
                        tokens = [one for one in said.get("completion_probabilities", ()) if one["bytes"]]
                        if new or tokens:
                            out.append(self._chunk(index, new, self._logprobs(tokens, len(text))))
                        text, drawn = text + new, drawn + tokens
                    if request.stream:
                        await self._write(b"".join(out))
                    out = []
        if "json_schema" in asked and said["stop_type"] == "eos":
            try:
                json.loads(text)
            except ValueError:
                lost = "the engine lost hold of this schema; make it smaller"
                raise ApiError(400, lost, "response_format") from None
        self.usage["completion_tokens"] += said["tokens_predicted"]
        self.usage["cached_tokens"] += 0 if turn else said["timings"]["cache_n"]
        finish = "length" if said["stop_type"] == "limit" else "stop"
        if request.stream:
            await self._write(b"".join(out) + self._chunk(index, "", finish=finish))
        choice: Json = {"index": index, "logprobs": self._logprobs(drawn, 0), "finish_reason": finish}
        return choice | ({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text})

    def _chunk(self, index: int, text: str, logprobs: Json | None = None, role: str = "", finish: str = "") -> bytes:
        """An event of the stream. role: in the first one of an answer; finish: in the last, which has no text."""
        delta = ({"role": role} if role else {}) | ({} if finish else {"content": text})
        said: Json = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish or None}
        return event({**self.head, "choices": [choice], **(self.extra if role else {})})

    def _logprobs(self, tokens: list[Json], offset: int) -> Json | None:
        """Of the tokens drawn, in the form that the route has. offset: characters of the answer before them."""
        if (top := self.top) is None:
            return None
        drawn = [named(one) | {"top_logprobs": [named(other) for other in one["top_logprobs"][:top]]} for one in tokens]
        if self.chat:
            return {"content": drawn}
        names = [one["token"] for one in drawn]
        likely = [{other["token"]: other["logprob"] for other in one["top_logprobs"]} for one in drawn]
        return {
            "tokens": names,
            "token_logprobs": [one["logprob"] for one in drawn],
            "top_logprobs": likely if top else None,
            "text_offset": [offset + len("".join(names[:i])) for i in range(len(names))],
        }

    async def _write(self, body: bytes, last: bool = False) -> None:
        if not self.begun:
            self.begun = True
            await self.send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": not last})


def event(value: Json) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def named(token: Json) -> Json:
    """A token as the API shows it; bytes that are no whole characters as \\xNN."""
    name = bytes(token["bytes"]).decode(errors="backslashreplace")
    return {"token": name, "logprob": max(token["logprob"], -9999.0), "bytes": token["bytes"]}


def api_error(error: Exception) -> ApiError:
    """For a wrong body by its place. Where a value may be of several kinds, the deepest error counts."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        found = []
        for one in error.errors():  # a step with a bracket is the name of a kind that was tried
            steps = () if one["type"] == "json_invalid" else one["loc"][1:]
            at = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps if "[" not in str(step)]
            found.append((len(at), "".join(at).lstrip("."), one["msg"]))
        _, place, what = max(found, key=lambda one: one[0])
        return ApiError(400, f"{place or 'the body (application/json)'}: {what}", place or None)
    if isinstance(error, ChatBakerError):
        return ApiError(400, str(error), error.where)
    if isinstance(error, OSError):
        return ApiError(503, "the engine broke off")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, error.detail)
    return ApiError(500, "an internal error")  # a bug; uvicorn writes the traceback to standard error


def build(hall: Hall, key: str | None, local: bool) -> Any:
    """The application: routes, error bodies, pages; and around it who may come in, and how much they may bring."""

    async def refuse(request: Any, error: Exception) -> Response:
        shown = api_error(error)
        hall.counts[f'errors_total{{status="{shown.status_code}"}}'] += 1
        headers = getattr(error, "headers", shown.headers)
        return Response(json.dumps(shown.body), shown.status_code, headers, "application/json")

    app = FastAPI(title="ChatBaker", version=__version__, docs_url=None, redoc_url=None, responses=ERRORS)
    for kind in (RequestValidationError, HTTPException, ChatBakerError, OSError, Exception):
        app.add_exception_handler(kind, refuse)
    card = {"id": hall.name, "object": "model", "created": int(time.time()), "owned_by": "chatbaker"}
    card["max_model_len"] = hall.engine.context

    def known(model: str | None) -> None:
        if model not in (None, hall.name):
            raise ApiError(404, f"there is no model {model!r} here, only {hall.name!r}", "model", "model_not_found")

    @app.post("/v1/chat/completions", response_class=Response, responses=WHOLE_OR_STREAM)
    async def chat_completions(request: ChatRequest) -> Response:
        known(request.model)
        messages = [message.plain() for message in request.messages]
        ids, dropped = await asyncio.to_thread(hall.fit, messages, request.max_tokens, request.truncate is not None)
        return Answer(hall, request, [ids], dropped)

    @app.post("/v1/completions", response_class=Response, responses=WHOLE_OR_STREAM)
    async def completions(request: CompletionRequest) -> Response:
        known(request.model)
        single = isinstance(request.prompt, str) or (request.prompt and isinstance(request.prompt[0], int))
        prompts: list[Any] = [request.prompt] if single else cast(list[Any], request.prompt)
        if not 0 < len(prompts) <= hall.capacity:
            raise ApiError(400, f"give 1 to {hall.capacity} prompts", "prompt")
        ids = [await asyncio.to_thread(hall.engine.tokenize, one) if isinstance(one, str) else one for one in prompts]
        return Answer(hall, request, [hall.checked(one, "prompt") for one in ids])

    @app.get("/v1/models")
    async def models() -> Json:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Json:
        known(model)
        return card

    @app.get("/health")
    async def health() -> Json:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Json:
        if hall.closing:
            raise ApiError(503, "the server is shutting down")
        await asyncio.to_thread(hall.engine.metrics)
        return {"status": "ready"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        return hall.metrics() + await asyncio.to_thread(hall.engine.metrics)

    mimetypes.add_type("text/javascript", ".js")  # Windows asks its registry, which may know better
    app.router.default = StaticFiles(directory=Path(__file__).with_name("page"), html=True)

    async def gate(scope: Any, receive: Any, send: Any) -> None:
        size, until = 0, cast(float | None, asyncio.get_running_loop().time() + UPLOAD_SECONDS)

        async def bounded() -> Any:
            nonlocal size, until
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, "the body took too long to arrive") from None
            size += len(message.get("body", b""))
            if size > BODY_BYTES:
                raise ApiError(413, f"the body is larger than {BODY_BYTES:,} bytes")
            until = until if message.get("more_body") else None
            return message

        headers, refused = dict(scope["headers"]), None
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        host = re.sub(rb":\d*$", b"", headers.get(b"host", b"")).lower()
        if local and not key and host not in (b"localhost", b"127.0.0.1", b"[::1]"):
            # a page of elsewhere, whose name was made to lead here (DNS rebinding)
            refused = ApiError(403, "this host name is not served; open http://localhost", code="host_not_allowed")
        elif key and scope["path"].startswith(("/v1/", "/metrics")) and not hmac.compare_digest(given, key.encode()):
            refused = ApiError(401, "the key is missing or wrong", code="invalid_api_key")
        answer: Any = await refuse(None, refused) if refused else app
        await answer({**scope, "asgi": {}}, bounded, send)  # where none is named, Starlette watches for who leaves

    return gate


class HttpServer(uvicorn.Server):
    """uvicorn, but the first Ctrl-C or SIGTERM lets running answers finish for a while; a second one does not."""

    until = math.inf

    def __init__(self, hall: Hall, key: str | None, local: bool, welcome: str = "") -> None:
        options: Json = {"lifespan": "off", "ws": "none", "log_level": "warning", "access_log": False}
        options |= {"proxy_headers": False, "server_header": False, "timeout_graceful_shutdown": 5}
        super().__init__(uvicorn.Config(build(hall, key, local), headers=list(HEADERS.items()), **options))
        self.hall, self.welcome = hall, welcome

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        say(self.welcome)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.force_exit, self.hall.closing = self.hall.closing, True
        self.until = 0.0 if self.force_exit else time.monotonic() + GRACE_SECONDS

    async def on_tick(self, counter: int) -> bool:
        if self.hall.closing and (not self.hall.admitted or time.monotonic() > self.until):
            for deadline in self.hall.deadlines:
                with suppress(RuntimeError):  # over already
                    deadline.reschedule(0)
            self.should_exit = True
        return await super().on_tick(counter)


def serve(
    model: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    slots: int = 4,
    context: int | None = None,
    device: str = "auto",
    quantize: str | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM. api_key: CHATBAKER_API_KEY where None. Raises ChatBakerError."""
    key = plain_key(api_key or os.environ.get("CHATBAKER_API_KEY") or "", "CHATBAKER_API_KEY or --api-key") or None
    shown = f"[{host}]" if ":" in host else host
    try:
        host.encode("idna")
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except UnicodeError:
        raise ChatBakerError("not a name of a machine", host) from None
    except OSError as error:
        hint = "Another program has this port. Give one with --port" if error.errno == errno.EADDRINUSE else None
        raise ChatBakerError((error.strerror or str(error)).split(" (")[0], f"{shown}:{port}", hint) from None
    with listener:
        engine = cast(LlamaCppEngine, open_engine(model, device, quantize, context, slots=slots))
        name = re.sub(r"(-(bf16|q8_0|q4_0))?\.gguf$", "", Path(model or bundled_model()).resolve().name, flags=re.I)
        local = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        address = f"http://{shown}:{listener.getsockname()[1]}"
        welcome = f"{name}, {engine.name}, {slots} slots of {engine.context:,} tokens\n"
        welcome += f"chat {address}/   API {address}/v1"
        if not (local or key):
            welcome += "\nWARNING: whoever reaches this machine may use it. Set CHATBAKER_API_KEY, or --host 127.0.0.1"
        try:
            HttpServer(Hall(engine, name), key, local, welcome).run([listener])
        finally:
            engine.close()
