"""Count the rows of a version that failed, by reason: for the last lines of a build, and for guards."""

from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from catalog.dataset import Dataset
from catalog.duck import literal
from catalog.parts import PartFile
from catalog.rejection import rejects_sql
from catalog.version import Version
from catalog.wording import amount

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

IMAGES: Final = "images"
"""The table that records for each row whether its image could be fetched."""
UNKNOWN: Final = "unknown"
"""The reason under which failures without one are counted."""
_NAMED: Final = 3
"""How many reasons a line names: the most frequent ones."""


@dataclass(frozen=True)
class FailedRows:
    """How many rows there are, and how many of them failed, by reason."""

    of: int
    """All rows, failed or not."""
    reasons: Mapping[str, int]
    """Reason -> rows, the most frequent first, equally frequent ones alphabetically."""

    @property
    def rows(self) -> int:
        """How many rows failed."""
        return sum(self.reasons.values())

    def describe(self) -> dict[str, Any]:
        """Return it in a form that JSON can hold."""
        return {"rows": self.rows, "of": self.of, "reasons": dict(self.reasons)}

    def line(self, command: str) -> str:
        """Return one line: how many rows failed, the most frequent reasons, and the command that shows all of them."""
        if not self.rows:
            return f"0 of {amount(self.of, 'row')} failed"
        named = [f"{rows:,} {reason}" for reason, rows in list(self.reasons.items())[:_NAMED]]
        if (more := len(self.reasons) - _NAMED) > 0:
            others = sum(list(self.reasons.values())[_NAMED:])
            named.append(f"{others:,} for {more:,} other reason{'s' if more > 1 else ''}")
        return f"{self.rows:,} of {amount(self.of, 'row')} failed: {', '.join(named)}; `{command}` shows them"


def failed_rows(dataset: Dataset, version: Version) -> FailedRows | None:
    """Return how many rows of a version failed; None if it has no table `images`."""
    return count_failed(dataset, dataset.files(version, IMAGES)) if IMAGES in version.tables else None


def count_failed(dataset: Dataset, images: Iterable[PartFile]) -> FailedRows:
    """Count the rows of parts of `images`, and those that failed, by reason."""
    query = f"""select coalesce(reason, '{UNKNOWN}') as reason, count(*) as n from {parts(dataset, images)}
        where {rejects_sql("status")} group by 1 order by 2 desc, 1"""
    with connected(dataset) as connection:
        found: list[tuple[str, int]] = connection.execute(query).fetchall()
    return FailedRows(sum(part.rows for part in images), dict(found))


@contextmanager
def connected(dataset: Dataset) -> "Iterator[duckdb.DuckDBPyConnection]":
    """Provide a DuckDB connection that can read the dataset's files, and spills what does not fit into memory."""
    from catalog.database import open_connection

    with open_connection(dataset.catalog) as connection:
        yield connection


def parts(dataset: Dataset, files: Iterable[PartFile], columns: str = "sample_id, status, reason") -> str:
    """Return SQL for some columns of the rows of some parts; without parts, it selects no row."""
    names = ", ".join(literal(f"{dataset.storage.uri}/{file.path}") for file in files)
    if not names:
        return "(select " + ", ".join(f"null as {name}" for name in columns.split(", ")) + " where false)"
    return f"(select {columns} from read_parquet([{names}]))"
