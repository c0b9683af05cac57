"""Conversations in the formats that people have -> checked messages, and a line on what became of every file.

A file's name says how its records are stored, their keys (formats.json) what they are. What can be mended without a
guess is mended; what would teach nothing, or never to stop, is refused by file and line; both are counted.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from chatbaker import jsonl, made
from chatbaker.errors import ChatBakerError, missing_extra
from chatbaker.log import say
from chatbaker.recipe import SftSource
from chatbaker.rundir import find_files, no_file, read_json
from chatbaker.tokens.dialog import Message, clean_messages

NAMES = read_json(Path(__file__).with_name("formats.json"))
STORED = "JSON lines hold one object a line; save an array as .json and a table as .csv, in UTF-8"
READY = "ready_for_export"  # a tree of OpenAssistant that is neither rejected nor half done
Records = Iterator[tuple[int, dict[str, Any]]]  # by the number of the line, or of the record where there are no lines
# What `recognise` and `mend` are to conversations.
Way = tuple[Callable[[dict[str, Any], str], tuple[str, Any]], Callable[[Any, str, Counter[str]], Any]]


class UnknownFormat(ChatBakerError):
    """Of a record whose keys say nothing."""


def read(source: SftSource, data_root: Path, seed: int, pairs: Way | None = None) -> Iterator[tuple[str, Any]]:
    """(where, messages) of every conversation of a source, cleaned and checked; or of pairs, two lists of messages."""
    known, mended = pairs or (recognise, mend)
    stage, things = ("dpo", "pairs") if pairs else ("sft", "conversations")
    left = source.limit
    for file in _files(source, data_root, stage):
        counts: Counter[str] = Counter()
        on_bad, name = partial(_refuse, source.strict, counts), ""
        for number, record in _trees(_records(file, source.limit, seed, on_bad), file, on_bad):
            where, state, language = f"{file}:{number}", record.get("tree_state") or READY, record.get("lang")
            if state != READY or (source.languages and language not in source.languages):
                counts[f"left out ({language if state == READY else state})"] += 1
                continue
            try:
                name, turns = known(record, where)
                kept = mended(turns, where, counts)
            except ChatBakerError as error:
                if isinstance(error, UnknownFormat) and not name:  # nothing in the file is known
                    raise
                on_bad(error)
                continue
            counts[f"{things} ({name})"] += 1
            yield where, kept
            left = left and left - 1
            if left == 0:
                break
        say(f"{stage}: {file}: " + (", ".join(f"{count:,} {what}" for what, count in counts.most_common()) or "empty"))
        if left == 0:
            return


def _files(source: SftSource, data_root: Path, stage: str) -> list[str]:
    path, where = source.path, f"{stage}.sources {source.path}"
    if path.startswith("made:"):
        if path.removeprefix("made:") not in made.WORLDS:
            raise ChatBakerError(f"no {path!r}", where, f"Known: {', '.join(f'made:{name}' for name in made.WORLDS)}")
        if source.limit is None:
            raise ChatBakerError("a made: source needs a limit", where)
        return [path]
    if path.startswith("hub:"):
        files = jsonl.find_on_hub(f"datasets/{path.removeprefix('hub:')}", where)
    else:
        files = [str(file) for file in find_files(data_root, path)]
    if not files:
        raise ChatBakerError(f"no file matches {path!r}", str(data_root), no_file(data_root, path))
    return files


def _refuse(strict: bool, counts: Counter[str], error: ChatBakerError) -> None:
    if strict:
        hint = "Write strict = false in the source to leave such records out and count them"
        if error.hint:  # before anything was read, the file itself is in doubt
            hint = f"{error.hint}. {hint}" if counts else error.hint
        raise ChatBakerError(error.what, error.where, hint)
    reason = "skipped: " + re.sub(r"^message \d+: |[;(].*", "", error.what).strip()
    if not counts[reason]:
        say(f"skipped, and others like it counted: {error}")
    counts[reason] += 1


def _records(file: str, limit: int | None, seed: int, on_bad: jsonl.OnBad) -> Records:
    path, number = Path(file.lower()), 0
    kind = (path.with_suffix("") if path.suffix in jsonl.PACKED else path).suffix
    data = b"".join(jsonl.read_bytes(file)) if kind in (".json", ".csv", ".parquet") else b""
    array = data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    rows: Iterable[Any]
    try:
        if file.startswith("made:"):
            rows = ({"messages": talk} for talk in made.conversations(seed, limit or 0, file.removeprefix("made:")))
        elif kind == ".parquet":
            from pyarrow import parquet

            batches = parquet.ParquetFile(io.BytesIO(data)).iter_batches(256)
            rows = (row for batch in batches for row in batch.to_pylist())
        elif array:
            rows = json.loads(jsonl.decode(data))
        elif kind == ".csv":
            yield from _csv(jsonl.decode(data), file, on_bad)
            return
        else:
            yield from jsonl.read_jsonl(file, lambda error: on_bad(_stored(error)))
            return
        for number, row in enumerate(rows, 1):
            yield number, row if isinstance(row, dict) else {}
    except ModuleNotFoundError:
        raise missing_extra("pyarrow", "clean") from None
    except (ValueError, RuntimeError, OSError) as error:
        problem = "neither UTF-8 nor CP949" if isinstance(error, UnicodeDecodeError) else error
        place = f"{file}:{number + 1}" if number else file
        on_bad(ChatBakerError(f"damaged, or not {kind[1:]}: {problem}", place, STORED))


def _stored(error: ChatBakerError) -> ChatBakerError:
    return ChatBakerError(error.what, error.where, error.hint or STORED)


def _csv(text: str, file: str, on_bad: jsonl.OnBad) -> Records:
    """The rows below the first, which names their columns."""
    csv.field_size_limit(jsonl.LARGEST)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for number in count(1):
        fault = "more cells than the header"
        try:
            row = next(rows)
            if None not in row:
                yield number, row
                continue
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"damaged, or not csv: {error}"
        on_bad(ChatBakerError(fault, f"{file}:{number}"))


def _trees(records: Records, file: str, on_bad: jsonl.OnBad) -> Records:
    """Records with every tree of OpenAssistant as its first message, whichever of its two exports it comes from."""
    messages: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, record in records:
        if {"message_id", "parent_id", "text"} <= record.keys():
            messages[str(record["message_id"])] = number, record | {"replies": []}
        else:
            yield number, record | record["prompt"] if isinstance(record.get("prompt"), dict) else record
    for number, message in messages.values():
        if (parent := str(message["parent_id"] or "")) in messages:
            messages[parent][1]["replies"].append(message)
        elif parent:
            on_bad(ChatBakerError("its parent_id is not in the file", f"{file}:{number}"))
    yield from (found for found in messages.values() if not found[1]["parent_id"])


def recognise(record: dict[str, Any], where: str) -> tuple[str, list[dict[str, Any]]]:
    """The format of a record and its turns, whose content may still be anything. Raises ChatBakerError."""
    system = next((record[key] for key in NAMES["system"] if record.get(key)), "")
    before = [{"role": "system", "content": system}] if system else []
    for key, name in NAMES["turns"].items():
        turns = record.get(key)
        if isinstance(turns, str):  # a cell of a table
            with suppress(ValueError, RecursionError):
                turns = json.loads(turns)
        if isinstance(turns, list):
            turns = list(map(to_turn, turns))
            return name, turns if any(turn["role"] == "system" for turn in turns) else before + turns
    if "replies" in record:
        try:
            return "OpenAssistant", list(map(to_turn, _best_path(record)))
        except (AttributeError, TypeError):
            raise ChatBakerError("its replies are not a tree", where) from None
    first = sorted(NAMES["question"], key=lambda key: not record.get(key))  # those that say something come first
    question, answer = (next((key for key in keys if key in record), None) for keys in (first, NAMES["answer"]))
    if question is None or answer is None:
        keys = ", ".join(map(str, record)) or "none"
        raise UnknownFormat(f"no known format (the keys are: {keys})", where, f"Known: {NAMES['known']}")
    name = "Alpaca" if question == "instruction" else f"{question}/{answer}"
    said = to_turn({"role": "assistant", "content": record[answer]})
    if isinstance(record[question], list):  # of messages
        answers = list(map(to_turn, record[answer])) if isinstance(record[answer], list) else [said]
        return name, before + list(map(to_turn, record[question])) + answers
    if answer == "A" and "B" in record:
        raise ChatBakerError("A and B are choices: which is right, and what to say, is not known", where)
    asked = {key: record.get(key) for key in dict.fromkeys([question, *NAMES["context"]])}
    for key, text in asked.items():
        if not isinstance(text, str | None):
            raise ChatBakerError(f"its {key} is not text", where)
    for other in NAMES["question"]:
        text, own = record.get(other), record[question]
        if text and isinstance(text, str) and other not in asked and text not in own and own not in text:
            raise ChatBakerError(f"it has two questions, {question} and {other}", where, "Leave one out, or join them")
    user = "\n\n".join(text for text in asked.values() if text and text.strip())
    history = record.get("history") or []
    if not (isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)):
        raise ChatBakerError("its history is not a list of [question, answer]", where)
    talk = [*history, (user, said["content"])]
    roles = ("user", "assistant")
    return name, before + [{"role": role, "content": pair[i]} for pair in talk for i, role in enumerate(roles)]


def to_turn(turn: Any) -> dict[str, Any]:
    """A turn in our names of keys and roles."""
    named = turn if isinstance(turn, dict) else {}
    role, text = (next((named[key] for key in NAMES[part] if key in named), None) for part in ("role", "content"))
    if isinstance(text, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in text):
        text = "\n".join(part["text"] for part in text)
    loss = {"weight": named["weight"]} if named.get("weight", 1) not in (None, 1) else {}
    return {"role": NAMES["roles"].get(str(role).lower(), role), "content": text} | loss


def _best_path(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """From the root on the reply that people ranked best; of replies without a rank the one with most replies."""

    def order(reply: dict[str, Any]) -> tuple[float, int]:
        return math.inf if reply.get("rank") is None else reply["rank"], -len(reply.get("replies") or ())

    replies = [root]
    while replies := [reply for reply in replies if not reply.get("deleted")]:
        best = min(replies, key=order)
        yield best
        replies = best.get("replies") or []


def mend(turns: list[dict[str, Any]], where: str, counts: Counter[str]) -> list[Message]:
    """Messages that begin with a question and end with an answer. Raises ChatBakerError where nothing can be learnt."""
    kept: list[dict[str, Any]] = []
    for turn in turns:
        role, text, before = turn["role"], turn["content"], kept[-1]["role"] if kept else None
        if isinstance(text, str) and not text.strip() and role != "system":
            counts["cut at an empty turn"] += 1
            break
        if role == "assistant" and before in (None, "system"):
            counts["opening answers left out"] += 1
        elif kept and role == before and isinstance(text, str) and isinstance(kept[-1]["content"], str):
            if role == "assistant" and turn.get("weight") != kept[-1].get("weight"):
                raise ChatBakerError("two answers in a row, one of them of weight 0", where)
            kept[-1] = turn | {"content": f"{kept[-1]['content']}\n{text}"}
            counts["turns joined to the one before"] += 1
        else:
            kept.append(turn)
    messages = clean_messages(kept, where) if kept else []
    for message, turn in zip(reversed(messages), reversed(kept), strict=False):  # an empty system prompt is gone
        if turn["role"] == "assistant" and "weight" in turn:
            if turn["weight"] != 0:
                raise ChatBakerError(f"weight {turn['weight']!r} is neither 0 nor 1", where)
            message["weight"] = "0"
            counts["answers without loss"] += 1
    while messages and (messages[-1]["role"] != "assistant" or "weight" in messages[-1]):
        messages.pop()  # a question that nobody answered teaches nothing
    if not messages:
        least = "assistant turn of weight 1" if any("weight" in turn for turn in kept) else "assistant turn"
        raise ChatBakerError(f"no {least}: nothing to learn, and nothing that ends", where)
    counts["turns"] += len(messages)
    return messages
