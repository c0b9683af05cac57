"""Which duplicates cleaning finds and which it makes up: edited copies, labelled real pairs, reviews; time and memory.

    python benchmarks/clean/dedup.py [--data FOLDER] [--documents 1000] [--threshold 0.55 0.6 0.65 0.7]

Copies are made by replacing, deleting or inserting words (or characters) at random places, a third of each. FOLDER has
text in pretrain/ and labels in raw/near_dup and raw/chat_reviews. Without it the text is of the project's own patterns,
which are near-duplicates by nature, so that only the recall says something. The real pairs are also given to
datatrove's own MinHash with its defaults (but SHA-1), where the word splitter it wants (spacy, kiwipiepy) is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import re
import resource
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from chatbaker import made
from chatbaker.jsonl import read_jsonl
from chatbaker.text.dedup import Corpus, Signer
from chatbaker.text.korean import normalize

PARAGRAPH, COPIES, TASKS = 60, 10, 3
REVIEWS = "chat_reviews.jsonl.zst"
KINDS = {"1": 1.0, ">= 0.8": 0.8, ">= 0.6": 0.6, ">= 0.4": 0.4, "< 0.4": 0.0}
EDITS = (("words", 0.05), ("words", 0.1), ("words", 0.2), ("characters", 0.05), ("characters", 0.1))

Pair = tuple[str, int, int]
"""What two documents are to each other, and their numbers."""
Drops = dict[int, tuple[int, bool]]
"""document: (the one that stays for it, whether their text is the same)"""


@contextlib.contextmanager
def timed(clock: dict[str, float], name: str) -> Iterator[None]:
    began = time.process_time()
    yield
    clock[name] = time.process_time() - began


def find(texts: list[str], threshold: float | None, clock: dict[str, float] | None = None) -> Drops:
    """What goes of the texts."""
    clock = {} if clock is None else clock
    share = -(-len(texts) // TASKS)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with timed(clock, "sign"):
            for task in range(TASKS):
                signer = Signer(PARAGRAPH)
                for text in texts[task * share : (task + 1) * share]:
                    signer.sign(text)
                signer.write(root, task)
        clock["bytes"] = sum(path.stat().st_size for path in root.iterdir())
        with timed(clock, "find_pairs"):
            for rank in range(2):
                Corpus(root, threshold).find_pairs(rank, 2)
        with timed(clock, "settle"):
            Corpus(root, threshold).settle(COPIES)
        drops = {}
        for task in range(TASKS):
            with np.load(root / f"{task:06d}.drops.npz") as saved:
                for index, other, stays, same in saved["documents"].tolist():
                    drops[task * share + index] = other * share + stays, bool(same)
    return drops


def originals(data: Path | None, language: str, count: int, rng: random.Random) -> list[str]:
    """Texts of 200 to 5,000 characters, evenly spread over the orders of magnitude."""
    if data is None:
        pieces = made.documents(0, 20 * count, language)
        texts = [" ".join(islice(pieces, 20)) for _ in range(count)]
    else:
        files = sorted((data / "pretrain").glob(f"{language}_*.jsonl.zst"))
        pool = [record["text"] for file in files for _, record in islice(read_jsonl(file), 2000)]
        texts = rng.sample([text for text in pool if len(text) >= 200], count)
    return [text[: int(200 * 25 ** rng.random())] for text in texts]


def edited(text: str, share: float, unit: str, pool: list[str], rng: random.Random) -> str:
    """A copy with `share` of its words or characters replaced, deleted or followed by another one from the pool."""
    parts = re.split(r"(\s+)", text) if unit == "words" else list(text)
    places = [i for i, part in enumerate(parts) if part and not part.isspace()]
    for i in rng.sample(places, round(share * len(places))):
        other = rng.choice(pool)
        space = " " if unit == "words" else ""
        parts[i] = rng.choice((other, "", parts[i] + space + other))
    return "".join(parts)


def edits(data: Path | None, count: int, thresholds: list[float]) -> None:
    print(f"\nedited copies, {count:,} documents of 200 to 5,000 characters and a copy of each: recall / precision")
    print(f"{'threshold':24}" + "".join(f"{threshold:>16.2f}" for threshold in thresholds))
    for language in made.LANGS:
        rng = random.Random(language)
        texts = originals(data, language, count, rng)
        words = [word for text in texts for word in text.split()]
        pools = {"words": words, "characters": [c for word in words for c in word if c.isalnum()]}
        for unit, share in EDITS:
            order = rng.sample(range(2 * count), 2 * count)
            both = texts + [edited(text, share, unit, pools[unit], rng) for text in texts]
            cells = ""
            for threshold in thresholds:
                drops = find([both[i] for i in order], threshold)
                right = sum(order[gone] % count == order[stays] % count for gone, (stays, _) in drops.items())
                cells += f"{right / count:8.3f} /{right / len(drops):6.3f}" if drops else f"{'0.000 /     -':>16}"
            print(f"{f'{language} {share:.0%} of {unit}':24}{cells}")


def labelled(folder: Path) -> tuple[list[str], list[Pair]]:
    """The documents of near_dup and their pairs; a pair is of the kind of its Jaccard index, or `different`."""
    records = [record for _, record in read_jsonl(folder / "docs.jsonl.zst")]
    numbers = {record["id"]: number for number, record in enumerate(records)}
    pairs = []
    for _, group in read_jsonl(folder / "near_duplicates.jsonl"):
        members = [numbers.get(member.partition("#")[2]) for member in group["members"]]
        if None in members:
            continue
        for i, j, jaccard in group.get("pairs", [[0, 1, group["jaccard5_min"]]]):
            kind = next(kind for kind, least in KINDS.items() if jaccard >= least)
            pairs.append((group["label"] if group["label"] == "different" else kind, members[i], members[j]))
    return [normalize(record["text"]) for record in records], pairs


def row(name: str, pairs: list[Pair], gone: set[int], cluster: Callable[[int], int]) -> None:
    """The share of the pairs of each kind of which one document goes; of `different` ones, for the other."""
    total = Counter(kind for kind, _, _ in pairs)
    found = Counter(k for k, i, j in pairs if (cluster(i) == cluster(j) if k == "different" else {i, j} & gone))
    print(f"{name:24}" + "".join(f"{found[k] / total[k]:12.3f}" for k in (*KINDS, "different")) + f"{len(gone):12,}")


def real(data: Path, thresholds: list[float]) -> None:
    texts, pairs = labelled(data / "raw" / "near_dup")
    total = Counter(kind for kind, _, _ in pairs)
    print(
        "\nreal pairs (near_dup) by their labelled Jaccard index: of how many one goes; `different`: one for the other"
    )
    print(f"{'':24}" + "".join(f"{kind:>12}" for kind in (*KINDS, "different")) + "   documents")
    print(f"{'all':24}" + "".join(f"{total[kind]:12,}" for kind in (*KINDS, "different")) + f"{len(texts):12,}")
    for threshold in (None, *thresholds):
        drops = find(texts, threshold)
        stays = [drops.get(i, (i,))[0] for i in range(len(texts))]
        row("the same text" if threshold is None else f"threshold {threshold}", pairs, set(drops), stays.__getitem__)
    for language in ("kor", "eng"):
        try:
            clusters, gone, seconds = stock(texts, language)
        except ImportError as error:
            print(f"datatrove, {language}: {error}")
            continue
        each = [clusters.get(i, -i - 1) for i in range(len(texts))]
        row(f"datatrove, {language}", pairs, gone, each.__getitem__)
        size = sum(len(text.encode()) for text in texts)
        print(f"{'':24}signatures: {seconds / size * 1e9:,.0f} ns a byte")


def stock(texts: list[str], language: str) -> tuple[dict[int, int], set[int], float]:
    """What datatrove's stages find: the cluster of each document that is in one, what goes, seconds for signatures."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.remove()
    config = minhash.MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()):
        step = minhash.MinhashDedupSignature(f"{root}/signatures", config, language)
        step.word_tokenizer.word_tokenize("warm up")
        began = time.process_time()
        step.run(Document(text=text, id=str(number)) for number, text in enumerate(texts))
        seconds = time.process_time() - began
        for rank in range(config.num_buckets):
            buckets = minhash.MinhashDedupBuckets(f"{root}/signatures", f"{root}/buckets", config=config)
            buckets.run(None, rank, config.num_buckets)
        minhash.MinhashDedupCluster(f"{root}/buckets", f"{root}/clusters", config, save_cluster_id=True).run()
        clusters = dict(struct.iter_unpack("<2I", Path(root, "clusters", "000000.clusters").read_bytes()))
        gone = {number for (number,) in struct.iter_unpack("<I", Path(root, "clusters", "000000.remove").read_bytes())}
    return clusters, gone, seconds


def reviews(data: Path, thresholds: list[float]) -> None:
    texts = [normalize(record["text"]) for _, record in read_jsonl(data / "raw" / "chat_reviews" / REVIEWS)]
    groups = [
        [int(member.rpartition("#line")[2]) - 1 for member in group["members"]]
        for _, group in read_jsonl(data / "raw" / "near_dup" / "near_duplicates.jsonl")
        if group["kind"] == "exact_repeat"
    ]
    print(f"\n{len(texts):,} reviews, comments, petitions and messages; {len(groups):,} labelled repeats of one")
    for threshold in thresholds:
        drops = find(texts, threshold)
        found = sum(len({drops.get(i, (i,))[0] for i in group}) == 1 for group in groups)
        near = [len(texts[gone]) for gone, (_, same) in drops.items() if not same]
        short = sum(size < 200 for size in near)
        print(f"threshold {threshold}: {found:,} found; {len(near):,} near duplicates, {short:,} below 200 characters")


def costs(data: Path | None) -> None:
    columns = ("documents", "MB", "sign ns/byte", "find_pairs s", "settle s", "bytes/document", "peak MB")
    print(f"{'':10}" + "".join(f"{column:>16}" for column in columns))
    corpora = {language: originals(data, language, 4000, random.Random(0)) for language in made.LANGS}
    if data is not None:
        corpora["reviews"] = [record["text"] for _, record in read_jsonl(data / "raw" / "chat_reviews" / REVIEWS)]
    find([""], None)  # builds the table of letters
    for name, texts in corpora.items():
        size = sum(len(text.encode()) for text in texts)
        clock: dict[str, float] = {}
        find(texts, 0.6, clock)
        cells = f"{len(texts):16,}{size / 1e6:16.1f}{clock['sign'] / size * 1e9:16.1f}{clock['find_pairs']:16.2f}"
        cells += f"{clock['settle']:16.2f}{clock['bytes'] / len(texts):16,.0f}"
        print(f"{name:10}{cells}{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:16,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with pretrain/ and raw/")
    parser.add_argument("--documents", type=int, default=1000, help="per language, for the edited copies")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.55, 0.6, 0.65, 0.7])
    args = parser.parse_args()
    costs(args.data)
    edits(args.data, args.documents, args.threshold)
    if args.data is not None:
        real(args.data, args.threshold)
        reviews(args.data, args.threshold)


if __name__ == "__main__":
    main()
