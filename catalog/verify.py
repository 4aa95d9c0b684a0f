"""Find damage: compare every file of a dataset with the sizes and digests that were recorded when it was written.

    file                                 is compared with
    commit of a Delta log                its copy (`catalog.log_copies`)
    part, and row of `versions`, `runs`  its own digest (`catalog.seal`), and the digest in the log
    shard, and its sidecar files         the digests in the footer of the part that was written with it
    state of the builder                 its own digest

Every file is read once. A file of an older release, which has no digest, is decoded completely: a Parquet file page by
page, a shard member by member and image by image. Nothing is changed; `catalog.repair` repairs what is found.
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
"""A function that is called with the number of bytes read so far, and the total."""
STATE_FOLDERS: Final = ("_state", "_copies/state")
_THREADS: Final = 4
_LEAST_BYTES: Final = 12
"""Size of the smallest Parquet file: the magic number twice, and the length of the footer."""


class Verifier:
    """Checks one dataset, and stores the logs and copies that it has read for `catalog.repair`."""

    def __init__(
        self, dataset: Dataset, decode_fault: DecodeFault, progress: Progress = lambda done, total: None
    ) -> None:
        """Take a function that decodes the images in shards of older releases, which have no recorded digest."""
        self.dataset = dataset
        self.storage = dataset.storage
        self.findings = Findings(dataset.name)
        self.copied: dict[str, bytes] = {}
        self.logs: dict[str, Log] = {}
        self.versions: list[Version] = []
        self.recorded_by: dict[str, str] = {}
        """Shard or sidecar file -> the part that records its digest."""
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
        """Check every file of the dataset; with `number`, only the files that this version requires.

        Raises NotFoundError if there is no such version.
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
            if table not in self.logs or self.logs[table].last < last:  # otherwise the log and all its copies were lost
                self._check_log(table, copies, last)
        wanted = self._wanted(number)
        self._total = sum(self.sizes.get(path, 0) for path in wanted)
        recorded: dict[str, Mapping[str, Any]] = {}
        unrecorded: dict[str, list[str]] = {}
        for files, shards in self._each(lambda item: self._check_part(*item), wanted.items()):
            recorded |= files
            for shard, part in shards:
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
        self.findings.damages = sorted(set(self.findings.damages))  # a log may be checked twice
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
        """Read the copies of the logs; return table -> the last commit that has a copy."""
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
                self._damaged(log_copies.path_of(number), "missing", "it does not exist")
        return until

    def _check_log(self, table: str, until: Mapping[str, int], least: int = -1) -> None:
        """Check the log of a table, which must have a commit `least`.

        `until`: table -> the last commit that has a copy.
        """
        folder = f"{table}/_delta_log/"
        found = {n for path in self.sizes if path.startswith(folder) and (n := commit_number(path)) is not None}
        entries: dict[int, bytes] = {}
        restored, lost = set(), set()
        first = self._repairs().get(UNFINISHED, {}).get(table, -1)
        for number in range(max((*found, until.get(table, -1), first, least)) + 1):
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
                self._damaged(path, "unreadable", "it does not agree with the commits")

    def _entry(self, path: str, copy: bytes | None) -> tuple[bytes, tuple[str, str] | None]:
        """Return the content of a commit, and its damage (kind, detail), or None if it is sound."""
        if path not in self.sizes:
            return b"", ("missing", "it does not exist")
        entry = self.storage.read(path)
        self._count(path, copy is not None)
        if copy is not None and entry != copy:
            if len(entry) != len(copy):
                return entry, ("size", f"{len(entry)} bytes, expected {len(copy)}")
            return entry, ("digest", "it differs from its copy")
        try:
            actions_of(entry, strict=True)
        except ValueError as error:
            return entry, ("unreadable", f"it is not a Delta commit ({error})")
        return entry, None

    def _agrees(self, table: str) -> bool:
        """Return whether Delta, which reads the checkpoints, lists the same parts as the commits."""
        log = self.logs[table]
        try:
            return sorted(log.adds(log.last)) == [part.path for part in delta.files(self.storage, table)]
        except EspalierError:
            return False

    def _check_versions(self, number: int | None) -> None:
        """Check the rows of `versions`, and read them, or their copies if they are damaged."""
        log = self.logs["versions"]
        unlisted = self.dataset.finished("versions") if log.lost else ()
        rows: dict[str, Mapping[str, Any] | None] = {f"versions/{name}.parquet": None for name in unlisted}
        rows |= log.adds(log.last)
        for path, add in rows.items():
            if number is not None and int(PurePosixPath(path).name.partition("-")[0]) != number:
                continue
            self._check_part(path, add)
            try:
                data = self.copied.get(path)
                self.versions.append(self.dataset.read_version(path, data))
            except EspalierError:
                continue  # it was reported as damaged, and has no copy
        if number is not None and not self.versions:
            self.dataset.version(number)  # raises NotFoundError, which lists the existing versions
        if not (self.versions or log.entries or log.lost or self._lacks_numbers()):
            raise NotFoundError(f"dataset {self.dataset.name!r} has no version yet; `espalier build` makes one")

    def _wanted(self, number: int | None) -> dict[str, dict[str, Any] | None]:
        """Return path -> `add` action of the Delta log for each part to check; None for parts that no log names."""
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
        """Return the quarantined parts: those that were made again since are not in the logs yet."""
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
        """Check a part; return the files that it records, and (shard, part) for shards of which nothing is recorded."""
        size = self.sizes.get(path)
        if size is None:
            self._damaged(path, "missing", "it does not exist")
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
        """Return the damage of a part (kind, detail), or None if it is sound, and whether the part has a digest."""
        if add is not None and add["size"] != size:
            return ("size", f"{size:,} bytes, expected {add['size']:,}"), True
        if size < _LEAST_BYTES:
            return ("unreadable", f"{size} bytes are not a Parquet file"), True
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
        """Return the last item of `steps`. Integers before it are the bytes read so far: they update the progress."""
        before, last = 0, None
        for last in steps:
            if isinstance(last, int):
                self._read(last - before)
                before = last
        self._read(self.sizes.get(path, before) - before)
        return last

    def _undecodable(self, path: str) -> tuple[str, str] | None:
        """Decode a Parquet file without a digest; return its damage (kind, detail), or None if it is sound."""
        try:
            source = self.storage.local(path) or self.storage.filesystem().open_input_file(path)
            with pq.ParquetFile(source, page_checksum_verification=True) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group, use_threads=False)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            return "unreadable", " ".join(str(error).split())[:200]
        return None

    def _shards(self, path: str) -> list[str]:
        """Return the shards that the rows of a part of `images` name."""
        if path.partition("/")[0] != "images":
            return []
        with pq.ParquetFile(self.storage.local(path) or self.storage.filesystem().open_input_file(path)) as file:
            if "shard" not in file.schema_arrow.names:
                return []
            found: list[str] = pc.unique(file.read(["shard"]).column("shard")).drop_null().to_pylist()
            return found

    def _check_recorded(self, path: str, record: Mapping[str, Any]) -> None:
        """Check a file of which the size and the digest are recorded."""
        size = self.sizes.get(path)
        if size is None:
            return self._damaged(path, "missing", "it does not exist")
        self._count(path)
        if size != record["bytes"]:
            return self._damaged(path, "size", f"{size:,} bytes, expected {record['bytes']:,}")
        digest = self._last(path, digest_of(self.storage, path, size))
        if digest != record["sha256"]:
            self._damaged(path, "digest", f"SHA-256 is {digest[:16]}..., expected {record['sha256'][:16]}...")
        return None

    def _check_shard(self, path: str, parts: Sequence[str]) -> None:
        """Check a shard without a recorded digest: decode its members, and the images that parts locate in it."""
        if path not in self.sizes:
            return self._damaged(path, "missing", "it does not exist")
        self._count(path, sealed=False)
        if fault := shard_fault(self.storage, path, parts, self._decode_fault):
            self._damaged(path, "unreadable", fault)
        self._read(self.sizes[path])
        return None

    # States and indexes.

    def _check_states(self) -> None:
        """Check the states of the builder, and their copies."""
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
                        self._damaged(path, "missing", "it does not exist")
                    continue
                data = self.storage.read(path)
                sealed = is_sealed(data)
                self._count(path, sealed)
                try:
                    opened_json(data)
                except ValueError as error:
                    self._damaged(path, "digest" if sealed else "unreadable", str(error))

    def _lacks_numbers(self) -> bool:
        """Return whether part numbers were assigned whose record, and its copy, do not exist."""
        is_recorded = any(f"{folder}/{numbers.STATE}.json" in self.sizes for folder in STATE_FOLDERS)
        return not is_recorded and numbers.were_given(self.dataset)

    def _check_indexes(self) -> None:
        """Check the stored search indexes, whose descriptions record the digests of their files."""
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
