"""`use: cluster`: the entry of a recipe, which expands to `centroids` and `assign`."""

from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from catalog.schema import CLUSTERS
from tasks.cluster._resample import Resample
from tasks.cluster.assign import Assign
from tasks.cluster.centroids import Auto, Centroids, Training
from tasks.cluster.hierarchy import Hierarchy, Levels, check_levels
from tasks.stage import Columns, Stage, Tables
from tasks.vectors.columns import vector_column

PROBE_ROWS_PER_CLUSTER = 16
"""The minimum number of a probe's rows per cluster."""


class Cluster(Training, Stage):
    """Group samples into k concepts by the direction of their embeddings.

    Writes two tables: `centroids`, fitted on a sample by one run, and `clusters`, every row's nearest centroid and its
    distance to it, computed part by part on actors. With `levels` instead of k, such as [1000, 100, 10], these are the
    1,000 leaves, and a third table, `hierarchy`, has the 100 clusters of leaves and the 10 clusters of those
    (`hierarchy.Hierarchy`), for balanced sampling.
    """

    use: Literal["cluster"] = "cluster"
    table = "clusters"
    grows_with = "rows * k"
    levels: Levels | None = Field(
        None, min_length=2, description="instead of k: clusters of level 1 (the leaves), 2, ..., each fewer"
    )
    resample: Resample | None = Field(None, description="with levels: how the centroids of each level are resampled")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.levels is None:
            if self.resample is not None:
                raise ValueError("`resample` requires `levels`")
            return self
        if self.k is not None:
            raise ValueError("specify either `k` or `levels`, whose first number is the k of the leaves")
        check_levels(self.levels, self.resample or Resample())
        return self

    @property
    def cluster_count(self) -> int:
        """Return k, the largest k of a grid, or the number of leaves of `levels`."""
        return self.levels[0] if self.levels else self.most

    def reduced(self, rows: int, of: int) -> Self:
        """Return the stage with no more clusters than one for every PROBE_ROWS_PER_CLUSTER rows."""
        if self.levels:
            share = min(1.0, rows / PROBE_ROWS_PER_CLUSTER / self.levels[0])
            levels = (max(len(self.levels) - i, round(k * share)) for i, k in enumerate(self.levels))
            return self.model_copy(update={"levels": tuple(levels)})
        most = min(self.most, max(2, rows // PROBE_ROWS_PER_CLUSTER))
        if self.grid:
            grid = self.grid.model_copy(update={"max": most, "min": min(self.grid.min, most)})
            return self.model_copy(update={"k": Auto(auto=grid)})
        return self.model_copy(update={"k": most})

    def sampling_caveats(self) -> tuple[str, ...]:
        found = ("a sample has fewer clusters: decisions that are made per cluster may differ",)
        if self.grid is None:
            return found
        return (*found, f"k is chosen by the build; this is for the largest that it may be, {self.most:,}")

    def inputs(self, available: Tables) -> Columns:
        return {"embeddings": (vector_column(available, self.encoder),)}

    def output(self, available: Tables) -> pa.Schema:
        return CLUSTERS

    def expand(self) -> tuple[Stage, ...]:
        training = {name: getattr(self, name) for name in Training.model_fields}
        names: dict[str, Any] = {"name": f"{self.name}-centroids", "resources": self.resources}
        assign = Assign(name=self.name, resources=self.resources, encoder=self.encoder)
        if self.levels is None:
            return Centroids(**names, **training), assign
        resample = self.resample or Resample()
        leaves, upper = resample.points and resample.points[:1], resample.points and resample.points[1:]
        return (
            Centroids(
                **names,
                **training | {"k": self.levels[0]},
                resample=Resample(rounds=resample.rounds, points=leaves),
            ),
            Hierarchy(
                name=f"{self.name}-hierarchy",
                resources=self.resources,
                levels=self.levels[1:],
                niter=self.niter,
                resample=Resample(rounds=resample.rounds, points=upper),
                engine=self.engine,
            ),
            assign,
        )
