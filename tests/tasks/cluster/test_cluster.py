"""The entry of a recipe: its expansion, and that the two stages together find a planted mixture."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, vector
from tasks.cluster import AnyCluster, Assign, Centroids, Cluster
from tests.helpers import LocalRun

SCHEMA = pa.schema([pa.field("sample_id", pa.int64()), vector("clip", 16, "")])


def test_expands_to_two_stages() -> None:
    entry = TypeAdapter(AnyCluster).validate_python(
        {"use": "cluster", "k": 7, "encoder": "clip", "train": "all", "resources": {"cpus": 2}}
    )
    fit, assign = entry.expand()
    assert isinstance(fit, Centroids)
    assert isinstance(assign, Assign)
    assert (fit.name, assign.name) == ("cluster-centroids", "cluster")
    assert (fit.k, fit.train, fit.encoder, assign.encoder) == (7, "all", "clip", "clip")
    assert fit.resources == assign.resources == entry.resources
    assert fit.inputs({"embeddings": SCHEMA}) == assign.inputs({"embeddings": SCHEMA}) == {"embeddings": ("clip",)}
    assert assign.sides({}) == ("centroids",)


@pytest.mark.parametrize("seed", range(3))
def test_finds_a_planted_mixture(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 8, 4000)
    rows = (rng.normal(size=(8, 16))[label] + 0.2 * rng.normal(size=(4000, 16))).astype(np.float16)
    table = pa.table([np.arange(4000), pa.array(list(rows), pa.list_(pa.float16(), 16))], schema=SCHEMA)
    fit, assign = Cluster(k=30).expand()
    assert isinstance(fit, Centroids)
    assert isinstance(assign, Assign)
    (centroids,) = fit.run(Inputs.of(embeddings=table), LocalRun(tmp_path, seed=seed))
    found = pa.concat_tables(assign.open("cpu", {"centroids": centroids})(iter([table])))
    assert found.schema == CLUSTERS
    cluster = found["cluster"].to_numpy()
    purity = sum(np.bincount(label[cluster == j]).max(initial=0) for j in range(30)) / 4000
    assert purity > 0.97


def test_wrong_recipes() -> None:
    for fields, message in (
        ({"k": 0}, r"k\.number\n  Input should be greater than 0"),
        ({"engine": "sklearn"}, r"engine\n  Input should be 'auto', 'torch' or 'faiss'"),
        ({"train": "some"}, r"train"),
        ({"kk": 3}, r"kk\n  Extra inputs are not permitted"),
    ):
        with pytest.raises(ValidationError, match=message):
            Cluster.model_validate(fields)
    with pytest.raises(RecipeError, match=r"no embedding column 'clib'; did you mean 'clip'\?"):
        Cluster(encoder="clib").inputs({"embeddings": SCHEMA})
