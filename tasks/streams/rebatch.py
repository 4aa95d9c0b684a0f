"""Split a part's rows at fixed positions: results must not depend on how batches arrive."""

from collections.abc import Iterator

import pyarrow as pa


def rebatch(batches: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows in tables of exactly `rows` rows; the last one may be smaller."""
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
