"""What every kind of copy is judged by: which of several comes first, and what became of each row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import RecipeError, nearest
from catalog.inputs import Inputs
from tasks import draw
from tasks.stage import Columns, Tables

FIRST: Final = "first"
LARGEST: Final = "largest"
RANDOM: Final = "random"
SCORED: Final = ("images", "embeddings", "scores", "source")
"""Tables that a rule may take a number from, in this order."""


@dataclass
class Verdicts:
    """What is known of every alive row so far; all arrays (n,), in `sample_id` order."""

    ids: np.ndarray
    """int64."""
    reason: np.ndarray
    """int8: index into `REASONS`; 0 is kept."""
    representative: np.ndarray
    """int64: row (not sample_id) that stands for this one; -1 for none."""
    similarity: np.ndarray
    """float32: cosine to it; NaN where there is none."""

    @classmethod
    def of(cls, ids: np.ndarray) -> Self:
        """Return the verdicts before anything is judged."""
        n = len(ids)
        return cls(ids, np.zeros(n, np.int8), np.full(n, -1, np.int64), np.full(n, np.nan, np.float32))

    def kept(self) -> np.ndarray:
        """Return which rows are in: bool (n,)."""
        return np.asarray(self.reason == 0)

    def reject(self, rows: np.ndarray, reason: str, representative: np.ndarray, similarity: np.ndarray) -> None:
        """Take rows out, and hand on the rows that they stood for to the row that stands for them.

        A copy that is the same file has the same cosine to whatever stands for its twin; of others it is not known.
        """
        before = np.flatnonzero(self.reason)
        self.reason[rows] = REASONS.index(reason)
        self.representative[rows] = representative
        self.similarity[rows] = similarity
        orphans = before[self.reason[self.representative[before]] == REASONS.index(reason)]
        twins = self.representative[orphans]
        self.representative[orphans] = self.representative[twins]
        same_file = self.reason[orphans] == REASONS.index("duplicate_exact")
        self.similarity[orphans] = np.where(same_file, self.similarity[twins], np.float32(np.nan))


REASONS: Final = (None, "duplicate_exact", "duplicate_perceptual", "duplicate_semantic")


def order_columns(rule: str, available: Tables) -> Columns:
    """Return the columns that an order rule reads. Raises RecipeError where there is no such column."""
    if rule in (FIRST, RANDOM):
        return {}
    if rule == LARGEST:
        if "images" not in available:
            raise RecipeError("keep: largest reads width and height of images: put a stage `use: download` before it")
        return {"images": ("width", "height")}
    numbers = {name: table for table in reversed(SCORED) for name in _numbers(available, table)}
    if rule not in numbers:
        raise RecipeError(f"no column of numbers {rule!r} to order duplicates by{nearest(rule, numbers)}")
    return {numbers[rule]: (rule,)}


def _numbers(available: Mapping[str, pa.Schema], table: str) -> list[str]:
    if table not in available:
        return []
    types = pa.types
    return [
        f.name
        for f in available[table]
        if (types.is_integer(f.type) or types.is_floating(f.type)) and f.name != "sample_id"
    ]


def order_key(rule: str, inputs: Inputs, ids: np.ndarray, seed: int) -> np.ndarray:
    """Return a key whose smallest comes first, (n,): larger images, or larger numbers, first; nulls and NaN last."""
    if rule == FIRST:
        return np.zeros(len(ids), np.int8)  # sorts are stable, and rows are in sample_id order
    if rule == RANDOM:
        return draw.keys(ids, seed)
    schemas = {name: inputs.schema(name) for name in SCORED if name in inputs}
    columns = order_columns(rule, schemas)
    key = np.full(len(ids), np.inf)
    for batch in inputs.batches(columns):
        numbers = [pc.cast(batch.column(name), pa.float64()) for name in batch.column_names if name != "sample_id"]
        value = numbers[0] if len(numbers) == 1 else pc.multiply(*numbers)
        at = np.searchsorted(ids, batch.column("sample_id").to_numpy())
        key[at] = -pc.fill_null(value, np.nan).to_numpy()
    key[np.isnan(key)] = np.inf
    return key
