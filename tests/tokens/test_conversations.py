"""Conversations to rows: packed without leaks, trained where they should be, refused where they would do harm."""

import json
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch

from chatbaker.errors import ChatBakerError
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Llama, init_weights
from chatbaker.model.loss import cross_entropy_sum
from chatbaker.recipe import parse
from chatbaker.tokens import conversations
from chatbaker.tokens.bpe import load_tokenizer
from chatbaker.tokens.conversations import load, pack, show, tokenize
from chatbaker.tokens.dialog import CHATML, IM_END, encode
from chatbaker.tokens.loader import IGNORE
from chatbaker.tokens.mixture import mix_hash

TALK = [
    {"role": "user", "content": "안녕?"},
    {"role": "assistant", "content": "안녕하세요! 👋"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


@pytest.fixture
def tokenizer(packed):
    return load_tokenizer(packed.path("tokenizer"))


def encoded(tokenizer, lengths=(1, 5, 2, 9, 3, 1, 7)):
    talks = [[TALK[0], {"role": "assistant", "content": "네 " * n}] for n in lengths]
    return [tokenize(tokenizer, talk, 64)[0] for talk in talks]


def test_rows_hold_every_conversation_once_and_whole(tokenizer):
    items = encoded(tokenizer)
    batch = pack(items, 64, padding=0)
    found = []
    for row in range(len(batch.ids)):
        for number in range(1, batch.docs[row].max() + 1):
            where = np.flatnonzero(batch.docs[row] == number)
            assert (np.diff(where) == 1).all()
            found.append(tuple(batch.ids[row, where]))
    assert sorted(found) == sorted(tuple(ids) for ids, _ in items)
    assert len(batch.ids) < len(items)
    assert batch.valid == sum(sum(mask) for _, mask in items)


def test_targets_are_assistant_tokens_and_their_end(tokenizer):
    (ids, mask), _ = tokenize(tokenizer, TALK, 64)
    batch = pack([(ids, mask)], 64, padding=0)
    trained = batch.targets[0][batch.targets[0] != IGNORE].tolist()
    assert tokenizer.decode(trained, skip_special_tokens=False) == "안녕하세요! 👋<|im_end|>4<|im_end|>"
    for i in np.flatnonzero(batch.targets[0] != IGNORE):
        assert batch.targets[0, i] == batch.ids[0, i + 1]


def test_packed_loss_equals_unpacked_loss(tokenizer):
    items = encoded(tokenizer)
    model = Llama(LlamaConfig(tokenizer.get_vocab_size(), 2, 4, 2, 32, 48, 64))
    init_weights(model, 0)
    for block in model.model.layers:
        torch.nn.init.normal_(block.self_attn.o_proj.weight, std=0.3)

    def loss(batch):
        ids, targets, docs = (torch.from_numpy(a.astype(np.int64)) for a in (batch.ids, batch.targets, batch.docs))
        return float(cross_entropy_sum(model(ids, docs), model.lm_head.weight, targets).detach())

    together = pack(items, 64, padding=0)
    alone = sum(loss(pack([item], 64, padding=0)) for item in items)
    assert loss(together) == pytest.approx(alone, rel=1e-5)


def test_long_conversations_are_cut_after_a_whole_exchange(tokenizer):
    (whole, every), fit = tokenize(tokenizer, TALK, 999)
    assert (whole, every) == encode(tokenizer, CHATML.segments(TALK))
    assert fit == len(TALK)
    (first, mask), fit = tokenize(tokenizer, TALK, len(whole) - 1)
    assert first == tokenize(tokenizer, TALK[:2], 999)[0][0]
    assert fit == 2
    assert whole[: len(first)] == first
    assert any(mask)
    assert tokenize(tokenizer, TALK, 5) == (None, 0)
    without = [TALK[0], TALK[1] | {"weight": "0"}, *TALK[2:]]
    assert tokenize(tokenizer, without, len(whole) - 1) == (None, 2)  # what fits teaches nothing
    assert tokenize(tokenizer, without, len(whole))[0][0] == whole
    system = [{"role": "system", "content": "x"}, *TALK]
    assert tokenize(tokenizer, system, 12) == (None, 0)


def test_load_holds_out_by_language_and_names_missing_files(small_recipe, tokenizer):
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["sft"]["validation"] = 0.2
    rows, validation, fingerprint = load(parse(data, "x"), tokenizer)
    assert set(validation) == {"ko", "en"}
    train = {tuple(r) for r in rows.ids.tolist()}
    assert not any(tuple(r) in train for batch in validation.values() for r in batch.ids.tolist())
    assert load(parse(data, "x"), tokenizer)[2] == fingerprint
    data["sft"]["sources"] = [{"path": "none/*.jsonl"}]
    with pytest.raises(ChatBakerError, match=r"no file matches 'none/\*\.jsonl'.*data_root=FOLDER"):
        load(parse(data, "x"), tokenizer)
    data["sft"]["sources"] = []
    with pytest.raises(ChatBakerError, match="names no conversations"):
        load(parse(data, "x"), tokenizer)


def test_show_mask_prints_what_is_trained(small_recipe, packed, capsys):
    show(small_recipe, packed, 4)
    out = capsys.readouterr().out
    assert out.count("tokens trained (in [[ ]])") + out.count("left out") == 4  # this is no terminal
    assert "<|im_start|>user" in out
    assert f"{IM_END}]]\n" in out


def test_show_mask_takes_any_name_and_says_what_is_cut(small_recipe, packed, tmp_path, capsys):
    texts = ["가 [/b]", "나", "다", "라 " * 99]
    talk = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=True)]
    (tmp_path / "말[ko].jsonl").write_text(json.dumps({"messages": talk}), encoding="utf-8")
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["sft"] |= {"validation": 0, "sources": [{"path": unicodedata.normalize("NFD", "말[[]ko].jsonl")}]}
    recipe = parse(data | {"data_root": str(tmp_path)}, "x")
    show(recipe, packed, 1)
    shown = " ".join(capsys.readouterr().out.split())
    assert "말[ko].jsonl:1:" in shown
    assert "cut after 2 of 4 messages" in shown
    load(recipe, load_tokenizer(packed.path("tokenizer")))
    assert "1 conversations cut to the context of 64 tokens" in capsys.readouterr().err


def test_the_first_conversation_of_every_source_is_shown_in_turn(small_recipe, packed, capsys):
    show(small_recipe, packed, 2)
    out = capsys.readouterr().out
    assert "made:ko:small:1: " in out
    assert "made:en:small:1: " in out


def weighed(recipe, tokenizer, weight):
    """How often each conversation of the recipe's first source is trained on at a weight."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    data["sft"] |= {"validation": 0, "sources": [data["sft"]["sources"][0] | {"weight": weight}]}
    rows, _, _ = load(parse(data, "x"), tokenizer)
    found = Counter()
    for ids, docs in zip(rows.ids, rows.docs, strict=True):
        found.update(ids[docs == number].tobytes() for number in range(1, docs.max() + 1))
    return found


def test_a_weight_is_how_often_conversations_count(small_recipe, tokenizer):
    once, half, more = (weighed(small_recipe, tokenizer, weight) for weight in (1, 0.5, 2.5))
    assert once.total() > 100
    assert half < once
    assert half.total() == round(once.total() / 2)
    assert more == once + once + half
    assert weighed(small_recipe, tokenizer, 0.5) == half


def test_another_seed_draws_another_half(small_recipe, tokenizer, monkeypatch):
    half = weighed(small_recipe, tokenizer, 0.5)
    monkeypatch.setattr(conversations, "mix_hash", lambda seed, *key: mix_hash(seed + 1, *key))
    other = weighed(small_recipe, tokenizer, 0.5)
    assert other.total() == half.total()
    assert other != half
