"""Chance that depends on the seed and the sample alone: never on time, worker, batch or order."""

import numpy as np


def keys(sample_ids: np.ndarray, seed: int) -> np.ndarray:
    """Return a uniform 64-bit key for every sample: uint64 (n,). Rows in key order are in random order.

    A bijection of 64 bits for any one seed, so distinct samples never tie. Not for cryptography.
    Source: splitmix64, Steele, Lea and Flood, OOPSLA 2014 (its finaliser, started at id * golden ratio + mixed seed).
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    start = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + golden)
    return _mix(sample_ids.astype(np.int64).view(np.uint64) * golden + start)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
