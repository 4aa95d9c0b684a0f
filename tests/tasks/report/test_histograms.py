from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import DECISIONS, IMAGES, SOURCE, score
from tasks.report._base import ReportTables
from tasks.report._histograms import BINS, histograms, measures
from tests.tasks.report.gallery import Gallery


def with_score(values: list[float | None] | np.ndarray, out: frozenset[int] = frozenset()) -> Inputs:
    ids = np.arange(len(values))
    decisions = [{"sample_id": i, "stage": "f", "keep": i not in out} for i in ids.tolist()]
    return Inputs.of(
        alive_only=False,
        embeddings=pa.table(
            {"sample_id": ids, "clip_score": pa.array(values, pa.float32())},
            schema=pa.schema([SOURCE.field(0), score("clip_score", "clip", 1, "cosine")]),
        ),
        decisions=pa.Table.from_pylist(decisions, DECISIONS),
    )


def drawn(inputs: Inputs) -> list[dict[str, Any]]:
    tables = {name: inputs.schema(name) for name in inputs.tables()}
    return [entry.content for entry in histograms(ReportTables(inputs), measures(tables))]


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_numpys_on_the_same_edges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 0.5, 5000).astype(np.float32)
    out = frozenset(rng.choice(5000, 2000, replace=False).tolist())
    (found,) = drawn(with_score(values, out))
    left = np.delete(values, list(out))
    assert (found["rows"], found["kept"]) == (5000, 3000)
    assert found["below"] + sum(found["all"]) + found["above"] == 5000
    assert 0 < found["below"] + found["above"] <= 0.011 * 5000
    assert len(found["all"]) <= BINS
    # A value on an edge may fall on either side after rounding to float: allow one row a bin.
    for counts, some in ((found["all"], values), (found["left"], left)):
        expected, _ = np.histogram(some.astype(np.float64), found["edges"])
        assert np.abs(np.array(counts) - expected).max() <= 1
    step = float(values.max() - values.min()) / 4096
    assert found["median"] == pytest.approx(np.median(values), abs=2 * step)
    assert found["median_kept"] == pytest.approx(np.median(left), abs=2 * step)
    assert (found["min"], found["max"]) == (values.min(), values.max())


def test_whole_numbers_fall_in_bins_of_whole_width(photos: Gallery) -> None:
    (found,) = [row for row in drawn(photos.inputs) if row["name"] == "width"]
    images = photos.tables["images"].to_pylist()
    widths = np.array([row["width"] for row in images if row["status"] == "success"])
    edges = np.array(found["edges"])
    assert (edges == edges.round()).all()
    expected, _ = np.histogram(widths, np.append(edges[:-1], edges[-1] - 0.5))  # the last edge is not in its bin
    assert found["all"] == expected.tolist()
    assert found["median"] == np.quantile(widths, 0.5, method="inverted_cdf")


def test_one_value_far_out_blurs_nothing() -> None:
    """A caption of a megabyte, or a score of 1e30, must not put all the others into one bin."""
    rng = np.random.default_rng(0)
    lengths = np.append(rng.integers(5, 200, 999), 1_000_000)
    source = pa.table({"sample_id": np.arange(1000), "caption": ["x" * n for n in lengths.tolist()]})
    (found,) = drawn(Inputs.of(alive_only=False, source=source))
    assert found["median"] == found["median_kept"] == np.quantile(lengths, 0.5, method="inverted_cdf")
    assert (found["min"], found["max"], found["rows"], found["kept"]) == (lengths.min(), 1_000_000, 1000, 1000)
    assert found["below"] + sum(found["all"]) + found["above"] == 1000
    assert sum(count > 0 for count in found["all"]) > 20
    values = np.append(rng.normal(0.3, 0.05, 999), 1e6).astype(np.float32)
    (found,) = drawn(with_score(values, out=frozenset(range(500))))
    assert found["median"] == pytest.approx(np.median(values), abs=0.002)
    assert found["median_kept"] == pytest.approx(np.median(values[500:]), abs=0.002)
    assert found["below"] + sum(found["all"]) + found["above"] == 1000
    assert sum(count > 0 for count in found["all"]) > 20


def test_null_nan_and_infinite_values_are_left_out() -> None:
    (found,) = drawn(with_score([0.5, None, float("nan"), float("inf"), -float("inf"), 0.25]))
    assert (found["rows"], found["min"], found["max"]) == (2, 0.25, 0.5)
    assert sum(found["all"]) + found["below"] + found["above"] == 2


def test_one_value_and_no_value() -> None:
    (found,) = drawn(with_score([0.25, 0.25, 0.25], out=frozenset({1})))
    assert (found["all"], found["left"], found["edges"][0], found["median"]) == ([3], [2], 0.25, 0.25)
    assert drawn(with_score([None, None])) == []
    assert drawn(with_score([])) == []


def test_no_median_where_nothing_is_left() -> None:
    (found,) = drawn(with_score([0.1, 0.2], out=frozenset({0, 1})))
    assert found["median_kept"] is None
    assert sum(found["left"]) == 0


def test_failed_images_are_not_measured() -> None:
    rows = [
        {"sample_id": 0, "status": "success", "original_width": 10},
        {"sample_id": 1, "status": "failed", "original_width": 99},
    ]
    (found,) = drawn(
        Inputs.of(
            alive_only=False,
            images=pa.Table.from_pylist(rows, IMAGES).select(["sample_id", "status", "original_width"]),
        )
    )
    assert (found["rows"], found["max"]) == (1, 10)


def test_every_score_is_measured_and_nothing_that_is_not_there() -> None:
    schema = pa.schema([SOURCE.field(0), score('odd "name"', "x", 1, "..."), pa.field("not_a_score", pa.float32())])
    assert [m.name for m in measures({"scores": schema, "source": SOURCE})] == ["caption length", 'odd "name"']
    inputs = Inputs.of(
        alive_only=False, scores=pa.table({"sample_id": [1], 'odd "name"': [2.0], "not_a_score": [1.0]}).cast(schema)
    )
    assert [row["name"] for row in drawn(inputs)] == ['odd "name"']
