"""`use: hierarchy`: cluster the centroids, then the centroids of those, level by level."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from catalog.errors import RecipeError, UserError
from catalog.inputs import Inputs, as_matrix
from catalog.schema import field
from tasks.cluster._resample import Resample, fit_resampled, usual_points
from tasks.cluster.centroids import as_lists
from tasks.stage import Batches, Columns, Run, Size, Tables, TableStage
from tasks.vectors import kmeans
from tasks.vectors.columns import width
from tasks.vectors.nearest_centroid import assign
from tasks.vectors.seeds import round_seed

Levels = tuple[Annotated[int, Field(gt=0)], ...]


class Hierarchy(TableStage):
    """Write `hierarchy`: every cluster of every level, its centroid, and its parent one level up.

    Level 1 are the rows of `centroids`; level h has `levels[h - 2]` clusters, fitted to the centroids of level h - 1
    with equal weights. `size` counts the training rows below. `resample` resamples each level
    (`_resample.fit_resampled`). Source: Vo et al. 2024 (arXiv 2405.15613), section 3.
    Raises UserError if a level does not have fewer clusters than the level below.
    """

    use: Literal["hierarchy"] = "hierarchy"
    version = 2
    table = "hierarchy"
    rows_per_sample = "none"
    grows_with = "k^2"
    seeded = True
    alive_only = False
    levels: Levels = Field(min_length=1, description="clusters of level 2, 3, ...; each fewer than the one before")
    niter: int = Field(25, gt=0, description="maximum number of updates of the centroids; fewer at convergence")
    resample: Resample = Field(Resample(), description="`points` has one number for each of `levels`")
    engine: kmeans.Engine = Field("auto", description="torch or faiss")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_levels(self.levels, self.resample)
        return self

    def inputs(self, available: Tables) -> Columns:
        if "centroids" not in available:
            raise RecipeError("there are no centroids: put a stage `use: centroids` before this one")
        return {}

    def sides(self, available: Tables) -> tuple[str, ...]:
        return ("centroids",)

    def output(self, available: Tables) -> pa.Schema:
        return hierarchy_schema(width(available["centroids"], "centroid"))

    def work(self, size: Size) -> float:
        """Return the comparisons of the clusters of each level with those of the level below, in all updates."""
        below = (size.clusters, *self.levels)
        return float(sum(few * many for many, few in zip(below, self.levels, strict=False)) * self.niter)

    def run(self, inputs: Inputs, run: Run) -> Batches:
        leaves = inputs.whole("centroids").sort_by("cluster")
        rows, sizes = as_matrix(leaves.column("centroid")), leaves.column("size").to_numpy()
        if not len(rows):
            yield hierarchy_schema(width(leaves.schema, "centroid")).empty_table()
            return
        notes: dict[str, Any] = {}
        for level, centroids, parents, below in self._grow(rows, sizes, run, notes):
            yield _table(level, centroids, parents, below)
        run.note(**notes)

    def _grow(
        self, rows: np.ndarray, sizes: np.ndarray, run: Run, notes: dict[str, Any]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray | None, np.ndarray]]:
        """Yield (level, centroids (k, d), parents int32 (k,) or None at the top, training rows below int64 (k,))."""
        points = self.resample.points or (None,) * len(self.levels)
        for level, (k, few) in enumerate(zip(self.levels, points, strict=True), start=2):
            if k >= len(rows):
                raise UserError(f"level {level} has {k} clusters, but level {level - 1} only {len(rows)}: lower it")
            few = usual_points(len(rows), k) if few is None else few
            fit = fit_resampled(
                rows, k, points=few, rounds=self.resample.rounds,
                niter=self.niter, seed=round_seed(run.seed, level), device=run.device, engine=self.engine,
            )  # fmt: skip
            parents, _ = assign(rows, fit.centroids, run.device)
            yield level - 1, rows, parents, sizes
            sizes = np.bincount(parents, weights=sizes, minlength=k).astype(np.int64)
            notes |= {f"level_{level}_points": few, f"level_{level}_empty": int((fit.sizes == 0).sum())}
            notes[f"level_{level}_objective"] = round(fit.objective[-1], 6)
            rows = fit.centroids
        yield len(self.levels) + 1, rows, None, sizes


def check_levels(levels: Levels, resample: Resample) -> None:
    """Raise ValueError if levels are not decreasing, or `points` does not have one number per level."""
    if any(upper >= lower for lower, upper in pairwise(levels)):
        raise ValueError(f"levels {list(levels)}: each level has fewer clusters than the one before")
    if resample.points is not None and len(resample.points) != len(levels):
        raise ValueError(f"resample: {len(resample.points)} points for {len(levels)} levels; give one for each")


def hierarchy_schema(dim: int) -> pa.Schema:
    """Return the schema of the table `hierarchy` for vectors of `dim` numbers."""
    return pa.schema(
        [
            field("level", pa.int32(), "1: the leaves, which are the clusters of `clusters`"),
            field("cluster", pa.int32(), "number of the cluster in its level"),
            field("parent", pa.int32(), "the cluster of the next level that it is in; null at the top"),
            field("centroid", pa.list_(pa.float32(), dim), "its centre, of unit length"),
            field("size", pa.int64(), "training rows below it"),
        ]
    )


def _table(level: int, centroids: np.ndarray, parents: np.ndarray | None, sizes: np.ndarray) -> pa.Table:
    count, dim = centroids.shape
    columns = [
        pa.array(np.full(count, level, np.int32)),
        pa.array(np.arange(count, dtype=np.int32)),
        pa.nulls(count, pa.int32()) if parents is None else pa.array(parents),
        as_lists(centroids),
        pa.array(sizes),
    ]
    return pa.table(columns, schema=hierarchy_schema(dim))
