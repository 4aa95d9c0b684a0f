"""Rows for tests of vectors: a planted mixture, and unit rows in float64."""

import numpy as np


def mixture(seed: int, n: int = 1500, k: int = 10, dim: int = 16, noise: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    label = rng.integers(0, k, n)
    rows = (centres[label] + noise * rng.normal(size=(n, dim))) * rng.uniform(0.5, 20, (n, 1))
    return rows.astype(np.float16), label


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)
