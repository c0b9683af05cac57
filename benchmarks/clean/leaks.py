"""Decontamination: are planted evaluation items found, and are other documents left alone?

Items of every set in DATA/eval are planted in documents of DATA/pretrain that leak nothing by themselves: the whole
record, its strings numbered, or its longest string alone, in six ways. Width is letters and digits, a Hangul syllable
counting three; a string shorter than an n-gram does not count.

    python benchmarks/clean/leaks.py --data DATA [--records 100] [--documents 21000] [--show 20]
"""

from __future__ import annotations

import argparse
import difflib
import random
import resource
import sys
import tempfile
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from chatbaker.jsonl import read_jsonl
from chatbaker.text import decontaminate
from chatbaker.text.decontaminate import MIN, WIDE, Index, read_items
from chatbaker.text.korean import normalize

LONG = 72  # an item of this width must be found with words changed
PUNCTUATION = str.maketrans({".": "!", ",": " -", "?": "...", "'": "", '"': "“", "[": "", "]": ""})


def letters(text: str) -> str:
    return "".join(map(chr, decontaminate._letters(text)))


def width(text: str) -> int:
    return sum(3 if ord(letter) >= WIDE else 1 for letter in letters(text))


def counted(text: str) -> int:
    """Width, or 0 where the text is shorter than an n-gram: 12 letters, or 6 if they are wide."""
    size = width(text)
    return size if len(letters(text)) >= (12 if size < 2 * len(letters(text)) else 6) else 0


def changed(text: str, words: list[str], rng: random.Random) -> str:
    """One word in ten replaced, at least one and at most three."""
    old = text.split(" ")
    for place in rng.sample(range(len(old)), max(1, min(3, round(len(old) / 10)))):
        old[place] = rng.choice([word for word in rng.sample(words, 2) if word != old[place]] or ["other"])
    return " ".join(old)


KINDS: dict[str, Callable[[str, list[str], random.Random], str]] = {
    "verbatim": lambda text, words, rng: text,
    "no space": lambda text, words, rng: "".join(text.split()),
    "spaces": lambda text, words, rng: "".join(c + " \n"[rng.random() < 0.1] * (rng.random() < 0.3) for c in text),
    "NFD": lambda text, words, rng: unicodedata.normalize("NFD", text),
    "case, .,?": lambda text, words, rng: text.swapcase().translate(PUNCTUATION),
    "words": changed,
}


def sample(data: Path, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """(file, text) of documents of all files of DATA/pretrain, in equal shares of each."""
    files = sorted((data / "pretrain").glob("*.jsonl.zst"))
    texts = [(path.name.split(".")[0], record["text"]) for path in files for _, record in read_jsonl(path)]
    return [(name, normalize(text)) for name, text in rng.sample(texts, min(count, len(texts)))]


def run_in_common(text: str, strings: list[str]) -> str:
    """The longest run of letters that the text has from one of the strings."""
    found = ""
    for string in map(letters, strings):
        match = difflib.SequenceMatcher(None, string, letters(text), autojunk=False).find_longest_match()
        found = max(found, string[match.a : match.a + match.size], key=len)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=100, help="planted of each set")
    parser.add_argument("--documents", type=int, default=21_000)
    parser.add_argument("--show", type=int, default=0, help="unplanted documents that leak, of each kind")
    args = parser.parse_args()
    rng = random.Random(0)
    records = {line: (name, strings) for name, line, strings in read_items(["eval/*"], args.data)}
    documents = sample(args.data, args.documents, rng)
    begin = time.process_time()
    index = Index.build(read_items(["eval/*"], args.data))
    seconds = time.process_time() - begin
    size, peak = sum(array.nbytes for array in index), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(len(letters(text)) for text in {text for _, strings in records.values() for text in strings})
    print(
        f"{len(records):,} records, {len(index.names):,} items, {total / 1e6:.1f} M letters: built in {seconds:.0f} s,"
    )
    print(f"{size / 1e6:.0f} MB ({size / total:.1f} bytes per letter), peak {peak / 1e6:.1f} GB with what is measured")
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder, "index"))
        index = Index.load(Path(folder, "index"))
        speed(index, documents)
        clean, wrong, natural = unplanted(index, documents, records, args.show)
        right, tried = planted(index, records, clean, args.records, rng)
    print(f"\nfrom {LONG} wide: {tried:,} planted, {right:,} found: recall {right / tried:.4f}")
    precision = right / (right + wrong), right / (right + wrong + natural)
    print(f"precision {precision[0]:.4f} ({precision[1]:.4f} if natural ones were wrong)")


def speed(index: Index, documents: list[tuple[str, str]]) -> None:
    """Best of five rounds for each document: other work on the machine must not count."""
    for language in ("ko", "en"):
        texts = [text for name, text in documents if name.startswith(language)][:1000]
        best = [float("inf")] * len(texts)
        for _ in range(5):
            for number, text in enumerate(texts):
                begin = time.perf_counter()
                index.leak(text)
                best[number] = min(best[number], time.perf_counter() - begin)
        size = sum(len(text.encode()) for text in texts)
        print(f"{language}: {sum(best) / size * 1e9:.1f} ns per UTF-8 byte", end="")
        print(f", {sum(best) / len(texts) * 1e6:.0f} µs per document of {size / len(texts):,.0f} bytes")


def unplanted(
    index: Index, documents: list[tuple[str, str]], records: dict[str, tuple[str, list[str]]], show: int
) -> tuple[dict[str, list[str]], int, int]:
    """Documents that leak nothing, by language; how many leak wrongly, and how many have the item's text."""
    clean: dict[str, list[str]] = defaultdict(list)
    natural, hits, sets, files = 0, [], Counter[str](), Counter[str]()
    for name, text in documents:
        if leak := index.leak(text):
            run = run_in_common(text, records[leak.item][1])
            natural += width(run) >= MIN
            hits.append((name, leak, run))
            sets.update(leak.sets)
            files[name] += 1
        else:
            clean[name[:2]].append(text)
    print(f"\nnot planted: {len(documents):,} documents, {len(hits)} leak: {dict(sets)}\n  in {dict(files)}")
    print(f"  natural, at least {MIN} wide word for word: {natural}; the other {len(hits) - natural} count as wrong")
    hits.sort(key=lambda hit: width(hit[2]) >= MIN)
    for name, leak, run in hits[:show] + random.Random(0).sample(hits[-natural:], min(show, natural)):
        print(f"  {name} {leak.item} {leak.share:.2f} {records[leak.item][1][0][:50]!r} in common: {run[:70]!r}")
    return clean, len(hits) - natural, natural


def planted(
    index: Index, records: dict[str, tuple[str, list[str]]], clean: dict[str, list[str]], count: int, rng: random.Random
) -> tuple[int, int]:
    """Found and tried, of those wide enough."""
    words = {language: [word for text in texts[:500] for word in text.split()] for language, texts in clean.items()}
    by_name: dict[str, list[list[str]]] = defaultdict(list)
    for name, strings in records.values():
        by_name[name].append([normalize(text) for text in strings])
    results: dict[tuple[str, str, str, str], list[bool]] = defaultdict(list)
    for name, of_set in by_name.items():
        language = "ko" if name.startswith("ko") else "en"
        for strings in rng.sample(of_set, min(count, len(of_set))):
            labelled = "\n".join(f"({number}) {text}" for number, text in enumerate(strings, 1))
            for part, text in (("record", labelled), ("string", max(strings, key=len, default=""))):
                size = sum(map(counted, strings)) if part == "record" else counted(text)
                group = "narrow" if size < MIN else "middle" if size < LONG else "wide"
                for kind, change in KINDS.items():
                    host = rng.choice(clean[language])
                    place = rng.randrange(len(host))
                    leaking = f"{host[:place]}\n{change(text, words[language], rng)}\n{host[place:]}"
                    leak = index.leak(normalize(leaking))
                    results[part, name, group, kind].append(leak is not None and name in leak.sets)
    for part, title in (("record", "the whole record"), ("string", "its longest string alone")):
        print(f"\nplanted, {title}: recall from {LONG} wide | share and recall of {MIN} to {LONG} wide | share below")
        print(f"{'':16}{'share':>7}" + "".join(f"{kind:>10}" for kind in KINDS) + f" |{'share':>7}", end="")
        print(f"{'verbatim':>10}{'words':>7} |{'share':>7}")
        for name in (*by_name, ""):
            groups = {group: _merge(results, part, name, group) for group in ("wide", "middle", "narrow")}
            all_of = sum(len(kinds["words"]) for kinds in groups.values())
            share = {group: f"{len(kinds['words']) / all_of:>7.1%}" for group, kinds in groups.items()}
            rates = {group: {kind: _rate(kinds[kind]) for kind in KINDS} for group, kinds in groups.items()}
            print(
                f"{name or 'all':16}{share['wide']}" + "".join(f"{rate:>10}" for rate in rates["wide"].values()), end=""
            )
            print(
                f" |{share['middle']}{rates['middle']['verbatim']:>10}{rates['middle']['words']:>7} |{share['narrow']}"
            )
    wide = [hit for (_, _, group, _), hits in results.items() if group == "wide" for hit in hits]
    return sum(wide), len(wide)


def _merge(
    results: dict[tuple[str, str, str, str], list[bool]], part: str, name: str, group: str
) -> dict[str, list[bool]]:
    """By kind, of one set, or of all where name is empty."""
    merged: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for (its_part, its_name, its_group, kind), hits in results.items():
        if (its_part, its_group) == (part, group) and name in ("", its_name):
            merged[kind] += hits
    return merged


def _rate(hits: list[bool]) -> str:
    return f"{sum(hits) / len(hits):.3f}" if hits else "-"


if __name__ == "__main__":
    main()
