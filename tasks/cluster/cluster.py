"""`use: cluster`: the entry of a recipe, which stands for `centroids` and then `assign`."""

from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from catalog.schema import CLUSTERS
from tasks.cluster._resample import Resample
from tasks.cluster.assign import Assign
from tasks.cluster.centroids import Centroids, Training
from tasks.cluster.hierarchy import Hierarchy, Levels, check_levels
from tasks.stage import Columns, Stage, Tables
from tasks.vectors.kmeans import vector_column


class Cluster(Training, Stage):
    """Groups samples into k concepts by the direction of their embeddings.

    Two tables come of it: `centroids`, fitted on a sample by one run, and `clusters`, every row's nearest centroid and
    its distance to it, found part by part on actors. With `levels` instead of k, [1000, 100, 10] say, these are the
    1,000 leaves, and a third table, `hierarchy`, has the 100 clusters of leaves and the 10 clusters of those
    (`hierarchy.Hierarchy`; balanced sampling goes down it).
    """

    use: Literal["cluster"] = "cluster"
    table = "clusters"
    levels: Levels | None = Field(
        None, min_length=2, description="instead of k: clusters of level 1 (the leaves), 2, ..., each fewer"
    )
    resample: Resample | None = Field(None, description="with levels: how the centroids of each level are spread")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.levels is None:
            if self.resample is not None:
                raise ValueError("`resample` goes with `levels`")
            return self
        if self.k is not None:
            raise ValueError("say either `k` or `levels`, whose first number is the k of the leaves")
        check_levels(self.levels, self.resample or Resample())
        return self

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
