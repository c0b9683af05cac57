"""Asking a judge: requests to an OpenAI-compatible server, every reply on disk before it is read, none paid for twice.

The first reply in the ledger that can be read is the verdict; else it is asked for again, up to ASKS times in all runs.
What never became a reply (429, 5xx, time-outs, lost connections) is tried again by the client, then by the next run.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from chatbaker.errors import ChatBakerError
from chatbaker.evals.ledger import Ledger, Row, clean
from chatbaker.infer.remote import connect
from chatbaker.log import progress, say
from chatbaker.rundir import digest, read_json

SCHEMAS = read_json(Path(__file__).with_name("judge_schemas.json"))
METRICS = tuple(SCHEMAS["score"]["properties"])
ASKS, RETRIES = 3, 7
TIMEOUT = 600.0  # seconds for a reply: a local judge may be slow, and requests may queue before it
MAX_TOKENS = 4096  # of a reply, the larger part for judges that think first


class Request(NamedTuple):
    """One question to the judge. kind: "score" or "pair". id: the prompt's."""

    kind: str
    id: str
    text: str

    def key(self, judge: str) -> str:
        return digest([judge, self.kind, self.text])


def read_reply(kind: str, body: str) -> tuple[Row | None, str]:
    """(the last verdict in the body of a response, "") or (None, what is wrong with it).

    Text around the object, commas too many, a last brace too few, numbers as strings are mended; other scores never.
    """
    try:
        text = json.loads(body)["choices"][0]["message"]["content"].rpartition("</think>")[2]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None, "the server's reply holds no text"
    verdict, fault, after = None, "", 0
    for place in [match.start() for match in re.finditer("{", text)][:100]:
        plain = re.sub(r",(?=\s*[}\]])", "", text[place:])
        for attempt in (text[place:], plain, plain.rstrip("` ,\n\t") + "}") if place >= after else ():
            try:
                found, length = json.JSONDecoder().raw_decode(attempt)
                verdict, after = _fit(found, SCHEMAS[kind]), place + length
                break
            except LookupError as error:
                fault = fault or str(error.args[0])
            except (ValueError, RecursionError):
                continue
    return (verdict, "") if verdict else (None, fault or "no JSON object in the reply")


def _fit(value: Any, schema: Row, name: str = "") -> Any:
    """The part of a value that its schema asks for. Raises LookupError where it is not there."""
    if schema["type"] == "object":
        for key in schema["required"]:
            if not isinstance(value, dict) or key not in value:
                raise LookupError(f"{name or 'the verdict'} has no {key}")
        return {key: _fit(value[key], part, f"{name} {key}".strip()) for key, part in schema["properties"].items()}
    if schema["type"] == "integer" and re.fullmatch(r"\s*[0-9](\.0)?\s*", str(value)):
        value = int(float(value))
    if type(value) is not {"integer": int, "string": str}[schema["type"]] or value not in schema.get("enum", [value]):
        raise LookupError(f"{name} is {json.dumps(value)[:20]}, not one of {schema.get('enum', 'all texts')}")
    return clean(value) if isinstance(value, str) else value


class Judge:
    """A model that judges, and the ledger of all that judges said here, kept under its label. Raises ChatBakerError.

    model: its name on the server; empty: the first there. `NAME#2`: asked anew, to see how far it agrees with itself.
    """

    def __init__(self, url: str, model: str, ledger: Ledger) -> None:
        import openai  # two thirds of a second

        self._openai, self._url, self.ledger = openai, url, ledger
        timeout = openai.Timeout(TIMEOUT, connect=10.0)
        self._key, self._client = connect(url, "CHATBAKER_JUDGE_KEY", timeout=timeout, max_retries=RETRIES)
        name, mark, turn = model.partition("#")
        try:
            self.name = name or self._client.with_options(max_retries=2).models.list().data[0].id
        except (openai.OpenAIError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise self._absent(error) from None
        self.label = self.name + mark + turn
        self._answered, self._lost = False, dict[str, str]()
        self._refused: set[str] = set()  # options that this server does not take: once it answers without, left out

    def verdict(self, request: Request, label: str = "") -> tuple[Row | None, str]:
        """What the ledger holds of this judge, or of another: (verdict, "") or (None, reason)."""
        key = request.key(label or self.label)
        read = [read_reply(request.kind, row["body"]) for row in self.ledger.by_key.get(key, ())]
        last = read[-1][1] if read else "not asked"
        return next((one for one in read if one[0]), (None, self._lost.get(key, last)))

    def left(self, requests: Iterable[Request]) -> list[Request]:
        """Those still to be asked, each text once."""
        each, asked = {one.key(self.label): one for one in requests}, self.ledger.by_key
        return [one for key, one in each.items() if len(asked.get(key, ())) < ASKS and not self.verdict(one)[0]]

    def settle(self, requests: list[Request], width: int) -> None:
        """Ask, `width` at a time, until the ledger holds for each a verdict, ASKS replies, or why there was none.

        After Ctrl-C or a ChatBakerError, replies then under way are waited for and stored, until a second Ctrl-C.
        """
        pool = ThreadPoolExecutor(width)
        futures = [pool.submit(self._settle, one) for one in requests]
        try:
            with progress(f"judge: {self.label}", len(requests)) as bar:
                for number, future in enumerate(as_completed(futures), 1):
                    future.result()
                    bar.update(number, f"{len(self._lost)} without a reply" if self._lost else "")
        except BaseException:
            say("stopping once the replies under way are stored; Ctrl-C gives them up")
            try:
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt:
                os._exit(130)  # the ledger is whole, and threads that wait for a server cannot be ended otherwise
            raise

    def _settle(self, request: Request) -> None:
        key = request.key(self.label)
        while self.left([request]):
            again = f"\n\n(Not usable: {self.verdict(request)[1]}.)" if key in self.ledger.by_key else ""
            began = time.time()
            body, reason = self._post(request.kind, request.text + again)
            if reason:
                self._lost[key] = reason
                return
            row = {"key": key, "judge": self.label, "kind": request.kind, "id": request.id, "body": body}
            self.ledger.append(row | {"time": round(began, 3), "seconds": round(time.time() - began, 3)})
            self._answered = True

    def _post(self, kind: str, text: str) -> tuple[str, str]:
        """(body of the reply, "") or ("", reason). Raises ChatBakerError where other requests would fare no better."""
        form = {"type": "json_schema", "json_schema": {"name": kind, "strict": True, "schema": SCHEMAS[kind]}}
        every = {"response_format": form, "temperature": 0, "max_tokens": MAX_TOKENS}
        options: Row = {name: value for name, value in every.items() if name not in self._refused}
        create: Any = self._client.chat.completions.with_raw_response.create
        while True:
            try:
                body: str = create(model=self.name, messages=[{"role": "user", "content": text}], **options).text
                self._refused |= every.keys() - options.keys()
                return body, ""
            except (self._openai.BadRequestError, self._openai.UnprocessableEntityError) as error:
                if not options:
                    return "", self._reason(error)
                del options[next((name for name in options if name in str(error)), next(iter(options)))]
            except self._openai.OpenAIError as error:
                status = getattr(error, "status_code", None)
                broke = status in (401, 402, 403, 404) or "insufficient_quota" in str(error)
                if broke or not (status or self._answered):
                    raise self._absent(error) from None
                return "", self._reason(error)

    def _absent(self, error: Exception) -> ChatBakerError:
        hint = "Check judge.url (most end in /v1), judge.model and CHATBAKER_JUDGE_KEY. What was judged is kept"
        return ChatBakerError(f"no judge here: {self._reason(error)}", self._url, hint)

    def _reason(self, error: Exception) -> str:
        """In one line, without the key."""
        if isinstance(error, self._openai.AuthenticationError):
            return "the key is refused"
        return " ".join(str(error).split()).replace(self._key, "***")[:200].rstrip(".") or type(error).__name__
