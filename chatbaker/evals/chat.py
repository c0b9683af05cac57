"""Suite `chat`: does a chat model keep the register it is spoken to in, end its answers, and not repeat itself?

80 conversations of our own (chat_prompts.jsonl) are put to the model as people use it, but greedily, so that the same
model gives the same answers. Intervals are Wilson's (1927) at 95 %.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from chatbaker.errors import ChatBakerError
from chatbaker.evals.ledger import Ledger, Row, clean
from chatbaker.evals.register import register_of
from chatbaker.infer.engine import Messages, Sampling, identity, open_engine
from chatbaker.jsonl import read_jsonl
from chatbaker.log import progress
from chatbaker.rundir import digest

SAMPLING = Sampling(temperature=0, max_new_tokens=256, seed=0)
STRETCH, SHARE = 12, 0.5
ANSWER = ("model", "sampling", "answer", "finish_reason", "completion_tokens")  # what a ledger of answers holds


def examine(ledger: Ledger, model: str | None, url: str | None, device: str, limit: int | None = None) -> Row:
    """Figures and answers of all conversations, or of `limit` evenly spread. ChatBakerError where none is answered."""
    rows = [row for _, row in read_jsonl(Path(__file__).with_name("chat_prompts.jsonl"))]
    count = min(limit or len(rows), len(rows))
    rows = [rows[i * len(rows) // count] for i in range(count)]
    said = answer([row["messages"] for row in rows], SAMPLING, ledger, model, url, device)
    both = list(zip(rows, said, strict=True))
    failed = [{"id": row["id"], "reason": one["reason"]} for row, one in both if "reason" in one]
    if len(failed) == len(rows):
        raise ChatBakerError("not one conversation could be answered", said[0]["model"], failed[0]["reason"])
    answers = [judge(row, one) for row, one in both if "reason" not in one]
    return summarize(answers) | {"sampling": asdict(SAMPLING), "failed": failed, "answers": answers}


def answer(
    asked: list[Messages], sampling: Sampling, ledger: Ledger, model: str | None, url: str | None, device: str
) -> list[Row]:
    """What a model says to each conversation, or the `reason` for nothing. What the ledger holds is not asked again."""
    source = identity(model, url)
    keys = [digest([source, messages, asdict(sampling)]) for messages in asked]
    if left := {key: messages for key, messages in zip(keys, asked, strict=True) if key not in ledger.by_key}:
        with closing(open_engine(model, device, url=url)) as engine, progress("answers", len(left)) as bar:
            for number, (key, messages) in enumerate(left.items(), 1):
                row: Row = {"key": key, "model": engine.name, "sampling": asdict(sampling)}
                try:
                    chunks = list(engine.stream(messages, sampling))
                except ChatBakerError as error:  # too long for the context, or a server that is out of order
                    if engine.context is None and not ledger.by_key.keys() & keys:
                        raise
                    row |= {"answer": "", "finish_reason": "error", "completion_tokens": 0, "reason": str(error)}
                    ledger.by_key[key].append(row)  # not in the file: the next run asks again
                else:
                    usage = chunks[-1].usage
                    row |= {"answer": clean("".join(chunk.text for chunk in chunks))}
                    row |= {"finish_reason": usage.finish_reason, "completion_tokens": usage.completion_tokens}
                    ledger.append(row)
                bar.update(number)
    return [ledger.by_key[key][-1] for key in keys]


def judge(row: Row, said: Row) -> Row:
    """One answer with what was found in it."""
    question, answer = row["messages"][-1]["content"], said["answer"]
    script = "[가-힣]" if re.search("[가-힣]", question) else "[A-Za-z]"
    found = {"register": register_of(answer), "stopped": said["finish_reason"] == "stop", "repeated": repeats(answer)}
    other = bool(re.search(r"[^\W\d_]", answer)) and not re.search(script, answer)
    row = {"id": row["id"], "messages": row["messages"], "expected": row["register"]}
    return row | {"answer": answer, "tokens": said["completion_tokens"]} | found | {"wrong_language": other}


def repeats(text: str) -> bool:
    """Whether half of a text's stretches of 12 letters are copies of earlier ones, as in one that is said three times.

    seq-rep-n of Welleck et al. (2020, arXiv:1908.04319), over letters so that it means the same in Korean and English,
    spaced or not; without digits, which differ in a loop that counts.
    """
    letters = re.sub(r"[\W\d_]+", "", text).casefold()
    stretches = [letters[i : i + STRETCH] for i in range(len(letters) - STRETCH + 1)]
    return bool(stretches) and 1 - len(set(stretches)) / len(stretches) >= SHARE


def summarize(answers: list[Row]) -> Row:
    """The figures. An answer keeps the register where it shows the expected one and nothing else."""
    asked, count = [row for row in answers if row["expected"]], len(answers)
    register: Row = {"kept": share(row["register"] == row["expected"] for row in asked)}
    for name in ("formal", "informal"):
        register[name] = share(row["register"] == name for row in asked if row["expected"] == name)
    register |= {name: sum(row["register"] == name for row in asked) for name in ("mixed", "unknown")}
    characters, tokens = sum(len(row["answer"]) for row in answers), sum(row["tokens"] for row in answers)
    return {
        "items": count,
        "register": register,
        "stop_rate": share(row["stopped"] for row in answers),
        "repetition_rate": share(row["repeated"] for row in answers),
        "empty": sum(not row["answer"] for row in answers),
        "wrong_language": sum(row["wrong_language"] for row in answers),
        "mean_length": {"characters": characters / count, "tokens": tokens / count},
    }


def share(hits: Iterable[bool]) -> Row:
    """A share with Wilson's 95 % interval; all None where there is nothing to count."""
    found = list(hits)
    n, z = len(found), 1.959964
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    p = sum(found) / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return {"value": p, "low": round(low, 6), "high": round(high, 6), "n": n}
