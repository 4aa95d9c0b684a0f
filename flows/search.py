"""Search a dataset by words, by a picture or by one of its samples; exactly, or by its index.

Which way is taken, for N rows of which A may be found (in `samples`, and `where` holds):

    no index, or `exact`, or A <= 10,000, or A <= N / 100    the vectors of those A rows are read and compared: exact
    A <= 2,000,000    the index looks among those only, in N / A times as many lists
    more              the index gives more than is wanted, and the rest is left out

so that there are always as many results as rows that may be found. Parts that the index lacks are searched exactly
beside it, and rows of parts that are no longer of the version are left out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from catalog import lookup
from catalog.database import connect, query
from catalog.dataset import Catalog, Dataset, Version
from catalog.errors import NotFoundError, UserError
from catalog.inputs import read_parquet
from catalog.lookup import KEY, among
from catalog.schema import role
from flows.index import TABLE, Kept, best_device, embedding_column, kept
from tasks.encoder import encoder_of
from tasks.index.tune import RESCORED
from tasks.index.vector_index import VectorIndex, unit_rows
from tasks.kmeans import usable

if TYPE_CHECKING:
    import duckdb

EXACT_ROWS: Final = 10_000
"""So few rows are compared one by one: as fast, and exact."""
EXACT_SHARE: Final = 0.01
SELECTED_ROWS: Final = 2_000_000
"""faiss is told which rows to look at up to this many: each takes about 50 bytes."""
_MOST_FETCHED: Final = 100_000
_FIRST_FETCH: Final = 3
"""Nobody knows how many near-duplicates there are: fetch so many times what is wanted, then twice that, ..."""


@dataclass(frozen=True)
class Query:
    """What is searched for. Exactly one of `text`, `image` (a path) and `like` (a sample_id)."""

    text: str | None = None
    image: str | None = None
    like: int | None = None
    column: str = ""
    top: int = 20
    where: str = ""
    exact: bool = False
    unique: float | None = None
    """Results with a cosine of at least this to a better one are not shown."""
    all: bool = False
    """Also rows that failed or were rejected."""

    @property
    def wanted(self) -> int:
        """Rows to find: what is like a sample is first of all the sample itself."""
        return self.top + (self.like is not None)

    def check(self) -> None:
        """Raise UserError where it cannot be a query."""
        given = [name for name in ("text", "image", "like") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(f"--{name}" for name in given) or "none of them"
            raise UserError(f"say one of --text, --image and --like; found {found}")
        if self.text is not None and not self.text.strip():
            raise UserError("--text is empty: say what to search for")
        if self.top < 1:
            raise UserError(f"--top is {self.top}, expected at least 1")
        if self.unique is not None and not -1 < self.unique <= 1:
            raise UserError(f"--unique is {self.unique:g}, expected a cosine: above -1, at most 1 (0.94 is usual)")


@dataclass(frozen=True)
class Hit:
    """One result. `score` is the cosine; `copies` says how many near-duplicates of it were left out."""

    rank: int
    score: float
    sample_id: int
    url: str | None = None
    caption: str | None = None
    copies: int = 0


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    version: Version
    query: Query
    column: str
    how: str
    hits: Sequence[Hit]
    searched: int
    """Rows that might have been found."""

    def describe(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        asked = {name: value for name, value in asdict(self.query).items() if value not in (None, "", False)}
        return {
            "version": self.version.label,
            "query": asked | {"column": self.column},
            "how": self.how,
            "searched": self.searched,
            "hits": [asdict(hit) for hit in self.hits],
        }


def search(catalog: Catalog, label: str, asked: Query, device: str | None = None) -> Found:
    """Return the nearest samples of `DATASET[@N]`, nearest first, ties by sample_id.

    Raises UserError, in one line, where there are no embeddings, no such column or sample, where the image cannot be
    read, and (QueryError) where `where` is not SQL over the columns of `samples`.
    """
    asked.check()
    version = catalog.resolve(label)
    dataset = catalog.existing(version.dataset)
    column = embedding_column(dataset, version, asked.column)
    rows = _Rows(dataset, version, column)
    with connect(catalog, {version.dataset: version.number}, [version.dataset]) as connection:
        allowed = _allowed(connection, dataset, version, asked)
        vector = query_vector(rows, asked, device)
        finder = _Finder(rows, vector, allowed, asked)
        ids, scores, copies = _distinct(finder, asked) if asked.unique is not None else finder.best(asked.wanted)
        ids, scores, copies = _without(asked.like, ids, scores, copies, asked.top)
        known = _described(connection, dataset, version, ids)
    pairs = zip(ids.tolist(), scores.tolist(), copies.tolist(), strict=True)
    hits = [Hit(rank, score, i, *known.get(i, (None, None)), n) for rank, (i, score, n) in enumerate(pairs, 1)]
    return Found(version, asked, column, finder.how, hits, rows.rows if allowed is None else len(allowed))


@dataclass(frozen=True)
class _Rows:
    """The vectors of one column in one version."""

    dataset: Dataset
    version: Version
    column: str
    _paths: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        if not self._paths:
            self._paths.extend(part.path for part in self.dataset.files(self.version, TABLE))
        return self._paths

    @property
    def rows(self) -> int:
        return self.version.tables[TABLE].rows

    def of(self, sample_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids ascending, float32 unit rows) of the samples that have a vector."""
        ids, vectors = lookup.vectors_of(self.dataset.storage, self.paths, self.column, sample_ids)
        good = usable(vectors)
        return ids[good], unit_rows(vectors[good])

    def nearest(
        self, vector: np.ndarray, k: int, allowed: np.ndarray | None, paths: Iterable[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids, cosines) of the k nearest rows of some parts, exactly: block by block."""
        best = (np.empty(0, np.int64), np.empty(0, np.float32))
        for path in paths:
            for ids, vectors in lookup.blocks(self.dataset.storage, path, self.column, allowed):
                good = usable(vectors)
                scores = unit_rows(vectors[good]) @ vector
                best = _first(np.concatenate([best[0], ids[good]]), np.concatenate([best[1], scores]), k)
        return best


def query_vector(rows: _Rows, asked: Query, device: str | None = None) -> np.ndarray:
    """Return the query as float32 (d,), of length 1."""
    if asked.like is not None:
        _, vectors = rows.of(np.array([asked.like]))
        if not len(vectors):
            raise NotFoundError(f"{rows.version.label} has no sample {asked.like} with a vector in {rows.column!r}")
        return np.asarray(vectors[0])
    data = _read_image(asked.image) if asked.image is not None else None
    model = _model(rows, device)
    if data is None:
        vectors = model.unit_texts([asked.text])
        good = np.abs(vectors).sum(axis=1) > 0
    else:
        vectors, good = model.unit_images([data])
    if not good[0]:
        what = f"the image {asked.image!r}" if data is not None else f"the text {asked.text!r}"
        raise UserError(f"{what} cannot be searched for: it does not decode, or the encoder gives it no vector")
    return np.asarray(vectors[0], np.float32)


class _Finder:
    """Finds the rows nearest to one vector, and keeps in `how` by what way."""

    def __init__(self, rows: _Rows, vector: np.ndarray, allowed: np.ndarray | None, asked: Query) -> None:
        self._rows, self._vector, self._allowed = rows, vector, allowed
        self._index: VectorIndex | None = None
        self._kept: Kept | None = None
        self.how = self._choose(asked)

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (ids, cosines, zeros) of the k nearest, nearest first; fewer where there are no more."""
        ids, scores = self._by_index(k) if self._index is not None else self._exactly(k)
        return ids, scores, np.zeros(len(ids), np.int64)

    def _exactly(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        return self._rows.nearest(self._vector, k, self._allowed, self._rows.paths)

    def _choose(self, asked: Query) -> str:
        """Open the index if it is to be used; return what is done, in words."""
        rows, allowed = self._rows, self._allowed
        count = rows.rows if allowed is None else len(allowed)
        if asked.exact:
            return f"exact, {count:,} rows"
        found = kept(rows.dataset, rows.column)
        if found is None:
            return f"exact, {count:,} rows: {rows.column!r} has no index (`espalier index {rows.dataset.name}`)"
        if count <= max(EXACT_ROWS, EXACT_SHARE * rows.rows):
            return f"exact, {count:,} rows: so few need no index"
        if self._strange(found) and allowed is None:
            return f"exact, {count:,} rows: the index has parts that {rows.version.label} has not"
        self._kept, self._index = found, found.load(mapped=True)
        missing = len(set(rows.paths) - found.parts.keys())
        beside = f", and {missing} parts beside it exactly" if missing else ""
        return f"index {found.facts['factory']}, {count:,} rows{beside}"

    def _strange(self, found: Kept) -> list[tuple[int, int]]:
        """Return the spans of the index's parts that are not of this version."""
        return [span for path, span in found.parts.items() if path not in set(self._rows.paths)]

    def _by_index(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert self._index is not None
        assert self._kept is not None
        lossy = self._kept.choice.is_lossy
        fresh = [path for path in self._rows.paths if path not in self._kept.parts]
        ids, scores = self._looked_up(RESCORED * k if lossy else k)
        if lossy:
            ids, vectors = self._rows.of(ids)
            scores = vectors @ self._vector
        beside = self._rows.nearest(self._vector, k, self._allowed, fresh)
        ids, scores = _first(np.concatenate([ids, beside[0]]), np.concatenate([scores, beside[1]]), k)
        if len(ids) < k and len(ids) < (self._rows.rows if self._allowed is None else len(self._allowed)):
            self.how = "exact: the index found too few"
            return self._exactly(k)
        return ids, scores

    def _looked_up(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what the index finds among the rows that may be found."""
        assert self._index is not None
        assert self._kept is not None
        effort = self._kept.facts["effort"]["value"]
        if self._allowed is None:
            return self._ask(k, effort, None)
        allowed = self._allowed
        for low, high in self._strange(self._kept):
            begin, end = np.searchsorted(allowed, low), np.searchsorted(allowed, high, side="right")
            allowed = np.delete(allowed, slice(begin, end))
        share = max(len(allowed), 1) / max(self._index.rows, 1)
        wide = min(int(effort / min(share, 1.0)), max(self._index.most_effort, effort))
        if len(allowed) <= SELECTED_ROWS:
            return self._ask(k, wide, allowed)
        fetch = int(k / min(share, 1.0) * 2)
        while True:
            ids, scores = self._ask(min(fetch, self._index.rows), wide, None)
            keep = among(ids, allowed)
            if keep.sum() >= k or fetch >= min(_MOST_FETCHED, self._index.rows):
                return ids[keep][:k], scores[keep][:k]
            fetch *= 4

    def _ask(self, k: int, effort: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        assert self._index is not None
        effort = max(effort, k) if self._index.kind == "hnsw" else effort
        scores, found = self._index.search(self._vector[None], k, effort, allowed)
        there = found[0] >= 0
        return found[0][there], scores[0][there]

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """Return the unit rows of samples, in their order."""
        there, vectors = self._rows.of(ids)
        return np.asarray(vectors[np.searchsorted(there, ids)])


def _distinct(finder: _Finder, asked: Query) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the nearest rows of which no two have a cosine of `unique` or more: each stands for those after it."""
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
    """Return (rows that are not near an earlier leader, the leader of every row) of (n, d), by their order."""
    leader = np.full(len(vectors), -1, np.int64)
    chosen = []
    for row in range(len(vectors)):  # as many turns as there are leaders: what one stands for is skipped
        if leader[row] >= 0:
            continue
        near = (vectors[row:] @ vectors[row] >= threshold) & (leader[row:] < 0)
        near[0] = True
        leader[row:][near] = row
        chosen.append(row)
    return np.array(chosen, np.int64), leader


def _first(ids: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best, best first, ties by id."""
    if len(ids) > 4 * k:
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        ids, scores = ids[scores >= least], scores[scores >= least]
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def _without(
    sample_id: int | None, ids: np.ndarray, scores: np.ndarray, copies: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keep = ids != sample_id
    return ids[keep][:top], scores[keep][:top], copies[keep][:top]


def _allowed(
    connection: "duckdb.DuckDBPyConnection", dataset: Dataset, version: Version, asked: Query
) -> np.ndarray | None:
    """Return the samples that may be found, int64 ascending; None where all may."""
    if asked.all and not asked.where:
        return None
    rows = _every_row(dataset, version) if asked.all else "select * from samples"
    condition = f"\nwhere (\n{asked.where}\n)" if asked.where else ""
    found = query(connection, f"select {KEY} from (\n{rows}\n) as samples{condition}")
    return np.unique(np.asarray(found.column(KEY).to_numpy(), np.int64))


def _every_row(dataset: Dataset, version: Version) -> str:
    """Return SQL for all rows of a version with the columns of its tables, as `samples` has them, rejected ones too."""
    taken: set[str] = {KEY}
    columns, joins = [f"{TABLE}.{KEY}"], ""
    for table in version.tables:
        schema = dataset.schema(version, table)
        if KEY not in schema.names or table in ("decisions", "samples"):
            continue
        names = [f.name for f in schema if f.name.lower() not in taken and role(f) != "vector"]
        taken |= {name.lower() for name in names}
        columns += [f'"{table}"."{name}"' for name in names]
        joins += "" if table == TABLE else f'\nleft join "{table}" on "{table}".{KEY} = {TABLE}.{KEY}'
    return f"select {', '.join(columns)}\nfrom {TABLE}{joins}"


def _described(
    connection: "duckdb.DuckDBPyConnection", dataset: Dataset, version: Version, ids: np.ndarray
) -> Mapping[int, tuple[str | None, str | None]]:
    """Return sample_id -> (url, caption)."""
    if "source" not in version.tables or not len(ids):
        return {}
    names = dataset.schema(version, "source").names
    shown = ", ".join(name if name in names else f"null as {name}" for name in ("url", "caption"))
    listed = ", ".join(str(i) for i in ids.tolist())
    rows = query(connection, f"select {KEY}, {shown} from source where {KEY} in ({listed})").to_pylist()
    return {row[KEY]: (row["url"], row["caption"]) for row in rows}


def _read_image(path: str | None) -> bytes:
    try:
        return Path(path or "").read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path!r}: {error.strerror}") from error


def _model(rows: _Rows, device: str | None) -> Any:
    """Return the encoder of the column, loaded."""
    from tasks.encoder_model import load

    encoder = encoder_of(rows.dataset.schema(rows.version, TABLE), rows.column)
    sides: dict[str, pa.Table] = {}
    if encoder.trained is not None:
        parts = [part.path for part in rows.dataset.files(rows.version, "models")]
        sides["models"] = pa.concat_tables([read_parquet(rows.dataset.storage, path) for path in parts])
    return load(encoder, device or best_device(), sides)
