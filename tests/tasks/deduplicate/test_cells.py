"""Large clusters in cells: the same copies are found, at a cost that is linear in the rows."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, vector
from tasks.cluster.centroids import centroids_table
from tasks.deduplicate import Deduplicate
from tasks.deduplicate._cells import CELL_ROWS, split
from tasks.deduplicate._spill import spill
from tests.helpers import LocalRun

DIM = 64


def world(seed: int, rows: int = 12_000, groups: int = 40) -> tuple[Inputs, np.ndarray]:
    """Return one cluster of many small groups of rows, and which rows are copies of the row before them."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=DIM)
    places = centre + 0.9 * rng.normal(size=(groups, DIM))
    data = places[rng.integers(0, groups, rows)] + 0.7 * rng.normal(size=(rows, DIM))
    copies = np.arange(10, rows, 10)
    data[copies] = data[copies - 1] + 0.12 * rng.normal(size=(len(copies), DIM))
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    ids = pa.array(np.arange(rows))
    values = pa.FixedSizeListArray.from_arrays(pa.array(data.astype(np.float16).ravel()), DIM)
    embeddings = pa.table([ids, values], schema=pa.schema([pa.field("sample_id", pa.int64()), vector("clip", DIM, "")]))
    distance = 1 - data @ (centre / np.linalg.norm(centre))
    clusters = pa.table(
        [ids, pa.array(np.zeros(rows, np.int32)), pa.array(distance.astype(np.float32))], schema=CLUSTERS
    )
    unit = (centre / np.linalg.norm(centre)).astype(np.float32)[None]
    centroids = centroids_table(unit, np.array([rows]))
    return Inputs.of(embeddings=embeddings, clusters=clusters, centroids=centroids), copies


def removed(inputs: Inputs, folder: Path, borders: int) -> tuple[set[int], dict[str, int]]:
    stage = Deduplicate(exact=False, semantic={"epsilon": 0.05, "borders": borders})
    run = LocalRun(folder)
    table = pa.concat_tables(stage.run(inputs, run))
    keep = table.column("keep").to_numpy(zero_copy_only=False)
    return set(table.column("sample_id").to_numpy()[~keep].tolist()), run.notes


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cells_find_the_pairs_of_the_full_product(tmp_path: Path, seed: int) -> None:
    inputs, copies = world(seed)
    whole, all_pairs = removed(inputs, tmp_path / "whole", borders=0)
    cells, some = removed(inputs, tmp_path / "cells", borders=2)
    assert len(whole) >= 0.9 * len(copies)
    assert cells <= whole
    assert len(cells) >= 0.99 * len(whole)
    assert some["semantic_cells"] >= 12_000 // CELL_ROWS
    assert some["semantic_pairs"] + some["border_pairs"] < 0.6 * all_pairs["semantic_pairs"]


def test_small_clusters_and_huge_ones_are_not_split() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9000, 8)).astype(np.float16)
    starts, centroids = np.array([0, 3000, 9000]), rng.normal(size=(2, 8)).astype(np.float32)
    rows, before = np.arange(9000), vectors.copy()
    found, centres = split(rows, vectors, starts, centroids, 0, "cpu", largest=5000)
    np.testing.assert_array_equal(found, starts)
    np.testing.assert_array_equal(vectors, before)
    found, centres = split(rows, vectors, starts, centroids, 0, "cpu")
    assert found[:2].tolist() == [0, 3000]
    assert len(found) == len(centres) + 1 > 3
    np.testing.assert_array_equal(vectors, before[rows])
    assert all((np.diff(rows[a:b]) > 0).all() for a, b in itertools.pairwise(found))


def test_rows_reach_their_places_through_buckets(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(1000, 16)).astype(np.float16)
    vectors[7] = 0
    place = rng.permutation(1000)
    pieces = [(place[a : a + 130], vectors[a : a + 130]) for a in range(0, 900, 130)]
    out, there = spill(pieces, tmp_path / "v.npy", 1000, 16, bucket_bytes=32 * 90)
    asked = place[:910]
    np.testing.assert_array_equal(out[asked], vectors[:910])
    assert not there[place[910:]].any()
    assert there[asked].sum() == 909
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v.npy"]
    assert spill([], tmp_path / "none.npy", 0, 16)[0].shape == (0, 16)
