"""The base of all sections of the card: an entry, and the available tables."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from catalog.inputs import Inputs
from catalog.rejection import REJECTING, rejects_sql

TEXT_LIMIT: Final = 400
"""Maximum characters of a caption, URL or evidence on the card: one may be megabytes long."""


FAILED: Final = rejects_sql("status")
REJECTED: Final = rejects_sql("keep")
"""SQL conditions over a row of `images` and of `decisions`."""


@dataclass(frozen=True)
class Entry:
    """One row of the card, without its position: its section, its content, and the sample of its picture."""

    section: str
    content: dict[str, Any]
    sample_id: int | None = None


class ReportTables:
    """The tables of a card. Any of them may be missing; the sections check which are available.

    `gone` is SQL for the sample_ids that failed to download, that a stage rejected or that were taken down (ids may
    repeat), `taken` for those that were taken down (if source has a url), `base` the table with a row for every sample.
    """

    def __init__(self, inputs: Inputs, stages: Sequence[str] = ()) -> None:
        """`stages`: the names of the stages that ran, in order."""
        self._inputs = inputs
        self._place = {stage: at for at, stage in enumerate(stages)}
        self.base = next((name for name in ("source", "images") if name in inputs), "")
        rejected = {
            table: f"select sample_id from {table} where {rejects_sql(column)}" for table, column in REJECTING.items()
        }
        self.taken = rejected["source"]
        self.gone = " union all ".join(q for table, q in rejected.items() if self.has(table, REJECTING[table]))
        self.gone = self.gone or "select null::bigint as sample_id where false"

    def has(self, table: str, *columns: str) -> bool:
        """Return whether a table with these columns exists."""
        return table in self._inputs and all(column in self._inputs.schema(table).names for column in columns)

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Run a query with a small result."""
        rows: list[dict[str, Any]] = self._inputs.sql(query).to_pylist()
        return rows

    def in_order(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return rows that have a `stage`, in the order in which the stages ran; stages whose place is not known come
        last, as they were given."""
        return sorted(rows, key=lambda row: self._place.get(row["stage"], len(self._place)))

    def number(self, query: str) -> int:
        """Run a query with one number as result; null counts as 0."""
        (row,) = self.rows(query)
        (value,) = row.values()
        return int(value or 0)

    def captions(self, sample_ids: Iterable[int]) -> dict[int, str]:
        """Return the captions of some samples, truncated for the card, without samples that have none."""
        if not self.has("source", "caption"):
            return {}
        query = f"""select sample_id, left(caption, {TEXT_LIMIT}) as caption from source
            where caption is not null and sample_id in ({id_list(sample_ids)})"""
        return {row["sample_id"]: row["caption"] for row in self.rows(query)}


def id_list(sample_ids: Iterable[int]) -> str:
    """Return integers for an SQL `in (...)`; null if there are none, which matches nothing."""
    return ", ".join(str(int(sample_id)) for sample_id in sample_ids) or "null"


def drawn(seed: int) -> str:
    """Return SQL that orders samples randomly, with the same order for the same seed on every machine.

    MD5 and not DuckDB's `hash`, which may change with its version.
    """
    return f"md5(sample_id::varchar || ':{int(seed)}'), sample_id"


def cut(text: str | None, limit: int = TEXT_LIMIT) -> str | None:
    """Return `text`, or its first `limit` characters."""
    return None if text is None else text[:limit]


def by_position(entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
    """Return each entry with its position: 0, 1, ... within its section, in the order given."""
    seen: dict[str, int] = {}
    placed = []
    for entry in entries:
        position = seen.get(entry.section, 0)
        seen[entry.section] = position + 1
        placed.append((position, entry))
    return placed
