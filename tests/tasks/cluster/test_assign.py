"""Assignment: against the full product, with any batches, and rows without an embedding."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from catalog.schema import CLUSTERS, vector
from tasks.cluster import Assign
from tasks.cluster.centroids import centroids_table
from tasks.streams.rebatch import rebatch


def world(n: int, k: int = 50, dim: int = 12, seed: int = 0) -> tuple[pa.Table, pa.Table, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centroids = rng.normal(size=(k, dim)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    rows = rng.normal(size=(n, dim)).astype(np.float16)
    rows[3::17] = 0
    rows[5::17, 2] = np.nan
    column = pa.array([None if i % 11 == 0 else row for i, row in enumerate(rows)], pa.list_(pa.float16(), dim))
    schema = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", dim, "")])
    rows[::11] = 0
    return pa.table([np.arange(n), column], schema=schema), centroids_table(centroids, np.ones(k, int)), rows, centroids


def assign(batches: list[pa.Table], centroids: pa.Table) -> pa.Table:
    stage = pickle.loads(pickle.dumps(Assign()))
    return pa.concat_tables([CLUSTERS.empty_table(), *stage.open("cpu", {"centroids": centroids})(iter(batches))])


def test_against_the_whole_product() -> None:
    table, sides, rows, centroids = world(2000)
    found = assign([table], sides)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    good = np.isfinite(norms) & (norms > 0)
    cosine = rows[good].astype(np.float64) @ centroids.T / norms[good, None]
    assert found.schema == CLUSTERS == Assign().output({})
    assert found["sample_id"].to_pylist() == list(range(2000))
    assert (found["cluster"].is_valid().to_numpy() == good).all()
    assert (found["distance"].is_valid().to_numpy() == good).all()
    kept = found.filter(pa.array(good))
    assert (kept["cluster"].to_numpy() == cosine.argmax(1)).all()
    np.testing.assert_allclose(kept["distance"].to_numpy(), 1 - cosine.max(1), atol=1e-6)


@pytest.mark.parametrize("step", [1000, 8192, 333])
def test_the_batches_change_no_byte(step: int) -> None:
    table, sides, *_ = world(20_000)
    cut = [table.slice(start, step) for start in range(0, len(table), step)]
    assert assign(cut, sides).equals(assign([table], sides))


def test_no_rows_no_vectors_no_centroids() -> None:
    table, sides, *_ = world(30)
    assert assign([], sides).num_rows == 0
    assert assign([table.slice(0, 0)], sides).num_rows == 0
    empty = table.set_column(1, table.schema.field("clip"), pa.nulls(30, table.schema.field("clip").type))
    assert assign([empty], sides)["cluster"].null_count == 30
    assert assign([table], sides.slice(0, 0))["distance"].null_count == 30


def test_recut_keeps_every_row() -> None:
    sizes = [3, 0, 10, 1, 25]
    schema = pa.schema({"x": pa.string()})
    tables = [pa.table([[f"{number}.{i}" for i in range(size)]], schema) for number, size in enumerate(sizes)]
    found = list(rebatch(iter(tables), 8))
    assert [t.num_rows for t in found] == [8, 8, 8, 8, 7]
    assert pa.concat_tables(found).equals(pa.concat_tables(tables).combine_chunks())
