"""`use: centroids`: fit the centroids of spherical k-means on an explicit training sample."""

from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.inputs import Inputs
from catalog.schema import field
from tasks import kmeans
from tasks.stage import Batches, Columns, Config, Run, Tables, TableStage

SAMPLE_PER_CENTROID = 256
"""Training rows for each centroid where a recipe names none: faiss's hidden cap, here in the open."""


class Training(Config):
    """What a recipe may say about how centroids are fitted."""

    k: int = Field(500, gt=0, description="number of clusters")
    encoder: str = Field("", description="embedding column; default: the first one")
    niter: int = Field(25, gt=0, description="most updates of the centroids; it stops early when nothing moves")
    train_rows: int | Literal["all"] | None = Field(
        None, description="rows to fit on, drawn by the seed; default 256 a cluster; all: every row, on local disk"
    )
    engine: kmeans.Engine = Field("auto", description="torch or faiss; auto: torch, the cheaper one where measured")


class Centroids(Training, TableStage):
    """Fits k unit centroids: table `centroids`, one row a cluster, `size` counts training rows.

    The training sample lies in a memory map in the scratch folder (2 bytes a number), so memory does not grow with it
    beyond `kmeans.HELD_BYTES` (faiss: beyond the sample itself, as float32). Rows without a direction (zero, NaN) are
    never drawn. Raises UserError where fewer than k rows have a usable embedding; no rows at all give an empty table.
    Source: `tasks/kmeans.py`.
    """

    use: Literal["centroids"] = "centroids"
    table = "centroids"
    seeded = True

    def inputs(self, available: Tables) -> Columns:
        return {"embeddings": (kmeans.vector_column(available, self.encoder),)}

    def output(self, available: Tables) -> pa.Schema:
        column = kmeans.vector_column(available, self.encoder)
        return centroids_schema(kmeans.width(available["embeddings"], column))

    def run(self, inputs: Inputs, run: Run) -> Batches:
        embeddings = inputs.schema("embeddings")
        column = kmeans.vector_column({"embeddings": embeddings}, self.encoder)
        dim = kmeans.width(embeddings, column)
        alive = inputs.rows()
        sample = kmeans.Sample(run.scratch / "sample.npy", min(self._wanted(alive), max(alive, 1)), dim, run.seed)
        done = 0
        for ids, vectors in inputs.vectors("embeddings", column):
            sample.add(ids, vectors)
            done += len(ids)
            run.progress(done, alive)
        _, rows = sample.take()
        run.note(encoder=column, alive_rows=alive, usable_rows=sample.seen)
        if sample.seen == 0:
            run.note(training_rows=0)
            yield centroids_table(np.empty((0, dim), np.float32), np.empty(0, np.int64))
            return
        fit = kmeans.fit(rows, self.k, niter=self.niter, seed=run.seed, device=run.device, engine=self.engine)
        run.note(**fit.facts())
        yield centroids_table(fit.centroids, fit.sizes)

    def _wanted(self, alive: int) -> int:
        if self.train_rows == "all":
            return alive
        return max(self.train_rows or SAMPLE_PER_CENTROID * self.k, self.k)


def centroids_schema(dim: int) -> pa.Schema:
    """Return the schema of the table `centroids` for vectors of `dim` numbers."""
    return pa.schema(
        [
            field("cluster", pa.int32(), "number of the cluster, 0 .. k - 1"),
            field("centroid", pa.list_(pa.float32(), dim), "its centre, of unit length"),
            field("size", pa.int64(), "training rows nearest to it"),
        ]
    )


def centroids_table(centroids: np.ndarray, sizes: np.ndarray) -> pa.Table:
    """Return the table `centroids` of float32 (k, d) and int64 (k,)."""
    dim = centroids.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(centroids.reshape(-1)), dim)
    columns = [pa.array(np.arange(len(sizes), dtype=np.int32)), vectors, pa.array(sizes)]
    return pa.table(columns, schema=centroids_schema(dim))
