"""`use: centroids`: fit the centroids of spherical k-means on an explicit training sample."""

from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Discriminator, Field, Tag

from catalog.inputs import Inputs
from catalog.schema import field
from tasks.cluster import _auto
from tasks.cluster._resample import Resample, fit_resampled
from tasks.stage import Batches, Columns, Config, Run, Size, Tables, TableStage
from tasks.streams.ordered_map import ordered_map
from tasks.vectors import kmeans
from tasks.vectors import random_keys as draw
from tasks.vectors.columns import CLUSTERED, vector_column, width
from tasks.vectors.mapped import gather
from tasks.vectors.sample import Sample

SAMPLE_PER_CENTROID = 256
"""Default number of training rows per centroid: the implicit cap of faiss, here explicit."""
DEFAULT_K = 500
READ_WORK = 100
"""Reading a vector costs as much as comparing it with this many centroids (512 numbers, 2 cores)."""
READERS = 4
"""Parts that are read concurrently, in addition to one in memory: one core decodes half a gigabyte per second."""


class Auto(Config):
    """A grid from which k is chosen."""

    auto: _auto.Grid


def _kind(value: Any) -> str:
    if isinstance(value, dict | Auto):
        return "grid"
    return "word" if isinstance(value, str) else "number"


K = Annotated[
    Annotated[int, Field(gt=0), Tag("number")] | Annotated[Literal["auto"], Tag("word")] | Annotated[Auto, Tag("grid")],
    Discriminator(_kind),
]


class Training(Config):
    """Settings for fitting centroids."""

    k: K | None = Field(
        None, description=f"number of clusters, default {DEFAULT_K}; auto: chosen by a criterion, which is recorded"
    )
    encoder: str = Field("", description="embedding column; default: the first one")
    niter: int = Field(25, gt=0, description="maximum number of updates of the centroids; fewer at convergence")
    train: Annotated[int, Field(gt=0)] | Literal["all"] | None = Field(
        None, description="rows to fit on, sampled by the seed; default 256 per cluster; all: every row, on local disk"
    )
    engine: kmeans.Engine = Field("auto", description="torch or faiss, which holds all rows in memory; auto: torch")

    @property
    def grid(self) -> _auto.Grid | None:
        """Return the grid from which k is chosen; None if k is specified."""
        if self.k == "auto":
            return _auto.Grid()
        return self.k.auto if isinstance(self.k, Auto) else None

    @property
    def most(self) -> int:
        """Return k, or the largest k of the grid."""
        grid = self.grid
        if grid is not None:
            return grid.max
        return self.k if isinstance(self.k, int) else DEFAULT_K


class Centroids(Training, TableStage):
    """Fits k unit centroids: table `centroids`, one row a cluster, `size` counts training rows.

    The training sample lies in a memory map in the scratch folder (2 bytes a number), so memory does not grow with it
    beyond 1 GiB (faiss: beyond the sample itself, as float32). Rows without a direction (zero, NaN) are
    never drawn. `k: auto` tries a geometric grid of k on at most `_auto.SAMPLE_ROWS` of the training rows, takes the
    one of the best criterion (`_auto.choose`), and notes them all; it then fits as for a k that was given, but from a
    k-means++ start. `resample` refits to the rows nearest to the centroids (`_resample.fit_resampled`).
    Raises UserError if fewer than k rows have a usable embedding; no rows at all give an empty table.
    Source: `tasks/vectors/kmeans.py`.
    """

    use: Literal["centroids"] = "centroids"
    version = 2
    table = "centroids"
    rows_per_sample = "none"
    grows_with = "sample * k"
    seeded = True
    resample: Resample | None = Field(None, description="resample the centroids; `points` has one number here")

    def inputs(self, available: Tables) -> Columns:
        return {"embeddings": (vector_column(available, self.encoder),)}

    def output(self, available: Tables) -> pa.Schema:
        column = vector_column(available, self.encoder)
        return centroids_schema(width(available["embeddings"], column), column)

    def work(self, size: Size) -> float:
        """Return the rows that are read, and the comparisons of training rows with centroids in all updates."""
        return size.rows * READ_WORK + min(self._wanted(size.rows), size.rows) * size.clusters * self.niter

    def run(self, inputs: Inputs, run: Run, criterion_rows: int = _auto.SAMPLE_ROWS) -> Batches:
        embeddings = inputs.schema("embeddings")
        column = vector_column({"embeddings": embeddings}, self.encoder)
        dim = width(embeddings, column)
        alive = inputs.rows()
        sample = Sample(run.scratch / "sample.npy", min(self._wanted(alive), max(alive, 1)), dim, run.seed)
        done = 0
        for part in ordered_map(
            lambda part: list(part.vectors("embeddings", column)),
            inputs.split("embeddings"),
            min(max(int(self.resources.cpus), 1), READERS),
        ):
            for ids, vectors in part:
                sample.add(ids, vectors)
                done += len(ids)
            run.progress(done, alive)
        ids, rows = sample.take()
        run.note(encoder=column, alive_rows=alive, usable_rows=sample.seen)
        if sample.seen == 0:
            run.note(training_rows=0)
            yield centroids_table(np.empty((0, dim), np.float32), np.empty(0, np.int64))
            return
        fit = self._fit(rows, self._chosen(ids, rows, run, criterion_rows), run)
        run.note(**fit.facts())
        yield centroids_table(fit.centroids, fit.sizes)

    def _wanted(self, alive: int) -> int:
        if self.train == "all":
            return alive
        return max(self.train or SAMPLE_PER_CENTROID * self.most, self.most)

    def _chosen(self, ids: np.ndarray, rows: np.ndarray, run: Run, most: int) -> int:
        """Return k, chosen from the grid, if there is one, by at most `most` rows."""
        grid = self.grid
        if grid is None:
            return self.most
        few = np.sort(np.argsort(draw.keys(ids, run.seed), kind="stable")[:most])
        k, found = _auto.choose(gather(rows, few), grid, seed=run.seed, device=run.device)
        run.note(
            k=k, criterion=grid.criterion, criterion_rows=len(few), criterion_by_k=[[k, v] for k, v in found.items()]
        )
        return k

    def _fit(self, rows: np.ndarray, k: int, run: Run) -> kmeans.Fit:
        if self.resample is not None:
            (points,) = self.resample.points or (1,)
            return fit_resampled(
                rows, k, points=points, rounds=self.resample.rounds,
                niter=self.niter, seed=run.seed, device=run.device, engine=self.engine,
            )  # fmt: skip
        init: kmeans.Init = "random" if self.grid is None else "k-means++"
        return kmeans.fit(rows, k, niter=self.niter, seed=run.seed, device=run.device, engine=self.engine, init=init)


def centroids_schema(dim: int, column: str = "") -> pa.Schema:
    """Return the schema of the table `centroids` for vectors of `dim` numbers of embedding column `column`."""
    clustered = {CLUSTERED: column} if column else {}
    return pa.schema(
        [
            field("cluster", pa.int32(), "number of the cluster, 0 .. k - 1"),
            field("centroid", pa.list_(pa.float32(), dim), "its centre, of unit length", **clustered),
            field("size", pa.int64(), "training rows nearest to it"),
        ]
    )


def centroids_table(centroids: np.ndarray, sizes: np.ndarray) -> pa.Table:
    """Return the table `centroids` of float32 (k, d) and int64 (k,)."""
    dim = centroids.shape[1]
    columns = [pa.array(np.arange(len(sizes), dtype=np.int32)), as_lists(centroids), pa.array(sizes)]
    return pa.table(columns, schema=centroids_schema(dim))


def as_lists(matrix: np.ndarray) -> pa.Array:
    """Return a matrix (n, d) as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
