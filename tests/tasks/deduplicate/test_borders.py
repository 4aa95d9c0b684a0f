"""Copies across borders: planted pairs are found, against the full product, and the cost."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, vector
from tasks.cluster.centroids import centroids_table
from tasks.deduplicate._borders import Borders
from tasks.deduplicate._limits import Limits
from tasks.deduplicate.deduplicate import Deduplicate
from tasks.vectors import kmeans
from tests.helpers import LocalRun


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, rounded through float16."""
    half = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16).astype(np.float64)
    return half / np.linalg.norm(half, axis=1, keepdims=True)


def straddling(seed: int, cells: int, n: int = 2000, dim: int = 24) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (unit rows, sorted by cell; where each cell begins; centroids): k-means cells, and copies over borders.

    200 rows lie on the border of their two nearest cells, each with a copy a little to the other side.
    """
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(8, dim))[rng.integers(0, 8, n)] + 0.5 * rng.normal(size=(n, dim))
    centroids = kmeans.fit(rows.astype(np.float16), cells, seed=seed).centroids
    first, second = np.argsort(-(unit(rows[:200]) @ centroids.T), axis=1)[:, :2].T
    across = centroids[first] - centroids[second]
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    middle = unit(rows[:200])
    middle -= (middle * across).sum(axis=1, keepdims=True) * across
    rows[:200] = unit(middle) + 0.05 * across
    copies = unit(middle) - 0.05 * across + 0.02 * rng.normal(size=middle.shape)
    rows = unit(np.concatenate([unit(rows), copies]))
    cell = np.argmax(rows @ centroids.T, axis=1)
    order = np.argsort(cell, kind="stable")
    return rows[order], np.searchsorted(cell[order], np.arange(cells + 1)), centroids


def whole(rows: np.ndarray, starts: np.ndarray, epsilon: float) -> set[tuple[int, int]]:
    """Return all pairs (low, high) of rows in two cells, by the whole product."""
    cell = np.searchsorted(starts, np.arange(len(rows)), side="right") - 1
    near = np.triu(rows @ rows.T > 1 - epsilon) & (cell[:, None] != cell[None, :])
    return set(zip(*(side.tolist() for side in np.nonzero(near)), strict=True))


def found_by(borders: Borders) -> set[tuple[int, int]]:
    return {
        (min(a, b), max(a, b))
        for one, other, _ in borders.pairs()
        for a, b in zip(one.tolist(), other.tolist(), strict=True)
    }


@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_exact_if_no_row_is_truncated(seed: int, epsilon: float) -> None:
    rows, starts, centroids = straddling(seed, 12)
    borders = Borders(rows.astype(np.float32), starts, centroids, 11, epsilon, "certain", "cpu")
    true = whole(rows, starts, epsilon)
    assert (borders.truncated, borders.misassigned) == (0, 0)
    assert len(true) > 100
    assert found_by(borders) == true


@pytest.mark.parametrize("seed", range(5))
def test_two_target_cells_per_row_find_nearly_all_pairs(seed: int) -> None:
    """Recall of cross-cell pairs: none by clusters alone, nearly all with the two nearest target cells."""
    rows, starts, centroids = straddling(seed, 40)
    true = whole(rows, starts, 0.02)
    recall, truncated = {}, []
    for count in (1, 2, 3):
        borders = Borders(rows.astype(np.float32), starts, centroids, count, 0.02, "certain", "cpu")
        found = found_by(borders)
        assert found <= true
        recall[count] = len(found) / len(true)
        assert borders.compared < 0.5 * len(rows) * (len(rows) - 1)  # below the whole product
        truncated.append(borders.truncated)
    assert truncated[0] > truncated[1] > truncated[2] > 0
    assert recall[1] > 0.9
    assert recall[2] > 0.98
    assert recall[3] >= recall[2] >= recall[1]


@pytest.mark.parametrize(("dim", "share"), [(24, 0.8), (256, 0.1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_likely_reach_finds_copies_at_a_fraction_of_the_cost(seed: int, dim: int, share: float) -> None:
    """Planted copies differ in a random direction, at any place."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, dim))[rng.integers(0, 300, 4000)] + 1.5 * rng.normal(size=(4000, dim))
    rows[1::2] = rows[::2] + 0.35 * rng.normal(size=(2000, dim))
    rows = unit(rows)
    centroids = kmeans.fit(rows.astype(np.float16), 25, niter=5, seed=seed).centroids
    cell = np.argmax(rows @ centroids.T, axis=1)
    order = np.argsort(cell, kind="stable")
    starts = np.searchsorted(cell[order], np.arange(26))
    true = whole(rows[order], starts, 0.05)
    found, cost = {}, {}
    for reach in ("likely", "certain"):
        borders = Borders(rows[order].astype(np.float32), starts, centroids, 24, 0.05, reach, "cpu")
        found[reach], cost[reach] = found_by(borders), borders.compared
    assert len(true) > 20
    assert found["certain"] == true
    assert len(found["likely"]) >= 0.99 * len(true)
    assert cost["likely"] < share * cost["certain"]


def test_cosines_and_allowed_rows() -> None:
    rows, starts, centroids = straddling(7, 10)
    borders = Borders(rows.astype(np.float32), starts, centroids, 9, 0.05, "certain", "cpu")
    rng = np.random.default_rng(0)
    sources, targets = rng.random(len(rows)) < 0.5, rng.random(len(rows)) < 0.5
    count = 0
    for one, other, cosine in borders.pairs(sources, targets):
        assert sources[one].all()
        assert targets[other].all()
        np.testing.assert_allclose(cosine, (rows[one] * rows[other]).sum(axis=1), atol=1e-6)
        count += len(one)
    assert count > 20


def test_identical_cells_and_misassigned_rows() -> None:
    """With two equal centroids, and rows in the wrong cell, pairs are found, and the rows counted."""
    rng = np.random.default_rng(0)
    centre = unit(rng.normal(size=(1, 8)))
    rows = unit(np.repeat(centre + 0.2 * rng.normal(size=(20, 8)), 2, axis=0))
    rows = np.concatenate([rows[::2], rows[1::2]])  # each twice, once in each cell
    borders = Borders(
        rows.astype(np.float32), np.array([0, 20, 40]), np.repeat(centre, 2, axis=0), 1, 0.01, "certain", "cpu"
    )
    assert {(i, i + 20) for i in range(20)} <= found_by(borders)
    far = np.concatenate([centre, -centre])
    borders = Borders(rows.astype(np.float32), np.array([0, 20, 40]), far, 1, 0.01, "certain", "cpu")
    assert borders.misassigned == 20
    assert {(i, i + 20) for i in range(20)} <= found_by(borders)


def inputs_of(seed: int, with_centroids: bool) -> tuple[Inputs, np.ndarray, np.ndarray]:
    """Return (tables, unit rows by sample_id, cell of each)."""
    rows, starts, centroids = straddling(seed, 12)
    mixed = np.random.default_rng(seed).permutation(len(rows))
    cell = (np.searchsorted(starts, np.arange(len(rows)), side="right") - 1)[mixed]
    rows = rows[mixed]
    ids = np.arange(len(rows))
    half = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float16).ravel()), rows.shape[1])
    schema = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", rows.shape[1], "")])
    distance = 1 - (rows * centroids[cell]).sum(axis=1)
    columns = [ids, pa.array(cell, pa.int32()), pa.array(distance, pa.float32())]
    tables = {"embeddings": pa.table([ids, half], schema=schema), "clusters": pa.table(columns, schema=CLUSTERS)}
    if with_centroids:
        tables["centroids"] = centroids_table(centroids, np.bincount(cell, minlength=12))
    return Inputs.of(**tables), rows, cell


@pytest.mark.parametrize("with_centroids", [True, False])
@pytest.mark.parametrize("rule", ["order", "greedy", "components"])
@pytest.mark.parametrize("seed", range(2))
def test_the_stage_equals_one_cluster(tmp_path: Path, seed: int, rule: str, with_centroids: bool) -> None:
    """With borders, many clusters give the result of one cluster; without, planted pairs are missed."""
    inputs, rows, _ = inputs_of(seed, with_centroids)
    kept, missed = {}, 0
    for name, more in (
        ("whole", {"clusters": 1}),
        ("borders", {"borders": 11, "reach": "certain"}),
        ("paper", {"borders": 0}),
    ):
        stage = Deduplicate.model_validate(
            {"exact": False, "keep": "first", "semantic": {"epsilon": 0.02, "rule": rule} | more}
        )
        run = LocalRun(tmp_path / name)
        table = pa.concat_tables(stage.run(inputs, run))
        kept[name] = table["keep"].to_numpy()
        missed = run.notes.get("border_rows_cut_short", missed)
        stands = table["representative"].to_numpy(zero_copy_only=False)
        gone = np.flatnonzero(~kept[name])
        assert kept[name][stands[gone].astype(int)].all()
        cosine = (rows[gone] * rows[stands[gone].astype(int)]).sum(axis=1)
        np.testing.assert_allclose(table["similarity"].to_numpy(zero_copy_only=False)[gone], cosine, atol=1e-6)
    assert missed == 0
    assert (kept["borders"] == kept["whole"]).all()
    assert kept["paper"].sum() > kept["whole"].sum() + 100


@pytest.mark.parametrize("rule", ["order", "greedy", "components"])
def test_the_distribution_of_work_over_cores_changes_nothing(tmp_path: Path, rule: str) -> None:
    inputs, _, _ = inputs_of(3, with_centroids=True)
    stage = Deduplicate.model_validate(
        {"exact": False, "keep": "first", "semantic": {"epsilon": 0.02, "rule": rule, "borders": 4}}
    )
    threads = torch.get_num_threads()
    found = []
    ways = [(1, 1 << 15, 512, 2048), (3, 1 << 15, 31, 77), (2, 100, 512, 9)]
    for at, (cores, large, candidates, targets) in enumerate(ways):
        limits = Limits(large_cell_rows=large, candidate_rows=candidates, target_rows=targets)
        torch.set_num_threads(cores)
        try:
            run = LocalRun(tmp_path / str(at))
            table = pa.concat_tables(stage.run(inputs, run, limits))
        finally:
            torch.set_num_threads(threads)
        found.append((table["keep"].to_pylist(), table["representative"].to_pylist(), run.notes["border_pairs"]))
    assert found[0] == found[1] == found[2]
    assert sum(found[0][0]) < len(found[0][0]) - 100
