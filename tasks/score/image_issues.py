"""`use: image_issues`: cleanvision's scores of image issues, from the statistics of `download`.

Source: cleanvision 0.3.7 (cleanlab), its seven image properties with their default parameters; the formulas are in
`scores`. The numbers equal cleanvision's to 1e-6 if the picture was measured at full size (`download`: `statistics:
exact`, or any picture that was not reduced during decoding). Departures:

- a grey picture that is stored with three channels is grey too (cleanvision: only one with one channel);
- palettes, transparency, 16 bits and CMYK are measured as the displayed RGB picture;
- an image that cannot be read has a reason, and raises no error.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, Literal

import numpy as np
import pyarrow as pa

from catalog import schema
from catalog.errors import RecipeError, nearest
from catalog.schema import SAMPLE_ID
from tasks.score.image_sizes import ImageSizes
from tasks.stage import Batches, Columns, MapStage, Stage, Step, Tables

READ: Final = (
    "original_width",
    "original_height",
    "brightness_p5",
    "brightness_p99",
    "blur",
    "histogram_std",
    "entropy",
    "greyscale",
)
"""The columns of `images` that it reads."""

SCORES: Final = {
    "dark_score": "99th percentile of brightness; cleanvision's issue is below 0.32",
    "light_score": "1 - 5th percentile of brightness; issue below 0.05",
    "blurry_score": "edges and spread of grey values; issue below 0.29",
    "low_information_score": "0.1 x entropy in bits, at most 1; issue below 0.3",
    "odd_aspect_ratio_score": "shorter by longer side; issue below 0.35",
    "grayscale_score": "0: grey, 1: coloured",
    "odd_size_score": "nearness to the middle of the set's sizes; issue below odd_size_threshold",
    "odd_size_threshold": "0.5; 1 where half of the set has one size",
}
_RATE: Final = 0.01
_LEAST_SPREAD: Final = 0.18
_IQR_FACTOR: Final = 3.0


class ImageIssues(MapStage):
    """Write `image_issues`: one float32 column per score, 0 (bad) to 1; null if a statistic is missing.

    Thresholds are SQL in a later filter: `configs/filters/image_issues.yaml` has cleanvision's. The sizes' quartiles
    are those of all rows that have not been removed when it runs (table `image_sizes`, which is made first).
    """

    table: ClassVar[str] = "image_issues"
    version: ClassVar[int] = 1

    use: Literal["image_issues"] = "image_issues"

    def expand(self) -> tuple[Stage, ...]:
        return ImageSizes(name=f"{self.name}-sizes", resources=self.resources), self

    def sides(self, available: Tables) -> tuple[str, ...]:
        return ("image_sizes",)

    def fields(self) -> list[pa.Field]:
        """Return the columns that it writes."""
        return [schema.score(name, self.use, self.version, about) for name, about in SCORES.items()]

    def inputs(self, available: Tables) -> Columns:
        """Return the columns of statistics. Raises RecipeError if `images` lacks one."""
        if "images" not in available:
            raise RecipeError("image_issues needs the table 'images': put it after `use: download`")
        missing = [name for name in READ if name not in available["images"].names]
        if missing:
            near = nearest(missing[0], available["images"].names)
            raise RecipeError(f"image_issues: the table 'images' has no column {missing[0]!r}{near}")
        return {"images": READ}

    def output(self, available: Tables) -> pa.Schema:
        return pa.schema([SAMPLE_ID, *self.fields()])

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        quartiles = sides["image_sizes"].select(["q1", "q3"]).to_pylist()[0]
        found = self.output({})

        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                columns = scores(batch, quartiles["q1"], quartiles["q3"])
                filled = [_column(columns[name]) for name in SCORES]
                yield pa.table([batch.column("sample_id"), *filled], schema=found)

        return step


def scores(batch: pa.Table, q1: float | None, q3: float | None) -> dict[str, np.ndarray]:
    """Return the columns of SCORES, float64 (n,), NaN where a statistic is null. `q1`, `q3`: of sqrt(width x height).

    - blurry: min(1, s + g), s = 1 - exp(-0.01 blur), g = 1 - exp(-0.01 histogram_std), or 0 where that is <= 0.18.
    - odd size: see `odd_size`. The others are described in SCORES.
    """
    width, height, p5, p99, blur, spread, entropy, grey = (
        batch.column(name).cast(pa.float64()).to_numpy() for name in READ
    )
    sharp = 1 - np.exp(-_RATE * blur)
    varied = 1 - np.exp(-_RATE * spread)
    size, threshold = odd_size(np.sqrt(width) * np.sqrt(height), q1, q3)
    return {
        "dark_score": p99,
        "light_score": 1 - p5,
        "blurry_score": np.minimum(1, sharp + np.where(varied <= _LEAST_SPREAD, 0, varied)),
        "low_information_score": np.minimum(1, 0.1 * entropy),
        "odd_aspect_ratio_score": np.minimum(width / height, height / width),
        "grayscale_score": 1 - grey,
        "odd_size_score": size,
        "odd_size_threshold": np.full(len(width), threshold),
    }


def odd_size(sizes: np.ndarray, q1: float | None, q3: float | None) -> tuple[np.ndarray, float]:
    """Return the score of every size, float64 (n,), and the threshold below which a size is odd.

    low, high = q1 - 3 IQR, q3 + 3 IQR; score = 1 - min(1, |size - middle| / (high - low)), threshold 0.5. If the
    quartiles are equal: 1 - min(1, |size - middle| / middle), threshold 1: any other size is odd.
    """
    if q1 is None or q3 is None:
        return np.full(len(sizes), np.nan), 0.5
    low, high = q1 - _IQR_FACTOR * (q3 - q1), q3 + _IQR_FACTOR * (q3 - q1)
    middle = (low + high) / 2
    unit, threshold = (high - low, 0.5) if high > low else (middle, 1.0)
    return 1 - np.minimum(1, np.abs(sizes - middle) / unit), threshold


def _column(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype(np.float32), pa.float32(), mask=np.isnan(values))
