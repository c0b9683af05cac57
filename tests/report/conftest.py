"""A run folder of invented records: every number in it is made up for the layout and says nothing of any model."""

import json
import tomllib
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EVIL = "<script>document.title = 'broken'</script><img src=x onerror=alert(1)>"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [value] if isinstance(value, dict) else value
    text = "\n".join(json.dumps(line) for line in lines) if path.suffix == ".jsonl" else json.dumps(value)
    path.write_text(text + "\n", encoding="utf-8")


def span(value, wide=0.05, n=30):
    return {"value": value, "mean": value, "low": value - wide, "high": value + wide, "n": n}


def training(scale):
    for step in range(10, 101, 10):
        facts = {"lr": 1e-3, "grad_norm": 1.5, "tokens_per_second": 2000.0, "mfu": 0.4}
        yield {"step": step, "tokens": 1000 * step, "loss": scale + 30 / step, **facts}
        if step % 50 == 0:
            look = {"ko": {"loss": scale + 1, "bits_per_byte": 1.5}, "en": {"loss": scale + 2, "bits_per_byte": 1.2}}
            samples = [{"prompt": "대한민국의 수도는", "text": f" 빵집이에요 🍞 {EVIL} {step}"}]
            yield {"step": step, "eval": look, "samples": samples}


def records(shift=0.0):
    pair = {"documents": 10, "characters": 1000}
    reasons = ("too_short", "leak", "near_duplicate", "keywords", "symbols", "digits", "spam")
    table = {"read": {"documents": 200, "characters": 9000}, "kept": {"documents": 120, "characters": 5000}}
    table |= {"validation": pair, "edited": pair, "dropped": dict.fromkeys(reasons, pair)}
    table |= {"leaks": {"kobest_boolq": 10}, "personal": {"EMAIL": 3}}
    yield "clean/funnel.json", {"ko_위키": table, "en_books": table | {"dropped": {}, "leaks": {}, "personal": {}}}
    yield "clean/encodings.json", {"a.txt": {"cp949": 7}, "b.txt": {"utf-8": 393}}
    ledger = {"language": "ko", "licence": "CC BY 4.0", "documents": 120, "characters": 5000, "bytes": 12000}
    yield "clean/ledger.json", [ledger | {"source": "ko_위키"}]
    fit = {"bytes_per_token": 4.5, "characters_per_token": 1.9, "tokens_per_word": 2.3, "tokens": 4000}
    yield (
        "tokenizer/fertility.json",
        {"languages": {"ko": fit, "en": fit}, "sources": {"ko_위키": fit, "en_books": fit}},
    )
    shard = {"name": "ko_위키", "language": "ko", "tokens": 4000, "text_bytes": 18000}
    yield "pack/index.json", {"vocab_size": 512, "shards": [shard | {"split": s} for s in ("train", "validation")]}
    yield "pretrain/metrics.jsonl", list(training(3.0))
    yield "sft/metrics.jsonl", list(training(2.0))
    yield "export/parity.json", [{"file": "x-q8_0.gguf", "dtype": "q8_0", "bytes": 9_000_000, "top1": 0.95}]
    for stage in ("clean", "tokenizer", "pack", "pretrain", "sft", "export", "eval", "judge"):
        yield f"{stage}/stamp.json", {"stage": stage, "started": 0, "ended": 1e9, "seconds": 75.0, "version": "9.9"}
    score = {"version": 1, "metric": "macro_f1", "stderr": 0.02, "n": 500, "chance": 0.5, "majority": 0.35}
    korean = {"boolq": 0.41, "copa": 0.66, "hellaswag": 0.39, "sentineg": 0.71, "wic": 0.33}
    english = {"anli_r1/acc": 0.34, "boolq/acc": 0.6, "piqa/acc_norm": 0.7, "wic/acc": 0.5}
    scores = [
        score | {"suite": suite, "task": f"{suite}_{name}", "label": name, "value": value + shift, "above": value > 0.5}
        for suite, tasks in (("ko", korean), ("en", english))
        for name, value in tasks.items()
    ]
    figures = {f"Model {letter} 1.3B": dict.fromkeys(korean, 0.1 * at + 0.3) for at, letter in enumerate("ABCDE")}
    english_figures = {
        f"Model {letter} 1B": dict.fromkeys(english, 0.1 * at + 0.3) for at, letter in enumerate("VWXYZ")
    }
    average = {"value": 0.484 + shift, "n": 5, "of": 5}
    register = {"kept": span(0.8), "formal": span(0.9), "informal": span(0.7), "mixed": 2}
    answer = {"prompt": "뭐 해?", "answer": EVIL, "register": "informal", "stopped": False, "repeated": True}
    chat = {"items": 60, "register": register, "stop_rate": span(0.95), "repetition_rate": span(0.1)}
    chat |= {"empty": 1, "wrong_language": 0, "answers": [answer]}
    yield (
        "eval/results.json",
        {
            **{"model": "x", "kind": "torch", "date": "2001-01-01", "versions": {"lm_eval": "0"}, "limit": None},
            **{"scores": scores, "chat": chat, "absent": [{"suite": "en", "task": "record", "reason": "not invented"}]},
            "averages": {"ko": average | {"complete": True}, "en": average | {"n": 4, "of": 21, "complete": False}},
            "bits_per_byte": [{"file": "a.txt", "language": "ko", "bytes": 100, "tokens": 30, "bits_per_byte": 1.3}],
            "published": {
                "ko": {"models": figures, "averages": dict.fromkeys(figures, 0.5)},
                "en": {"models": english_figures},
            },
        },
    )
    questions = [
        {"id": f"q-{at}", "question": f"{at}번 질문: 빵은 어떻게 구워요?", "category": category, "task": "대답하기"}
        for at, category in enumerate(("Chat", "OpenQA", "Rewrite", "Chat", "Summarization", "요리 🍳"))
    ]
    finish = {"finish_reason": "length", "completion_tokens": 9}
    yield "judge/answers.jsonl", [one | {"answer": f"오븐에 구워요. {EVIL}"} | finish for one in questions]
    metrics = ("accuracy", "robustness", "fairness", "bias", "toxicity", "efficiency")
    words = {metric: f"{metric}: 그럴듯해요 {EVIL}" for metric in metrics}
    verdict = {"judge": "invented-judge", "scores": dict.fromkeys(metrics, 4), "explanations": words, "total": 24}
    yield "judge/verdicts.jsonl", [{"id": one["id"]} | verdict for one in questions]
    choice = {
        "against": "다른-모델",
        "judge": "invented-judge",
        "result": "tied",
        "flipped": True,
        "reasons": [EVIL, "둘 다"],
    }
    yield "judge/pairs.jsonl", [{"id": "q-0"} | choice]
    counts = {"won": 10, "tied": 60, "lost": 30, "judged": 100}
    ends = {"intervals": {"won": [0.05, 0.17], "tied": [0.5, 0.7], "lost": [0.2, 0.4]}}
    pair = {"against": "다른-모델", **counts, **ends, "flip_rate": 0.2, "length_controlled": 0.4}
    categories = {one["category"]: span(24 + shift * 10, 2) for one in questions}
    yield (
        "judge/scores.json",
        {
            **{
                "model": "x",
                "judge": "invented-judge",
                "date": "2001-01-01",
                "total": span(24 + shift, 1) | {"of": 30},
            },
            **{"metrics": {metric: span(4 + shift, 0.3) for metric in metrics}, "categories": categories},
            **{"judged": 5, "unjudged": [{"id": "q-9", "reason": "no JSON"}], "empty": 0, "refusals": 1},
            "length": {"mean_characters": 80.0, "correlation": 0.3},
            "pairs": [pair | {"by_total": {"won": 40, "tied": 20, "lost": 40}}],
            "agreement": [{"judges": ["a", "b"], "n": 5, "exact": 0.5, "kappa": 0.4}],
        },
    )


@pytest.fixture(scope="session")
def invented(tmp_path_factory):
    """make(name, shift) writes a run folder with every record and returns it."""

    def make(name="무늬만-모델", shift=0.0):
        root = tmp_path_factory.mktemp("runs") / name
        for file, value in records(shift):
            write(root / file, value)
        recipe = (HERE.parent.parent / "recipes" / "tiny.toml").read_text(encoding="utf-8")
        assert tomllib.loads(recipe)
        (root / "recipe.toml").write_text(recipe, encoding="utf-8")
        return root

    return make
