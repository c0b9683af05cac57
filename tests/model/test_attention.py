"""Attention that keeps documents apart: by where they start, as on a GPU, and by a dense mask."""

import pytest
import torch

from chatbaker.model import attention
from chatbaker.model.attention import attend, document_mask, document_starts
from chatbaker.model.config import LlamaConfig
from chatbaker.model.llama import Llama, init_weights
from chatbaker.model.loss import cross_entropy_sum
from chatbaker.train.parallel import recomputed

DOCS = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 0], [3, 3, 4, 5, 5, 5, 5, 0], [0, 1, 2, 3, 4, 5, 6, 7]])


@pytest.fixture(scope="module")
def varlen_on_a_cpu():
    """torch's own operator for packed documents, with kernels for the CPU: all around them is the real thing."""
    from torch.nn.attention import varlen

    def documents(starts):
        return [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]

    def scores(q, k, scale):
        later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        return (torch.einsum("qhk,shk->hqs", q, k) * scale).masked_fill(later, float("-inf"))

    @varlen._varlen_attn.register_kernel("cpu")
    def forward(q, k, v, starts, starts_k, longest, longest_k, causal=False, scale=None, window=None, *rest):
        assert causal
        assert all(b.stop - b.start <= longest for b in documents(starts))
        assert max(q.shape[-1] % 8, k.shape[-1] % 8, v.shape[-1] % 8) == 0  # as the GPU's kernel demands
        assert torch.equal(starts, starts_k)
        assert starts.dtype == torch.int32
        out, lse = torch.empty_like(q), q.new_empty(q.shape[1], len(q), dtype=torch.float32)
        for doc in documents(starts):
            all_scores = scores(q[doc], k[doc], scale)
            lse[:, doc] = all_scores.logsumexp(-1)
            out[doc] = torch.einsum("hqs,shk->qhk", all_scores.softmax(-1), v[doc])
        return out, lse, torch.zeros(2, dtype=torch.uint64)

    @varlen._varlen_attn_backward.register_kernel("cpu")
    def backward(grad, q, k, v, out, lse, starts, starts_k, longest, longest_k, causal, rng, scale=None, window=None):
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for doc in documents(starts):
            weights = torch.exp(scores(q[doc], k[doc], scale) - lse[:, doc, None])
            above = torch.einsum("qhk,shk->hqs", grad[doc], v[doc]) - (grad[doc] * out[doc]).sum(-1).T[:, :, None]
            grads[0][doc] = torch.einsum("hqs,shk->qhk", weights * above, k[doc]) * scale
            grads[1][doc] = torch.einsum("hqs,qhk->shk", weights * above, q[doc]) * scale
            grads[2][doc] = torch.einsum("hqs,qhk->shk", weights, grad[doc])
        return grads


def test_documents_start_where_the_number_changes_and_at_every_row():
    starts = document_starts(DOCS)
    assert starts.tolist() == [0, 8, 10, 11, 15, *range(16, 25)]
    assert starts.dtype == torch.int32
    assert document_starts(DOCS[:1]).tolist() == [0, 8]


def test_only_half_precision_on_a_gpu_takes_starts():
    assert document_mask(DOCS, torch.bfloat16).shape == (3, 1, 8, 8)
    assert not attention.has_flash(torch.device("cuda"), torch.float32)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 8), (4, 2, 16), (3, 1, 6)])
def test_starts_equal_the_dense_mask(varlen_on_a_cpu, heads, kv_heads, width):
    torch.manual_seed(0)
    shapes = [(3, heads, 8, width), (3, kv_heads, 8, width), (3, kv_heads, 8, width)]
    qkv = [torch.randn(shape, requires_grad=True) for shape in shapes]
    direction = torch.randn(shapes[0])
    results = []
    for mask in (document_mask(DOCS, torch.float32), document_starts(DOCS)):
        out = attend(*qkv, mask)
        results.append([out, *torch.autograd.grad((out * direction).sum(), qkv)])
    for dense, starts in zip(*results, strict=True):
        torch.testing.assert_close(starts, dense, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_one_compiled_block_trains_alike_with_any_number_of_documents(varlen_on_a_cpu, monkeypatch, recompute):
    config = LlamaConfig(61, layers=2, heads=4, kv_heads=2, dim=32, ffn_dim=48, seq_len=8)
    plain, model = Llama(config), Llama(config)
    init_weights(plain, 0)
    for block in plain.model.layers:  # the blocks start as the identity; make them do something
        torch.nn.init.normal_(block.self_attn.o_proj.weight, std=0.3)
    model.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    for block in model.model.layers:
        if recompute:
            block.forward = recomputed(block.forward)
        block.compile(dynamic=False, backend="inductor" if recompute else "aot_eager")
    ids = torch.randint(0, 61, (3, 8), generator=torch.Generator().manual_seed(1))
    compiled = torch._dynamo.utils.counters["stats"]
    seen = []
    for docs in (DOCS, torch.zeros_like(DOCS), DOCS // 2):
        for network in (plain, model):
            monkeypatch.setattr(attention, "has_flash", lambda *_, starts=network is model: starts)
            network.zero_grad()
            cross_entropy_sum(network(ids, docs), network.lm_head.weight, ids).backward()
        for (name, expected), found in zip(plain.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, atol=1e-5, rtol=1e-4, msg=name)
        seen.append(compiled["unique_graphs"])
    assert seen[0] > 0
    assert len(set(seen)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention needs a CUDA card")
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 64), (4, 2, 128), (3, 1, 20)])
def test_flash_equals_the_dense_mask_on_a_gpu(heads, kv_heads, width):
    torch.manual_seed(0)
    docs = (torch.arange(512, device="cuda") // 100)[None].expand(2, -1)
    qkv = [torch.randn(2, n, 512, width, device="cuda", dtype=torch.bfloat16) for n in (heads, kv_heads, kv_heads)]
    qkv = [x.requires_grad_() for x in qkv]
    starts = document_mask(docs, torch.bfloat16)
    assert starts.tolist() == [0, 100, 200, 300, 400, 500, 512, 612, 712, 812, 912, 1012, 1024]
    wide = [x.detach().float().requires_grad_() for x in qkv]
    expected, found = attend(*wide, document_mask(docs, torch.float32)), attend(*qkv, starts)
    direction = torch.randn_like(expected)
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)
    grads = torch.autograd.grad((expected * direction).sum(), wide)
    for a, b in zip(torch.autograd.grad((found * direction).sum(), qkv), grads, strict=True):
        assert (a.float() - b).norm() < 0.02 * b.norm()
