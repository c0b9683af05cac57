"""Scores equal those of lm-eval's own back end, whoever computes them, in whatever batches, after whatever kill."""

from __future__ import annotations

import json
import math
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from chatbaker.errors import ChatBakerError
from chatbaker.evals import lm as module
from chatbaker.evals import score
from chatbaker.evals.lm import Scorer
from chatbaker.export.gguf import write_gguf
from chatbaker.jsonl import read_jsonl
from chatbaker.model.weights import load_model
from tests.evals.conftest import ask, choices
from tests.export.conftest import Make, mixed_lines

AWKWARD = [
    ("", "안녕하세요"),
    ("", " hello"),
    ("빵을 굽는 사람은   ", "새벽에 일어나요"),
    ("The weather is\n", "lovely"),
    ("값싼", "닭볶음탕"),
    ("hel", "lo the weather"),
    (unicodedata.normalize("NFD", "오늘 날씨가"), unicodedata.normalize("NFD", " 좋습니다")),
    ("👩‍🍳 " * 300, "🍞 빵 빵"),
    ("hello " * 300, "weather"),
    ("짧은 말", " " + "가나다 " * 20),
]


def close(a: list[tuple[float, bool]], b: list[tuple[float, bool]], tolerance: float) -> None:
    assert [greedy for _, greedy in a] == [greedy for _, greedy in b]
    assert max(abs(x - y) for (x, _), (y, _) in zip(a, b, strict=True)) <= tolerance


@pytest.fixture(scope="session")
def folder(make: Make) -> Path:
    return make("ours", learn=mixed_lines(20, seed=0))


opened: list[Scorer] = []


def open_lm(model: Path | str | None, device: str = "cpu", **options: Any) -> Scorer:
    opened.append(module.open_lm(None if model is None else str(model), device=device, **options))
    return opened[-1]


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()


def test_scores_equal_those_of_lm_evals_own_back_end(make: Make, folder: Path, capsys: Any) -> None:
    beginning = make("published", learn=mixed_lines(5, seed=1))  # with a token put before every text
    tokenizer = json.loads((beginning / "tokenizer.json").read_text(encoding="utf-8"))
    begin = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer["post_processor"] = json.loads(begin.__getstate__())
    (beginning / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (beginning / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}', encoding="utf-8")
    pairs = [*AWKWARD, *choices(30)]
    nfc = [tuple(unicodedata.normalize("NFC", text) for text in pair) for pair in pairs]
    texts = [(unicodedata.normalize("NFC", "".join(mixed_lines(40, seed=3))),), ("짧은 글",), ("a",)]
    for model in (folder, beginning):
        theirs = HFLM(pretrained=str(model), device="cpu", batch_size=8, dtype="float32")
        ours = open_lm(str(model))
        assert ours.kind == "torch"
        close(ours.loglikelihood(ask(*pairs)), theirs.loglikelihood(ask(*nfc), disable_tqdm=True), 1e-4)
        rolling = zip(ours.loglikelihood_rolling(ask(*texts)), theirs.loglikelihood_rolling(ask(*texts)), strict=True)
        assert max(abs(a - b) for a, b in rolling) <= 1e-3
    assert "2 of 118 texts are longer than the context of 256" in capsys.readouterr().err


def test_scores_do_not_depend_on_batches_or_trees(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [*AWKWARD, *choices(40, seed=5)]
    found = []
    for size in (1, 7, 32, 0):
        found.append(open_lm(folder, batch_size=size).loglikelihood(ask(*pairs)))
    texts = [([1, 2, 3, 4, 5, 6][:n], [7]) for n in (4, 5, 6)]
    assert [tree.size for tree in score.grow(texts)] == [6]
    monkeypatch.setattr(score, "ROW", 0)
    assert len(score.grow(texts)) == 3
    found.append(open_lm(folder).loglikelihood(ask(*pairs)))
    for other in found[1:]:
        close(found[0], other, 1e-4)


def test_a_text_is_scored_once_whatever_order_it_comes_in() -> None:
    texts = [([1, 2, 3, 9], [4]), ([5, 6], [7]), ([1, 2, 3, 8, 8], [8, 4]), ([1, 2, 3, 9], [5])]
    one, other = score.grow(texts)
    assert (one.size, other.size) == (6, 2)
    assert one.branches == [([], [1, 2, 3, 8, 8]), ([0, 1, 2], [9])]
    assert one.wanted == [(2, [0, 1, 2, 3, 4], [8, 4]), (0, [0, 1, 2, 5], [4]), (3, [0, 1, 2, 5], [5])]


def test_too_little_memory_means_smaller_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = choices(20)
    expected = open_lm(folder).loglikelihood(ask(*pairs))
    scorer = open_lm(folder)
    model, sizes = scorer.inner.model, []

    def full(ids: torch.Tensor, **options: Any) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError
        return type(model).forward(model, ids, **options)

    monkeypatch.setattr(model, "forward", full)
    close(scorer.loglikelihood(ask(*pairs)), expected, 1e-4)
    assert max(sizes) > 1 == sizes[-1]
    scorer.inner.batch_size = 64
    with pytest.raises(ChatBakerError, match="memory is too small"):
        scorer.loglikelihood(ask(*choices(20, seed=9)))


def test_a_killed_evaluation_goes_on_where_it_was(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pairs, cache, scored = choices(20), tmp_path / "deep" / "scores.jsonl", []
    true = score.TorchLM._forward

    def counted(self: Any, trees: list[score.Tree]) -> Any:
        if len(scored) > 20:
            raise KeyboardInterrupt
        result = true(self, trees)
        scored.extend(result)
        return result

    monkeypatch.setattr(score.TorchLM, "_forward", counted)
    with pytest.raises(KeyboardInterrupt):
        open_lm(folder, batch_size=2, cache=cache).loglikelihood(ask(*pairs, *pairs))
    assert len(cache.read_bytes().split()) == 5 * len(scored) > 100
    cache.write_bytes(cache.read_bytes()[:-9])  # the last line was cut by a kill
    monkeypatch.setattr(score.TorchLM, "_forward", true)
    scorer = open_lm(folder, cache=cache)
    found = scorer.loglikelihood(ask(*pairs))
    asked = len(set(pairs))
    assert len(list(read_jsonl(cache, on_bad=lambda _: None))) == asked
    assert scorer.loglikelihood_rolling(ask(("글",))) == scorer.loglikelihood_rolling(ask(("글",)))
    assert len(list(read_jsonl(cache, on_bad=lambda _: None))) == asked + 1
    close(found, open_lm(folder).loglikelihood(ask(*pairs)), 1e-4)

    monkeypatch.setattr(score.TorchLM, "_forward", lambda *_: pytest.fail("computed twice"))
    assert open_lm(folder, cache=cache).loglikelihood(ask(*pairs)) == found
    other = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(pytest.fail.Exception, match="computed twice"):  # another model's scores are its own
        open_lm(str(other), cache=cache).loglikelihood(ask(*pairs))


@pytest.mark.parametrize("kind", ["ours", "published"])
def test_llama_cpp_gives_the_scores_of_the_folder(make: Make, kind: str, tmp_path: Path) -> None:
    folder = make(kind, learn=mixed_lines(20, seed=0))
    pairs = [("", "안녕하세요"), ("값싼  ", "닭볶음탕 뷁🦖"), *choices(12)]
    expected = open_lm(folder).loglikelihood(ask(*pairs))
    scorer = open_lm(str(write_gguf(folder, tmp_path / "model.gguf", "f32")))
    assert scorer.kind == "gguf"
    found = scorer.loglikelihood(ask(*pairs))
    text = ("".join(mixed_lines(3, seed=3)),)
    rolling = scorer.loglikelihood_rolling(ask(text))[0]
    assert max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True)) < 0.05
    assert sum(a[1] != b[1] for a, b in zip(found, expected, strict=True)) == 0
    assert rolling == pytest.approx(open_lm(folder).loglikelihood_rolling(ask(text))[0], abs=0.2)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
OTHERS = {
    "gpt_neox": lambda v: transformers.GPTNeoXConfig(vocab_size=v, intermediate_size=64, **SHAPE),
    "opt": lambda v: transformers.OPTConfig(vocab_size=v, ffn_dim=64, word_embed_proj_dim=32, **SHAPE),
    "mpt": lambda v: transformers.MptConfig(vocab_size=v, d_model=32, n_heads=2, n_layers=2, max_seq_len=64),
    "xglm": lambda v: transformers.XGLMConfig(
        vocab_size=v, d_model=32, num_layers=2, attention_heads=2, ffn_dim=64, max_position_embeddings=64
    ),
    "gpt2": lambda v: transformers.GPT2Config(vocab_size=v, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "llama": lambda v: transformers.LlamaConfig(
        vocab_size=v, intermediate_size=64, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        **SHAPE,
    ),
}  # fmt: skip


@pytest.fixture
def other(make: Make, tokenizers: Any, tmp_path: Path) -> Any:
    def _other(kind: str) -> Path:
        torch.manual_seed(0)
        config = OTHERS[kind](tokenizers["ours"].get_vocab_size())
        transformers.AutoModelForCausalLM.from_config(config).eval().save_pretrained(tmp_path / kind)
        tokenizers["ours"].save(str(tmp_path / kind / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
        (tmp_path / kind / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return tmp_path / kind

    return _other


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_read_through_transformers(kind: str, other: Any, tokenizers: Any, tmp_path: Path) -> None:
    folder = other(kind)
    pairs = [(f"{a} ", b) for a, b in choices(4)]
    scorer = open_lm(folder, cache=tmp_path / "scores.jsonl")
    assert scorer.kind == "hf"
    found = scorer.loglikelihood(ask(*pairs))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    for (context, answer), (chance, _) in zip(pairs, found, strict=True):
        before = len(tokenizers["ours"].encode(context.rstrip()).ids)
        ids = torch.tensor([tokenizers["ours"].encode(context + answer).ids])
        with torch.inference_mode():
            figures = model(ids).logits[0].log_softmax(-1)
        expected = sum(figures[i - 1, ids[0, i]].item() for i in range(before, ids.shape[1]))
        assert chance == pytest.approx(expected, abs=1e-3)
    assert scorer.loglikelihood_rolling(ask(("짧은 글",)))[0] < 0
    (long,) = scorer.loglikelihood(ask(("a ", "가나다 " * 90)))
    assert long[0] < -100, "of an answer longer than the context of 64 its end"
    nfd = [tuple(unicodedata.normalize("NFD", text) for text in pair) for pair in pairs]
    scorer.inner = None  # nothing is asked again
    assert scorer.loglikelihood(ask(*pairs)) == scorer.loglikelihood(ask(*nfd)) == found


def test_what_cannot_be_scored_is_one_clear_line(other: Any, tmp_path: Path) -> None:
    with pytest.raises(ChatBakerError, match="neither a model folder"):
        open_lm(str(tmp_path))
    broken = other("gpt2")
    scorer = open_lm(broken)
    scorer.inner.model.forward = None  # as a model that fails while it runs
    with pytest.raises(ChatBakerError, match="transformers cannot run it .TypeError"):
        scorer.loglikelihood(ask(("a ", "b")))
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    with pytest.raises(ChatBakerError, match="transformers cannot load it") as error:
        open_lm(str(broken))
    assert "\n" not in str(error.value)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ChatBakerError, match="transformers cannot load it"):
        open_lm(str(broken))


class Server(BaseHTTPRequestHandler):
    """/completions whose tokens are characters, each with -1/code point; it may be busy, or refuse, or be deaf."""

    busy, picky, deaf, bos, seen = 0, False, False, "", 0
    lock = threading.Lock()

    def reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "far", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            type(self).seen += 1
            number = self.seen
        if self.busy and number % self.busy == 0:
            return self.reply(429 if number % 2 else 503, {"error": {"message": "busy"}})
        if self.picky and asked["max_tokens"] == 0:
            return self.reply(400, {"error": {"message": "max_tokens must be at least 1"}})
        text = asked["prompt"] + "!" * asked["max_tokens"]
        tokens = ([self.bos] if self.bos else []) + list(text)
        chances = [None, *(-1 / ord(token) for token in tokens[1:])]
        best = [None, *({"?": -1 / 1000} for _ in tokens[1:])]
        offsets = [sum(map(len, tokens[:i])) for i in range(len(tokens))]
        found = {"tokens": tokens, "token_logprobs": chances, "top_logprobs": best, "text_offset": offsets}
        choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None if self.deaf else found}
        self.reply(200, {"id": "1", "object": "text_completion", "created": 0, "model": "far", "choices": [choice]})

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    for name, value in (("busy", 0), ("picky", False), ("deaf", False), ("bos", ""), ("seen", 0)):
        monkeypatch.setattr(Server, name, value)
    running = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/v1", Server
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize("picky", [False, True])
@pytest.mark.parametrize("bos", ["", "<s>"])
def test_a_server_gives_the_scores_of_a_prompt(server: Any, picky: bool, bos: str, tmp_path: Path) -> None:
    url, settings = server
    settings.picky, settings.bos, settings.busy = picky, bos, 3
    pairs = [("가", "나"), ("질문 ", "힣힣"), ("", "a"), *choices(10)]
    cache = tmp_path / "scores.jsonl"
    scorer = open_lm(None, url=url, cache=cache)
    assert (scorer.kind, scorer.name) == ("remote", f"far ({url})")
    found = scorer.loglikelihood(ask(*pairs))
    for (context, answer), (chance, greedy) in zip(pairs, found, strict=True):
        scored = context[len(context.rstrip()) :] + answer
        assert chance == pytest.approx(-sum(1 / ord(letter) for letter in scored))
        assert greedy == all(ord(letter) >= 1000 for letter in scored)
    settings.seen = 0
    again = open_lm(None, url=url, cache=cache)
    assert again.loglikelihood(ask(*pairs)) == found
    assert settings.seen == 0, "nothing is paid for twice"
    with pytest.raises(ChatBakerError, match="bits per byte"):
        again.loglikelihood_rolling(ask(("a",)))


def test_a_server_without_log_probabilities_is_one_clear_line(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url, settings = server
    settings.deaf = True
    scorer = open_lm("far", url=url)
    with pytest.raises(ChatBakerError, match="gives no log-probabilities"):
        scorer.loglikelihood(ask(("a", "b"), ("c", "d")))
    settings.deaf, settings.busy = False, 1
    monkeypatch.setattr(module, "RETRIES", 1)
    with pytest.raises(ChatBakerError, match="busy"):
        scorer.loglikelihood(ask(("a", "b")))


def test_a_tree_is_read_as_its_texts_are(folder: Path) -> None:
    model = load_model(folder).eval()
    positions = torch.tensor([[0, 1, 2, 2, 3]])
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]).bool()
    with torch.inference_mode():
        tree = model(torch.tensor([[5, 6, 7, 8, 9]]), tree=(positions, mask[None, None]))[0]
        one, other = (model(torch.tensor([ids]))[0] for ids in ([5, 6, 7], [5, 6, 8, 9]))
    assert (tree[:3] - one).abs().max() < 1e-5
    assert (tree[[0, 1, 3, 4]] - other).abs().max() < 1e-5
    assert not math.isclose(tree[2, 0].item(), tree[3, 0].item())
