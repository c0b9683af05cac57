"""How many of the project's own facts a model answers, greedily: the check that a `tiny` bake has worked.

    python benchmarks/facts.py --model runs/tiny [--all] [--every 5]

An answer is right when it contains the word asked for; the facts are those of chatbaker/made/facts.toml.
"""

from __future__ import annotations

import argparse

from chatbaker import made
from chatbaker.infer.engine import Sampling, open_engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="default: the bundled model")
    parser.add_argument("--every", type=int, default=1, help="ask each n-th fact")
    parser.add_argument("--all", action="store_true", help="not only the small world that tiny learns")
    parser.add_argument("--wrong", type=int, default=5, help="wrong answers to print per language")
    args = parser.parse_args()
    sampling = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=48)
    with open_engine(args.model, device="cpu") as engine:
        for lang in made.LANGS:
            facts = made.facts(lang if args.all else f"{lang}:small")[:: args.every]
            wrong = []
            for question, word in facts:
                messages = [{"role": "user", "content": question}]
                answer = "".join(chunk.text for chunk in engine.stream(messages, sampling))
                if word.lower() not in answer.lower():
                    wrong.append(f"  {question} -> {answer!r}, not {word!r}")
            print(f"{lang}: {len(facts) - len(wrong)} of {len(facts)} right ({1 - len(wrong) / len(facts):.0%})")
            print("\n".join(wrong[: args.wrong]))


if __name__ == "__main__":
    main()
