"""Keys: known values of splitmix64, no ties, uniform, independent of what stands beside."""

import numpy as np
import pytest

from tasks.vectors import random_keys as draw


def splitmix64(state: int) -> int:
    """The reference's output step, in Python's own whole numbers."""
    mask = (1 << 64) - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 + 5])
def test_keys_are_splitmix64(seed: int) -> None:
    ids = np.array([0, 1, 2, 2**40 + 3, -1])
    golden = 0x9E3779B97F4A7C15
    start = splitmix64((seed % 2**64) + golden)
    expected = [splitmix64((i % 2**64) * golden + start) for i in ids.tolist()]
    assert draw.keys(ids, seed).tolist() == expected
    assert draw.keys(ids[2:3], seed).tolist() == expected[2:3]


def test_first_published_value() -> None:
    """splitmix64 seeded with 0 gives 0xE220A8397B1DCDAF first, which is the mix of the golden ratio."""
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("seed", range(3))
def test_keys_do_not_tie_and_are_uniform(seed: int) -> None:
    keys = draw.keys(np.arange(200_000) << 24, seed)
    assert len(np.unique(keys)) == len(keys)
    counts = np.bincount((keys >> np.uint64(60)).astype(int), minlength=16)
    expected = len(keys) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 45  # chi squared, 15 degrees: p about 1e-4
