"""The `deduplicate` family: one stage, three kinds of copies, each in its own module."""

from tasks.deduplicate.deduplicate import Deduplicate

__all__ = ["Deduplicate"]
