"""The stage `clean`: every source in, shards of kept documents out, and a reason for every other one.

    documents/<source>/*.jsonl.zst  {"text", "source", "lang", "licence"}, for training
    validation/<source>/            the same, held out by a hash of the text, never trained on
    funnel.json                     documents and characters per source: read = kept + validation + dropped by reason
                                    + edited (characters taken out of the documents that stay)
    dropped/<reason>.jsonl          the first dropped documents of each source, to look at
    encodings.json                  what each file was encoded in
    ledger.json                     what was kept for training, per source, with its licence
    README.md                       the same for people: the data card

Phases run as tasks on datatrove (`engine`): `sift` looks at each document by itself, `match` and `settle` find
duplicates over the whole corpus, `write` drops these. What they leave lies in clean.work until the result is whole, so
a kill costs the unfinished tasks only. Which files a task reads does not depend on the number of workers, nor does
the result.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chatbaker import __version__
from chatbaker import recipe as recipes
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_jsonl, write_jsonl
from chatbaker.log import say
from chatbaker.rundir import RunDir, digest, disk_error, find_files, fingerprint, read_json, write_json
from chatbaker.text import engine, filters, korean, personal, sources
from chatbaker.text.decontaminate import Index, read_items
from chatbaker.text.dedup import Corpus, Signer
from chatbaker.text.engine import Phase, Report
from chatbaker.text.sources import Document

SAMPLES = 20  # dropped documents kept for each source and reason
SAMPLE_CHARS = 2000
TASK_BYTES = 64_000_000  # small files share a task up to this size
MATCH_BYTES = 4_000_000_000  # of input for each task that looks for duplicates
PARAGRAPH = 60  # letters of the shortest line that counts as a paragraph


@dataclass
class Tally:
    """Counts and samples of what happened to the documents of one source; tallies of its tasks add up."""

    counts: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    samples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    notes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """encodings (per file), leaks (documents per evaluation set), personal (masked, per kind)."""

    def count(self, outcome: str, characters: int, documents: int = 1) -> None:
        counts = self.counts[outcome]
        counts[0] += documents
        counts[1] += characters

    def drop(self, reason: str, where: str, text: str, raw: int, **facts: Any) -> None:
        self.count(f"dropped {reason}", raw)
        self.sample(reason, {"where": where, **facts, "text": text[:SAMPLE_CHARS]})

    def unreadable(self, error: ChatBakerError) -> None:
        self.count("dropped unreadable", 0)
        self.sample("unreadable", {"where": error.where or "", "error": error.what})

    def sample(self, reason: str, record: dict[str, Any]) -> None:
        if len(self.samples[reason]) < SAMPLES:
            self.samples[reason].append(record)

    def add(self, path: Path) -> None:
        """Add what another tally saved."""
        saved = read_json(path)
        for outcome, (documents, characters) in saved["counts"].items():
            self.count(outcome, characters, documents)
        for reason, records in saved["samples"].items():
            for record in records:
                self.sample(reason, record)
        for name, counter in saved["notes"].items():
            self.notes[name].update(counter)

    def save(self, path: Path) -> None:
        write_json(path, {"counts": self.counts, "samples": self.samples, "notes": self.notes})

    def table(self) -> dict[str, Any]:
        """read, kept, validation, dropped (by reason) and edited, each with documents and characters."""
        counts = self.counts
        dropped = {
            name.removeprefix("dropped "): _pair(*counts[name]) for name in counts if name.startswith("dropped ")
        }
        read = _pair(sum(n for n, _ in counts.values()), sum(c for _, c in counts.values()))
        rest = {name: _pair(*counts[name]) for name in ("kept", "validation", "edited")}
        notes = {name: dict(sorted(self.notes[name].items())) for name in ("leaks", "personal")}
        return {"read": read, **rest, "dropped": dropped, **notes}


def _pair(documents: int, characters: int) -> dict[str, int]:
    return {"documents": documents, "characters": characters}


def run(recipe: recipes.Recipe, run: RunDir) -> None:
    """Clean every source of the recipe into runs/<name>/clean.

    An earlier result stays until the new one is whole; a run that was cut short goes on. Raises ChatBakerError where
    no source is named, a source has no file, nothing is kept, or (strict) something cannot be read.
    """
    section, root = recipe.clean, Path(recipe.data_root)
    if not section.sources:
        raise ChatBakerError("the recipe names no sources", "clean.sources", "Add a [[clean.sources]] table")
    units = [unit for number in range(len(section.sources)) for unit in _units(section.sources[number], number, root)]
    total = sum(size for _, files in units for _, size in files)
    work = run.path("clean.work")
    local = [Path(file) for _, files in units for file, _ in files if Path(file).exists()]
    local += [path for pattern in section.decontaminate for path in find_files(root, f"{pattern}/**")]
    key = digest([section.decisive(), recipe.seed, units, fingerprint(local), __version__])
    handed_over = (work / "write" / "completions").exists() and not (work / "result").exists()
    try:
        if handed_over or not (work / key).exists():
            shutil.rmtree(work, ignore_errors=True)
            (work / key).mkdir(parents=True)
        write_json(work / "units.json", units)
        if section.decontaminate and not (work / "leaks").exists():
            Index.build(read_items(section.decontaminate, root)).save(work / "leaks")
        world = 1 + total // MATCH_BYTES
        match = [
            Phase("match", Match(section, work, world), world, world),
            Phase("settle", Settle(section, work), 1, 1),
        ]
        phases = [
            Phase("sift", Sift(section, recipe.seed, work), len(units), total),
            *(match if section.dedup != "none" else ()),
            Phase("write", Write(section, work), len(units), total),
        ]
        engine.run(phases, section, work)
        _finish(section, units, work)
        shutil.rmtree(run.path("clean"), ignore_errors=True)
        (work / "result").replace(run.path("clean"))
        (work / key).rmdir()  # first, so that what is left of the rest is never taken for whole
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, work) from error


Unit = tuple[int, list[tuple[str, int]]]
"""What one task reads: the number of a source, and some of its files with their sizes."""


def _units(source: recipes.Source, number: int, root: Path) -> Iterator[Unit]:
    """A source's files in order, small ones together; all of them where a limit counts its documents."""
    unit: list[tuple[str, int]] = []
    for file in sources.files(source, root):
        size = sources.size(file)
        if unit and source.limit is None and sum(size for _, size in unit) + size > TASK_BYTES:
            yield number, unit
            unit = []
        unit.append((file, size))
    yield number, unit


@dataclass(frozen=True)
class Sift:
    """Phase `sift`: reads a task's files and keeps the documents that are good by themselves."""

    section: recipes.Clean
    seed: int
    work: Path

    def __call__(self, task: int, report: Report) -> None:
        number, files = read_json(self.work / "units.json")[task]
        source = self.section.sources[number]
        judge = Judge(self.section, self.work)
        tally, signer = Tally(), Signer(PARAGRAPH)

        def on_bad(error: ChatBakerError) -> None:
            if self.section.strict:
                raise error
            tally.unreadable(error)

        with write_jsonl(self.work / "documents" / f"{task:05d}.jsonl.zst") as write:
            for document in sources.read_all(source, [file for file, _ in files], self.seed, on_bad, report):
                broken = " with unreadable bytes" if "\ufffd" in document.text else ""
                tally.notes["encodings"][f"{_file(document)}\n{document.encoding}{broken}"] += 1
                text, reason, facts = judge(document, tally)
                if reason is not None:
                    tally.drop(reason, document.where, document.text, len(document.text), **facts)
                    continue
                signer.sign(text)
                write({"text": text, "where": document.where, "raw": len(document.text)})
        signer.write(self.work / "signatures", task)
        tally.save(self.work / "sifted" / f"{task:05d}.json")


def _file(document: Document) -> str:
    """The file or archive member that a document is from, without line or address."""
    return re.sub(r":[0-9]+$|#.*", "", document.where)


class Judge:
    """Everything that happens to one document: repair, normalize, trim, filter, mask, decontaminate."""

    def __init__(self, section: recipes.Clean, work: Path) -> None:
        self.section = section
        self.index = Index.load(work / "leaks") if section.decontaminate else None

    def __call__(self, document: Document, tally: Tally) -> tuple[str, str | None, dict[str, Any]]:
        """(the text as it would be kept, why it is dropped or None, facts for the sample)."""
        repaired = korean.repair(document.text)
        if repaired is None:
            return document.text, "mojibake", {}
        text = korean.normalize(repaired)
        for finding in filters.findings(text, document.language, self.section.filters):
            if finding.reason is not None:
                return text, finding.reason, {finding.filter: round(finding.value, 3)}
        text = filters.trim(text, document.language)
        if self.index is not None and (leak := self.index.leak(text)):
            tally.notes["leaks"].update(leak.sets)
            return text, "leak", {"item": leak.item, "share": round(leak.share, 2)}
        if self.section.personal:
            text, masked = personal.mask(text)
            tally.notes["personal"].update(masked)
        return text, None, {}


@dataclass(frozen=True)
class Match:
    """Phase `match`: each task finds a share of the pairs of like documents."""

    section: recipes.Clean
    work: Path
    world: int

    def __call__(self, task: int, report: Report) -> None:
        _corpus(self.section, self.work).find_pairs(task, self.world)
        report(1)


@dataclass(frozen=True)
class Settle:
    """Phase `settle`: one task decides which of them stay, and which paragraphs."""

    section: recipes.Clean
    work: Path

    def __call__(self, task: int, report: Report) -> None:
        _corpus(self.section, self.work).settle(self.section.paragraph_repeats)
        report(1)


def _corpus(section: recipes.Clean, work: Path) -> Corpus:
    return Corpus(work / "signatures", section.similarity if section.dedup == "minhash" else None)


@dataclass(frozen=True)
class Write:
    """Phase `write`: a task's documents without what stands elsewhere too, shared out to training and validation."""

    section: recipes.Clean
    work: Path

    def __call__(self, task: int, report: Report) -> None:
        number, files = read_json(self.work / "units.json")[task]
        source = self.section.sources[number]
        prints = np.load(self.work / "signatures" / f"{task:06d}.print.npy")
        drops, lines = self._drops(task)
        tally = Tally()
        name = f"{source.name}/{task:05d}.jsonl.zst"
        with ExitStack() as stack:
            keep = stack.enter_context(write_jsonl(self.work / "result" / "documents" / name))
            hold = stack.enter_context(write_jsonl(self.work / "result" / "validation" / name))
            for index, (_, record) in enumerate(read_jsonl(self.work / "documents" / f"{task:05d}.jsonl.zst")):
                raw, where, text = record["raw"], record["where"], record["text"]
                if index in drops:
                    of, stays, same = drops[index]
                    reason = "duplicate" if same else "near_duplicate"
                    tally.drop(reason, where, text, raw, like=[of, stays])
                    continue
                if index in lines:
                    rest = [line for at, line in enumerate(text.split("\n")) if at not in lines[index]]
                    text = "\n".join(rest).strip()
                    if len(text) < self.section.filters.min_chars:
                        tally.drop("repeated_paragraphs", where, record["text"], raw)
                        continue
                held_out = int(prints[index]) < self.section.validation * 2**64
                tally.count("validation" if held_out else "kept", len(text))
                tally.count("edited", raw - len(text), documents=0)
                kept = {"text": text, "source": source.name, "lang": source.language, "licence": source.licence}
                (hold if held_out else keep)(kept)
                if not held_out:
                    tally.notes["bytes"]["kept"] += len(text.encode())
        report(sum(size for _, size in files))
        tally.save(self.work / "written" / f"{task:05d}.json")

    def _drops(self, task: int) -> tuple[dict[int, list[int]], dict[int, set[int]]]:
        """What `settle` said of a task: documents to drop (for which other), and numbers of lines to take out."""
        lines: dict[int, set[int]] = defaultdict(set)
        if self.section.dedup == "none":
            return {}, lines
        with np.load(self.work / "signatures" / f"{task:06d}.drops.npz") as found:
            for place in found["lines"].tolist():
                lines[place >> 32].add(place & 0xFFFFFFFF)
            return {index: rest for index, *rest in found["documents"].tolist()}, lines


def _finish(section: recipes.Clean, units: list[Unit], work: Path) -> None:
    """Add the tasks' tallies up, and write what a person reads."""
    result = work / "result"
    tallies = {source.name: Tally() for source in section.sources}
    for task, (number, _) in enumerate(units):
        for folder in ("sifted", "written"):
            tallies[section.sources[number].name].add(work / folder / f"{task:05d}.json")
    tables = {name: tally.table() for name, tally in tallies.items()}
    for name, table in tables.items():
        say(_summary(name, table))
    for tally in tallies.values():
        for error in tally.samples.get("unreadable", ())[:1]:
            say(f"unreadable: {error['where']}: {error['error']}")
    if not any(table["kept"]["documents"] for table in tables.values()):
        raise ChatBakerError("no document is left to train on", "clean.sources", "See above what was read and dropped")
    ledger = [
        {"source": source.name, "language": source.language, "licence": source.licence, **tables[source.name]["kept"]}
        | {"bytes": tallies[source.name].notes["bytes"]["kept"]}
        for source in section.sources
    ]
    encodings: dict[str, dict[str, int]] = defaultdict(dict)
    for tally in tallies.values():
        for name, documents in tally.notes["encodings"].items():
            file, _, encoding = name.partition("\n")
            encodings[file][encoding] = documents
    write_json(result / "funnel.json", tables)
    write_json(result / "ledger.json", ledger)
    write_json(result / "encodings.json", encodings)
    _name_survivors(tallies, work)
    for reason in sorted({reason for tally in tallies.values() for reason in tally.samples}):
        with write_jsonl(result / "dropped" / f"{reason}.jsonl") as write:
            for name, tally in tallies.items():
                for sample in tally.samples.get(reason, ()):
                    write({"source": name, **sample})
    (result / "README.md").write_text(_card(section, tables), encoding="utf-8")


def _name_survivors(tallies: dict[str, Tally], work: Path) -> None:
    """Put the place and the text of the document that stays into the samples of duplicates."""
    wanted: dict[int, dict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for tally in tallies.values():
        for sample in (sample for reason in ("duplicate", "near_duplicate") for sample in tally.samples[reason]):
            task, index = sample["like"]
            wanted[task][index].append(sample)
    for task, samples in wanted.items():
        for index, (_, record) in enumerate(read_jsonl(work / "documents" / f"{task:05d}.jsonl.zst")):
            for sample in samples.get(index, ()):
                sample.update(like=record["where"], like_text=record["text"][:SAMPLE_CHARS])


def _summary(name: str, table: dict[str, Any]) -> str:
    dropped = "".join(f", {pair['documents']:,} {reason}" for reason, pair in table["dropped"].items())
    read, kept, held_out = (table[key]["documents"] for key in ("read", "kept", "validation"))
    return f"{name}: {read:,} read, {kept:,} kept, {held_out:,} held out{dropped}"


def _card(section: recipes.Clean, tables: dict[str, dict[str, Any]]) -> str:
    """The data card: what is in the corpus, from where, under which licence, and what was taken out."""
    lines = ["# Data card", "", "| source | from | language | licence | read | kept | held out | dropped |"]
    lines.append("|---|---|---|---|---:|---:|---:|---|")
    for source in section.sources:
        table = tables[source.name]
        dropped = ", ".join(f"{reason} {pair['documents']:,}" for reason, pair in table["dropped"].items())
        counts = " | ".join(f"{table[key]['documents']:,}" for key in ("read", "kept", "validation"))
        origin = source.origin or source.path
        row = f"{source.name} | {origin} | {source.language} | {source.licence} | {counts} | {dropped}"
        lines.append(f"| {row} |")
    for title, key in (("Masked personal data", "personal"), ("Documents dropped for evaluation items", "leaks")):
        total: Counter[str] = sum((Counter(table[key]) for table in tables.values()), Counter())
        if total:
            found = ", ".join(f"{name} {count:,}" for name, count in sorted(total.items()))
            lines += ["", f"{title}: {found}."]
    return "\n".join([*lines, ""])


def explain(recipe: recipes.Recipe, place: str) -> None:
    """Print what every step thinks of one document. place: FILE:LINE, FILE!MEMBER or FILE#URL, as samples name it."""
    section, root = recipe.clean, Path(recipe.data_root)
    places = (place, str(root / place))
    found = (
        document
        for source in section.sources
        for file in sources.files(source, root)
        if any(re.fullmatch(re.escape(file) + "([:#!].*)?", name) for name in places)
        for document in sources.read(source, file, recipe.seed, lambda error: None, lambda size: None)
        if document.where in places
    )
    document = next(found, None)
    if document is None:
        raise ChatBakerError("no source has a document there", place, "Write FILE:LINE, FILE!MEMBER or FILE#URL")
    for line in explanation(document, section, root):
        print(line)


def explanation(document: Document, section: recipes.Clean, root: Path) -> Iterator[str]:
    """The lines that `explain` prints."""
    repaired = korean.repair(document.text)
    yield f"source      {document.source} ({document.language}), {document.encoding}, {len(document.text):,} characters"
    if repaired is None:
        yield "mojibake    beyond repair: dropped"
        return
    normal = korean.normalize(repaired)
    text = filters.trim(normal, document.language)
    yield f"mojibake    {'none' if repaired == document.text else 'repaired'}"
    yield f"normalized  {len(normal) - len(repaired):+,} characters; lines of boilerplate {len(text) - len(normal):+,}"
    for finding in filters.findings(normal, document.language, section.filters):
        verdict = f"drop: {finding.reason}" if finding.reason else "keep"
        yield f"{finding.filter:<20} {finding.value:>10.4g}   limit {finding.limit:<8g} {verdict}"
    if section.decontaminate:
        leak = Index.build(read_items(section.decontaminate, root)).leak(text)
        yield f"evaluation sets      {f'drop: {leak.item} ({leak.share:.0%})' if leak else 'keep'}"
    masked = personal.mask(text)[1]
    yield f"personal data        {', '.join(f'{kind} {n}' for kind, n in sorted(masked.items())) or 'none'}"
