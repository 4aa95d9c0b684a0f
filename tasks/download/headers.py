"""What response headers ask for: not to be used, or not to be asked again so soon."""

import time
import zlib
from collections.abc import Collection, Iterable
from email.utils import parsedate_to_datetime

from tasks.download.reasons import FetchError


def opted_out(robots_tags: Iterable[str], token: str | None, directives: Collection[str]) -> str | None:
    """Return the X-Robots-Tag value that forbids use, or None. The rule is img2dataset's.

    A value is `directive, directive` or `agent: directive, directive`; the second form counts when the agent is ours.
    """
    own = token.strip().lower() if token else None
    for value in robots_tags:
        agent, colon, rest = value.partition(":")
        asked = {directive.strip().lower() for directive in (rest if colon else value).split(",")}
        if (not colon or agent.strip().lower() == own) and not asked.isdisjoint(directives):
            return value
    return None


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
    for name in reversed([part.strip().lower() for part in encoding.split(",")]):
        if name in ("", "identity"):
            continue
        if name not in ("gzip", "x-gzip", "deflate"):
            raise FetchError("bad_encoding", f"{name}, though identity was asked for")
        body = _inflated(body, name, max_bytes)
    return body


def _inflated(body: bytes, name: str, max_bytes: int) -> bytes:
    # deflate is zlib's format by the standard, and a bare stream from some servers
    bare = name == "deflate" and (len(body) < 2 or body[0] & 0x0F != 8 or int.from_bytes(body[:2], "big") % 31 != 0)
    out = bytearray()
    while True:
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
