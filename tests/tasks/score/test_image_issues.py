"""cleanvision's numbers. Those in PEER were computed by cleanvision 0.3.7 on the files of `planted`."""

from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from catalog.errors import RecipeError
from catalog.schema import IMAGES
from tasks import images
from tasks.score.image_issues import READ, SCORES, ImageIssues, odd_size, scores
from tests.pictures import encoded, picture

COLUMNS = (
    "dark_score",
    "light_score",
    "blurry_score",
    "low_information_score",
    "odd_aspect_ratio_score",
    "grayscale_score",
    "odd_size_score",
)
PEER = {
    "plain": (0.91746993, 0.79946743, 0.28275246, 0.94720422, 0.75, 1, 0.94285714),
    "large": (0.88816069, 0.70946758, 0.29667089, 0.937443, 0.77777778, 1, 0.5167749),
    "noise": (0.92195505, 0.77912558, 0.7061753, 0.95755011, 0.75, 1, 0.94285714),
    "dark": (0.17105952, 0.95408833, 0.36020661, 0.71281242, 0.75, 1, 0.97142857),
    "light": (0.99946862, 0.023381411, 1, 0.45781541, 0.75, 1, 0.97142857),
    "black": (0, 1, 0.85284169, 0.15849625, 0.75, 1, 0.88571429),
    "white": (1, 0, 1, 0.15849625, 0.75, 1, 0.88571429),
    "grey": (0.8627451, 0.74509804, 0.317814, 0.73693091, 0.76190476, 0, 0.97975722),
    "strip": (0.89843468, 0.73020818, 0.45844723, 0.93872197, 0.066666667, 1, 0.95634674),
    "tiny": (0.84478987, 0.71275395, 0.59052973, 0.72393877, 0.77777778, 1, 0.83511797),
    "huge": (0.85763082, 0.77393335, 0.28464339, 0.94300198, 0.8, 1, 0),
    "blurred": (0.56325054, 0.60478681, 0.51149623, 0.74338201, 0.75, 1, 0.88571429),
}


@cache
def planted() -> dict[str, bytes]:
    """Return name -> the bytes of a lossless file, so that every decoder returns the same pixels."""
    rng = np.random.default_rng(7)
    noise = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    return {
        "plain": encoded(picture(320, 240, 1), "PNG"),
        "large": encoded(picture(900, 700, 2), "PNG"),
        "noise": encoded(noise, "PNG"),
        "dark": encoded((picture(200, 150, 3) * 0.2).astype(np.uint8), "PNG"),
        "light": encoded((255 - picture(200, 150, 3) // 30).astype(np.uint8), "PNG"),
        "black": encoded(np.zeros((60, 80, 3), np.uint8), "PNG"),
        "white": encoded(np.full((60, 80, 3), 255, np.uint8), "PNG"),
        "grey": encoded(Image.fromarray(picture(210, 160, 4)).convert("L"), "PNG"),
        "strip": encoded(picture(600, 40, 5), "PNG"),
        "tiny": encoded(picture(9, 7, 6), "PNG"),
        "huge": encoded(picture(3000, 2400, 6), "PNG", compress_level=1),
        "blurred": encoded(np.asarray(Image.fromarray(picture(64, 48, 8)).resize((400, 300))) // 4 + 90, "PNG"),
    }


def measured(data: bytes) -> dict[str, Any]:
    """Return the statistics of a file as a row of the images table."""
    header = images.inspect(data)
    found = images.statistics(images.decode(data), one_channel=header.mode == "L")
    return found._asdict() | {"original_width": header.width, "original_height": header.height}


def batch(rows: Any) -> pa.Table:
    filled = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in IMAGES if f.name in READ}
    return pa.table({"sample_id": pa.array(range(len(rows)), pa.int64()), **filled})


def scored(rows: list[dict[str, Any]]) -> pa.Table:
    table = batch(rows)
    sizes = [(r["original_width"] ** 0.5) * (r["original_height"] ** 0.5) for r in rows]
    q1, q3 = np.percentile(sizes, [25, 75])
    side = pa.table({"images": [len(rows)], "q1": [q1], "q3": [q3]})
    return pa.concat_tables(ImageIssues().open("cpu", {"image_sizes": side})(iter([table])))


def test_the_scores_are_cleanvisions() -> None:
    files = planted()
    found = scored([measured(data) for data in files.values()])
    for row, name in enumerate(files):
        ours = {column: found.column(column)[row].as_py() for column in COLUMNS}
        theirs = dict(zip(COLUMNS, PEER[name], strict=True))
        if name in ("black", "white"):  # grey, but stored with three channels: see the next test
            theirs["grayscale_score"] = 0
        assert ours == pytest.approx(theirs, abs=1e-6), name


def test_a_grey_picture_is_grey_in_any_mode() -> None:
    """cleanvision 0.3.7 checks Pillow's mode, and finds only files with one channel."""
    grey = Image.fromarray(picture(210, 160, 4)).convert("L")
    rows = [measured(encoded(grey.convert(mode), "PNG")) for mode in ("L", "RGB")]
    assert scored(rows).column("grayscale_score").to_pylist() == [0, 0]


def test_palettes_and_transparency_are_measured_as_displayed() -> None:
    """cleanvision 0.3.7 takes a palette's indices for brightness, and colours under full transparency for visible."""
    pixels = picture(200, 150, 3)
    paletted = Image.fromarray(pixels).quantize(200)
    shown = encoded(paletted.convert("RGB"), "PNG")
    invisible = np.dstack([np.zeros_like(pixels), np.zeros(pixels.shape[:2], np.uint8)])
    rows = [measured(data) for data in (encoded(paletted, "PNG"), shown, encoded(Image.fromarray(invisible), "PNG"))]
    table = scored(rows)
    assert [table.column(c)[0] for c in SCORES] == [table.column(c)[1] for c in SCORES]
    assert table.column("dark_score")[2].as_py() == pytest.approx(1)


def test_a_missing_statistic_is_null_and_affects_no_other_row() -> None:
    row = measured(planted()["plain"])
    found = scored([row, row | {"blur": None, "greyscale": None, "brightness_p5": None}, row])
    assert found.column("blurry_score").is_null().to_pylist() == [False, True, False]
    assert found.column("light_score").is_null().to_pylist() == [False, True, False]
    assert found.column("grayscale_score").is_null().to_pylist() == [False, True, False]
    assert found.column("dark_score").null_count == found.column("odd_size_score").null_count == 0


def test_odd_sizes_if_half_of_the_set_has_one_size() -> None:
    """The quartiles are equal: any other size is odd."""
    found, threshold = odd_size(np.array([100.0, 100, 101, 250, 50]), 100, 100)
    assert threshold == 1
    assert found == pytest.approx([1, 1, 0.99, 0, 0.5])
    assert (found < threshold).tolist() == [False, False, True, True, True]
    assert np.isnan(odd_size(np.array([3.0]), None, None)[0]).all()


def test_the_grey_histogram_contributes_above_018() -> None:
    row = measured(planted()["plain"]) | {"blur": 10.0}
    spreads = [-100 * np.log(1 - 0.18) - 1e-3, -100 * np.log(1 - 0.18) + 1e-3]
    rows = batch([row | {"histogram_std": spread} for spread in spreads])
    low, high = scores(rows, 1, 2)["blurry_score"]
    assert low == pytest.approx(1 - np.exp(-0.1), abs=1e-6)
    assert high == pytest.approx(1 - np.exp(-0.1) + 0.18, abs=1e-4)


def test_quartiles_are_made_first_and_statistics_are_required() -> None:
    sizes, issues = ImageIssues(name="quality").expand()
    assert (sizes.table, issues.sides({})) == ("image_sizes", ("image_sizes",))
    assert sizes.name == "quality-sizes"
    with pytest.raises(RecipeError, match="after `use: download`"):
        issues.inputs({})
    old = pa.schema([f for f in IMAGES if f.name != "histogram_std"])
    with pytest.raises(RecipeError, match="has no column 'histogram_std'"):
        issues.inputs({"images": old})


def test_no_rows() -> None:
    assert scored_empty().num_rows == 0


def scored_empty() -> pa.Table:
    side = pa.table({"images": [0], "q1": pa.array([None], pa.float64()), "q3": pa.array([None], pa.float64())})
    return pa.concat_tables(ImageIssues().open("cpu", {"image_sizes": side})(iter([batch([])])))
