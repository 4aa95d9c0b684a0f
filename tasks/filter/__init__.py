"""The `filter` family: keep rows by a predicate, a list, or a set of target images."""

from typing import Annotated

from pydantic import Field

from tasks.filter.filter import Filter
from tasks.filter.near_targets import NearTargets

AnyFilter = Annotated[Filter | NearTargets, Field(discriminator="use")]

__all__ = ["AnyFilter", "Filter", "NearTargets"]
