"""The `deduplicate` family: copies within a dataset, and of evaluation sets; each kind of copy in its own module."""

from typing import Annotated

from pydantic import Field

from tasks.deduplicate.decontaminate import Decontaminate
from tasks.deduplicate.deduplicate import Deduplicate

AnyDeduplicate = Annotated[Deduplicate | Decontaminate, Field(discriminator="use")]

__all__ = ["AnyDeduplicate", "Decontaminate", "Deduplicate"]
