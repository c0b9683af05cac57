"""How well `chatbaker.evals.register` agrees with people, and how seldom people's answers count as repetitive.

    python benchmarks/register.py [--data DIR] [--errors]

The labelled set, benchmarks/data/register.jsonl, was written for this: 467 short Korean texts with the register that a
speaker would give them. They were split at random into two halves before the rules existed. The rules were mended on
"dev"; of "test" only the figures printed here were looked at. `--errors` shows what is wrong on dev.

--data: a folder with public conversations as JSON lines {"messages": [...]}, ko_NAME.jsonl.zst, whose speakers keep
one register by design. Some do not, so the shares are lower bounds; the share that shows no register tells what the
rules cannot read (nouns, 음슴체, slang). Every answer there and in two English files is also held against the
definition of repetition, which it should almost never meet.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatbaker.evals.chat import repeats
from chatbaker.evals.register import clauses, register_of
from chatbaker.jsonl import read_jsonl

LABELLED = Path(__file__).with_name("data") / "register.jsonl"
NAMES = ("formal", "informal", "mixed", "unknown")
TALKS = {  # what is spoken there, and by whom
    "ko_carecall_feedback": ("formal", ("assistant",)),
    "ko_hg_tods_manual": ("formal", ("assistant",)),
    "ko_hg_tods_music": ("formal", ("assistant",)),
    "ko_hulic_human": ("informal", ("user", "assistant")),
    "ko_xpersona": ("informal", ("user", "assistant")),
}
ANSWERS = (
    *TALKS,
    "ko_culture_qa",
    "ko_smilestyle",
    "en_counsel_chat",
    "en_dolly_hhrlhf_1000",
)


def measure(split: str) -> dict[str, Any]:
    """Accuracy, Cohen's kappa, and precision and recall of each class, on one half of the labelled set."""
    rows = [row for _, row in read_jsonl(LABELLED) if row["split"] == split]
    pairs = Counter((row["register"], register_of(row["text"])) for row in rows)
    said = {name: sum(n for (_, found), n in pairs.items() if found == name) for name in NAMES}
    true = {name: sum(n for (label, _), n in pairs.items() if label == name) for name in NAMES}
    n, hits = len(rows), {name: pairs[name, name] for name in NAMES}
    chance = sum(said[name] * true[name] for name in NAMES) / n**2
    accuracy = sum(hits.values()) / n
    classes = {name: (hits[name] / max(said[name], 1), hits[name] / true[name], true[name]) for name in NAMES}
    return {"n": n, "accuracy": accuracy, "kappa": (accuracy - chance) / (1 - chance), "classes": classes}


def turns(path: Path, roles: tuple[str, ...]) -> Iterator[str]:
    for _, row in read_jsonl(path):
        yield from (message["content"] for message in row["messages"] if message["role"] in roles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of public conversations")
    parser.add_argument("--errors", action="store_true", help="show what is wrong on dev")
    arguments = parser.parse_args()
    for split in ("dev", "test"):
        found = measure(split)
        print(f"{split}: {found['n']} texts, accuracy {found['accuracy']:.3f}, Cohen's kappa {found['kappa']:.3f}")
        for name, (precision, recall, n) in found["classes"].items():
            print(f"  {name:9} precision {precision:.3f}  recall {recall:.3f}  of {n}")
    for _, row in read_jsonl(LABELLED) if arguments.errors else ():
        if row["split"] == "dev" and (said := register_of(row["text"])) != row["register"]:
            print(f"{row['register']}, found {said}: {list(clauses(row['text']))}")
    if arguments.data is None:
        return
    for name, (wanted, roles) in TALKS.items():
        counts = Counter(map(register_of, turns(arguments.data / f"{name}.jsonl.zst", roles)))
        n, silent = sum(counts.values()), counts["unknown"]
        print(f"{name}: {n:,} turns, {counts[wanted] / (n - silent):.3f} {wanted}, {silent / n:.3f} show no register")
    answers = [text for name in ANSWERS for text in turns(arguments.data / f"{name}.jsonl.zst", ("assistant",))]
    print(f"repetitive: {sum(map(repeats, answers))} of {len(answers):,} answers by people")


if __name__ == "__main__":
    main()
