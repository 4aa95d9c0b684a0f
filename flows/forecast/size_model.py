"""The rows and bytes of a stage: the least-squares line through all parts of the three builds of a probe.

The standard error of the line is White's, which allows large parts to vary more. Parts are stretches of neighbouring
rows, so the error includes what neighbours have in common. The interval is t standard errors wide on either side, with
one degree of freedom fewer than the large build has parts. The ends of the intervals of several stages are added,
because all stages saw the same rows.

Source: White, Econometrica 48 (1980).
"""

import math
from collections.abc import Sequence
from statistics import fmean

from flows.forecast.interval import LEVEL, Range
from flows.forecast.measurements import ProbedStage, Quantity
from tasks.stage import MapStage


def grown(probed: ProbedStage, quantity: Quantity) -> Range:
    """Return the rows or bytes of a stage in the build that is forecast."""
    target = probed.target
    if not isinstance(target.stage, MapStage):
        return _grown_table(probed, quantity)
    parts = [part for build in probed.builds for part in build.parts]
    sizes, values = [part.source_rows for part in parts], [float(getattr(part, quantity)) for part in parts]
    # A part without any row still has a footer, so bytes have an overhead per part. Rows have none.
    slope, fixed = _line(sizes, values) if quantity == "bytes" else (sum(values) / max(sum(sizes), 1), 0.0)
    value = fixed * target.parts + slope * target.size.rows
    error = target.parts * _line_error(sizes, values, slope, fixed, target.size.rows / target.parts)
    if quantity == "rows" and slope < 1:
        error = max(error, _share_error(sum(values), sum(sizes)) * target.size.rows)
    error *= _t(max(1, len(probed.large.parts) - 1))
    most = target.size.rows if quantity == "rows" and slope <= 1 else math.inf  # at most one row per row of the source
    return Range.around(value, value - error, min(value + error, most))


def _t(freedom: float) -> float:
    """Return the distance of the ends of an interval from the estimate, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def _share_error(found: float, of: float) -> float:
    """Return the standard error of a share; Laplace's rule keeps it above 0 where no row, or every row, was found."""
    share = (found + 1) / (of + 2)
    return math.sqrt(share * (1 - share) / of)


def _line(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Return (slope, value at 0) of the least-squares line, neither below 0."""
    n, v = fmean(sizes), fmean(values)
    squares = sum((x - n) ** 2 for x in sizes)
    slope = sum((x - n) * (y - v) for x, y in zip(sizes, values, strict=True)) / squares if squares else v / max(n, 1)
    slope = min(max(slope, 0.0), v / max(n, 1))
    return slope, v - slope * n


def _line_error(sizes: Sequence[int], values: Sequence[float], slope: float, fixed: float, at: float) -> float:
    """Return the standard error of the line's value at `at`, from the residuals of the points.

    The residuals of points are proportional to their size, so the large ones, which determine the slope, get the
    weight that they have.
    """
    if len(sizes) < 3:
        return 0.0
    n = fmean(sizes)
    residuals = [y - (fixed + slope * x) for x, y in zip(sizes, values, strict=True)]
    squares = sum((x - n) ** 2 for x in sizes)
    if fixed == 0.0 or squares == 0.0:  # a line through 0, or points of one size: the sum of all points determines it
        return math.sqrt(sum(e * e for e in residuals)) / max(sum(sizes), 1) * at
    # White's estimator: the residual of each point, times the weight of the point in the value
    weights = [1 / len(sizes) + (at - n) * (x - n) / squares for x in sizes]
    return math.sqrt(sum((w * e) ** 2 for w, e in zip(weights, residuals, strict=True)))


def _grown_table(probed: ProbedStage, quantity: Quantity) -> Range:
    """Return the rows or bytes of the one part of a stage: a share of the source, or as many as in all builds."""
    target, large = probed.target, probed.large
    before, second, after = (build.total(quantity) for build in probed.builds)
    if all(build.total("rows") == build.size.clusters for build in probed.builds):  # one row per cluster
        value = second / large.size.clusters * target.size.clusters
        return Range(value, value, value)
    first = fmean([before, after])
    through = second / large.size.rows * target.size.rows
    if first >= second or target.stage.rows_per_sample == "none":
        return Range.around(second, before, after)
    slope, fixed = _line([probed.before.size.rows, large.size.rows], [first, second])
    value = fixed + slope * target.size.rows
    found, of = large.total("rows"), large.size.rows
    # Three builds are too few to estimate a variance: this is that of a share of rows that were drawn independently.
    error = value * _t(2) * _share_error(found, of) / (found / of) if 0 < found < of else 0.0
    return Range.around(value, value - error, value + error, through)
