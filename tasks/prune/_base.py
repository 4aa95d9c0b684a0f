"""What every selector is: an exact number of rows to keep, chosen among those that have an embedding."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import DECISIONS
from tasks.stage import Batches, Columns, Run, Tables, TableStage

Which = Literal["hard", "easy"]
"""Far from the centroid first, or near to it first."""

PIECE_ROWS: Final = 1 << 17


@dataclass(frozen=True)
class Rows:
    """The alive rows that may be kept, in `sample_id` order."""

    ids: np.ndarray
    """int64 (n,)."""
    cluster: np.ndarray
    """int32 (n,)."""
    distance: np.ndarray
    """float32 (n,): 1 - cosine to the cluster's centroid."""

    def __len__(self) -> int:
        return len(self.ids)

    def sizes(self, k: int | None = None) -> np.ndarray:
        """Return the rows of each cluster: int64 (k,), or as far as there are any."""
        return np.bincount(self.cluster, minlength=k or 0).astype(np.int64)

    def ranks(self, key: np.ndarray) -> np.ndarray:
        """Return each row's place in its cluster, from 0, by ascending `key` (n,), ties by sample_id: int64 (n,)."""
        order = np.lexsort((key, self.cluster))  # stable, and the rows are in sample_id order
        starts = np.concatenate([[0], np.cumsum(self.sizes())])[:-1]
        ranks = np.empty(len(self), np.int64)
        ranks[order] = np.arange(len(self)) - starts[self.cluster[order]]
        return ranks

    def difficulty(self, which: Which) -> np.ndarray:
        """Return the key whose smallest come first: float32 (n,)."""
        return -self.distance if which == "hard" else self.distance


@dataclass(frozen=True)
class Selection:
    """What a selector says of `Rows`."""

    keep: np.ndarray
    """bool (n,)."""
    evidence: pa.Array
    """string (n,): the numbers that decided."""


class Selector(TableStage):
    """Keeps floor(keep * n) of the n alive rows that have an embedding, or `keep_rows`; exactly that many.

    Rows without an embedding (null cluster) are out with `no_embedding`, and do not count in n; the others that are
    out have `pruned_<method>`. `keep_rows` above n keeps all n.
    """

    use: Literal["prune"] = "prune"
    table = "decisions"
    method: str
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

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    @abstractmethod
    def select(self, rows: Rows, total: int, inputs: Inputs, run: Run) -> Selection:
        """Choose exactly `total` of `rows`; 0 < total <= len(rows)."""

    def run(self, inputs: Inputs, run: Run) -> Batches:
        ids, good, rows = self._rows(inputs)
        total = self._total(len(rows))
        run.note(rows=len(ids), with_embedding=len(rows), total=total)
        if total == 0:
            chosen = Selection(np.zeros(len(rows), bool), pa.repeat("0 rows are to be kept in all", len(rows)))
        else:
            chosen = self.select(rows, total, inputs, run)
        yield from self._decisions(ids, good, chosen)

    def _rows(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray, Rows]:
        """Return (ids of all alive rows, which of them may be kept: bool, those)."""
        ids, cluster, distance = [np.empty(0, np.int64)], [np.empty(0, np.int32)], [np.empty(0, np.float32)]
        for batch in inputs.batches({"clusters": ("cluster", "distance")}):
            ids.append(batch.column("sample_id").to_numpy())
            cluster.append(pc.fill_null(batch.column("cluster"), -1).to_numpy())
            distance.append(pc.fill_null(batch.column("distance"), np.nan).to_numpy().astype(np.float32))
        every, clusters, distances = np.concatenate(ids), np.concatenate(cluster), np.concatenate(distance)
        good = (clusters >= 0) & np.isfinite(distances)
        return every, good, Rows(every[good], clusters[good], distances[good])

    def _total(self, count: int) -> int:
        if self.keep_rows is not None:
            return min(self.keep_rows, count)
        # Decimal: 0.29 of 100 rows are 29, where floor(0.29 * 100) is 28
        return int(Decimal(repr(self.keep)) * count)

    def _decisions(self, ids: np.ndarray, good: np.ndarray, chosen: Selection) -> Iterator[pa.Table]:
        at = np.maximum(np.cumsum(good) - 1, 0)
        keep = np.zeros(len(ids), bool)
        keep[good] = chosen.keep
        for start in range(0, len(ids), PIECE_ROWS):
            piece = slice(start, start + PIECE_ROWS)
            kept, count = pa.array(keep[piece]), len(ids[piece])
            reason = pc.if_else(pa.array(good[piece]), f"pruned_{self.method}", "no_embedding")
            evidence = chosen.evidence.take(pa.array(at[piece], mask=~good[piece]))
            columns = {
                "sample_id": pa.array(ids[piece]),
                "stage": pa.repeat(self.name, count),
                "keep": kept,
                "reason": pc.if_else(kept, pa.scalar(None, pa.string()), reason),
                "evidence": pc.fill_null(evidence, "no usable embedding"),
                "representative": pa.nulls(count, pa.int64()),
                "similarity": pa.nulls(count, pa.float32()),
            }
            yield pa.table(columns, schema=DECISIONS)


def sentence(*words: str | np.ndarray) -> pa.Array:
    """Return one string a row of plain words and columns: `sentence("rank ", ranks, " of ", sizes)`."""
    return pc.binary_join_element_wise(*(word if isinstance(word, str) else _text(word) for word in words), "")


def _text(numbers: np.ndarray) -> pa.Array:
    if numbers.dtype.kind == "f":
        return pc.cast(pc.round(pa.array(numbers.astype(np.float64)), 4), pa.string())
    return pc.cast(pa.array(numbers), pa.string())
