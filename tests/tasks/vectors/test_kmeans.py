"""Spherical k-means: against a plain Lloyd loop, on planted mixtures, and both engines against each other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from catalog.errors import UserError
from tasks.vectors import kmeans
from tasks.vectors.nearest_centroid import Assigner
from tests.tasks.vectors.planted_rows import mixture, unit


def lloyd(rows: np.ndarray, start: np.ndarray, niter: int) -> tuple[np.ndarray, list[float]]:
    """The loop as written down, in float64."""
    e, c, objective = unit(rows), unit(rows)[start], []
    for _ in range(niter):
        nearest = np.argmax(e @ c.T, axis=1)
        objective.append((e * c[nearest]).sum(1).mean())
        c = unit(np.stack([e[nearest == j].mean(0) for j in range(len(c))]))
    objective.append((e @ c.T).max(1).mean())
    return c, objective


@pytest.mark.parametrize("seed", range(3))
def test_fit_is_lloyds_loop(seed: int) -> None:
    rows, _ = mixture(seed, n=800, noise=0.5)
    start = np.sort(np.random.default_rng(seed).choice(800, 7, replace=False))
    centroids, objective = lloyd(rows, start, 6)
    fit = kmeans.fit(rows, 7, niter=6, seed=seed)
    np.testing.assert_allclose(fit.centroids, centroids, atol=2e-5)
    np.testing.assert_allclose(fit.objective, objective, atol=1e-6)
    assert fit.sizes.tolist() == np.bincount(np.argmax(unit(rows) @ centroids.T, axis=1), minlength=7).tolist()


@pytest.mark.parametrize("engine", ["torch", "faiss"])
@pytest.mark.parametrize("seed", range(3))
def test_fit_finds_a_planted_mixture(seed: int, engine: kmeans.Engine) -> None:
    rows, label = mixture(seed)
    fit = kmeans.fit(rows, 40, seed=seed, engine=engine)  # some more than planted: a random start misses some
    cluster, _ = Assigner(fit.centroids)(rows)
    majority = sum(np.bincount(label[cluster == j]).max(initial=0) for j in range(40))
    assert majority / len(rows) > 0.97
    assert (np.diff(fit.objective) > -1e-6).all()  # Lloyd's objective never falls
    np.testing.assert_allclose(np.linalg.norm(fit.centroids, axis=1), 1, atol=1e-6)
    assert fit.sizes.sum() == len(rows)


@pytest.mark.parametrize("seed", range(3))
def test_engines_agree(seed: int) -> None:
    rows, _ = mixture(seed, n=3000, noise=0.4)
    ours, faiss = (kmeans.fit(rows, 30, niter=10, seed=seed, engine=e) for e in ("torch", "faiss"))
    assert (ours.engine, faiss.engine) == ("torch", "faiss")
    assert faiss.objective[-1] == pytest.approx(ours.objective[-1], rel=0.01)
    assert faiss.objective[0] == pytest.approx(ours.objective[0], rel=1e-4)  # the same start
    cluster, distance = Assigner(faiss.centroids)(rows)
    assert np.bincount(cluster, minlength=30).tolist() == faiss.sizes.tolist()
    assert 1 - distance.mean() == pytest.approx(faiss.objective[-1], abs=1e-5)
    assert faiss.facts().keys() == ours.facts().keys()


def test_fit_twice_gives_the_same_bytes_and_seeds_differ() -> None:
    rows, _ = mixture(0, noise=0.5)
    one, two, other = (kmeans.fit(rows, 12, seed=seed) for seed in (4, 4, 5))
    assert one.centroids.tobytes() == two.centroids.tobytes()
    assert one.centroids.tobytes() != other.centroids.tobytes()


def test_fit_from_a_map_gives_the_same_bytes(tmp_path: Path) -> None:
    rows, _ = mixture(0, n=20_000)
    held = kmeans.fit(rows, 12, niter=3, seed=1)
    np.save(tmp_path / "rows.npy", rows)
    mapped = kmeans.fit(np.load(tmp_path / "rows.npy", mmap_mode="r"), 12, niter=3, seed=1, held_bytes=0)
    assert mapped.centroids.tobytes() == held.centroids.tobytes()


def test_empty_clusters_are_refilled() -> None:
    """Half of the rows are one point: of several centroids that start there only one keeps rows."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.tile(np.ones((1, 8)), (200, 1)), rng.normal(size=(200, 8))]).astype(np.float16)
    fit = kmeans.fit(rows, 20, seed=0)
    assert fit.repairs[0] > 3
    assert (fit.sizes > 0).sum() >= 19
    assert np.isfinite(fit.centroids).all()


def test_rows_that_are_all_the_same() -> None:
    fit = kmeans.fit(np.ones((10, 4), np.float16), 3, seed=0)
    assert fit.sizes.sum() == 10
    assert fit.objective[-1] == pytest.approx(1, abs=1e-5)
    assert np.isfinite(fit.centroids).all()


def test_more_clusters_than_rows() -> None:
    with pytest.raises(UserError, match="k is 5, but only 3 rows have a usable embedding: lower k"):
        kmeans.fit(np.ones((3, 4), np.float16), 5)


def test_the_same_bytes_on_any_number_of_threads() -> None:
    rows, _ = mixture(0, n=5000, dim=48, noise=0.5)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            fit = kmeans.fit(rows, 40, niter=4)
            found.append((fit.centroids.tobytes(), *(a.tobytes() for a in Assigner(fit.centroids)(rows))))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(("there", "words"), [((), "is not installed"), (("faiss-cpu", "faiss-gpu-cu12"), "both")])
def test_faiss_must_be_installed_exactly_once(
    there: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "_is_installed", lambda name: name in there)
    with pytest.raises(UserError, match=f"{words}.*install exactly one"):
        kmeans.fit(np.eye(8, dtype=np.float32), 2, engine="faiss")


@pytest.mark.parametrize("seed", range(3))
def test_a_kmeans_plus_plus_start_meets_every_planted_cluster(seed: int) -> None:
    """Up to 128 rows k-means++ itself: of 60 clusters that are far apart a random start misses about 60 / e."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 60, 6000)
    rows = (np.eye(60)[label] + 0.02 * rng.normal(size=(6000, 60))).astype(np.float16)
    start = kmeans.plus_plus(rows, 60, np.random.default_rng(seed))
    assert len(set(label[start])) >= 58
    random = np.random.default_rng(seed).choice(6000, 60, replace=False)
    assert len(set(label[random])) <= 45
    many = kmeans.plus_plus(rows, 1000, np.random.default_rng(seed))
    assert (np.diff(many) > 0).all()
    assert len(set(label[many])) == 60


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 7), (300, 299), (500, 130)])
def test_a_kmeans_plus_plus_start_has_distinct_rows_even_of_equal_ones(n: int, k: int) -> None:
    for rows in (np.ones((n, 3), np.float16), np.random.default_rng(0).normal(size=(n, 3)).astype(np.float16)):
        start = kmeans.plus_plus(rows, k, np.random.default_rng(0))
        assert len(set(start.tolist())) == k
        assert start.tolist() == kmeans.plus_plus(rows, k, np.random.default_rng(0)).tolist()


@pytest.mark.parametrize("bound", [{"rows_per_centroid": 1}, {"held_bytes": 4 * 128 * 16}])
def test_a_kmeans_plus_plus_start_of_many_rows_is_drawn_from_a_sample(bound: dict[str, int]) -> None:
    """The sample has 128 rows: `SEEDING_ROUNDS`, of one row each, or of 16 numbers of 4 bytes."""
    rows, _ = mixture(0, n=5000, dim=16)
    start = kmeans.plus_plus(rows, 40, np.random.default_rng(0), **bound)  # type: ignore[arg-type]
    sample = np.random.default_rng(0).choice(5000, 128, replace=False)
    assert len(set(start.tolist())) == 40
    assert set(start.tolist()) < set(sample.tolist())
    every = kmeans.plus_plus(rows, 40, np.random.default_rng(0))
    assert not set(every.tolist()) <= set(sample.tolist())


def test_between_is_the_mean_of_the_nearest_others() -> None:
    centroids = unit(np.random.default_rng(0).normal(size=(30, 5))).astype(np.float32)
    distance = np.sort(1 - centroids.astype(np.float64) @ centroids.T, axis=1)[:, 1:]
    np.testing.assert_allclose(kmeans.between(centroids, 4), distance[:, :4].mean(1), atol=1e-6)
    np.testing.assert_allclose(kmeans.between(centroids, 99), distance.mean(1), atol=1e-6)
    assert np.isnan(kmeans.between(centroids[:1], 4)).all()
    assert len(kmeans.between(centroids[:0], 4)) == 0
