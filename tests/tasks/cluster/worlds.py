"""Planted mixtures, and embeddings tables of them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from catalog.inputs import Inputs
from catalog.schema import vector


@dataclass(frozen=True)
class Mixture:
    """Rows around known centres."""

    rows: np.ndarray
    """float16 (n, d)."""
    label: np.ndarray
    """int64 (n,): the centre of each."""
    centres: np.ndarray
    """float64 (c, d), of unit length."""


def mixture(
    seed: int, rows: int, components: int, dim: int, noise: float = 0.1, tail: float = 0.0, apart: float = 1.0
) -> Mixture:
    """Return rows of `components` Gaussian clusters round random directions; sizes fall as rank ** -tail.

    No two centres have a cosine above `apart`.
    """
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(components, dim)))
    while (close := np.argwhere(np.triu(centres @ centres.T, 1) > apart)).size:
        centres[close[:, 1]] = unit(rng.normal(size=(len(close), dim)))
    share = np.arange(1, components + 1) ** -tail
    label = rng.choice(components, rows, p=share / share.sum())
    return Mixture((centres[label] + noise * rng.normal(size=(rows, dim))).astype(np.float16), label, centres)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    scaled: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def embeddings(rows: np.ndarray) -> Inputs:
    """Return inputs whose `embeddings` has these rows as its column `clip`."""
    dim = rows.shape[1]
    schema = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", dim, "")])
    return Inputs.of(embeddings=pa.table([np.arange(len(rows)), list(rows)], schema=schema))
