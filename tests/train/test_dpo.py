"""DPO: loss and gradient against a direct formula, every format of pairs, refusals, exact resume."""

import json
import shutil
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chatbaker.errors import ChatBakerError
from chatbaker.infer.engine import find_model
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Llama, init_weights
from chatbaker.recipe import parse
from chatbaker.stages import STAGES, execute, key, planned
from chatbaker.tokens.bpe import load_tokenizer
from chatbaker.tokens.loader import IGNORE, Batch
from chatbaker.tokens.preferences import load_pairs
from chatbaker.train import dpo, loop

ASKED, GOOD, BAD = "서울은 어디야?", "대한민국의 수도예요.", "몰라."
QUESTION, CHOSEN, REJECTED = (
    {"role": role, "content": text} for role, text in (("user", ASKED), ("assistant", GOOD), ("assistant", BAD))
)
FORMATS = {
    "UltraFeedback": {
        "prompt": ASKED,
        "messages": [QUESTION, CHOSEN],
        "chosen": [QUESTION, CHOSEN],
        "rejected": [QUESTION, REJECTED],
    },
    "HH-RLHF": {
        "chosen": f"\n\nHuman: {ASKED}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {ASKED}\n\nAssistant: {BAD}",
    },
    "HH-RLHF, prompt apart": {"prompt": f"\n\nHuman: {ASKED}\n\nAssistant:", "chosen": f" {GOOD}", "rejected": BAD},
    "Orca": {"system": "", "question": ASKED, "chosen": GOOD, "rejected": BAD},
    "strings": {"prompt": unicodedata.normalize("NFD", ASKED), "chosen": GOOD, "rejected": BAD},
    "prompt of messages": {"prompt": [QUESTION], "chosen": [CHOSEN], "rejected": [REJECTED]},
    "messages and strings": {"messages": [QUESTION], "chosen": GOOD, "rejected": BAD},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": ASKED}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
}


@pytest.fixture(scope="module")
def wide(small_recipe):
    """A context with room for a pair."""
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["model"] |= {"seq_len": 128}
    return parse(data, "wide")


def preferring(recipe, folder, records, name="pairs.jsonl", **knobs):
    """The recipe with a file of pairs."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    (folder / name).write_text(text, encoding="utf-8")
    data = recipe.model_dump(mode="json", exclude_none=True)
    source = {"path": str(folder / name), "strict": knobs.pop("strict", True)}
    data["dpo"] = data["dpo"] | {"compile": False, "batch_size": 2, "micro_batch": 2, "validation": 0.0, "lr": 1e-3}
    data["dpo"] |= {"epochs": 4, "eval_every": 8, "prompts": ["서울?"], "log_every": 1, "sources": [source]} | knobs
    return parse(data, "x")


def pairs(count=40):
    said = [("{} yes", "no {}"), ("{} 네", "몰라 {}")]
    return [
        {"prompt": f"{i} 맞아?", "chosen": said[i % 2][0].format(i), "rejected": said[i % 2][1].format(i)}
        for i in range(count)
    ]


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    monkeypatch.setattr(loop, "peak_flops", lambda *_: (1e12, "not measured"))


@pytest.fixture
def tokenizer(packed):
    return load_tokenizer(packed.path("tokenizer"))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(wide, tokenizer, tmp_path, name):
    rows, _, _ = load_pairs(preferring(wide, tmp_path, [FORMATS[name]]), tokenizer)
    said = []
    for number in (1, 2):
        own = rows.docs[0] == number
        said.append(tokenizer.decode(rows.ids[0][own], skip_special_tokens=False))
        trained = rows.targets[0][own & (rows.targets[0] != IGNORE)]
        assert tokenizer.decode(trained, skip_special_tokens=False) == (GOOD, BAD)[number - 1] + "<|im_end|>"
    start = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    assert said == [f"{start}{GOOD}<|im_end|>\n", f"{start}{BAD}<|im_end|>\n"]
    assert rows.docs.max() == 2


@pytest.mark.parametrize("name", ["strings", "prompt of messages", "UltraFeedback", "ShareGPT"])
def test_a_system_prompt_beside_a_pair_is_kept(wide, tokenizer, tmp_path, name):
    rows, _, _ = load_pairs(preferring(wide, tmp_path, [FORMATS[name] | {"system": "짧게."}]), tokenizer)
    text = tokenizer.decode(rows.ids[0], skip_special_tokens=False)
    assert text.count("<|im_start|>system\n짧게.<|im_end|>\n<|im_start|>user") == 2


def test_several_pairs_share_a_row_and_a_tokens_target_stays_in_its_document(wide, tokenizer, tmp_path):
    rows, _, _ = load_pairs(preferring(wide, tmp_path, pairs()), tokenizer)
    assert len(rows.ids) < 40
    assert (rows.docs.max(1) // 2).sum() == 40
    row, place = np.nonzero(rows.targets != IGNORE)
    assert (rows.docs[row, place] == rows.docs[row, place + 1]).all()


def network(seed, tied=True):
    torch.manual_seed(seed)
    model = Llama(LlamaConfig(512, 2, 2, 1, 32, 64, 128, tied=tied))
    init_weights(model, seed)
    for block in model.model.layers:
        torch.nn.init.normal_(block.self_attn.o_proj.weight, std=0.2)
    return model


def direct(model, reference, batch, beta):
    """The mean loss and margins of the paper's formula, a conversation at a time, on whole logits."""
    margins = []
    for ids, targets, docs in zip(*map(torch.from_numpy, (batch.ids, batch.targets, batch.docs)), strict=True):
        for number in range(1, int(docs.max()), 2):
            gains = []
            for each in (number, number + 1):
                own = docs == each
                logs = [net.logits(net(ids[own][None]))[0].log_softmax(-1) for net in (model, reference)]
                place = torch.arange(own.sum())[targets[own] != IGNORE]
                policy, fixed = (log[place, targets[own][place]].sum() for log in logs)
                gains.append(policy - fixed)
            margins.append(beta * (gains[0] - gains[1]))
    margins = torch.stack(margins)
    return -torch.nn.functional.logsigmoid(margins).mean(), margins.detach()


@pytest.mark.parametrize("tied", [True, False])
def test_loss_gradient_and_what_is_logged_equal_the_formula(wide, tokenizer, tmp_path, monkeypatch, tied):
    monkeypatch.setattr(dpo, "SLICE", 7)  # many slices
    rows, _, _ = load_pairs(preferring(wide, tmp_path, pairs()), tokenizer)
    model, same, reference = network(1, tied), network(1, tied), network(2, tied)
    batch = dpo.refer(reference, rows.head(5), 2, torch.float32)
    totals = Counter()
    for part in batch.split(3):
        hidden, *arrays = loop.forward(model, part, torch.float32)
        sums = dpo.preference(0.3, hidden, model.lm_head.weight, False, batch.trained, *arrays)
        (sums["loss"] / batch.valid).backward()
        totals.update({name: float(value.detach()) / batch.valid for name, value in sums.items()})
    expected, margins = direct(same, reference, batch, 0.3)
    expected.backward()
    assert len(margins) == batch.valid > 5
    assert totals["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)
    for (name, got), (_, wanted) in zip(model.named_parameters(), same.named_parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, rtol=1e-3, atol=1e-5, msg=name)
    assert totals["margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
    assert totals["accuracy"] == pytest.approx(float((margins > 0).float().mean()), abs=1e-3)
    assert 0 < totals["accuracy"] < 1


@pytest.fixture
def chatty(wide, small_run):
    for stage in ("pretrain", "sft"):
        execute(STAGES[stage], wide, small_run)
    return small_run


def metrics(run):
    return [json.loads(line) for line in run.path("dpo", "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("rank", [0, 4])
def test_it_learns_to_prefer_and_a_stopped_run_goes_on_bit_identical(wide, chatty, tmp_path, stop_at, rank):
    recipe = preferring(wide, tmp_path, pairs(80), lora_rank=rank, validation=0.2, lr=1e-2 if rank else 1e-3)
    execute(STAGES["dpo"], recipe, chatty)
    logged = [row for row in metrics(chatty) if "loss" in row]
    assert logged[0]["loss"] == pytest.approx(0.6931, abs=0.002)  # nothing is preferred yet: log 2
    assert logged[-1]["loss"] < 0.6
    assert logged[-1]["margin"] > 0.1
    last = [row["eval"] for row in metrics(chatty) if "eval" in row][-1]
    assert set(last) == {"ko", "en"}
    assert all(scores["accuracy"] > 0.7 and scores["bits_per_byte"] > 0 for scores in last.values())
    path = chatty.path("dpo", "model", "model.safetensors")
    expected = load_file(path)
    assert expected.keys() == load_file(chatty.path("sft", "model", "model.safetensors")).keys()
    assert find_model(str(chatty.root), "q8_0")[1] == chatty.path("dpo", "model")
    shutil.rmtree(chatty.path("dpo"))
    stop_at(5)
    with pytest.raises(ChatBakerError, match="stopped at step 5, saved"):
        execute(STAGES["dpo"], recipe, chatty)
    execute(STAGES["dpo"], recipe, chatty)
    again = load_file(path)
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_it_is_planned_where_there_are_pairs_and_stales_nothing_where_there_are_none(wide, chatty, tmp_path):
    recipe = preferring(wide, tmp_path, pairs())
    assert "dpo" not in [stage.name for stage in planned(wide)]
    assert [stage.name for stage in planned(recipe)][4:7] == ["sft", "dpo", "export"]
    before = key(STAGES["export"], recipe, chatty)
    chatty.write_stamp("dpo", 0.0, key="x")
    assert key(STAGES["export"], recipe, chatty) != before


BAD_INPUT = [
    ([FORMATS["strings"] | {"chosen": " \n"}], r"pairs.jsonl:1: the chosen answer is empty"),
    ([FORMATS["UltraFeedback"] | {"rejected": [QUESTION]}], r"pairs.jsonl:1: no assistant turn"),
    ([FORMATS["UltraFeedback"] | {"rejected": [QUESTION | {"content": "?"}, REJECTED]}], "have different questions"),
    ([{"messages": [QUESTION, CHOSEN], "chosen": GOOD, "rejected": BAD}], "the prompt does not end with a question"),
    ([{"prompt": ASKED, "completion": GOOD}], r"no known format \(the keys are: prompt, completion\)"),
    ([FORMATS["strings"] | {"rejected": GOOD}] * 3, r"no pair to learn from \(.*3 with one answer twice"),
    ([FORMATS["strings"] | {"chosen": "네 " * 99}] * 2, r"no pair to learn from \(0 held out, 2 too long"),
]


@pytest.mark.parametrize(("records", "message"), BAD_INPUT)
def test_what_teaches_nothing_is_refused_in_one_line(wide, tokenizer, tmp_path, records, message):
    with pytest.raises(ChatBakerError, match=message) as caught:
        load_pairs(preferring(wide, tmp_path, records), tokenizer)
    assert len(str(caught.value).splitlines()) == 1


def test_without_sources_and_without_a_chat_model_it_says_what_to_do(wide, tokenizer, small_run, tmp_path):
    with pytest.raises(ChatBakerError, match=r"names no pairs. Add a \[\[dpo.sources\]\] table"):
        load_pairs(wide, tokenizer)
    with pytest.raises(ChatBakerError, match="Run first: chatbaker sft"):
        execute(STAGES["dpo"], preferring(wide, tmp_path, pairs()), small_run)


def test_what_cannot_be_used_is_counted(wide, tokenizer, tmp_path, capsys):
    good = FORMATS["strings"]
    records = [good, good | {"chosen": "네 " * 99}, good | {"rejected": GOOD}, good | {"rejected": ""}]
    rows, _, _ = load_pairs(preferring(wide, tmp_path, records, strict=False), tokenizer)
    assert isinstance(rows, Batch)
    assert rows.docs.max() == 2
    said = capsys.readouterr().err
    assert "dpo: 1 pairs in 1 rows" in said
    assert "0 held out, 1 too long, 1 with one answer twice" in said
    assert "1 skipped: the rejected answer is empty" in said
