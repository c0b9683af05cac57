"""The stage `clean`: every source in, one file of kept documents per source out, and a reason for every other one.

    documents/<source>.jsonl.zst    {"text", "source", "lang", "licence"}, for training
    validation/<source>.jsonl.zst   the same, held out by a hash of the text, never trained on
    funnel.json                     documents and characters per source: read = kept + validation + dropped by reason
    dropped/<reason>.jsonl          the first dropped documents of each source, to look at
    ledger.json                     what was kept for training, per source, with its licence

A filter is a function Document -> reason to drop it, or None. The same text in the same recipe gives the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from chatbaker import recipe as recipes
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import write_jsonl
from chatbaker.log import progress, say
from chatbaker.rundir import RunDir, new_folder, write_json
from chatbaker.text import sources
from chatbaker.text.sources import Document

SAMPLES = 20  # dropped documents kept for each source and reason
SAMPLE_CHARS = 2000

Filter = Callable[[Document], str | None]


class Funnel:
    """Counts and samples of what happened to every document, by source and outcome."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        self.samples: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(lambda: defaultdict(list))

    def count(self, source: str, outcome: str, characters: int) -> None:
        counts = self.counts[source][outcome]
        counts[0] += 1
        counts[1] += characters

    def drop(self, source: str, reason: str, where: str, text: str) -> None:
        self.count(source, f"dropped {reason}", len(text))
        self.sample(source, reason, {"source": source, "where": where, "text": text[:SAMPLE_CHARS]})

    def unreadable(self, source: str, error: ChatBakerError) -> None:
        self.count(source, "dropped unreadable", 0)
        self.sample(source, "unreadable", {"source": source, "where": error.where or "", "error": error.what})

    def sample(self, source: str, reason: str, record: dict[str, str]) -> None:
        kept = self.samples[reason][source]
        if len(kept) < SAMPLES:
            kept.append(record)

    def table(self, source: str) -> dict[str, Any]:
        """read, kept, validation and dropped (by reason), each with documents and characters."""
        counts = self.counts[source]
        dropped = {
            name.removeprefix("dropped "): _pair(*counts[name]) for name in counts if name.startswith("dropped ")
        }
        read = _pair(sum(n for n, _ in counts.values()), sum(c for _, c in counts.values()))
        return {"read": read, **{name: _pair(*counts[name]) for name in ("kept", "validation")}, "dropped": dropped}


def _pair(documents: int, characters: int) -> dict[str, int]:
    return {"documents": documents, "characters": characters}


def run(recipe: recipes.Recipe, run: RunDir) -> None:
    """Clean every source of the recipe into runs/<name>/clean.

    An earlier result stays until the new one is whole. Raises ChatBakerError where no source is named, a source has
    no file, nothing is kept, or (strict) something cannot be read.
    """
    section, data_root = recipe.clean, Path(recipe.data_root)
    if not section.sources:
        raise ChatBakerError("the recipe names no sources", "clean.sources", "Add a [[clean.sources]] table")
    size = sum(path.stat().st_size for source in section.sources for path in sources.files(source, data_root))
    with new_folder(run.path("clean")) as part:
        _clean(recipe, part, size)


def _clean(recipe: recipes.Recipe, part: Path, size: int) -> None:
    """Write everything into the folder `part`. size: bytes of all input files."""
    section = recipe.clean
    funnel = Funnel()
    filters = build_filters(section)
    ledger = []
    done = 0

    with progress("clean: bytes", size) as bar:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            bar.update(done, source.name)

        def on_bad(error: ChatBakerError) -> None:
            if section.strict:
                raise error
            funnel.unreadable(source.name, error)

        for source in section.sources:
            documents = sources.read(source, Path(recipe.data_root), recipe.seed, on_bad, on_bytes)
            kept_bytes = _clean_source(documents, source.name, filters, section.validation, funnel, part)
            kept = funnel.table(source.name)["kept"]
            entry = {"source": source.name, "language": source.language, "licence": source.licence}
            ledger.append(entry | kept | {"bytes": kept_bytes})

    for source in section.sources:
        say(_summary(source.name, funnel.table(source.name)))
    for error in (samples[0] for samples in funnel.samples.get("unreadable", {}).values()):
        say(f"unreadable: {error['where']}: {error['error']}")
    if not any(entry["documents"] for entry in ledger):
        raise ChatBakerError("no document is left to train on", "clean.sources", "See above what was read and dropped")
    write_json(part / "funnel.json", {source.name: funnel.table(source.name) for source in section.sources})
    write_json(part / "ledger.json", ledger)
    for reason, by_source in funnel.samples.items():
        with write_jsonl(part / "dropped" / f"{reason}.jsonl") as write:
            for samples in by_source.values():
                for sample in samples:
                    write(sample)


def _clean_source(
    documents: Iterator[Document], name: str, filters: list[Filter], validation: float, funnel: Funnel, part: Path
) -> int:
    """Write one source's documents; returns the bytes of text kept for training."""
    size = 0
    with ExitStack() as stack:
        keep = stack.enter_context(write_jsonl(part / "documents" / f"{name}.jsonl.zst"))
        hold = stack.enter_context(write_jsonl(part / "validation" / f"{name}.jsonl.zst"))
        for document in documents:
            text = document.text
            reason = next((reason for check in filters if (reason := check(document))), None)
            if reason is not None:
                funnel.drop(name, reason, document.where, text)
                continue
            held_out = document.fingerprint < validation * 2**64
            funnel.count(name, "validation" if held_out else "kept", len(text))
            record = {"text": text, "source": name, "lang": document.language, "licence": document.licence}
            if held_out:
                hold(record)
            else:
                keep(record)
                size += len(text.encode())
    return size


def build_filters(section: recipes.Clean) -> list[Filter]:
    """The filters that a recipe asks for, in the order in which they look at a document."""
    filters: list[Filter] = [too_short(section.min_chars)]
    if section.dedup == "exact":
        filters.append(duplicate())
    return filters


def too_short(min_chars: int) -> Filter:
    return lambda document: "too_short" if len(document.text.strip()) < min_chars else None


def duplicate() -> Filter:
    """Drops a text seen before in any source. Remembers 8 bytes of hash, not the text."""
    seen: set[int] = set()

    def check(document: Document) -> str | None:
        if document.fingerprint in seen:
            return "duplicate"
        seen.add(document.fingerprint)
        return None

    return check


def _summary(name: str, table: dict[str, Any]) -> str:
    dropped = "".join(f", {pair['documents']:,} {reason}" for reason, pair in table["dropped"].items())
    read, kept, held_out = (table[key]["documents"] for key in ("read", "kept", "validation"))
    return f"{name}: {read:,} read, {kept:,} kept, {held_out:,} held out{dropped}"
