"""`jsonl`: one JSON object a line (NDJSON), plain or compressed."""

import io
from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, Literal

import pyarrow as pa

from tasks.sources._base import PIECE_BYTES, PIECE_ROWS, Tabular
from tasks.sources._columns import text_of
from tasks.sources._files import COMPRESSED, open_text
from tasks.sources._json import MAX_OBJECT_BYTES, SAMPLE_OBJECTS, columns_of, extract


class Jsonl(Tabular):
    """JSON lines. The keys of the first file's first 1,000 lines are the columns; nested values keep their JSON text.

    A line that is not a JSON object (or is longer than 16 MiB) is kept, as a row of nulls; an empty line is no row.
    Lines are counted when a build is planned, which reads every file once.
    """

    suffixes: ClassVar[tuple[str, ...]] = tuple(
        s + c for s in (".jsonl", ".ndjson", ".json") for c in ("", *COMPRESSED)
    )

    use: Literal["jsonl"] = "jsonl"

    def columns(self, uri: str) -> pa.Schema:
        with open_text(uri) as file:
            return columns_of(islice(_lines(file), SAMPLE_OBJECTS))

    def count(self, uri: str) -> tuple[int, pa.Schema | None]:
        with open_text(uri) as file:
            return sum(1 for _ in _lines(file)), None

    def restart(self, uri: str, row: int) -> int:
        return 0

    def stream(self, uri: str, row: int, columns: pa.Schema) -> Iterator[pa.Table]:
        with open_text(uri) as file:
            for lines in _pieces(_lines(file)):
                yield extract(text_of(lines), columns)


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines that are not empty; one that is too long as an empty one."""
    while line := file.readline(MAX_OBJECT_BYTES):
        if len(line) == MAX_OBJECT_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_OBJECT_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield b""
        elif line not in {b"\n", b"\r\n"}:
            yield line


def _pieces(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Yield lines in bounded lists."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if len(piece) == PIECE_ROWS or size > PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
