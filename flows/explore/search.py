"""Search a dataset by text, by an image or by one of its samples, exactly or through its index.

The method depends on how many of the N rows are eligible. A rows are eligible: those in `samples` that match `where`.

    no index, or `exact`, or A <= 10,000, or A <= N / 100    read and compare the vectors of the A rows: exact
    A >= N / 4, or A > 2,000,000    fetch more results than requested from the index, then drop ineligible rows
    otherwise                       search the index with a selector of the A rows

A search therefore returns as many results as requested whenever that many rows are eligible; with a selector, the
index probes N / A times as many lists. Parts that the index lacks are searched exactly, and results from parts that do
not belong to the version are dropped. DuckDB runs only if there is a `where`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import pyarrow as pa

from catalog import lookup
from catalog.database import connect, query
from catalog.dataset import Catalog, Dataset
from catalog.duck import Limits, identifier
from catalog.errors import QueryError, UserError
from catalog.inputs import among
from catalog.lookup import KEY
from catalog.pieces import read_parquet
from catalog.schema import role
from catalog.user_file import unreadable
from catalog.version import Version
from catalog.wording import amount
from flows.explore._rows import Rows, first
from flows.explore.stored_index import TABLE, Kept, best_device, embedding_column, kept
from tasks.encoders.encoder import encoder_of
from tasks.index.tune import RESCORED
from tasks.index.vector_index import VectorIndex

if TYPE_CHECKING:
    import duckdb

WHERE_LIMITS: Final = Limits(600, 8000, "; simplify --where")
"""Limits of the statement that selects eligible rows."""
MAX_IMAGE_BYTES: Final = 256 << 20
_MOST_FETCHED: Final = 100_000
_FIRST_FETCH: Final = 3
"""The number of near-duplicates is unknown: fetch this many times `top`, then twice as many, and so on."""


@dataclass(frozen=True)
class Thresholds:
    """The numbers of eligible rows at which the method changes. Only tests use others than the defaults."""

    exact_rows: int = 10_000
    """Up to this many eligible rows, an exact comparison is as fast as the index."""
    exact_share: float = 0.01
    """The same, as a share of all rows."""
    selected_rows: int = 2_000_000
    """Most eligible rows of a faiss selector: each costs about 50 bytes of memory, and 50 ns a query."""
    selected_share: float = 0.25
    """From this share of eligible rows on, it is cheaper to fetch too many results and drop some."""


THRESHOLDS: Final = Thresholds()


@dataclass(frozen=True)
class Query:
    """What to search for: exactly one of `text`, `image` (a path) and `like` (a sample_id)."""

    text: str | None = None
    image: str | None = None
    like: int | None = None
    column: str = ""
    top: int = 20
    where: str = ""
    exact: bool = False
    unique: float | None = None
    """Omit results whose cosine with a better result is at least this."""
    all: bool = False
    """Include rows that failed or were rejected."""

    @property
    def wanted(self) -> int:
        """Rows to fetch: one more for `like`, since the nearest row of a sample is the sample itself."""
        return self.top + (self.like is not None)

    def check(self) -> None:
        """Raise UserError if the query is invalid."""
        given = [name for name in ("text", "image", "like") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) or "none of them"
            raise UserError(f"give one of --text, --image and --like; found {found}")
        if self.text is not None and not self.text.strip():
            raise UserError("--text is empty: give the text to search for")
        if self.top < 1:
            raise UserError(f"--top is {self.top}, expected at least 1")
        if self.unique is not None and not -1 < self.unique <= 1:
            raise UserError(f"--unique is {self.unique:g}, expected a cosine: above -1, at most 1 (0.94 is usual)")


@dataclass(frozen=True)
class Hit:
    """One result. `score` is the cosine; `copies` is the number of its near-duplicates that `unique` omitted."""

    rank: int
    score: float
    sample_id: int
    url: str | None = None
    caption: str | None = None
    copies: int = 0


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    version: Version
    query: Query
    column: str
    how: str
    hits: Sequence[Hit]
    searched: int
    """Eligible rows."""

    def describe(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        asked = {name: value for name, value in asdict(self.query).items() if value not in (None, "", False)}
        return {
            "version": self.version.label,
            "query": asked | {"column": self.column},
            "how": self.how,
            "searched": self.searched,
            "hits": [asdict(hit) for hit in self.hits],
        }


def search(
    catalog: Catalog, label: str, asked: Query, device: str | None = None, thresholds: Thresholds = THRESHOLDS
) -> Found:
    """Return the nearest samples of `DATASET[@N]`, nearest first, ties by sample_id.

    Raises UserError if there are no embeddings, no such column or sample, or if the image cannot be read, and
    QueryError if `where` is not a condition over the columns of `samples`.
    """
    asked.check()
    with Searcher(catalog, label, asked.column, device, thresholds) as searcher:
        return searcher.search(asked)


class Searcher:
    """Repeated searches of one embedding column of `DATASET[@N]`.

    The encoder, the index, the list of samples and the connection are opened by the first query that needs them and
    reused until `close`. A searcher does not notice a later take-down or a new index: open another one.
    """

    def __init__(
        self,
        catalog: Catalog,
        label: str,
        column: str = "",
        device: str | None = None,
        thresholds: Thresholds = THRESHOLDS,
    ) -> None:
        self._catalog, self._device, self._thresholds = catalog, device, thresholds
        self.version = catalog.resolve(label)
        self._dataset = catalog.existing(self.version.dataset)
        self.column = embedding_column(self._dataset, self.version, column)
        self._rows = Rows(self._dataset, self.version, self.column)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection if one is open."""
        if "_connection" in vars(self):
            self._connection.close()

    def search(self, asked: Query) -> Found:
        """Return the nearest samples, as `flows.explore.search.search` does, with the same errors."""
        asked.check()
        if asked.column not in ("", self.column):
            raise UserError(f"this searcher reads the column {self.column!r}; found {asked.column!r}")
        allowed = self._allowed(asked)
        finder = _Finder(self._rows, self._index, self._vector(asked), allowed, asked.exact, self._thresholds)
        ids, scores, copies = _distinct(finder, asked) if asked.unique is not None else finder.best(asked.wanted)
        ids, scores, copies = _without(asked.like, ids, scores, copies, asked.top)
        known = self._described(ids)
        pairs = zip(ids.tolist(), scores.tolist(), copies.tolist(), strict=True)
        hits = [Hit(rank, score, i, *known.get(i, (None, None)), n) for rank, (i, score, n) in enumerate(pairs, 1)]
        searched = self._rows.rows if allowed is None else len(allowed)
        return Found(self.version, asked, self.column, finder.how, hits, searched)

    @cached_property
    def _index(self) -> "_Opened | None":
        found = kept(self._dataset, self.column)
        return _Opened(found) if found is not None else None

    @cached_property
    def _connection(self) -> "duckdb.DuckDBPyConnection":
        return connect(self._catalog, {self.version.dataset: self.version.number}, [self.version.dataset])

    @cached_property
    def _kept_ids(self) -> np.ndarray:
        parts = self._dataset.files(self.version, "samples")
        return lookup.ids_of(self._dataset.storage, [part.path for part in parts])

    @cached_property
    def _model(self) -> Any:
        return _model(self._rows, self._device)

    @cached_property
    def _source(self) -> tuple[lookup.Parts, list[str]] | None:
        """The parts of `source`, and which of the columns url and caption they have."""
        if "source" not in self.version.tables:
            return None
        schema, parts = self._dataset.contents(self.version, "source")
        shown = [name for name in ("url", "caption") if name in schema.names]
        return lookup.Parts(self._dataset.storage, [part.path for part in parts]), shown

    def _allowed(self, asked: Query) -> np.ndarray | None:
        """Return the eligible sample_ids, int64 ascending; None if all rows are eligible."""
        if not asked.where:
            return None if asked.all else self._kept_ids
        _check_condition(asked.where)
        rows = _every_row(self._dataset, self.version) if asked.all else "select * from samples"
        text = f"select {KEY} from (\n{rows}\n) as samples\nwhere (\n{asked.where}\n)"
        found = query(self._connection, text, limits=WHERE_LIMITS)
        return np.unique(np.asarray(found.column(KEY).to_numpy(), np.int64))

    def _vector(self, asked: Query) -> np.ndarray:
        """Return the query as float32 (d,), of length 1."""
        if asked.like is not None:
            return self._rows.one(asked.like)
        data = _read_image(asked.image) if asked.image is not None else None
        if data is None:
            vectors = self._model.unit_texts([asked.text])
            good = np.abs(vectors).sum(axis=1) > 0
        else:
            vectors, good = self._model.unit_images([data])
        if not good[0]:
            what = f"the image {asked.image!r}" if data is not None else f"the text {asked.text!r}"
            raise UserError(f"cannot search for {what}: it does not decode, or the encoder returns no vector for it")
        return np.asarray(vectors[0], np.float32)

    def _described(self, ids: np.ndarray) -> Mapping[int, tuple[str | None, str | None]]:
        """Return sample_id -> (url, caption)."""
        if self._source is None or not len(ids):
            return {}
        parts, shown = self._source
        rows = parts.rows(np.sort(ids), shown)
        nothing = [None] * rows.num_rows
        columns = [rows.column(name).to_pylist() if name in shown else nothing for name in ("url", "caption")]
        return dict(zip(rows.column(KEY).to_pylist(), zip(*columns, strict=True), strict=True))


class _Opened:
    """A stored index, loaded on first use."""

    def __init__(self, found: Kept) -> None:
        self.kept = found
        self.parts = found.parts
        self.is_lossy = found.choice.is_lossy

    @cached_property
    def index(self) -> VectorIndex:
        return self.kept.load(mapped=True)


class _Finder:
    """Finds the rows nearest to one vector; `how` describes the method that was used."""

    def __init__(
        self,
        rows: Rows,
        opened: _Opened | None,
        vector: np.ndarray,
        allowed: np.ndarray | None,
        exact: bool,
        thresholds: Thresholds,
    ) -> None:
        self._rows, self._vector, self._allowed, self._thresholds = rows, vector, allowed, thresholds
        self._opened: _Opened | None = None
        self.how = self._choose(opened, exact)

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (ids, cosines, zeros) of the k nearest eligible rows, nearest first; fewer if there are fewer."""
        k = min(k, self._count)
        ids, scores = self._by_index(self._opened, k) if self._opened is not None else self._exactly(k)
        return ids, scores, np.zeros(len(ids), np.int64)

    @property
    def _count(self) -> int:
        """The number of eligible rows."""
        return self._rows.rows if self._allowed is None else len(self._allowed)

    def _exactly(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._rows.nearest(self._vector, k, self._allowed, self._rows.paths)

    def _choose(self, opened: _Opened | None, exact: bool) -> str:
        """Open the index if the search uses it; return a description of the method."""
        rows, count, limits = self._rows, self._count, self._thresholds
        if exact:
            return f"exact, {amount(count, 'row')}"
        if opened is None:
            return f"exact, {amount(count, 'row')}: {rows.column!r} has no index (`espalier index {rows.dataset.name}`)"
        if count <= max(limits.exact_rows, limits.exact_share * rows.rows):
            return f"exact, {amount(count, 'row')}: so few need no index"
        if self._strange(opened) and self._allowed is None:
            return f"exact, {amount(count, 'row')}: the index has parts that {rows.version.label} has not"
        self._opened = opened
        missing = len(set(rows.paths) - opened.parts.keys())
        beside = f", and {amount(missing, 'part')} beside it exactly" if missing else ""
        return f"index {opened.kept.facts['factory']}, {amount(count, 'row')}{beside}"

    def _strange(self, opened: _Opened) -> list[tuple[int, int]]:
        """Return the spans of the index's parts that are not of this version."""
        mine = set(self._rows.paths)
        return [span for path, span in opened.parts.items() if path not in mine]

    def _by_index(self, opened: _Opened, k: int) -> tuple[np.ndarray, np.ndarray]:
        fresh = [path for path in self._rows.paths if path not in opened.parts]
        ids, scores = self._looked_up(opened, RESCORED * k if opened.is_lossy else k)
        if opened.is_lossy:
            ids, vectors = self._rows.of(ids)
            scores = vectors @ self._vector
        beside = self._rows.nearest(self._vector, k, self._allowed, fresh)
        ids, scores = first(np.concatenate([ids, beside[0]]), np.concatenate([scores, beside[1]]), k)
        if len(ids) < k:
            self.how = "exact: the index found too few"
            return self._exactly(k)
        return ids, scores

    def _looked_up(self, opened: _Opened, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the eligible rows that the index finds."""
        index, effort = opened.index, int(opened.kept.facts["effort"]["value"])
        if self._allowed is None:
            return self._ask(index, k, effort, None)
        allowed = self._allowed
        for low, high in self._strange(opened):
            begin, end = np.searchsorted(allowed, low), np.searchsorted(allowed, high, side="right")
            allowed = np.delete(allowed, slice(begin, end))
        share = min(max(len(allowed), 1) / max(index.rows, 1), 1.0)
        wide = min(int(effort / share), max(index.most_effort, effort))
        limits = self._thresholds
        if share < limits.selected_share and len(allowed) <= limits.selected_rows:
            return self._ask(index, k, wide, allowed)
        fetch = int(k / share * (1 if share == 1 else 2))
        while True:
            ids, scores = self._ask(index, fetch, wide, None)
            keep = among(ids, allowed)
            if keep.sum() >= k or fetch >= min(_MOST_FETCHED, index.rows):
                return ids[keep][:k], scores[keep][:k]
            fetch *= 4

    def _ask(
        self, index: VectorIndex, k: int, effort: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, index.rows)
        effort = max(effort, k) if index.kind == "hnsw" else effort
        scores, found = index.search(self._vector[None], k, effort, allowed)
        there = found[0] >= 0
        return found[0][there], scores[0][there]

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """Return the unit vectors of samples, in the order of the ids."""
        there, vectors = self._rows.of(ids)
        return np.asarray(vectors[np.searchsorted(there, ids)])


def _distinct(finder: _Finder, asked: Query) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the nearest rows, omitting every row whose cosine with a nearer one is `unique` or more."""
    assert asked.unique is not None
    fetch = _FIRST_FETCH * asked.wanted
    while True:
        ids, scores, _ = finder.best(fetch)
        vectors = finder.vectors(ids)
        chosen, stands_for = _leaders(vectors, asked.unique)
        if len(chosen) >= asked.wanted or len(ids) < fetch:
            copies = np.bincount(stands_for, minlength=len(ids))[chosen] - 1
            return ids[chosen], scores[chosen], copies
        fetch *= 2


def _leaders(vectors: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (leaders, the leader of every row) of (n, d) vectors. A leader is near no earlier leader."""
    leader = np.full(len(vectors), -1, np.int64)
    chosen = []
    for row in range(len(vectors)):  # one iteration a leader: the rows that it represents are skipped
        if leader[row] >= 0:
            continue
        near = (vectors[row:] @ vectors[row] >= threshold) & (leader[row:] < 0)
        near[0] = True
        leader[row:][near] = row
        chosen.append(row)
    return np.array(chosen, np.int64), leader


def _without(
    sample_id: int | None, ids: np.ndarray, scores: np.ndarray, copies: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keep = ids != sample_id
    return ids[keep][:top], scores[keep][:top], copies[keep][:top]


def _check_condition(condition: str) -> None:
    """Raise QueryError unless the text is one SQL expression, so that it cannot close the brackets around it."""
    import duckdb

    if not condition.strip():
        raise QueryError("--where is empty: give a condition over the columns of `samples`")
    try:
        duckdb.SQLExpression(condition)
    except duckdb.Error as error:
        line = " ".join(str(error).partition("\n\nLINE")[0].split())
        raise QueryError(f"--where is not one SQL condition: {line.removeprefix('Parser Error: ')}") from error


def _every_row(dataset: Dataset, version: Version) -> str:
    """Return SQL for all rows of a version, rejected ones included, with the columns that `samples` has."""
    taken: set[str] = {KEY}
    columns, joins = [f"{TABLE}.{KEY}"], ""
    for table in version.tables:
        schema = dataset.schema(version, table)
        if KEY not in schema.names or table in ("decisions", "samples"):
            continue
        names = [f.name for f in schema if f.name.lower() not in taken and role(f) != "vector"]
        taken |= {name.lower() for name in names}
        columns += [identifier(table, name) for name in names]
        joins += (
            "" if table == TABLE else f"\nleft join {identifier(table)} on {identifier(table)}.{KEY} = {TABLE}.{KEY}"
        )
    return f"select {', '.join(columns)}\nfrom {TABLE}{joins}"


def _read_image(path: str | None) -> bytes:
    file = Path(path or "")
    try:
        if why := unreadable(file):
            raise UserError(f"cannot read the image {path!r}: {why}")
        if file.stat().st_size > MAX_IMAGE_BYTES:
            raise UserError(f"cannot read the image {path!r}: it is larger than {MAX_IMAGE_BYTES:,} bytes")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read the image {path!r}: {getattr(error, 'strerror', None) or error}") from error


def _model(rows: Rows, device: str | None) -> Any:
    """Load the encoder that made the column."""
    from tasks.encoders.model import load

    encoder = encoder_of(rows.dataset.schema(rows.version, TABLE), rows.column)
    sides: dict[str, pa.Table] = {}
    if encoder.trained is not None:
        parts = [part.path for part in rows.dataset.files(rows.version, "models")]
        sides["models"] = pa.concat_tables([read_parquet(rows.dataset.storage, path) for path in parts])
    return load(encoder, device or best_device(), sides)
