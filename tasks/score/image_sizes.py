"""`image_sizes`: the quartiles of the images' sizes over the whole set, for `image_issues`."""

from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import field
from tasks.stage import Batches, Columns, Run, Tables, TableStage

Counts = dict[tuple[int, int], int]
"""(width, height) -> how many images have it."""


class ImageSizes(TableStage):
    """Write `image_sizes`, one row: the number of images, and the exact quartiles of sqrt(width x height).

    In one pass, part by part: a count for every distinct size is stored, some 0.2 kB each. Quartiles are null if there
    is no image.
    """

    table: ClassVar[str] = "image_sizes"
    rows_per_sample = "none"

    use: Literal["image_sizes"] = "image_sizes"

    def inputs(self, available: Tables) -> Columns:
        if "images" not in available:
            raise RecipeError("image_sizes needs the table 'images': put it after `use: download`")
        return {"images": ("original_width", "original_height")}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema(
            [
                field("images", pa.int64(), "how many images have a size"),
                field("q1", pa.float64(), "first quartile of sqrt(width x height), pixels"),
                field("q3", pa.float64(), "third quartile of sqrt(width x height), pixels"),
            ]
        )

    def run(self, inputs: Inputs, run: Run) -> Batches:
        counts = run.reduce(SizeCounts(), self.inputs({"images": inputs.schema("images")}))
        q1, q3 = quartiles(counts)
        yield pa.table([[sum(counts.values())], [q1], [q3]], schema=self.output({}))


class SizeCounts:
    """A reducer that counts the images of every size."""

    def init(self) -> Counts:
        return {}

    def update(self, state: Counts, batch: pa.Table) -> Counts:
        """Add a batch's images, except those without a size."""
        sizes = batch.select(["original_width", "original_height"]).drop_null()
        grouped = sizes.group_by(sizes.column_names).aggregate([([], "count_all")])
        columns = (grouped.column(name).to_pylist() for name in (*sizes.column_names, "count_all"))
        return self.merge(state, {(width, height): count for width, height, count in zip(*columns, strict=True)})

    def merge(self, one: Counts, other: Counts) -> Counts:
        """Return the counts of both, in `one`: a copy for each part would cost the number of parts times all sizes."""
        for size, count in other.items():
            one[size] = one.get(size, 0) + count
        return one

    def compute(self, state: Counts) -> Counts:
        return state


def quartiles(counts: Counts) -> tuple[float | None, float | None]:
    """Return the first and third quartile of sqrt(width x height), linear between values, as numpy's percentile."""
    if not counts:
        return None, None
    sides = np.sqrt(np.array(list(counts), np.float64))
    sizes = sides[:, 0] * sides[:, 1]
    order = np.argsort(sizes, kind="stable")
    ends = np.cumsum(np.array(list(counts.values()), np.int64)[order])

    def at(fraction: float) -> float:
        place = fraction * float(ends[-1] - 1)
        one, other = (float(sizes[order[np.searchsorted(ends, int(i), "right")]]) for i in (place, np.ceil(place)))
        return one + (place - int(place)) * (other - one)

    return at(0.25), at(0.75)
