"""Repair damage: restore files that have a copy, and quarantine files that a build can make again.

Nothing is deleted: a damaged file moves to `_quarantine/<time>/` under its own path. Quarantined files are recorded in
the dataset's state `repairs` until a build has made them again:

    parts     path -> the expected SHA-256 (null if unknown). The next build makes the part again under its name, and
              `settle` updates the logs.
    shards    path -> bytes and SHA-256. Their images are downloaded again (`flows.build.mend`).

During a repair the state also has the key `unfinished`: table -> the first commit that is removed from its log. No
build can begin while the key exists, and the next repair repeats the work, so a killed repair loses nothing.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog import delta, log_copies, numbers
from catalog.dataset import IRREPLACEABLE, LOGS, QUARANTINE, QUARANTINE_TIME, REPAIRS, UNFINISHED, Dataset
from catalog.errors import EspalierError, UserError
from catalog.findings import Damage, Findings
from catalog.lease import hold
from catalog.lookup import rows_of
from catalog.parts import PartFile, PartWriter, describe_part
from catalog.pieces import read_parquet
from catalog.runs import RUNS
from catalog.seal import Seal, opened_json, read_seal
from catalog.shard_check import DecodeFault
from catalog.shards import FOLDER, Span, moved, record_of, sidecars, stem
from catalog.takedown.amend import amend
from catalog.takedown.restate import restate
from catalog.verify import STATE_FOLDERS, Progress, Verifier
from catalog.version import VERSIONS, Version


@dataclass
class Mended:
    """The result of a repair."""

    restored: list[str] = field(default_factory=list)
    """Files that were restored from a copy."""
    set_aside: list[str] = field(default_factory=list)
    """Quarantined files that the next build makes again."""
    lost: list[str] = field(default_factory=list)
    """Sentences that name what is lost, and what to do."""


def repair(
    dataset: Dataset, decode_fault: DecodeFault, progress: Progress = lambda done, total: None
) -> tuple[Findings, Mended]:
    """Verify a dataset, restore files that have a copy, and quarantine files that a build can make again.

    `decode_fault` is as for `Verifier`. Returns the damages and the result. Raises BusyError while the dataset is being
    built.
    """
    with hold(dataset, copies=False) as lease:
        verifier = Verifier(dataset, decode_fault, progress)
        findings = verifier.run()
        lease.check()
        mended = _Repairer(verifier).run(findings.damages)
    return findings, mended


def pending(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Return the quarantined files that no build has made again: `parts` and `shards`, by path."""
    state = dataset.state(REPAIRS)
    return {"parts": dict(state.get("parts", {})), "shards": dict(state.get("shards", {}))}


def check_finished(dataset: Dataset) -> None:
    """Raise UserError if a repair was interrupted, so that its record of quarantined files is incomplete."""
    if UNFINISHED in dataset.state(REPAIRS):
        again = f"espalier verify {dataset.name} --repair"
        raise UserError(f"a repair of {dataset.name!r} was interrupted; complete it first: {again}")


def settle(dataset: Dataset) -> None:
    """Make the logs agree with the parts that were made again. The caller must hold the lease."""
    waiting = pending(dataset)
    made = [path for path in waiting["parts"] if dataset.storage.exists(path)]
    if not made:
        return
    tables = {path.partition("/")[0] for path in made}
    for table in tables:
        amend(dataset.storage, table, made_of(table, made))
    restate(dataset, tables)  # also if no log changed now: an earlier attempt may have been killed after changing it
    dataset.renew_copies()
    set_pending(dataset, {p: s for p, s in waiting["parts"].items() if p not in made}, waiting["shards"])


def made_of(table: str, paths: list[str]) -> list[str]:
    """Return the paths of one table."""
    return [path for path in paths if path.startswith(f"{table}/")]


def set_pending(dataset: Dataset, parts: Mapping[str, Any], shards: Mapping[str, Any]) -> None:
    """Record the quarantined files."""
    dataset.set_state(REPAIRS, {"parts": dict(parts), "shards": dict(shards)})


class _Repairer:
    def __init__(self, verifier: Verifier) -> None:
        self._found = verifier
        self._dataset = verifier.dataset
        self._storage = verifier.storage
        self._time = datetime.now(UTC).strftime(QUARANTINE_TIME)
        self._mended = Mended()
        self._parts: dict[str, Any] = {}
        self._shards: dict[str, Any] = {}
        self._numbers_lost = False

    def run(self, damages: list[Damage]) -> Mended:
        paths = [damage.path for damage in sorted(damages, key=lambda damage: (_turn(damage.path), damage))]
        states = [path for path in paths if _turn(path) == 0]
        for path in states:
            self._mend(path)
        if self._numbers_lost:
            self._dataset.set_state(numbers.STATE, numbers.reserved(self._dataset))
        before = pending(self._dataset)
        if len(paths) > len(states):
            cut = {log.table: min(log.lost) for log in self._found.logs.values() if log.lost}
            self._dataset.set_state(REPAIRS, {**before, UNFINISHED: cut})
        for path in paths[len(states) :]:
            self._mend(path)
        for log in sorted(self._found.logs.values(), key=lambda log: log.table not in LOGS):  # `versions` is read below
            if log.lost:
                self._cut(log.table, min(log.lost))
        if len(paths) > len(states):
            if any(log.lost for log in self._found.logs.values()) or any(
                p.startswith(log_copies.FOLDER) for p in paths
            ):
                self._dataset.renew_copies()
            set_pending(self._dataset, before["parts"] | self._parts, before["shards"] | self._shards)
        self._dataset.copy_logs()
        for each in (self._mended.restored, self._mended.set_aside, self._mended.lost):
            each.sort()
        return self._mended

    def _mend(self, path: str) -> None:
        folder = path.partition("/")[0]
        if path.startswith(STATE_FOLDERS):
            self._mend_state(path)
        elif path.startswith(log_copies.FOLDER):
            self._aside(path)
            self._mended.restored.append(path)
        elif _is_log(path) or folder == "versions":
            self._mend_log(path)
        elif folder == "runs":
            self._unlist(path, "its record of a run is lost")
        elif folder == "_index":
            self._mend_index(path)
        elif folder == FOLDER:
            self._mend_shard(path)
        else:
            self._parts[path] = self._expected(path)
            self._aside(path)
            self._mended.set_aside.append(path)

    def _aside(self, path: str) -> None:
        """Move a file, or a folder of its name, to the quarantine if it exists."""
        if self._storage.exists(path) or self._storage.is_folder(path):
            self._storage.move(path, f"{QUARANTINE}/{self._time}/{path}")

    def _restore(self, path: str, data: bytes) -> None:
        self._aside(path)
        self._storage.put(path, data)
        self._mended.restored.append(path)

    def _mend_state(self, path: str) -> None:
        main, copies = STATE_FOLDERS
        name = path.rpartition("/")[2]
        other = f"{copies if path.startswith(f'{main}/') else main}/{name}"
        try:
            data = self._storage.read(other)
            opened_json(data)
        except (EspalierError, ValueError):
            self._mend_lost_state(path, name.removesuffix(".json"))
            return
        self._restore(path, data)

    def _mend_lost_state(self, path: str, name: str) -> None:
        """Repair a state of which no undamaged file is left, as far as possible."""
        if name not in IRREPLACEABLE:
            self._aside(path)
            self._mended.set_aside.append(path)
        elif path.startswith(f"{STATE_FOLDERS[0]}/"):
            lost = f"{path} has no undamaged copy: restore it, or its copy, from a backup of the catalog"
            self._mended.lost.append(lost)
        if name == numbers.STATE:
            self._numbers_lost = True

    def _mend_log(self, path: str) -> None:
        if (copy := self._found.copied.get(path)) is not None:
            self._restore(path, copy)
        elif log_copies.commit_number(path) is None and _is_log(path):  # a checkpoint: it repeats the commits
            self._aside(path)
            self._mended.restored.append(path)
        elif not _is_log(path):
            self._unlist(path, "the version is lost; the next build publishes another")
        # A commit without a copy: `_cut`.

    def _unlist(self, path: str, consequence: str) -> None:
        """Remove a lost part of `versions` or `runs` from its table."""
        self._aside(path)
        table = path.partition("/")[0]
        if not self._found.logs[table].lost:  # otherwise `_cut` rewrites the log from the existing parts
            delta.remove(self._storage, table, [path])
        self._mended.lost.append(f"{path} has no copy: {consequence}")

    def _cut(self, table: str, first: int) -> None:
        """Quarantine a table's commits from the first lost one without a copy, and the versions that need them."""
        log = self._found.logs[table]
        for number in range(first if table not in LOGS else 0, log.last + 1):
            self._aside(log_copies.commit_path(table, number))
        for path in self._storage.list(f"{table}/_delta_log"):
            if log_copies.commit_number(path) is None:
                self._aside(path)
        if table in LOGS:  # each of their parts is self-contained
            parts = self._readable(table)
            delta.commit(self._storage, table, VERSIONS if table == "versions" else RUNS, parts)
            if (
                table == "versions"
                and not parts
                and not any(line.startswith("versions/") for line in self._mended.lost)
            ):
                self._mended.lost.append("no row of a version is left: the next build publishes version 1 again")
            self._mended.restored.append(log_copies.commit_path(table, first))
            return
        needing = {
            path: version.number
            for path, version in self._version_rows()
            if table in version.tables and version.tables[table].delta_version >= first
        }
        rows, lost = list(needing), set(needing.values())
        delta.remove(self._storage, "versions", rows)
        for row in rows:
            self._aside(row)
        listed = ", ".join(map(str, sorted(lost))) or "none"
        self._mended.lost.append(
            f"{log_copies.commit_path(table, first)} has no copy: versions that need it are lost ({listed}); "
            "the next build publishes one from the parts that are there"
        )

    def _readable(self, table: str) -> list[PartFile]:
        """Return the readable parts of `versions` or `runs`. Parts that no log names have not been checked before."""
        found = []
        for path in [f"{table}/{name}.parquet" for name in self._dataset.finished(table)]:
            try:
                part = describe_part(self._storage, path)
                *_, seal = read_seal(self._storage, path, part.bytes)
                is_sound = isinstance(seal, Seal) and seal.recorded in (None, seal.found)
            except EspalierError:
                is_sound = False
            if is_sound and (table != "versions" or not self._is_replaced(path)):
                found.append(part)
            elif is_sound:
                continue
            else:
                self._aside(path)
                self._mended.lost.append(f"{path} has no copy, nor has the log that names it: its content is lost")
        return found

    def _is_replaced(self, path: str) -> bool:
        """Return whether a row of a version predates `approve`; such rows remain until `gc`."""
        number = PurePosixPath(path).name.partition("-")[0]
        rows = [f"versions/{name}.parquet" for name in self._dataset.finished("versions") if name.startswith(number)]
        return len(rows) > 1 and not self._is_approved(path) and any(map(self._is_approved, rows))

    def _is_approved(self, path: str) -> bool:
        try:
            return self._dataset.read_version(path).approved_at is not None
        except EspalierError:
            return False

    def _version_rows(self) -> list[tuple[str, Version]]:
        """Return the rows of `versions`, whose log has been repaired by now, and the versions."""
        return [(p.path, self._dataset.read_version(p.path)) for p in delta.files(self._storage, "versions")]

    def _mend_index(self, path: str) -> None:
        folder = "/".join(path.split("/")[:2])
        for each in self._storage.list(folder):
            self._aside(each)
        column = folder.rpartition("/")[2]
        command = f"espalier index {self._dataset.name} --column {column}"
        lost = f"the index of {column} was quarantined: `{command}` builds it again"
        if lost not in self._mended.lost:
            self._mended.lost.append(lost)

    def _expected(self, path: str) -> str | None:
        """Return the SHA-256 that a log records for a part."""
        log = self._found.logs.get(path.partition("/")[0])
        for number in range(log.last, -1, -1) if log else ():
            if (add := log.adds(number).get(path) if log else None) is not None:
                recorded: str | None = json.loads(add.get("stats") or "{}").get("sha256")
                return recorded
        return None

    def _mend_shard(self, path: str) -> None:
        if path.endswith(".tar"):
            part = self._found.recorded_by.get(path)
            self._shards[path] = describe_part(self._storage, part).files[path] if part else None
            self._aside(path)
            self._mended.set_aside.append(path)
            return
        part = self._found.recorded_by[path]
        described = describe_part(self._storage, part)
        data = beside(self._dataset, part, f"{stem(path)}.tar", self._parts)[path]
        record = record_of(data)
        if record != described.files[path] and made_of("source", [*self._parts, *pending(self._dataset)["parts"]]):
            self._aside(path)
            again = f"build, then `espalier verify {self._dataset.name} --repair` again"
            self._mended.lost.append(f"{path} repeats rows of the source that are damaged too: {again}")
            return
        self._restore(path, data)
        if record != described.files[path]:
            _record(self._dataset, described, {**described.files, path: record})


def beside(dataset: Dataset, part: str, shard: str, damaged: Collection[str] = ()) -> dict[str, bytes]:
    """Return path -> content of the sidecar files of a shard, from the part that names it and its source rows.

    `damaged`: parts of the source that cannot be read."""
    rows = read_parquet(dataset.storage, part)
    ids = np.asarray(rows.column("sample_id").to_numpy(), np.int64)
    sources = [path for name in dataset.finished("source") if (path := f"source/{name}.parquet") not in damaged]
    for name in ("url", "caption"):
        if name in rows.column_names or not sources:
            continue
        found = rows_of(dataset.storage, sources, ids, [name])
        at = np.searchsorted(found.column("sample_id").to_numpy(), ids)
        if found.num_rows and (at < found.num_rows).all():
            rows = rows.append_column(name, found.column(name).take(pa.array(at)))
    return sidecars(shard, rows)


def _record(dataset: Dataset, part: PartFile, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Rewrite a part with the same rows and other digests of files, and update the logs."""
    table, _, name = part.path.partition("/")
    rewrite(dataset, part.path, name.removesuffix(".parquet"), part.notes, files, {})
    if amend(dataset.storage, table, [part.path]):
        restate(dataset, [table])
        dataset.renew_copies()


def rewrite(
    dataset: Dataset,
    path: str,
    fingerprint: str,
    notes: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Any]],
    shards: Mapping[str, str],
    spans: Sequence[Span] = (),
) -> PartFile:
    """Write the rows of a part as another part of the same table, with renamed shards; return it.

    `spans`: the ranges that were put back into these shards (`catalog.shards.put_back`).
    """
    table = path.partition("/")[0]
    source = dataset.storage.local(path) or dataset.storage.filesystem().open_input_file(path)
    with pq.ParquetFile(source) as file:
        schema = file.schema_arrow.remove_metadata()
        with PartWriter(dataset.storage, table, fingerprint, schema) as writer:
            writer.notes |= notes
            writer.files |= files
            for group in range(file.num_row_groups):
                writer.write(_renamed(file.read_row_group(group, use_threads=False), shards, spans))
                writer.end_group()
    return writer.part()


def _renamed(rows: pa.Table, shards: Mapping[str, str], spans: Sequence[Span]) -> pa.Table:
    if not shards or "shard" not in rows.column_names:
        return rows
    if spans:
        places = zip(rows.column("shard").to_pylist(), rows.column("byte_offset").to_pylist(), strict=True)
        offsets = [moved(offset, spans) if shard in shards else offset for shard, offset in places]
        at = rows.column_names.index("byte_offset")
        rows = rows.set_column(at, rows.schema.field(at), pa.array(offsets, pa.int64()))
    names = [shards.get(name, name) for name in rows.column("shard").to_pylist()]
    at = rows.column_names.index("shard")
    return rows.set_column(at, rows.schema.field(at), pa.array(names, pa.string()))


def _turn(path: str) -> int:
    """Return the sort key of a file in the order of repair.

    Later steps read the builder's notes, the logs and the versions; sidecar files of shards repeat the source."""
    if path.startswith(STATE_FOLDERS):
        return 0
    if _is_log(path):
        return 1
    return {"versions": 2, FOLDER: 4}.get(path.partition("/")[0], 3)


def _is_log(path: str) -> bool:
    return "/_delta_log/" in path
