import re

import pytest

from tasks.report._charts import MAIN, columns, curve, polyline, ribbon


def numbers(path: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", path)]


@pytest.mark.parametrize(("seen", "kept", "total"), [(100, 60, 100), (60, 0, 100), (3, 2, 10**9), (10**9, 1, 10**9)])
def test_a_ribbon_is_as_wide_as_its_rows_and_stays_in_its_box(seen: int, kept: int, total: int) -> None:
    step = ribbon(seen, kept, total)
    assert step.share == kept / total
    assert all(-0.01 <= n <= 100.01 for n in numbers(step.out) + numbers(step.kept))
    out_from, out_to = re.match(r"M([\d.]+) 0H([\d.]+)", step.out).groups()  # type: ignore[union-attr]
    assert float(out_to) == pytest.approx(MAIN * seen / total, abs=0.01)
    assert float(out_from) == pytest.approx(MAIN * kept / total, abs=0.01)


def test_nothing_leaves_where_nothing_is_rejected() -> None:
    assert ribbon(5, 5, 10).out == ""
    assert ribbon(0, 0, 0) == ribbon(0, 0, 0)
    assert ribbon(0, 0, 0).kept == ""


def test_columns_are_as_high_as_their_counts() -> None:
    heights = [-float(h) for h in re.findall(r"v(-?[\d.]+)", columns([1, 0, 4, 2], top=4))]
    assert heights == [25, 100, 50]
    assert columns([], 0) == ""


def test_a_power_law_is_a_straight_line() -> None:
    points = numbers(curve([1, 10, 100], [1000, 100, 10], last_rank=100, top=1000))
    xs, ys = points[::2], points[1::2]
    assert xs == pytest.approx([0, 50, 100])
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.02)
    assert curve([1], [0], 1, 1, closed=True).endswith("Z")


def test_polyline_spans_its_box() -> None:
    points = numbers(polyline([3.0, 1.0, 2.0]))
    assert points == [0, 0, 50, 100, 100, 50]
    assert numbers(polyline([2.0, 2.0])) == [0, 0, 100, 0]
