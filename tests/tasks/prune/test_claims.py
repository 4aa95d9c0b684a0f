"""What the papers claim, on planted rows, against random, over five seeds: a learner is better for the selection.

On photographs: tests/benchmarks/bench_claims.py.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.svm import SVC

from catalog.inputs import Inputs
from tests.tasks.prune.worlds import SCORES, clustered, decide, make

SEEDS = range(5)


@dataclass
class World:
    """Rows to select from, and what to test a learner on."""

    rows: np.ndarray
    """float (n, d), unit rows."""
    label: np.ndarray
    test: np.ndarray
    truth: np.ndarray


def unit(rows: np.ndarray) -> np.ndarray:
    lengths: np.ndarray = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / lengths


def least_squares(world: World, kept: np.ndarray, penalty: float = 1.0) -> float:
    """Return the share of test rows that a linear classifier gets right, trained on rows `kept`, bool (n,)."""
    rows, target = world.rows[kept], np.eye(world.label.max() + 1)[world.label[kept]]
    mean, share = rows.mean(0), target.mean(0)
    gram = (rows - mean).T @ (rows - mean) + penalty * np.eye(rows.shape[1])
    weights = np.linalg.solve(gram, (rows - mean).T @ (target - share))
    return float((((world.test - mean) @ weights + share).argmax(1) == world.truth).mean())


def selected(tables: dict[str, pa.Table], folder: Path, seed: int, **fields: object) -> np.ndarray:
    found: np.ndarray = decide(make(**fields), Inputs.of(**tables), folder, seed)["keep"].to_numpy()
    return found


# ---- density: simple concepts are many rows that say little, complex ones few that say much


CONCEPTS, DIM = 16, 32


def simple_and_complex(seed: int) -> tuple[World, World, np.ndarray]:
    """Eight tight concepts of 320 rows and one label, eight wide ones of 80 rows and two labels.

    Return them, the same as a learner sees them that has a border of its own in every concept, and which rows are wide.
    """
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:CONCEPTS]
    borders = unit(rng.normal(size=(CONCEPTS, DIM)))
    wide = np.arange(CONCEPTS) % 2 == 1

    def draw(concept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        offset = np.where(wide, 0.15, 0.03)[concept, None] * rng.normal(size=(len(concept), DIM))
        side = (offset * borders[concept]).sum(1) > 0
        return unit(centres[concept] + offset), 2 * concept + (side & wide[concept])

    def seen(rows: np.ndarray) -> np.ndarray:
        own = np.eye(CONCEPTS)[(rows @ centres.T).argmax(1)]
        return (own[:, :, None] * np.column_stack([rows, np.ones(len(rows))])[:, None, :]).reshape(len(rows), -1)

    concept = np.repeat(np.arange(CONCEPTS), np.where(wide, 80, 320))
    world = World(*draw(concept), *draw(np.repeat(np.arange(CONCEPTS), 100)))
    return world, replace(world, rows=seen(world.rows), test=seen(world.test)), wide[concept]


@pytest.mark.parametrize("seed", SEEDS)
def test_density_takes_from_simple_concepts_and_a_learner_is_better_for_it(seed: int, tmp_path: Path) -> None:
    world, seen, wide = simple_and_complex(seed)
    tables = clustered(world.rows, tmp_path, seed, k=32)
    arms: dict[str, dict[str, object]] = {
        "random": {"method": "random"},
        "density": {"method": "density"},
        "balance alone": {"method": "hierarchical"},
        "hardest, no balance": {"method": "prototypes", "balance": 0.0},
    }
    kept = {arm: selected(tables, tmp_path, seed, keep=0.2, **fields) for arm, fields in arms.items()}
    right = {arm: least_squares(seen, rows, 0.01) for arm, rows in kept.items()}
    assert wide[kept["density"]].mean() > 3 * wide[kept["random"]].mean()
    assert right["density"] > right["random"] + 0.03
    assert right["density"] > right["balance alone"]
    assert right["density"] > right["hardest, no balance"] + 0.2  # simple concepts are gone there


# ---- prototypes: what to keep depends on how much there is


def two_lobes(seed: int, count: int) -> World:
    """Two classes on both sides of a border, most rows far from it."""
    rng = np.random.default_rng(seed)
    axis = unit(rng.normal(size=50))

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        rows = unit(rng.normal(size=(n, 50)) + 1.5 * np.sign(rng.normal(size=(n, 1))) * axis)
        return rows, (rows @ axis > 0).astype(np.int64)

    return World(*draw(count), *draw(4000))


def mistakes(count: int, folder: Path) -> dict[str, np.ndarray]:
    """Return the share of mistakes of a maximum-margin learner on 0.3 of some rows: float (seeds,) an arm."""
    found: dict[str, list[float]] = {"random": [], "hard": [], "easy": []}
    for seed in SEEDS:
        world = two_lobes(seed, count)
        tables = clustered(world.rows, folder / f"{count}-{seed}", seed, k=2)
        for arm, those in found.items():
            fields = {"method": "random"} if arm == "random" else {"method": "prototypes", "which": arm}
            kept = selected(tables, folder, seed, keep=0.3, **fields)
            learner = SVC(C=1000, kernel="linear")
            those.append(1 - learner.fit(world.rows[kept], world.label[kept]).score(world.test, world.truth))
    return {arm: np.array(those) for arm, those in found.items()}


def test_prototypes_hard_rows_are_better_where_there_are_many_and_easy_ones_where_there_are_few(
    tmp_path: Path,
) -> None:
    plenty, scarce = mistakes(4000, tmp_path), mistakes(60, tmp_path)
    assert (plenty["hard"] < 0.6 * plenty["random"]).all()
    assert (plenty["random"] < plenty["easy"]).all()
    assert scarce["easy"].mean() < scarce["random"].mean() - 0.01
    assert scarce["easy"].mean() < scarce["hard"].mean() - 0.01


# ---- hierarchical: a long tail, and a test that is not one


@pytest.mark.parametrize("seed", SEEDS)
def test_hierarchical_flattens_the_tail_and_a_learner_is_better_for_it(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    concepts, dim = 12, 24
    centres = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:concepts]
    shares = np.arange(1, concepts + 1) ** -1.5
    concept = rng.choice(concepts, 3000, p=shares / shares.sum())
    truth = np.repeat(np.arange(concepts), 100)
    rows, test = (unit(centres[c] + 0.25 * rng.normal(size=(len(c), dim))) for c in (concept, truth))
    world = World(rows, concept, test, truth)
    tables = clustered(rows, tmp_path, seed, levels=(60, concepts))
    right = {
        method: least_squares(world, selected(tables, tmp_path, seed, method=method, keep=0.1))
        for method in ("random", "hierarchical")
    }
    assert right["hierarchical"] > right["random"] + 0.2
    assert right["hierarchical"] > least_squares(world, np.ones(len(rows), bool)) + 0.1  # a tenth, better than all


# ---- score: some captions are of something else


@pytest.mark.parametrize("seed", SEEDS)
def test_score_leaves_out_wrong_captions_and_a_learner_is_better_for_it(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    concepts, dim = 10, 24
    centres = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:concepts]
    concept, truth = rng.integers(0, concepts, 2000), rng.integers(0, concepts, 2000)
    rows, test = (unit(centres[c] + 0.3 * rng.normal(size=(len(c), dim))) for c in (concept, truth))
    said = np.where(rng.random(len(rows)) < 0.3, rng.integers(0, concepts, len(rows)), concept)
    score = (rows * centres[said]).sum(1) + 0.1 * rng.normal(size=len(rows))  # as a fair CLIP would give
    world = World(rows, said, test, truth)
    tables = {"embeddings": pa.table([np.arange(len(rows)), score.astype(np.float32)], schema=SCORES)}
    tables |= {"source": pa.table({"sample_id": np.arange(len(rows)), "url": [""] * len(rows)})}
    best, draw = (selected(tables, tmp_path, seed, method=method, keep=0.4) for method in ("score", "random"))
    assert best.sum() == draw.sum() == 800
    assert (said != concept)[best].mean() < 0.4 * (said != concept)[draw].mean()
    assert least_squares(world, best) > least_squares(world, draw) + 0.01
