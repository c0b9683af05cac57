"""Tiny model folders with a real tokenizer, made on the spot: Korean and English words, emoji, code, numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from chatbaker.tokens import bpe, dialog

Lines = Callable[[int, int], list[str]]
Make = Callable[..., Path]

KOREAN, ENGLISH, SCRIPTS, NUMBERS = (
    line.split(" ")
    for line in (
        "안녕하세요 오늘 날씨가 좋습니다 빵을 굽는 사람은 새벽에 일어나요 한국어와 영어 값싼 닭볶음탕 읽었습니다",
        "hello the weather is lovely and I'm baking bread; don't we'll THEY'RE it's CamelCase naïve café",
        "🍞 👩‍🍳 🇰🇷 ❤️ ㅋㅋㅋ ㅠㅠ 漢字 かな 한글English섞기 「인용」 “따옴표” ½ ① Ⅳ ٣ हिन्दी العربية — a\u0301",
        "123 3.14 2026년 10,000원 ... ?! x_1 #!/bin/sh ~^^ https://a.kr/?q=1&r=2 'S 'll",
    )
)
SPACES = ["\n", "\n\n", "\r\n", "\t", "  ", "   ", "\u3000", "\u00a0", "def f(x):\n    return x**2"]
PIECES = SCRIPTS + NUMBERS + SPACES


def mixed_lines(count: int, seed: int) -> list[str]:
    """Mixed lines: words of both languages, now and then something awkward, joined by a space or by nothing."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        text = ""
        for _ in range(rng.randint(1, 14)):
            kind = rng.random()
            text += rng.choice(KOREAN if kind < 0.45 else ENGLISH if kind < 0.75 else PIECES)
            text += " " if rng.random() < 0.7 else ""
        made.append(text)
    return made


@pytest.fixture(scope="session")
def lines() -> Lines:
    return mixed_lines


def _gpt2(vocab_size: int) -> Tokenizer:
    """A tokenizer of the published kind: no normalizer, the rule of GPT-2, one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[dialog.END_OF_TEXT, dialog.HUMAN_BOT_START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(mixed_lines(2000, seed=1), trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    """ours: as the stage `tokenizer` makes it. published: as the 42dot weights have it."""
    return {"ours": bpe.train(iter(mixed_lines(2000, seed=1)), 600), "published": _gpt2(600)}


def _learn(model: LlamaForCausalLM, rows: list[list[int]]) -> None:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little work is slower on two
    for _ in range(80):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    assert loss < 0.5, loss


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory, tokenizers: dict[str, Tokenizer]) -> Make:
    """make(kind, learn, dtype, shard, **config) writes a small model as a Hugging Face folder, a new one each time.

    Random weights, or taught the lines `learn` by heart: random logits hold many near ties that any rounding tips.
    """

    def _make(
        kind: str = "ours",
        learn: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        shard: str = "1GB",
        **changes: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("model") / "model"
        tokenizer = tokenizers[kind]
        shape: dict[str, Any] = {
            "vocab_size": tokenizer.get_vocab_size() + 8,  # rows beyond the vocabulary, as padded models have
            "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 4, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        }  # fmt: skip
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(shape | changes)))
        if learn:
            _learn(model, [tokenizer.encode(line, add_special_tokens=False).ids for line in learn])
        model.to(dtype).save_pretrained(folder, max_shard_size=shard)
        tokenizer.save(str(folder / "tokenizer.json"))
        config = bpe.config() if kind == "ours" else {"eos_token": {"content": dialog.END_OF_TEXT}, "pad_token": None}
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return _make
