"""`parquet`: Parquet files, such as the metadata of LAION, DataComp, COYO and img2dataset."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.errors import UserError, first_line
from tasks.sources._base import PIECE_ROWS
from tasks.sources._columns import Layout, fold
from tasks.sources._files import FileKind, open_random
from tasks.sources._tabular import FileFacts, Tabular


class Parquet(Tabular):
    """Parquet files. Counting reads footers only; a part decodes the row groups that it needs, in bounded pieces."""

    version: ClassVar[int] = 3
    kind: ClassVar[FileKind] = FileKind((".parquet", ".pq"))

    use: Literal["parquet"] = "parquet"

    def look(self, uri: str) -> FileFacts:
        with _opened(uri) as file:
            return FileFacts(file.metadata.num_rows, file.schema_arrow)

    def restart(self, uri: str, row: int) -> int:
        with _opened(uri) as file:
            return _group_of(file, row)[1]

    def stream(self, uri: str, row: int, layout: Layout) -> Iterator[pa.Table]:
        with _opened(uri) as file:
            group, _ = _group_of(file, row)
            groups = range(group, file.num_row_groups)
            known = {fold(name) for name in layout.names}
            names = [name for name in file.schema_arrow.names if fold(name) in known]
            for batch in file.iter_batches(PIECE_ROWS, row_groups=groups, columns=names, use_threads=False):
                yield pa.Table.from_batches([batch])


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    with open_random(uri) as raw:
        try:
            with pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{uri} is not a readable Parquet file: {first_line(error)}") from error


def _group_of(file: pq.ParquetFile, row: int) -> tuple[int, int]:
    """Return the row group that holds a row, and that group's first row."""
    first = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < first + rows:
            return group, first
        first += rows
    return file.num_row_groups, first
