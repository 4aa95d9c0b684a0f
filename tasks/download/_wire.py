"""A lenient HTTP/1 response parser: accepts what browsers, curl and urllib accept, within limits.

aiohttp's parser refuses heads that all of those accept (a header of 10 kB, a line without a colon, a space before a
colon, a length together with chunks) regardless of its limits, and does not limit interim responses, chunk extensions
and trailers. `LenientConnector` replaces it by a `ResponseReader`; connections, TLS, flow control and the pool are
aiohttp's.

A line that is not a header is skipped, and a malformed response is the last one of its connection, so a wrong guess
where it ends cannot affect another row.
Sources: RFC 9112, sections 2.2, 4 to 7 and 9.3; curl 8, `lib/http.c` and `lib/http_chunks.c`; CPython's
`http/client.py`.
"""

import asyncio
import re
from functools import partial
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import BadHttpMessage, ContentLengthError, TransferEncodingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from multidict import CIMultiDict, CIMultiDictProxy

MOST_HEAD_BYTES: Final = 64 << 10
"""Limit of a response's head, including interim responses; and, separately, of the trailers after its chunks."""
MOST_INTERIM: Final = 32
"""Interim responses (1xx) before the final one."""
MOST_FRAMING_BYTES: Final = 1 << 20
"""Limit of chunk sizes, their extensions and line ends; for larger bodies, a quarter of the body's bytes."""
_LONGEST_SIZE_LINE: Final = 16 << 10

_BUFFER_BYTES: Final = 64 << 10
"""Reading from a connection pauses while twice this is buffered."""

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_STATUS: Final = re.compile(rb"HTTP/(\d)(?:\.(\d))?[ \t]+(\d{3})(?!\d)[ \t]*([^\n]*)", re.IGNORECASE)
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH: Final = re.compile(rb"\+?0*(\d{1,18})")
_CHUNK_SIZE: Final = re.compile(rb"0*([0-9A-Fa-f]{1,15})")
_CONTROLS: Final = bytes(32 if byte < 32 or byte == 127 else byte for byte in range(256))
_NO_BODY: Final = (204, 304)


class WireError(aiohttp.ClientPayloadError):
    """A body whose framing is malformed, or over a limit. A body that ends early is ClientPayloadError."""


class Head(NamedTuple):
    """The status line and the header fields of one response."""

    status: int
    reason: bytes
    minor: int
    """0: HTTP/1.0; 1: all later ones."""
    fields: list[tuple[bytes, bytes]]
    odd: bool
    """Whether anything in it was malformed."""

    def values(self, name: bytes) -> list[bytes]:
        """Return the items of all fields of one name (lower case), split at commas, in lower case."""
        found = [value for key, value in self.fields if key.lower() == name]
        return [item for value in found for item in (part.strip(b" \t").lower() for part in value.split(b",")) if item]


def read_head(data: bytes) -> Head:
    """Parse a head, up to its blank line. Raises BadHttpMessage if there is no status line.

    Accepts bare LF line ends, a missing reason phrase, blank lines before the status line, folded fields, white space
    before a colon, control characters in values (each becomes a space), lines that are not fields (dropped).
    """
    lines = data.strip(b"\r\n").split(b"\n")
    status = _STATUS.match(lines[0])
    if status is None or status[3] < b"100":
        raise BadHttpMessage(f"no status line: {bytes(lines[0][:60])!r}")
    fields: list[tuple[bytes, bytes]] = []
    odd = False
    folded: list[bytes] | None = None
    for line in lines[1:]:
        line = line.removesuffix(b"\r")
        if line[:1] in (b" ", b"\t"):
            odd = True
            if folded is not None:
                folded.append(line.strip(b" \t"))
            continue
        if folded and len(folded) > 1:
            fields[-1] = (fields[-1][0], _value(b" ".join(folded)))
        name, colon, value = line.partition(b":")
        bare = name.rstrip(b" \t")
        if not colon or not _NAME.fullmatch(bare):
            odd, folded = True, None
            continue
        odd = odd or bare != name
        folded = [value]
        fields.append((bare, _value(value)))
    if folded and len(folded) > 1:
        fields[-1] = (fields[-1][0], _value(b" ".join(folded)))
    minor = 0 if status[1] == b"0" or (status[1] == b"1" and status[2] == b"0") else 1
    return Head(int(status[3]), status[4].strip(), minor, fields, odd)


def _value(value: bytes) -> bytes:
    return value.translate(_CONTROLS).strip(b" ")


class Framing(NamedTuple):
    """Where a body ends: at the last chunk, after `length` bytes, or (length None) with the connection."""

    chunked: bool
    length: int | None
    keeps: bool
    """Whether the connection may serve another request."""


def framing(head: Head) -> Framing:
    """Return where the body ends (RFC 9112, section 6.3). Raises BadHttpMessage if two lengths differ.

    Accepts chunks together with a length (the length is dropped), repeated equal lengths, repeated `chunked`, and a
    length that is not a number of at most 18 digits (it is ignored: the body ends with the connection).
    """
    connection = head.values(b"connection")
    keeps = not head.odd and b"close" not in connection and (head.minor == 1 or b"keep-alive" in connection)
    if head.status in _NO_BODY or head.status < 200:
        return Framing(False, 0, keeps)
    declared = head.values(b"content-length")
    if b"chunked" in head.values(b"transfer-encoding"):
        return Framing(True, None, keeps and not declared)
    lengths = {int(number[1]) for text in declared if (number := _LENGTH.fullmatch(text))}
    if len(lengths) > 1:
        raise BadHttpMessage(f"contradictory lengths: {', '.join(map(str, sorted(lengths)[:3]))}")
    return Framing(False, lengths.pop(), keeps) if lengths else Framing(False, None, False)


class Chunks:
    """An incremental chunk parser. Accepts bare LF line ends, white space, blank lines and extensions."""

    def __init__(self) -> None:
        self.ended = False
        """Whether the last chunk, its trailers and the blank line after them have been read."""
        self.rest = b""
        """Input that is not yet parsed; after the end of the body, the data that follows it."""
        self._left = 0
        self._trailer_bytes: int | None = None
        self._framing_bytes = 0
        self._body_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the body that `data` holds. Raises WireError."""
        data = self.rest + data if self.rest else data
        pieces, at, size = [], 0, len(data)
        while at < size and not self.ended:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._body_bytes += len(piece)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                break
            self._line(data[at:end])
            at = end + 1
        self.rest = data[at:]
        if not self.ended and len(self.rest) > _LONGEST_SIZE_LINE:
            raise WireError(f"a line between chunks over {_LONGEST_SIZE_LINE} bytes")
        return b"".join(pieces)

    def end(self) -> bool:
        """Return whether the body is complete if the connection ends here: some servers omit the last line."""
        if not self.ended and not self._left and self.rest:
            self.feed(b"\n")
        return self.ended or self._trailer_bytes is not None

    def _line(self, line: bytes) -> None:
        if self._trailer_bytes is not None:
            self._trailer_bytes += len(line) + 1
            if self._trailer_bytes > MOST_HEAD_BYTES:
                raise WireError(f"over {MOST_HEAD_BYTES} bytes of trailers")
            self.ended = line in (b"", b"\r")
            return
        self._framing_bytes += len(line) + 1
        if self._framing_bytes > MOST_FRAMING_BYTES + self._body_bytes // 4:
            raise WireError(f"{self._framing_bytes} bytes of chunk sizes around {self._body_bytes} bytes of body")
        text = line.partition(b";")[0].strip(b" \t\r")
        if not text and not line.strip(b" \t\r"):
            return  # the end of the previous chunk
        number = _CHUNK_SIZE.fullmatch(text)
        if number is None:
            raise WireError(f"not a chunk's size: {line[:40]!r}")
        self._left = int(number[1], 16)
        if not self._left:
            self._trailer_bytes = 0


_Message = tuple[RawResponseMessage, StreamReader]


class ResponseReader:
    """Reads the response to one request. Has the methods that aiohttp's connections call on their parser."""

    def __init__(self, protocol: ResponseHandler, loop: asyncio.AbstractEventLoop, timer: Any) -> None:
        self._protocol = protocol
        self._loop = loop
        self._timer = timer
        self._head = bytearray()
        self._head_bytes = 0
        self._interim = 0
        self._payload: StreamReader | None = None
        self._chunks: Chunks | None = None
        self._left: int | None = None
        self._lost: Exception | None = None
        self._ended = False

    def feed_data(self, data: bytes) -> tuple[list[_Message], bool, bytes]:
        """Parse received data; return the message whose head it completes, if any."""
        messages: list[_Message] = []
        if self._payload is None and not self._ended and data:
            data = self._read_heads(data, messages)
        if not data:
            pass
        elif self._payload is not None:
            self._read_body(self._payload, data)
        elif self._ended:
            self._hang_up()  # unexpected data
        return messages, False, b""

    def feed_eof(self) -> None:
        """Handle the end of the connection. Raises if the body is incomplete."""
        payload = self._payload
        if payload is None:
            return
        if self._chunks:
            if not self._chunks.end():
                raise TransferEncodingError("the connection ended between chunks")
        elif self._left is not None:
            raise ContentLengthError(f"{self._left} bytes are missing")
        elif self._lost is not None:
            raise TransferEncodingError(f"the connection was lost: {self._lost}")
        self._end(payload)

    def lost(self, error: Exception) -> None:
        """Record, before `feed_eof`, that the connection was lost."""
        self._lost = error

    def pause_reading(self) -> None:
        """Do nothing: parsed data is handed over at once, and aiohttp pauses the transport itself."""

    def message_consumed(self) -> None:
        """Do nothing: there is one message per request."""

    def _read_heads(self, data: bytes, messages: list[_Message]) -> bytes:
        """Append the message whose head ends in `data`; return the rest of the data."""
        head = self._head
        looked = max(0, len(head) - 2)
        head += data if head else data.lstrip(b"\r\n")
        self._head_bytes += len(data)
        while (end := _HEAD_END.search(head, looked)) is not None:
            if self._head_bytes - len(head) + end.end() > MOST_HEAD_BYTES:
                break
            found = read_head(bytes(head[: end.end()]))
            if 100 <= found.status < 200 and found.status != 101:
                self._interim += 1
                if self._interim > MOST_INTERIM:
                    raise BadHttpMessage(f"more than {MOST_INTERIM} interim responses")
                del head[: end.end()]
                looked = 0
                continue
            rest = bytes(head[end.end() :])
            head.clear()
            messages.append(self._message(found, bool(rest)))
            return rest
        if self._head_bytes > MOST_HEAD_BYTES:
            raise BadHttpMessage(f"over {MOST_HEAD_BYTES} bytes of headers")
        return b""

    def _message(self, head: Head, more: bool) -> _Message:
        body = framing(head)
        payload = EMPTY_PAYLOAD
        if body.chunked or body.length != 0:
            payload = StreamReader(self._protocol, _BUFFER_BYTES, timer=self._timer, loop=self._loop)
            self._payload = payload
            self._chunks = Chunks() if body.chunked else None
            self._left = body.length
        else:
            self._ended = True
        keeps = body.keeps and not (self._ended and more)
        version = HttpVersion11 if head.minor else HttpVersion10
        headers = _headers(head, body)
        reason = head.reason.decode("utf-8", "surrogateescape")
        message = RawResponseMessage(
            version, head.status, reason, headers, tuple(head.fields), not keeps, None, False, body.chunked
        )
        return message, payload

    def _read_body(self, payload: StreamReader, data: bytes) -> None:
        if self._chunks:
            try:
                body = self._chunks.feed(data)
            except WireError as error:
                self._ended, self._payload = True, None
                payload.set_exception(error)
                self._hang_up()
                return
            payload.feed_data(body, len(body))
            if self._chunks.ended:
                self._end(payload, bool(self._chunks.rest))
        elif self._left is None:
            payload.feed_data(data, len(data))
        else:
            body = data if len(data) <= self._left else data[: self._left]
            self._left -= len(body)
            payload.feed_data(body, len(body))
            if not self._left:
                self._end(payload, len(data) > len(body))

    def _end(self, payload: StreamReader, more: bool = False) -> None:
        self._ended, self._payload = True, None
        if more:
            self._protocol.force_close()  # before the end is signalled, which returns the connection to the pool
        payload.feed_eof()

    def _hang_up(self) -> None:
        self._protocol.force_close()
        if self._protocol.transport is not None:
            self._protocol.transport.close()


def _headers(head: Head, body: Framing) -> CIMultiDictProxy[str]:
    """Return the fields as text, bytes that are not UTF-8 as lone surrogates. There is at most one length, the valid
    one; there are no cookies; transfer codings other than chunks are returned as content codings."""
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in head.fields:
        if name.lower() not in (b"content-length", b"set-cookie"):
            headers.add(name.decode("ascii"), value.decode("utf-8", "surrogateescape"))
    if body.length is not None and head.values(b"content-length"):
        headers["Content-Length"] = str(body.length)
    for coding in head.values(b"transfer-encoding"):
        if coding not in (b"chunked", b"identity"):
            headers.add("Content-Encoding", coding.decode("utf-8", "surrogateescape"))
    return CIMultiDictProxy(headers)


class _Connection(ResponseHandler):
    """aiohttp's connection with our parser."""

    def set_response_params(self, *, timer: Any = None, **params: Any) -> None:
        """Prepare for the next response; called before each request."""
        early, self._tail = self._tail, b""  # some servers respond before the request
        super().set_response_params(timer=timer, **params)
        self._parser: Any = ResponseReader(self, self._loop, timer)
        if early:
            self.data_received(early)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Pass the error to the reader, then close the connection."""
        if isinstance(exc, Exception) and isinstance(self._parser, ResponseReader):
            self._parser.lost(exc)
        super().connection_lost(exc)


class LenientConnector(aiohttp.TCPConnector):
    """aiohttp's connector with `ResponseReader` as parser."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory: Any = partial(_Connection, loop=self._loop)
