from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import IMAGES
from tasks.score.image_sizes import ImageSizes, SizeCounts, quartiles
from tests.helpers import LocalRun


def images(widths: Any, heights: Any) -> pa.Table:
    rows: dict[str, Any] = {"sample_id": range(len(widths)), "status": ["success"] * len(widths)}
    rows |= {"original_width": widths, "original_height": heights}
    return pa.table({f.name: pa.array(rows.get(f.name, [None] * len(widths)), f.type) for f in IMAGES})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 1000])
def test_quartiles_are_numpys(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    widths, heights = rng.integers(1, rng.choice([4, 5000]), (2, count))
    counts = SizeCounts().update({}, images(widths, heights))
    expected = np.percentile(np.sqrt(widths) * np.sqrt(heights), [25, 75])
    assert quartiles(counts) == pytest.approx(tuple(expected), rel=1e-15)


def test_counts_of_parts_merge_in_any_order() -> None:
    rng = np.random.default_rng(0)
    widths, heights = rng.integers(1, 9, (2, 500))
    reducer = SizeCounts()
    whole = reducer.update(reducer.init(), images(widths, heights))
    parts = [reducer.update(reducer.init(), images(widths[i::3], heights[i::3])) for i in range(3)]
    assert reducer.merge(reducer.merge(parts[2], parts[0]), parts[1]) == whole
    assert sum(whole.values()) == 500


def test_it_counts_images_that_have_a_size(tmp_path: Path) -> None:
    inputs = Inputs.of(images=images([100, 100, None, 400], [100, 100, 7, 400]))
    (row,) = pa.concat_tables(ImageSizes().run(inputs, LocalRun(tmp_path, inputs=inputs))).to_pylist()
    assert row == pytest.approx({"images": 3, "q1": 100, "q3": 250})


def test_no_image_has_no_quartiles(tmp_path: Path) -> None:
    inputs = Inputs.of(images=images([], []))
    (row,) = pa.concat_tables(ImageSizes().run(inputs, LocalRun(tmp_path, inputs=inputs))).to_pylist()
    assert row == {"images": 0, "q1": None, "q3": None}


def test_images_are_required() -> None:
    with pytest.raises(RecipeError, match="after `use: download`"):
        ImageSizes().inputs({})
