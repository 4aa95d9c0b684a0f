"""Choose an index by rows, memory and recall.

Bytes per vector of d numbers, in addition to 8 for its id:

    flat    4d                                      every vector, compared with every query: exact
    ivf     4d, 2d or d                             in lists, as float32, float16 or 8 bits per number
    hnsw    4d + 272                                a graph with 32 links a vector (64 at the bottom)
    ivfpq   m                                       in lists, as m codes of 8 bits (product quantisation)
    opq     m                                       ivfpq after a rotation that is optimised for the codes

and once: 4d per list, 1024d for the codes, 4d^2 for the rotation. `auto` takes the first of these that fits the memory:

    1. up to 50,000 rows: flat (a query takes milliseconds)
    2. up to 1,000,000 rows, if the requested recall is at least 0.99: hnsw
    3. ivf as float32, as float16 (the precision of the stored vectors), then as 8 bits
    4. ivfpq with the most codes that fit, down to d/4; with fewer, opq

Not hnsw by default: it takes several times as long to build, and does not support the removal of rows.

Source: Jegou, Douze and Schmid, Product quantization for nearest neighbor search, TPAMI 2011 (lists and codes); Ge et
al., Optimized product quantization, CVPR 2013; Malkov and Yashunin, HNSW, TPAMI 2018; list counts as recommended by
faiss.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log2, sqrt
from typing import Final, Literal

from pydantic import Field

from catalog.errors import UserError
from tasks.stage import Config

Kind = Literal["flat", "ivf", "hnsw", "ivfpq", "opq"]
Coding = Literal["float32", "float16", "8bit", "pq"]

FLAT_ROWS: Final = 50_000
HNSW_ROWS: Final = 1_000_000
HNSW_RECALL: Final = 0.99
LINKS: Final = 32
_LINK_BYTES: Final = 4 * 2 * LINKS + 16
"""Of HNSW, per vector: 2M links at the bottom, about 1/M of it above, its level and offset."""
_ID_BYTES: Final = 8
ROWS_PER_LIST: Final = 64
"""Training rows per list. faiss recommends at least 39."""
CODEBOOK: Final = 256
CODEBOOK_ROWS: Final = 16_384
"""Training rows of product quantisation: 64 per code word. More take minutes and improve little."""


class Budget(Config):
    """The memory limit and the required recall of an index."""

    kind: Kind | Literal["auto"] = Field("auto", description="auto: by rows, memory and recall")
    memory_mb: float = Field(4000, gt=0, description="limit of the index in memory, in millions of bytes")
    recall: float = Field(0.95, gt=0, le=1, description="share of the 10 nearest that a search must find")


@dataclass(frozen=True)
class Choice:
    """The parameters and the expected size of an index."""

    kind: Kind
    coding: Coding
    rows: int
    dim: int
    lists: int = 0
    codes: int = 0
    """Bytes per vector, of product quantisation."""

    @property
    def factory(self) -> str:
        """The faiss factory string."""
        coded = {"float32": "Flat", "float16": "SQfp16", "8bit": "SQ8", "pq": f"PQ{self.codes}"}[self.coding]
        if self.kind == "hnsw":
            return f"HNSW{LINKS},{coded}"
        rotated = f"OPQ{self.codes}," if self.kind == "opq" else ""
        return f"{rotated}IVF{self.lists},{coded}" if self.lists else coded

    @property
    def bytes_per_vector(self) -> int:
        """The size of one vector."""
        coded = {"float32": 4 * self.dim, "float16": 2 * self.dim, "8bit": self.dim, "pq": self.codes}[self.coding]
        return coded + _ID_BYTES + (_LINK_BYTES if self.kind == "hnsw" else 0)

    @property
    def bytes(self) -> int:
        """The size of the index."""
        once = 4 * self.dim * self.lists
        once += 4 * CODEBOOK * self.dim if self.coding == "pq" else 0
        once += 4 * self.dim**2 if self.kind == "opq" else 0
        return self.rows * self.bytes_per_vector + once

    @property
    def training_rows(self) -> int:
        """The number of rows for training the lists and codes."""
        return max(ROWS_PER_LIST * self.lists, CODEBOOK_ROWS if self.coding == "pq" else 0)

    @property
    def is_lossy(self) -> bool:
        """Whether its scores are estimates, so that results must be rescored with the stored vectors."""
        return self.coding in ("8bit", "pq")


def choose(rows: int, dim: int, budget: Budget) -> Choice:
    """Choose the index for `rows` vectors of `dim` numbers. Raises UserError if none fits the memory."""
    candidates = list(_candidates(rows, dim, budget))
    if not candidates:
        raise UserError(f"an index of kind {budget.kind} needs at least {CODEBOOK} vectors, and there are {rows}")
    limit = budget.memory_mb * 1e6
    for candidate in candidates:
        if candidate.bytes <= limit:
            return candidate
    least = min(candidates, key=lambda candidate: candidate.bytes)
    raise UserError(
        f"{rows:,} vectors of {dim} numbers take at least {least.bytes / 1e6:,.2f} MB ({least.factory}), "
        f"and the budget is {budget.memory_mb:,.2f} MB: raise --memory-mb"
        + ("" if budget.kind == "auto" else ", or let --kind be auto")
    )


def list_count(rows: int) -> int:
    """Return the number of lists: the power of 2 nearest to 4 sqrt(rows), with at least 39 rows per list."""
    wanted = 2 ** round(log2(4 * sqrt(max(rows, 1))))
    return max(1, min(int(wanted), rows // 39))


def _candidates(rows: int, dim: int, budget: Budget) -> Iterator[Choice]:
    """Yield the candidates that a budget allows, the best first."""
    auto, kind = budget.kind == "auto", budget.kind
    lists = list_count(rows)
    if kind == "flat" or (auto and rows <= FLAT_ROWS):
        yield Choice("flat", "float32", rows, dim)
    if kind == "hnsw" or (auto and rows <= HNSW_ROWS and budget.recall >= HNSW_RECALL):
        yield Choice("hnsw", "float32", rows, dim)
    if kind == "ivf" or auto:
        codings: tuple[Coding, ...] = ("float32", "float16", "8bit")
        yield from (Choice("ivf", coding, rows, dim, lists) for coding in codings)
    for codes in _code_counts(dim) if rows >= CODEBOOK else ():
        strong = 4 * codes < dim
        if kind == "ivfpq" or (auto and not strong):
            yield Choice("ivfpq", "pq", rows, dim, lists, codes)
        if kind == "opq" or (auto and strong):
            yield Choice("opq", "pq", rows, dim, lists, codes)


def _code_counts(dim: int) -> list[int]:
    """Return the possible numbers of codes of a vector, in descending order: divisors of `dim`, at most half of it."""
    return [m for m in range(max(dim // 2, 1), 0, -1) if dim % m == 0]
