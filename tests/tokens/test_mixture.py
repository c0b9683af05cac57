"""Data order: pure, exact in its proportions, and every window once per pass."""

from collections import Counter

import pytest

from chatbaker.tokens.mixture import BLOCK, Mixture, apportion, permute


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 1025])
def test_permute_is_a_permutation_that_depends_on_the_key(size):
    orders = [tuple(permute(i, size, key) for i in range(size)) for key in (1, 2)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    assert size < 5 or orders[0] != orders[1]


def test_apportion_sums_and_follows_the_weights():
    assert apportion([1, 1, 1], 10) == [4, 3, 3]
    assert apportion([0.5, 0, 0.5], 8) == [4, 0, 4]
    assert sum(apportion([0.123, 4.5, 0.7], 4096)) == 4096


def test_no_source_is_too_small_to_be_read():
    assert apportion([1, 100_000], BLOCK) == [1, BLOCK - 1]
    assert apportion([1] * 9 + [100_000, 0], BLOCK) == [1] * 9 + [BLOCK - 9, 0]


def test_every_window_once_per_pass_and_shares_as_weighted():
    mixture = Mixture([700, 300, 0], [3, 1, 0], seed=7)
    samples = [mixture(i) for i in range(2 * BLOCK)]
    counts = Counter(source for source, _ in samples)
    assert counts == {0: 6144, 1: 2048}
    windows = [window for source, window in samples if source == 0]
    for start in range(0, 6144 - 700, 700):
        assert sorted(windows[start : start + 700]) == list(range(700))
    assert windows[:700] != windows[700:1400]


def test_the_order_is_a_pure_function_of_seed_and_number():
    a, b = Mixture([50, 60], [1, 1], 5), Mixture([50, 60], [1, 1], 5)
    later = [b(i) for i in range(9000, 9050)]
    assert [a(i) for i in range(9050)][9000:] == later
    assert [Mixture([50, 60], [1, 1], 6)(i) for i in range(50)] != [a(i) for i in range(50)]
