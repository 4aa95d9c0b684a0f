"""Files that carry their own SHA-256, so that reading a file once detects any changed byte.

    Parquet     the digest of all bytes of the file is a key of its footer, `espalier.sha256`
    JSON        the digest of the canonical JSON of the object's other keys is its key `espalier.sha256`

A digest cannot cover itself: it is computed with 64 zeros in its place. It is written together with the file, so no
second file has to agree with the first, and files that a killed build left behind can be checked as well.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from catalog.storage import Storage

KEY: Final = b"espalier.sha256"
JSON_KEY: Final = "espalier.sha256"
_HEX: Final = 64
_BLANK: Final = b"0" * _HEX
_MARK: Final = KEY + b"\x18\x40"
"""The encoding of the key and of its value's header in the footer: Thrift's compact protocol, a string of 64 bytes."""
_TAIL: Final = 8
"""Bytes after the footer: its length and the magic."""
_READ_BYTES: Final = 8 << 20


class SealingFile(io.RawIOBase):
    """A binary file for a Parquet writer; `seal` completes it with its digest in the footer.

    Call `hold` before the Parquet writer is closed, because it then writes the footer.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._footer: bytearray | None = None
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._position += size
        if self._footer is None:
            self._digest.update(data)
            self._file.write(data)
        else:
            self._footer += data
        return size

    def hold(self, parquet: pq.ParquetWriter) -> None:
        """Reserve space for the digest in the footer, and buffer the footer in memory."""
        parquet.add_key_value_metadata({KEY: _BLANK})
        self._footer = bytearray()

    def seal(self) -> str:
        """Write the footer with the digest; return the digest (hex)."""
        assert self._footer is not None
        at = _place(self._footer)
        assert at is not None
        self._digest.update(self._footer)
        digest = self._digest.hexdigest()
        self._footer[at : at + _HEX] = digest.encode()
        self._file.write(self._footer)
        return digest


def sealed_parquet(rows: pa.Table) -> bytes:
    """Return a small table as a sealed Parquet file (zstd)."""
    buffer = io.BytesIO()
    file = SealingFile(buffer)
    with pq.ParquetWriter(file, rows.schema, compression="zstd") as parquet:
        parquet.write_table(rows)
        file.hold(parquet)
    file.seal()
    return buffer.getvalue()


@dataclass(frozen=True)
class Seal:
    """The recorded and the actual digest of a Parquet file."""

    recorded: str | None
    """The digest in its footer; None if it has none (a file of an older release, or not a Parquet file)."""
    found: str
    """The actual digest of its bytes."""


def read_seal(storage: "Storage", path: str, size: int) -> Iterator[int | Seal]:
    """Read a Parquet file of `size` bytes once; yield the number of bytes read periodically, and finally its Seal."""
    tail = storage.read_range(path, max(0, size - _TAIL), _TAIL)
    length = int.from_bytes(tail[:4], "little")
    begin = size - _TAIL - length if tail[4:] == b"PAR1" and length <= size - _TAIL - 4 else size
    digest = hashlib.sha256()
    for at, piece in pieces(storage, path, 0, begin):
        digest.update(piece)
        yield at
    footer = bytearray(storage.read_range(path, begin, size - begin)) if begin < size else bytearray()
    place = _place(footer)
    recorded = None
    if place is not None:
        recorded = footer[place : place + _HEX].decode("ascii", "replace")
        footer[place : place + _HEX] = _BLANK
    digest.update(footer)
    yield Seal(recorded, digest.hexdigest())


def pieces(storage: "Storage", path: str, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (end offset, bytes) of a range of a file, some MiB at a time; nothing if the file ends before the range."""
    while begin < end and (piece := storage.read_range(path, begin, min(_READ_BYTES, end - begin))):
        begin += len(piece)
        yield begin, piece


def digest_of(storage: "Storage", path: str, size: int) -> Iterator[int | str]:
    """Read any file once; yield the number of bytes read periodically, and finally its SHA-256 (hex)."""
    digest = hashlib.sha256()
    for at, piece in pieces(storage, path, 0, size):
        digest.update(piece)
        yield at
    yield digest.hexdigest()


def _place(footer: bytes | bytearray) -> int | None:
    """Return the offset of the digest's 64 characters in a footer (the last key of that name is ours)."""
    at = footer.rfind(_MARK)
    return at + len(_MARK) if at >= 0 and at + len(_MARK) + _HEX <= len(footer) else None


def sealed_json(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object with its digest added."""
    about = {key: item for key, item in value.items() if key != JSON_KEY}
    return json.dumps(about | {JSON_KEY: _json_digest(about)}, sort_keys=True, indent=1).encode()


def opened_json(data: bytes) -> dict[str, Any]:
    """Return a JSON object without its digest. Raises ValueError for another JSON value, or for a wrong digest.

    An object without a digest (of an older release) is accepted unchecked.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    recorded = value.pop(JSON_KEY, None)
    if recorded is not None and recorded != _json_digest(value):
        raise ValueError("its content does not match its SHA-256")
    return value


def is_sealed(data: bytes) -> bool:
    """Return whether a JSON object carries a digest."""
    return f'"{JSON_KEY}"'.encode() in data


def _json_digest(value: Mapping[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
