"""Read and write files under relative paths, in a local folder or under a prefix of an object store.

Writes are atomic, whatever kills the writer:

    local          write to a temporary name in the same folder, fsync, rename, fsync of the folder
    object store   one put (multipart for large files) after the last byte was produced

Readers therefore need no locks: a file that is listed is complete.
"""

import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from catalog.errors import BuildError, EspalierError, NotFoundError, UserError, first_line, nearest

if TYPE_CHECKING:
    import pyarrow.fs
    from obstore.store import ObjectStore

SCHEMES: Final = ("s3", "gs", "az", "abfs", "abfss")
"""URI schemes of object stores. Credentials and endpoints come from the environment (AWS_*, GOOGLE_*, AZURE_*)."""

SPOOL_BYTES: Final = 64 << 20
"""Bytes that a writer to an object store buffers in memory; more are spooled to a temporary file until the upload."""

_TEMPORARY = re.compile(r"\.tmp-\d+-[0-9a-f]{8}$")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class Entry(NamedTuple):
    """One file of a listing."""

    path: str
    """Relative to the storage, with forward slashes."""
    bytes: int
    modified_s: float
    """Seconds since the epoch."""


def is_temporary(path: str) -> bool:
    """Return whether a path is that of an incomplete file, whose writer is still running or was killed."""
    return _TEMPORARY.search(path) is not None


@dataclass(frozen=True)
class Storage:
    """A location of files. Picklable and cheap to create: connections are made on first use in each process.

    Every method takes paths relative to the location, with forward slashes. Raises NotFoundError if the file does not
    exist, UserError if permission is denied, BuildError if the disk is full or the store does not answer.
    """

    root: str
    """The absolute folder or the URI that was opened."""
    prefix: str = ""
    """The path of this storage below `root`."""

    @classmethod
    def open(cls, uri: str | Path, create: bool = False) -> "Storage":
        """Return the storage at a folder or a URI (`s3://bucket/prefix`, `gs://`, `az://`, `file://`).

        With `create`, a missing folder is created; otherwise it raises NotFoundError. Buckets are never created.
        """
        text = str(uri)
        scheme, separator, _ = text.partition("://")
        if separator and scheme != "file":
            if scheme not in SCHEMES:
                raise UserError(f"cannot store at {text!r}: unknown scheme {scheme!r}{nearest(scheme, SCHEMES)}")
            if not urlsplit(text).netloc:
                raise UserError(f"cannot store at {text!r}: expected {scheme}://BUCKET/PREFIX")
            storage = cls(text.rstrip("/"))
            with _plain(text):
                next(iter(_store(storage.root).list(chunk_size=1)), None)
            return storage
        folder = Path(text.removeprefix("file://")).expanduser().resolve()
        if create:
            with _plain(str(folder)):
                folder.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            raise NotFoundError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
        return cls(str(folder))

    @property
    def uri(self) -> str:
        """The location as a string that `open` accepts: an absolute path or a URI."""
        return f"{self.root}/{self.prefix}" if self.prefix else self.root

    @property
    def is_local(self) -> bool:
        """Whether files here have a local path."""
        return "://" not in self.root

    def child(self, path: str) -> "Storage":
        """Return the storage of a subfolder, which need not exist."""
        return Storage(self.root, self._key(path))

    def local(self, path: str = "") -> Path | None:
        """Return the local path of a file, or None on object stores."""
        return self._path(path) if self.is_local else None

    def exists(self, path: str) -> bool:
        """Return whether there is a file of that name."""
        if self.is_local:
            return self._path(path).is_file()
        try:
            with _plain(self._name(path)):
                _store(self.root).head(self._key(path))
        except NotFoundError:
            return False
        return True

    def is_folder(self, path: str) -> bool:
        """Return whether there is a folder of that name. Always false on object stores, which have no folders."""
        return self.is_local and self._path(path).is_dir()

    def why_missing(self, path: str) -> str:
        """Return the reason why a file is missing, for messages."""
        return "it is a folder, expected a file" if self.is_folder(path) else "it does not exist"

    def tag(self, path: str) -> str:
        """Return the entity tag and size of an object. Object stores only."""
        with _plain(self._name(path)):
            found = _store(self.root).head(self._key(path))
        return f"{str(found['e_tag'] or found['last_modified']).strip(chr(34))}-{found['size']}"

    def scan(self, prefix: str = "") -> Iterator[Entry]:
        """Yield the files below a folder, recursively and in no order; nothing if the folder does not exist."""
        return self._scan_local(prefix) if self.is_local else self._scan_remote(prefix)

    def list(self, prefix: str = "") -> dict[str, int]:
        """Return path -> size in bytes of the files below a folder, recursively, in one pass, sorted."""
        return {entry.path: entry.bytes for entry in sorted(self.scan(prefix))}

    def folders(self) -> tuple[str, ...]:
        """Return the names of the immediate subfolders, sorted; none if this folder does not exist."""
        with _plain(self.uri):
            if self.is_local:
                try:
                    return tuple(sorted(entry.name for entry in os.scandir(self._path("")) if entry.is_dir()))
                except FileNotFoundError:
                    return ()
            found = _store(self.root).list_with_delimiter(self.prefix or None)
        return tuple(sorted(PurePosixPath(folder).name for folder in found["common_prefixes"]))

    def read(self, path: str) -> bytes:
        """Return the bytes of a file."""
        with _plain(self._name(path)):
            if self.is_local:
                return self._path(path).read_bytes()
            return bytes(_store(self.root).get(self._key(path)).bytes())

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Return `size` bytes of a file from `offset` on (fewer at its end)."""
        with _plain(self._name(path)):
            if self.is_local:
                with self._path(path).open("rb") as file:
                    return os.pread(file.fileno(), size, offset)
            return bytes(_store(self.root).get_range(self._key(path), start=offset, length=size))

    def put(self, path: str, data: bytes) -> None:
        """Write a file, replacing an existing one."""
        with self.writer(path) as file:
            file.write(data)

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists. Of any number of concurrent callers, exactly one gets True."""
        if self.is_local:
            return self._create_local(path, data)
        from obstore.exceptions import AlreadyExistsError

        with _plain(self._name(path)):
            try:
                _store(self.root).put(self._key(path), data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def tagged(self, path: str) -> tuple[bytes, str]:
        """Return a file's bytes and the tag that `replace` needs. Object stores only."""
        with _plain(self._name(path)):
            found = _store(self.root).get(self._key(path))
            return bytes(found.bytes()), str(found.meta["e_tag"])

    def replace(self, path: str, data: bytes, tag: str) -> bool:
        """Overwrite a file if it has not changed since `tagged`; otherwise return False. Object stores only."""
        from obstore.exceptions import PreconditionError

        with _plain(self._name(path)):
            try:
                _store(self.root).put(self._key(path), data, mode={"e_tag": tag})
            except (PreconditionError, FileNotFoundError):
                return False
        return True

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; missing ones are ignored."""
        if self.is_local:
            for path in paths:
                with _plain(self._name(path)):
                    self._path(path).unlink(missing_ok=True)
        elif keys := [self._key(path) for path in paths]:
            with _plain(self.uri), suppress(FileNotFoundError):
                _store(self.root).delete(keys)

    def move(self, path: str, target: str) -> None:
        """Rename a file, replacing an existing one. On object stores it is copied, then removed."""
        with _plain(self._name(path)):
            if self.is_local:
                final = self._path(target)
                final.parent.mkdir(parents=True, exist_ok=True)
                self._path(path).replace(final)
                _sync_folder(final.parent)
                _sync_folder(self._path(path).parent)
                return
            _store(self.root).copy(self._key(path), self._key(target))
        self.delete([path])

    @contextmanager
    def writer(self, path: str) -> Iterator[IO[bytes]]:
        """Provide a binary file to write to; it appears under `path` when the block ends without an error."""
        try:
            with self._write_local(path) if self.is_local else self._write_remote(path) as file:
                yield file
        except OSError as error:
            if error.errno not in _FULL:  # an error of the block, not of the storage
                raise
            raise _translated(error, self._name(path)) from error

    def filesystem(self) -> "pyarrow.fs.FileSystem":
        """Return an Arrow filesystem with the same relative paths (for Parquet and datasets)."""
        from pyarrow import fs

        if self.is_local:
            return fs.SubTreeFileSystem(self.uri, fs.LocalFileSystem())
        url = urlsplit(self.uri)
        return fs.SubTreeFileSystem(url.netloc + url.path, fs.PyFileSystem(fs.FSSpecHandler(self.fsspec())))

    def fsspec(self) -> Any:
        """Return an fsspec filesystem for the URI's scheme, with whole URIs as paths. Object stores only."""
        from obstore.fsspec import FsspecStore

        scheme: Any = urlsplit(self.root).scheme
        return FsspecStore(scheme, client_options=_client_options())

    def delta_options(self) -> dict[str, str]:
        """Return the `storage_options` that delta-rs needs here."""
        if self.is_local:
            return {}
        return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))}

    def _key(self, path: str) -> str:
        return "/".join(piece for piece in (self.prefix, path.strip("/")) if piece)

    def _name(self, path: str) -> str:
        return f"{self.uri}/{path}"

    def _path(self, path: str) -> Path:
        return Path(self.root, self.prefix, path)

    def _scan_local(self, prefix: str) -> Iterator[Entry]:
        folders = [prefix.strip("/")]
        while folders:
            folder = folders.pop()
            try:
                with os.scandir(self._path(folder)) as entries:
                    for entry in entries:
                        path = f"{folder}/{entry.name}" if folder else entry.name
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(path)
                            continue
                        with suppress(FileNotFoundError):  # renamed or removed since it was listed
                            stat = entry.stat()
                            yield Entry(path, stat.st_size, stat.st_mtime)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _translated(error, self._name(folder)) from error

    def _scan_remote(self, prefix: str) -> Iterator[Entry]:
        skip = len(self.prefix) + 1 if self.prefix else 0
        with _plain(self._name(prefix)):
            for chunk in _store(self.root).list(self._key(prefix) or None, chunk_size=1000):
                for found in chunk:
                    yield Entry(found["path"][skip:], found["size"], found["last_modified"].timestamp())

    def _create_local(self, path: str, data: bytes) -> bool:
        final = self._path(path)
        with _plain(str(final)):
            temporary = _temporary(final)
            try:
                with temporary.open("xb") as file:
                    _write_through(file, data)
                os.link(temporary, final)  # the only operation that refuses to replace an existing file
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(final.parent)
        return True

    @contextmanager
    def _write_local(self, path: str) -> Iterator[IO[bytes]]:
        final = self._path(path)
        with _plain(str(final)):
            temporary = _temporary(final)
            file = temporary.open("xb")
        try:
            with file:
                yield file
                _write_through(file)
            with _plain(str(final)):
                temporary.replace(final)
                _sync_folder(final.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @contextmanager
    def _write_remote(self, path: str) -> Iterator[IO[bytes]]:
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
            yield spool
            spool.seek(0)
            with _plain(self._name(path)):
                _store(self.root).put(self._key(path), spool)


@lru_cache(16)
def _store(root: str) -> "ObjectStore":
    from datetime import timedelta

    from obstore.store import from_url

    retry: Any = {"max_retries": 6, "retry_timeout": timedelta(seconds=90)}
    return from_url(root, client_options=_client_options(), retry_config=retry)


def _client_options() -> Any:
    plain_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}
    return {"allow_http": plain_http, "connect_timeout": "10s", "timeout": "120s"}


def _temporary(final: Path) -> Path:
    final.parent.mkdir(parents=True, exist_ok=True)
    return final.with_name(f".{final.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def _write_through(file: IO[bytes], data: bytes = b"") -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # otherwise a power failure may undo the rename
    finally:
        os.close(descriptor)


@contextmanager
def _plain(name: str) -> Iterator[None]:
    """Translate errors of the system and of the object store to one-line errors of ours."""
    try:
        yield
    except OSError as error:
        raise _translated(error, name) from error
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        raise _translated_remote(error, name) from error


def _translated(error: OSError, name: str) -> EspalierError:
    if error.errno in _FULL:
        return BuildError(f"no space left to write {name}; finished parts are kept: free some space and build again")
    if error.errno in _DENIED:
        return UserError(f"may not use {name}: {os.strerror(error.errno)}")
    if isinstance(error, FileExistsError):
        return UserError(f"{name} is a file, expected a folder")
    if isinstance(error, IsADirectoryError):
        return NotFoundError(f"{name} is a folder, expected a file")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(f"{name} does not exist")
    return BuildError(f"cannot use {name}: {first_line(error)}")


def _translated_remote(error: Exception, name: str) -> EspalierError:
    if type(error).__name__ in {"PermissionDeniedError", "UnauthenticatedError"}:
        return UserError(f"may not use {name}: the store rejects the credentials ({first_line(error)})")
    return BuildError(f"cannot use {name}: {first_line(error)}")
