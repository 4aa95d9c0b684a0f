"""Density-based pruning: exact quotas against solvers and greedy choice, and rows against a plain loop."""

from pathlib import Path

import numpy as np
import osqp
import pyarrow as pa
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import UserError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS
from tasks.cluster.centroids import centroids_table
from tasks.prune.density import Density, quotas, softmax
from tests.helpers import LocalRun


def test_quotas_worked_case() -> None:
    """The case of DBP's formulas worked by hand: tau 0.1, 100 rows, and a first and a last cluster that are full."""
    target = softmax(np.array([0.1, 0.2, 0.3, 0.4]) / 0.1) * 100
    np.testing.assert_allclose(target, [3.2059, 8.7144, 23.6883, 64.3914], atol=1e-4)
    found = quotas(target, np.ones(4, int), np.array([10, 50, 60, 40]), 100)
    assert found.dtype == np.int64
    assert found.tolist() == [10, 18, 32, 40]


def greedy(target: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: int, projection: str) -> float:
    """The optimum of a separable convex objective over integers, unit by unit; return its value."""

    def value(x: np.ndarray) -> float:
        if projection == "additive":
            return float(((x - target) ** 2).sum() / 2)
        return float((x * np.log(np.maximum(x, 1) / target) - x).sum())

    x = lower.copy()
    while x.sum() < total:
        costs = [value(x + unit) if (x + unit <= upper).all() else np.inf for unit in np.eye(len(x), dtype=int)]
        x = x + np.eye(len(x), dtype=int)[int(np.argmin(costs))]
    return value(x)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    k = draw(st.integers(1, 7))
    upper = np.array(draw(st.lists(st.integers(0, 12), min_size=k, max_size=k)))
    lower = np.array([draw(st.integers(0, int(u))) for u in upper])
    total = draw(st.integers(int(lower.sum()), int(upper.sum())))
    target = np.array(draw(st.lists(st.floats(0.001, 30), min_size=k, max_size=k)))
    return target, lower, upper, total


@pytest.mark.parametrize("projection", ["additive", "proportional"])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(problem=problems())
def test_quotas_are_the_integer_optimum(
    projection: str, problem: tuple[np.ndarray, np.ndarray, np.ndarray, int]
) -> None:
    target, lower, upper, total = problem
    x = quotas(*problem, projection=projection)  # type: ignore[arg-type]
    assert x.sum() == total
    assert (lower <= x).all()
    assert (x <= upper).all()
    if projection == "additive":
        value = ((x - target) ** 2).sum() / 2
    else:
        value = (x * np.log(np.maximum(x, 1) / target) - x).sum()
    assert value == pytest.approx(greedy(target, lower, upper, total, projection), rel=1e-9, abs=1e-9)


def by_osqp(target: np.ndarray, lower: np.ndarray, upper: np.ndarray, total: int) -> np.ndarray:
    k = len(target)
    rows = scipy.sparse.vstack([np.ones((1, k)), scipy.sparse.eye(k)], format="csc")
    solver = osqp.OSQP()
    solver.setup(
        scipy.sparse.eye(k, format="csc"), -target, rows, np.concatenate([[total], lower]).astype(float),
        np.concatenate([[total], upper]).astype(float),
        verbose=False, eps_abs=1e-9, eps_rel=1e-9, max_iter=200_000, polishing=True,
    )  # fmt: skip
    return np.asarray(solver.solve(raise_error=True).x)


@pytest.mark.parametrize("seed", range(5))
def test_quotas_agree_with_a_quadratic_solver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    k, total = 200, 5_000
    upper = rng.integers(1, 120, k)
    target = softmax(rng.uniform(0, 0.5, k) / 0.1) * total
    solved = by_osqp(target, np.ones(k), upper, total)
    x = quotas(target, np.ones(k, int), upper, total)
    # our whole numbers lie between floor and ceiling of the solver's real ones, which it knows to 1e-4
    assert (x >= np.floor(solved - 1e-4)).all()
    assert (x <= np.ceil(solved + 1e-4)).all()
    free = (solved > 1.001) & (solved < upper - 0.001)
    levels = (solved - target)[free]
    assert np.ptp(levels) < 1e-4  # one shift for all, as the derivation says


@pytest.mark.parametrize("projection", ["additive", "proportional"])
@pytest.mark.parametrize("k", [1, 1_000, 200_000])
def test_quotas_total_is_exact_at_any_size(k: int, projection: str) -> None:
    rng = np.random.default_rng(k)
    upper = rng.geometric(1 / 5_000, k)
    total = int(upper.sum() * 0.3)
    target = softmax(rng.uniform(0, 0.5, k) / 0.02) * total
    lower = np.minimum(1, upper)
    x = quotas(target, lower, upper, total, projection)  # type: ignore[arg-type]
    assert x.sum() == total
    assert (x >= lower).all()
    assert (x <= upper).all()


def test_quotas_bounds_that_leave_no_choice() -> None:
    upper = np.array([3, 0, 5])
    assert quotas(np.array([9.0, 9.0, 9.0]), np.zeros(3, int), upper, 8).tolist() == [3, 0, 5]
    assert quotas(np.zeros(3), np.zeros(3, int), upper, 0, "proportional").tolist() == [0, 0, 0]
    assert quotas(np.zeros(0), np.zeros(0, int), np.zeros(0, int), 0).tolist() == []
    assert quotas(np.ones(3) / 3, np.zeros(3, int), np.full(3, 9), 1).tolist() == [1, 0, 0]  # ties: lowest first


@pytest.mark.parametrize(
    ("lower", "upper", "total", "message"),
    [
        ([2, 2], [5, 5], 3, "lower bounds sum to 4, 1 above the total 3"),
        ([0, 0], [5, 5], 12, "upper bounds sum to 10, 2 below the total 12"),
        ([3, 0], [2, 5], 4, "cluster 0 has lower bound 3 above its upper bound 2"),
    ],
)
def test_quotas_infeasible(lower: list[int], upper: list[int], total: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        quotas(np.ones(2), np.array(lower), np.array(upper), total)


def world(seed: int, n: int = 600, k: int = 12) -> tuple[Inputs, np.ndarray, np.ndarray, np.ndarray]:
    """Rows of uneven clusters, every 50th without an embedding, every 7th out already."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(k, 8)).astype(np.float32)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    cluster = rng.choice(k, n, p=rng.dirichlet(np.ones(k))).astype(np.int32)
    distance = rng.uniform(0, 0.6, n).astype(np.float32)
    ids = np.arange(n) * 3 + 5
    absent = np.arange(n) % 50 == 0
    clusters = pa.table([ids, pa.array(cluster, mask=absent), pa.array(distance, mask=absent)], schema=CLUSTERS)
    out = np.arange(n) % 7 == 0
    decisions = pa.table({"sample_id": ids[out], "keep": np.zeros(out.sum(), bool)})
    inputs = Inputs.of(clusters=clusters, centroids=centroids_table(c, np.zeros(k, np.int64)), decisions=decisions)
    return inputs, ids[~out], np.where(absent, -1, cluster)[~out], distance[~out]


@pytest.mark.parametrize("which", ["hard", "easy", "random"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_density_keeps_exactly_the_quota(tmp_path: Path, seed: int, which: str) -> None:
    inputs, ids, cluster, distance = world(seed)
    stage = Density(keep=0.29, which=which)
    run = LocalRun(tmp_path, seed=seed)
    table = pa.concat_tables(stage.run(inputs, run))
    assert table.schema == DECISIONS
    assert table["sample_id"].to_pylist() == ids.tolist()
    keep = table["keep"].to_numpy()
    good = cluster >= 0
    total = int(good.sum() * 29 // 100)
    assert keep.sum() == total == run.notes["total"]
    reasons = np.array(table["reason"].to_pylist(), dtype=object)
    assert set(reasons[~good]) == {"no_embedding"}
    assert set(reasons[good & ~keep]) == {"pruned_density"}
    assert set(reasons[keep]) == {None}
    # in every cluster, whatever is kept comes before whatever is not
    for j in np.unique(cluster[good]):
        kept, gone = distance[keep & (cluster == j)], distance[~keep & (cluster == j)]
        assert len(kept) >= 1
        if which == "hard" and len(gone):
            assert kept.min() >= gone.max()
        if which == "easy" and len(gone):
            assert kept.max() <= gone.min()


def test_density_quota_follows_complexity(tmp_path: Path) -> None:
    """Four equal clusters of planted complexity: quotas are those of the formula, worked independently."""
    n = 100
    spread = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    cluster = np.repeat(np.arange(4, dtype=np.int32), n)
    c = np.eye(4, dtype=np.float32)  # all centroids at distance 1 of each other: complexity is the spread
    clusters = pa.table([np.arange(4 * n), cluster, spread[cluster]], schema=CLUSTERS)
    inputs = Inputs.of(clusters=clusters, centroids=centroids_table(c, np.full(4, n)))
    run = LocalRun(tmp_path)
    table = pa.concat_tables(Density(keep_rows=100).run(inputs, run))
    kept = np.bincount(cluster[table["keep"].to_numpy()], minlength=4)
    assert kept.tolist() == [3, 9, 24, 64]  # softmax of (1, 2, 3, 4) times 100, largest remainders
    p = np.exp([1, 2, 3, 4]) / np.exp([1, 2, 3, 4]).sum()
    assert run.notes["entropy_nats"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-5)
    assert table["evidence"][0].as_py() == "distance 0.1, rank 1 of 100 in cluster 0, quota 3"


@pytest.mark.parametrize("keep", [0.2, 0.5])
def test_density_clusters_without_rows_take_no_part(tmp_path: Path, keep: float) -> None:
    """An empty cluster beside a full one, as filters leave them, makes the full one no simpler."""
    cluster = np.repeat(np.arange(4, dtype=np.int32), 100)
    distance = np.random.default_rng(0).uniform(0, 0.6, 400).astype(np.float32)
    clusters = pa.table([np.arange(400), cluster, distance], schema=CLUSTERS)
    c = np.eye(5, dtype=np.float32)
    c[4] = c[0] + 0.1 * c[4]
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    with_empty, without = (
        pa.concat_tables(
            Density(keep=keep, neighbours=1, temperature=0.02).run(
                Inputs.of(clusters=clusters, centroids=centroids_table(c[:k], np.full(k, 100))), LocalRun(tmp_path)
            )
        )
        for k in (5, 4)
    )
    assert with_empty == without


def test_density_refuses_a_minimum_that_does_not_fit(tmp_path: Path) -> None:
    inputs, *_ = world(0)
    with pytest.raises(UserError, match=r"min_per_cluster 50 needs \d+ rows in 12 clusters, but only 5 are"):
        list(Density(keep_rows=5, min_per_cluster=50).run(inputs, LocalRun(tmp_path)))


def test_density_one_cluster_one_row(tmp_path: Path) -> None:
    clusters = pa.table([[9], pa.array([0], pa.int32()), pa.array([0.2], pa.float32())], schema=CLUSTERS)
    inputs = Inputs.of(clusters=clusters, centroids=centroids_table(np.ones((1, 1), np.float32), np.ones(1, np.int64)))
    table = pa.concat_tables(Density(keep=1.0).run(inputs, LocalRun(tmp_path)))
    assert table["keep"].to_pylist() == [True]
    table = pa.concat_tables(Density(keep=0.5).run(inputs, LocalRun(tmp_path)))  # floor(0.5) rows
    assert table["keep"].to_pylist() == [False]
