"""`use: assign`: give every row its nearest centroid, part by part, on actors."""

from collections.abc import Iterator, Mapping
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.inputs import as_matrix
from catalog.schema import CLUSTERS
from tasks.batches import recut
from tasks.kmeans import Assigner, clustered_column
from tasks.stage import Batches, Columns, MapStage, Step, Tables

STEP_ROWS: Final = 8192
"""Rows multiplied at once, counted from the start of a part: results must not depend on how batches were cut."""


class Assign(MapStage):
    """Writes `clusters`: the nearest of the fitted centroids and the distance to it, 1 - cosine, ties to the lowest.

    Rows without a usable embedding (none, zero, NaN) get null for both.
    """

    use: Literal["assign"] = "assign"
    table = "clusters"
    encoder: str = Field("", description="embedding column; default: the one that the centroids were fitted on")

    def inputs(self, available: Tables) -> Columns:
        return {"embeddings": (clustered_column(available, self.encoder),)}

    def output(self, available: Tables) -> pa.Schema:
        return CLUSTERS

    def sides(self) -> tuple[str, ...]:
        return ("centroids",)

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        assigner = Assigner(as_matrix(sides["centroids"].column("centroid")), device)

        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in recut(batches, STEP_ROWS):
                yield _assign(batch, assigner)

        return step


def _assign(batch: pa.Table, assigner: Assigner) -> pa.Table:
    (name,) = (name for name in batch.column_names if name != "sample_id")
    column = batch.column(name)
    present = np.flatnonzero(column.is_valid().to_numpy())
    cluster = np.full(batch.num_rows, -1, np.int32)
    distance = np.full(batch.num_rows, np.nan, np.float32)
    if len(present):
        cluster[present], distance[present] = assigner(as_matrix(column.drop_null()))
    absent = cluster < 0
    columns = [batch.column("sample_id"), pa.array(cluster, mask=absent), pa.array(distance, mask=absent)]
    return pa.table(columns, schema=CLUSTERS)
