"""What every selector must do, whatever it selects by."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS
from tasks.cluster.centroids import centroids_table
from tasks.prune import AnyPrune
from tasks.prune._base import Selector
from tests.helpers import LocalRun

METHODS = ["density", "prototypes", "random"]


def make(**fields: object) -> Selector:
    return TypeAdapter(AnyPrune).validate_python({"use": "prune"} | fields)


def inputs(n: int, seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(5, 4)).astype(np.float32)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    columns = [np.arange(n), rng.integers(0, 5, n).astype(np.int32), rng.random(n).astype(np.float32)]
    return Inputs.of(clusters=pa.table(columns, schema=CLUSTERS), centroids=centroids_table(c, np.zeros(5, np.int64)))


@pytest.mark.parametrize("method", METHODS)
def test_no_rows(tmp_path: Path, method: str) -> None:
    assert sum(t.num_rows for t in make(method=method, keep=0.5).run(inputs(0), LocalRun(tmp_path))) == 0


@pytest.mark.parametrize("method", METHODS)
def test_same_bytes_twice_and_all_rows_judged(tmp_path: Path, method: str) -> None:
    stage = make(method=method, keep=0.5, name="thin")
    first = pa.concat_tables(stage.run(inputs(101), LocalRun(tmp_path / "a", seed=3)))
    second = pa.concat_tables(stage.run(inputs(101), LocalRun(tmp_path / "b", seed=3)))
    assert first.equals(second)
    assert first.schema == DECISIONS == stage.output({})
    assert first["keep"].to_numpy().sum() == 50
    assert set(first["stage"].to_pylist()) == {"thin"}
    assert first["evidence"].null_count == 0


@pytest.mark.parametrize("method", METHODS)
def test_only_broken_embeddings(tmp_path: Path, method: str) -> None:
    table = pa.table([[1, 2], pa.nulls(2, pa.int32()), pa.nulls(2, pa.float32())], schema=CLUSTERS)
    none = centroids_table(np.empty((0, 4), np.float32), np.empty(0, np.int64))
    found = pa.concat_tables(
        make(method=method, keep=1.0).run(Inputs.of(clusters=table, centroids=none), LocalRun(tmp_path))
    )
    assert found["reason"].to_pylist() == ["no_embedding"] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "density"}, "found neither"),
        ({"method": "random", "keep": 0.5, "keep_rows": 3}, "found both"),
        ({"method": "density", "keep": 1.5}, "less than or equal to 1"),
        ({"method": "dense", "keep": 0.5}, "'density', 'prototypes', 'random'"),
        ({"method": "random", "keep": 0.5, "temperature": 0.1}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_recipes(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(**fields)


def test_prune_without_clusters_says_what_to_do() -> None:
    with pytest.raises(RecipeError, match="put a stage `use: cluster` before it"):
        make(method="density", keep=0.5).inputs({})
