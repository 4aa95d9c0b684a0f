"""The `filter` family: keep the rows for which a SQL predicate is true."""

from tasks.filter.filter import Filter

__all__ = ["Filter"]
"""One member; a union of one would only be its name."""
