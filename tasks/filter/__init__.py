"""The `filter` family: keep the rows for which a SQL predicate is true."""

from tasks.filter.filter import Filter

AnyFilter = Filter

__all__ = ["AnyFilter", "Filter"]
