"""`method: score`: keep the top fraction by any score, or the rows that reach a threshold."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from catalog.duck import identifier
from catalog.errors import RecipeError, nearest
from catalog.inputs import Inputs
from tasks.prune._base import PIECE_ROWS, Evidence, Measured, Selection, Selector, batches_of, fewer, part_of, sentence
from tasks.prune._order import Count, Cut, Digit, Taker, dtype_of, find_cut, key_bits, keys, numbers, value_of
from tasks.stage import Batches, Columns, Run, Tables


class Score(Selector):
    """Rank rows by one column: the highest first, or the lowest; ties by sample_id.

    Keeps exactly floor(keep * n) of the n rows that have a score, or `keep_rows`, or every row whose score is at least
    (`lowest`: at most) `threshold`. Rows without a score (null, NaN) are rejected with `no_score`. With `of: all`, n
    counts every row of the column's table that has a score, including rows that an earlier stage rejected; of the first
    rows, those that have not been rejected are kept: a fraction of the pool before other filters, as in DataComp.

    Memory is counters and a batch (`of: all`: a part), for any number of rows (`_order.py`). A combination reads the
    rows of all its members into memory.
    Source: the CLIP-score filter of Gadre et al., DataComp, NeurIPS 2023 (arXiv 2304.14108), section 3.4. Its code
    keeps one row more than the fraction, and every tie.
    """

    method: Literal["score"] = "score"
    absent: ClassVar[str] = "no_score"
    thresholds = ("keep", "keep_rows", "method", "threshold")
    column: str = Field("clip_score", description="a numeric column of an earlier table, if ambiguous as table.column")
    lowest: bool = Field(False, description="keep the rows with the lowest scores")
    keep: float | None = Field(None, gt=0, le=1, description="fraction to keep of the rows with a score")
    keep_rows: int | None = Field(None, gt=0, description="rows to keep, instead of a fraction")
    threshold: float | None = Field(
        None, allow_inf_nan=False, description="keep scores of at least this (lowest: at most), instead of a fraction"
    )
    of: Literal["alive", "all"] = Field(
        "alive", description="the rows of which a fraction is taken: those not rejected, or all with a score"
    )

    @model_validator(mode="after")
    def _one_of_three(self) -> Self:
        given = [name for name in ("keep", "keep_rows", "threshold") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise RecipeError(f"method score takes one of `keep`, `keep_rows` and `threshold`; found {found}")
        if self.of == "all" and self.threshold is not None:
            raise RecipeError("method score: `threshold` cannot be combined with `of: all`; remove one of them")
        return self

    def inputs(self, available: Tables) -> Columns:
        table, column = self._place(available)
        type_ = available[table].field(column).type
        if not _is_number(type_):
            raise RecipeError(f"method score ranks by numbers: the column {table}.{column} is {type_}")
        return {table: (column,)}

    def reduced(self, rows: int, of: int) -> Self:
        return self.model_copy(update={"keep_rows": fewer(self.keep_rows, rows, of)})

    def usable(self, rows: pa.Table) -> np.ndarray:
        return numbers(rows.column(self._name))[1]

    @property
    def _name(self) -> str:
        return self.column.rpartition(".")[2]

    def _place(self, available: Tables) -> tuple[str, str]:
        """Return the table and the column. Raises RecipeError if no table has it, or several have it."""
        table, _, name = self.column.rpartition(".")
        scored = {t: s for t, s in available.items() if "sample_id" in s.names and t != "decisions"}
        found = [t for t, s in scored.items() if name in s.names and name != "sample_id" and table in ("", t)]
        if not found:
            known = {f.name for s in scored.values() for f in s if _is_number(f.type) and f.name != "sample_id"}
            raise RecipeError(f"method score: no earlier table has a column {self.column!r}{nearest(name, known)}")
        if len(found) > 1:
            raise RecipeError(
                f"method score: several tables have a column {name!r}; write "
                + " or ".join(f"{t}.{name}" for t in found)
            )
        return found[0], name

    def judge(self, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> Selection:
        def count(digit: Digit) -> np.ndarray:
            state = digit.init()
            for batch in batches_of(rows):
                state = digit.update(state, batch)
            return state

        def total(there: int) -> int:
            return min(self._part_of(there if pool is rows else int(self.usable(pool).sum())), there)

        limit = self._limit(rows.schema.field(self._name).type, count, total, run)
        values, there = numbers(rows.column(self._name))
        keep = limit(values, there)
        return Selection(keep, self._evidence(values, there, keep, limit), _measured(values, there, limit))

    def run(self, inputs: Inputs, run: Run, piece_rows: int = PIECE_ROWS) -> Batches:
        """Yield decisions, at most `piece_rows` at once, after two counting passes (four for 64-bit numbers)."""
        table, name = self._place({t: inputs.schema(t) for t in inputs.tables()})
        count = partial(self._count, table, inputs, run)
        limit = self._limit(inputs.schema(table).field(name).type, count, self._part_of, run)
        seen, kept = 0, 0
        for batch, alive in self._in_order(table, inputs):
            values, there = numbers(batch.column(name))
            keep = limit(values, there)
            mine, ids = np.flatnonzero(alive), batch.column("sample_id").to_numpy()
            evidence, found = self._evidence(values, there, keep, limit), _measured(values, there, limit)
            for start in range(0, len(mine), piece_rows):
                places = mine[start : start + piece_rows]
                yield self._decisions(ids[places], keep[places], there[places], evidence(places), found(places))
            seen, kept = seen + len(mine), kept + int(keep[mine].sum())
        run.note(rows=seen, kept=kept)

    def _part_of(self, count: int) -> int:
        return part_of(count, self.keep, self.keep_rows)

    def _limit(self, type_: pa.DataType, count: Count, total: Callable[[int], int], run: Run) -> "_Limit":
        if self.threshold is not None:
            return _Limit(self.lowest, threshold=self.threshold)
        cut = find_cut(self._name, self.lowest, key_bits(type_), total, count)
        run.note(with_score=cut.count, total=cut.total)
        if cut.total:
            run.note(last_score=_rounded(value_of(cut.key, dtype_of(type_), self.lowest)), ties_kept=cut.ties)
        return _Limit(self.lowest, cut=cut)

    def _count(self, table: str, inputs: Inputs, run: Run, digit: Digit) -> np.ndarray:
        """Count a digit over all parts."""
        if self.of == "alive":
            return run.reduce(digit, {table: (self._name,)})
        state = digit.init()
        for counts in run.map(partial(_count_part, digit, table), inputs.split(table)):
            state = digit.merge(state, counts)
        return state

    def _in_order(self, table: str, inputs: Inputs) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yield all scored rows in `sample_id` order, and which of them have not been rejected: bool (n,)."""
        if self.of == "alive":
            for batch in inputs.batches({table: (self._name,)}):
                yield batch, np.ones(batch.num_rows, bool)
            return
        for part in inputs.split(table):
            rows = _scored(part, table, self._name).sort_by("sample_id")
            yield rows, np.isin(rows.column("sample_id").to_numpy(), part.ids(), assume_unique=True)

    def _evidence(self, values: np.ndarray, there: np.ndarray, keep: np.ndarray, limit: "_Limit") -> Evidence:
        def of(places: np.ndarray) -> pa.Array:
            mine, out = values[places], there[places] & ~keep[places]
            late = np.where(out & limit.is_last(mine), ", a later tie", "")
            texts = sentence(f"{self._name} ", mine, limit.words(values.dtype), late)
            return pc.if_else(pa.array(there[places]), texts, f"no {self._name}")

        return of


class _Limit:
    """Determines which rows are kept: those before a cut-off, or up to a threshold. Called in `sample_id` order."""

    def __init__(self, lowest: bool, cut: Cut | None = None, threshold: float = 0.0) -> None:
        self._lowest = lowest
        self._cut = cut
        self._threshold = threshold
        self._taker = Taker(cut) if cut else None

    def __call__(self, values: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Return which rows are kept: bool (n,). `values`: float32, float64 or int64 (n,)."""
        keep = np.zeros(len(values), bool)
        if self._taker is not None:
            keep[there] = self._taker(keys(values[there], self._lowest))
            return keep
        # compare in the column's precision: 0.7 as float32 for a float32 column, as in SQL
        limit = values.dtype.type(self._threshold) if values.dtype.kind == "f" else self._threshold
        keep[there] = values[there] <= limit if self._lowest else values[there] >= limit
        return keep

    def is_last(self, values: np.ndarray) -> np.ndarray:
        """Return which values equal the last kept value: bool (n,)."""
        if self._cut is None or self._cut.total == 0:
            return np.zeros(len(values), bool)
        found: np.ndarray = values == value_of(self._cut.key, values.dtype, self._lowest)
        return found

    def facts(self, dtype: np.dtype) -> dict[str, float]:
        """Return the numbers that a value is compared with, by name."""
        if self._cut is None:
            return {"threshold": self._threshold}
        facts = {"total": float(self._cut.total), "scored": float(self._cut.count)}
        if self._cut.total:
            facts["last_score"] = float(value_of(self._cut.key, dtype, self._lowest))
        return facts

    def words(self, dtype: np.dtype) -> str:
        """Return the description of the limit."""
        if self._cut is None:
            return f", threshold {self._threshold:g}"
        if self._cut.total == 0:
            return ", 0 rows are to be kept in all"
        last = _rounded(value_of(self._cut.key, dtype, self._lowest))
        return f", rank {self._cut.total} of {self._cut.count} has {last}"


def _measured(values: np.ndarray, there: np.ndarray, limit: _Limit) -> Measured:
    """Return the numbers of rows that have a score: the score, and what it was compared with."""

    def found(places: np.ndarray) -> dict[str, np.ndarray]:
        facts = {"score": values[places].astype(np.float64)} | limit.facts(values.dtype)
        return {name: np.where(there[places], fact, np.nan) for name, fact in facts.items()}

    return found


def _scored(part: Inputs, table: str, column: str) -> pa.Table:
    """Return sample_id and one column of a part's rows, including rejected ones."""
    return part.sql(f"select sample_id, {identifier(column)} from {identifier(table)}")


def _count_part(digit: Digit, table: str, part: Inputs) -> np.ndarray:
    return digit.update(digit.init(), _scored(part, table, digit.column))


def _rounded(value: float | int) -> float | int:
    return round(value, 4)


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_))
