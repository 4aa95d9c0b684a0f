"""Erasing rows: from every file of a dataset, published or not, so that every version goes without them.

What is found is an `Order`, plain numbers and paths; carrying it out is a list of steps, each of which can be repeated.
Files keep their names, as parts are named by the work that they stand for: so caching, resuming and every version's
lists of files stay as they are, and no version can give back what is gone. In `source` and `images` an erased row
stays as a bare sample_id with the reason; from every other table the row goes.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import log_copies
from catalog.amend import amend
from catalog.dataset import QUARANTINE, Dataset
from catalog.errors import UserError
from catalog.lookup import among, rows_of
from catalog.parts import PartWriter, describe_part
from catalog.schema import SAMPLE_BITS
from catalog.seal import digest_of, sealed_parquet
from catalog.shards import FOLDER, Span, erase, erase_sidecars, span_of
from catalog.storage import Storage, is_temporary
from catalog.takedown import REASON, STATE, TAKEN_URL, Ledger, blank

KEPT: Final = ("source", "images")
"""Tables in which an erased row stays, without its content: what became of it is told there."""
_CONCEPTS: Final = "concepts"
"""One row a cluster, with words from its captions (`name_caption`) and lists of samples (`nearest`, `farthest`)."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_BLOCK: Final = 512
"""Of a tar: an erased stretch begins with one header."""


@dataclass(frozen=True)
class Names:
    """Rows, by any of three names."""

    urls: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()
    """Of the bytes as they were received, hex."""
    sample_ids: frozenset[int] = frozenset()

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
        return Names(self.urls | other.urls, self.sha256 | other.sha256, self.sample_ids | other.sample_ids)

    def without(self, other: "Names") -> "Names":
        """Return the names that `other` has not."""
        return Names(self.urls - other.urls, self.sha256 - other.sha256, self.sample_ids - other.sample_ids)

    def __len__(self) -> int:
        return len(self.urls) + len(self.sha256) + len(self.sample_ids)


@dataclass(frozen=True)
class Found:
    """The rows that are meant."""

    rows: Names
    """Every row, and all of its names; with those that were given, whether a row has them or not."""
    unknown: Names
    """What was given and no row has."""
    copies: int
    """Rows that were not given, but have the URL or the bytes of one that was."""


@dataclass(frozen=True)
class Order:
    """What is to be erased, as it is written down before anything is touched: no URL, no text, no pixel."""

    sample_ids: Sequence[int]
    rows: Mapping[str, int]
    """Table -> rows in its parts (each row of each part counts)."""
    parts: Sequence[str]
    spans: Mapping[str, Sequence[Span]]
    """Shard -> stretches of it."""
    versions: Sequence[int] = ()
    """Versions that hold any of these parts."""
    clusters: Sequence[int] = ()
    """Clusters that a row is in, of any clustering: their names may be made of its caption."""
    damaged: Sequence[str] = ()
    """Shards, and files beside them, that were damaged before: their recorded digests stay, so that they are found."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the record will say beside: when, who, why."""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can keep it."""
        return asdict(self)

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave."""
        spans = {shard: [(int(a), int(b)) for a, b in found] for shard, found in kept["spans"].items()}
        return cls(**(dict(kept) | {"spans": spans}))

    @property
    def ids(self) -> np.ndarray:
        """The sample_ids: int64 (n,), ascending."""
        return np.unique(np.asarray(self.sample_ids, np.int64))

    @property
    def tables(self) -> list[str]:
        """The tables that have a part to rewrite."""
        return sorted({part.partition("/")[0] for part in self.parts})


def find(dataset: Dataset, given: Names, copies: bool = True) -> Found:
    """Look for rows in every part of `source` and `images`, of any version or none.

    With `copies`, rows with the same received bytes are meant too. Rows with the same URL always are: what was taken
    down is never fetched again. One pass, and one more for as long as the last one met new names.
    """
    reach, first = given, None
    while True:
        met = _met(dataset, reach)
        first = first or met.sample_ids
        more = reach.joined(met if copies else replace(met, sha256=frozenset()))
        if more == reach:
            break
        reach = more
    rows = replace(reach, sample_ids=met.sample_ids)
    return Found(rows, given.without(met), len(met.sample_ids - first))


def _met(dataset: Dataset, reach: Names) -> Names:
    """Return the names of the rows that have one of these names."""
    met = Names()
    ids = pa.array(sorted(reach.sample_ids), pa.int64())
    urls, digests = pa.array(sorted(reach.urls), pa.string()), pa.array(sorted(reach.sha256), pa.string())
    known = {"sample_id": ids, "url": urls, "final_url": urls, "sha256": digests}
    for table, columns in (("source", ("url",)), ("images", ("final_url", "sha256"))):
        for path in _parts(dataset, table):
            for rows in _groups(dataset.storage, path, ("sample_id", *columns)):
                met = met.joined(_names(rows, known))
    return met


def _names(rows: pa.Table, known: Mapping[str, pa.Array]) -> Names:
    """Return the names of those rows that have one of the known names."""
    if "url" in rows.column_names:  # not those that are taken down already
        rows = rows.filter(pc.fill_null(pc.not_equal(rows.column("url"), TAKEN_URL), True))
    hit = np.zeros(rows.num_rows, bool)
    for name in rows.column_names:
        hit |= np.asarray(pc.is_in(rows.column(name), known[name], skip_nulls=True))
    mine = rows.filter(pa.array(hit))
    found = {name: frozenset(mine.column(name).drop_null().to_pylist()) for name in mine.column_names}
    urls = found.get("url", frozenset()) | found.get("final_url", frozenset())
    return Names(urls, found.get("sha256", frozenset()), found["sample_id"])


def order_for(dataset: Dataset, found: Found) -> Order:
    """Return where the found rows are: parts of every table, stretches of shards, versions. Changes nothing."""
    ids = np.unique(np.fromiter(found.rows.sample_ids, np.int64))
    parts: list[str] = []
    rows: dict[str, int] = {}
    places: set[tuple[str, int]] = set()
    clusters: set[int] = set()
    for table in dataset.tables():
        for path in _parts(dataset, table):
            names = _columns(dataset.storage, path)
            if "sample_id" not in names:
                continue
            wanted = [n for n in ("shard", "byte_offset") if n in names]
            also = ["cluster"] if "cluster" in names else []
            mine = rows_of(dataset.storage, [path], ids, [*wanted, *also])
            if mine.num_rows:
                parts.append(path)
                rows[table] = rows.get(table, 0) + mine.num_rows
            if also:
                clusters |= set(mine.column("cluster").drop_null().to_pylist())
            if len(wanted) == 2:
                pairs = zip(*(mine.column(n).to_pylist() for n in wanted), strict=True)
                places |= {(shard, offset) for shard, offset in pairs if shard is not None}
    spans: dict[str, list[Span]] = {}
    for shard, offset in sorted(places):
        if dataset.storage.exists(shard):
            spans.setdefault(shard, []).append(span_of(dataset.storage, shard, offset))
    damaged = _damaged(dataset.storage, parts)
    return Order(ids.tolist(), rows, parts, spans, _versions_with(dataset, parts), sorted(clusters), damaged)


def _damaged(storage: Storage, parts: Sequence[str]) -> list[str]:
    """Return the shards of some parts, and the files beside, that are not what was recorded of them."""
    said: dict[str, Mapping[str, Any]] = {}
    for path in parts:
        said |= describe_part(storage, path).files
    now = _recorded(storage, said, {})
    return sorted(path for path in said if now[path] != said[path])


def _versions_with(dataset: Dataset, parts: Collection[str]) -> list[int]:
    wanted = set(parts)
    tables = {path.partition("/")[0] for path in wanted}
    return [
        version.number
        for version in dataset.versions()
        if any(wanted & {f.path for f in dataset.files(version, t)} for t in version.tables if t in tables)
    ]


def erase_shards(dataset: Dataset, order: Order) -> None:
    """Overwrite the samples in the shards, and take them out of the files beside (where failed rows are too)."""
    numbers = {sample_id >> SAMPLE_BITS for sample_id in order.sample_ids}
    beside = {p for p in dataset.storage.list(FOLDER) if p.endswith(".tar") and _number_of(p) in numbers}
    for shard, spans in order.spans.items():
        erase(dataset.storage, shard, spans)
    for shard in sorted(beside | set(order.spans)):
        erase_sidecars(dataset.storage, shard, order.sample_ids, REASON)


def _number_of(shard: str) -> int:
    """Return the part number in a shard's name: 3 of `shards/00003-ab12.tar`."""
    return int(PurePosixPath(shard).name.partition("-")[0])


def erase_parts(dataset: Dataset, order: Order) -> None:
    """Rewrite every part that holds such a row, under its own name, without the row or its content."""
    ids = order.ids
    digests: dict[str, Mapping[str, Any]] = {}
    kept = set(order.damaged)
    for path in order.parts:
        table, _, name = path.partition("/")
        described = describe_part(dataset.storage, path)
        with _opened(dataset.storage, path) as file:
            fingerprint = name.removesuffix(".parquet")
            schema = file.schema_arrow.remove_metadata()
            with PartWriter(dataset.storage, table, fingerprint, schema) as writer:
                writer.notes |= described.notes
                writer.files |= described.files
                sound = {name: facts for name, facts in described.files.items() if name not in kept}
                writer.files |= _recorded(dataset.storage, sound, digests)
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, use_threads=False)
                    gone = among(np.asarray(rows.column("sample_id").to_numpy(), np.int64), ids)
                    writer.write(blank(table, rows, gone) if table in KEPT else rows.filter(pa.array(~gone)))


def _recorded(
    storage: Storage, files: Mapping[str, Mapping[str, Any]], known: dict[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Return the size and digest of shards, and of the files beside them, as they are now; each is read once."""
    there = storage.list(FOLDER) if files.keys() - known.keys() else {}
    for path, facts in files.items():
        if path not in known and path in there:
            *_, digest = digest_of(storage, path, there[path])
            known[path] = {"bytes": there[path], "sha256": digest}
        elif path not in known:
            known[path] = facts
    return {path: known[path] for path in files}


def scrub(dataset: Dataset, order: Order, ledger: Ledger) -> None:
    """Take the URLs out of what is not about samples: tables of facts, the log of runs, the builder's notes. Concepts
    that a row was in lose the name that came of captions; no concept shows the row any more."""
    for path in _plain_parts(dataset):
        if path.partition("/")[0] == "versions":
            continue
        with _opened(dataset.storage, path) as file:
            if not any(pa.types.is_string(f.type) for f in file.schema_arrow):
                continue
            before = file.read()
        after = _scrubbed(before, ledger)
        if path.partition("/")[0] == _CONCEPTS:
            after = _unnamed(after, order)
        if not after.equals(before):
            dataset.storage.put(path, sealed_parquet(after))
    for name in dataset.states():
        if name != STATE:
            told = dataset.state(name)
            if (clean := _scrubbed_json(told, ledger)) != told:
                dataset.set_state(name, clean)


def _unnamed(concepts: pa.Table, order: Order) -> pa.Table:
    """Return concepts without the names from captions of clusters that a row was in, and without the row."""
    gone, clusters = set(order.sample_ids), pa.array(order.clusters, pa.int64())
    for at, column in enumerate(concepts.schema):
        if column.name == "name_caption":
            hit = pc.is_in(concepts.column("cluster").cast(pa.int64()), clusters)
            values = pc.if_else(hit, pa.scalar(None, column.type), concepts.column(at))
        elif column.name in ("nearest", "farthest"):
            lists = concepts.column(at).to_pylist()
            values = pa.array([ids and [i for i in ids if i not in gone] for ids in lists], column.type)
        else:
            continue
        concepts = concepts.set_column(at, column, values)
    return concepts


def _scrubbed(rows: pa.Table, ledger: Ledger) -> pa.Table:
    for at, column in enumerate(rows.schema):
        if pa.types.is_string(column.type):
            values = [None if text is None else ledger.scrubbed(text) for text in rows.column(at).to_pylist()]
            rows = rows.set_column(at, column, pa.array(values, column.type))
    return rows


def _scrubbed_json(value: Any, ledger: Ledger) -> Any:
    if isinstance(value, dict):
        return {k: _scrubbed_json(v, ledger) for k, v in value.items() if ledger.scrubbed(k) == k}
    if isinstance(value, list):
        return [_scrubbed_json(item, ledger) for item in value]
    return ledger.scrubbed(value) if isinstance(value, str) else value


def sweep(dataset: Dataset) -> None:
    """Remove what may hold anything and that nobody needs: half-written files, scratch, shards that no part names."""
    storage = dataset.storage
    named = set()
    for table in dataset.tables():
        for path in _parts(dataset, table):
            if "shard" in _columns(storage, path):
                for rows in _groups(storage, path, ("shard",)):
                    named |= set(pc.unique(rows.column("shard")).drop_null().to_pylist())
    stems = {shard.removesuffix(".tar") for shard in named}
    paths = list(storage.list())
    gone = [p for p in paths if is_temporary(p) or p.startswith(("_work/", f"{QUARANTINE}/"))]
    gone += [p for p in paths if p.startswith(f"{FOLDER}/") and _stem(p) not in stems]
    storage.delete(gone)


def _stem(path: str) -> str:
    return path.removesuffix("_stats.json").removesuffix(".tar").removesuffix(".parquet")


def settle(dataset: Dataset, order: Order) -> None:
    """Make the logs, and what versions say of their tables, agree with the files again."""
    paths = [*order.parts, *_plain_parts(dataset)]
    tables = sorted({path.partition("/")[0] for path in paths} - {"versions"})
    for table in tables:
        amend(dataset.storage, table, [path for path in paths if path.startswith(f"{table}/")])
    dataset.restate(tables)
    log_copies.renew(dataset.storage, (*dataset.tables(), "versions", "runs"))


def remaining(dataset: Dataset, order: Order, ledger: Ledger) -> list[str]:
    """Return the files in which something is left of what was taken down: a row, a URL, a digest, or bytes."""
    left = [path for path in order.parts if path.partition("/")[0] not in KEPT]
    found = {path for path in left if rows_of(dataset.storage, [path], order.ids, ()).num_rows}
    urls, contents = (ledger.url, ledger.urls), (ledger.content, ledger.contents)
    listed: dict[str, tuple[Callable[[str], str], frozenset[str]]]
    listed = {"url": urls, "final_url": urls, "sha256": contents}
    for table in dataset.tables():
        for path in _parts(dataset, table):
            names = [name for name in listed if name in _columns(dataset.storage, path)]
            for rows in _groups(dataset.storage, path, names) if names else ():
                for name in names:
                    digest, known = listed[name]
                    if any(digest(v) in known for v in pc.unique(rows.column(name)).drop_null().to_pylist()):
                        found.add(path)
    found |= {shard for shard, spans in order.spans.items() if not _zeros(dataset.storage, shard, spans)}
    for path in _parts(dataset, _CONCEPTS):
        with _opened(dataset.storage, path) as file:
            concepts = file.read()
        if not _unnamed(concepts, order).equals(concepts):
            found.add(path)
    for path in (*dataset.storage.list("_state"), *dataset.storage.list("_reports")):
        text = dataset.storage.read(path).decode("utf-8", "replace")
        if ledger.scrubbed(text) != text:
            found.add(path)
    return sorted(found)


def _zeros(storage: Storage, shard: str, spans: Sequence[Span]) -> bool:
    data = (storage.read_range(shard, begin + _BLOCK, end - begin - _BLOCK) for begin, end in spans)
    return not storage.exists(shard) or not any(any(piece) for piece in data)


def _parts(dataset: Dataset, table: str) -> list[str]:
    return [f"{table}/{fingerprint}.parquet" for fingerprint in sorted(dataset.finished(table))]


def _plain_parts(dataset: Dataset) -> list[str]:
    """Return the parts that are not about samples, and the log of runs."""
    parts = [path for table in (*dataset.tables(), "runs") for path in _parts(dataset, table)]
    return [path for path in parts if "sample_id" not in _columns(dataset.storage, path)]


def _columns(storage: Storage, path: str) -> list[str]:
    with _opened(storage, path) as file:
        return list(file.schema_arrow.names)


def _groups(storage: Storage, path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield some columns of a part, those that it has, a row group at a time."""
    with _opened(storage, path) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, names, use_threads=False)


@contextmanager
def _opened(storage: Storage, path: str) -> Iterator[pq.ParquetFile]:
    local = storage.local(path)
    with pq.ParquetFile(local or storage.filesystem().open_input_file(path)) as file:
        yield file
