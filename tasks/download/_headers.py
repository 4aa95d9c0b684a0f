"""Parse response headers: opt-outs, Retry-After, Content-Range, content codings."""

import math
import re
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from email.utils import parsedate_to_datetime
from typing import Final

from tasks.download._reasons import FetchError

_AGENT: Final = re.compile(r"\*|[a-z0-9._/-]+")
_VALUED: Final = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
"""Directives that have a value after a colon."""
_MOST_STREAMS: Final = 64
"""Concatenated gzip streams in one body: each costs a copy of the rest."""
_MOST_ENCODINGS: Final = 4
_INFLATED: Final = ("gzip", "x-gzip", "deflate")
_OTHERS: Final = ("compress", "x-compress", "br", "zstd", "dcb", "dcz", "exi", "pack200-gzip", "aes128gcm")
_CODINGS: Final = frozenset((*_INFLATED, *_OTHERS))
"""IANA's list of content codings; other names are ignored."""
_LEAST_UNIX_TIME: Final = 1_000_000_000
_RANGE: Final = re.compile(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII | re.IGNORECASE)


def opted_out(robots_tags: Iterable[str], token: str, directives: Collection[str]) -> str | None:
    """Return the X-Robots-Tag value that forbids use, or None. `token` is our name.

    A value is `directive, directive`, some of which may follow the name of an agent, `agent: directive, directive`:
    these apply, up to the next name, if the name is ours or `*`. A directive may have a value (`max-snippet: 50`).
    `none` is `noindex, nofollow`. (img2dataset takes everything before the first colon for an agent, and so misses the
    refusal in `noai, max-snippet: 50`.)
    Source: Google Search Central, "Robots meta tag and X-Robots-Tag".
    """
    ours = ("*", _product(token))
    for value in robots_tags:
        mine = True
        for piece in value.lower().split(","):
            name, colon, rest = (part.strip() for part in piece.partition(":"))
            if colon and name not in _VALUED and _AGENT.fullmatch(name):
                mine, name = _product(name) in ours, rest
            if mine and not _directives_of(name).isdisjoint(directives):
                return value
    return None


def _directives_of(name: str) -> frozenset[str]:
    """Return the directives that a name means."""
    return frozenset((name, "noindex", "nofollow")) if name == "none" else frozenset((name,))


def _product(agent: str) -> str:
    """Return the name in `name/version`."""
    return agent.partition("/")[0].strip().lower()


def retry_after_s(value: str | None) -> float | None:
    """Return the pause that Retry-After asks for, or None if it is absent or malformed.

    The standard allows seconds or a date. Some servers send a Unix time, in seconds or milliseconds: a number too large
    for a pause is read as one. For a time in the past the result is 0.
    """
    if value is None:
        return None
    now = time.time()
    try:
        number = float(value)
        if not math.isfinite(number):
            return None
        if number > _LEAST_UNIX_TIME:
            number = number / (1000 if number > 1000 * _LEAST_UNIX_TIME else 1) - now
        return max(0.0, number)
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def cut_short(content_range: str | None) -> str | None:
    """Return the range of a partial body from its Content-Range, or None if the body is whole or the range unknown."""
    found = _RANGE.fullmatch((content_range or "").strip())
    if found is None:
        return None
    first, last, size = found.groups()
    whole = int(first) == 0 and (size == "*" or int(last) + 1 >= int(size))
    return None if whole else f"bytes {first}-{last}/{size}"


def encodings(values: Iterable[str]) -> tuple[str, ...]:
    """Return the content codings that a response declares, in the order in which they were applied.

    Names that are not codings (`utf-8`, `none`, `aws-chunked`, a media type: object stores and scripts set such values)
    are dropped: they do not change the bytes.
    """
    names = (part.strip().lower() for value in values for part in value.split(","))
    return tuple(name for name in names if name in _CODINGS)


def decompressed(body: bytes, codings: Sequence[str], max_bytes: int, plain: Callable[[bytes], bool]) -> bytes:
    """Decode content codings that were not requested. Raises FetchError: bad_encoding, body_too_large.

    If decoding fails but `plain` accepts the raw bytes, these are returned: the header was wrong.
    """
    try:
        if len(codings) > _MOST_ENCODINGS:
            raise FetchError("bad_encoding", f"{len(codings)} encodings, one over the other")
        for name in reversed(codings):
            if name not in _INFLATED:
                raise FetchError("bad_encoding", f"{name}, though identity was asked for")
            body = _inflated(body, name, max_bytes)
    except FetchError as error:
        if error.reason != "bad_encoding" or not plain(body):
            raise
    return body


def _inflated(body: bytes, name: str, max_bytes: int) -> bytes:
    # deflate is zlib's format by the standard, and a bare stream from some servers
    bare = name == "deflate" and (len(body) < 2 or body[0] & 0x0F != 8 or int.from_bytes(body[:2], "big") % 31 != 0)
    out = bytearray()
    for _ in range(_MOST_STREAMS):
        inflater = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
        try:
            out += inflater.decompress(body, max_bytes + 1 - len(out))
        except zlib.error as error:
            raise FetchError("bad_encoding", f"{name}: {error}") from error
        if len(out) > max_bytes:
            raise FetchError("body_too_large", f"over {max_bytes} bytes when decompressed")
        if not inflater.eof:
            raise FetchError("bad_encoding", f"{name}: the stream ends early")
        body = inflater.unused_data
        if not body.startswith(b"\x1f\x8b"):  # gzip files may follow each other
            return bytes(out)
    raise FetchError("bad_encoding", f"{name}: more than {_MOST_STREAMS} streams in one body")
