"""Spherical k-means: against a plain Lloyd loop, on planted mixtures, and both engines against each other."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from catalog.errors import RecipeError, UserError
from catalog.schema import field, score, vector
from tasks.vectors import kmeans
from tasks.vectors import random_keys as draw


def mixture(seed: int, n: int = 1500, k: int = 10, dim: int = 16, noise: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    label = rng.integers(0, k, n)
    rows = (centres[label] + noise * rng.normal(size=(n, dim))) * rng.uniform(0.5, 20, (n, 1))
    return rows.astype(np.float16), label


def unit(rows: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


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
    cluster, _ = kmeans.Assigner(fit.centroids)(rows)
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
    cluster, distance = kmeans.Assigner(faiss.centroids)(rows)
    assert np.bincount(cluster, minlength=30).tolist() == faiss.sizes.tolist()
    assert 1 - distance.mean() == pytest.approx(faiss.objective[-1], abs=1e-5)
    assert faiss.facts().keys() == ours.facts().keys()


def test_fit_twice_gives_the_same_bytes_and_seeds_differ() -> None:
    rows, _ = mixture(0, noise=0.5)
    one, two, other = (kmeans.fit(rows, 12, seed=seed) for seed in (4, 4, 5))
    assert one.centroids.tobytes() == two.centroids.tobytes()
    assert one.centroids.tobytes() != other.centroids.tobytes()


def test_fit_from_a_map_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, _ = mixture(0, n=20_000)
    held = kmeans.fit(rows, 12, niter=3, seed=1)
    np.save(tmp_path / "rows.npy", rows)
    monkeypatch.setattr(kmeans, "HELD_BYTES", 0)
    mapped = kmeans.fit(np.load(tmp_path / "rows.npy", mmap_mode="r"), 12, niter=3, seed=1)
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


def test_assigner_ties_go_to_the_lowest_and_broken_rows_to_none() -> None:
    centroids = np.array([[0, 1], [1, 0], [1, 0], [-1, 0]], np.float32)
    rows = np.array([[5, 0], [0, 0], [np.nan, 1], [1, 1], [np.inf, 0], [-1e-3, 0]], np.float16)
    cluster, distance = kmeans.Assigner(centroids)(rows)
    assert cluster.tolist() == [1, -1, -1, 0, -1, 3]
    np.testing.assert_allclose(distance, [0, np.nan, np.nan, 1 - 0.5**0.5, np.nan, 0], atol=1e-6)
    cluster, distance = kmeans.Assigner(centroids[:0])(rows)
    assert set(cluster) == {-1}


def test_ties_across_tiles_of_centroids_go_to_the_lowest() -> None:
    rng = np.random.default_rng(0)
    centroids = unit(rng.normal(size=(2 * kmeans.BLOCK + 50, 8))).astype(np.float32)
    centroids[kmeans.BLOCK + 3], centroids[2 * kmeans.BLOCK + 9] = centroids[7], centroids[kmeans.BLOCK + 5]
    cluster, distance = kmeans.Assigner(centroids)(centroids)
    cosines = centroids.astype(np.float64) @ centroids.T
    expected = np.arange(len(centroids))
    expected[kmeans.BLOCK + 3], expected[2 * kmeans.BLOCK + 9] = 7, kmeans.BLOCK + 5
    assert cluster.tolist() == expected.tolist() == cosines.round(6).argmax(1).tolist()
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_the_same_bytes_on_any_number_of_threads() -> None:
    rows, _ = mixture(0, n=5000, dim=48, noise=0.5)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            fit = kmeans.fit(rows, 40, niter=4)
            found.append((fit.centroids.tobytes(), *(a.tobytes() for a in kmeans.Assigner(fit.centroids)(rows))))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_usable_is_the_same_rule_for_halves() -> None:
    rng = np.random.default_rng(0)
    bits = rng.choice(
        np.array([0, 0x8000, 1, 0x8001, 0x3C00, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFE01], np.uint16), 12_000
    )
    rows = bits.reshape(-1, 2).view(np.float16)
    wide = rows.astype(np.float64)
    expected = np.logical_and(np.isfinite(wide).all(1), wide.any(1))
    assert 0 < expected.sum() < len(rows)
    for given in (rows, np.asfortranarray(rows), rows[::2], rows[:0]):
        good = kmeans.usable(given)
        assert good.tolist() == (expected[::2] if len(given) == len(rows) // 2 else expected[: len(given)]).tolist()
        with np.errstate(invalid="ignore"):
            assert good.tolist() == kmeans.usable(given.astype(np.float32)).tolist()


@pytest.mark.parametrize("rows", [1, 30, 2000, 10_000])
def test_sample_is_the_smallest_keys_however_they_come(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(rows)
    ids = np.sort(rng.choice(10**9, 9000, replace=False))
    vectors = np.stack([ids % 1000 + 1, ids % 7], axis=1).astype(np.float16)
    vectors[::100] = 0
    good = np.flatnonzero(vectors.any(axis=1))
    expected = np.sort(ids[good][np.argsort(draw.keys(ids[good], 3))[:rows]])
    for number, step in enumerate([9000, 613]):
        sample = kmeans.Sample(tmp_path / f"{number}.npy", rows, 2, seed=3)
        for start in range(0, 9000, step):
            sample.add(ids[start : start + step], vectors[start : start + step])
        found, taken = sample.take()
        assert found.tolist() == expected.tolist()
        assert (taken == vectors[np.searchsorted(ids, found)]).all()
        assert sample.seen == len(good)


def test_vector_column() -> None:
    id_ = field("sample_id", pa.int64(), "")
    schema = pa.schema([id_, score("clip_score", "clip", 1, ""), vector("clip", 4, ""), vector("dino", 8, "")])
    assert kmeans.vector_column({"embeddings": schema}, "") == "clip"
    assert kmeans.vector_column({"embeddings": schema}, "dino") == "dino"
    assert kmeans.width(schema, "dino") == 8
    with pytest.raises(RecipeError, match=r"no embedding column 'dinov2'; did you mean 'dino'\?"):
        kmeans.vector_column({"embeddings": schema}, "dinov2")
    with pytest.raises(RecipeError, match="put a stage `use: embed` before"):
        kmeans.vector_column({}, "")
    with pytest.raises(RecipeError, match="no vector column"):
        kmeans.vector_column({"embeddings": pa.schema([id_])}, "")


@pytest.mark.parametrize(("there", "words"), [((), "is not installed"), (("faiss-cpu", "faiss-gpu-cu12"), "both")])
def test_faiss_must_be_installed_exactly_once(
    there: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "_is_installed", lambda name: name in there)
    with pytest.raises(UserError, match=f"{words}.*install exactly one"):
        kmeans.fit(np.eye(8, dtype=np.float32), 2, engine="faiss")


@pytest.mark.parametrize("seed", range(3))
def test_a_spread_start_meets_every_planted_cluster(seed: int) -> None:
    """Up to 128 rows k-means++ itself: of 60 clusters that are far apart a random start misses about 60 / e."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 60, 6000)
    rows = (np.eye(60)[label] + 0.02 * rng.normal(size=(6000, 60))).astype(np.float16)
    start = kmeans.spread(rows, 60, np.random.default_rng(seed))
    assert len(set(label[start])) >= 58
    random = np.random.default_rng(seed).choice(6000, 60, replace=False)
    assert len(set(label[random])) <= 45
    many = kmeans.spread(rows, 1000, np.random.default_rng(seed))
    assert (np.diff(many) > 0).all()
    assert len(set(label[many])) == 60


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 7), (300, 299), (500, 130)])
def test_a_spread_start_is_distinct_rows_also_where_all_are_one(n: int, k: int) -> None:
    for rows in (np.ones((n, 3), np.float16), np.random.default_rng(0).normal(size=(n, 3)).astype(np.float16)):
        start = kmeans.spread(rows, k, np.random.default_rng(0))
        assert len(set(start.tolist())) == k
        assert start.tolist() == kmeans.spread(rows, k, np.random.default_rng(0)).tolist()


def test_a_spread_start_of_many_rows_is_drawn_from_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "SPREAD_ROWS_PER_CENTROID", 1)
    rows, _ = mixture(0, n=5000)
    start = kmeans.spread(rows, 40, np.random.default_rng(0))
    assert len(set(start.tolist())) == 40
    fit = kmeans.fit(rows, 40, seed=0, init="k-means++")
    assert fit.sizes.sum() == 5000


def test_between_is_the_mean_of_the_nearest_others() -> None:
    centroids = unit(np.random.default_rng(0).normal(size=(30, 5))).astype(np.float32)
    distance = np.sort(1 - centroids.astype(np.float64) @ centroids.T, axis=1)[:, 1:]
    np.testing.assert_allclose(kmeans.between(centroids, 4), distance[:, :4].mean(1), atol=1e-6)
    np.testing.assert_allclose(kmeans.between(centroids, 99), distance.mean(1), atol=1e-6)
    assert np.isnan(kmeans.between(centroids[:1], 4)).all()
    assert len(kmeans.between(centroids[:0], 4)) == 0


def test_released_rows_are_still_there(tmp_path: Path) -> None:
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float16, shape=(1000, 8))
    mapped[:] = np.arange(8000).reshape(1000, 8)
    kmeans.release(mapped[10:20])
    assert (mapped == np.arange(8000).reshape(1000, 8).astype(np.float16)).all()
    private = np.load(tmp_path / "rows.npy", mmap_mode="c")
    private[5] = 7
    kmeans.release(private)
    kmeans.release(private[2:9])
    assert (private[5] == 7).all()
    kmeans.release(np.ones(3))


def test_rows_gathered_from_a_map_are_unmapped_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page cache of large pages maps 2 MB around each row: all at once, a few thousand would map a whole file."""
    monkeypatch.setattr(kmeans, "PIECE_ROWS", 16)
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", mode="w+", dtype=np.float16, shape=(20_000, 256))
    mapped[:] = np.arange(20_000)[:, None]
    kmeans.release(mapped)
    at = np.random.default_rng(0).permutation(20_000)[:1000]
    assert (kmeans.gathered(mapped, at) == mapped[at]).all()
    released, release = [], kmeans.release
    monkeypatch.setattr(kmeans, "release", lambda rows: (released.append(mapped_bytes(tmp_path)), release(rows)))
    kmeans.gathered(mapped, at)
    assert mapped_bytes(tmp_path) == 0
    assert len(released) == -(-1000 // 16)
    assert kmeans.gathered(mapped, at[:0]).shape == (0, 256)


def test_a_sample_and_a_fit_of_it_hold_a_block_and_not_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of the files is mapped in never comes near to what lies in them: 102 MB."""
    monkeypatch.setattr(kmeans, "HELD_BYTES", 0)
    most = 0
    counted = kmeans.release

    def watch(rows: np.ndarray) -> None:
        nonlocal most
        counted(rows)
        most = max(most, mapped_bytes(tmp_path))

    monkeypatch.setattr(kmeans, "release", watch)
    sample = kmeans.Sample(tmp_path / "sample.npy", 200_000, 256, seed=0)
    block = np.random.default_rng(0).normal(size=(20_000, 256)).astype(np.float16)
    for start in range(0, 200_000, 20_000):
        sample.add(np.arange(start, start + 20_000), block)
    _, rows = sample.take()
    fit = kmeans.fit(rows, 4, niter=1)
    assert fit.sizes.sum() == 200_000
    assert not (tmp_path / "sample.npy.sorted").exists()  # all rows, in order: no copy
    assert mapped_bytes(tmp_path) < 20 << 20
    assert most < 20 << 20


def mapped_bytes(folder: Path) -> int:
    """Return how much of the files in `folder` is resident in this process."""
    total, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0] and ":" not in line.split(" ", 1)[0]:
            mine = str(folder) in line
        elif mine and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total
