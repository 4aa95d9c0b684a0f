"""The `deduplicate` family: one stage, its kinds of copies each in its own module."""

from tasks.deduplicate.deduplicate import Deduplicate

AnyDeduplicate = Deduplicate

__all__ = ["AnyDeduplicate", "Deduplicate"]
