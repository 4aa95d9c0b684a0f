"""Which files a source's path names, and how they are opened: a local folder or an object store, the same way."""

import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from catalog.errors import NotFoundError, UserError, nearest
from catalog.storage import SCHEMES, Storage

COMPRESSED: Final = (".gz", ".bz2", ".zst", ".lz4")
"""Endings of compressed text files that are read as they are."""

_GLOB = re.compile(r"[*?\[]")


def find(paths: Sequence[str], suffixes: Sequence[str], folders_only: bool = False) -> list[str]:
    """Return the absolute paths or URIs of the files that `paths` name, sorted, each once.

    A path is a file (whatever its ending), a folder (searched at all depths for `suffixes`), or a glob
    (`*`, `?`, `[ab]`, and `**` for any depth). Names that begin with `.` or `_` are left out of folders and globs:
    they are what other writers put beside their data. Raises NotFoundError where a path names nothing, UserError
    where it is not a folder and `folders_only`.
    """
    return sorted({file for path in paths for file in _expand(path, tuple(suffixes), folders_only)})


def names_in(folder: str) -> list[str]:
    """Return the names of the files right in one folder, in no order."""
    storage = Storage(folder)
    local = storage.local()
    if local is None:
        return [entry.path for entry in storage.scan() if "/" not in entry.path]
    try:
        return [entry.name for entry in os.scandir(local) if entry.is_file()]
    except OSError as error:
        raise NotFoundError(f"{folder} is not there: {one_line(error)}") from error


def split(uri: str) -> tuple[Storage, str]:
    """Return the storage of the folder that holds a file, and the file's name."""
    folder, _, name = uri.rpartition("/")
    return Storage(folder or "/"), name


def open_random(uri: str) -> pa.NativeFile:
    """Return a file that can seek. Raises NotFoundError or UserError where it cannot be opened."""
    storage, name = split(uri)
    try:
        local = storage.local(name)
        return pa.OSFile(str(local)) if local else storage.filesystem().open_input_file(name)
    except FileNotFoundError as error:
        raise NotFoundError(f"{uri} is not there") from error
    except OSError as error:
        raise UserError(f"cannot open {uri}: {one_line(error)}") from error


@contextmanager
def open_text(uri: str) -> Iterator[io.BufferedReader]:
    """Give the bytes of a text file, decompressed by its ending, without a UTF-8 byte order mark.

    Raises UserError for UTF-16 and for a compressed file that is damaged, at the byte where that shows.
    """
    with open_random(uri) as raw:
        stream: Any = raw
        if uri.lower().endswith(COMPRESSED):
            stream = pa.CompressedInputStream(raw, pa.Codec.detect(uri.lower()).name)
        with io.BufferedReader(stream, 1 << 20) as file:
            try:
                mark = file.peek(4)[:4]
                if mark.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{uri} is UTF-16; expected UTF-8: convert it first")
                if mark.startswith(b"\xef\xbb\xbf"):
                    file.read(3)
                yield file
            except OSError as error:
                raise UserError(f"{uri} is damaged: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """Return an error's first line, short enough to stand in a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _expand(path: str, suffixes: tuple[str, ...], folders_only: bool) -> list[str]:
    place = _absolute(path)
    is_file = _is_file(place)
    is_glob = not is_file and _GLOB.search(place) is not None
    if folders_only and (is_file or is_glob):
        raise UserError(f"{path} is a {'file' if is_file else 'pattern'}; expected a folder")
    if is_glob:
        return _expand_glob(place)
    return [place] if is_file else _expand_folder(place, suffixes)


def _absolute(path: str) -> str:
    if not path.strip():
        raise UserError("an empty path; expected a file, a folder or a glob")
    local = path.removeprefix("file://")
    if "://" not in local:
        return str(Path(local).expanduser().absolute())
    scheme, _, rest = local.partition("://")
    if scheme not in SCHEMES:
        raise UserError(f"cannot read {path!r}: unknown scheme {scheme!r}{nearest(scheme, SCHEMES)}")
    return f"{scheme}://{rest.strip('/')}"


def _is_file(place: str) -> bool:
    if place.count("/") < 3 and "://" in place:  # a bucket
        return False
    storage, name = split(place)
    return storage.exists(name)


def _expand_glob(place: str) -> list[str]:
    from fsspec.utils import glob_translate

    fixed = _GLOB.split(place, maxsplit=1)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(place[len(fixed) + 1 :])).match
    found = [f"{fixed}/{name}" for name in Storage.open(fixed or "/").list() if matches(name) and _is_data(name)]
    if not found:
        raise NotFoundError(f"no file matches {place}")
    return found


def _expand_folder(place: str, suffixes: tuple[str, ...]) -> list[str]:
    try:
        names = list(Storage.open(place).list())
    except NotFoundError as error:
        parent = Path(place).parent
        beside = [entry.name for entry in os.scandir(parent)] if parent.is_dir() else []
        raise NotFoundError(f"{place} is not there{nearest(Path(place).name, beside)}") from error
    found = [f"{place}/{name}" for name in names if name.lower().endswith(suffixes) and _is_data(name)]
    if not found:
        problem = "is not there, or is a folder without" if "://" in place else "is a folder without"
        raise NotFoundError(f"{place} {problem} {', '.join(suffixes)} files")
    return found


def _is_data(name: str) -> bool:
    return not any(piece.startswith((".", "_")) for piece in name.split("/"))
