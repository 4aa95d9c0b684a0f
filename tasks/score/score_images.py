"""`use: score_images`: every scorer of pixels, in one pass over the images, each decoded once.

While the device works on one forward batch, threads decode the next. A forward batch is always the same rows of a part.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from catalog.errors import RecipeError, nearest
from catalog.schema import SAMPLE_ID
from tasks.score._base import Forward, ImageScorer
from tasks.stage import Batches, Columns, Config, MapStage, Resources, Step, Tables
from tasks.streams.rebatch import rebatch

if TYPE_CHECKING:
    from tasks.score import AnyImageScorer

Pictures = tuple[dict[str, np.ndarray], np.ndarray]
"""(scorer -> uint8 (n, height, width, 3), bool (n,): which rows have a picture; the others are black)."""
_AHEAD: Final = 2
"""Forward batches under way or ready: bounds the memory (32 pictures of 256 x 256 are 6 MB)."""


class Forwarding(Config):
    """What a recipe may say about how images are read."""

    batch_size: int = Field(32, gt=0, description="images in one forward pass")
    decode_threads: int = Field(4, gt=0, description="threads that decode and resize images, beside the device")


class ScoreImages(Forwarding, MapStage):
    """Writes `image_scores`: one float32 column a scorer, null where the image cannot be decoded.

    A table of its own, so that another head on the embeddings, or labels fitted anew, read no image again.
    """

    table: ClassVar[str] = "image_scores"

    use: Literal["score_images"] = "score_images"
    scorers: tuple["AnyImageScorer", ...] = Field(min_length=1, description="what is computed from pixels")
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
        """Return the fields, with weights by content; without decode_threads, which change nothing."""
        scorers = [scorer.parameters() for scorer in self.scorers]
        return super().parameters() | {"scorers": scorers, "decode_threads": None}

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        """Load every scorer. Raises UserError where weights cannot be had, or are others."""
        forwards = {scorer.name: scorer.open(device) for scorer in self.scorers}

        def step(batches: Iterator[pa.Table]) -> Batches:
            with ThreadPoolExecutor(self.decode_threads, "decode") as pool:
                for rows, (pictures, decoded) in _ahead(batches, self.scorers, self.batch_size, pool):
                    yield _score(rows, forwards, pictures, decoded, self.output({}))

        return step


def _ahead(
    batches: Iterator[pa.Table], scorers: Sequence[ImageScorer], size: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[pa.Table, Pictures]]:
    """Yield forward batches in order, prepared; the next ones are under way meanwhile."""
    waiting: list[tuple[pa.Table, Pictures, list[Future[None]]]] = []
    try:
        for rows in rebatch(batches, size):
            waiting.append((rows, *_submit(rows, scorers, pool)))
            if len(waiting) > _AHEAD:
                yield _done(*waiting.pop(0))
        while waiting:
            yield _done(*waiting.pop(0))
    finally:
        for _, _, jobs in waiting:
            for job in jobs:
                job.cancel()


def _submit(
    rows: pa.Table, scorers: Sequence[ImageScorer], pool: ThreadPoolExecutor
) -> tuple[Pictures, list[Future[None]]]:
    decoded = np.zeros(rows.num_rows, bool)
    pictures = {scorer.name: np.zeros((rows.num_rows, *scorer.shape), np.uint8) for scorer in scorers}
    images = rows.column("image")

    def prepare(row: int) -> None:
        from PIL import Image

        from catalog.inputs import stored_error
        from tasks.images import ImageError, decode

        try:
            picture = Image.fromarray(decode(images[row].as_py() or b""))
        except ImageError as error:
            if damage := stored_error(rows, row, error.reason):
                raise damage from error
            return
        for scorer in scorers:
            pictures[scorer.name][row] = scorer.prepare(picture)
        decoded[row] = True

    return (pictures, decoded), [pool.submit(prepare, row) for row in range(rows.num_rows)]


def _done(rows: pa.Table, pictures: Pictures, jobs: Sequence["Future[None]"]) -> tuple[pa.Table, Pictures]:
    for job in jobs:
        job.result()
    return rows, pictures


def _score(
    rows: pa.Table,
    forwards: Mapping[str, Forward],
    pictures: Mapping[str, np.ndarray],
    decoded: np.ndarray,
    schema: pa.Schema,
) -> pa.Table:
    columns = [rows.column("sample_id")]
    for name, forward in forwards.items():
        values = forward(pictures[name])
        columns.append(pa.array(values, pa.float32(), mask=~(decoded & np.isfinite(values))))
    return pa.table(columns, schema=schema)
