"""Find and open the files of a source, in a local folder or on an object store.

Only regular files are read. Everything else in a folder is counted: links (which are followed if the recipe has
`follow_links: true`), devices, pipes and sockets, hidden files, files of another kind.
"""

import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa

from catalog.errors import NotFoundError, UserError, first_line, nearest
from catalog.storage import SCHEMES, Storage
from catalog.user_file import NOT_THERE, unreadable
from tasks.sources._notes import Notes
from tasks.sources._text import FromUtf16, is_utf16

COMPRESSED: Final = (".gz", ".bz2", ".zst", ".lz4")
"""Endings of compressed text files. The codec is recognised by a file's first bytes."""

_MAGIC: Final = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x04\x22\x4d\x18", "lz4"))
_NOT_TEXT: Final = (
    (b"PAR1", "a Parquet file"), (b"ARROW1", "an Arrow file"), (b"\x89HDF", "an HDF5 file"), (b"PK\3\4", "a zip file"),
    (b"\x89PNG", "a PNG picture"), (b"\xff\xd8\xff", "a JPEG picture"), (b"%PDF", "a PDF document"),
    (b"SQLite format 3\0", "an SQLite database"), (b"\x80\x04\x95", "a Python pickle"), (b"Obj\1", "an Avro file"),
    (b"\xd0\xcf\x11\xe0", "an Excel or Word document"), (b"7z\xbc\xaf", "a 7z archive"), (b"ORC", "an ORC file"),
)  # fmt: skip
_GLOB = re.compile(r"[*?\[]")

HIDDEN: Final = "hidden files or folders skipped"
LINKS: Final = "links not followed (`follow_links: true` follows them)"
SPECIAL: Final = "devices, pipes and sockets skipped"
UNREADABLE: Final = "files or folders that could not be read"
MARKED: Final = "files whose names begin with _ skipped (table writers' metadata)"


class SourceFile(NamedTuple):
    """One regular file."""

    uri: str
    """Absolute path, or URI on an object store."""
    below: str
    """Its path below the folder that was searched; its name if the path is that of the file itself."""
    bytes: int


class FileKind(NamedTuple):
    """Which files a source reads from folders."""

    suffixes: tuple[str, ...]
    """Endings in lower case. Files with others may be backups or incomplete: they are skipped, and counted."""
    marked: bool = False
    """Whether names that begin with `_` are data."""

    def takes(self, found: SourceFile) -> bool:
        """Return whether a file is of this kind."""
        return found.below.lower().endswith(self.suffixes)


def find(paths: Sequence[str], kind: FileKind, notes: Notes, follow_links: bool = False) -> list[SourceFile]:
    """Return the files at `paths`, sorted, each once; count in `notes` what was skipped.

    A path is a file (whatever its ending), a folder (searched at all depths), or a glob (`*`, `?`, `[ab]`, and `**` for
    any depth). Raises NotFoundError if a path matches nothing, UserError if it cannot be parsed.
    """
    files = {file.uri: file for path in paths for file in _expand(path, kind, notes, follow_links)}
    return [files[uri] for uri in sorted(files)]


def walk(place: str, notes: Notes, follow_links: bool = False) -> Iterator[tuple[str, list[SourceFile]]]:
    """Yield (folder, its regular files that are not hidden, by name) of a tree. Holds one folder's names in memory.

    Raises NotFoundError if the folder does not exist.
    """
    if "://" in place:
        yield from _walk_remote(place, notes)
        return
    if not Path(place).is_dir():
        raise NotFoundError(f"{place} is {'not a folder' if Path(place).exists() else 'missing'}")
    folders, seen = [place], {_identity(place)}
    while folders:
        folder = folders.pop()
        files, below = _look(folder, place, notes, follow_links)
        folders += reversed(_new(below, seen) if follow_links else below)
        yield folder, files


def absolute(path: str) -> str:
    """Return the absolute path, or the URI without a slash at its end."""
    if not path.strip():
        raise UserError("an empty path; expected a file, a folder or a glob")
    local = path.removeprefix("file://")
    if "://" not in local:
        return str(Path(local).expanduser().absolute())
    scheme, _, rest = local.partition("://")
    if scheme not in SCHEMES:
        raise UserError(f"cannot read {path!r}: unknown scheme {scheme!r}{nearest(scheme, SCHEMES)}")
    return f"{scheme}://{rest.strip('/')}"


def is_file(place: str) -> bool:
    """Return whether the file exists."""
    if place.count("/") < 3 and "://" in place:  # a bucket
        return False
    storage, name = split(place)
    return storage.exists(name)


def is_glob(place: str) -> bool:
    """Return whether a path is a pattern and not the name of a file."""
    return _GLOB.search(place) is not None


def not_there(place: str) -> NotFoundError:
    """Return the error for a folder that does not exist, with the nearest name that does."""
    if "://" not in place and (why := unreadable(place)) not in (None, NOT_THERE):
        return NotFoundError(f"cannot read {place}: {why}")
    parent = Path(place).parent
    beside = [entry.name for entry in os.scandir(parent)] if "://" not in place and parent.is_dir() else []
    return NotFoundError(f"{place} does not exist{nearest(Path(place).name, beside)}")


def split(uri: str) -> tuple[Storage, str]:
    """Return the storage of the folder that holds a file, and the file's name."""
    folder, _, name = uri.rpartition("/")
    return Storage(folder or "/"), name


def head_of(uri: str, size: int) -> bytes:
    """Return the first bytes of a file; empty if it cannot be read."""
    storage, name = split(uri)
    try:
        return storage.read_range(name, 0, size)
    except Exception:  # noqa: BLE001  (the code that reads the whole file reports the error)
        return b""


def open_random(uri: str) -> pa.NativeFile:
    """Open a seekable file. Raises NotFoundError or UserError if it cannot be opened."""
    storage, name = split(uri)
    try:
        local = storage.local(name)
        return pa.OSFile(str(local)) if local else storage.filesystem().open_input_file(name)
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot open {uri}: {first_line(error)}") from error


@contextmanager
def open_text(uri: str) -> Iterator[io.BufferedReader]:
    """Open a text file as decompressed UTF-8 bytes without a byte order mark (UTF-16 with such a mark is transcoded).

    Raises UserError if it is not text, and, while it is read, if a compressed file is damaged.
    """
    with open_random(uri) as raw:
        stream: Any = raw
        if codec := _codec(uri, raw):
            stream = pa.CompressedInputStream(raw, codec)
        with io.BufferedReader(stream, 1 << 20) as file:
            try:
                _check_text(uri, file)
                yield io.BufferedReader(FromUtf16(file), 1 << 20) if is_utf16(file.peek(4)) else file
            except OSError as error:
                raise UserError(f"{uri} is damaged: {first_line(error)}") from error


def _codec(uri: str, raw: pa.NativeFile) -> str | None:
    head = bytes(raw.read_at(min(4, raw.size()), 0))
    raw.seek(0)
    found = next((codec for magic, codec in _MAGIC if head.startswith(magic)), None)
    if found is None and uri.lower().endswith(COMPRESSED):
        return str(pa.Codec.detect(uri.lower()).name)  # whose reader then reports that it is damaged
    return found


def _check_text(uri: str, file: io.BufferedReader) -> None:
    head = file.peek(512)[:512]
    if found := next((name for magic, name in _NOT_TEXT if head.startswith(magic)), None):
        raise UserError(f"{uri} is {found}; expected text")
    if head.startswith(b"\xef\xbb\xbf"):
        file.read(3)


def _expand(path: str, kind: FileKind, notes: Notes, follow_links: bool) -> list[SourceFile]:
    place = absolute(path)
    if is_file(place):
        return [SourceFile(place, place.rpartition("/")[2], 1)]
    if is_glob(place):
        return _expand_glob(place, kind, notes, follow_links)
    return _expand_folder(place, kind, notes, follow_links)


def _expand_glob(place: str, kind: FileKind, notes: Notes, follow_links: bool) -> list[SourceFile]:
    from fsspec.utils import glob_translate

    fixed = _GLOB.split(place, maxsplit=1)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(place[len(fixed) + 1 :])).match
    seen = Notes()
    try:
        tree = [file for _, files in walk(fixed or "/", seen, follow_links) for file in files]
    except NotFoundError:
        raise NotFoundError(f"no file matches {place}: {fixed} does not exist") from None
    found = _data([file for file in tree if matches(file.below)], kind, notes)
    if not found:
        raise NotFoundError(f"no file matches {place}{_beside(seen)}")
    for note in seen.all():
        if note.what in (LINKS, SPECIAL, UNREADABLE):  # a pattern does not match hidden files
            notes.add(*note)
    return found


def _expand_folder(place: str, kind: FileKind, notes: Notes, follow_links: bool) -> list[SourceFile]:
    seen = Notes()
    try:
        found = [file for _, files in walk(place, seen, follow_links) for file in _data(files, kind, seen)]
    except NotFoundError as error:
        raise not_there(place) from error
    mine = [file for file in found if kind.takes(file)]
    if not mine:
        problem = "does not exist, or is a folder without" if "://" in place else "is a folder without"
        raise NotFoundError(f"{place} {problem} {', '.join(kind.suffixes)} files{_beside(seen)}")
    taken = {file.uri for file in mine}
    others = [file for file in found if file.uri not in taken]
    if others:
        seen.add(len(others), f"files skipped that are not {' or '.join(kind.suffixes[:2])} files", others[0].uri)
    for note in seen.all():
        notes.add(*note)
    return mine


def _beside(notes: Notes) -> str:
    found = "; ".join(str(note) for note in notes.all())
    return f" ({found})" if found else ""


def _data(files: list[SourceFile], kind: FileKind, notes: Notes) -> list[SourceFile]:
    """Return the files whose names do not begin with `_`; count the others."""
    if kind.marked:
        return files
    own = [any(piece.startswith("_") for piece in file.below.split("/")) for file in files]
    if any(own):
        notes.add(sum(own), MARKED, files[own.index(True)].uri)
    return [file for file, marked in zip(files, own, strict=True) if not marked]


def _look(folder: str, root: str, notes: Notes, follow_links: bool) -> tuple[list[SourceFile], list[str]]:
    """List one local folder: its regular files, sorted by name, and the folders in it."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            names = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        notes.add(1, UNREADABLE, f"{printable(folder)[-200:]} ({os.strerror(error.errno or 0)})")
        return [], []
    for entry in names:
        try:
            if entry.name.startswith("."):
                notes.add(1, HIDDEN, printable(entry.path))
            elif entry.is_symlink() and not follow_links:
                notes.add(1, LINKS, printable(entry.path))
            elif entry.is_dir():
                folders.append(entry.path)
            else:
                found = entry.stat()
                if stat.S_ISREG(found.st_mode):
                    files.append(SourceFile(entry.path, entry.path[len(root) :].lstrip("/"), found.st_size))
                else:
                    notes.add(1, SPECIAL, printable(entry.path))
        except OSError as error:
            notes.add(1, UNREADABLE, f"{printable(entry.path)[-200:]} ({os.strerror(error.errno or 0)})")
    return files, folders


def _walk_remote(place: str, notes: Notes) -> Iterator[tuple[str, list[SourceFile]]]:
    folders: dict[str, list[SourceFile]] = {}
    for name, size in Storage.open(place).list().items():
        if any(piece.startswith(".") for piece in name.split("/")):
            notes.add(1, HIDDEN, f"{place}/{name}")
        else:
            folders.setdefault(name.rpartition("/")[0], []).append(SourceFile(f"{place}/{name}", name, size))
    for folder, files in folders.items():
        yield f"{place}/{folder}" if folder else place, files


def _new(folders: list[str], seen: set[tuple[int, int]]) -> list[str]:
    """Return the folders that were not seen before (links may form a cycle); record them as seen."""
    new = []
    for folder in folders:
        if (known := _identity(folder)) not in seen:
            seen.add(known)
            new.append(folder)
    return new


def _identity(folder: str) -> tuple[int, int]:
    try:
        found = Path(folder).stat()
    except OSError:
        return -1, hash(folder)
    return found.st_dev, found.st_ino


def printable(path: str) -> str:
    """Return a path as valid text: a byte that is not UTF-8 becomes a question mark."""
    return path.encode("utf-8", "replace").decode()
