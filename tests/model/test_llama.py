"""Our network is LlamaForCausalLM: same weights, same numbers."""

import pytest
import torch
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

from chatbaker.model.cache import KVCache, greedy
from chatbaker.model.config import LlamaConfig, from_hf, to_hf
from chatbaker.model.llama import Llama, init_weights
from chatbaker.model.loss import cross_entropy_sum

SHAPES = {
    "mha tied": LlamaConfig(97, layers=3, heads=4, kv_heads=4, dim=32, ffn_dim=80, seq_len=48),
    "gqa untied": LlamaConfig(97, layers=2, heads=6, kv_heads=2, dim=48, ffn_dim=72, seq_len=48, tied=False),
    "one kv head, other theta": LlamaConfig(64, 2, 4, 1, 32, 64, 48, rope_theta=500_000.0, norm_eps=1e-6),
    "mha untied": LlamaConfig(64, 2, 2, 2, 32, 64, 48, tied=False),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def pair(request):
    config = request.param
    torch.manual_seed(0)
    # A padding token would get no gradient there; here every token does.
    theirs = LlamaForCausalLM(HFConfig(**to_hf(config, "float32", 0, 2) | {"pad_token_id": None})).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    ours = Llama(config)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def ids_for(config, batch=3, length=40):
    return torch.randint(0, config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def test_logits_equal_transformers(pair):
    ours, theirs = pair
    ids = ids_for(ours.config)
    for grad in (False, True):  # training takes another attention path than inference
        with torch.set_grad_enabled(grad):
            docs = torch.zeros_like(ids) if grad else None
            difference = (ours.logits(ours(ids, docs)) - theirs(ids).logits).abs().max()
        assert difference <= 1e-5


def test_logits_with_cache_equal_transformers(pair):
    ours, theirs = pair
    ids = ids_for(ours.config)
    expected = theirs(ids).logits
    with torch.no_grad():
        cache = KVCache(ours.config, 3, 48, torch.float32, "cpu")
        parts = [ours.logits(ours(ids[:, a:b], cache=cache)) for a, b in ((0, 17), (17, 18), (18, 31), (31, 40))]
        assert (torch.cat(parts, 1) - expected).abs().max() <= 1e-5
        cache.truncate(18)  # as when a conversation changes after its 18th token
        again = ours.logits(ours(ids[:, 18:], cache=cache))
        assert (again - expected[:, 18:]).abs().max() <= 1e-5


def test_gradients_equal_transformers(pair):
    ours, theirs = pair
    ids = ids_for(ours.config)
    theirs(ids, labels=ids).loss.backward()
    targets = torch.full_like(ids, -100)
    targets[:, :-1] = ids[:, 1:]
    loss = cross_entropy_sum(ours(ids, torch.zeros_like(ids)), ours.lm_head.weight, targets) / (ids[:, 1:].numel())
    loss.backward()
    others = dict(theirs.named_parameters())
    assert set(others) == {name for name, _ in ours.named_parameters()}
    for name, mine in ours.named_parameters():
        assert (mine.grad - others[name].grad).abs().max() <= 1e-5 * max(1.0, others[name].grad.abs().max()), name


def test_greedy_continuation_equals_transformers(pair):
    ours, theirs = pair
    ids = ids_for(ours.config, 1, 8)
    theirs.generation_config.eos_token_id = None
    expected = theirs.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)[0, 8:].tolist()
    assert greedy(ours, ids[0].tolist(), 20, [], torch.float32) == expected


def test_documents_do_not_see_each_other():
    config = SHAPES["gqa untied"]
    model = Llama(config)
    init_weights(model, 0)
    for block in model.model.layers:  # the blocks start as the identity; make them do something
        torch.nn.init.normal_(block.self_attn.o_proj.weight, std=0.3)
    ids = ids_for(config, 1, 40)
    docs = (torch.arange(40) // 13)[None]
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            packed = model(ids, docs)
            alone = torch.cat([model(ids[:, docs[0] == d], docs[:, docs[0] == d]) for d in range(4)], 1)
        assert torch.allclose(packed, alone, atol=1e-5)
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % config.vocab_size
    after = model(changed, docs)
    assert not torch.equal(after[0, 5:13], packed[0, 5:13])
    assert torch.equal(after[0, 13:], packed[0, 13:])


def test_config_survives_the_round_trip():
    for config in SHAPES.values():
        assert from_hf(to_hf(config, "bfloat16", 0, 2), "here") == config


def test_more_than_the_context_is_refused():
    config = SHAPES["mha tied"]
    with pytest.raises(ValueError, match="49 tokens"):
        Llama(config)(torch.zeros(1, 49, dtype=torch.int64))
