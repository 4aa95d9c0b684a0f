"""Garbage collection: remove files of a dataset that no version needs.

Killed builds leave finished parts (which the next build of the same recipe uses), scratch files and checkpoints.
Changed recipes leave the parts of the old one, removed versions leave their reports, killed writers leave temporary
files, and `verify --repair` leaves damaged files in the quarantine. Recent files are spared, because they may belong to
a build that is running elsewhere or will be resumed (the age of a quarantined file counts from its quarantine).
Versions that other datasets depend on are kept (`catalog.edges`), and nothing is removed during a build.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from catalog import delta, edges, work
from catalog.dataset import QUARANTINE, QUARANTINE_TIME, Dataset
from catalog.errors import UserError
from catalog.lease import hold
from catalog.sizes import stem_of
from catalog.storage import Entry, is_temporary
from catalog.version import Version

GRACE_S: Final = 24 * 3600.0
"""Least age of garbage, in seconds."""

_SHARDS: Final = "shards"
_REPORTS: Final = "_reports"


@dataclass(frozen=True)
class Garbage:
    """The files and versions that a collection would remove."""

    dataset: Dataset
    files: Mapping[str, int]
    """Path (relative to the dataset) -> size in bytes, in the order of removal."""
    forgotten: Sequence[int]
    """Versions that are removed because only the last `keep_versions` are kept."""
    older_than_s: float = GRACE_S
    keep_versions: int | None = None
    used: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Older versions that are kept nevertheless -> the other datasets that depend on them."""

    @property
    def bytes(self) -> int:
        """The total size in bytes."""
        return sum(self.files.values())

    @property
    def quarantined(self) -> list[str]:
        """The files that `verify --repair` had moved to the quarantine."""
        return [path for path in self.files if path.startswith(f"{QUARANTINE}/")]


def plan(dataset: Dataset, older_than_s: float = GRACE_S, keep_versions: int | None = None) -> Garbage:
    """Return the files that no version needs and that are older than `older_than_s` seconds. Removes nothing.

    With `keep_versions`, only that many of the last versions are kept, and versions that other datasets depend on. Held
    versions do not count towards the number; those newer than the oldest kept version are kept, because they may still
    be approved.
    """
    if keep_versions is not None and keep_versions < 1:
        raise UserError(f"keep_versions is {keep_versions}, expected at least 1: the last version is always kept")
    versions = dataset.versions()
    kept, used = versions, {}
    if keep_versions is not None:
        kept = _newest(versions, keep_versions)
        users = edges.users(dataset.catalog, dataset.name)
        used = {v.number: users[v.number] for v in versions if v.number in users and v not in kept}
        kept = [version for version in versions if version in kept or version.number in used]
    needed = _needed_parts(dataset, kept)
    shards = _needed_shards(dataset, kept)
    reports = {str(version.number) for version in kept}
    young = time.time() - older_than_s
    found = {
        entry.path: entry.bytes
        for entry in dataset.storage.scan()
        if _since(entry) <= young and _is_garbage(entry.path, needed, shards, reports)
    }
    forgotten = [version.number for version in versions if version not in kept]
    ordered = sorted(found, key=lambda path: (_turn(path), path))
    return Garbage(dataset, {path: found[path] for path in ordered}, forgotten, older_than_s, keep_versions, used)


def _newest(versions: Sequence[Version], count: int) -> list[Version]:
    """Return the last `count` versions that are not held, and the held versions among and after them."""
    counted = [version.number for version in versions if not version.is_held]
    oldest = counted[-count:][0] if counted else 0
    return [version for version in versions if version.number >= oldest]


def collect(garbage: Garbage) -> Garbage:
    """Remove the planned files that are still garbage; return what was removed.

    Raises BusyError while the dataset is being built. Parts are removed before the shards that they name, so that a
    kill leaves no part without its images; edges last, so that a kill leaves no content that a take-down cannot find.
    """
    dataset = garbage.dataset
    with hold(dataset, wait_s=0.0):
        now = plan(dataset, garbage.older_than_s, garbage.keep_versions)
        gone = {path: size for path, size in now.files.items() if path in garbage.files}
        forgotten = [number for number in now.forgotten if number in garbage.forgotten]
        dataset.forget(forgotten)
        for turn in range(3):
            dataset.storage.delete(path for path in gone if _turn(path) == turn)
    return Garbage(dataset, gone, forgotten, garbage.older_than_s, garbage.keep_versions, now.used)


def _turn(path: str) -> int:
    """Return the sort key of a file in the order of removal: parts, then shards, then edges."""
    return {_SHARDS: 1, edges.TABLE: 2}.get(path.partition("/")[0], 0)


def _since(entry: Entry) -> float:
    """Return since when a file is in its place, in seconds since the epoch; a quarantined file keeps its own mtime."""
    folder, _, rest = entry.path.partition("/")
    if folder != QUARANTINE:
        return entry.modified_s
    try:
        return datetime.strptime(rest.partition("/")[0], QUARANTINE_TIME).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return entry.modified_s


def _is_garbage(path: str, needed: set[str], shards: set[str], reports: set[str]) -> bool:
    folder, _, name = path.partition("/")
    if is_temporary(path) or folder in (
        work.FOLDER,
        QUARANTINE,
    ):  # without a running build, nothing needs scratch files and old checkpoints
        return True
    if folder == _SHARDS:
        return stem_of(name) not in shards
    if folder == _REPORTS:
        return name.partition(".")[0] not in reports
    if not name or "/" in name or folder.startswith(("_", ".")):  # the builder's state, and the tables' logs
        return False
    return name.endswith(".parquet") and path not in needed


def _needed_parts(dataset: Dataset, versions: Iterable[Version]) -> set[str]:
    commits = {(table, state.delta_version) for version in versions for table, state in version.tables.items()}
    # The last commits of `runs` and `versions`, which hold every run and every version.
    commits |= {(t, last) for t in ("versions", "runs") if (last := delta.latest(dataset.storage, t)) >= 0}
    return {part.path for table, number in commits for part in delta.files(dataset.storage, table, number)}


def _needed_shards(dataset: Dataset, versions: Iterable[Version]) -> set[str]:
    """Return the stems of the shards that the needed parts name in their column `shard`."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    parts: set[str] = set()
    for table, number in {(t, s.delta_version) for v in versions for t, s in v.tables.items()}:
        registered, files = delta.contents(dataset.storage, table, number)
        if "shard" in registered.names:
            parts.update(part.path for part in files)
    if not parts:
        return set()
    named: set[str] = set()
    rows = ds.dataset(sorted(parts), format="parquet", filesystem=dataset.storage.filesystem())
    for batch in rows.to_batches(columns=["shard"]):
        named.update(pc.unique(batch.column("shard")).drop_null().to_pylist())
    return {stem_of(shard) for shard in named}
