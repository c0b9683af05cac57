"""Computed rows for the questions of drills.toml: sums, order, counting, recall. One method a drill, named alike.

A method returns the fields that the drill's templates use. A drill that only draws words names their lists in its
table instead (`draw`).
"""

from __future__ import annotations

import random
from typing import Any

from chatbaker.made.forms import native_word, number_word

Fields = dict[str, int | str]


class Drills:
    """words: the word lists of the language (drills.toml, `words`)."""

    def __init__(self, rng: random.Random, words: dict[str, Any], lang: str) -> None:
        self._rng, self._words, self._lang = rng, words, lang

    def _things(self) -> list[str]:
        return [thing for things in self._words["kinds"].values() for thing in things]

    def _upto(self, limit: int) -> int:
        """0 to `limit`; mostly below 13, as most sums that people ask are small."""
        return self._rng.randint(0, min(12, limit) if self._rng.random() < 0.8 else limit)

    def add(self) -> Fields:
        a, b = self._upto(99), self._upto(99)
        return {"a": a, "b": b, "c": a + b}

    def subtract(self) -> Fields:
        a = self._upto(99)
        b = self._rng.randint(0, a)
        return {"a": a, "b": b, "c": a - b}

    def multiply(self) -> Fields:
        a, b = self._rng.randint(0, 12), self._rng.randint(0, 12)
        return {"a": a, "b": b, "c": a * b}

    def divide(self) -> Fields:
        b, c = self._rng.randint(1, 12), self._rng.randint(0, 12)
        return {"a": b * c, "b": b, "c": c}

    def add_words(self) -> Fields:
        a, b = self._rng.randint(0, 20), self._rng.randint(0, 20)
        return {name: number_word(n, self._lang) for name, n in (("a", a), ("b", b), ("c", a + b))} | {"n": a + b}

    def spell(self) -> Fields:
        n = self._upto(100)
        return {"n": n, "word": number_word(n, self._lang)}

    def native(self) -> Fields:
        n = self._rng.randint(1, 99)
        return {"n": n, "word": native_word(n)}

    def bigger(self) -> Fields:
        a, b = self._rng.sample(range(100), 2)
        return {"a": a, "b": b, "big": max(a, b), "small": min(a, b)}

    def larger(self) -> Fields:
        names = self._words["by_size"]
        i, j = self._rng.sample(range(len(names)), 2)
        return {"a": names[i], "b": names[j], "big": names[max(i, j)], "small": names[min(i, j)]}

    def next_number(self) -> Fields:
        n = self._upto(99)
        return {"n": n, "next": n + 1}

    def previous_number(self) -> Fields:
        n = self._rng.randint(1, 100)
        return {"n": n, "previous": n - 1}

    def parity(self) -> Fields:
        n = self._upto(99)
        return {"n": n, "parity": self._words["parity"][n % 2]}

    def half(self) -> Fields:
        n = self._rng.randint(1, 50)
        return {"n": n, "double": 2 * n}

    def count_up(self) -> Fields:
        first = 1 if self._rng.random() < 0.7 else self._rng.randint(2, 20)
        last = first + self._rng.randint(2, 9)
        return {"first": first, "last": last, "all": ", ".join(map(str, range(first, last + 1)))}

    def count_down(self) -> Fields:
        n = self._rng.randint(3, 10)
        return {"n": n, "all": ", ".join(map(str, range(n, 0, -1)))}

    def count_words(self) -> Fields:
        n = self._rng.randint(3, 10)
        read = (native_word(k) if self._lang == "ko" else number_word(k, self._lang) for k in range(1, n + 1))
        return {"n": n, "all": ", ".join(read)}

    def hours(self) -> Fields:
        now, later = self._rng.randint(1, 12), self._rng.randint(2, 6)
        return {"now": now, "later": later, "then": (now + later - 1) % 12 + 1}

    def left(self) -> Fields:
        a = self._rng.randint(3, 20)
        b = self._rng.randint(1, a - 2)
        return {"thing": self._rng.choice(self._words["countable"]), "a": a, "b": b, "c": a - b}

    def more(self) -> Fields:
        a, b = self._rng.randint(2, 20), self._rng.randint(2, 20)
        return {"thing": self._rng.choice(self._words["countable"]), "a": a, "b": b, "c": a + b}

    def echo(self) -> Fields:
        return {"word": self._rng.choice(self._things() + self._words["phrases"])}

    def length(self) -> Fields:
        word = self._rng.choice([word for word in self._things() if " " not in word])
        return {"word": word, "n": len(word), "first": word[0], "last": word[-1]}

    def alphabet(self) -> Fields:
        code = self._rng.randint(ord("A"), ord("Y"))
        return {"letter": chr(code), "next": chr(code + 1)}

    def stranger(self) -> Fields:
        given, surname = self._rng.choice(self._words["names"]), self._rng.choice(self._words["surnames"])
        return {"person": surname + given if self._lang == "ko" else f"{given} {surname}"}

    def age(self) -> Fields:
        n = self._rng.randint(8, 60)
        return {"n": n, "next": n + 1}

    def choose(self) -> Fields:
        a, b = self._rng.sample(self._words["foods"], 2)
        return {"a": a, "b": b, "pick": self._rng.choice((a, b))}

    def examples(self) -> Fields:
        kind = self._rng.choice(list(self._words["kinds"]))
        a, b, c = self._rng.sample(self._words["kinds"][kind], 3)
        return {"kind": kind, "a": a, "b": b, "c": c}

    def is_a(self) -> Fields:
        kind = self._rng.choice(list(self._words["kinds"]))
        return {"kind": kind, "thing": self._rng.choice(self._words["kinds"][kind])}

    def is_not_a(self) -> Fields:
        kind, wrong = self._rng.sample(list(self._words["kinds"]), 2)
        return {"kind": kind, "wrong": wrong, "thing": self._rng.choice(self._words["kinds"][kind])}

    def odd_one(self) -> Fields:
        kind, other = self._rng.sample(list(self._words["kinds"]), 2)
        a, b = self._rng.sample(self._words["kinds"][kind], 2)
        odd = self._rng.choice(self._words["kinds"][other])
        x, y, z = self._rng.sample((a, b, odd), 3)
        return {"kind": kind, "a": a, "b": b, "odd": odd, "x": x, "y": y, "z": z}
