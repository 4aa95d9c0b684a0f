"""A uniform sample: exact size, nested, uniform, and independent of everything but seed and ids."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS
from tasks.prune.random import Random
from tests.helpers import LocalRun


def kept(tmp_path: Path, inputs: Inputs, keep: float, seed: int) -> np.ndarray:
    table = pa.concat_tables(Random(keep=keep).run(inputs, LocalRun(tmp_path, seed=seed)))
    assert set(table["reason"].to_pylist()) <= {None, "pruned_random"}
    return table.filter(table["keep"])["sample_id"].to_numpy()


def clusters(ids: np.ndarray) -> pa.Table:
    return pa.table([ids, np.zeros(len(ids), np.int32), np.zeros(len(ids), np.float32)], schema=CLUSTERS)


def test_random_exact_nested_and_seeded(tmp_path: Path) -> None:
    inputs = Inputs.of(clusters=clusters(np.arange(1000) << 24))
    small, large = kept(tmp_path, inputs, 0.1, 7), kept(tmp_path, inputs, 0.35, 7)
    assert (len(small), len(large)) == (100, 350)
    assert set(small) < set(large)
    assert (kept(tmp_path, inputs, 0.1, 7) == small).all()
    assert len(set(kept(tmp_path, inputs, 0.1, 8)) & set(small)) < 40


def test_random_is_uniform_over_seeds(tmp_path: Path) -> None:
    """Each of 50 rows is kept in about half of 400 draws: within 4.5 standard deviations of the binomial."""
    inputs = Inputs.of(clusters=clusters(np.arange(50)))
    counts = np.zeros(50)
    for seed in range(400):
        counts[kept(tmp_path, inputs, 0.5, seed)] += 1
    assert counts.sum() == 400 * 25
    assert np.abs(counts - 200).max() < 4.5 * np.sqrt(400 / 4)


def test_random_needs_no_clusters(tmp_path: Path) -> None:
    images = pa.table({"sample_id": np.arange(10), "status": ["success"] * 8 + ["failed"] * 2})
    inputs = Inputs.of(images=images)
    assert Random(keep=0.5).inputs({"images": images.schema}) == {"images": ("status",)}
    assert len(kept(tmp_path, inputs, 0.5, 0)) == 4
