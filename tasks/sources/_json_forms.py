"""Read the JSON objects of a file in any of four forms: lines, one array, concatenated values, one object of lists.

    {"url": ...}\\n{"url": ...}            lines
    [{"url": ...}, {"url": ...}]          array, on one line or many
    {\\n "url": ...\\n}\\n{ ...             values, as printed by `jq`
    {"image_urls": [...], "captions": [...]}    lists of one length (SBU)

All but the last are streamed: one object at a time is in memory.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from catalog.errors import UserError
from tasks.sources._json import MAX_OBJECT_BYTES
from tasks.sources._text import utf8_of

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_ARRAY: Final = re.compile(rb"\s*\[\s*[{\]]")
_Bytes = BinaryIO | io.BufferedIOBase
_DECODE: Final = json.JSONDecoder(strict=False).raw_decode


@dataclass(frozen=True)
class Limits:
    """Sizes of what is in memory at once. Only tests use others than the defaults."""

    object_bytes: int = MAX_OBJECT_BYTES
    """A longer line or object is malformed."""
    lists_bytes: int = 512 << 20
    """A file of lists is read into memory, and may not be larger. SBU's has 140 MB."""
    chunk_bytes: int = 1 << 20
    """What is read at once of an array, or of concatenated values."""


LIMITS: Final = Limits()


class _Object(dict[str, Any]):
    """A JSON object that records a duplicate key."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        keys = [key for key, _ in pairs] if len(self) < len(pairs) else []
        self.twice = next((key for at, key in enumerate(keys) if key in keys[:at]), None)


_DECODE_WHOLE: Final = json.JSONDecoder(strict=False, object_pairs_hook=_Object).raw_decode


def objects(uri: str, file: io.BufferedReader, limits: Limits = LIMITS) -> Iterator[bytes]:
    """Yield the JSON text of every row of a file, as bytes. A line that is too long yields text that is not JSON.

    Raises UserError if a file of another form than lines cannot be parsed to its end.
    """
    head = file.peek(1 << 16)
    first, newline, _ = head.lstrip().partition(b"\n")
    if _ARRAY.match(head):
        yield from _values(uri, file, limits, array=True)
    elif not first.startswith(b"{") or (newline and _is_object(first)):
        yield from _lines_or_lists(uri, file, limits)
    else:
        yield from _long(uri, file, limits)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8", "surrogateescape")), dict)
    except (ValueError, RecursionError):
        return False


def _lines_or_lists(uri: str, file: io.BufferedReader, limits: Limits) -> Iterator[bytes]:
    lines = _lines(file, limits)
    first = next(lines, None)
    if first is None:
        return
    second = next(lines, None)
    lists = _lists(first) if second is None else None
    if lists is not None:
        yield from _of_lists(uri, lists)
        return
    yield first
    if second is not None:
        yield second
    yield from lines


def _long(uri: str, file: io.BufferedReader, limits: Limits) -> Iterator[bytes]:
    """Read a file whose first line is not an object: the object has several lines, is long, or is malformed."""
    data, most = file.read(limits.object_bytes), limits.object_bytes
    while True:
        text = data.decode("utf-8", "surrogateescape")
        try:
            value, end = _DECODE_WHOLE(text, _after_space(text, 0))
            break
        except (ValueError, RecursionError) as error:
            place = getattr(error, "pos", 0)
            if most == limits.lists_bytes or len(text) - place > limits.chunk_bytes or not file.peek(1):
                yield from _lines(io.BufferedReader(_Joined(data, file)), limits)
                return
        most = limits.lists_bytes
        data += file.read(most - len(data))
    if not text[end:].strip() and not file.peek(1):
        yield from _of_lists(uri, value) if _is_lists(value) else [utf8_of(text.strip())]
        return
    several = "\n" in text[:end].strip()
    del text, value
    joined = io.BufferedReader(_Joined(data, file))
    del data
    yield from _values(uri, joined, limits, array=False) if several else _lines(joined, limits)


class _Joined(io.RawIOBase):
    """Bytes that were already read, followed by the rest of the file."""

    def __init__(self, before: bytes, after: io.BufferedReader) -> None:
        self._before = io.BytesIO(before)
        self._after = after

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._before.read(len(buffer)) or self._after.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _lines(file: _Bytes, limits: Limits) -> Iterator[bytes]:
    """Yield the lines that are not blank; for a line that is too long, its beginning, which is not JSON."""
    most = limits.object_bytes
    while line := file.readline(most):
        if len(line) == most and not line.endswith(b"\n"):
            while (rest := file.readline(most)) and not rest.endswith(b"\n"):
                pass
            yield line[:200] + b" ... (longer than %d bytes)" % most
        elif line.strip():
            yield line


def _lists(line: bytes) -> _Object | None:
    """Return the object of a file's only line if it is an object of lists."""
    try:
        value = json.loads(line.decode("utf-8", "surrogateescape"), object_pairs_hook=_Object)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, _Object) and _is_lists(value) else None


def _is_lists(value: dict[str, Any]) -> bool:
    return bool(value) and all(isinstance(item, list) for item in value.values())


def _of_lists(uri: str, lists: _Object) -> Iterator[bytes]:
    if lists.twice is not None:
        raise UserError(f"{uri} is one object of lists with the key {lists.twice!r} twice; expected every key once")
    lengths = {len(items) for items in lists.values()}
    if len(lengths) > 1:
        shown = ", ".join(f"{key} {len(items)}" for key, items in list(lists.items())[:5])
        raise UserError(f"{uri} is one object of lists, but they differ in length ({shown}); expected one item a row")
    for items in zip(*lists.values(), strict=True):
        yield utf8_of(json.dumps(dict(zip(lists, items, strict=True)), ensure_ascii=False))


def _values(uri: str, file: _Bytes, limits: Limits, array: bool) -> Iterator[bytes]:
    """Yield the elements of an array, or concatenated values."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    text, at, place, ended, opened = "", 0, 0, False, not array
    while True:
        at = _after_space(text, at)
        if array and at < len(text) and text[at] in ("," if opened else "["):
            at, opened = at + 1, True
            continue
        if array and at < len(text) and text[at] == "]":
            return
        try:
            _, end = _DECODE(text, at) if at < len(text) else (None, at)
        except (ValueError, RecursionError):
            end = at
        if end > at and (ended or end < len(text)):
            yield utf8_of(text[at:end])
            at = end
            continue
        if ended and not array and at == len(text):
            return
        if ended or len(text) - at > limits.object_bytes:
            shown = " ".join(text[at : at + 40].split())
            found = f"{shown!r}" if shown else "its end"
            raise UserError(f"{uri}: no JSON value from character {place + at:,} on: found {found}")
        data = file.read(limits.chunk_bytes)
        place, text, at = place + at, text[at:] + decode.decode(data, final=not data), 0
        ended = not data


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # it also matches the empty string
    return found.end()
