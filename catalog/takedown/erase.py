"""Erase rows from every file of a dataset, published or not, and so from every version.

An `ErasurePlan` lists the affected files and ranges as plain numbers and paths. Executing it is a sequence of steps,
each of which can be repeated. Files keep their names, because a part is named by the work that made it; so caching,
resuming and the versions' lists of files remain valid, and no version can restore erased rows. In `source` and `images`
an erased row remains as a bare sample_id with the reason; from every other table the row is removed.
"""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog import work
from catalog.dataset import QUARANTINE, Dataset
from catalog.inputs import among
from catalog.lookup import rows_of
from catalog.parts import PartWriter, describe_part
from catalog.schema import SAMPLE_BITS
from catalog.seal import digest_of
from catalog.shards import FOLDER, Span, erase, erase_sidecars, span_of, stem
from catalog.storage import Storage, is_temporary
from catalog.takedown.amend import amend
from catalog.takedown.ledger import REASON, Ledger, blank
from catalog.takedown.reach import columns_of, groups, opened, parts_of
from catalog.takedown.restate import restate
from catalog.takedown.scrub import CONCEPTS, Scrubber, plain_parts, unnamed

KEPT: Final = ("source", "images")
"""Tables in which an erased row remains without its content, with the reason."""
_BLOCK: Final = 512
"""Block size of a tar; an erased range begins with a header of one block."""


@dataclass(frozen=True)
class ErasurePlan:
    """The rows and ranges to erase, recorded before anything is changed; holds no URL, text or pixel."""

    sample_ids: Sequence[int]
    rows: Mapping[str, int]
    """Table -> number of rows in its parts (every occurrence counts)."""
    parts: Sequence[str]
    spans: Mapping[str, Sequence[Span]]
    """Shard -> ranges to erase."""
    versions: Sequence[int] = ()
    """Versions that hold any of these parts."""
    clusters: Sequence[int] = ()
    """Clusters that contain a row, in any clustering: their names may derive from its caption."""
    damaged: Sequence[str] = ()
    """Shards and sidecar files that were damaged before. Their recorded digests do not change: `verify` finds them."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Other facts of the record: when, who, why."""
    id: str = ""
    """The id of the take-down, the same in every dataset that it reaches."""
    root: str = ""
    """The dataset that was named, from which an interrupted take-down is resumed; empty if it is this one."""
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """In the order of the dataset that was named: every other dataset that is reached -> its sample_ids, and the
    digests that its ledger has to list (kind -> digests)."""

    def to_json(self) -> dict[str, Any]:
        """Return the order as JSON values."""
        return asdict(self)

    @classmethod
    def of_json(cls, kept: Mapping[str, Any]) -> Self:
        """Return the order from the result of `to_json`."""
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


def order_for(dataset: Dataset, ids: np.ndarray) -> ErasurePlan:
    """Return the order for rows, int64 (n,) ascending: parts of every table, ranges of shards, versions.

    Changes nothing.
    """
    parts: list[str] = []
    rows: dict[str, int] = {}
    places: set[tuple[str, int]] = set()
    clusters: set[int] = set()
    for table in dataset.tables():
        for path in parts_of(dataset, table):
            names = columns_of(dataset.storage, path)
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
    return ErasurePlan(ids.tolist(), rows, parts, spans, _versions_with(dataset, parts), sorted(clusters), damaged)


def _damaged(storage: Storage, parts: Sequence[str]) -> list[str]:
    """Return the shards and sidecar files of some parts that differ from their records."""
    before: dict[str, Mapping[str, Any]] = {}
    for path in parts:
        before |= describe_part(storage, path).files
    now = _recorded(storage, before, {})
    return sorted(path for path in before if now[path] != before[path])


def _versions_with(dataset: Dataset, parts: Collection[str]) -> list[int]:
    wanted = set(parts)
    tables = {path.partition("/")[0] for path in wanted}
    return [
        version.number
        for version in dataset.versions()
        if any(wanted & {f.path for f in dataset.files(version, t)} for t in version.tables if t in tables)
    ]


def erase_shards(dataset: Dataset, order: ErasurePlan) -> None:
    """Overwrite the samples in the shards, and erase them in the sidecar files (which list failed rows, too)."""
    numbers = {sample_id >> SAMPLE_BITS for sample_id in order.sample_ids}
    beside = {p for p in dataset.storage.list(FOLDER) if p.endswith(".tar") and _number_of(p) in numbers}
    for shard, spans in order.spans.items():
        erase(dataset.storage, shard, spans)
    for shard in sorted(beside | set(order.spans)):
        erase_sidecars(dataset.storage, shard, order.sample_ids, REASON)


def _number_of(shard: str) -> int:
    """Return the part number in a shard's name: 3 of `shards/00003-ab12.tar`."""
    return int(PurePosixPath(shard).name.partition("-")[0])


def erase_parts(dataset: Dataset, order: ErasurePlan, scrubber: Scrubber) -> None:
    """Rewrite every part that holds such a row under the same name, without the row or its content.

    The parts of `source` come last: until then, the words to erase can still be read from them.
    """
    ids = order.ids
    digests: dict[str, Mapping[str, Any]] = {}
    kept = set(order.damaged)
    for path in sorted(order.parts, key=lambda path: path.startswith("source/")):
        table, _, name = path.partition("/")
        described = describe_part(dataset.storage, path)
        with opened(dataset.storage, path) as file:
            fingerprint = name.removesuffix(".parquet")
            schema = file.schema_arrow.remove_metadata()
            with PartWriter(dataset.storage, table, fingerprint, schema) as writer:
                writer.notes |= scrubber.value(dict(described.notes))
                writer.files |= described.files
                sound = {name: facts for name, facts in described.files.items() if name not in kept}
                writer.files |= _recorded(dataset.storage, sound, digests)
                named: set[str] = set()
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group, use_threads=False)
                    gone = among(np.asarray(rows.column("sample_id").to_numpy(), np.int64), ids)
                    left = blank(table, rows, gone) if table in KEPT else rows.filter(pa.array(~gone))
                    if writer.files:
                        named |= {stem(shard) for shard in pc.unique(left.column("shard")).drop_null().to_pylist()}
                    writer.write(left)
                # No row names a shard without remaining samples, and `sweep` removes it.
                writer.files = {name: facts for name, facts in writer.files.items() if stem(name) in named}


def _recorded(
    storage: Storage, files: Mapping[str, Mapping[str, Any]], known: dict[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Return the current size and digest of shards and their sidecar files; each file is read once."""
    there = storage.list(FOLDER) if files.keys() - known.keys() else {}
    for path, facts in files.items():
        if path not in known and path in there:
            *_, digest = digest_of(storage, path, there[path])
            known[path] = {"bytes": there[path], "sha256": digest}
        elif path not in known:
            known[path] = facts
    return {path: known[path] for path in files}


def sweep(dataset: Dataset) -> None:
    """Remove unneeded files that may hold content: incomplete files, scratch files, checkpoints, and unused shards."""
    storage = dataset.storage
    named = set()
    for table in dataset.tables():
        for path in parts_of(dataset, table):
            if "shard" in columns_of(storage, path):
                for rows in groups(storage, path, ("shard",)):
                    named |= set(pc.unique(rows.column("shard")).drop_null().to_pylist())
    stems = {shard.removesuffix(".tar") for shard in named}
    paths = list(storage.list())
    gone = [p for p in paths if is_temporary(p) or p.startswith(("_work/", f"{QUARANTINE}/"))]
    gone += [p for p in paths if p.startswith(f"{FOLDER}/") and stem(p) not in stems]
    storage.delete(gone)
    shutil.rmtree(work.folder(storage), ignore_errors=True)


def settle(dataset: Dataset, order: ErasurePlan) -> None:
    """Make the logs, and the tables recorded in versions, agree with the files again."""
    paths = [*order.parts, *plain_parts(dataset)]
    tables = sorted({path.partition("/")[0] for path in paths} - {"versions"})
    for table in tables:
        amend(dataset.storage, table, [path for path in paths if path.startswith(f"{table}/")])
    restate(dataset, tables)
    dataset.renew_copies()


def remaining(dataset: Dataset, order: ErasurePlan, ledger: Ledger) -> list[str]:
    """Return the files that still hold something that was taken down: a row, a URL, a digest, or bytes."""
    left = [path for path in order.parts if path.partition("/")[0] not in KEPT]
    found = {path for path in left if rows_of(dataset.storage, [path], order.ids, ()).num_rows}
    urls, contents = (ledger.url, ledger.urls), (ledger.content, ledger.contents)
    listed: dict[str, tuple[Callable[[str], str], frozenset[str]]]
    listed = {"url": urls, "final_url": urls, "sha256": contents, "pixels_sha256": (ledger.picture, ledger.pixels)}
    for table in dataset.tables():
        for path in parts_of(dataset, table):
            names = [name for name in listed if name in columns_of(dataset.storage, path)]
            for rows in groups(dataset.storage, path, names) if names else ():
                for name in names:
                    digest, known = listed[name]
                    if any(digest(v) in known for v in pc.unique(rows.column(name)).drop_null().to_pylist()):
                        found.add(path)
    found |= {shard for shard, spans in order.spans.items() if not _zeros(dataset.storage, shard, spans)}
    for path in parts_of(dataset, CONCEPTS):
        with opened(dataset.storage, path) as file:
            concepts = file.read()
        if not unnamed(concepts, order.ids, order.clusters).equals(concepts):
            found.add(path)
    for path in (*dataset.storage.list("_state"), *dataset.storage.list("_reports")):
        text = dataset.storage.read(path).decode("utf-8", "replace")
        if ledger.scrubbed(text) != text:
            found.add(path)
    return sorted(found)


def _zeros(storage: Storage, shard: str, spans: Sequence[Span]) -> bool:
    data = (storage.read_range(shard, begin + _BLOCK, end - begin - _BLOCK) for begin, end in spans)
    return not storage.exists(shard) or not any(any(piece) for piece in data)
