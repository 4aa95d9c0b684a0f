"""Self-supervised prototypes against a plain loop over the definition."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS
from tasks.prune.prototypes import Prototypes
from tests.helpers import LocalRun


def by_definition(cluster: np.ndarray, distance: np.ndarray, total: int, r: float, which: str) -> set[int]:
    key = -distance if which == "hard" else distance
    k = len(set(cluster.tolist()))
    chosen: set[int] = set()
    for j in set(cluster.tolist()):
        members = sorted(np.flatnonzero(cluster == j).tolist(), key=lambda i: (key[i], i))
        chosen |= set(members[: min(len(members), int(total / k * r))])
    rest = sorted(set(range(len(cluster))) - chosen, key=lambda i: (key[i], i))
    return chosen | set(rest[: total - len(chosen)])


@pytest.mark.parametrize("which", ["hard", "easy"])
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_prototypes_by_definition(tmp_path: Path, seed: int, balance: float, which: str) -> None:
    rng = np.random.default_rng(seed)
    cluster = rng.choice(9, 300, p=rng.dirichlet(np.ones(9) / 2)).astype(np.int32)
    distance = rng.integers(0, 20, 300).astype(np.float32) / 32  # many ties
    inputs = Inputs.of(clusters=pa.table([np.arange(300), cluster, distance], schema=CLUSTERS))
    stage = Prototypes(keep=0.3, balance=balance, which=which)
    table = pa.concat_tables(stage.run(inputs, LocalRun(tmp_path)))
    kept = set(np.flatnonzero(table["keep"].to_numpy()).tolist())
    assert kept == by_definition(cluster, distance, 90, balance, which)
    assert set(table["reason"].to_pylist()) == {None, "pruned_prototypes"}


def test_prototypes_more_than_there_are(tmp_path: Path) -> None:
    clusters = pa.table([[1, 2], pa.array([0, None], pa.int32()), pa.array([0.1, None], pa.float32())], schema=CLUSTERS)
    table = pa.concat_tables(Prototypes(keep_rows=10).run(Inputs.of(clusters=clusters), LocalRun(tmp_path)))
    assert table["keep"].to_pylist() == [True, False]
    assert table["reason"].to_pylist() == [None, "no_embedding"]
    assert table["evidence"].to_pylist() == [
        "distance 0.1, rank 1 of 1 in cluster 0, floor 0",
        "no usable embedding",
    ]
