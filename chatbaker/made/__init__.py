"""Bilingual text and conversations of the project's own: what `tiny` is made from and a part of what `mini` is taught.

Everything comes from the tables beside this file; the i-th item depends on (seed, language, i) alone. A language is
`ko` or `en`, or `ko:small`, `en:small` for a world of a few topics and facts that a tiny model can learn by heart.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from chatbaker.made.drills import compute
from chatbaker.made.forms import fill

LANGS = ("ko", "en")
WORLDS = (*LANGS, "ko:small", "en:small")
SMALL = {"greeting", "how_are_you", "thanks", "goodbye", "who_are_you", "your_name", "what_can_you_do"}
SMALL |= {"capital", "legs", "planet", "next_day", "sides"}  # topics and kinds of facts of the small world
Message = dict[str, str]
Row = dict[str, str]


class Turn(NamedTuple):
    """One exchange: any of `answer` fits any of `ask`."""

    ask: tuple[str, ...]
    answer: tuple[str, ...]


class Topic(NamedTuple):
    """One exchange and the turns that may follow it, in their order."""

    name: str
    turns: tuple[Turn, ...]


class Fact(NamedTuple):
    """A kind of fact in one language; `key` is the field asked for. A drill has no rows: they are drawn or computed."""

    name: str
    key: str | None
    topics: tuple[Topic, ...]
    say: tuple[str, ...]
    rows: tuple[Row, ...]
    weight: float
    draw: dict[str, str] | None

    def row(self, rng: random.Random, lang: str) -> Row:
        if self.rows:
            return rng.choice(self.rows)
        words = tables("drills.toml")["words"][lang]
        if self.draw:
            return {name: rng.choice(words[source]) for name, source in self.draw.items()}
        return {name: str(value) for name, value in compute(self.name, rng, words, lang).items()}


@cache
def tables(name: str) -> dict[str, Any]:
    """The parsed TOML file `name` of this folder."""
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _topic(name: str, table: dict[str, Any]) -> Topic:
    return Topic(name, tuple(Turn(tuple(t["ask"]), tuple(t["answer"])) for t in (table, *table.get("then", ()))))


def _world(lang: str, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [table for table in found if not lang.endswith(":small") or table["name"] in SMALL]


@cache
def topics(lang: str) -> tuple[Topic, ...]:
    """The topics of talk.<language>.toml."""
    return tuple(_topic(table["name"], table) for table in _world(lang, tables(f"talk.{lang[:2]}.toml")["topic"]))


@cache
def kinds(file: str, lang: str) -> tuple[Fact, ...]:
    """The kinds of fact in `file` (facts.toml or drills.toml) that have forms in the language."""
    world, lang = lang, lang[:2]
    return tuple(
        Fact(
            name=fact["name"],
            key=fact.get("key"),
            topics=tuple(_topic(fact["name"], table) for table in (fact[lang], *fact[lang].get("also", ()))),
            say=tuple(fact[lang].get("say", ())),
            rows=tuple(dict(zip(fact["fields"], row[lang], strict=True)) for row in fact.get("row", ())),
            weight=fact.get("weight", max(len(fact.get("row", ())), 1) ** 0.5),  # many rows: oftener, not in proportion
            draw=fact.get("draw"),
        )
        for fact in _world(world, tables(file)["fact"])
        if lang in fact
    )


def facts(lang: str) -> list[tuple[str, str]]:
    """(question, the word a right answer contains) of every row of facts.toml that has one such word."""
    found = [(fact, fact.topics[0].turns[0].ask[0]) for fact in kinds("facts.toml", lang) if fact.key]
    return [(fill(question, row), row[fact.key]) for fact, question in found for row in fact.rows if fact.key]


def _typed(rng: random.Random, text: str, lang: str) -> str:
    """`text` as a hurried person would type it, in some of the cases."""
    roll = rng.random()
    bare = text.rstrip(" .!?~") or text
    if roll < 0.16:
        return bare
    if roll < 0.28 and lang == "en":
        return (bare if roll < 0.22 else text).lower()
    if roll < 0.19:
        return f"{bare}~"
    if roll < 0.24:
        return f"{text} {rng.choice(('ㅎㅎ', 'ㅋㅋ', 'ㅎ', 'ㅋㅋㅋ'))}"
    if roll < 0.27:
        return text + rng.choice("?!") if text[-1] in "?!" else f"{bare}!"
    return text


def _exchange(rng: random.Random, turns: tuple[Turn, ...], row: Row, lang: str) -> list[Message]:
    messages = []
    for turn in turns:
        messages.append({"role": "user", "content": _typed(rng, fill(rng.choice(turn.ask), row), lang[:2])})
        messages.append({"role": "assistant", "content": fill(rng.choice(turn.answer), row)})
    return messages


def _part(rng: random.Random, lang: str, follow: float) -> list[Message]:
    """A topic, a fact or a drill; with the chance `follow` its follow-up turns too, those of a topic one by one."""
    roll = rng.random()
    if roll < 0.55:
        turns, length = rng.choice(topics(lang)).turns, 1
        while length < len(turns) and rng.random() < follow:
            length += 1
        return _exchange(rng, turns[:length], {}, lang)
    choices = (roll >= 0.77 and kinds("drills.toml", lang)) or kinds("facts.toml", lang)
    fact = rng.choices(choices, [choice.weight for choice in choices])[0]
    turns = rng.choice(fact.topics).turns
    return _exchange(rng, turns if rng.random() < follow else turns[:1], fact.row(rng, lang), lang)


def conversations(seed: int, count: int, lang: str) -> Iterator[list[Message]]:
    """`count` conversations as message lists: one topic, or a chain, at times with a turn in the other language."""
    other = next(name for name in LANGS if name != lang[:2]) + lang[2:]
    for i in range(count):
        rng = random.Random(f"conversation {seed} {lang} {i}")
        messages: list[Message] = []
        if rng.random() < 1 / 16:
            messages.append({"role": "system", "content": rng.choice(tables("drills.toml")["system"][lang[:2]])})
        if rng.random() < 2 / 3:
            messages += _part(rng, lang, follow=0.6)
        else:
            parts = [lang] * rng.randint(2, 4)
            if rng.random() < 1 / 8:
                parts[rng.randrange(len(parts))] = other
            for part in parts:
                messages += _part(rng, part, follow=0.2)
        yield messages


def _told(rng: random.Random, lang: str) -> str:
    """A little story: each slot gets one word for the whole story, each line one of its wordings."""
    stories = tables("stories.toml")[lang[:2]]
    row = {name: rng.choice(words) for name, words in stories["slot"].items()}
    row["friend"] = rng.choice([name for name in stories["slot"]["name"] if name != row["name"]])
    return " ".join(fill(rng.choice(line), row) for line in rng.choice(stories["story"])["lines"])


def documents(seed: int, count: int, lang: str) -> Iterator[str]:
    """`count` short prose documents: stories, runs of facts, and questions with their answers."""
    for i in range(count):
        rng = random.Random(f"document {seed} {lang} {i}")
        roll = rng.random()
        if roll < 0.35:
            yield _told(rng, lang)
        elif roll < 0.75:
            found = (roll >= 0.65 and kinds("drills.toml", lang)) or kinds("facts.toml", lang)
            sayable = [fact for fact in found if fact.say]
            one, mixed, said = rng.choice(sayable), rng.random() < 0.4, []
            for _ in range(rng.randint(3, 6)):
                fact = rng.choice(sayable) if mixed else one
                said.append(fill(rng.choice(fact.say), fact.row(rng, lang)))
            yield " ".join(dict.fromkeys(said))
        else:
            messages = [message for _ in range(rng.randint(1, 3)) for message in _part(rng, lang, follow=0.5)]
            speakers = ("물음", "대답") if lang[:2] == "ko" else ("Question", "Answer")
            yield "\n".join(f"{speakers[j % 2]}: {message['content']}" for j, message in enumerate(messages))
