"""What response headers ask for: not to be used, or not to be asked again so soon."""

import re
import time
import zlib
from collections.abc import Collection, Iterable
from email.utils import parsedate_to_datetime
from typing import Final

from tasks.download.reasons import FetchError

_AGENT: Final = re.compile(r"\*|[a-z0-9._/-]+")
_VALUED: Final = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
"""Directives that have a value behind a colon."""
_MOST_STREAMS: Final = 64
"""Of gzip files that follow each other in one body: each costs a copy of what comes after it."""
_MOST_ENCODINGS: Final = 4


def opted_out(robots_tags: Iterable[str], token: str, directives: Collection[str]) -> str | None:
    """Return the X-Robots-Tag value that forbids use, or None. `token` is our name.

    A value is `directive, directive`, of which some may follow the name of an agent, `agent: directive, directive`:
    those count, up to the next name, where it is ours or `*`. A directive may have a value of its own
    (`max-snippet: 50`). `none` stands for `noindex, nofollow`. (img2dataset takes what stands before the first colon
    for an agent, whatever it is, and so passes over the refusal in `noai, max-snippet: 50`.)
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
    """Return a directive, and what it stands for."""
    return frozenset((name, "noindex", "nofollow")) if name == "none" else frozenset((name,))


def _product(agent: str) -> str:
    """Return the name in `name/version`."""
    return agent.partition("/")[0].strip().lower()


def retry_after_s(value: str | None) -> float | None:
    """Return the pause that Retry-After asks for, seconds or a date, or None where it says nothing readable."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo a Content-Encoding that was not asked for. Raises FetchError: bad_encoding, body_too_large."""
    names = [name for part in encoding.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    if len(names) > _MOST_ENCODINGS:
        raise FetchError("bad_encoding", f"{len(names)} encodings, one over the other")
    for name in reversed(names):
        if name not in ("gzip", "x-gzip", "deflate"):
            raise FetchError("bad_encoding", f"{name}, though identity was asked for")
        body = _inflated(body, name, max_bytes)
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
