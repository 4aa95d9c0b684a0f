"""What a takedown reaches: the rows that are meant, their copies, and the rows of other datasets that came of them.

Rows are meant by a name that they have: sample_id, URL (asked for, or led to), SHA-256 of the received bytes. From them
the search goes on until nothing new is met

- to rows with the same URL (the same text, where rows have no URL): nothing of that name is ever fetched again;
- to copies, as far as was asked for, each choice with all that the one before takes:

    none         no others
    bytes        rows with the same received bytes
    pixels       rows that show the same pixels
    duplicates   rows that some stage of any version rejected, for which such a row stands

- along the edges (`catalog.edges`) of every dataset of the catalog: from a row to all that were made of it, and from a
  copy to the row that it was copied from.

It looks at parts of any version or none, a column at a time, and only for names that it has not looked for yet. Rows
that were taken down before are no longer met. Changes nothing.
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
"""Which copies are taken too: each takes what the one before does, and more."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAMED: Final = {
    "source": ("url", "caption", "row_detail"),
    "images": ("final_url", "sha256", "pixels_sha256", "reason"),
}
_LOOKED: Final = (
    ("urls", "source", "url"),
    ("urls", "images", "final_url"),
    ("texts", "source", "caption"),
    ("texts", "source", "row_detail"),  # of a record that is broken: all that it has
    ("sha256", "images", "sha256"),
    ("pixels", "images", "pixels_sha256"),
)
"""Kind of name, and where it is looked for."""


@dataclass(frozen=True)
class Names:
    """Rows, by any of their names."""

    urls: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()
    """Of the bytes as they were received, hex."""
    sample_ids: frozenset[int] = frozenset()
    pixels: frozenset[str] = frozenset()
    """SHA-256 of what the picture shows, hex."""
    texts: frozenset[str] = frozenset()
    """Captions of rows that have no URL."""

    @classmethod
    def of(cls, words: Iterable[str]) -> Self:
        """Return what words name: 64 hex digits are a digest, a number is a sample_id, anything else is a URL.

        Raises UserError where a number is too large for a sample_id.
        """
        stripped = {word.strip() for word in words} - {""}
        digests = {w for w in stripped if _SHA256.fullmatch(w.lower())}
        numbers = {w for w in stripped - digests if w.isdecimal()}
        if large := next((w for w in sorted(numbers) if len(w.lstrip("0")) > 19 or int(w) >= 1 << 63), None):
            raise UserError(f"{large[:30]!r} is no sample_id: it is too large")
        lower = frozenset(w.lower() for w in digests)
        return cls(frozenset(stripped - digests - numbers), lower, frozenset(map(int, numbers)))

    def joined(self, other: "Names") -> "Names":
        """Return all names of both."""
        return Names(*(getattr(self, f.name) | getattr(other, f.name) for f in fields(self)))

    def without(self, other: "Names") -> "Names":
        """Return the names that `other` has not."""
        return Names(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def __len__(self) -> int:
        return sum(len(getattr(self, f.name)) for f in fields(self))


@dataclass(frozen=True)
class Reach:
    """The rows that a takedown is to erase, in every dataset, and what it is to remember."""

    sample_ids: Mapping[str, np.ndarray]
    """Dataset -> int64 (n,), ascending; the dataset that was named first, others only where rows are reached."""
    names: Names
    """What must not come back, in any of these datasets; no sample_ids."""
    unknown: Names
    """What was given and no row has."""
    copies: int
    """Rows of the named dataset that were not given, but met from one that was."""
    choices: Mapping[str, Mapping[str, int]]
    """Each of CHOICES -> dataset -> rows that it would erase."""


def reach(dataset: Dataset, given: Names, copies: str = "bytes") -> Reach:
    """Search for the rows of a dataset that have one of these names, and for all that goes with them."""
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
    """The search, which goes on from what it has when it is widened."""

    def __init__(self, dataset: Dataset, given: Names) -> None:
        self.named = 0
        """Rows of the dataset that have a name that was given."""
        self._given = given
        self._known = Names()
        self._choice = CHOICES[0]
        self._root = dataset.name
        catalog = dataset.catalog
        self._places = {place.name: place for place in _related(catalog, dataset)}
        self._places[self._root].queued |= given.sample_ids

    def widen(self, choice: str) -> None:
        """Search for all that a choice takes."""
        self._choice = choice
        first = not self.named and choice == CHOICES[0]
        while sum(map(self._step, self._places.values())):  # each of them, every time
            if first:
                self.named, first = len(self._places[self._root].ids), False

    def rows(self) -> dict[str, np.ndarray]:
        """Return what was met so far, the named dataset first."""
        met = {name: np.array(sorted(place.ids), np.int64) for name, place in self._places.items()}
        return {name: ids for name, ids in met.items() if len(ids) or name == self._root}

    def remembered(self) -> Names:
        """Return the names that must not come back: those that were given, and those that are looked for."""
        urls, sha256, pixels, texts = map(self._wanted, ("urls", "sha256", "pixels", "texts"))
        return Names(urls, sha256, frozenset(), pixels, texts)

    def met_of(self, rows: Mapping[str, np.ndarray]) -> Names:
        """Return every name of the rows that were met."""
        return Names(self._known.urls, self._known.sha256, frozenset(rows[self._root].tolist()), self._known.pixels)

    def _step(self, place: "_Place") -> bool:
        """Look for what one dataset was not searched for yet; say whether a new row was met."""
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
        """Return the names of a kind that rows are looked for by, under the choice so far."""
        given: frozenset[str] = getattr(self._given, kind)
        found: frozenset[str] = getattr(self._known, kind)
        least = {"sha256": "bytes", "pixels": "pixels"}.get(kind, CHOICES[0])
        return given | found if CHOICES.index(self._choice) >= CHOICES.index(least) else given


@dataclass
class _Place:
    """One dataset that is searched."""

    dataset: Dataset
    edges: pa.Table
    ids: set[int] = field(default_factory=set)
    queued: set[int] = field(default_factory=set)
    """Rows that were met from elsewhere, to be looked at."""
    _looked: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    _stood_for: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.dataset.name

    def look(self, wanted: Mapping[str, frozenset[str]]) -> set[int]:
        """Return the rows that have one of the names, as far as they were not looked for before, and the queued."""
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
        """Return the rows that were rejected for one that was met, as far as this was not asked before."""
        fresh = self.ids - self._stood_for
        self._stood_for |= fresh
        if not fresh:
            return set()
        return self._holding("decisions", "representative", pa.array(sorted(fresh), pa.int64()))

    def take(self, ids: set[int]) -> tuple[set[int], Names]:
        """Keep those rows that are there and are new; return them, and their names."""
        fresh = np.array(sorted(ids - self.ids), np.int64)
        if not len(fresh):
            return set(), Names()
        source, images = (_not_taken(table, self._told(table, fresh)) for table in _NAMED)
        live = set((source if self._parts("source") else images).column("sample_id").to_pylist())
        self.ids |= live
        images = images.filter(pc.is_in(images.column("sample_id"), pa.array(sorted(live), pa.int64())))
        urls = _values(source, "url") | _values(images, "final_url")
        nameless = _without_url(source)
        texts = _values(nameless, "caption") | _values(nameless, "row_detail")
        return live, Names(urls, _values(images, "sha256"), frozenset(), _values(images, "pixels_sha256"), texts)

    def _told(self, table: str, sample_ids: np.ndarray) -> pa.Table:
        """Return what a table says of some rows, of the columns that hold names."""
        paths = self._parts(table)
        if not paths:
            return pa.table({"sample_id": pa.array([], pa.int64())})
        return rows_of(self.dataset.storage, paths, sample_ids, self._there(table))

    def made_of(self, name: str, ids: set[int]) -> set[int]:
        """Return the rows here that were made of rows of a dataset."""
        mine = pc.is_in(self.edges.column("parent"), pa.array(sorted(ids), pa.int64()))
        rows = self.edges.filter(pc.and_(mine, pc.equal(self.edges.column("parent_dataset"), name)))
        return set(rows.column("child").to_pylist())

    def copied_from(self, ids: set[int]) -> Iterator[tuple[str, set[int]]]:
        """Yield (dataset, rows of it) that rows here are copies of."""
        mine = pc.is_in(self.edges.column("child"), pa.array(sorted(ids), pa.int64()))
        rows = self.edges.filter(pc.and_(mine, pc.equal(self.edges.column("role"), edges.COPY)))
        for name in pc.unique(rows.column("parent_dataset")).to_pylist():
            yield name, set(rows.filter(pc.equal(rows.column("parent_dataset"), name)).column("parent").to_pylist())

    def _holding(self, table: str, column: str, values: pa.Array, also: Sequence[str] = ()) -> set[int]:
        """Return the rows of a table that have one of some values; with `also` url, of those that have none."""
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
    """Return the rows, int64 (n,) ascending, whose names a ledger lists and that are still there: none, but after a
    kill between the order of a takedown and the ledgers of the datasets that it reaches."""
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
    """Yield a dataset, then those that its rows went to, or were copied from, over any number of datasets."""
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
    """Return rows of source or images without those that were taken down before."""
    column, word = ("url", TAKEN_URL) if table == "source" else ("reason", REASON)
    if column not in rows.column_names:
        return rows
    return rows.filter(pc.fill_null(pc.not_equal(rows.column(column), word), True))


def _without_url(rows: pa.Table) -> pa.Table:
    return rows.filter(pc.is_null(rows.column("url"))) if "url" in rows.column_names else rows


def _values(rows: pa.Table, column: str) -> frozenset[Any]:
    return frozenset(rows.column(column).drop_null().to_pylist()) if column in rows.column_names else frozenset()


def parts_of(dataset: Dataset, table: str) -> list[str]:
    """Return every finished part of a table, of any version or none."""
    return [f"{table}/{fingerprint}.parquet" for fingerprint in sorted(dataset.finished(table))]


def columns_of(storage: Storage, path: str) -> list[str]:
    """Return the names of the columns of a part."""
    with opened(storage, path) as file:
        return list(file.schema_arrow.names)


def groups(storage: Storage, path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns of a part, those that it has, a row group at a time."""
    with opened(storage, path) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, names, use_threads=False)


def opened(storage: Storage, path: str) -> pq.ParquetFile:
    """Return a part, open; use it as a context manager."""
    local = storage.local(path)
    return pq.ParquetFile(local or storage.filesystem().open_input_file(path))
