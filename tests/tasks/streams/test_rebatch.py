"""Rows are split at fixed positions, however they arrive."""

import numpy as np
import pyarrow as pa
import pytest

from tasks.streams.rebatch import rebatch


@pytest.mark.parametrize("sizes", [(), (0,), (10,), (3, 0, 7), (1,) * 10])
def test_every_row_is_kept_in_order(sizes: tuple[int, ...]) -> None:
    starts = np.cumsum((0, *sizes))
    batches = [
        pa.table({"x": pa.array(range(start, start + size), pa.int64())})
        for start, size in zip(starts, sizes, strict=False)
    ]
    pieces = [piece["x"].to_pylist() for piece in rebatch(iter(batches), 4)]
    total = sum(sizes)
    assert [x for piece in pieces for x in piece] == list(range(total))
    assert all(len(piece) == 4 for piece in pieces[:-1])
