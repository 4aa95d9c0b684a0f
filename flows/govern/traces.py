"""Words of erased rows in what runs leave on this machine: Prefect's own database and files, and the logs of Ray.

They hold no table of ours, but recipes (as the parameters of flow runs) and errors, which may name a row. In the
database a word is replaced; in any other file it is overwritten where it stands, byte for byte, so that nothing moves.
A Prefect server that somebody else runs (`PREFECT_API_URL`) and other machines are out of reach.
"""

import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from catalog.errors import BuildError
from catalog.takedown.scrub import Words, variants
from flows.schedule.prefect_server import state_folder

_WAIT_S: Final = 30.0
_AT_ONCE: Final = 4 << 20
"""Bytes of a file in memory at once."""
_LOGS: Final = (".log", ".out", ".err", ".txt", ".json")
_SQLITE: Final = b"SQLite format 3\0"


def overwrite(words: Words) -> list[str]:
    """Take the words out of this user's state folder and Ray's logs; return the files in which one was.

    Raises BuildError where Prefect's database stays locked, or cannot be read.
    """
    spelled = sorted({v.encode("utf-8", "surrogatepass") for word in words.needles for v in variants(word)}, key=len)
    if not spelled:
        return []
    changed = []
    for path in _files():
        if not _holds(path, spelled):
            continue
        if _is_database(path):
            _clean_database(path, words)
        elif path.name.endswith(("-wal", "-shm")) and _is_database(Path(str(path)[:-4])):
            _clean_database(Path(str(path)[:-4]), words)
        else:
            _overwrite(path, spelled)
        changed.append(str(path))
    return changed


def _files() -> Iterator[Path]:
    """Yield the files that may hold a word: all of the state folder and Prefect's, and what Ray logged."""
    folders = {state_folder(), Path(os.environ.get("PREFECT_HOME", state_folder() / "prefect"))}
    seen: set[Path] = set()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path not in seen:
                seen.add(path)
                yield path
    for path in sorted((Path(tempfile.gettempdir()) / "espalier-ray").glob("session_*/logs/**/*")):
        if path.suffix in _LOGS and path.is_file() and not path.is_symlink():
            yield path


def _holds(path: Path, spelled: Iterable[bytes]) -> bool:
    return any(any(word in piece for word in spelled) for _, piece in _pieces(path, max(map(len, spelled))))


def _pieces(path: Path, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of a file, each with so many bytes of the one before."""
    try:
        with path.open("rb") as file:
            at, kept = 0, b""
            while piece := file.read(_AT_ONCE):
                yield at - len(kept), kept + piece
                at += len(piece)
                kept = (kept + piece)[-overlap:]
    except OSError:  # it went meanwhile, or is somebody else's
        return


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _overwrite(path: Path, spelled: list[bytes]) -> None:
    """Overwrite the words in a file with as many signs, the longest first."""
    places = {
        offset + at: len(word)
        for offset, piece in _pieces(path, max(map(len, spelled)))
        for word in spelled  # the longest last, so that it counts where two begin at one place
        for at in _each(piece, word)
    }
    with path.open("r+b") as file:
        for at, size in places.items():
            file.seek(at)
            file.write(b"*" * size)
        file.flush()
        os.fsync(file.fileno())


def _each(piece: bytes, word: bytes) -> Iterator[int]:
    at = piece.find(word)
    while at >= 0:
        yield at
        at = piece.find(word, at + 1)


def _clean_database(path: Path, words: Words) -> None:
    """Replace the words in every text of a SQLite database, and leave nothing of them in its free pages."""
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)) as database:
            database.execute("pragma secure_delete = on")
            tables = database.execute("select name from sqlite_master where type = 'table'").fetchall()
            database.execute("begin immediate")
            for (table,) in tables:
                _clean_table(database, table, words)
            database.execute("commit")
            database.execute("pragma wal_checkpoint(truncate)")
            database.execute("vacuum")
            database.execute("pragma wal_checkpoint(truncate)")
    except sqlite3.Error as error:
        raise BuildError(f"cannot take erased words out of {path}: {error}; stop what uses it, and go on") from error


def _clean_table(database: sqlite3.Connection, table: str, words: Words) -> None:
    columns = [row[1] for row in database.execute(f'pragma table_info("{table}")').fetchall()]
    for column in columns:
        for word, put in words.needles.items():
            for spelled in sorted(variants(word), key=len, reverse=True):
                database.execute(
                    f'update "{table}" set "{column}" = replace("{column}", ?, ?) '
                    f'where typeof("{column}") = \'text\' and instr("{column}", ?)',
                    (spelled, put, spelled),
                )
