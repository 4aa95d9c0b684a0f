"""`k: auto`: a planted k is found within a step of the grid, and the criteria are the published ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from catalog.errors import UserError
from tasks.cluster import Centroids, Cluster
from tasks.cluster._auto import Grid, calinski_harabasz, choose, silhouette
from tasks.vectors import kmeans
from tests.helpers import LocalRun
from tests.tasks.cluster.worlds import embeddings, mixture, unit


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("planted", [12, 40])
def test_a_planted_k_is_found_within_a_step_of_the_grid(planted: int, seed: int) -> None:
    rows = mixture(seed, rows=3000, components=planted, dim=24, noise=0.08, apart=0.6).rows
    k, found = choose(rows, Grid(min=4, max=160), seed=seed)
    step = 2**0.5
    assert planted / step <= k <= planted * step
    assert list(found) == Grid(min=4, max=160).values()
    assert found[k] == max(found.values())


@pytest.mark.parametrize("seed", range(3))
def test_the_other_criterion_finds_it_within_a_doubling(seed: int) -> None:
    rows = mixture(seed, rows=3000, components=20, dim=24, noise=0.08, apart=0.6).rows
    k, _ = choose(rows, Grid(min=4, max=160, criterion="calinski_harabasz"), seed=seed)
    assert 10 <= k <= 40


def test_criteria_are_as_published() -> None:
    rows = mixture(0, rows=300, components=7, dim=6, noise=0.3).rows
    centroids = kmeans.fit(rows, 9, seed=0).centroids
    cosine = unit(rows.astype(np.float64)) @ centroids.T.astype(np.float64)
    own, other = 1 - np.sort(cosine, axis=1)[:, :-3:-1].T
    assert silhouette(rows, centroids) == pytest.approx(((other - own) / np.maximum(own, other)).mean(), abs=1e-5)
    within = ((unit(rows.astype(np.float64)) - centroids[cosine.argmax(1)]) ** 2).sum()
    mean = unit(unit(rows.astype(np.float64)).mean(0)[None])
    between = ((unit(rows.astype(np.float64)) - mean) ** 2).sum() - within
    assert calinski_harabasz(rows, centroids) == pytest.approx((between / 8) / (within / (300 - 9)), rel=1e-4)


def test_degenerate_rows_have_a_criterion() -> None:
    corners = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
    assert silhouette(corners, np.eye(4, dtype=np.float32)) == pytest.approx(1)
    k, found = choose(np.ones((20, 4), np.float16), Grid(min=2, max=8), seed=0)
    assert np.isfinite(list(found.values())).all()
    assert k in found


def test_the_grid_is_geometric_and_includes_its_ends() -> None:
    assert Grid(min=4, max=32, per_doubling=1).values() == [4, 8, 16, 32]
    assert Grid(min=8, max=20).values() == [8, 11, 16, 20]
    assert Grid(min=5, max=5).values() == [5]
    ratios = np.divide(Grid().values()[1:], Grid().values()[:-1])
    assert (Grid().values()[0], Grid().values()[-1]) == (8, 1024)
    np.testing.assert_allclose(ratios, 2**0.5, rtol=0.05)


def test_the_stage_records_every_k_and_fits_the_best(tmp_path: Path) -> None:
    rows = mixture(1, rows=3000, components=12, dim=24, noise=0.08, apart=0.6).rows
    stage = Centroids.model_validate({"k": {"auto": {"min": 4, "max": 64}}})
    run, again = LocalRun(tmp_path / "one", seed=3), LocalRun(tmp_path / "two", seed=3)
    (table,), (same,) = stage.run(embeddings(rows), run), stage.run(embeddings(rows), again)
    assert table.equals(same)
    assert run.notes == again.notes
    pairs = run.notes["criterion_by_k"]
    assert [k for k, _ in pairs] == [4, 6, 8, 11, 16, 23, 32, 45, 64]
    assert run.notes["k"] == table.num_rows == max(pairs, key=lambda pair: pair[1])[0]
    assert (run.notes["criterion"], run.notes["criterion_rows"]) == ("silhouette", 3000)
    assert table["size"].to_numpy().sum() == 3000


def test_the_criterion_sees_a_bounded_sample(tmp_path: Path) -> None:
    run = LocalRun(tmp_path)
    grid = {"auto": {"min": 2, "max": 400}}
    stage = Centroids.model_validate({"k": grid, "niter": 1})
    list(stage.run(embeddings(mixture(0, 900, 5, 8).rows), run, criterion_rows=100))
    assert run.notes["criterion_rows"] == 100
    assert max(k for k, _ in run.notes["criterion_by_k"]) <= 50
    assert run.notes["training_rows"] == 900


def test_k_auto_in_a_recipe() -> None:
    choices: list[Any] = ["auto", {"auto": {}}, {"auto": {"max": 50, "criterion": "calinski_harabasz"}}]
    for k in choices:
        entry = Cluster.model_validate({"k": k})
        fit = entry.expand()[0]
        assert isinstance(fit, Centroids)
        assert fit.grid is not None
        assert Cluster.model_validate(entry.model_dump()) == entry
        assert Cluster.model_validate(entry.model_dump(mode="json")) == entry


@pytest.mark.parametrize(
    ("k", "words"),
    [
        ({"auto": {"min": 90, "max": 30}}, "k auto: min is 90, above max, which is 30"),
        ({"auto": {"min": 1}}, "greater than or equal to 2"),
        ({"auto": {"criterion": "gap"}}, "'silhouette' or 'calinski_harabasz'"),
        ("automatic", "Input should be 'auto'"),
        (0, "greater than 0"),
    ],
)
def test_a_wrong_k_is_a_single_error(k: object, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        Cluster.model_validate({"k": k})
    assert caught.value.error_count() == 1


def test_a_grid_above_the_number_of_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k auto: min 8 needs 16 rows with a usable embedding, but there are 9: lower"):
        list(Centroids(k="auto").run(embeddings(mixture(0, 9, 3, 4).rows), LocalRun(tmp_path)))
