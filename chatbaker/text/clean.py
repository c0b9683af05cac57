"""The stage `clean`: every source in, shards of kept documents out, and a reason for every other one.

docs/clean.md lists the files it writes. Phases run as tasks on datatrove (`engine`): `sift` looks at each document by
itself, `match` and `settle` find duplicates over the whole corpus, `write` drops these. What they leave lies in
clean.work until the result is whole. The number of workers changes nothing in the result.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from chatbaker import __version__
from chatbaker import recipe as recipes
from chatbaker.errors import ChatBakerError
from chatbaker.jsonl import read_jsonl, write_jsonl
from chatbaker.log import say
from chatbaker.rundir import RunDir, digest, disk_error, find_below, fingerprint, read_json, write_json
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


class Tally:
    """Counts and samples of what happened to the documents of one source; tallies of its tasks add up."""

    def __init__(self) -> None:
        # documents, characters, bytes (per outcome), encodings (per file), leaks (per set), personal (per kind)
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.samples: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def count(self, outcome: str, characters: int, documents: int = 1) -> None:
        self.counts["documents"][outcome] += documents
        self.counts["characters"][outcome] += characters

    def drop(self, reason: str, where: str, raw: int, **facts: Any) -> None:
        self.count(f"dropped {reason}", raw)
        if len(self.samples[reason]) < SAMPLES:
            self.samples[reason].append({"where": where, **facts})

    def add(self, path: Path) -> None:
        """Add what another tally saved."""
        saved = read_json(path)
        for name, counter in saved["counts"].items():
            self.counts[name].update(counter)
        for reason, records in saved["samples"].items():
            self.samples[reason] = (self.samples[reason] + records)[:SAMPLES]

    def save(self, path: Path) -> None:
        write_json(path, {"counts": self.counts, "samples": self.samples})

    def table(self) -> dict[str, Any]:
        """read, kept, validation, dropped (by reason) and edited, each with documents and characters."""
        units = ("documents", "characters")
        pairs = {name: {unit: self.counts[unit][name] for unit in units} for name in self.counts["documents"]}
        return {
            "read": {unit: self.counts[unit].total() for unit in units},
            **{name: pairs.get(name, dict.fromkeys(units, 0)) for name in ("kept", "validation", "edited")},
            "dropped": {reason: pair for name, pair in pairs.items() if (reason := name.partition("dropped ")[2])},
            **{name: dict(sorted(self.counts[name].items())) for name in ("leaks", "personal")},
        }


def run(recipe: recipes.Recipe, run: RunDir) -> None:
    """Clean every source; an earlier result stays until the new one is whole, and a run that was cut short goes on."""
    section, root = recipe.clean, Path(recipe.data_root)
    if not section.sources:
        raise ChatBakerError("the recipe names no sources", "clean.sources", "Add a [[clean.sources]] table")
    units = [unit for number, source in enumerate(section.sources) for unit in _units(source, number, root)]
    total = sum(size for _, files in units for _, size in files)
    work = run.path("clean.work")
    local = [Path(file) for _, files in units for file, _ in files if Path(file).exists()]
    local += [path for pattern in section.decontaminate for path in find_below(root, pattern)]
    key = digest([section.decisive(), recipe.seed, units, fingerprint(local), __version__])
    handed_over = (work / "write" / "completions").exists() and not (work / "result").exists()
    try:
        if handed_over or not (work / key).exists():
            shutil.rmtree(work, ignore_errors=True)
            (work / key).mkdir(parents=True)
        write_json(work / "units.json", units)
        if section.decontaminate and not (work / "leaks").exists():
            Index.build(read_items(section.decontaminate, root)).save(work / "leaks")
        phases = [Phase(work / "sift", partial(_sift, section, work, recipe.seed), len(units), total)]
        if section.dedup != "none":
            world, likeness = 1 + total // MATCH_BYTES, section.similarity if section.dedup == "minhash" else None
            phases.append(Phase(work / "match", partial(_match, work, likeness, world), world, world))
            phases.append(Phase(work / "settle", partial(_settle, work, likeness, section.paragraph_repeats), 1, 1))
        phases.append(Phase(work / "write", partial(_write, section, work), len(units), total))
        engine.run(phases, section)
        _finish(section, units, work)
        shutil.rmtree(run.path("clean"), ignore_errors=True)
        (work / "result").replace(run.path("clean"))
        (work / key).rmdir()  # first, so that what is left of the rest is never taken for whole
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, work) from error


Unit = tuple[int, list[tuple[str, int]]]  # what one task reads: the number of a source, some of its files and sizes


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


def _sift(section: recipes.Clean, work: Path, seed: int, task: int, report: Report) -> None:
    """Phase `sift`: reads a task's files and keeps the documents that are good by themselves."""
    number, files = read_json(work / "units.json")[task]
    source = section.sources[number]
    index = Index.load(work / "leaks") if section.decontaminate else None
    tally, signer = Tally(), Signer(PARAGRAPH)

    def on_bad(error: ChatBakerError) -> None:
        if section.strict:
            raise error
        tally.drop("unreadable", error.where or "", 0, error=error.what)

    with write_jsonl(work / "documents" / f"{task:05d}.jsonl.zst") as write:
        for document in sources.read_all(source, [file for file, _ in files], seed, on_bad, report):
            file = re.sub(r":[0-9]+$|#.*", "", document.where)  # or archive member, without line or address
            broken = " with unreadable bytes" if "\ufffd" in document.text else ""
            tally.counts["encodings"][f"{file}\n{document.encoding}{broken}"] += 1
            text, reason, facts = _judge(document, section, index, tally)
            if reason is None:
                signer.sign(text)
                write({"text": text, "where": document.where, "raw": len(document.text)})
            else:
                tally.drop(reason, document.where, len(document.text), **facts, text=document.text[:SAMPLE_CHARS])
    signer.write(work / "signatures", task)
    tally.save(work / "sifted" / f"{task:05d}.json")


def _judge(
    document: Document, section: recipes.Clean, index: Index | None, tally: Tally
) -> tuple[str, str | None, dict[str, Any]]:
    """A document's text as it would be kept, why it is dropped or None, and facts for the sample."""
    repaired = korean.repair(document.text)
    if repaired is None:
        return document.text, "mojibake", {}
    text = korean.normalize(repaired)
    for finding in filters.findings(text, document.language, section.filters):
        if finding.reason is not None:
            return text, finding.reason, {finding.filter: round(finding.value, 3)}
    text = filters.trim(text, document.language)
    if index is not None and (leak := index.leak(text)):
        tally.counts["leaks"].update(leak.sets)
        return text, "leak", {"item": leak.item, "share": round(leak.share, 2)}
    if section.personal:
        text, masked = personal.mask(text)
        tally.counts["personal"].update(masked)
    return text, None, {}


def _match(work: Path, likeness: float | None, world: int, task: int, report: Report) -> None:
    """Phase `match`: each task finds a share of the pairs of like documents."""
    Corpus(work / "signatures", likeness).find_pairs(task, world)
    report(1)


def _settle(work: Path, likeness: float | None, copies: int, task: int, report: Report) -> None:
    """Phase `settle`: one task decides which of them stay, and which paragraphs."""
    Corpus(work / "signatures", likeness).settle(copies)
    report(1)


def _write(section: recipes.Clean, work: Path, task: int, report: Report) -> None:
    """Phase `write`: a task's documents without what stands elsewhere too, shared out to training and validation."""
    number, files = read_json(work / "units.json")[task]
    source = section.sources[number]
    prints = np.load(work / "signatures" / f"{task:06d}.print.npy")
    drops, lines = _drops(section, work, task)
    tally = Tally()
    name = f"{source.name}/{task:05d}.jsonl.zst"
    with (
        write_jsonl(work / "result" / "documents" / name) as keep,
        write_jsonl(work / "result" / "validation" / name) as hold,
    ):
        for index, (_, record) in enumerate(read_jsonl(work / "documents" / f"{task:05d}.jsonl.zst")):
            raw, where, text = record["raw"], record["where"], record["text"]
            if index in drops:
                of, stays, same = drops[index]
                reason = "duplicate" if same else "near_duplicate"
                tally.drop(reason, where, raw, like=[of, stays], text=text[:SAMPLE_CHARS])
                continue
            if index in lines:
                text = "\n".join(line for at, line in enumerate(text.split("\n")) if at not in lines[index]).strip()
                if len(text) < section.filters.min_chars:
                    tally.drop("repeated_paragraphs", where, raw, text=record["text"][:SAMPLE_CHARS])
                    continue
            outcome, write = "kept", keep
            if int(prints[index]) < section.validation * 2**64:
                outcome, write = "validation", hold
            tally.count(outcome, len(text))
            tally.count("edited", raw - len(text), documents=0)
            tally.counts["bytes"][outcome] += len(text.encode())
            write({"text": text, "source": source.name, "lang": source.language, "licence": source.licence})
    report(sum(size for _, size in files))
    tally.save(work / "written" / f"{task:05d}.json")


def _drops(section: recipes.Clean, work: Path, task: int) -> tuple[dict[int, list[int]], dict[int, set[int]]]:
    """What `settle` said of a task: documents to drop (for which other), and numbers of lines to take out."""
    lines: dict[int, set[int]] = defaultdict(set)
    if section.dedup == "none":
        return {}, lines
    with np.load(work / "signatures" / f"{task:06d}.drops.npz") as found:
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
        dropped = "".join(f", {pair['documents']:,} {reason}" for reason, pair in table["dropped"].items())
        read, kept, held_out = (table[key]["documents"] for key in ("read", "kept", "validation"))
        say(f"{name}: {read:,} read, {kept:,} kept, {held_out:,} held out{dropped}")
    for tally in tallies.values():
        for error in tally.samples.get("unreadable", ())[:1]:
            say(f"unreadable: {error['where']}: {error['error']}")
    if not any(table["kept"]["documents"] for table in tables.values()):
        raise ChatBakerError("no document is left to train on", "clean.sources", "See above what was read and dropped")
    ledger = [
        {"source": source.name, "language": source.language, "licence": source.licence, **tables[source.name]["kept"]}
        | {"bytes": tallies[source.name].counts["bytes"]["kept"]}
        for source in section.sources
    ]
    encodings: dict[str, dict[str, int]] = defaultdict(dict)
    for name, documents in (pair for tally in tallies.values() for pair in tally.counts["encodings"].items()):
        file, _, encoding = name.partition("\n")
        encodings[file][encoding] = documents
    for name, value in (("funnel", tables), ("ledger", ledger), ("encodings", encodings)):
        write_json(result / f"{name}.json", value)
    _name_survivors(tallies, work)
    for reason in sorted({reason for tally in tallies.values() for reason in tally.samples}):
        with write_jsonl(result / "dropped" / f"{reason}.jsonl") as write:
            for name, tally in tallies.items():
                for sample in tally.samples.get(reason, ()):
                    write({"source": name, **sample})
    (result / "README.md").write_text(_card(section, tables), encoding="utf-8")


def _name_survivors(tallies: dict[str, Tally], work: Path) -> None:
    """Put the place and the text of the document that stays into the samples of duplicates."""
    wanted: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for tally in tallies.values():
        for sample in (*tally.samples.get("duplicate", ()), *tally.samples.get("near_duplicate", ())):
            wanted[tuple(sample["like"])].append(sample)
    for task in {task for task, _ in wanted}:
        for index, (_, record) in enumerate(read_jsonl(work / "documents" / f"{task:05d}.jsonl.zst")):
            for sample in wanted.get((task, index), ()):
                sample.update(like=record["where"], like_text=record["text"][:SAMPLE_CHARS])


def _card(section: recipes.Clean, tables: dict[str, dict[str, Any]]) -> str:
    """The data card: what is in the corpus, from where, under which licence, and what was taken out."""
    columns = "source", "from", "language", "licence", "read", "kept", "held out", "dropped"
    lines = ["# Data card", "", f"| {' | '.join(columns)} |", "|---|---|---|---|---:|---:|---:|---|"]
    for source in section.sources:
        table = tables[source.name]
        dropped = ", ".join(f"{reason} {pair['documents']:,}" for reason, pair in table["dropped"].items())
        counts = [f"{table[key]['documents']:,}" for key in ("read", "kept", "validation")]
        row = [source.name, source.origin or source.path, source.language, source.licence, *counts, dropped]
        lines.append(f"| {' | '.join(row)} |")
    for title, key in (("Masked personal data", "personal"), ("Documents dropped for evaluation items", "leaks")):
        total: Counter[str] = sum((Counter(table[key]) for table in tables.values()), Counter())
        if total:
            found = ", ".join(f"{name} {count:,}" for name, count in sorted(total.items()))
            lines += ["", f"{title}: {found}."]
    return "\n".join([*lines, ""])


def explain(recipe: recipes.Recipe, place: str) -> None:
    """Print what every step thinks of one document. place: FILE:LINE, FILE!MEMBER or FILE#URL, as samples name it."""
    section, root = recipe.clean, Path(recipe.data_root)
    file, mark, address = place.partition("#")  # whose // a path would not keep
    places = (place, f"{root / file}{mark}{address}")
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
    repaired = korean.repair(document.text)
    origin = f"{document.source} ({document.language}), {document.encoding}"
    print(f"source      {origin}, {len(document.text):,} characters")
    if repaired is None:
        print("mojibake    beyond repair: dropped")
        return
    normal = korean.normalize(repaired)
    text = filters.trim(normal, document.language)
    print(f"mojibake    {'none' if repaired == document.text else 'repaired'}")
    print(f"normalized  {len(normal) - len(repaired):+,} characters; lines of boilerplate {len(text) - len(normal):+,}")
    for finding in filters.findings(normal, document.language, section.filters):
        verdict = f"drop: {finding.reason}" if finding.reason else "keep"
        print(f"{finding.filter:<20} {finding.value:>10.4g}   limit {finding.limit:<8g} {verdict}")
    if section.decontaminate:
        leak = Index.build(read_items(section.decontaminate, root)).leak(text)
        print(f"evaluation sets      {f'drop: {leak.item} ({leak.share:.0%})' if leak else 'keep'}")
    masked = personal.mask(text)[1]
    print(f"personal data        {', '.join(f'{kind} {n}' for kind, n in sorted(masked.items())) or 'none'}")
