"""How fast cleaning is from end to end, on one core, and stock datatrove with the same steps on the same text.

    python benchmarks/clean/speed.py --data DATA [--mb 60] [--rounds 3]

Megabytes are of UTF-8 text read. Ours: the stage `clean` as a recipe runs it, with every filter, personal data,
decontamination, near-duplicates and the writing of the result. Stock: datatrove's JsonlReader, Gopher quality and
repetition filters, PII formatter, MinHash signature (its own word tokenizer for Korean is left out where it is not
installed: it then takes its default one) and JsonlWriter, without decontamination and without the later MinHash stages,
so it does less. Rounds take turns; the best of each is printed, with the peak memory of its process.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from chatbaker.jsonl import read_jsonl, write_jsonl
from chatbaker.recipe import parse
from chatbaker.rundir import RunDir


def sample(data: Path, pattern: str, size: int, target: Path) -> int:
    """About `size` bytes of the text of some files, as one jsonl.zst."""
    done = 0
    with write_jsonl(target) as write:
        for path in sorted(data.glob(pattern)):
            for _, record in read_jsonl(path):
                write({"text": record["text"]})
                done += len(record["text"].encode())
                if done >= size:
                    return done
    return done


def ours(folder: Path, language: str, evals: str) -> None:
    from chatbaker.text import clean

    source = {"name": "a", "path": "a.jsonl.zst", "language": language}
    section: dict[str, Any] = {"sources": [source], "workers": 1}
    if evals:
        section["decontaminate"] = [evals]
    clean.run(parse({"name": "t", "data_root": str(folder), "clean": section}, "t"), RunDir(folder / "run"))


def stock(folder: Path, language: str, evals: str) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.remove()
    name = "eng"  # the Korean tokenizer of datatrove needs a package of its own, and is slower still
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(str(folder), glob_pattern="a.jsonl.zst", compression="zstd"),
            GopherRepetitionFilter(language=name),
            GopherQualityFilter(language=name, min_stop_words=None),
            PIIFormatter(),
            JsonlWriter(str(folder / "stock")),
            MinhashDedupSignature(
                str(folder / "sigs"), MinhashConfig(hash_config=HashConfig(hash_fc="sha1")), language=name
            ),
        ],
        logging_dir=str(folder / "logs"),
        skip_completed=False,
    ).run()


def index(folder: Path, language: str, evals: str) -> None:
    """Building the index of evaluation items is done once, whatever the size of the corpus."""
    from chatbaker.text.decontaminate import Index, read_items

    Index.build(read_items([evals], folder)).save(folder / "leaks")


def timed(job: Any, folder: Path, language: str, evals: str, results: Any) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    job(folder, language, evals)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    results.put((time.perf_counter() - began, time.process_time() - cpu, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pretrain/ and eval/")
    parser.add_argument("--mb", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stock-mb", type=int, default=5, help="datatrove's text: a part of it, as it is slower")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for language, pattern in (("ko", "pretrain/ko_wiki_*.jsonl.zst"), ("en", "pretrain/en_wiki.jsonl.zst")):
        best: dict[str, tuple[float, float, float]] = {}
        jobs = (
            ("index", index, 0, "eval/*"),
            ("ours", ours, args.mb, ""),
            ("ours, decontaminated", ours, args.mb, "eval/*"),
            ("stock datatrove", stock, args.stock_mb, ""),
        )
        for _, (name, job, mb, evals) in ((round_, row) for round_ in range(args.rounds) for row in jobs):
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                size = sample(args.data, pattern, mb * 1_000_000, folder / "a.jsonl.zst")
                (folder / "eval").symlink_to((args.data / "eval").resolve())
                results = context.Queue()
                process = context.Process(target=timed, args=(job, folder, language, evals, results))
                process.start()
                process.join()
                if process.exitcode:
                    raise SystemExit(f"{name} failed: see above")
                wall, cpu, peak = results.get()
            if name == "index":
                building = wall
                print(f"index of the evaluation items: {wall:.1f} s, peak {peak:.2f} GiB; taken off below")
                continue
            extra = building if evals else 0.0
            row = (size / (wall - extra) / 1e6, size / (cpu - extra) / 1e6, peak)
            best[name] = max(best.get(name, row), row)
        for name, (wall, cpu, peak) in best.items():
            print(f"{language}  {name:<22} {wall:6.2f} MB/s  {cpu:6.2f} MB/s of CPU time  peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
