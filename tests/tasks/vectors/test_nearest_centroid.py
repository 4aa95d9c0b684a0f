"""The nearest centroid of a row: ties go to the lowest, broken rows to none."""

import numpy as np

from tasks.vectors.nearest_centroid import BLOCK, Assigner, assign, block_rows
from tests.tasks.vectors.planted_rows import mixture, unit


def test_assigner_ties_go_to_the_lowest_and_broken_rows_to_none() -> None:
    centroids = np.array([[0, 1], [1, 0], [1, 0], [-1, 0]], np.float32)
    rows = np.array([[5, 0], [0, 0], [np.nan, 1], [1, 1], [np.inf, 0], [-1e-3, 0]], np.float16)
    cluster, distance = Assigner(centroids)(rows)
    assert cluster.tolist() == [1, -1, -1, 0, -1, 3]
    np.testing.assert_allclose(distance, [0, np.nan, np.nan, 1 - 0.5**0.5, np.nan, 0], atol=1e-6)
    cluster, distance = Assigner(centroids[:0])(rows)
    assert set(cluster) == {-1}


def test_ties_across_tiles_of_centroids_go_to_the_lowest() -> None:
    rng = np.random.default_rng(0)
    centroids = unit(rng.normal(size=(2 * BLOCK + 50, 8))).astype(np.float32)
    centroids[BLOCK + 3], centroids[2 * BLOCK + 9] = centroids[7], centroids[BLOCK + 5]
    cluster, distance = Assigner(centroids)(centroids)
    cosines = centroids.astype(np.float64) @ centroids.T
    expected = np.arange(len(centroids))
    expected[BLOCK + 3], expected[2 * BLOCK + 9] = 7, BLOCK + 5
    assert cluster.tolist() == expected.tolist() == cosines.round(6).argmax(1).tolist()
    np.testing.assert_allclose(distance, 0, atol=1e-6)


def test_assign_is_the_largest_cosine() -> None:
    rows, _ = mixture(0, n=3000)
    centroids = unit(np.random.default_rng(1).normal(size=(40, 16))).astype(np.float32)
    cosines = unit(rows) @ centroids.T.astype(np.float64)
    found, cosine = assign(rows, centroids)
    assert (found == cosines.argmax(1)).all()
    np.testing.assert_allclose(cosine, cosines.max(1), atol=1e-5)


def test_a_product_has_at_most_64_mb() -> None:
    for k in (0, 1, 500, 10_000, 65_536):
        assert 256 <= block_rows(k) <= 8192
        assert block_rows(k) * max(k, 1) * 4 <= 64 << 20
