"""Coverage of concepts and of the tail, against plain loops and cases computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.concepts.coverage import coverage, effective_number, gini, tail_weights


def test_counts_by_hand() -> None:
    clusters = np.array([7, 7, 7, 3, 3, -1, 9])
    found = coverage(clusters, np.array([True, False, True, False, False, True, True]))
    assert found.concept.tolist() == [3, 7, 9]
    assert found.before.tolist() == [2, 3, 1]
    assert found.kept.tolist() == [0, 2, 1]
    assert found.share == 0.5
    assert found.shares.tolist() == [0, 2 / 3, 1]
    assert found.emptied == 1
    assert found.emptied == 1


def test_tail_by_hand() -> None:
    """Sizes 10, 6, 2, 1, 1: the last 4 of 20 rows are the two single ones and the pair; then a third of the six."""
    assert tail_weights(np.array([10, 6, 2, 1, 1])).tolist() == [0, 0, 1, 1, 1]
    np.testing.assert_allclose(tail_weights(np.array([10, 6, 2, 1, 1]), tail=0.3), [0, 1 / 3, 1, 1, 1])
    clusters = np.repeat(np.arange(5), [10, 6, 2, 1, 1])
    keep = np.isin(np.arange(20), [0, 1, 2, 16, 18])  # three of the large one, one of the pair, one single one
    found = coverage(clusters, keep)
    assert found.tail_concepts == 3
    assert found.tail_share == 2 / 4


def by_rows(sizes: list[int], tail: float) -> np.ndarray:
    """The definition, row by row: equal sizes share the rows at the boundary evenly."""
    weights = np.zeros(len(sizes))
    left = tail * sum(sizes)
    for size in sorted(set(sizes)):
        alike = [i for i, s in enumerate(sizes) if s == size]
        for i in alike:
            weights[i] = min(left / (size * len(alike)), 1)
        left = max(left - size * len(alike), 0)
    return weights


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), tail=st.sampled_from([0.05, 0.2, 0.5, 1.0]))
def test_tail_by_definition_and_with_the_exact_number_of_rows(sizes: list[int], tail: float) -> None:
    weights = tail_weights(np.array(sizes), tail)
    np.testing.assert_allclose(weights, by_rows(sizes, tail), atol=1e-12)
    assert weights @ np.array(sizes) == pytest.approx(tail * sum(sizes))


@pytest.mark.parametrize("k", [1, 2, 7])
def test_even_sizes(k: int) -> None:
    assert effective_number(np.array([5] * k + [0, 0])) == pytest.approx(k)
    assert gini(np.full(k, 5)) == pytest.approx(0)


def test_uneven_sizes_in_closed_form() -> None:
    assert effective_number(np.array([2, 1, 1])) == pytest.approx(2**1.5)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)
    x = np.random.default_rng(0).geometric(0.1, 40)
    pairs = np.abs(x[:, None] - x[None, :]).sum() / (2 * len(x) ** 2 * x.mean())
    assert gini(x) == pytest.approx(pairs)


def test_gini_after_counts_emptied_concepts() -> None:
    clusters = np.repeat([0, 1], 10)
    found = coverage(clusters, clusters == 0)
    assert found.gini == pytest.approx((0, 0.5))
    assert found.effective == pytest.approx((2, 1))


def test_no_rows() -> None:
    found = coverage(np.array([-1, -1]), np.array([True, False]))
    assert (found.share, found.emptied, found.tail_share) == (0, 0, 0)
    assert found.effective == found.gini == (0, 0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_uniform_choice_covers_the_tail_as_the_rest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clusters = rng.zipf(1.5, 40_000).clip(max=2000)
    found = coverage(clusters, rng.random(40_000) < 0.3)
    assert found.share == pytest.approx(0.3, abs=0.01)
    assert found.tail_share == pytest.approx(0.3, abs=0.03)
    assert coverage(clusters, clusters < 10).tail_share < 0.05


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="3 rows have a cluster, but 2 are kept or not"):
        coverage(np.zeros(3, int), np.zeros(2, bool))
