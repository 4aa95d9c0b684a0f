"""`use: score_images`: every scorer of pixels, in one pass over the images, each decoded once.

While the device processes one forward batch, threads decode the next. The forward batches of a part are always the same
rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.errors import RecipeError, nearest
from catalog.schema import SAMPLE_ID
from tasks.score._base import Forward, ImageScorer
from tasks.stage import Batches, Columns, Config, MapStage, Resources, Step, Tables
from tasks.streams.decode_ahead import prepare_ahead

if TYPE_CHECKING:
    from tasks.score import AnyImageScorer

_AHEAD: Final = 2
"""Forward batches in progress or ready: bounds the memory (32 pictures of 256 x 256 are 6 MB)."""


class Forwarding(Config):
    """Settings for reading images."""

    batch_size: int = Field(32, gt=0, description="images in one forward pass")
    decode_threads: int = Field(4, gt=0, description="threads that decode and resize images")


class ScoreImages(Forwarding, MapStage):
    """Write `image_scores`: one float32 column per scorer, null if the image cannot be decoded.

    A table of its own, so that another head on the embeddings, or labels fitted again, read no image again.
    """

    table: ClassVar[str] = "image_scores"

    use: Literal["score_images"] = "score_images"
    scorers: tuple["AnyImageScorer", ...] = Field(min_length=1, description="scorers of pixels")
    resources: Resources = Resources(gpus="auto")

    def inputs(self, available: Tables) -> Columns:
        if "images" not in available:
            raise RecipeError(f"score_images needs the table 'images'{nearest('images', available)}")
        for scorer in self.scorers:
            scorer.check(available)
        return {"images": ("image",)}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, *(field for scorer in self.scorers for field in scorer.fields())])

    def parameters(self) -> dict[str, Any]:
        """Return the fields, with weights by content; without decode_threads, which changes no result."""
        scorers = [scorer.parameters() for scorer in self.scorers]
        return super().parameters() | {"scorers": scorers, "decode_threads": None}

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        """Load every scorer. Raises UserError if weights cannot be loaded or are wrong."""
        forwards = {scorer.name: scorer.open(device) for scorer in self.scorers}

        def step(batches: Iterator[pa.Table]) -> Batches:
            prepare = partial(_Prepared, scorers=self.scorers)
            for prepared in prepare_ahead(batches, self.batch_size, self.decode_threads, prepare, _AHEAD - 1):
                yield _score(prepared, forwards, self.output({}))

        return step


class _Prepared:
    """One forward batch, ready for the device once every job is done."""

    def __init__(self, rows: pa.Table, scorers: Sequence[ImageScorer]) -> None:
        self.rows = rows
        self.decoded = np.zeros(rows.num_rows, bool)
        """(n,): whether there is a picture. Where there is none, `pictures` is black."""
        self.pictures = {scorer.name: np.zeros((rows.num_rows, *scorer.shape), np.uint8) for scorer in scorers}
        """By scorer, uint8 (n, height, width, 3)."""
        self._scorers = scorers

    def jobs(self) -> Iterator[Callable[[], None]]:
        """Yield what threads may do in any order: each job fills in its own row."""
        for row in range(self.rows.num_rows):
            yield partial(self._decode, row)

    def _decode(self, row: int) -> None:
        from tasks.images.stored import picture_of

        picture = picture_of(self.rows, row)
        if picture is None:
            return
        for scorer in self._scorers:
            self.pictures[scorer.name][row] = scorer.prepare(picture)
        self.decoded[row] = True


def _score(prepared: _Prepared, forwards: Mapping[str, Forward], schema: pa.Schema) -> pa.Table:
    columns = [prepared.rows.column("sample_id")]
    for name, forward in forwards.items():
        values = forward(prepared.pictures[name])
        columns.append(pa.array(values, pa.float32(), mask=~(prepared.decoded & np.isfinite(values))))
    return pa.table(columns, schema=schema)
