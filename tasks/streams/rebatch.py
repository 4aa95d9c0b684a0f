"""Cutting a part's rows at fixed places: results must not depend on how batches arrive."""

from collections.abc import Iterator

import pyarrow as pa


def recut(batches: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly `rows`, counted from the first one, and the rest."""
    held: list[pa.Table] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows)
            held = [joined.slice(rows)]
            count -= rows
    if count:
        yield pa.concat_tables(held)
