"""`use: assign`: assign every row to its nearest centroid, part by part, on actors."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.inputs import as_matrix
from catalog.schema import CLUSTERS
from tasks.cluster.centroids import READ_WORK
from tasks.stage import Batches, Columns, MapStage, Size, Step, Tables
from tasks.streams.rebatch import rebatch
from tasks.vectors.columns import clustered_column
from tasks.vectors.nearest_centroid import Assigner

STEP_ROWS: Final = 8192
"""Rows written at once. As those multiplied at once they are counted from the start of a part: what is written must
not depend on how batches were cut."""


class Assign(MapStage):
    """Write `clusters`: the nearest centroid and the distance to it, 1 - cosine; in a tie the lowest number.

    Both are null for rows without a usable embedding (missing, zero, NaN).
    """

    use: Literal["assign"] = "assign"
    table = "clusters"
    grows_with = "rows * k"
    encoder: str = Field("", description="embedding column; default: the one that the centroids were fitted on")

    def inputs(self, available: Tables) -> Columns:
        return {"embeddings": (clustered_column(available, self.encoder),)}

    def output(self, available: Tables) -> pa.Schema:
        return CLUSTERS

    def sides(self, available: Tables) -> tuple[str, ...]:
        return ("centroids",)

    def work(self, size: Size) -> float:
        """Return the rows that are read, and their comparisons with every centroid."""
        return float(size.rows * (READ_WORK + size.clusters))

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        assigner = Assigner(as_matrix(sides["centroids"].column("centroid")), device)

        def step(batches: Iterator[pa.Table]) -> Batches:
            ids: deque[pa.ChunkedArray] = deque()

            def blocks() -> Iterator[np.ndarray]:
                for batch in rebatch(batches, assigner.rows_at_once):
                    ids.append(batch.column("sample_id"))
                    yield _matrix(batch)

            yield from rebatch((_clusters(ids.popleft(), *found) for found in assigner.each(blocks())), STEP_ROWS)

        return step


def _matrix(batch: pa.Table) -> np.ndarray:
    """Return the embeddings: float16 (n, d), zero for missing ones."""
    (name,) = (name for name in batch.column_names if name != "sample_id")
    column = batch.column(name)
    if not column.null_count:
        return as_matrix(column)
    vectors = np.zeros((len(column), column.type.list_size), column.type.value_type.to_pandas_dtype())
    vectors[column.is_valid().to_numpy()] = as_matrix(column.drop_null())
    return vectors


def _clusters(ids: pa.ChunkedArray, cluster: np.ndarray, distance: np.ndarray) -> pa.Table:
    absent = cluster < 0
    return pa.table([ids, pa.array(cluster, mask=absent), pa.array(distance, mask=absent)], schema=CLUSTERS)
