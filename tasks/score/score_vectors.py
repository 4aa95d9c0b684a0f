"""`use: score_vectors`: every scorer of embeddings, in one pass over the stored vectors; no image is read.

All scorers of one embedding column share one matrix product: the folded maps of the linear ones and the first layers
of the others are in one matrix. The remaining layers are small.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.inputs import as_matrix
from catalog.schema import SAMPLE_ID
from tasks.score._base import VectorScorer
from tasks.score._heads import Head, Stacked
from tasks.score.prompts import vectors_of
from tasks.stage import Batches, Columns, MapStage, Resources, Step, Tables
from tasks.streams.rebatch import rebatch

if TYPE_CHECKING:
    from tasks.score import AnyVectorScorer

STEP_ROWS: Final = 1024
"""Rows multiplied at once: 3 MB of float32 at 768, which stays in a core's cache (fastest of 512 to 8192)."""
PIECE_ROWS: Final = 8 * STEP_ROWS
"""Rows of one output table, counted from the start of a part."""

Made = dict[str, tuple[Head, np.ndarray]]
"""Column -> (its head, its values)."""


class ScoreVectors(MapStage):
    """Write `scores`: one float32 column per scorer (a string for a label), null if there is no usable vector."""

    table: ClassVar[str] = "scores"

    use: Literal["score_vectors"] = "score_vectors"
    scorers: tuple["AnyVectorScorer", ...] = Field(min_length=1, description="scorers of embeddings")
    resources: Resources = Resources(gpus="auto")

    def inputs(self, available: Tables) -> Columns:
        """Return every embedding column that a scorer reads, in the table's order. Raises RecipeError."""
        for scorer in self.scorers:
            scorer.check(available)
        read = {scorer.column(available) for scorer in self.scorers}
        return {"embeddings": tuple(name for name in available["embeddings"].names if name in read)}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, *(field for scorer in self.scorers for field in scorer.fields())])

    def sides(self, available: Tables) -> tuple[str, ...]:
        """Return `prompts` if a scorer has texts."""
        return ("prompts",) if any(scorer.prompts for scorer in self.scorers) else ()

    def parameters(self) -> dict[str, Any]:
        return super().parameters() | {"scorers": [scorer.parameters() for scorer in self.scorers]}

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        """Load every head. Raises UserError if weights cannot be loaded or are wrong."""
        heads = [
            scorer.head(vectors_of(sides["prompts"], scorer.name) if scorer.prompts else {}) for scorer in self.scorers
        ]
        stacks: dict[str, _Stack] = {}

        def step(batches: Iterator[pa.Table]) -> Batches:
            for block in rebatch(batches, PIECE_ROWS):
                if not stacks:
                    stacks.update(_stacks(self.scorers, heads, block.column_names, device))
                yield _score(block, stacks, self.output({}))

        return step


class _Stack:
    """The heads of one embedding column, and the columns of each."""

    def __init__(self, scorers: Sequence[VectorScorer], heads: Sequence[Head], device: str) -> None:
        self._heads = heads
        self._product = Stacked(heads, device)
        self._names = [[field.name for field in scorer.fields()] for scorer in scorers]

    def __call__(self, vectors: pa.ChunkedArray) -> tuple[Made, np.ndarray]:
        """Return (column -> its values, (m,) each; bool (m,): which are usable) of vectors that are not null."""
        rows = as_matrix(vectors)
        pieces = [self._product(rows[start : start + STEP_ROWS]) for start in range(0, len(rows), STEP_ROWS)]
        made: Made = {}
        for number, names in enumerate(self._names):
            for place, name in enumerate(names):
                values = np.concatenate([columns[number][place] for columns, _ in pieces])
                made[name] = (self._heads[number], values)
        return made, np.concatenate([good for _, good in pieces])


def _stacks(
    scorers: Sequence[VectorScorer], heads: Sequence[Head], columns: Sequence[str], device: str
) -> dict[str, _Stack]:
    """Return a stack for each embedding column. The default of a scorer is the first column of the table."""
    names = [name for name in columns if name != "sample_id"]
    groups: dict[str, list[int]] = {}
    for number, scorer in enumerate(scorers):
        groups.setdefault(scorer.encoder or names[0], []).append(number)
    return {
        name: _Stack([scorers[i] for i in group], [heads[i] for i in group], device) for name, group in groups.items()
    }


def _score(block: pa.Table, stacks: Mapping[str, _Stack], schema: pa.Schema) -> pa.Table:
    columns: dict[str, pa.Array] = {"sample_id": block.column("sample_id")}
    for name, stack in stacks.items():
        vectors = block.column(name)
        present = np.flatnonzero(vectors.is_valid().to_numpy())
        if not len(present):
            continue
        made, good = stack(vectors.drop_null() if vectors.null_count else vectors)
        for column, (head, values) in made.items():
            columns[column] = _column(schema.field(column), head, values, good, present, block.num_rows)
    empty = [f.name for f in schema if f.name not in columns]
    columns |= {name: pa.nulls(block.num_rows, schema.field(name).type) for name in empty}
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _column(
    field: pa.Field, head: Head, values: np.ndarray, good: np.ndarray, present: np.ndarray, rows: int
) -> pa.Array:
    """Return a column of the whole block: null for rows without a vector, a direction, or a finite score."""
    absent = np.ones(rows, bool)
    absent[present] = ~(good & np.isfinite(values))
    whole = np.zeros(rows, values.dtype)
    whole[present] = values
    if not pa.types.is_string(field.type):
        return pa.array(whole, field.type, mask=absent)
    codes = pa.array(whole.astype(np.int32), mask=absent)
    return pa.DictionaryArray.from_arrays(codes, pa.array(head.labels, pa.string())).cast(pa.string())
