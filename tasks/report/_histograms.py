"""Distributions of a dataset's numbers, before and after: bounded memory, two scans per number.

A first query finds the ends, a second counts FINE bins of equal width; what the card shows (32 bins between the
0.5th and the 99.5th percentile, medians) is added up from these counts. Where a few values lie so far out that all
others are in a handful of bins (one caption of a megabyte), those are counted again, as finely: a scan more. Counts are
integers, so the result does not depend on the order in which DuckDB's threads add.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from catalog.duck import identifier
from catalog.schema import role
from tasks.report._base import FAILED, Entry, ReportTables
from tasks.stage import Tables

FINE: Final = 4096
BINS: Final = 32
TAIL: Final = 0.005
"""Share of rows at either end that is not drawn, and counted separately."""
ENOUGH: Final = 8 * BINS
"""Minimum number of fine bins between the tails."""
ZOOMS: Final = 3
"""How often they are counted again where they do not; each time makes bins up to FINE times as narrow."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measure:
    """A number of every row of a table: its name, its SQL, its unit."""

    table: str
    name: str
    sql: str
    unit: str = ""
    whole: bool = False
    needs: tuple[str, ...] = ()


MEASURES: Final = (  # sizes as received: the stored ones are set by `download`
    Measure("images", "width", "original_width", "px, as received", True, ("original_width",)),
    Measure("images", "height", "original_height", "px, as received", True, ("original_height",)),
    Measure(
        *("images", "aspect ratio", "original_width::double / nullif(original_height, 0)", "width / height", False),
        needs=("original_width", "original_height"),
    ),
    Measure("images", "brightness", "brightness", "0 to 1", False, ("brightness",)),
    Measure("images", "blur", "blur", "low is blurry", False, ("blur",)),
    Measure("images", "entropy", "entropy", "bits", False, ("entropy",)),
    Measure("source", "caption length", "length(caption)", "characters", True, ("caption",)),
)


def measures(tables: Tables) -> list[Measure]:
    """Return the measures of the available tables: the fixed list, and every score column."""
    fixed = [
        measure
        for measure in MEASURES
        if measure.table in tables and set(measure.needs) <= set(tables[measure.table].names)
    ]
    scores = [
        Measure(table, field.name.replace("_", " "), identifier(field.name), "", False, (field.name,))
        for table, schema in sorted(tables.items())
        for field in schema
        if role(field) == "score"
    ]
    return fixed + scores


def histograms(tables: ReportTables, measured: list[Measure]) -> Iterator[Entry]:
    """Yield the section `histogram`: one entry for each measure with any number."""
    for measure in measured:
        if (found := _count(tables, measure)) is not None:
            yield Entry("histogram", {"name": measure.name, "table": measure.table, "unit": measure.unit} | found)


def _count(tables: ReportTables, measure: Measure) -> dict[str, Any] | None:
    success = f" where not {FAILED}" if measure.table == "images" else ""
    values = f"select sample_id, ({measure.sql})::double as value from {measure.table}{success}"
    (ends,) = tables.rows(
        f"select min(value) as low, max(value) as high, count(*) as rows from ({values}) where isfinite(value)"
    )
    if not ends["rows"]:
        return None
    low, high = ends["low"], ends["high"]
    for zoom in range(ZOOMS + 1):
        step = _step(low, high, measure.whole)
        fine = _fine(tables, values, low, high, step)
        first, last = _middle(fine)
        if last - first >= ENOUGH or zoom == ZOOMS or low == high or (measure.whole and step == 1):
            break
        low, high = low + first * step, low + (last + 1) * step - measure.whole
    facts = {"min": ends["low"], "max": ends["high"], "rows": ends["rows"], "kept": int(fine[1].sum())}
    return facts | _coarse(fine, low, step)


def _fine(tables: ReportTables, values: str, low: float, high: float, step: float) -> Counts:
    """Return how many values are below, in each of FINE bins from `low` to `high`, and above; all, and of them kept."""
    query = f"""select case when value < {low!r} then 0 when value > {high!r} then {FINE + 1}
                else 1 + least(floor((value - {low!r}) / {step!r}), {FINE - 1}) end::int as bin, count(*) as rows,
            count(*) filter (where sample_id not in ({tables.gone})) as kept
        from ({values}) where isfinite(value) group by 1"""
    fine = np.zeros((2, FINE + 2), np.int64)
    for row in tables.rows(query):
        fine[:, row["bin"]] = row["rows"], row["kept"]
    return fine


def _step(low: float, high: float, whole: bool) -> float:
    """Return the width of a fine bin. It is an integer for integers, so that every bin covers as many values."""
    if whole:
        return float(max(1, -(-(high - low + 1) // FINE)))
    return (high - low) / FINE or 1.0


def _middle(fine: Counts) -> tuple[int, int]:
    """Return the first and the last bin between the tails, and the median of the kept rows."""
    places = [_place(fine[0], share) for share in (TAIL, 1 - TAIL)]
    places += [_place(fine[1], 0.5)] if fine[1].any() else []
    return min(places), max(places)


def _coarse(fine: Counts, low: float, step: float) -> dict[str, Any]:
    """Sum fine bins to at most BINS between the tails of all rows."""
    first, last = (_place(fine[0], share) for share in (TAIL, 1 - TAIL))
    width = -(-(last - first + 1) // BINS)
    bins = -(-(last - first + 1) // width)
    end = min(first + bins * width, FINE)
    inner = fine[:, 1:-1]
    shown = np.zeros((2, bins * width), np.int64)
    shown[:, : end - first] = inner[:, first:end]
    counts = shown.reshape(2, bins, width).sum(axis=2)
    return {
        "edges": [_exact(low + (first + place * width) * step) for place in range(bins + 1)],
        "all": counts[0].tolist(),
        "left": counts[1].tolist(),
        "below": int(fine[0, : first + 1].sum()),
        "above": int(fine[0, end + 1 :].sum()),
        "median": _exact(low + _place(fine[0], 0.5) * step),
        "median_kept": _exact(low + _place(fine[1], 0.5) * step) if fine[1].any() else None,
    }


def _place(counts: Counts, share: float) -> int:
    """Return the first bin, from 0, at which `share` of all rows is reached."""
    reached = int(np.searchsorted(counts.cumsum(), share * counts.sum()))
    return min(max(reached - 1, 0), FINE - 1)  # what is below and above is in no bin


def _exact(value: float) -> float:
    return float(f"{value:.7g}")
