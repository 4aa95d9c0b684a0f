"""Copy Delta logs and the rows of versions: a few bytes on which all other data depends.

    _copies/logs/00000001.json.gz     file (relative to the dataset) -> its content, base64

A file of copies is written after each publish, with the commits that earlier files lack. A damaged commit, or a damaged
row of a version, can therefore be restored byte by byte, and damage to a commit is detected by comparing it with its
copy. A file of copies carries its own digest (`catalog.seal`).

Copies are written after their commits, so a log may be newer than its copies: during a build, and after a kill between
the two. That is not damage. Taking the lease of a dataset copies the missing commits first (`catalog.lease`).
"""

import base64
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from catalog.commits import actions_of
from catalog.errors import BuildError, NotFoundError, damaged
from catalog.seal import opened_json, sealed_json
from catalog.storage import Storage

FOLDER: Final = "_copies/logs"
_LOG: Final = "_delta_log"
_COMMIT: Final = re.compile(r"(\d{20})\.json")
_NAME: Final = re.compile(r"(\d{8})\.json\.gz")


@dataclass(frozen=True)
class Copies:
    """One file of copies."""

    number: int
    files: Mapping[str, bytes]
    """Path -> content of the copied files."""
    until: Mapping[str, int]
    """Table -> the last commit that has a copy, in this file or an earlier one."""


def commit_path(table: str, number: int) -> str:
    """Return the path of a commit, relative to its dataset."""
    return f"{table}/{_LOG}/{number:020d}.json"


def commit_number(path: str) -> int | None:
    """Return the commit number of a file of a log; None for another file."""
    found = _COMMIT.fullmatch(path.rpartition("/")[2])
    return int(found[1]) if found else None


def keep(storage: Storage, tables: Iterable[str]) -> Copies:
    """Copy the commits since the last copies, and the parts of `versions` that these commits add.

    Return the number of the newest file of copies (0 if there is none), and the last copied commits. A commit that
    cannot be read is not copied, nor are those that follow it; `verify` names it.
    """
    names = list(tables)
    for _ in range(100):
        last = newest(storage)
        copies = _copied(storage, names, last)
        if not copies.files:
            return Copies(copies.number - 1, {}, copies.until)
        if storage.create(path_of(copies.number), _packed(copies)):
            return copies
    raise BuildError(f"{storage.uri}: other builders kept copying the logs; build again")


def check(storage: Storage) -> None:
    """Raise DamagedError if the last known commit of a table is missing.

    The next commit would take its number, and versions that refer to it would then refer to another commit."""
    last = newest(storage)
    for table, number in last.until.items() if last else ():
        if not storage.exists(commit_path(table, number)):
            raise damaged(storage.uri, commit_path(table, number), "it does not exist")


def renew(storage: Storage, tables: Iterable[str]) -> Copies:
    """Copy everything again and remove the older copies, after files were rewritten in place. Returns as `keep` does.

    The caller must hold the lease. Safe to repeat after a kill.
    """
    old = [path for path in storage.list(FOLDER) if _number(path)]
    copies = _copied(storage, list(tables), None)
    number = max([_number(path) for path in old], default=0) + 1 if copies.files else 0
    if copies.files:
        storage.put(path_of(number), _packed(Copies(number, copies.files, copies.until)))
    storage.delete(old)
    return Copies(number, copies.files, copies.until)


def newest(storage: Storage) -> Copies | None:
    """Return the newest undamaged file of copies, or None."""
    for path in sorted(storage.list(FOLDER), reverse=True):
        if _number(path):
            try:
                return read(storage, path)
            except ValueError:  # `verify` names it
                continue
    return None


def paths(storage: Storage) -> list[str]:
    """Return the files of copies, oldest first."""
    return [path for path in storage.list(FOLDER) if _number(path)]


def read(storage: Storage, path: str) -> Copies:
    """Read a file of copies. Raises ValueError if it is damaged."""
    try:
        value = opened_json(gzip.decompress(storage.read(path)))
        files = {name: base64.b64decode(data, validate=True) for name, data in value["files"].items()}
        return Copies(value["number"], files, value["until"])
    except (OSError, EOFError, zlib.error, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a file of copies ({error})") from error


def added(entry: bytes) -> Iterator[str]:
    """Yield the names of the parts that a commit adds. Raises ValueError if it is not a commit."""
    for action in actions_of(entry, strict=True):
        if add := action.get("add"):
            yield str(add["path"])


def _copied(storage: Storage, tables: list[str], last: Copies | None) -> Copies:
    files: dict[str, bytes] = {}
    until = dict(last.until) if last else {}
    for table in tables:
        there = {commit_number(path): path for path in storage.list(f"{table}/{_LOG}")}
        while (number := until.get(table, -1) + 1) in there:
            entry = storage.read(there[number])
            if not _is_commit(entry):
                break
            files[there[number]] = entry
            until[table] = number
            if table == "versions":
                files |= _rows(storage, entry)
    number = max([_number(path) for path in storage.list(FOLDER)], default=0) + 1
    return Copies(number, files, until)


def _is_commit(entry: bytes) -> bool:
    try:
        return bool(entry.strip()) and all(name for name in added(entry))
    except (ValueError, KeyError, TypeError):
        return False


def _rows(storage: Storage, entry: bytes) -> dict[str, bytes]:
    found = {}
    for name in added(entry):
        try:
            found[f"versions/{name}"] = storage.read(f"versions/{name}")
        except NotFoundError:  # a version that was removed since
            continue
    return found


def _packed(copies: Copies) -> bytes:
    files = {path: base64.b64encode(data).decode() for path, data in copies.files.items()}
    value = {"number": copies.number, "until": dict(copies.until), "files": files}
    return gzip.compress(sealed_json(value), 6, mtime=0)


def _number(path: str) -> int:
    """Return the number of a file of copies; 0 for another file."""
    found = _NAME.fullmatch(path.rpartition("/")[2])
    return int(found[1]) if found else 0


def path_of(number: int) -> str:
    """Return the path of a file of copies, relative to its dataset."""
    return f"{FOLDER}/{number:08d}.json.gz"
