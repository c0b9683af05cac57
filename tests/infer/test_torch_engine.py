from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infer import markov

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from chatbaker.errors import ChatBakerError  # noqa: E402
from chatbaker.infer.engine import Sampling, convert  # noqa: E402
from chatbaker.infer.llamacpp import LlamaCppEngine  # noqa: E402
from chatbaker.infer.local import LocalEngine  # noqa: E402
from chatbaker.infer.torch_engine import TorchEngine, sample  # noqa: E402
from chatbaker.model.config import LlamaConfig, to_hf  # noqa: E402
from chatbaker.model.llama import Llama  # noqa: E402
from chatbaker.tokens import bpe  # noqa: E402
from chatbaker.tokens.dialog import CHATML, IM_END  # noqa: E402

TALK = markov.messages("안녕하세요 hello", "네 반가워요", "오늘 날씨는 🙂 어때요?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as a stage leaves it."""
    path = tmp_path_factory.mktemp("hf") / "random"
    path.mkdir()
    words = ["안녕하세요 오늘 날씨가 좋아요", "hello the weather is nice today", "반가워요 🙂 네"]
    tokenizer = bpe.train(iter(words * 20), 320)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML.jinja}), encoding="utf-8")
    vocab = tokenizer.get_vocab_size()
    config = LlamaConfig(vocab, layers=2, heads=4, kv_heads=2, dim=64, ffn_dim=96, seq_len=256, tied=False)
    torch.manual_seed(0)
    model = Llama(config)
    state = {
        name: torch.randn_like(value) * 0.3 if value.dim() > 1 else value for name, value in model.state_dict().items()
    }
    save_file({name: value.contiguous() for name, value in state.items()}, path / "model.safetensors", {"format": "pt"})
    raw = to_hf(config, "float32", 0, tokenizer.token_to_id(IM_END))
    (path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def engines(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TorchEngine, LlamaCppEngine]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHATBAKER_CACHE", str(tmp_path_factory.mktemp("cache")))
        gguf = convert(folder, "bf16")
    with TorchEngine(folder, "cpu") as here, LlamaCppEngine(gguf, "cpu") as there:
        yield here, there


def tokens(engine: LocalEngine, sampling: Sampling) -> list[str]:
    return [chunk.token for chunk in engine.stream(TALK, sampling, 1)]


def test_both_engines_see_the_same_prompt(engines: tuple[TorchEngine, LlamaCppEngine]) -> None:
    here, there = engines
    assert here.encode(TALK) == there.encode(TALK)
    assert (here.context, here.stops) == (there.context, there.stops)


@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_both_engines_say_the_same_greedily(engines: tuple[TorchEngine, LlamaCppEngine], penalty: float) -> None:
    options = Sampling(temperature=0, repetition_penalty=penalty, max_new_tokens=12)
    assert tokens(engines[0], options) == tokens(engines[1], options)


def test_the_cache_changes_no_answer(folder: Path) -> None:
    options = Sampling(temperature=0, max_new_tokens=8)
    with TorchEngine(folder, "cpu") as engine:
        first = list(engine.stream(TALK, options))
        second = list(engine.stream(TALK, options))
        list(engine.stream(markov.messages("다른 말"), options))
        third = list(engine.stream(TALK, options))
    prompt = first[-1].usage.prompt_tokens
    assert (first[-1].usage.cached_tokens, second[-1].usage.cached_tokens) == (0, prompt - 1)
    assert 0 < third[-1].usage.cached_tokens < prompt - 1
    assert len({"".join(chunk.text for chunk in chunks) for chunks in (first, second, third)}) == 1


def test_the_same_seed_repeats(engines: tuple[TorchEngine, LlamaCppEngine]) -> None:
    options = Sampling(temperature=1.5, seed=5, max_new_tokens=12)
    assert tokens(engines[0], options) == tokens(engines[0], options)


def test_sampling_by_hand() -> None:
    def drawn(logits: list[float], generated: list[int], **options: float) -> Counter[int]:
        sampling = Sampling(**({"repetition_penalty": 1.0} | options))  # type: ignore[arg-type]
        seeds = (torch.Generator().manual_seed(seed) for seed in range(400))
        return Counter(sample(torch.tensor(logits), generated, sampling, seed) for seed in seeds)

    assert set(drawn([1.0, 3.0, 2.0], [], temperature=0)) == {1}
    assert set(drawn([1.0, 3.0, 2.9], [1], temperature=0, repetition_penalty=1.2)) == {2}
    assert set(drawn([-1.0, -1.1], [0], temperature=0, repetition_penalty=1.2)) == {1}
    assert set(drawn([3.0, 2.0, 1.0], [], temperature=9, top_k=2, top_p=1)) == {0, 1}
    assert set(drawn([2.0, 0.0], [], temperature=0.5, top_p=0.95)) == {0}
    assert set(drawn([2.0, 0.0], [], temperature=1.0, top_p=0.95)) == {0, 1}
    share = drawn([1.0, 0.0], [], temperature=1.0, top_p=1)[0] / 400
    assert share == pytest.approx(0.731, abs=0.07)


def test_a_folder_without_a_tokenizer_is_a_plain_error(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ChatBakerError, match=r"tokenizer\.json"):
        TorchEngine(tmp_path, "cpu")
