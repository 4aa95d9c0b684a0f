"""Levels of clusters: the contract of the table, and that resampling distributes centroids over a long tail."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError, UserError
from catalog.inputs import Inputs, as_matrix
from tasks.cluster import Centroids, Cluster, Hierarchy
from tasks.cluster._resample import Resample, fit_resampled, nearest_members, usual_points
from tasks.cluster.centroids import centroids_table
from tasks.vectors import kmeans
from tests.helpers import LocalRun
from tests.tasks.cluster.worlds import Mixture, embeddings, mixture, unit


def spread_over(found: np.ndarray, planted: Mixture) -> float:
    """Return the effective number of components that centroids lie at, as a share of all: exp of the entropy / C."""
    count = np.bincount((found @ unit(planted.centres).T).argmax(1), minlength=len(planted.centres))
    share = count[count > 0] / count.sum()
    return float(np.exp(-(share * np.log(share)).sum()) / len(planted.centres))


@pytest.mark.parametrize("seed", range(3))
def test_resampling_distributes_centroids_over_a_long_tail(seed: int) -> None:
    """40 components, sizes by rank ** -1.2. Effective components as a share of all (1: centroids lie evenly), over
    8 seeds: 0.33 to 0.41 flat from a random start, 0.48 to 0.57 from k-means++, 0.85 to 0.91 resampled."""
    planted = mixture(seed, rows=12_000, components=40, dim=16, noise=0.12, tail=1.2)
    plain = kmeans.fit(planted.rows, 400, niter=15, seed=seed)
    far = kmeans.fit(planted.rows, 400, niter=15, seed=seed, init="k-means++")
    again = fit_resampled(planted.rows, 400, points=5, rounds=10, niter=15, seed=seed)
    before, after = (spread_over(fit.centroids, planted) for fit in (plain, again))
    assert after > before + 0.3
    assert after > spread_over(far.centroids, planted) + 0.2
    assert after > 0.75
    assert again.sizes.sum() == len(planted.rows)


@pytest.mark.parametrize("seed", range(3))
def test_the_upper_level_is_nearer_to_uniform_than_flat_clusters_are(seed: int, tmp_path: Path) -> None:
    """As above, over 8 seeds: 0.41 to 0.52 flat, 0.73 to 0.88 at level 2."""
    planted = mixture(seed, rows=12_000, components=40, dim=16, noise=0.12, tail=1.2)
    flat = kmeans.fit(planted.rows, 100, niter=15, seed=seed)
    leaves = kmeans.fit(planted.rows, 800, niter=15, seed=seed, init="k-means++")
    table = grown(leaves.centroids, leaves.sizes, tmp_path, levels=(100,), seed=seed)
    top = as_matrix(table.filter(pa.compute.equal(table["level"], 2))["centroid"])
    assert spread_over(top, planted) > spread_over(flat.centroids, planted) + 0.15


def grown(centroids: np.ndarray, sizes: np.ndarray, folder: Path, seed: int = 0, **fields: object) -> pa.Table:
    stage = Hierarchy.model_validate(fields)
    run = LocalRun(folder, seed=seed)
    inputs = Inputs.of(alive_only=False, centroids=centroids_table(centroids, sizes))
    table = pa.concat_tables(stage.run(inputs, run))
    assert table.schema == stage.output({"centroids": inputs.schema("centroids")})
    return table


def test_every_cluster_has_a_parent_and_sizes_add_up(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centroids, sizes = unit(rng.normal(size=(90, 6))).astype(np.float32), rng.integers(0, 50, 90)
    rows = grown(centroids, sizes, tmp_path, levels=(20, 4)).to_pylist()
    assert [sum(row["level"] == level for row in rows) for level in (1, 2, 3)] == [90, 20, 4]
    assert [row["centroid"] for row in rows[:90]] == centroids.tolist()
    assert [row["size"] for row in rows[:90]] == sizes.tolist()
    for level in (1, 2):
        mine = [row for row in rows if row["level"] == level]
        above = {row["cluster"]: row for row in rows if row["level"] == level + 1}
        upper = np.array([row["centroid"] for row in above.values()])
        for row in mine:
            assert row["parent"] == int(np.argmax(upper @ np.array(row["centroid"])))
        for number, parent in above.items():
            assert parent["size"] == sum(row["size"] for row in mine if row["parent"] == number)
    assert {row["parent"] for row in rows if row["level"] == 3} == {None}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    centroids = unit(np.random.default_rng(1).normal(size=(60, 5))).astype(np.float32)
    sizes = np.ones(60, int)
    one, two, other = (grown(centroids, sizes, tmp_path, levels=(9, 3), seed=seed) for seed in (4, 4, 5))
    assert one.equals(two)
    assert not one.equals(other)


def test_no_leaves_and_too_many_clusters(tmp_path: Path) -> None:
    nothing = np.empty((0, 5), np.float32)
    assert grown(nothing, np.empty(0, int), tmp_path, levels=(9, 3)).num_rows == 0
    with pytest.raises(UserError, match="level 2 has 9 clusters, but level 1 only 9: lower it"):
        grown(np.eye(9, dtype=np.float32), np.ones(9, int), tmp_path, levels=(9, 3))


def test_levels_expand_to_three_stages(tmp_path: Path) -> None:
    entry = Cluster.model_validate({"levels": [30, 8, 3], "resample": {"rounds": 2, "points": [4, 2, 2]}})
    leaves, upper, assign = entry.expand()
    assert isinstance(leaves, Centroids)
    assert isinstance(upper, Hierarchy)
    assert [stage.name for stage in (leaves, upper, assign)] == ["cluster-centroids", "cluster-hierarchy", "cluster"]
    assert (leaves.k, leaves.resample) == (30, Resample(rounds=2, points=(4,)))
    assert (upper.levels, upper.resample) == ((8, 3), Resample(rounds=2, points=(2, 2)))
    assert Cluster.model_validate(entry.model_dump()) == entry
    planted = mixture(0, rows=2000, components=12, dim=8)
    (table,) = leaves.run(embeddings(planted.rows), LocalRun(tmp_path))
    rows = pa.concat_tables(upper.run(Inputs.of(alive_only=False, centroids=table), LocalRun(tmp_path)))
    assert rows.filter(pa.compute.equal(rows["level"], 3))["size"].to_pylist() != [0, 0, 0]
    assert sum(rows.filter(pa.compute.equal(rows["level"], 2))["size"].to_pylist()) == 2000


def test_leaves_are_resampled_by_points(tmp_path: Path) -> None:
    planted = mixture(0, rows=2000, components=12, dim=8, tail=1.2)
    stage = Centroids(k=40, resample=Resample(rounds=3, points=(5,)))
    (table,) = stage.run(embeddings(planted.rows), LocalRun(tmp_path, seed=2))
    expected = fit_resampled(planted.rows, 40, points=5, rounds=3, niter=25, seed=2)
    assert (as_matrix(table["centroid"]) == expected.centroids).all()
    (plain,) = Centroids(k=40, resample=Resample()).run(embeddings(planted.rows), LocalRun(tmp_path, seed=2))
    once = kmeans.fit(planted.rows, 40, niter=25, seed=2, init="k-means++")
    assert (as_matrix(plain["centroid"]) == once.centroids).all()


def test_nearest_members_are_those_of_a_sort() -> None:
    rng = np.random.default_rng(0)
    cluster, cosine = rng.integers(0, 7, 300).astype(np.int32), rng.integers(0, 20, 300).astype(np.float32) / 20
    expected = []
    for number in range(7):
        mine = np.flatnonzero(cluster == number)
        expected += sorted(mine, key=lambda row: (-cosine[row], row))[:5]
    assert nearest_members(cluster, cosine, 5).tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("rows", "k", "points"), [(10_000_000, 500_000, 10), (500_000, 50_000, 5), (50_000, 10_000, 3)]
)
def test_usual_points_are_those_of_the_paper(rows: int, k: int, points: int) -> None:
    assert usual_points(rows, k) == points


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"levels": [10, 20]}, "each level has fewer clusters than the one before"),
        ({"levels": [10]}, "at least 2"),
        ({"levels": [10, 5], "k": 10}, "specify either `k` or `levels`"),
        ({"resample": {"rounds": 2}}, "`resample` requires `levels`"),
        ({"levels": [10, 5], "resample": {"points": [1]}}, "1 points for 2 levels"),
    ],
)
def test_invalid_levels(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Cluster.model_validate(fields)


def test_centroids_are_required() -> None:
    with pytest.raises(RecipeError, match="put a stage `use: centroids` before"):
        Hierarchy(levels=(3,)).inputs({})
