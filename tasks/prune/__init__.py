"""The `prune` family: which part of a corpus to keep. All write `decisions`, and say of every row why."""

from typing import Annotated

from pydantic import Field

from tasks.prune._combine import Combination, Vote
from tasks.prune.density import Density
from tasks.prune.hierarchical import Hierarchical
from tasks.prune.intersection import Intersection
from tasks.prune.prototypes import Prototypes
from tasks.prune.random import Random
from tasks.prune.score import Score
from tasks.prune.then import Then
from tasks.prune.union import Union

AnyPrune = Annotated[
    Density | Hierarchical | Intersection | Prototypes | Random | Score | Then | Union, Field(discriminator="method")
]

for _combination in (Combination, Vote, Union, Intersection, Then):  # their members are of any method, their own too
    _combination.model_rebuild(_types_namespace={"AnyPrune": AnyPrune})

__all__ = ["AnyPrune", "Density", "Hierarchical", "Intersection", "Prototypes", "Random", "Score", "Then", "Union"]
