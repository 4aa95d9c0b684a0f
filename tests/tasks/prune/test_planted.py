"""Selectors on planted concepts, through real clustering: each does to the concepts what it is for. Three seeds."""

from pathlib import Path

import numpy as np
import pytest

from catalog.inputs import Inputs
from tasks.concepts.coverage import Coverage, coverage
from tests.tasks.prune.worlds import clustered, decide, make

DIM, CONCEPTS, ROWS = 24, 12, 3000


class World:
    """Concepts of a steep tail, every other one of them wide (complex); clustered on two levels, five leaves each."""

    def __init__(self, seed: int, folder: Path) -> None:
        rng = np.random.default_rng(seed)
        centres = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:CONCEPTS]
        shares = np.arange(1, CONCEPTS + 1) ** -1.0
        self.concept = rng.choice(CONCEPTS, ROWS, p=shares / shares.sum())
        self.wide = np.arange(CONCEPTS) % 2 == 1
        spread = np.where(self.wide, 0.12, 0.03)[self.concept]
        vectors = centres[self.concept] + spread[:, None] * rng.normal(size=(ROWS, DIM))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.tables = clustered(vectors, folder, seed, levels=(60, CONCEPTS), niter=40)

    def kept(self, folder: Path, seed: int, **fields: object) -> Coverage:
        """Return what a selector leaves of the planted concepts."""
        table = decide(make(**fields), Inputs.of(**self.tables), folder, seed)
        return coverage(self.concept, table["keep"].to_numpy())


@pytest.fixture(params=[0, 1, 2])
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def world(seed: int, tmp_path: Path) -> World:
    return World(seed, tmp_path)


def test_each_selector_does_what_it_is_for(world: World, seed: int, tmp_path: Path) -> None:
    found = {
        method: world.kept(tmp_path, seed, method=method, keep=0.3)
        for method in ("random", "density", "hierarchical", "prototypes")
    }
    wide = {m: c.kept[world.wide].sum() / c.before[world.wide].sum() for m, c in found.items()}
    assert all(c.kept.sum() == 900 for c in found.values())
    assert found["random"].tail_share == pytest.approx(0.3, abs=0.06)
    assert wide["random"] == pytest.approx(0.3, abs=0.05)
    # density: more of the complex concepts; prototypes (hard): the far rows, which are theirs as well
    assert wide["density"] > 1.5 * wide["random"]
    assert wide["prototypes"] > 1.5 * wide["random"]
    assert found["prototypes"].gini[1] > found["random"].gini[1]
    # hierarchical: no concept before the others; the tail stays, and sizes become more even
    assert found["hierarchical"].tail_share > 1.6 * found["random"].tail_share
    assert found["hierarchical"].gini[1] < 0.6 * found["random"].gini[1]
    assert found["hierarchical"].effective[1] > 1.15 * found["random"].effective[1]
    assert found["hierarchical"].emptied == 0


def test_a_chain_takes_the_complex_and_then_evens_out(world: World, seed: int, tmp_path: Path) -> None:
    density, even = {"method": "density", "keep": 0.6}, {"method": "hierarchical", "keep": 0.5}
    chain = world.kept(tmp_path, seed, method="then", of=[density, even])
    alone = world.kept(tmp_path, seed, method="density", keep=0.3)
    assert chain.kept.sum() == alone.kept.sum() == 900
    assert chain.gini[1] < 0.7 * alone.gini[1]
