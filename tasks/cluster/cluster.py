"""`use: cluster`: the entry of a recipe, which stands for `centroids` and then `assign`."""

from typing import Literal

import pyarrow as pa

from catalog.schema import CLUSTERS
from tasks.cluster.assign import Assign
from tasks.cluster.centroids import Centroids, Training
from tasks.kmeans import vector_column
from tasks.stage import Columns, Stage, Tables


class Cluster(Training, Stage):
    """Groups samples into k concepts by the direction of their embeddings.

    Two tables come of it: `centroids`, fitted on a sample by one run, and `clusters`, every row's nearest centroid and
    its distance to it, found part by part on actors. Not hierarchical: one level of k clusters.
    """

    use: Literal["cluster"] = "cluster"
    table = "clusters"

    def inputs(self, available: Tables) -> Columns:
        return {"embeddings": (vector_column(available, self.encoder),)}

    def output(self, available: Tables) -> pa.Schema:
        return CLUSTERS

    def expand(self) -> tuple[Stage, ...]:
        training = {name: getattr(self, name) for name in Training.model_fields}
        return (
            Centroids(name=f"{self.name}-centroids", resources=self.resources, **training),
            Assign(name=self.name, resources=self.resources, encoder=self.encoder),
        )
