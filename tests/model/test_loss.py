"""The sliced loss is the plain loss."""

import pytest
import torch

from chatbaker.model import loss as losses
from chatbaker.model.loss import cross_entropy_sum, token_losses
from chatbaker.tokens import loader


@pytest.mark.parametrize("slice_size", [3, 7, 1024])
@pytest.mark.parametrize(("compiled", "trained"), [(False, None), (False, 16), (True, 16)])
def test_loss_and_gradients_equal_plain_cross_entropy(monkeypatch, slice_size, compiled, trained):
    monkeypatch.setattr(losses, "SLICE", slice_size)
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 10, 16, requires_grad=True), torch.randn(33, 16, requires_grad=True)
    targets = torch.randint(0, 33, (2, 10))
    targets[0, :4] = losses.IGNORE
    plain = token_losses(hidden.reshape(20, 16) @ weight.T, targets.reshape(20)).sum()
    expected = torch.autograd.grad(plain * 0.25, (hidden, weight))
    sliced = cross_entropy_sum(hidden, weight, targets, compiled, trained)
    actual = torch.autograd.grad(sliced * 0.25, (hidden, weight))
    assert torch.allclose(sliced, plain, rtol=1e-5)
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_only_tokens_with_loss_have_logits(monkeypatch):
    shapes = []

    def seen(logits, targets):
        shapes.append(tuple(logits.shape))
        return losses._slice_loss_and_grad(logits, targets)

    monkeypatch.setattr(losses, "SLICE", 4)
    monkeypatch.setattr(losses, "_compiled", lambda: seen)
    targets = torch.tensor([losses.IGNORE, 1, losses.IGNORE, 2, 3, losses.IGNORE, 4, 5] + [losses.IGNORE] * 12)
    cross_entropy_sum(torch.randn(20, 8), torch.randn(9, 8), targets, compiled=True, trained=5)
    assert shapes == [(4, 9), (4, 9)]  # five with loss, and three to fill


def test_no_valid_token_means_no_loss_and_no_gradient():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8, requires_grad=True)
    loss = cross_entropy_sum(hidden, weight, torch.full((4,), losses.IGNORE))
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_the_two_rooms_agree_on_what_is_ignored():
    assert losses.IGNORE == loader.IGNORE
