"""Datasets and their versions: which commit of every table, from which recipe and code.

    <catalog>/<dataset>/<table>/<fingerprint>.parquet, <table>/_delta_log     parts, and which of them count
    <catalog>/<dataset>/shards/*.tar                                          image bytes
    <catalog>/<dataset>/versions/   runs/                                     what was published; what ran
    <catalog>/<dataset>/_state/*.json   _lease                                the builder's notes; who builds now
    <catalog>/<dataset>/_copies/                                              of the logs and the notes (`verify`)

A version is one row of `versions`, and that row is one commit: it is there or not. Tables are committed before it, so
a build that is killed between leaves commits that no version names, and the last version as it was.
"""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from catalog import delta, log_copies, runs
from catalog.errors import BalanceError, BuildError, DamagedError, NotFoundError, UserError, damaged, nearest, reading
from catalog.parts import PartFile, describe_part
from catalog.schema import without_absent
from catalog.seal import opened_json, sealed_json
from catalog.storage import Storage, is_temporary
from catalog.version import (
    VERSIONS,
    TableState,
    TableVersion,
    Version,
    VersionFacts,
    from_parquet,
    number_in,
    to_parquet,
)
from catalog.wording import amount

DEFAULT_CATALOG: Final = "datasets"
"""The folder of the catalog, unless another is specified."""
LOGS: Final = ("versions", "runs")
"""The tables that record what was published and what ran."""
NOT_TABLES: Final = ("shards", *LOGS)
"""Folders of a dataset that hold no table of a stage. Those that begin with `_` do not either."""

QUARANTINE: Final = "_quarantine"
"""The folder of a dataset where `verify --repair` puts what is damaged, in a folder named by the time."""
QUARANTINE_TIME: Final = "%Y%m%dT%H%M%S%fZ"

COPIES: Final = "copies"
"""The dataset's state that records which file of copies of the logs is the newest."""

REPAIRS: Final = "repairs"
"""The dataset's state that records what `verify --repair` set aside until a build settles it (`catalog.repair`)."""
UNFINISHED: Final = "unfinished"
"""The key of that state during a repair."""
IRREPLACEABLE: Final = ("retries", "takedowns")
"""States that cannot be made again: which failed rows to retry, and which rows must not come back."""

_STATE: Final = "_state"
_STATE_COPIES: Final = "_copies/state"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_RESERVED: Final = frozenset({"main", "temp", "system", "pg_catalog", "information_schema"})


def check_name(name: str) -> str:
    """Return a dataset's name if it is one; else raise UserError with a name that is."""
    if _NAME.fullmatch(name) and name not in _RESERVED:
        return name
    better = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")[:60] or "dataset"
    better = better if better[0].isalpha() and better not in _RESERVED else f"d_{better}"
    raise UserError(f"{name!r} cannot name a dataset: lower-case letters, digits and _; {better!r} can")


class Catalog:
    """A folder or object-store prefix that holds datasets. Picklable; keeps nothing in memory."""

    def __init__(self, uri: str | Path, create: bool | None = False) -> None:
        """Open a catalog. If its folder does not exist, True creates it, False raises NotFoundError, and None opens an
        empty catalog whose folder is created by the first write."""
        folder = Path(str(uri).removeprefix("file://")).expanduser().resolve()
        if create is None and "://" not in str(uri).removeprefix("file://") and not folder.exists():
            self.storage = Storage(str(folder))
        else:
            self.storage = Storage.open(uri, bool(create))

    @property
    def uri(self) -> str:
        """Where it is."""
        return self.storage.uri

    def datasets(self) -> tuple[str, ...]:
        """Return the names of the datasets, built to the end or not, sorted."""
        return tuple(name for name in self.storage.folders() if _NAME.fullmatch(name) and name not in _RESERVED)

    def dataset(self, name: str) -> "Dataset":
        """Return a dataset, which need not exist yet. Raises UserError where the name cannot be one's."""
        return Dataset(check_name(name), self.storage.child(name))

    def existing(self, name: str) -> "Dataset":
        """Return a dataset. Raises NotFoundError if it does not exist."""
        known = self.datasets()
        if name not in known:
            raise NotFoundError(f"no dataset {name!r} in {self.uri}{nearest(name, known)}")
        return self.dataset(name)

    def resolve(self, label: str) -> Version:
        """Return the version that `laion@3` means; `laion` means the last one."""
        name, at, number = label.partition("@")
        if at and not number.isdecimal():
            raise UserError(f"{label!r} names no version; expected DATASET or DATASET@NUMBER, like {name or 'laion'}@1")
        return self.existing(name).version(int(number) if at else None)


@dataclass(frozen=True)
class Dataset:
    """A named set of tables in a catalog, with versions. Picklable; every call looks at what is stored now."""

    name: str
    storage: Storage

    @property
    def catalog(self) -> Catalog:
        """The catalog that it is in."""
        return Catalog(self.storage.root)

    def tables(self) -> tuple[str, ...]:
        """Return the names of the folders that hold a table's parts, published or not."""
        return tuple(f for f in self.storage.folders() if f not in NOT_TABLES and not f.startswith(("_", ".")))

    def exists(self) -> bool:
        """Say whether anything of it is stored."""
        folder = self.storage.local()
        return folder.is_dir() if folder else bool(self.storage.folders())

    def finished(self, table: str) -> dict[str, int]:
        """Return fingerprint -> size in bytes of a table's finished parts, published or not, by one listing."""
        sizes = self.storage.list(table)
        names = {path: path.removeprefix(f"{table}/") for path in sizes if not is_temporary(path)}
        return {
            name.removesuffix(".parquet"): sizes[path]
            for path, name in names.items()
            if name.endswith(".parquet") and "/" not in name and not name.startswith(".")
        }

    def publish(self, tables: Mapping[str, TableState], facts: VersionFacts, held: Sequence[str] = ()) -> Version:
        """Commit every table, then the version that names the commits; return it.

        `held` are the reasons for which it may not be the latest before `approve`; none for a version that may.
        Publishing the state of the last version returns that version, whatever `held` is, and publishing the state of a
        later held version, for the same reasons, returns that one: so it is safe to repeat, after a kill too.
        Raises BuildError (nothing is published) where a part is missing, or the disk is full.
        """
        log_copies.check(self.storage)
        if lost := self._lost_commit():
            raise damaged(self.storage.uri, lost, "it does not exist")
        delta.widen(self.storage, "versions", VERSIONS)
        before = self.version_files()
        base = self.read_version(before[-1].path).tables if before else {}
        committed = {name: self._commit(name, tables[name], base.get(name)) for name in sorted(tables)}
        for _ in range(100):
            after = delta.latest(self.storage, "versions")
            newest = list(self._newest(self.version_files(after)))
            for version in reversed(newest):  # the last one first
                expected = not version.is_held or tuple(version.held) == tuple(held)
                if expected and version.recipe_sha256 == facts.recipe_sha256 and self._same(version.tables, committed):
                    return version
            version = self._next(newest[0] if newest else None, committed, facts, held)
            if self._append(version, after):
                return version
        raise BuildError(f"{self.name}: other builders kept publishing; build again")

    def versions(self) -> list[Version]:
        """Return all versions, oldest first; none where nothing was published."""
        return [self.read_version(part.path) for part in self.version_files()]

    def last(self) -> Version | None:
        """Return the last version that is not held, or None if there is no such version.

        Reads one row, however many there are, and one more for every held version that came later.
        """
        newest = list(self._newest(self.version_files()))
        return newest[-1] if newest and not newest[-1].is_held else None

    def held(self) -> list[Version]:
        """Return the held versions that came after the last one, newest first."""
        return [version for version in self._newest(self.version_files()) if version.is_held]

    def version(self, number: int | None = None) -> Version:
        """Return one version, held or not; by default the last that is not held.

        Raises NotFoundError, with the versions that exist.
        """
        files = {number_in(part.path): part.path for part in self.version_files()}
        if not files:
            raise NotFoundError(f"dataset {self.name!r} has no version yet; `espalier build` makes one")
        if number is None:
            if (last := self.last()) is not None:
                return last
            newest = f"{self.name}@{max(files)}"
            raise NotFoundError(
                f"every version of dataset {self.name!r} is held: name one, like {newest}, "
                f"or let it count with `espalier approve {newest}`"
            )
        if number not in files:
            known = ", ".join(map(str, files)) if len(files) < 10 else f"{min(files)} to {max(files)}"
            raise NotFoundError(f"dataset {self.name!r} has no version {number}; there is: {known}")
        return self.read_version(files[number])

    def approve(self, number: int) -> Version:
        """Let a held version count like any other; return it. It is the latest where no later version counts.

        Its row is replaced by one commit, so a kill leaves it held or approved. The caller must hold the lease.
        Raises UserError where the version is not held (any more), NotFoundError where it does not exist.
        """
        delta.widen(self.storage, "versions", VERSIONS)
        for _ in range(100):
            after = delta.latest(self.storage, "versions")
            version = self.version(number)
            if not version.held:
                raise UserError(f"{version.label} is not held: there is nothing to approve")
            if version.approved_at is not None:
                raise UserError(f"{version.label} was approved before, at {version.approved_at:%Y-%m-%d %H:%M} UTC")
            (old,) = [part for part in self.version_files(after) if number_in(part.path) == number]
            version = replace(version, approved_at=datetime.now(UTC))
            if self._append(version, after, old):
                return version
        raise BuildError(f"{self.name}: other builders kept publishing; try again")

    def files(self, version: Version, table: str) -> list[PartFile]:
        """Return the parts of a table in a version (paths relative to the dataset), sorted by path."""
        return self.contents(version, table)[1]

    def schema(self, version: Version, table: str) -> pa.Schema:
        """Return a table's schema in a version, in Delta's types (see `catalog.delta`), with our field metadata."""
        return self.contents(version, table)[0]

    def contents(self, version: Version, table: str) -> tuple[pa.Schema, list[PartFile]]:
        """Return `schema` and `files`, reading the log once. Raises DamagedError where it does not hold them."""
        state = self._of(version, table)
        log = f"{table}/_delta_log"
        try:
            schema, parts = delta.contents(self.storage, table, state.delta_version)
        except NotFoundError as error:
            raise damaged(self.storage.uri, log, f"it has no commit {state.delta_version}") from error
        if len(parts) != state.files:  # readers skip an empty commit
            detail = f"it lists {amount(len(parts), 'part')} at commit {state.delta_version}, expected {state.files}"
            raise damaged(self.storage.uri, log, detail)
        return schema, parts

    def republish(self) -> Version:
        """Publish the last version once more, under the next number: its files are not what they were.

        Raises NotFoundError where nothing was published, or every version is held.
        """
        delta.widen(self.storage, "versions", VERSIONS)
        for _ in range(100):
            after = delta.latest(self.storage, "versions")
            number = number_in(self.version_files(after)[-1].path) + 1 if after >= 0 else 1
            version = replace(self.version(), number=number, created_at=datetime.now(UTC), held=(), approved_at=None)
            if self._append(version, after):
                return version
        raise BuildError(f"{self.name}: other builders kept publishing; try again")

    def forget(self, numbers: Sequence[int]) -> None:
        """Remove versions from the list (never the last). Their files remain until `catalog.gc` collects them."""
        files = {number_in(part.path): part.path for part in self.version_files()}
        last = self.last()
        newest = last.number if last else max(files, default=None)
        if newest in numbers:
            raise UserError(f"dataset {self.name!r}: version {newest} is the last one and cannot be removed")
        if gone := [files[number] for number in numbers if number in files]:
            delta.remove(self.storage, "versions", gone)
            self.copy_logs()

    def record_run(self, *rows: Mapping[str, Any]) -> None:
        """Append rows to `runs` (columns of `catalog.runs.RUNS`; a missing column is null). Safe for many processes."""
        runs.append(self.storage, rows)

    def runs(self) -> pa.Table:
        """Return what ran: the columns of `catalog.runs.RUNS`, oldest first."""
        return runs.read(self.storage)

    def state(self, name: str) -> dict[str, Any]:
        """Return what `set_state` kept under a name; empty where nothing was. Raises DamagedError."""
        path, copy = f"{_STATE}/{name}.json", f"{_STATE_COPIES}/{name}.json"
        try:
            return opened_json(self.storage.read(path))
        except NotFoundError as error:
            if self.storage.exists(copy) or self.storage.is_folder(path):
                raise self._damaged_state(name, self.storage.why_missing(path)) from error
            return {}
        except ValueError as error:
            raise self._damaged_state(name, f"{error}") from error

    def _damaged_state(self, name: str, why: str) -> DamagedError:
        path, copy = f"{_STATE}/{name}.json", f"{_STATE_COPIES}/{name}.json"
        try:
            opened_json(self.storage.read(copy))
        except (NotFoundError, ValueError):
            if name in IRREPLACEABLE:
                problem = f"{self.storage.uri}/{path} is damaged: {why}"
                return DamagedError(
                    f"{problem}; it has no sound copy: restore it, or its copy, from a backup of the catalog"
                )
        return damaged(self.storage.uri, path, why)

    def set_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep a JSON object under a name, atomically, over what was there; and a copy of it, for `verify --repair`."""
        data = sealed_json(state)
        self.storage.put(f"{_STATE}/{name}.json", data)
        self.storage.put(f"{_STATE_COPIES}/{name}.json", data)

    def states(self) -> tuple[str, ...]:
        """Return the names under which something is kept, sorted."""
        paths = (path.removeprefix(f"{_STATE}/") for path in self.storage.list(_STATE))
        return tuple(path.removesuffix(".json") for path in paths if path.endswith(".json") and "/" not in path)

    def copy_logs(self) -> None:
        """Copy the commits that have no copy yet (`catalog.log_copies`).

        Called after every commit of a version, and first of all by every process that takes the lease, because a kill
        may have come in between.

        Not while a repair is unfinished, which may be taking commits out of a log, or where the list of versions is
        not what it was: `verify` must still find that out.
        """
        try:
            if UNFINISHED in self.state(REPAIRS) or self._lost_commit():
                return
        except DamagedError:
            return
        self._note_copies(log_copies.keep(self.storage, (*self.tables(), *LOGS)))

    def renew_copies(self) -> None:
        """Copy all logs again, after files were replaced in place. The caller must hold the lease."""
        self._note_copies(log_copies.renew(self.storage, (*self.tables(), *LOGS)))

    def _note_copies(self, copies: log_copies.Copies) -> None:
        """Keep the number of the newest file of copies, and of the last commit of `versions`: else nobody would miss
        that file, or all of them with that log."""
        note = {"newest": copies.number, "versions": copies.until.get("versions", -1)}
        if self.noted_copies() != note:
            self.set_state(COPIES, note)

    def noted_copies(self) -> dict[str, int]:
        """Return the numbers of the newest file of copies (0: none) and of the last commit of `versions` (-1: none),
        as they were noted."""
        try:
            return {"newest": 0, "versions": -1} | self.state(COPIES)
        except DamagedError:
            return {"newest": 0, "versions": -1}

    def _lost_commit(self) -> str | None:
        """Return the last recorded commit of `versions` if it is missing; None if there is no table at all.

        A dataset without tables begins from nothing.
        """
        if not self.tables():
            return None
        path = log_copies.commit_path("versions", number) if (number := self.noted_copies()["versions"]) >= 0 else None
        return path if path and not self.storage.exists(path) else None

    def _commit(self, table: str, state: TableState, before: TableVersion | None) -> TableVersion:
        found = self._columns(table, state, before)
        schema = without_absent(state.schema, found)
        number = delta.commit(self.storage, table, schema, state.parts)
        rows, size = sum(part.rows for part in state.parts), sum(part.bytes for part in state.parts)
        return TableVersion(number, rows, size, len(state.parts), found <= {tuple(schema.names)})

    def _columns(self, table: str, state: TableState, before: TableVersion | None) -> set[tuple[str, ...]]:
        """Return the columns of each part, each list of names once. Reads the footers of parts that the version
        `before` did not have, or of all where those had different columns.

        Raises BalanceError where a part holds another number of rows than was recorded.
        """
        known: set[str] = set()
        found: set[tuple[str, ...]] = set()
        if before and before.uniform:
            registered, parts = delta.contents(self.storage, table, before.delta_version)
            known = {part.path for part in parts} & {part.path for part in state.parts}
            found = {tuple(registered.names)} if known else set()
        fresh = [part for part in state.parts if part.path not in known]
        filesystem = None if self.storage.is_local else self.storage.filesystem()

        def columns(part: PartFile) -> tuple[str, ...]:
            with reading(self.storage.uri, part.path):
                footer = pq.read_metadata(self.storage.local(part.path) or part.path, filesystem=filesystem)
            if footer.num_rows != part.rows:
                raise BalanceError(f"part {part.path} has {amount(footer.num_rows, 'row')}, expected {part.rows}")
            return tuple(footer.schema.to_arrow_schema().names)

        with ThreadPoolExecutor(1 if self.storage.is_local else 16) as pool:
            return found | set(pool.map(columns, fresh))

    def _of(self, version: Version, table: str) -> TableVersion:
        if table not in version.tables:
            raise NotFoundError(f"{version.label} has no table {table!r}{nearest(table, version.tables)}")
        return version.tables[table]

    def _same(self, one: Mapping[str, TableVersion], other: Mapping[str, TableVersion]) -> bool:
        """Say whether two versions' tables hold the same parts, though their commits may differ."""
        if one.keys() != other.keys():
            return False
        pairs = [(name, one[name].delta_version, other[name].delta_version) for name in one]
        return all(a == b or self._contents(name, a) == self._contents(name, b) for name, a, b in pairs)

    def _contents(self, table: str, number: int) -> tuple[str, list[PartFile]]:
        registered, parts = delta.contents(self.storage, table, number)
        return str(registered), parts

    def _newest(self, files: Sequence[PartFile]) -> Iterator[Version]:
        """Yield the newest version, the one before it, ..., and end with the first that is not held."""
        for part in reversed(files):
            version = self.read_version(part.path)
            yield version
            if not version.is_held:
                return

    def _next(
        self, newest: Version | None, committed: Mapping[str, TableVersion], facts: VersionFacts, held: Sequence[str]
    ) -> Version:
        return Version(
            dataset=self.name,
            number=newest.number + 1 if newest else 1,
            created_at=datetime.now(UTC),
            tables=committed,
            recipe=facts.recipe,
            recipe_sha256=facts.recipe_sha256,
            code_version=facts.code_version,
            inputs=facts.inputs,
            stages=facts.stages,
            seed=facts.seed,
            held=tuple(held),
        )

    def _append(self, version: Version, after: int, old: PartFile | None = None) -> bool:
        """Write a version's row and commit it, in the place of `old`; False where somebody else published meanwhile."""
        data = to_parquet(version)
        path = f"versions/{version.number:08d}-{secrets.token_hex(8)}.parquet"
        self.storage.put(path, data)
        try:
            part = describe_part(self.storage, path)
            if old is None:
                delta.append(self.storage, "versions", VERSIONS, part, after)
            else:
                delta.replace(self.storage, "versions", old, part, after)
        except delta.OvertakenError:
            self.storage.delete([path])
            return False
        self.copy_logs()
        return True

    def version_files(self, at: int | None = None) -> list[PartFile]:
        """Return the files of the versions table, oldest version first: their names begin with the number."""
        try:
            return delta.files(self.storage, "versions", at) if at != -1 else []
        except NotFoundError:
            return []

    def read_version(self, path: str, data: bytes | None = None) -> Version:
        """Return the version that a file of `versions` holds; `data` are its bytes, if they were read before."""
        with reading(self.storage.uri, path):
            version = from_parquet(self.name, data or self.storage.read(path))
        if version is None:
            raise damaged(self.storage.uri, path, "it is no version")
        return version
