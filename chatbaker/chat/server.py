"""`chatbaker serve`: an OpenAI-compatible server in front of llama.cpp's own, which batches the answers of its slots.

llama.cpp listens at a random port of this machine, locked with a random key, and gets one request for each answer. This
server checks, queues, limits and translates. It sends prompts as token ids, encoded segment by segment as in `chatbaker
chat`, so no user's text can become a special token; llama.cpp's own chat route would look for them in all of the text.
Grammars, logprobs and penalties work on ids as well. Every answer is a stream upstream, also where the client wants it
whole, so that both say the same. Of a streamed event only the text is cut out and put into a prepared chunk.
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
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException as StarletteHTTPException

from chatbaker import __version__
from chatbaker.chat.api import ApiError, ChatRequest, CompletionRequest, Request
from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import (
    Messages,
    Quantization,
    Sampling,
    bundled_model,
    convert,
    find_model,
    prompt_limit,
    trim,
)
from chatbaker.infer.llamacpp import LlamaCppEngine
from chatbaker.log import say
from chatbaker.tokens.dialog import clean_messages

Json = dict[str, Any]
BODY_BYTES = 1 << 20
UPLOAD_SECONDS, ANSWER_SECONDS, LAST_WORD_SECONDS, GRACE_SECONDS = 30.0, 600.0, 5.0, 20.0
WAITING_PER_SLOT = 4
CACHED_CHARACTERS = 500_000
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class SlotEngine(LlamaCppEngine):
    """llama.cpp with several slots of `context` tokens each, asked for answers through its HTTP address."""

    def __init__(self, path: Path, device: str, context: int | None, slots: int) -> None:
        self.slots = slots
        super().__init__(path, device, context)
        self.vocabulary = len(self._tokens)
        self._longest = max(map(len, self._tokens))
        self._cached = 0

    def _params(self, path: Path, gpu: int | None, small_kv: bool) -> Any:
        params = super()._params(path, gpu, small_kv)
        params.n_ctx, params.n_parallel = self.context * self.slots, self.slots
        params.n_threads_http = self.slots + 4
        params.n_batch = params.n_ubatch = max(params.n_batch, self.slots, 0 if gpu is None else 512)
        return params

    def tokenize(self, text: str) -> list[int]:
        if len(text) > self.context * self._longest:  # will not fit; what it would be exactly is not worth the time
            return [0] * (len(text) // self._longest)
        if (ids := self._text_ids.get(text)) is None:
            ids = self._worker.submit(self._tokenize, text).result()
            self._cached += len(text) + len(ids)
            if self._cached > CACHED_CHARACTERS:
                self._text_ids, self._cached = {}, 0
            self._text_ids[text] = ids
        return ids

    def fit(self, messages: Messages, max_tokens: int | None, cut: bool) -> tuple[list[int], int]:
        """The prompt's token ids, and how many of the oldest messages were dropped for it. Raises ApiError."""
        try:
            messages, dropped = clean_messages(messages), 0
            if not messages or messages[-1]["role"] != "user":
                raise ChatBakerError("the last message must be the user's")
        except ChatBakerError as error:
            raise ApiError(400, str(error), "messages") from None
        with suppress(ChatBakerError):  # the question alone is too long; then the check says so
            if cut:
                messages, dropped = trim(
                    messages, self.count, prompt_limit(self.context, max_tokens or Sampling.max_new_tokens)
                )
        return self.checked(self.encode(messages), "messages"), dropped

    def checked(self, ids: list[int], param: str) -> list[int]:
        """The same ids, if they can be a prompt. Raises ApiError."""
        if len(ids) >= self.context:
            what = f"the prompt has {len(ids):,} tokens or more; with the answer it may have {self.context:,}"
            raise ApiError(400, what, param, "context_length_exceeded")
        if not ids or max(ids) >= self.vocabulary:
            raise ApiError(400, f"a prompt needs tokens, numbered below {self.vocabulary:,}", param)
        return ids

    def metrics(self) -> str:
        """llama.cpp's own counters; that they come shows that its loop runs."""
        return str(self._server.handle_metrics())

    async def events(self, request: Json) -> AsyncGenerator[list[bytes], None]:
        """JSON events of an answer, as many at a time as have come. Closing the iterator frees the slot at once.

        llama.cpp sends each as an HTTP chunk, so the sizes of chunks stand on lines of their own. Raises ApiError.
        """
        body, writer = json.dumps(request).encode(), None
        head = f"POST /completion HTTP/1.1\r\nHost: {self._address}\r\nAuthorization: Bearer {self._key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        try:
            reader, writer = await asyncio.open_connection(*self._address.rsplit(":", 1))
            writer.write(head.encode() + body)
            status = (await reader.readuntil(b"\r\n\r\n")).split(maxsplit=2)[1]
            if status != b"200":
                message = json.loads((await reader.read()).decode(errors="replace"))["error"]["message"]
                raise ApiError(400 if status == b"400" else 503, f"the engine says: {message}")
            rest = b""
            while data := await reader.read(1 << 16):
                *lines, rest = (rest + data).split(b"\n")
                if found := [line.partition(b": ")[2] for line in lines if line.startswith((b"data: ", b"error: "))]:
                    yield found
        except (OSError, EOFError, ValueError, KeyError) as error:
            raise ApiError(503, "the engine broke off") from error
        finally:
            if writer:
                writer.transport.abort()


class Hall:
    """The places: how many answers run and wait, how long they may take, and whether the doors are closing."""

    def __init__(self, engine: SlotEngine, name: str) -> None:
        self.engine, self.name, self.closing = engine, name, False
        self.capacity = engine.slots * (1 + WAITING_PER_SLOT)
        self.admitted = 0
        self.slots = asyncio.Semaphore(engine.slots)
        self.deadlines: set[asyncio.Timeout] = set()
        self.counts: Any = Counter()

    @asynccontextmanager
    async def places(self, answers: int) -> AsyncIterator[None]:
        """Room for so many answers, and the time they may take. Raises ApiError: 429 where there is none."""
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

    def refuse(self, error: ApiError) -> Response:
        """An error as a response; where trying again helps, it says when."""
        self.counts[f'errors_total{{status="{error.status}"}}'] += 1
        headers = {"retry-after": "1"} if error.status in (429, 503) else {}
        headers |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
        return Response(json.dumps(error.body), error.status, headers, "application/json")

    def observe(self, name: str, seconds: float) -> None:
        self.counts.update({f"{name}_sum": seconds, f"{name}_count": 1})

    def metrics(self) -> str:
        """In the text format of Prometheus."""
        busy = min(self.admitted, self.engine.slots)
        gauges = {"answers_running": busy, "answers_waiting": self.admitted - busy, "slots": self.engine.slots}
        lines: dict[str, None] = {}  # in order, each once
        for name, value in [*sorted(self.counts.items()), *gauges.items()]:
            family = re.sub(r"_sum$|_count$|\{.*", "", name)
            kind = "summary" if name.endswith(("_sum", "_count")) else "gauge" if name in gauges else "counter"
            lines |= {f"# TYPE chatbaker_{family} {kind}": None, f"chatbaker_{name} {value}": None}
        return "\n".join(lines) + "\n"


class Answer(Response):
    """A request's answers, streamed or whole. A client that leaves frees its places and slots at once."""

    def __init__(self, hall: Hall, request: Request, prompts: list[list[int]], dropped: int = 0) -> None:
        super().__init__()
        self.hall, self.request, self.prompts = hall, request, prompts
        self.settings = request.settings(hall.engine.vocabulary, hall.engine.context)
        self.chat = isinstance(request, ChatRequest)
        self.counts = request.stream_options.include_usage
        self.extra: Json = {"truncated": {"messages": dropped}} if dropped else {}
        kind = ("chat.completion.chunk" if request.stream else "chat.completion") if self.chat else "text_completion"
        self.head: Json = {"id": ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12), "object": kind}
        self.head |= {"created": int(time.time()), "model": hall.name}
        self.usage: Counter[str] = Counter(prompt_tokens=sum(map(len, prompts)), completion_tokens=0, cached_tokens=0)
        self.born, self.begun = time.perf_counter(), False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def left() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        self.send = send
        answer, gone = asyncio.create_task(self._answer()), asyncio.create_task(left())
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            self.hall.counts["cut_off_total"] += not answer.done()
        finally:
            answer.cancel()
            gone.cancel()
            error, _ = await asyncio.gather(answer, gone, return_exceptions=True)
        if isinstance(error, Exception):
            raise error

    async def _answer(self) -> None:
        jobs = [(ids, turn) for ids in self.prompts for turn in range(self.request.n)]
        try:
            async with self.hall.places(len(jobs)), asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._choice(i, *job)) for i, job in enumerate(jobs)]
        except (ApiError, ExceptionGroup) as caught:
            error = caught.exceptions[0] if isinstance(caught, ExceptionGroup) else caught
            if not (self.begun and isinstance(error, ApiError)):
                raise error from None
            with suppress(TimeoutError):  # a client that does not read must not hold us up
                await asyncio.wait_for(self._write(event(error.body), last=True), LAST_WORD_SECONDS)
            return
        self.hall.counts.update({f"{key}_total": count for key, count in self.usage.items()})
        self.hall.observe("request_seconds", time.perf_counter() - self.born)
        cached = {"cached_tokens": self.usage.pop("cached_tokens")}
        usage = {**self.usage, "total_tokens": self.usage.total(), "prompt_tokens_details": cached}
        if self.request.stream:
            last = event({**self.head, "choices": [], "usage": usage}) if self.counts else b""
            return await self._write(last + b"data: [DONE]\n\n", last=True)
        choices = [task.result() for task in tasks]
        await self._write(dumps({**self.head, "choices": choices, "usage": usage, **self.extra}), last=True)

    async def _choice(self, index: int, ids: list[int], turn: int) -> Json:
        """Have one answer written: stream it as it comes, or return it."""
        request, engine = self.request, self.hall.engine
        room = engine.context - len(ids)
        seed = secrets.randbits(31) if request.seed is None else (request.seed + turn) % (1 << 31)
        asked = {**self.settings, "prompt": ids, "n_predict": min(request.max_tokens or room, room), "seed": seed}
        quick = request.stream and request.top is None and "json_schema" not in asked
        before, after = self._chunk(index, "\0").split(dumps("\0"))  # what is around the text in every chunk
        out = [self._chunk(index, "", role="assistant")] if self.chat else []
        text, said = "", cast(Json, {"stop": False})
        drawn: list[Json] = []
        async with self.hall.slots:
            if "json_schema" in asked:
                await self._check_schema(asked)
            async with aclosing(engine.events(asked)) as blocks:
                async for block in blocks:
                    if "content" not in said:
                        self.hall.observe("first_token_seconds", time.perf_counter() - self.born)
                    for line in block:
                        if quick and text and b'"stop":false' in line:
                            start = line.index(b'"content":') + 10
                            piece = line[start : line.index(b',"tokens":[', start)].replace(b"\xef\xbf\xbd", b"")
                            out += (before, piece, after) if piece != b'""' else ()
                            continue
                        said = json.loads(line)
                        if "content" not in said:
                            raise ApiError(503, "the engine broke off")
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
        if not said["stop"]:
            raise ApiError(503, "the engine broke off")
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
            await self._write(b"".join(out) + self._chunk(index, None, finish=finish))
        choice: Json = {"index": index, "logprobs": self._logprobs(drawn, 0), "finish_reason": finish}
        return choice | ({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text})

    async def _check_schema(self, asked: Json) -> None:
        """llama.cpp writes what it likes where it cannot follow a schema. Lured to end the answer at once, it does so
        only then."""
        lure = {"logit_bias": [[min(self.hall.engine.stops), 1000.0]], "samplers": ["top_k"], "top_k": 1}
        async with aclosing(self.hall.engine.events({**asked, **lure, "n_predict": 1})) as blocks:
            async for block in blocks:
                if json.loads(block[-1]).get("stop_type") == "eos":
                    raise ApiError(400, "the engine cannot follow this schema", "response_format")

    def _chunk(self, index: int, text: str | None, logprobs: Json | None = None, **more: str) -> bytes:
        """An event of the stream. more: finish, in the last one of an answer; role, in the first one."""
        delta = {key: more[key] for key in ("role",) if key in more} | ({} if text is None else {"content": text})
        said: Json = {"delta": delta} if self.chat else {"text": text or ""}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": more.get("finish")}
        extra = self.extra if "role" in more else {}
        return event({**self.head, "choices": [choice], **extra} | ({"usage": None} if self.counts else {}))

    def _logprobs(self, tokens: list[Json], offset: int) -> Json | None:
        """Of the tokens drawn, in the form that the route has. offset: characters of the answer before them."""
        if (top := self.request.top) is None:
            return None
        drawn = [named(one) for one in tokens]
        likely = [[named(other) for other in one["top_logprobs"][:top]] for one in tokens]
        if self.chat:
            return {"content": [one | {"top_logprobs": others} for one, others in zip(drawn, likely, strict=True)]}
        names = [one["token"] for one in drawn]
        return {
            "tokens": names,
            "token_logprobs": [one["logprob"] for one in drawn],
            "top_logprobs": [{one["token"]: one["logprob"] for one in others} for others in likely] if top else None,
            "text_offset": [offset + len("".join(names[:i])) for i in range(len(names))],
        }

    async def _write(self, body: bytes, last: bool = False) -> None:
        if not self.begun:
            self.begun = True
            kind = b"text/event-stream; charset=utf-8" if self.request.stream else b"application/json"
            headers = [(b"content-type", kind), (b"x-accel-buffering", b"no")]
            await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": not last})


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def event(value: Any) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


def named(token: Json) -> Json:
    """A token as the API shows it; bytes that are no whole characters as \\xNN."""
    name = bytes(token["bytes"]).decode(errors="backslashreplace")
    return {"token": name, "logprob": max(token["logprob"], -9999.0), "bytes": token["bytes"]}


class Gate:
    """Around the whole application: who may come in, and how much they may bring."""

    def __init__(self, app: Any, hall: Hall, key: str | None, local: bool) -> None:
        self.app, self.hall, self.key, self.local = app, hall, key, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size, until, arrived = 0, asyncio.get_running_loop().time() + UPLOAD_SECONDS, False

        async def bounded() -> Any:
            nonlocal size, arrived
            try:
                async with asyncio.timeout_at(None if arrived else until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body took too long to arrive") from None
            size += len(message.get("body", b""))
            if size > BODY_BYTES:
                raise HTTPException(413, f"the body is larger than {BODY_BYTES:,} bytes")
            arrived = not message.get("more_body", False)
            return message

        try:
            self._check(dict(scope["headers"]), scope["path"])
        except ApiError as error:
            return await self.hall.refuse(error)(scope, receive, send)
        await self.app(scope, bounded, send)

    def _check(self, headers: dict[bytes, bytes], path: str) -> None:
        host = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1")).lower()
        if self.local and not self.key and host not in ("localhost", "127.0.0.1", "[::1]"):
            # a page of elsewhere, whose name was made to lead here (DNS rebinding)
            raise ApiError(403, "this host name is not served; open http://localhost", code="host_not_allowed")
        if self.key and (path.startswith("/v1/") or path == "/metrics"):
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not hmac.compare_digest(given, self.key.encode()):
                raise ApiError(401, "the key is missing or wrong", code="invalid_api_key")
        if self.hall.closing and path.startswith("/v1/"):
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > BODY_BYTES:
            raise ApiError(413, f"the body is larger than {BODY_BYTES:,} bytes")


def explain(caught: RequestValidationError) -> ApiError:
    """What is wrong with a body, by its place. Where a value may be of several kinds, the deepest error counts."""
    errors = []
    for error in caught.errors():  # a step with a bracket is the name of a kind that was tried
        place = () if error["type"] == "json_invalid" else error["loc"][1:]
        steps = [step for step in place if isinstance(step, int) or "[" not in step]
        at = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")
        text = "unknown parameter" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
        errors.append((len(steps), f"{at or 'the body (application/json)'}: {text}", at or None))
    return ApiError(400, *max(errors, key=lambda one: one[0])[1:])


def build(hall: Hall, key: str | None, local: bool) -> Gate:
    """The application: routes, error bodies, pages, and the gate around them."""

    async def refuse(request: Any, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            error = explain(error)
        if isinstance(error, StarletteHTTPException):
            refused = hall.refuse(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
            refused.headers.update(error.headers or {})
            return refused
        if not isinstance(error, ApiError):  # a bug; uvicorn writes the traceback to standard error
            error = ApiError(500, "an internal error")
        return hall.refuse(error)

    kinds = (ApiError, RequestValidationError, StarletteHTTPException, Exception)
    app = FastAPI(
        title="ChatBaker",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        exception_handlers=dict.fromkeys(kinds, refuse),
        responses={"4XX": {"description": "An error"}, "503": {"description": "Not now"}},
    )
    whole_or_stream: Any = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}
    card = {"id": hall.name, "object": "model", "created": int(time.time()), "owned_by": "chatbaker"}
    card["max_model_len"] = hall.engine.context

    def known(model: str | None) -> None:
        if model not in (None, hall.name):
            raise ApiError(404, f"there is no model {model!r} here, only {hall.name!r}", "model", "model_not_found")

    @app.post("/v1/chat/completions", response_class=Response, responses=whole_or_stream)
    async def chat_completions(request: ChatRequest) -> Response:
        known(request.model)
        messages = [message.plain() for message in request.messages]
        cut = request.truncate is not None
        ids, dropped = await asyncio.to_thread(hall.engine.fit, messages, request.max_tokens, cut)
        return Answer(hall, request, [ids], dropped)

    @app.post("/v1/completions", response_class=Response, responses=whole_or_stream)
    async def completions(request: CompletionRequest) -> Response:
        known(request.model)
        single = isinstance(request.prompt, str) or (request.prompt and isinstance(request.prompt[0], int))
        prompts: list[Any] = [request.prompt] if single else cast(list[Any], request.prompt)
        if not 0 < len(prompts) <= hall.capacity:
            raise ApiError(400, f"give 1 to {hall.capacity} prompts", "prompt")
        ids = [await asyncio.to_thread(hall.engine.tokenize, one) if isinstance(one, str) else one for one in prompts]
        return Answer(hall, request, [hall.engine.checked(one, "prompt") for one in ids])

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
    return Gate(app, hall, key, local)


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
    quantize: str = "q8_0",
) -> None:
    """Serve until Ctrl-C or SIGTERM. api_key: CHATBAKER_API_KEY where None. Raises ChatBakerError."""
    key = api_key or os.environ.get("CHATBAKER_API_KEY")
    shown = f"[{host}]" if ":" in host else host
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        hint = "Another program has this port. Give one with --port" if error.errno == errno.EADDRINUSE else None
        raise ChatBakerError((error.strerror or str(error)).split(" (")[0], f"{shown}:{port}", hint) from None
    with listener:
        gguf, folder = find_model(model, quantize) if model else (bundled_model(), None)
        engine = SlotEngine(gguf or convert(folder, cast(Quantization, quantize)), device, context, slots)
        path = Path(model).resolve() if model else gguf
        name = re.sub(r"(-(bf16|q8_0|q4_0))?\.gguf$", "", cast(Path, path).name, flags=re.IGNORECASE)
        hall, local = Hall(engine, name), ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        address = f"http://{shown}:{listener.getsockname()[1]}"
        welcome = (
            f"{name}, {engine.name}, {slots} slots of {engine.context:,} tokens\nchat {address}/   API {address}/v1"
        )
        if not (local or key):
            welcome += "\nWARNING: whoever reaches this machine may use it. Set CHATBAKER_API_KEY, or --host 127.0.0.1"
        try:
            HttpServer(hall, key, local, welcome).run([listener])
        finally:
            engine.close()
