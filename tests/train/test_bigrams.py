"""The head start: pairs counted as the mixture has them, exact gradients, a network that begins as a bigram model."""

from collections import Counter

import numpy as np
import pytest
import torch

from chatbaker.errors import ChatBakerError
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Llama, init_weights
from chatbaker.model.loss import cross_entropy_sum
from chatbaker.recipe import load, parse
from chatbaker.stages import STAGES, execute
from chatbaker.tokens.loader import PretrainData
from chatbaker.tokens.shards import Index, write_shard
from chatbaker.train import bigrams

VOCAB = 40


def shards(folder, **documents):
    """An index of sources, each of one document."""
    written = [
        write_shard(folder, name, "en", "train", [(list(map(int, ids)), len(ids))], 0)
        for name, ids in documents.items()
    ]
    return Index(folder, VOCAB, 0, tuple(written))


def table(found):
    """{(first, follower): count}"""
    first = np.repeat(np.arange(VOCAB), np.diff(found.begin))
    return {(int(a), int(b)): c for a, b, c in zip(first, found.followers, found.counts, strict=True)}


def test_counts_are_those_of_the_text_in_shares_of_the_mixture(tmp_path):
    texts = {name: np.random.default_rng(seed).integers(1, 6, 400) for seed, name in enumerate("ab")}
    data = PretrainData(shards(tmp_path, **texts), {"a": 0.25, "b": 0.75}, 16, 4, 1)
    expected = Counter()
    for name, share in (("a", 0.25), ("b", 0.75)):
        pairs = list(zip([0, *texts[name][:-1]], texts[name], strict=True))
        for (first, follower), times in Counter(pairs).items():
            expected[int(first), int(follower)] += share * times / len(pairs)
    assert table(bigrams.count(data, VOCAB)) == pytest.approx(expected)


def test_where_there_is_more_text_than_is_counted_all_parts_of_it_have_a_say(tmp_path):
    text = np.repeat([1, 2, 3, 4], 4096)
    found = table(bigrams.count(PretrainData(shards(tmp_path, a=text), {}, 16, 4, 1), VOCAB, most=1024))
    assert [found[token, token] for token in (1, 2, 3, 4)] == pytest.approx([0.25] * 4, abs=0.02)


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_gradients_are_those_of_the_cross_entropy(dtype, off):
    torch.manual_seed(0)
    hidden = torch.randn(7, 16).to(dtype).requires_grad_()
    head = torch.randn(VOCAB, 16).requires_grad_()
    shares = torch.rand(7, VOCAB) * (torch.rand(7, VOCAB) < 0.3)
    shares /= shares.sum()
    expected = -(shares * torch.log_softmax(hidden.float() @ head.to(dtype).float().T, -1)).sum()
    expected.backward()
    places = shares.nonzero().T
    loss, to_hidden, to_head = bigrams.gradients(hidden.detach(), head.detach(), places, shares[tuple(places)])
    assert float(loss) == pytest.approx(expected.item(), rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
    torch.testing.assert_close(to_hidden, hidden.grad, atol=off, rtol=off)
    torch.testing.assert_close(to_head, head.grad, atol=off, rtol=off)


def test_the_network_begins_as_a_bigram_model(tmp_path):
    """Each token has two equally likely followers: ln 2 is the least that a bigram model can lose."""
    draw, ids = np.random.default_rng(0), [1]
    for _ in range(6000):
        ids.append(1 + (ids[-1] * 7 + int(draw.integers(2)) * 11) % (VOCAB - 1))
    data = PretrainData(shards(tmp_path, a=ids), {}, 32, 4, 1)
    config = LlamaConfig(vocab_size=VOCAB, layers=2, heads=2, kv_heads=1, dim=32, ffn_dim=48, seq_len=32, tied=False)
    model = Llama(config)
    init_weights(model, 1)
    batch = data.batch(0)
    inputs, targets = torch.from_numpy(batch.ids), torch.from_numpy(batch.targets)

    def loss():
        with torch.no_grad():
            return float(cross_entropy_sum(model(inputs), model.lm_head.weight, targets)) / targets.numel()

    assert loss() == pytest.approx(np.log(VOCAB), abs=0.05)
    bigrams.head_start(model, data, 150, 1, torch.float32)
    assert np.log(2) - 0.02 < loss() < np.log(2) + 0.1


def test_only_a_training_that_begins_has_one(small_recipe, small_run, stop_at, capfd):
    data = small_recipe.model_dump(mode="json", exclude_none=True)
    data["model"] |= {"tied": False}
    data["pretrain"] |= {"bigram_steps": 3, "tokens": 6 * 512}
    stop_at(3)
    with pytest.raises(ChatBakerError, match="stopped at step 3"):
        execute(STAGES["pretrain"], parse(data, "test"), small_run)
    assert capfd.readouterr().err.count("bigrams: 3 steps") == 1
    execute(STAGES["pretrain"], parse(data, "test"), small_run)
    assert "bigrams" not in capfd.readouterr().err


def test_one_matrix_cannot_learn_both():
    with pytest.raises(ChatBakerError, match=r"mini.toml: pretrain.bigram_steps .* set model.tied = false"):
        load("mini", ["model.tied=true", "pretrain.bigram_steps=3"])
