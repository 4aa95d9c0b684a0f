"""Erase text of taken-down rows from files that runs leave on this machine: Prefect's database, files and Ray's logs.

These files hold no tables, but recipes (as parameters of flow runs) and errors, which may mention a row. In the
database a text is replaced; in any other file it is overwritten in place, byte for byte, so that offsets stay valid.
Another Prefect server (`PREFECT_API_URL`) and other machines are not reached.
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

WAIT_S: Final = 30.0
"""How long to wait for a database that another process has locked."""
PIECE_BYTES: Final = 4 << 20
"""Bytes of a file in memory at once."""
_LOGS: Final = (".log", ".out", ".err", ".txt", ".json")
_SQLITE: Final = b"SQLite format 3\0"


def overwrite(words: Words, wait_s: float = WAIT_S, piece_bytes: int = PIECE_BYTES) -> list[str]:
    """Erase the words in this user's state folder and in Ray's logs; return the files that contained one.

    Raises BuildError if Prefect's database remains locked for `wait_s` or cannot be read.
    """
    spelled = sorted({v.encode("utf-8", "surrogatepass") for word in words.needles for v in variants(word)}, key=len)
    if not spelled:
        return []
    changed = []
    for path in _files():
        if not _holds(path, spelled, piece_bytes):
            continue
        if _is_database(path):
            _clean_database(path, words, wait_s)
        elif path.name.endswith(("-wal", "-shm")) and _is_database(Path(str(path)[:-4])):
            _clean_database(Path(str(path)[:-4]), words, wait_s)
        else:
            _overwrite(path, spelled, piece_bytes)
        changed.append(str(path))
    return changed


def _files() -> Iterator[Path]:
    """Yield the files that may hold a word: those of the state folder, of Prefect, and Ray's logs."""
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


def _holds(path: Path, spelled: Iterable[bytes], size: int) -> bool:
    return any(any(word in piece for word in spelled) for _, piece in _pieces(path, size, max(map(len, spelled))))


def _pieces(path: Path, size: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) blocks of `size` of a file, each preceded by the last `overlap` bytes before it."""
    try:
        with path.open("rb") as file:
            at, kept = 0, b""
            while piece := file.read(size):
                yield at - len(kept), kept + piece
                at += len(piece)
                kept = (kept + piece)[-overlap:]
    except OSError:  # it was removed meanwhile, or belongs to another user
        return


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError:
        return False


def _overwrite(path: Path, spelled: list[bytes], size: int) -> None:
    """Overwrite the words in a file with placeholders of the same length, the longest word first."""
    places = {
        offset + at: len(word)
        for offset, piece in _pieces(path, size, max(map(len, spelled)))
        for word in spelled  # the longest last, so that it wins where two begin at the same offset
        for at in _each(piece, word)
    }
    with path.open("r+b") as file:
        for at, length in places.items():
            file.seek(at)
            file.write(b"*" * length)
        file.flush()
        os.fsync(file.fileno())


def _each(piece: bytes, word: bytes) -> Iterator[int]:
    at = piece.find(word)
    while at >= 0:
        yield at
        at = piece.find(word, at + 1)


def _clean_database(path: Path, words: Words, wait_s: float) -> None:
    """Replace the words in every text of a SQLite database and in its free pages."""
    try:
        with closing(sqlite3.connect(path, timeout=wait_s, isolation_level=None)) as database:
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
        raise BuildError(
            f"cannot erase words in {path}: {error}; stop the process that uses it, then run the take-down again"
        ) from error


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
