"""The geometry of the card's charts, as SVG path data. Text is outside of the SVG, so a chart can be stretched.

Coordinates are those of a 100 by 100 box, y downwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any, Final

MAIN: Final = 72.0
"""The width of the ribbon for all rows; the rest is space for the rejected rows."""


@dataclass(frozen=True)
class Ribbon:
    """One step of the funnel: the kept part of the stream, and the rejected part, which turns to the right."""

    kept: str
    out: str
    share: float
    """Rows kept over all input rows, 0..1."""


def ribbon(seen: int, kept: int, total: int) -> Ribbon:
    """Return one step, as tall as its text; consecutive steps join to one stream."""
    top = MAIN * seen / total if total else 0.0
    bottom = MAIN * kept / total if total else 0.0
    stays = f"M0 0H{bottom:.2f}V100H0Z" if kept else ""
    if seen <= kept:
        return Ribbon(stays, "", kept / total if total else 0.0)
    thick = min(max(2.0, 1.2 * (top - bottom)), 60.0)
    exit_ = 50 - thick / 2
    bend = top + 0.35 * (100 - top)
    outer = f"M{bottom:.2f} 0H{top:.2f}C{top:.2f} {exit_ * 0.8:.2f} {bend:.2f} {exit_:.2f} 100 {exit_:.2f}"
    inner = (
        f"V{exit_ + thick:.2f}C{bend - 0.6 * (top - bottom):.2f} {exit_ + thick:.2f} {bottom:.2f} 62 {bottom:.2f} 0Z"
    )
    return Ribbon(stays, outer + inner, kept / total if total else 0.0)


def columns(counts: Sequence[int], top: int) -> str:
    """Return the bars of a histogram as one path; `top` is the count that fills the box."""
    if not counts or top <= 0:
        return ""
    width = 100 / len(counts)
    gap = 0.14 * width if len(counts) > 1 else 0
    bars = (
        f"M{place * width + gap / 2:.2f} 100v{-100 * count / top:.2f}h{width - gap:.2f}V100Z"
        for place, count in enumerate(counts)
        if count
    )
    return "".join(bars)


def curve(ranks: Sequence[int], rows: Sequence[int], last_rank: int, top: int, closed: bool = False) -> str:
    """Return size by rank, both logarithmic: a straight line is a power law. Ranks and `top` begin at 1."""
    points = [
        (100 * _log_share(rank, last_rank), 100 - 100 * _log_share(max(size, 1), top))
        for rank, size in zip(ranks, rows, strict=True)
    ]
    if not points:
        return ""
    line = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return f"{line}V100H{points[0][0]:.2f}Z" if closed else line


def polyline(values: Sequence[float]) -> str:
    """Return values at equal steps from left to right, the largest at the top, the smallest at the bottom."""
    low, high = min(values), max(values)
    scale = 100 / (high - low) if high > low else 0.0
    step = 100 / max(len(values) - 1, 1)
    return "M" + "L".join(f"{i * step:.2f} {(high - value) * scale:.2f}" for i, value in enumerate(values))


def histogram_top(histogram: Mapping[str, Any]) -> int:
    """Return the count that fills the box of a histogram: that of its highest bar."""
    return max(histogram["all"], default=0)


def _log_share(value: float, top: float) -> float:
    return log10(value) / log10(top) if top > 1 else 0.0
