"""Rows to select from, whose truth is known."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, SAMPLE_ID, score, vector
from tasks.cluster import Cluster
from tasks.cluster.assign import Assign
from tasks.cluster.centroids import centroids_table
from tasks.prune import AnyPrune
from tasks.prune._base import Selector
from tests.helpers import LocalRun

SCORES = pa.schema([SAMPLE_ID, score("clip_score", "clip", 1, "cosine of image and caption")])
HIERARCHY = pa.schema([("level", pa.int32()), ("cluster", pa.int32()), ("parent", pa.int32())])


def make(**fields: object) -> Selector:
    """Return a selector as a recipe says it."""
    selector: Selector = TypeAdapter(AnyPrune).validate_python({"use": "prune"} | fields)
    return selector


def decide(stage: Selector, inputs: Inputs, folder: Path, seed: int = 0, **how: int) -> pa.Table:
    """Return the decisions of a stage."""
    pieces = list(stage.run(inputs, LocalRun(folder, seed=seed, inputs=inputs), **how))
    return pa.concat_tables(pieces) if pieces else stage.output({}).empty_table()


def kept(table: pa.Table) -> list[int]:
    """Return the sample_ids that decisions keep."""
    ids: list[int] = table.filter(table["keep"])["sample_id"].to_pylist()
    return ids


def tables(n: int, seed: int = 0, k: int = 5, tail: float = 0.0) -> dict[str, pa.Table]:
    """Return n rows in k clusters with scores; the shares of clusters fall with rank ** -tail."""
    rng = np.random.default_rng(seed)
    c = rng.normal(size=(k, 4)).astype(np.float32)
    c /= np.linalg.norm(c, axis=1, keepdims=True)
    shares = np.arange(1, k + 1) ** -tail
    cluster = rng.choice(k, n, p=shares / shares.sum()).astype(np.int32)
    distance = rng.random(n).astype(np.float32)
    scores = (rng.integers(0, 40, n) / 64).astype(np.float32)  # many ties
    return {
        "clusters": pa.table([np.arange(n), cluster, distance], schema=CLUSTERS),
        "centroids": centroids_table(c, np.zeros(k, np.int64)),
        "embeddings": pa.table([np.arange(n), scores], schema=SCORES),
    }


def world(n: int, seed: int = 0, k: int = 5, tail: float = 0.0) -> Inputs:
    """Return `tables` as inputs."""
    return Inputs.of(**tables(n, seed, k, tail))


def clustered(vectors: np.ndarray, folder: Path, seed: int, **fields: object) -> dict[str, pa.Table]:
    """Return the tables of rows with these vectors, float (n, d), after a stage `cluster` with these fields."""
    dim = vectors.shape[1]
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).reshape(-1)), dim)
    schema = pa.schema([SAMPLE_ID, vector("clip", dim, "")])
    found = {"embeddings": pa.table([np.arange(len(vectors)), lists], schema=schema)}
    for stage in Cluster.model_validate(fields).expand():
        inputs = Inputs.of(**found)
        if isinstance(stage, Assign):
            made = stage.open("cpu", found)(inputs.batches(stage.inputs({"embeddings": schema})))
        else:
            made = stage.run(inputs, LocalRun(folder / stage.name, seed, inputs=inputs))  # type: ignore[attr-defined]
        found[stage.table] = pa.concat_tables(made)
    return found
