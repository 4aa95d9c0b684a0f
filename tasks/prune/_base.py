"""What every selector is: a judgement of rows, with the numbers that decided, and an exact number of rows to keep."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Final, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from catalog.decisions import Numbers, decisions
from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import DECISIONS
from tasks.stage import Batches, Columns, Run, Tables, TableStage

Which = Literal["hard", "easy"]
"""Rows far from the centroid first, or rows near to it first."""

PIECE_ROWS: Final = 1 << 17

Evidence = Callable[[np.ndarray], pa.Array]
"""Indices of rows, int64 (m,) -> string (m,), a sentence for each. Called for pieces of rows: the sentences of all rows
at once would dominate memory."""
Measured = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Indices of rows, int64 (m,) -> the numbers in their evidence, by name: float64 (m,) each, NaN for missing ones."""


@dataclass(frozen=True)
class Rows:
    """The candidate rows, in `sample_id` order."""

    ids: np.ndarray
    """int64 (n,)."""
    cluster: np.ndarray
    """int32 (n,)."""
    distance: np.ndarray
    """float32 (n,): 1 - cosine to the cluster's centroid."""

    def __len__(self) -> int:
        return len(self.ids)

    def sizes(self, k: int | None = None) -> np.ndarray:
        """Return the number of rows of each cluster: int64 (k,); None: up to the last cluster with rows."""
        return np.bincount(self.cluster, minlength=k or 0).astype(np.int64)

    def ranks(self, key: np.ndarray) -> np.ndarray:
        """Return each row's rank in its cluster, from 0, by ascending `key` (n,), ties by sample_id: int64 (n,)."""
        order = np.lexsort((key, self.cluster))  # stable, and the rows are in sample_id order
        starts = np.concatenate([[0], np.cumsum(self.sizes())])[:-1]
        ranks = np.empty(len(self), np.int64)
        ranks[order] = np.arange(len(self)) - starts[self.cluster[order]]
        return ranks

    def difficulty(self, which: Which) -> np.ndarray:
        """Return the ascending sort key: float32 (n,)."""
        return -self.distance if which == "hard" else self.distance


@dataclass(frozen=True)
class Selection:
    """The verdict of a selector on n rows."""

    keep: np.ndarray
    """bool (n,)."""
    evidence: Evidence
    numbers: Measured = lambda places: {}


class Selector(TableStage):
    """Judges rows, with the reason for each. These are the rows of a table, or those that another selector kept.

    Rows for which it has no number are rejected with the reason `absent`, others with `pruned_<method>`.
    """

    use: Literal["prune"] = "prune"
    table = "decisions"
    shares_table = True
    verdict = "keep"
    thresholds: ClassVar[tuple[str, ...]] = ("method",)
    absent: ClassVar[str] = "no_embedding"
    """The reason for rows that are not `usable`."""
    method: str

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    @abstractmethod
    def usable(self, rows: pa.Table) -> np.ndarray:
        """Return which rows have the required values: bool (n,). Fractions are of those."""

    @abstractmethod
    def judge(self, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> Selection:
        """Choose among `rows` (sample_id and the columns of `inputs`, in order). Fractions are of `pool`.

        `pool` is `rows`, or a superset. `inputs` is for side tables only.
        """

    def run(self, inputs: Inputs, run: Run, piece_rows: int = PIECE_ROWS) -> Batches:
        rows = inputs.table(self._sample_columns(inputs))
        chosen = self.judge(rows, rows, inputs, run)
        usable = self.usable(rows)
        ids = rows.column("sample_id").to_numpy()
        for start in range(0, len(ids), piece_rows):
            places = np.arange(start, min(start + piece_rows, len(ids)))
            yield self._decisions(
                ids[places], chosen.keep[places], usable[places], chosen.evidence(places), chosen.numbers(places)
            )

    def _sample_columns(self, inputs: Inputs) -> Columns:
        """Return the columns to read, of the available tables."""
        schemas = {name: inputs.schema(name) for name in inputs.tables()}
        return {name: c for name, c in self.inputs(schemas).items() if "sample_id" in schemas[name].names}

    def _decisions(
        self, ids: np.ndarray, keep: np.ndarray, usable: np.ndarray, evidence: pa.Array, numbers: Numbers
    ) -> pa.Table:
        rejected = pc.if_else(pa.array(usable), f"pruned_{self.method}", self.absent)
        reason = pc.if_else(pa.array(keep), pa.scalar(None, pa.string()), rejected)
        return decisions(ids, self.name, reason, evidence, numbers)


class ClusterSelector(Selector):
    """Keep exactly floor(keep * n) of the n rows that have an embedding, or `keep_rows`.

    Rows without an embedding (null cluster) are rejected with `no_embedding`, and do not count in n. `keep_rows` above
    n keeps all n.
    """

    thresholds = ("keep", "keep_rows", "method")
    keep: float | None = Field(None, gt=0, le=1, description="fraction to keep of the rows with an embedding")
    keep_rows: int | None = Field(None, gt=0, description="rows to keep, instead of a fraction")

    @model_validator(mode="after")
    def _one_of_keep(self) -> Self:
        if (self.keep is None) == (self.keep_rows is None):
            found = "neither" if self.keep is None else "both"
            raise RecipeError(f"prune takes `keep` (a fraction) or `keep_rows` (a number of rows); found {found}")
        return self

    def inputs(self, available: Tables) -> Columns:
        if "clusters" not in available:
            raise RecipeError(f"prune with method {self.method} reads clusters: put a stage `use: cluster` before it")
        return {"clusters": ("cluster", "distance")}

    def reduced(self, rows: int, of: int) -> Self:
        return self.model_copy(update={"keep_rows": fewer(self.keep_rows, rows, of)})

    @abstractmethod
    def select(self, rows: Rows, total: int, inputs: Inputs, run: Run) -> Selection:
        """Choose exactly `total` of `rows`; 0 < total <= len(rows)."""

    def usable(self, rows: pa.Table) -> np.ndarray:
        distance = pc.fill_null(rows.column("distance"), np.nan).to_numpy()
        there: np.ndarray = rows.column("cluster").is_valid().to_numpy() & np.isfinite(distance)
        return there

    def judge(self, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> Selection:
        usable = self.usable(rows)
        candidates = self._rows(rows.filter(pa.array(usable)))
        count = len(candidates) if pool is rows else int(self.usable(pool).sum())
        total = min(part_of(count, self.keep, self.keep_rows), len(candidates))
        run.note(rows=rows.num_rows, with_embedding=len(candidates), total=total)
        if total == 0:
            return Selection(np.zeros(rows.num_rows, bool), always("0 rows are to be kept in all"))
        return scatter(self.select(candidates, total, inputs, run), usable, "no usable embedding")

    def _rows(self, rows: pa.Table) -> Rows:
        """Return usable rows as arrays."""
        ids, cluster, distance = (rows.column(name).to_numpy() for name in ("sample_id", "cluster", "distance"))
        return Rows(ids, cluster.astype(np.int32, copy=False), distance.astype(np.float32, copy=False))


def part_of(count: int, keep: float | None, keep_rows: int | None) -> int:
    """Return how many of `count` rows to keep: a fraction, or at most `keep_rows`."""
    if keep_rows is not None:
        return min(keep_rows, count)
    # Decimal: 0.29 of 100 rows are 29, where floor(0.29 * 100) is 28
    return int(Decimal(repr(keep)) * count)


def fewer(keep_rows: int | None, rows: int, of: int) -> int | None:
    """Return how many of `rows` rows a probe keeps where a build keeps `keep_rows` of `of`; None for None."""
    return None if keep_rows is None else max(1, round(keep_rows * rows / of))


def scatter(chosen: Selection, usable: np.ndarray, otherwise: str) -> Selection:
    """Return a selection of the rows that are `usable`, bool (n,), as one of all n rows; the others are rejected."""
    keep = np.zeros(len(usable), bool)
    keep[usable] = chosen.keep
    at = np.cumsum(usable) - 1

    def evidence(places: np.ndarray) -> pa.Array:
        mine = usable[places]
        texts = chosen.evidence(at[places[mine]])
        taken = texts.take(pa.array(np.maximum(np.cumsum(mine) - 1, 0), mask=~mine))
        return pc.fill_null(taken, otherwise)

    def numbers(places: np.ndarray) -> dict[str, np.ndarray]:
        mine = usable[places]
        found = chosen.numbers(at[places[mine]])
        whole = {name: np.full(len(places), np.nan) for name in found}
        for name, values in found.items():
            whole[name][mine] = values
        return whole

    return chosen if usable.all() else Selection(keep, evidence, numbers)


def always(text: str) -> Evidence:
    """Return constant evidence for every row."""
    return lambda places: pa.repeat(text, len(places))


def sentence(*words: str | np.ndarray) -> pa.Array:
    """Return one string per row from texts and columns: `sentence("rank ", ranks, " of ", sizes)`."""
    return pc.binary_join_element_wise(*(word if isinstance(word, str) else _text(word) for word in words), "")


def sentences(*words: str | np.ndarray) -> Evidence:
    """Return evidence from `sentence(*words)` of the requested rows."""
    return lambda places: sentence(*(word if isinstance(word, str) else word[places] for word in words))


def measured(**columns: np.ndarray | float) -> Measured:
    """Return the numbers of the rows that it is asked about: `measured(rank=ranks, quota=quotas[cluster])`; a number
    that is no array is that of all rows."""

    def numbers(places: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: np.asarray(column[places] if isinstance(column, np.ndarray) else np.full(len(places), column), float)
            for name, column in columns.items()
        }

    return numbers


def _text(numbers: np.ndarray) -> pa.Array:
    if numbers.dtype.kind == "f":
        return pc.cast(pc.round(pa.array(numbers.astype(np.float64)), 4), pa.string())
    return pc.cast(pa.array(numbers), pa.string())


def batches_of(rows: pa.Table) -> Iterator[pa.Table]:
    """Yield rows in pieces."""
    for start in range(0, rows.num_rows, PIECE_ROWS):
        yield rows.slice(start, PIECE_ROWS)
