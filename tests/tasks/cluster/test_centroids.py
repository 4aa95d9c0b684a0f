"""Fitting centroids: the training sample is explicit, seeded and recorded."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import UserError
from catalog.inputs import Inputs, as_matrix
from catalog.schema import vector
from tasks.cluster import Centroids
from tasks.vectors import kmeans
from tasks.vectors import random_keys as draw
from tests.helpers import LocalRun


def embeddings(n: int, seed: int = 0, dim: int = 8) -> tuple[Inputs, np.ndarray]:
    rows = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float16)
    schema = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", dim, ""), vector("dino", dim, "")])
    column = pa.array(list(rows), pa.list_(pa.float16(), dim))
    return Inputs.of(embeddings=pa.table([np.arange(n) * 5, column, pa.nulls(n, column.type)], schema=schema)), rows


def test_trains_on_the_recorded_sample(tmp_path: Path) -> None:
    inputs, rows = embeddings(3000)
    run = LocalRun(tmp_path, seed=9)
    stage = Centroids(k=6, train=400, niter=5)
    table = pa.concat_tables(stage.run(inputs, run))
    assert table.schema == stage.output({"embeddings": inputs.schema("embeddings")})
    drawn = np.sort(np.argsort(draw.keys(np.arange(3000) * 5, 9))[:400])
    fit = kmeans.fit(rows[drawn], 6, niter=5, seed=9)
    assert (as_matrix(table["centroid"]) == fit.centroids).all()
    assert table["size"].to_pylist() == fit.sizes.tolist()
    noted = {name: run.notes[name] for name in ("encoder", "alive_rows", "usable_rows", "training_rows", "engine")}
    assert noted == {
        "encoder": "clip",
        "alive_rows": 3000,
        "usable_rows": 3000,
        "training_rows": 400,
        "engine": "torch",
    }
    assert len(run.notes["objective"]) == run.notes["iterations"] + 1
    assert len(run.notes["empty_cluster_repairs"]) == run.notes["iterations"]


@pytest.mark.parametrize(("train", "expected"), [(None, 512), ("all", 3000), (1, 2), (9999, 3000)])
def test_sample_sizes(tmp_path: Path, train: object, expected: int) -> None:
    run = LocalRun(tmp_path)
    list(Centroids.model_validate({"k": 2, "train": train, "niter": 1}).run(embeddings(3000)[0], run))
    assert run.notes["training_rows"] == expected


def test_no_rows_and_no_vectors(tmp_path: Path) -> None:
    for number, (count, encoder) in enumerate([(0, "clip"), (4, "dino")]):
        (table,) = Centroids(k=6, encoder=encoder).run(embeddings(count)[0], LocalRun(tmp_path / str(number)))
        assert table.num_rows == 0


def test_k_above_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k is 6, but only 5 rows"):
        list(Centroids(k=6).run(embeddings(5)[0], LocalRun(tmp_path)))


def test_one_row(tmp_path: Path) -> None:
    (table,) = Centroids(k=1).run(embeddings(1)[0], LocalRun(tmp_path))
    assert table["size"].to_pylist() == [1]
