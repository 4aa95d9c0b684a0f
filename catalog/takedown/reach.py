"""The reach of a take-down: the named rows, their copies, and the rows of other datasets that derive from them.

A row is named by its sample_id, its URL (requested or final), or the SHA-256 of the received bytes. From the named rows
the search continues until it finds no new row:

- to rows with the same URL (the same text for rows without a URL): nothing of that name is ever downloaded again;
- to copies, according to the chosen rule, each of which includes the previous one:

    none         no others
    bytes        rows with the same received bytes
    pixels       rows that show the same pixels
    duplicates   rows that a stage of any version rejected in favour of such a row (their representative)

- along the edges (`catalog.edges`) of every dataset of the catalog: from a row to all rows derived from it, and from a
  copy to its original.

The search reads all parts, published or not, one column at a time, and only for names that it has not searched yet.
Rows that were taken down before are not found again. Changes nothing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import edges
from catalog.dataset import Catalog, Dataset
from catalog.errors import UserError
from catalog.lookup import rows_of
from catalog.schema import EDGES, TAKEN_URL
from catalog.storage import Storage
from catalog.takedown.ledger import REASON, Ledger

CHOICES: Final = ("none", "bytes", "pixels", "duplicates")
"""Which copies are included; each choice includes the previous one."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAMED: Final = {
    "source": ("url", "caption", "row_detail"),
    "images": ("final_url", "sha256", "pixels_sha256", "reason"),
}
_LOOKED: Final = (
    ("urls", "source", "url"),
    ("urls", "images", "final_url"),
    ("texts", "source", "caption"),
    ("texts", "source", "row_detail"),  # the only content of a broken record
    ("sha256", "images", "sha256"),
    ("pixels", "images", "pixels_sha256"),
)
"""Kind of name -> the columns that hold it."""


@dataclass(frozen=True)
class Names:
    """Rows, by any of their names."""

    urls: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()
    """SHA-256 of the received bytes, hex."""
    sample_ids: frozenset[int] = frozenset()
    pixels: frozenset[str] = frozenset()
    """SHA-256 of the pixels, hex."""
    texts: frozenset[str] = frozenset()
    """Captions of rows without a URL."""

    @classmethod
    def of(cls, words: Iterable[str]) -> Self:
        """Return the names in a list of words: 64 hex digits are a digest, a number is a sample_id, the rest are URLs.

        Raises UserError if a number is too large for a sample_id.
        """
        stripped = {word.strip() for word in words} - {""}
        digests = {w for w in stripped if _SHA256.fullmatch(w.lower())}
        numbers = {w for w in stripped - digests if w.isdecimal()}
        if large := next((w for w in sorted(numbers) if len(w.lstrip("0")) > 19 or int(w) >= 1 << 63), None):
            raise UserError(f"{large[:30]!r} is not a sample_id: it is too large")
        lower = frozenset(w.lower() for w in digests)
        return cls(frozenset(stripped - digests - numbers), lower, frozenset(map(int, numbers)))

    def joined(self, other: "Names") -> "Names":
        """Return the union of the names."""
        return Names(*(getattr(self, f.name) | getattr(other, f.name) for f in fields(self)))

    def without(self, other: "Names") -> "Names":
        """Return the names that `other` lacks."""
        return Names(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __len__(self) -> int:
        return sum(len(getattr(self, f.name)) for f in fields(self))


@dataclass(frozen=True)
class Reach:
    """The rows that a take-down erases in every dataset, and the names that it records."""

    sample_ids: Mapping[str, np.ndarray]
    """Dataset -> sample_ids, int64 (n,), ascending; the named dataset first, others only if they have such rows."""
    names: Names
    """The names that must not come back in any of these datasets; no sample_ids."""
    unknown: Names
    """Given names that no row has."""
    copies: int
    """The number of rows of the named dataset that were not named, but found from a named one."""
    choices: Mapping[str, Mapping[str, int]]
    """Choice -> dataset -> the number of rows that it would erase."""


def reach(dataset: Dataset, given: Names, copies: str = "bytes") -> Reach:
    """Find the rows of a dataset that have one of these names, and all rows that they lead to."""
    if copies not in CHOICES:
        raise ValueError(f"copies is {copies!r}, expected one of {', '.join(CHOICES)}")
    search = _Search(dataset, given)
    found: dict[str, tuple[dict[str, np.ndarray], Names]] = {}
    for choice in CHOICES:
        search.widen(choice)
        found[choice] = search.rows(), search.remembered()
    rows, names = found[copies]
    root = rows[dataset.name]
    counts = {choice: {name: len(ids) for name, ids in of.items()} for choice, (of, _) in found.items()}
    unknown = given.without(search.met_of(found[copies][0]))
    return Reach(rows, names, unknown, max(len(root) - search.named, 0), counts)


class _Search:
    """The search; `widen` continues it with a wider choice of copies."""

    def __init__(self, dataset: Dataset, given: Names) -> None:
        self.named = 0
        """Rows of the dataset that have a given name."""
        self._given = given
        self._known = Names()
        self._choice = CHOICES[0]
        self._root = dataset.name
        catalog = dataset.catalog
        self._places = {place.name: place for place in _related(catalog, dataset)}
        self._places[self._root].queued |= given.sample_ids

    def widen(self, choice: str) -> None:
        """Extend the search to all rows that a choice includes."""
        self._choice = choice
        first = not self.named and choice == CHOICES[0]
        while sum(map(self._step, self._places.values())):  # each of them, every time
            if first:
                self.named, first = len(self._places[self._root].ids), False

    def rows(self) -> dict[str, np.ndarray]:
        """Return the rows found so far, the named dataset first."""
        met = {name: np.array(sorted(place.ids), np.int64) for name, place in self._places.items()}
        return {name: ids for name, ids in met.items() if len(ids) or name == self._root}

    def remembered(self) -> Names:
        """Return the names that must not come back: the given ones, and those that the search looks for."""
        urls, sha256, pixels, texts = map(self._wanted, ("urls", "sha256", "pixels", "texts"))
        return Names(urls, sha256, frozenset(), pixels, texts)

    def met_of(self, rows: Mapping[str, np.ndarray]) -> Names:
        """Return every name of the rows found."""
        return Names(self._known.urls, self._known.sha256, frozenset(rows[self._root].tolist()), self._known.pixels)

    def _step(self, place: "_Place") -> bool:
        """Search one dataset for the names that it was not searched for yet; return whether a row was found."""
        ids = place.look({kind: self._wanted(kind) for kind, _, _ in _LOOKED})
        if self._choice == "duplicates":
            ids |= place.rejected_for()
        fresh, names = place.take(ids)
        if not fresh:
            return False
        self._known = self._known.joined(names)
        for other in self._places.values():
            other.queued |= other.made_of(place.name, fresh)
        for name, parents in place.copied_from(fresh):
            if name in self._places:
                self._places[name].queued |= parents
        return True

    def _wanted(self, kind: str) -> frozenset[str]:
        """Return the names of a kind to search for, under the current choice."""
        given: frozenset[str] = getattr(self._given, kind)
        found: frozenset[str] = getattr(self._known, kind)
        least = {"sha256": "bytes", "pixels": "pixels"}.get(kind, CHOICES[0])
        return given | found if CHOICES.index(self._choice) >= CHOICES.index(least) else given


@dataclass
class _Place:
    """The state of the search in one dataset."""

    dataset: Dataset
    edges: pa.Table
    ids: set[int] = field(default_factory=set)
    queued: set[int] = field(default_factory=set)
    """Rows found through other datasets, to be examined."""
    _looked: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    _stood_for: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.dataset.name

    def look(self, wanted: Mapping[str, frozenset[str]]) -> set[int]:
        """Return the rows that have a name which was not searched for before, and the queued rows."""
        found, self.queued = self.queued, set()
        for kind, table, column in _LOOKED:
            fresh = wanted[kind] - self._looked.get((table, column), frozenset())
            self._looked[table, column] = wanted[kind]
            if fresh:
                also = ("url",) if kind == "texts" else ()
                values = pa.array(sorted(fresh), pa.string())
                found |= self._holding(table, column, values, also)
        return found

    def rejected_for(self) -> set[int]:
        """Return the rows that were rejected in favour of a row found since the last call."""
        fresh = self.ids - self._stood_for
        self._stood_for |= fresh
        if not fresh:
            return set()
        return self._holding("decisions", "representative", pa.array(sorted(fresh), pa.int64()))

    def take(self, ids: set[int]) -> tuple[set[int], Names]:
        """Add the rows that exist and are new; return them and their names."""
        fresh = np.array(sorted(ids - self.ids), np.int64)
        if not len(fresh):
            return set(), Names()
        source, images = (_not_taken(table, self._names_of(table, fresh)) for table in _NAMED)
        live = set((source if self._parts("source") else images).column("sample_id").to_pylist())
        self.ids |= live
        images = images.filter(pc.is_in(images.column("sample_id"), pa.array(sorted(live), pa.int64())))
        urls = _values(source, "url") | _values(images, "final_url")
        nameless = _without_url(source)
        texts = _values(nameless, "caption") | _values(nameless, "row_detail")
        return live, Names(urls, _values(images, "sha256"), frozenset(), _values(images, "pixels_sha256"), texts)

    def _names_of(self, table: str, sample_ids: np.ndarray) -> pa.Table:
        """Return the columns of names of some rows of a table."""
        paths = self._parts(table)
        if not paths:
            return pa.table({"sample_id": pa.array([], pa.int64())})
        return rows_of(self.dataset.storage, paths, sample_ids, self._there(table))

    def made_of(self, name: str, ids: set[int]) -> set[int]:
        """Return the rows of this dataset that derive from rows of another."""
        mine = pc.is_in(self.edges.column("parent"), pa.array(sorted(ids), pa.int64()))
        rows = self.edges.filter(pc.and_(mine, pc.equal(self.edges.column("parent_dataset"), name)))
        return set(rows.column("child").to_pylist())

    def copied_from(self, ids: set[int]) -> Iterator[tuple[str, set[int]]]:
        """Yield (dataset, its rows) of the originals of copied rows."""
        mine = pc.is_in(self.edges.column("child"), pa.array(sorted(ids), pa.int64()))
        rows = self.edges.filter(pc.and_(mine, pc.equal(self.edges.column("role"), edges.COPY)))
        for name in pc.unique(rows.column("parent_dataset")).to_pylist():
            yield name, set(rows.filter(pc.equal(rows.column("parent_dataset"), name)).column("parent").to_pylist())

    def _holding(self, table: str, column: str, values: pa.Array, also: Sequence[str] = ()) -> set[int]:
        """Return the rows of a table that have one of some values; with `also` url, only rows without a URL."""
        found: set[int] = set()
        for path in self._parts(table):
            for rows in groups(self.dataset.storage, path, ("sample_id", column, *also)):
                if column in rows.column_names:
                    rows = rows.filter(pc.is_in(rows.column(column), values, skip_nulls=True))
                    rows = _without_url(rows) if also else rows
                    found |= set(rows.column("sample_id").to_pylist())
        return found

    def _parts(self, table: str) -> list[str]:
        return parts_of(self.dataset, table)

    def _there(self, table: str) -> list[str]:
        names: set[str] = set()
        for path in self._parts(table):
            names |= set(columns_of(self.dataset.storage, path))
        return [name for name in _NAMED[table] if name in names]


def listed_rows(dataset: Dataset, ledger: Ledger) -> np.ndarray:
    """Return the existing rows, int64 (n,) ascending, whose names a ledger lists.

    There are none, except after a kill between the order of a take-down and the ledgers of the datasets it reaches."""
    found: set[int] = set()
    digest_of = {"urls": ledger.url, "texts": ledger.text, "sha256": ledger.content, "pixels": ledger.picture}
    for kind, table, column in _LOOKED:
        listed = ledger.listed("contents" if kind == "sha256" else kind)
        for path in parts_of(dataset, table) if listed else ():
            for rows in groups(dataset.storage, path, ("sample_id", column, "url")):
                if column in rows.column_names:
                    rows = _without_url(rows) if kind == "texts" else rows
                    values = pc.unique(rows.column(column)).drop_null().to_pylist()
                    hit = pa.array([value for value in values if digest_of[kind](value) in listed], pa.string())
                    found |= set(rows.filter(pc.is_in(rows.column(column), hit)).column("sample_id").to_pylist())
    return np.array(sorted(found), np.int64)


def _related(catalog: Catalog, dataset: Dataset) -> Iterator[_Place]:
    """Yield a dataset, then all datasets that are connected with it by edges, directly or not."""
    all_edges = {name: edges.edges_of(catalog.dataset(name)) for name in catalog.datasets()}
    parents: dict[str, set[str]] = {}
    originals: dict[str, set[str]] = {}
    for name, rows in all_edges.items():
        parents[name] = set(pc.unique(rows.column("parent_dataset")).to_pylist())
        copied = rows.filter(pc.equal(rows.column("role"), edges.COPY))
        originals[name] = set(pc.unique(copied.column("parent_dataset")).to_pylist())
    reached, queue = {dataset.name: dataset}, [dataset.name]
    while queue:
        name = queue.pop()
        near = {child for child, of in parents.items() if name in of} | (originals.get(name, set()) & set(all_edges))
        for other in sorted(near - set(reached)):
            reached[other] = catalog.dataset(other)
            queue.append(other)
    for name, found in reached.items():
        yield _Place(found, all_edges.get(name, EDGES.empty_table()))


def _not_taken(table: str, rows: pa.Table) -> pa.Table:
    """Return rows of `source` or `images` without those that were taken down before."""
    column, word = ("url", TAKEN_URL) if table == "source" else ("reason", REASON)
    if column not in rows.column_names:
        return rows
    return rows.filter(pc.fill_null(pc.not_equal(rows.column(column), word), True))


def _without_url(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.is_null(rows.column("url"))) if "url" in rows.column_names else rows


def _values(rows: pa.Table, column: str) -> frozenset[Any]:
    return frozenset(rows.column(column).drop_null().to_pylist()) if column in rows.column_names else frozenset()


def parts_of(dataset: Dataset, table: str) -> list[str]:
    """Return every finished part of a table, published or not."""
    return [f"{table}/{fingerprint}.parquet" for fingerprint in sorted(dataset.finished(table))]


def columns_of(storage: Storage, path: str) -> list[str]:
    """Return the names of the columns of a part."""
    with opened(storage, path) as file:
        return list(file.schema_arrow.names)


def groups(storage: Storage, path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield those of some columns that a part has, one row group at a time."""
    with opened(storage, path) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, names, use_threads=False)


def opened(storage: Storage, path: str) -> pq.ParquetFile:
    """Open a part; use the result as a context manager."""
    local = storage.local(path)
    return pq.ParquetFile(local or storage.filesystem().open_input_file(path))
