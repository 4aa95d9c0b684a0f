"""The `prune` family: which part of a corpus to keep. All write `decisions`, and keep an exact number of rows."""

from typing import Annotated

from pydantic import Field

from tasks.prune.density import Density
from tasks.prune.prototypes import Prototypes
from tasks.prune.random import Random

AnyPrune = Annotated[Density | Prototypes | Random, Field(discriminator="method")]

__all__ = ["AnyPrune", "Density", "Prototypes", "Random"]
