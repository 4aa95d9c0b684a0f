"""Find the offset and size of each regular file in a tar. Reads headers only, and trusts none of them.

The position only moves forward, extended headers are bounded, and any error of tarfile ends the listing: the members
before the damage are read.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pyarrow as pa

from catalog.errors import UserError, first_line
from tasks.sources._files import open_random
from tasks.sources._notes import Notes

BLOCK: Final = tarfile.BLOCKSIZE
MAX_EXTENDED_BYTES: Final = 1 << 20
"""A longer PAX or GNU header (a name, attributes) counts as damage."""
MAX_EXTENDED: Final = 16
"""More extended headers in a row count as damage: tarfile recurses for each."""
MAX_NAME_CHARS: Final = 4096
LOOKED_AT_AFTER_END: Final = 1 << 20
"""Bytes after the end mark that are searched for anything but padding: tars are usually padded to 10 kB."""

DAMAGED: Final = "damaged tars, which are read up to the damage"
AFTER_END: Final = "tars with bytes after their end mark (another tar appended?), which are not read"
LINKS: Final = "links in tars"
SPECIAL: Final = "devices and pipes in tars"

_OCTAL: Final = re.compile(rb"^[ \0]*([0-7]+)[ \0]*$")
_EXTENDED: Final = frozenset(b"xgXLK")
_LINKS: Final = (tarfile.LNKTYPE, tarfile.SYMTYPE)


class Member(NamedTuple):
    """One regular file."""

    name: str
    offset: int
    size: int
    sparse: bool = False
    """Whether its bytes are stored with holes."""


@contextmanager
def opened(uri: str) -> Iterator[pa.NativeFile]:
    """Open a tar for random access. Raises UserError if it is compressed, or not a tar."""
    with open_random(uri) as file:
        head = bytes(file.read_at(min(file.size(), 6), 0))
        if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0")):
            raise UserError(f"{uri} is compressed; expected a plain tar: unpack it first")
        yield file


def members(file: pa.NativeFile, uri: str, notes: Notes) -> Iterator[Member]:
    """Yield the complete regular files in order; count links, devices, damage and data after the end mark in `notes`.

    Plain headers are parsed here, several times faster than by tarfile, which parses the others (long names, links).
    Raises UserError if the file does not begin with a tar header.
    """
    end = file.size()
    if end == 0:
        return
    archive = tarfile.open(fileobj=io.BytesIO(bytes(2 * BLOCK)), mode="r:")  # noqa: SIM115  # it holds no open file
    archive.fileobj = file  # from here it is asked for one header at a time
    at, before = 0, -1
    while at > before:
        before = at
        block = bytes(file.read_at(BLOCK, at)) if at < end else b""
        plain = _plain_header(block)
        if plain is not None:
            name, size = plain
            at += BLOCK + _padded(size)
            if before + BLOCK + size > end:
                break
            yield Member(name, before + BLOCK, size)
            continue
        try:
            found = _by_tarfile(file, archive, at, end)
        except Exception as error:  # tarfile raises a dozen types of errors on hostile headers
            if at == 0:
                raise UserError(f"{uri} is not a tar file: {first_line(error)}") from error
            break
        if found is None:
            if block.strip(b"\0"):
                break
            if bytes(file.read_at(min(end - at, LOOKED_AT_AFTER_END), at)).strip(b"\0"):
                notes.add(1, AFTER_END, f"{uri} from byte {at:,}")
            return
        at = archive.offset
        if (
            found.size < 0
            or found.offset_data < before
            or (found.isreg() and found.offset_data + _stored(found, at) > end)
        ):
            break
        if found.isreg():
            name = found.name.encode("utf-8", "replace").decode()[:MAX_NAME_CHARS]
            yield Member(name, found.offset_data, found.size, found.sparse is not None)
        elif found.type in _LINKS:
            notes.add(1, LINKS, f"{uri}#{_shown(found.name)}")
        elif not found.isdir():
            notes.add(1, SPECIAL, f"{uri}#{_shown(found.name)}")
    notes.add(1, DAMAGED, f"{uri} at byte {before:,}")


def _stored(found: tarfile.TarInfo, after: int) -> int:
    """Return how many bytes a member occupies in the tar."""
    return after - found.offset_data if found.sparse is not None else found.size


def _by_tarfile(file: pa.NativeFile, archive: Any, at: int, end: int) -> tarfile.TarInfo | None:
    """Return the member whose headers begin at an offset, None at the end of the tar. Raises the errors of tarfile."""
    place = at
    for _ in range(MAX_EXTENDED):
        block = bytes(file.read_at(BLOCK, place)) if place < end else b""
        if len(block) < BLOCK or block[156] not in _EXTENDED:
            break
        size = tarfile.nti(block[124:136])  # type: ignore[attr-defined]
        if not 0 <= size <= MAX_EXTENDED_BYTES:
            raise tarfile.HeaderError(f"an extended header of {size} bytes")
        place += BLOCK + _padded(size)
    else:
        raise tarfile.HeaderError("too many extended headers")
    file.seek(at)
    archive.offset, archive.firstmember = at, None
    found: tarfile.TarInfo | None = archive.next()
    archive.members = []  # otherwise it stores every header
    return found


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _plain_header(block: bytes) -> tuple[str, int] | None:
    """Return name and size from the header (POSIX.1-1988 ustar) of a regular file; None for anything unusual."""
    if len(block) < BLOCK or block[156:157] not in {b"0", b"\0"} or block[345:346] != b"\0":
        return None
    size, checksum = _OCTAL.match(block[124:136]), _OCTAL.match(block[148:156])
    if size is None or checksum is None:
        return None
    name = block[:100].partition(b"\0")[0]
    if int(checksum[1], 8) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]) or name.endswith(b"/"):
        return None
    return name.decode("utf-8", "replace"), int(size[1], 8)


def _shown(name: str) -> str:
    text = name.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)[:200]
