"""What several tests of scorers need: embeddings with every fault in them, weights of nets, and a run of a stage."""

import pickle
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalog.schema import SAMPLE_ID, vector
from tasks.score import Score, ScoreVectors
from tasks.stage import MapStage

BAD = {2: "null", 5: "zero", 7: "nan", 11: "inf"}
"""Rows of `rows` that have no usable vector."""


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1, float64; what has no direction stays as it is."""
    wide = vectors.astype(np.float64)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.divide(wide, length, out=wide, where=length > 0)


def rows(n: int = 20, seed: int = 0, bad: bool = True, **dims: int) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Return (a table with a column a keyword, its matrices): float16 of length about 1, with the rows of BAD."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {"sample_id": pa.array(np.arange(n), pa.int64())}
    matrices = {}
    for name, dim in dims.items():
        matrix = unit(rng.normal(size=(n, dim))).astype(np.float16)
        if bad:
            matrix[5], matrix[7, 1], matrix[11, 0] = 0, np.nan, np.inf
        matrices[name] = matrix
        mask = pa.array(np.arange(n) == (2 if bad else -1))
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), dim, mask=mask)
    schema = pa.schema([SAMPLE_ID, *(vector(name, dim, "") for name, dim in dims.items())])
    return pa.table(columns, schema=schema), matrices


def usable(n: int) -> np.ndarray:
    """Return which rows of `rows` have a score."""
    return ~np.isin(np.arange(n), list(BAD))


def vectors_stage(*scorers: Mapping[str, Any]) -> MapStage:
    """Return the stage over embeddings that `use: score` stands for."""
    stage = Score.model_validate({"scorers": list(scorers)}).expand()[-1]
    assert isinstance(stage, ScoreVectors)
    return stage


def run(stage: MapStage, *batches: pa.Table, **sides: pa.Table) -> pa.Table:
    """Return what a stage makes of batches, as a worker runs it: pickled before it is opened."""
    opened = pickle.loads(pickle.dumps(stage)).open("cpu", sides)
    return pa.concat_tables([stage.output({}).empty_table(), *opened(iter(batches))]).combine_chunks()


def linear_layers(widths: Sequence[int], names: Sequence[str], seed: int = 0, gain: float = 1) -> dict[str, Any]:
    """Return the state dict of linear layers with random weights; gain 1 keeps the scale, sqrt(2) through ReLU."""
    import torch

    torch.manual_seed(seed)
    state = {}
    for (before, after), name in zip(pairwise(widths), names, strict=True):
        state[f"{name}weight"] = torch.randn(after, before) * gain / before**0.5
        state[f"{name}bias"] = torch.randn(after) * 0.1
    return state


def saved(state: Mapping[str, Any], path: Path) -> str:
    """Write a state dict as safetensors, or as torch does where the name ends in .pt; return the path."""
    import torch
    from safetensors.torch import save_file

    if path.suffix == ".pt":
        torch.save(dict(state), path)
    else:
        save_file(dict(state), path)
    return str(path)
