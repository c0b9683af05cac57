"""Computed rows for the questions of drills.toml: sums, order, counting, recall. One case a drill, named alike."""

from __future__ import annotations

import random
from typing import Any

from chatbaker.made.forms import native_word, number_word


def compute(name: str, rng: random.Random, words: dict[str, Any], lang: str) -> dict[str, int | str]:
    """The fields that the templates of a drill use. words: the word lists of the language (drills.toml, `words`)."""

    def small(limit: int) -> int:
        """0 to `limit`; mostly below 13, as most sums that people ask are small."""
        return rng.randint(0, min(12, limit) if rng.random() < 0.8 else limit)

    kinds: dict[str, list[str]] = words["kinds"]
    things = [thing for members in kinds.values() for thing in members]
    match name:
        case "add":
            a, b = small(99), small(99)
            return {"a": a, "b": b, "c": a + b}
        case "subtract":
            a = small(99)
            b = rng.randint(0, a)
            return {"a": a, "b": b, "c": a - b}
        case "multiply":
            a, b = rng.randint(0, 12), rng.randint(0, 12)
            return {"a": a, "b": b, "c": a * b}
        case "divide":
            b, c = rng.randint(1, 12), rng.randint(0, 12)
            return {"a": b * c, "b": b, "c": c}
        case "add_words":
            a, b = rng.randint(0, 20), rng.randint(0, 20)
            return {field: number_word(n, lang) for field, n in (("a", a), ("b", b), ("c", a + b))} | {"n": a + b}
        case "spell":
            n = small(100)
            return {"n": n, "word": number_word(n, lang)}
        case "native":
            n = rng.randint(1, 99)
            return {"n": n, "word": native_word(n)}
        case "bigger":
            a, b = rng.sample(range(100), 2)
            return {"a": a, "b": b, "big": max(a, b), "small": min(a, b)}
        case "larger":
            names = words["by_size"]
            i, j = rng.sample(range(len(names)), 2)
            return {"a": names[i], "b": names[j], "big": names[max(i, j)], "small": names[min(i, j)]}
        case "next_number":
            n = small(99)
            return {"n": n, "next": n + 1}
        case "previous_number":
            n = rng.randint(1, 100)
            return {"n": n, "previous": n - 1}
        case "parity":
            n = small(99)
            return {"n": n, "parity": words["parity"][n % 2]}
        case "half":
            n = rng.randint(1, 50)
            return {"n": n, "double": 2 * n}
        case "count_up":
            first = 1 if rng.random() < 0.7 else rng.randint(2, 20)
            last = first + rng.randint(2, 9)
            return {"first": first, "last": last, "all": ", ".join(map(str, range(first, last + 1)))}
        case "count_down":
            n = rng.randint(3, 10)
            return {"n": n, "all": ", ".join(map(str, range(n, 0, -1)))}
        case "count_words":
            n = rng.randint(3, 10)
            read = (native_word(k) if lang == "ko" else number_word(k, lang) for k in range(1, n + 1))
            return {"n": n, "all": ", ".join(read)}
        case "hours":
            now, later = rng.randint(1, 12), rng.randint(2, 6)
            return {"now": now, "later": later, "then": (now + later - 1) % 12 + 1}
        case "left":
            a = rng.randint(3, 20)
            b = rng.randint(1, a - 2)
            return {"thing": rng.choice(words["countable"]), "a": a, "b": b, "c": a - b}
        case "more":
            a, b = rng.randint(2, 20), rng.randint(2, 20)
            return {"thing": rng.choice(words["countable"]), "a": a, "b": b, "c": a + b}
        case "echo":
            return {"word": rng.choice(things + words["phrases"])}
        case "length":
            word = rng.choice([thing for thing in things if " " not in thing])
            return {"word": word, "n": len(word), "first": word[0], "last": word[-1]}
        case "alphabet":
            code = rng.randint(ord("A"), ord("Y"))
            return {"letter": chr(code), "next": chr(code + 1)}
        case "stranger":
            given, surname = rng.choice(words["names"]), rng.choice(words["surnames"])
            return {"person": surname + given if lang == "ko" else f"{given} {surname}"}
        case "age":
            n = rng.randint(8, 60)
            return {"n": n, "next": n + 1}
        case "choose":
            one, other = rng.sample(words["foods"], 2)
            return {"a": one, "b": other, "pick": rng.choice((one, other))}
        case "examples":
            kind = rng.choice(list(kinds))
            one, two, three = rng.sample(kinds[kind], 3)
            return {"kind": kind, "a": one, "b": two, "c": three}
        case "is_a":
            kind = rng.choice(list(kinds))
            return {"kind": kind, "thing": rng.choice(kinds[kind])}
        case "is_not_a":
            kind, wrong = rng.sample(list(kinds), 2)
            return {"kind": kind, "wrong": wrong, "thing": rng.choice(kinds[kind])}
        case "odd_one":
            kind, strange = rng.sample(list(kinds), 2)
            one, other = rng.sample(kinds[kind], 2)
            odd = rng.choice(kinds[strange])
            x, y, z = rng.sample((one, other, odd), 3)
            return {"kind": kind, "a": one, "b": other, "odd": odd, "x": x, "y": y, "z": z}
    raise KeyError(name)
