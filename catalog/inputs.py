"""Reading the input of a stage: several tables, joined by `sample_id`, without the rows that are out.

Rejected rows are found once, as a sorted array of ids, and left out of everything that `batches`, `table`,
`vectors` and `images` give. Memory is bounded by one part (`batches`), or by what is asked for (`table`, `sql`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


class Inputs:
    """The tables that one stage reads. Made by the engine from parts, and by tests from Arrow tables.

    Raises NotFoundError where a table or column is asked for that is not there.
    """

    @classmethod
    def of(cls, alive_only: bool = True, **tables: pa.Table) -> "Inputs":
        """Return inputs over tables in memory. An `images` table may carry the bytes in a column `image`."""
        raise NotImplementedError

    def __contains__(self, table: str) -> bool:
        raise NotImplementedError

    def schema(self, table: str) -> pa.Schema:
        """Return the schema of one table."""
        raise NotImplementedError

    def rows(self) -> int:
        """Return how many rows are alive."""
        raise NotImplementedError

    def ids(self) -> np.ndarray:
        """Return the sample_ids of the alive rows: int64 (n,), ascending."""
        raise NotImplementedError

    def batches(self, columns: Mapping[str, Sequence[str]], rows: int = 65536) -> Iterator[pa.Table]:
        """Yield alive rows in `sample_id` order: sample_id and the named columns of each table, joined.

        Columns keep the names they have; `{"images": ["image"]}` reads the encoded bytes from the shards.
        """
        raise NotImplementedError

    def table(self, columns: Mapping[str, Sequence[str]]) -> pa.Table:
        """Return all alive rows, joined, in memory, in `sample_id` order."""
        raise NotImplementedError

    def whole(self, table: str) -> pa.Table:
        """Return one table as it is, rejected rows and all (for sides: centroids, models)."""
        raise NotImplementedError

    def vectors(self, table: str, column: str, rows: int = 65536) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (sample_id int64 (n,), vectors float16 (n, d)) of alive rows in order; rows without one are skipped."""
        raise NotImplementedError

    def images(self, sample_ids: Sequence[int]) -> dict[int, bytes]:
        """Return the encoded bytes of some images, one range read each (for pictures in a report)."""
        raise NotImplementedError

    def sql(self, query: str, **views: Any) -> pa.Table:
        """Run a query. Views: one a table (all rows), and `alive` (one column sample_id)."""
        raise NotImplementedError
