"""Whether a sample is kept: one rule, as Arrow, SQL and Python apply it.

Three tables can reject a sample, each by one column of the row that it has for it:

    images.status     rejects unless it is `success`
    decisions.keep    rejects unless it is true, whichever stage judged
    source.url        rejects if it is TAKEN_URL: the row was taken down

A null status and a null `keep` reject, as nothing says that the sample is sound. A null URL does not: the source gave
none. A table that has no row for a sample does not reject it.
"""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from catalog.duck import literal
from catalog.schema import SUCCESS, TAKEN_URL

REJECTING: Final = {"images": "status", "decisions": "keep", "source": "url"}
"""Table -> the column of it that can reject a sample."""


def rejects(values: pa.ChunkedArray | pa.Array, column: str) -> pa.ChunkedArray | pa.Array:
    """Return which values of a rejecting column reject their sample: bool (n,), no nulls."""
    if column == "url":
        return pc.fill_null(pc.equal(values, TAKEN_URL), False)
    return pc.fill_null(pc.invert(values) if column == "keep" else pc.not_equal(values, SUCCESS), True)


def rejects_sql(column: str, value: str = "") -> str:
    """Return the same as a SQL condition, which is never null. `value`: an expression, by default the column itself."""
    value = value or column
    if column == "url":
        return f"({value} is not distinct from {literal(TAKEN_URL)})"
    return f"({value} is not true)" if column == "keep" else f"({value} is distinct from {literal(SUCCESS)})"


def rejects_value(value: object, column: str) -> bool:
    """Return the same of one value, as Arrow and DuckDB give it to Python."""
    if column == "url":
        return value == TAKEN_URL
    return value is not True if column == "keep" else value != SUCCESS
