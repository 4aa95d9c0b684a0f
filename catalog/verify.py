"""Finding damage: every file of a dataset against the sizes and digests that were recorded where it was written.

    what                          found to be damaged by
    commit of a Delta log         its copy (`catalog.log_copies`)
    row of a version, run, part   its own digest (`catalog.seal`), and the log's
    shard, and files beside it    the digest in the footer of the part that was written with it
    the builder's notes           their own digest

Every file is read once. One of an older release that has no digest is decoded to the end: a Parquet file page by page,
a shard member by member and picture by picture. Nothing is changed; `catalog.repair` does that.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from threading import Lock
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog import delta, log_copies, numbers
from catalog.commits import Log, actions_of
from catalog.dataset import LOGS, QUARANTINE, REPAIRS, UNFINISHED, Dataset
from catalog.errors import EspalierError, NotFoundError
from catalog.findings import Damage, Findings
from catalog.log_copies import Copies, commit_number, commit_path
from catalog.parts import describe_part
from catalog.seal import Seal, digest_of, is_sealed, opened_json, read_seal
from catalog.shard_check import DecodeFault, shard_fault
from catalog.storage import is_temporary
from catalog.version import Version

Progress = Callable[[int, int], None]
"""Bytes that were read, and how many there are."""
STATE_FOLDERS: Final = ("_state", "_copies/state")
_THREADS: Final = 4
_LEAST_BYTES: Final = 12
"""Of a Parquet file: two magics and a length."""


class Verifier:
    """Checks one dataset; keeps what it has read of the logs and copies, for `catalog.repair`."""

    def __init__(
        self, dataset: Dataset, decode_fault: DecodeFault, progress: Progress = lambda done, total: None
    ) -> None:
        """`decode_fault` decodes the images of shards of older releases, of which no digest was recorded."""
        self.dataset = dataset
        self.storage = dataset.storage
        self.findings = Findings(dataset.name)
        self.copied: dict[str, bytes] = {}
        self.logs: dict[str, Log] = {}
        self.versions: list[Version] = []
        self.recorded_by: dict[str, str] = {}
        """Shard, or file beside one -> the part that says its digest."""
        self.sizes = {
            path: size
            for path, size in dataset.storage.list().items()
            if not is_temporary(path) and not path.startswith((f"{QUARANTINE}/", "_work/"))
        }
        self._decode_fault = decode_fault
        self._progress = progress
        self._lock = Lock()
        self._done = self._total = 0

    def run(self, number: int | None = None) -> Findings:
        """Check every version, and whatever else the dataset keeps; with `number`, just what that version needs.

        Raises NotFoundError where there is no such version.
        """
        copies = self._check_copies()
        tables = sorted({*self.dataset.tables(), *LOGS, *copies})
        for table in tables:
            self._check_log(table, copies, self.dataset.noted_copies()["versions"] if table == "versions" else -1)
        self._check_versions(number)
        needed: dict[str, int] = {}
        for version in self.versions:
            for table, state in version.tables.items():
                needed[table] = max(needed.get(table, -1), state.delta_version)
        for table, last in needed.items():
            if table not in self.logs or self.logs[table].last < last:  # else the log was lost with all of its copies
                self._check_log(table, copies, last)
        wanted = self._wanted(number)
        self._total = sum(self.sizes.get(path, 0) for path in wanted)
        recorded: dict[str, Mapping[str, Any]] = {}
        unrecorded: dict[str, list[str]] = {}
        for found in self._each(lambda item: self._check_part(*item), wanted.items()):
            recorded |= found[0]
            for shard, part in found[1]:
                unrecorded.setdefault(shard, []).append(part)
        unrecorded = {shard: parts for shard, parts in unrecorded.items() if shard not in recorded}
        self._total += sum(self.sizes.get(path, 0) for path in (*recorded, *unrecorded))
        self._each(lambda item: self._check_recorded(*item), recorded.items())
        self._each(lambda item: self._check_shard(*item), unrecorded.items())
        self._check_states()
        if number is None:
            self._check_indexes()
        else:
            self.findings.label = f"{self.dataset.name}@{number}"
        self.findings.damages = sorted(set(self.findings.damages))  # a log may have been checked twice
        return self.findings

    def _each(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        with ThreadPoolExecutor(_THREADS if self.storage.is_local else 16) as pool:
            return list(pool.map(function, list(items)))

    def _damaged(self, path: str, kind: str, detail: str) -> None:
        if kind == "missing" and self.storage.is_folder(path):
            kind, detail = "unreadable", self.storage.why_missing(path)
        with self._lock:
            self.findings.damages.append(Damage(path, kind, detail))

    def _count(self, path: str, sealed: bool = True) -> None:
        with self._lock:
            self.findings.files += 1
            self.findings.bytes += self.sizes.get(path, 0)
            self.findings.without_digest += not sealed

    def _read(self, size: int) -> None:
        with self._lock:
            self._done += size
            self._progress(self._done, max(self._total, self._done))

    # The logs.

    def _check_copies(self) -> dict[str, int]:
        """Read the copies of the logs; return table -> the last commit of which there is one."""
        until: dict[str, int] = {}
        numbers = []
        for path in log_copies.paths(self.storage):
            self._count(path)
            numbers.append(int(PurePosixPath(path).name[:8]))
            try:
                copies: Copies = log_copies.read(self.storage, path)
            except ValueError as error:
                self._damaged(path, "digest", str(error))
                continue
            self.copied |= copies.files
            until |= copies.until
        newest = self.dataset.noted_copies()["newest"]
        for number in range(min(numbers, default=max(newest, 1)), max([newest, *numbers]) + 1):
            if number not in numbers:
                self._damaged(log_copies.path_of(number), "missing", "it is not there")
        return until

    def _check_log(self, table: str, until: Mapping[str, int], least: int = -1) -> None:
        """Check a log, of which there must be a commit `least`."""
        folder = f"{table}/_delta_log/"
        there = {n: path for path in self.sizes if path.startswith(folder) and (n := commit_number(path)) is not None}
        entries: dict[int, bytes] = {}
        restored, lost = set(), set()
        first = self._repairs().get(UNFINISHED, {}).get(table, -1)
        for number in range(max((*there, until.get(table, -1), first, least)) + 1):
            path = commit_path(table, number)
            entry, fault = self._entry(path, self.copied.get(path))
            if number == first and fault is None:
                fault = ("unreadable", "a repair of the log was interrupted")
            if fault is None:
                entries[number] = entry
                continue
            self._damaged(path, *fault)
            if (copy := self.copied.get(path)) is not None:
                entries[number] = copy
                restored.add(number)
            else:
                lost.add(number)
        self.logs[table] = Log(table, entries, frozenset(restored), frozenset(lost))
        checkpoints = sorted(p for p in self.sizes if p.startswith(folder) and "checkpoint" in p)
        if checkpoints and not (restored or lost) and not self._agrees(table):
            for path in checkpoints:
                self._damaged(path, "unreadable", "it does not say what the commits say")

    def _entry(self, path: str, copy: bytes | None) -> tuple[bytes, tuple[str, str] | None]:
        """Return a commit, and what is wrong with it: kind and detail."""
        if path not in self.sizes:
            return b"", ("missing", "it is not there")
        entry = self.storage.read(path)
        self._count(path, copy is not None)
        if copy is not None and entry != copy:
            kind = "size" if len(entry) != len(copy) else "digest"
            said = (
                f"{len(entry)} bytes, expected {len(copy)}" if kind == "size" else "its bytes are not those of its copy"
            )
            return entry, (kind, said)
        try:
            actions_of(entry, strict=True)
        except ValueError as error:
            return entry, ("unreadable", f"it is no Delta commit ({error})")
        return entry, None

    def _agrees(self, table: str) -> bool:
        log = self.logs[table]
        try:
            return sorted(log.adds(log.last)) == [part.path for part in delta.files(self.storage, table)]
        except EspalierError:
            return False

    def _check_versions(self, number: int | None) -> None:
        """Check the rows of versions, and read them (from their copies where they are damaged)."""
        log = self.logs["versions"]
        there = self.dataset.finished("versions") if log.lost else ()
        rows: dict[str, Mapping[str, Any] | None] = {f"versions/{name}.parquet": None for name in there}
        rows |= log.adds(log.last)
        for path, add in rows.items():
            if number is not None and int(PurePosixPath(path).name.partition("-")[0]) != number:
                continue
            self._check_part(path, add)
            try:
                data = self.copied.get(path)
                self.versions.append(self.dataset.read_version(path, data))
            except EspalierError:
                continue  # it is damaged, and named, and there is no copy
        if number is not None and not self.versions:
            self.dataset.version(number)  # raises NotFoundError, with what there is
        if not (self.versions or log.entries or log.lost or self._lacks_numbers()):
            raise NotFoundError(f"dataset {self.dataset.name!r} has no version yet; `espalier build` makes one")

    def _wanted(self, number: int | None) -> dict[str, dict[str, Any] | None]:
        """Return path -> Delta's `add` of the parts to check; None for those that no log names."""
        pending = self.pending()
        wanted: dict[str, dict[str, Any] | None] = {}
        for version in self.versions:
            for table, state in version.tables.items():
                wanted |= self.logs[table].adds(state.delta_version) if table in self.logs else {}
        if number is None:
            for table, log in self.logs.items():
                if table != "versions":
                    wanted |= log.adds(log.last)
            for table in self.dataset.tables():
                parts = (f"{table}/{name}.parquet" for name in self.dataset.finished(table))
                wanted |= {path: None for path in parts if path not in wanted}
        return {path: None if path in pending and path in self.sizes else add for path, add in wanted.items()}

    def pending(self) -> dict[str, Any]:
        """Return the parts that were set aside and may have been made again: the logs do not know them yet."""
        return dict(self._repairs().get("parts", {}))

    def _repairs(self) -> dict[str, Any]:
        try:
            return self.dataset.state(REPAIRS)
        except EspalierError:
            return {}

    # Parts and shards.

    def _check_part(
        self, path: str, add: Mapping[str, Any] | None
    ) -> tuple[Mapping[str, Mapping[str, Any]], list[tuple[str, str]]]:
        """Check a part. Return what it records of files, and (shard, part) for shards of which nothing is recorded."""
        size = self.sizes.get(path)
        if size is None:
            self._damaged(path, "missing", "it is not there")
            return {}, []
        try:
            fault, sealed = self._part_fault(path, size, add)
            self._count(path, sealed)
            if fault is None:
                files = describe_part(self.storage, path).files
                with self._lock:
                    self.recorded_by |= dict.fromkeys(files, path)
                return files, [] if files or sealed else [(shard, path) for shard in self._shards(path)]
        except EspalierError as error:
            fault = ("unreadable", str(error).partition(" is damaged: ")[2].partition("; `")[0] or str(error))
        self._damaged(path, *fault)
        return {}, []

    def _part_fault(self, path: str, size: int, add: Mapping[str, Any] | None) -> tuple[tuple[str, str] | None, bool]:
        """Return what is wrong with a part (kind, detail; None where nothing is), and whether it has a digest."""
        if add is not None and add["size"] != size:
            return ("size", f"{size:,} bytes, expected {add['size']:,}"), True
        if size < _LEAST_BYTES:
            return ("unreadable", f"{size} bytes are no Parquet file"), True
        expected = json.loads(add.get("stats") or "{}").get("sha256") if add is not None else None
        seal = self._last(path, read_seal(self.storage, path, size))
        assert isinstance(seal, Seal)
        if seal.recorded is None and expected is None:
            return self._undecodable(path), False
        recorded = expected or seal.recorded
        if seal.found == recorded == seal.recorded:
            return None, True
        if seal.recorded is None:
            return ("digest", f"its footer has no SHA-256, expected {recorded}"), True
        wrong = seal.found if seal.found != recorded else seal.recorded
        return ("digest", f"SHA-256 is {wrong[:16]}..., expected {str(recorded)[:16]}..."), True

    def _last(self, path: str, steps: Iterator[Any]) -> Any:
        """Return what steps end with; the numbers before are bytes read so far."""
        before, last = 0, None
        for last in steps:
            if isinstance(last, int):
                self._read(last - before)
                before = last
        self._read(self.sizes.get(path, before) - before)
        return last

    def _undecodable(self, path: str) -> tuple[str, str] | None:
        """Decode a Parquet file without a digest to its end; return what is wrong with it."""
        try:
            source = self.storage.local(path) or self.storage.filesystem().open_input_file(path)
            with pq.ParquetFile(source, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group, use_threads=False)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            return "unreadable", " ".join(str(error).split())[:200]
        return None

    def _shards(self, path: str) -> list[str]:
        if path.partition("/")[0] != "images":
            return []
        with pq.ParquetFile(self.storage.local(path) or self.storage.filesystem().open_input_file(path)) as file:
            if "shard" not in file.schema_arrow.names:
                return []
            found: list[str] = pc.unique(file.read(["shard"]).column("shard")).drop_null().to_pylist()
            return found

    def _check_recorded(self, path: str, record: Mapping[str, Any]) -> None:
        size = self.sizes.get(path)
        if size is None:
            return self._damaged(path, "missing", "it is not there")
        self._count(path)
        if size != record["bytes"]:
            return self._damaged(path, "size", f"{size:,} bytes, expected {record['bytes']:,}")
        digest = self._last(path, digest_of(self.storage, path, size))
        if digest != record["sha256"]:
            self._damaged(path, "digest", f"SHA-256 is {digest[:16]}..., expected {record['sha256'][:16]}...")
        return None

    def _check_shard(self, path: str, parts: Sequence[str]) -> None:
        """Check a shard of which nothing is recorded: its members, and the pictures that parts say are in it."""
        if path not in self.sizes:
            return self._damaged(path, "missing", "it is not there")
        self._count(path, sealed=False)
        if fault := shard_fault(self.storage, path, parts, self._decode_fault):
            self._damaged(path, "unreadable", fault)
        self._read(self.sizes[path])
        return None

    # Notes and indexes.

    def _check_states(self) -> None:
        main, _ = STATE_FOLDERS
        paths = [PurePosixPath(path) for path in self.sizes]
        names = {path.name for path in paths if str(path.parent) in STATE_FOLDERS}
        if self._lacks_numbers():
            names.add(f"{numbers.STATE}.json")
        for name in sorted(names):
            sealed = False
            for folder in STATE_FOLDERS:
                path = f"{folder}/{name}"
                if path not in self.sizes:
                    if folder == main or sealed or self.storage.is_folder(path):
                        self._damaged(path, "missing", "it is not there")
                    continue
                data = self.storage.read(path)
                sealed = is_sealed(data)
                self._count(path, sealed)
                try:
                    opened_json(data)
                except ValueError as error:
                    self._damaged(path, "digest" if sealed else "unreadable", str(error))

    def _lacks_numbers(self) -> bool:
        """Say whether part numbers were given, and nothing says which."""
        there = any(f"{folder}/{numbers.STATE}.json" in self.sizes for folder in STATE_FOLDERS)
        return not there and numbers.were_given(self.dataset)

    def _check_indexes(self) -> None:
        for path in sorted(p for p in self.sizes if p.startswith("_index/") and p.endswith("/index.json")):
            data = self.storage.read(path)
            self._count(path, is_sealed(data))
            try:
                facts = opened_json(data)
                digests: Mapping[str, Mapping[str, Any]] = facts.get("digests", {})
            except ValueError as error:
                self._damaged(path, "digest", str(error))
                continue
            for name, record in digests.items():
                self._check_recorded(f"{path.rpartition('/')[0]}/{name}", record)
