"""Computed rows for the questions of drills.toml: sums, order, counting, recall. One function a drill, named alike.

A function takes a random generator, the word lists of a language (drills.toml, `words`) and the language, and returns
the fields that the drill's templates use.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from chatbaker.made.forms import native_word, number_word

Row = dict[str, str]
Words = dict[str, Any]

ROWS: dict[str, Callable[[random.Random, Words, str], Row]] = {}


def _drill(make: Callable[[random.Random, Words, str], Row]) -> Callable[[random.Random, Words, str], Row]:
    ROWS[make.__name__] = make
    return make


def _texts(**fields: int | str) -> Row:
    return {name: str(value) for name, value in fields.items()}


def _upto(rng: random.Random, limit: int) -> int:
    """0 to `limit`; mostly below 13, as most sums that people ask are small."""
    return rng.randint(0, min(12, limit) if rng.random() < 0.8 else limit)


@_drill
def add(rng: random.Random, words: Words, lang: str) -> Row:
    a, b = _upto(rng, 99), _upto(rng, 99)
    return _texts(a=a, b=b, c=a + b)


@_drill
def subtract(rng: random.Random, words: Words, lang: str) -> Row:
    a = _upto(rng, 99)
    b = rng.randint(0, a)
    return _texts(a=a, b=b, c=a - b)


@_drill
def multiply(rng: random.Random, words: Words, lang: str) -> Row:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    return _texts(a=a, b=b, c=a * b)


@_drill
def divide(rng: random.Random, words: Words, lang: str) -> Row:
    b, c = rng.randint(1, 12), rng.randint(0, 12)
    return _texts(a=b * c, b=b, c=c)


@_drill
def add_words(rng: random.Random, words: Words, lang: str) -> Row:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    return {"a": number_word(a, lang), "b": number_word(b, lang), "c": number_word(a + b, lang), "n": str(a + b)}


@_drill
def spell(rng: random.Random, words: Words, lang: str) -> Row:
    n = _upto(rng, 100)
    return {"n": str(n), "word": number_word(n, lang)}


@_drill
def native(rng: random.Random, words: Words, lang: str) -> Row:
    n = rng.randint(1, 99)
    return {"n": str(n), "word": native_word(n)}


@_drill
def bigger(rng: random.Random, words: Words, lang: str) -> Row:
    a, b = rng.sample(range(100), 2)
    return _texts(a=a, b=b, big=max(a, b), small=min(a, b))


@_drill
def larger(rng: random.Random, words: Words, lang: str) -> Row:
    i, j = rng.sample(range(len(words["by_size"])), 2)
    a, b = words["by_size"][i], words["by_size"][j]
    return {"a": a, "b": b, "big": a if i > j else b, "small": b if i > j else a}


@_drill
def next_number(rng: random.Random, words: Words, lang: str) -> Row:
    n = _upto(rng, 99)
    return _texts(n=n, next=n + 1)


@_drill
def previous_number(rng: random.Random, words: Words, lang: str) -> Row:
    n = rng.randint(1, 100)
    return _texts(n=n, previous=n - 1)


@_drill
def parity(rng: random.Random, words: Words, lang: str) -> Row:
    n = _upto(rng, 99)
    return {"n": str(n), "parity": words["parity"][n % 2]}


@_drill
def half(rng: random.Random, words: Words, lang: str) -> Row:
    n = rng.randint(1, 50)
    return _texts(n=n, double=2 * n)


@_drill
def count_up(rng: random.Random, words: Words, lang: str) -> Row:
    first = 1 if rng.random() < 0.7 else rng.randint(2, 20)
    last = first + rng.randint(2, 9)
    return _texts(first=first, last=last, all=", ".join(map(str, range(first, last + 1))))


@_drill
def count_down(rng: random.Random, words: Words, lang: str) -> Row:
    n = rng.randint(3, 10)
    return _texts(n=n, all=", ".join(str(k) for k in range(n, 0, -1)))


@_drill
def count_words(rng: random.Random, words: Words, lang: str) -> Row:
    n = rng.randint(3, 10)
    read = native_word if lang == "ko" else lambda k: number_word(k, lang)
    return {"n": str(n), "all": ", ".join(read(k) for k in range(1, n + 1))}


@_drill
def hours(rng: random.Random, words: Words, lang: str) -> Row:
    now, later = rng.randint(1, 12), rng.randint(2, 6)
    return _texts(now=now, later=later, then=(now + later - 1) % 12 + 1)


@_drill
def left(rng: random.Random, words: Words, lang: str) -> Row:
    a = rng.randint(3, 20)
    b = rng.randint(1, a - 2)
    return {"thing": rng.choice(words["countable"]), **_texts(a=a, b=b, c=a - b)}


@_drill
def more(rng: random.Random, words: Words, lang: str) -> Row:
    a, b = rng.randint(2, 20), rng.randint(2, 20)
    return {"thing": rng.choice(words["countable"]), **_texts(a=a, b=b, c=a + b)}


@_drill
def echo(rng: random.Random, words: Words, lang: str) -> Row:
    return {"word": rng.choice(_all_things(words) + words["phrases"])}


@_drill
def length(rng: random.Random, words: Words, lang: str) -> Row:
    word = rng.choice([word for word in _all_things(words) if " " not in word])
    return {"word": word, "n": str(len(word)), "first": word[0], "last": word[-1]}


@_drill
def alphabet(rng: random.Random, words: Words, lang: str) -> Row:
    code = rng.randint(ord("A"), ord("Y"))
    return {"letter": chr(code), "next": chr(code + 1)}


@_drill
def name(rng: random.Random, words: Words, lang: str) -> Row:
    return {"name": rng.choice(words["names"])}


@_drill
def stranger(rng: random.Random, words: Words, lang: str) -> Row:
    given, surname = rng.choice(words["names"]), rng.choice(words["surnames"])
    return {"person": surname + given if lang == "ko" else f"{given} {surname}"}


@_drill
def age(rng: random.Random, words: Words, lang: str) -> Row:
    n = rng.randint(8, 60)
    return _texts(n=n, next=n + 1)


@_drill
def liking(rng: random.Random, words: Words, lang: str) -> Row:
    return {"thing": rng.choice(words["likeable"])}


@_drill
def pet(rng: random.Random, words: Words, lang: str) -> Row:
    return {"pet": rng.choice(words["pets"]), "name": rng.choice(words["pet_names"])}


@_drill
def town(rng: random.Random, words: Words, lang: str) -> Row:
    return {"town": rng.choice(words["towns"])}


@_drill
def plan(rng: random.Random, words: Words, lang: str) -> Row:
    return {"day": rng.choice(words["days"]), "plan": rng.choice(words["plans"])}


@_drill
def choose(rng: random.Random, words: Words, lang: str) -> Row:
    a, b = rng.sample(words["foods"], 2)
    return {"a": a, "b": b, "pick": rng.choice((a, b))}


@_drill
def examples(rng: random.Random, words: Words, lang: str) -> Row:
    kind = rng.choice(list(words["kinds"]))
    a, b, c = rng.sample(words["kinds"][kind], 3)
    return {"kind": kind, "a": a, "b": b, "c": c}


@_drill
def is_a(rng: random.Random, words: Words, lang: str) -> Row:
    kind = rng.choice(list(words["kinds"]))
    return {"kind": kind, "thing": rng.choice(words["kinds"][kind])}


@_drill
def is_not_a(rng: random.Random, words: Words, lang: str) -> Row:
    kind, wrong = rng.sample(list(words["kinds"]), 2)
    return {"kind": kind, "wrong": wrong, "thing": rng.choice(words["kinds"][kind])}


@_drill
def odd_one(rng: random.Random, words: Words, lang: str) -> Row:
    kind, other = rng.sample(list(words["kinds"]), 2)
    a, b = rng.sample(words["kinds"][kind], 2)
    odd = rng.choice(words["kinds"][other])
    x, y, z = rng.sample((a, b, odd), 3)
    return {"kind": kind, "a": a, "b": b, "odd": odd, "x": x, "y": y, "z": z}


def _all_things(words: Words) -> list[str]:
    return [thing for things in words["kinds"].values() for thing in things]
