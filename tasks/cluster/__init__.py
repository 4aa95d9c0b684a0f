"""The `cluster` family: concepts as spherical k-means clusters of embeddings, flat or hierarchical, and their names."""

from typing import Annotated

from pydantic import Field

from tasks.cluster.assign import Assign
from tasks.cluster.centroids import Centroids
from tasks.cluster.cluster import Cluster
from tasks.cluster.concepts import Concepts
from tasks.cluster.hierarchy import Hierarchy

AnyCluster = Annotated[Cluster | Centroids | Assign | Hierarchy | Concepts, Field(discriminator="use")]

__all__ = ["AnyCluster", "Assign", "Centroids", "Cluster", "Concepts", "Hierarchy"]
