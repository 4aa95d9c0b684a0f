"""The order of preference among copies, and the reasons of removed rows."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from catalog.errors import RecipeError, nearest
from catalog.inputs import Inputs
from tasks.stage import Columns, Config, Tables
from tasks.vectors import random_keys as draw

FIRST: Final = "first"
LARGEST: Final = "largest"
RANDOM: Final = "random"
SCORED: Final = ("images", "embeddings", "scores", "source")
"""Tables in which a rule's column is looked up first, in this order, before the other tables about samples."""
JUDGED: Final = ("decisions", "clusters")
"""Tables about samples whose numbers are not scores."""

REASONS: Final = (None, "duplicate_exact", "duplicate_pixels", "duplicate_perceptual", "duplicate_semantic")
"""By code: 0 is kept; then by strength, the strongest first."""
EXACT, PIXELS, LOOKS, MEANING = range(1, len(REASONS))
PIECE_ROWS: Final = 1 << 17
"""Rows of one piece of `decisions`: evidence is made for this many rows at once."""


class Best(Config):
    """Keep the copy with the highest number."""

    best: str = Field(description="a column of numbers of any earlier table: aesthetic, clip_score, width, ...")


Keep = str | Best
"""Which of several copies is preferred: first, largest, random, or a column, by its name or as {best: name}."""


def order_columns(rule: Keep, available: Tables) -> Columns:
    """Return the columns that an order rule reads. Raises RecipeError if a column does not exist."""
    if rule in (FIRST, RANDOM):
        return {}
    if rule == LARGEST:
        if "images" not in available:
            raise RecipeError("keep: largest reads width and height of images: put a stage `use: download` before it")
        return {"images": ("width", "height")}
    column = rule.best if isinstance(rule, Best) else rule
    numbers = {name: table for table in reversed(_scored(available)) for name in _numbers(available[table])}
    if column not in numbers:
        raise RecipeError(f"no column of numbers {column!r} to order duplicates by{nearest(column, numbers)}")
    return {numbers[column]: (column,)}


def _scored(available: Tables) -> list[str]:
    others = (name for name, schema in available.items() if "sample_id" in schema.names)
    tables = dict.fromkeys((*(name for name in SCORED if name in available), *others))
    return [name for name in tables if name not in JUDGED]


def _numbers(schema: pa.Schema) -> list[str]:
    types = pa.types
    return [f.name for f in schema if (types.is_integer(f.type) or types.is_floating(f.type)) and f.name != "sample_id"]


def order_key(rule: Keep, inputs: Inputs, ids: np.ndarray, seed: int) -> np.ndarray:
    """Return an ascending sort key, (n,): larger images, or larger numbers, first; nulls and NaN last."""
    if rule == FIRST:
        return np.zeros(len(ids), np.int8)  # sorts are stable, and rows are in sample_id order
    if rule == RANDOM:
        return draw.keys(ids, seed)
    columns = order_columns(rule, {name: inputs.schema(name) for name in inputs.tables()})
    key = np.full(len(ids), np.inf)
    for batch in inputs.batches(columns):
        numbers = [pc.cast(batch.column(name), pa.float64()) for name in batch.column_names if name != "sample_id"]
        value = numbers[0] if len(numbers) == 1 else pc.multiply(*numbers)
        at = np.searchsorted(ids, batch.column("sample_id").to_numpy())
        key[at] = -pc.fill_null(value, np.nan).to_numpy()
    key[np.isnan(key)] = np.inf
    return key


class Preference:
    """A ranking of some of n rows: the first is preferred."""

    def __init__(self, rows: np.ndarray, key: np.ndarray) -> None:
        """`rows`: int64 (m,), ascending; `key`: (n,), smallest first, NaN last, ties by row."""
        self.row = rows[np.argsort(key[rows], kind="stable")]
        """int64 (m,): row at each rank."""
        self.rank = np.full(len(key), -1, np.int64)
        """int64 (n,): rank of each row; -1 for other rows."""
        self.rank[self.row] = np.arange(len(self.row))

    def reversed(self) -> "Preference":
        """Return the order with the last row first."""
        return Preference(np.sort(self.row), np.where(self.rank < 0, 0, -self.rank))
