"""Building rows of the table `decisions`: what a stage decided about samples, and why, as a sentence and as numbers."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from catalog.schema import DECISIONS

Numbers = Mapping[str, np.ndarray | float]
"""Name -> a number for each of n rows, or one for all of them; NaN for a row that has none."""
_NONE: Final[Numbers] = {}


def decisions(
    sample_ids: Any,
    stage: str,
    reason: pa.Array | pa.ChunkedArray,
    evidence: pa.Array | pa.ChunkedArray,
    numbers: Numbers = _NONE,
    representative: pa.Array | None = None,
    similarity: pa.Array | None = None,
) -> pa.Table:
    """Return n rows of `decisions`: the samples without a reason are kept, the others rejected.

    `sample_ids`: int64 (n,); `reason` and `evidence`: string (n,). `numbers` are those that the evidence mentions.
    `representative`, int64 (n,), and `similarity`, float32 (n,), are for duplicates, and null by default.
    """
    rows = len(sample_ids)
    columns = {
        "sample_id": sample_ids if isinstance(sample_ids, pa.ChunkedArray) else pa.array(sample_ids, pa.int64()),
        "stage": pa.repeat(stage, rows),
        "keep": reason.is_null(),
        "reason": reason,
        "evidence": evidence,
        "representative": pa.nulls(rows, pa.int64()) if representative is None else representative,
        "similarity": pa.nulls(rows, pa.float32()) if similarity is None else similarity,
        "numbers": number_maps(numbers, rows),
    }
    return pa.table(columns, schema=DECISIONS)


def number_maps(numbers: Numbers, rows: int) -> pa.Array:
    """Return the numbers of each row as a map from their names, in the order of `numbers`: map<string, double> (n,).

    A number that is NaN is omitted; a row without any number is null.
    """
    if not numbers or not rows:
        return pa.nulls(rows, DECISIONS.field("numbers").type)
    values = np.empty((rows, len(numbers)))
    for at, column in enumerate(numbers.values()):
        values[:, at] = column
    there = ~np.isnan(values)
    counts = there.sum(axis=1)
    offsets = np.zeros(rows + 1, np.int32)
    np.cumsum(counts, out=offsets[1:])
    names = pa.array(list(numbers), pa.string()).take(pa.array(np.nonzero(there)[1]))
    return pa.MapArray.from_arrays(pa.array(offsets), names, pa.array(values[there]), mask=pa.array(counts == 0))
