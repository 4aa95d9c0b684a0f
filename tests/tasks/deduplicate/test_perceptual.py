"""Perceptual copies: every pair of hashes within the radius, against all pairs."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from tasks.deduplicate._perceptual import Perceptual, pairs
from tasks.deduplicate.deduplicate import Deduplicate
from tests.helpers import LocalRun


def near_hashes(seed: int, n: int = 400) -> np.ndarray:
    """Random hashes, some with 1 to 8 bits turned."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-(2**63), 2**63 - 1, n)
    for row in range(n // 2, n):
        values[row] = values[rng.integers(0, row)]
        for bit in rng.choice(64, rng.integers(0, 9), replace=False):
            values[row] ^= np.int64(np.uint64(1 << int(bit)).view(np.int64))
    return values


@pytest.mark.parametrize("radius", [0, 1, 3, 6])
def test_pairs_misses_none(radius: int) -> None:
    values = np.unique(near_hashes(radius))
    distance = np.bitwise_count((values[:, None] ^ values[None, :]).view(np.uint64))
    late, early = np.nonzero(np.tril(distance <= radius, -1))
    found = pairs(values, radius)
    assert sorted(map(tuple, found.tolist())) == sorted(zip(late.tolist(), early.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_greedy_on_perceptual_copies(tmp_path: Path, seed: int) -> None:
    values = near_hashes(seed)
    values[[3, 5]] = [0, 0]  # flat images: not judged
    size = np.random.default_rng(seed).integers(1, 100, len(values)).astype(np.int32)
    ids = np.arange(len(values)) + 7
    table = pa.table({"sample_id": ids, "phash": pa.array(values, mask=ids == 9), "width": size, "height": size})
    stage = Deduplicate(exact=False, perceptual=Perceptual(radius=3), keep="largest")
    found = pa.concat_tables(stage.run(Inputs.of(images=table), LocalRun(tmp_path)))
    kept: list[int] = []
    for row in sorted(range(len(values)), key=lambda r: (-int(size[r]), r)):
        judged = row not in (2, 3, 5)
        words = values.view(np.uint64).tolist()
        near = [k for k in kept if judged and k not in (2, 3, 5) and (words[row] ^ words[k]).bit_count() <= 3]
        if not near:
            kept.append(row)
            assert found["keep"][row].as_py()
        else:
            assert not found["keep"][row].as_py()
            assert found["representative"][row].as_py() - 7 in near
            assert found["reason"][row].as_py() == "duplicate_perceptual"
