"""The `cluster` family: concepts as spherical k-means clusters of embeddings."""

from typing import Annotated

from pydantic import Field

from tasks.cluster.assign import Assign
from tasks.cluster.centroids import Centroids
from tasks.cluster.cluster import Cluster

AnyCluster = Annotated[Cluster | Centroids | Assign, Field(discriminator="use")]

__all__ = ["AnyCluster", "Assign", "Centroids", "Cluster"]
