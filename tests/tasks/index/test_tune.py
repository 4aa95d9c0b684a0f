"""The effort is the least that reaches the recall; if none does, the best recall is reported."""

import numpy as np
import pytest

from tasks.index.choose import Choice
from tasks.index.held_out import HeldOut
from tasks.index.tune import tune
from tasks.index.vector_index import VectorIndex, unit_rows

ROWS, DIM = 4000, 32


def world(choice: Choice, seed: int) -> tuple[VectorIndex, HeldOut]:
    rng = np.random.default_rng(seed)
    ids, vectors = np.arange(ROWS, dtype=np.int64), unit_rows(rng.standard_normal((ROWS, DIM)))
    some = rng.choice(ROWS, 120, replace=False)
    held = HeldOut.of(np.sort(some), vectors[np.sort(some)], np.arange(120) % 3 == 0)
    index = VectorIndex.train(choice, vectors, seed)
    index.add(ids, vectors)
    held.add(ids, vectors)
    return index, held


@pytest.mark.parametrize("seed", [0, 1])
def test_more_recall_takes_more_effort(seed: int) -> None:
    index, held = world(Choice("ivf", "float32", ROWS, DIM, 64), seed)
    low, high = (tune(index, held, target, lossy=False) for target in (0.5, 0.95))
    assert 1 < low.effort < high.effort <= 64
    for tuned, target in ((low, 0.5), (high, 0.95)):
        assert (tuned.worst(lossy=False) or 0) >= target
        _, found = index.search(held.queries, 11, tuned.effort - 1)
        few = held.summary(held.recalls(found))
        assert min(f["mean"] for f in few.values()) < tuned.worst(lossy=False)
    assert high.ms_per_query > 0


def test_an_unreachable_recall_is_reported() -> None:
    index, held = world(Choice("ivfpq", "pq", ROWS, DIM, 16, 4), 0)
    tuned = tune(index, held, 0.999, lossy=True)
    alone, rescored = tuned.worst(lossy=False), tuned.worst(lossy=True)
    assert alone is not None
    assert rescored is not None
    assert alone < rescored < 0.999


def test_exact_search_needs_no_effort() -> None:
    index, held = world(Choice("flat", "float32", ROWS, DIM), 0)
    tuned = tune(index, held, 1.0, lossy=False)
    assert tuned.worst(lossy=False) == 1.0
    assert set(tuned.recall) == {"image", "text"}
