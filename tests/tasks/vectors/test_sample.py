"""A sample is the rows of the smallest keys, in any order and batches, and holds a block in memory, not the rows."""

from pathlib import Path

import numpy as np
import pytest

from tasks.vectors import kmeans, mapped
from tasks.vectors import random_keys as draw
from tasks.vectors.sample import Sample
from tests.tasks.vectors.resident import mapped_bytes


@pytest.mark.parametrize("rows", [1, 30, 2000, 10_000])
def test_sample_is_the_smallest_keys_however_they_come(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(rows)
    ids = np.sort(rng.choice(10**9, 9000, replace=False))
    vectors = np.stack([ids % 1000 + 1, ids % 7], axis=1).astype(np.float16)
    vectors[::100] = 0
    good = np.flatnonzero(vectors.any(axis=1))
    expected = np.sort(ids[good][np.argsort(draw.keys(ids[good], 3))[:rows]])
    for number, step in enumerate([9000, 613]):
        sample = Sample(tmp_path / f"{number}.npy", rows, 2, seed=3)
        for start in range(0, 9000, step):
            sample.add(ids[start : start + step], vectors[start : start + step])
        found, taken = sample.take()
        assert found.tolist() == expected.tolist()
        assert (taken == vectors[np.searchsorted(ids, found)]).all()
        assert sample.seen == len(good)


def test_a_sample_and_a_fit_of_it_hold_a_block_and_not_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of the files is mapped in never comes near to what lies in them: 102 MB."""
    most = 0
    counted = mapped.release

    def watch(rows: np.ndarray) -> None:
        nonlocal most
        counted(rows)
        most = max(most, mapped_bytes(tmp_path))

    monkeypatch.setattr(mapped, "release", watch)
    sample = Sample(tmp_path / "sample.npy", 200_000, 256, seed=0)
    block = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float16)
    for start in range(0, 200_000, 20_000):
        sample.add(np.arange(start, start + 20_000), block)
    _, rows = sample.take()
    fit = kmeans.fit(rows, 4, niter=1, held_bytes=0)
    assert fit.sizes.sum() == 200_000
    assert not (tmp_path / "sample.npy.sorted").exists()  # all rows, in order: no copy
    assert mapped_bytes(tmp_path) < 20 << 20
    assert most < 20 << 20
