"""The choice of an index by rows, memory and recall, and its expected size."""

import numpy as np
import pytest

from catalog.errors import UserError
from tasks.index.choose import Budget, Choice, choose, list_count
from tasks.index.vector_index import VectorIndex, unit_rows

MB = 1e6


@pytest.mark.parametrize(
    ("rows", "memory_mb", "recall", "factory"),
    [
        (1, 4000, 0.95, "Flat"),
        (50_000, 4000, 0.95, "Flat"),
        (200_000, 4000, 0.95, "IVF2048,Flat"),
        (200_000, 4000, 0.99, "HNSW32,Flat"),
        (200_000, 300, 0.95, "IVF2048,SQfp16"),
        (200_000, 150, 0.95, "IVF2048,SQ8"),
        (200_000, 60, 0.95, "IVF2048,PQ256"),
        (200_000, 40, 0.95, "IVF2048,PQ128"),
        (200_000, 25, 0.95, "OPQ64,IVF2048,PQ64"),
        (50_000, 60, 0.95, "IVF1024,SQfp16"),
    ],
)
def test_the_first_that_fits(rows: int, memory_mb: float, recall: float, factory: str) -> None:
    assert choose(rows, 512, Budget(memory_mb=memory_mb, recall=recall)).factory == factory


def test_an_index_that_does_not_fit_reports_its_size() -> None:
    with pytest.raises(UserError, match=r"1,000,000 vectors of 512 numbers take at least \d+\.\d+ MB .* is 5\.00 MB"):
        choose(1_000_000, 512, Budget(memory_mb=5))
    with pytest.raises(UserError, match="let --kind be auto"):
        choose(1_000_000, 512, Budget(kind="flat", memory_mb=500))
    with pytest.raises(UserError, match="kind opq needs at least 256 vectors, and there are 255"):
        choose(255, 512, Budget(kind="opq"))


def test_lists_have_enough_training_rows() -> None:
    assert [list_count(n) for n in (0, 1, 38, 39, 10_000, 1_000_000)] == [1, 1, 1, 1, 256, 4096]
    assert all(list_count(n) * 39 <= n for n in (39, 100, 5_000, 123_456))


@pytest.mark.parametrize("choice", [
    Choice("flat", "float32", 1000, 32), Choice("hnsw", "float32", 1000, 32), Choice("ivf", "float32", 1000, 32, 16),
    Choice("ivf", "float16", 1000, 32, 16), Choice("ivf", "8bit", 1000, 32, 16),
    Choice("ivfpq", "pq", 1000, 32, 16, 8), Choice("opq", "pq", 1000, 32, 16, 4),
], ids=lambda choice: choice.factory)  # fmt: skip
def test_the_size_is_as_expected(choice: Choice, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = np.random.default_rng(0).standard_normal((choice.rows, choice.dim)).astype(np.float16)
    index = VectorIndex.train(choice, rows)
    index.add(np.arange(choice.rows), unit_rows(rows))
    path = tmp_path_factory.mktemp("index") / "i"
    with path.open("wb") as file:
        index.write(file)
    assert path.stat().st_size == pytest.approx(choice.bytes, rel=0.06, abs=2500)
