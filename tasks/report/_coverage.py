"""The coverage of concepts and of their tail by each pruning stage, and by each member of a combination."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final

import numpy as np

from catalog.duck import literal
from tasks.concepts.coverage import TAIL, Coverage
from tasks.report._base import REJECTED, Entry, ReportTables

BINS: Final = 120
"""Maximum steps of the picture: with more concepts, neighbours in size are merged."""
LISTED: Final = 200
"""Concepts whose numbers are on the card, the largest; the picture has all."""
NAMED: Final = 4
"""Concepts shown by name: those with the largest and smallest kept share."""
NAMED_ROWS: Final = 10
"""Concepts with fewer rows are never shown by name: their share is not significant."""

COMBINATIONS: Final = ("pruned_union", "pruned_intersection", "pruned_then")
"""Reasons of stages that combine selectors, for parts that were made before `decisions.numbers` existed."""
_VERDICT: Final = "split_part({0}, '.', 1) || '.keep' = {0}"
"""Whether the name of a number is a member's verdict (`tasks/prune/_combine.py`), not that of a nested member."""


def coverages(tables: ReportTables) -> Iterator[Entry]:
    """Yield the section `coverage`: an entry for each pruning stage, in the order they ran, then its members'.

    A stage that ran before the clusters were made has none: the rows that it rejected have no cluster. A combination
    whose decisions have no numbers has `numbers_missing`, and no entries of members.
    """
    if not (tables.has("clusters", "cluster") and tables.has("decisions", "stage", "keep", "reason")):
        return
    for row in tables.in_order(_stages(tables)):
        stage = row["stage"]
        missing = {"numbers_missing": True} if row["missing"] else {}
        for query in [_of_stage(stage), _of_members(stage)] if row["combined"] else [_of_stage(stage)]:
            for (_, member), rows in groupby(tables.rows(query), lambda row: (row["place"], row["member"])):
                yield Entry("coverage", {"stage": stage, "member": member} | facts(_coverage(list(rows))) | missing)


def facts(found: Coverage) -> dict[str, Any]:
    """Return the content of an entry: totals, the tail, evenness, the picture's steps, and concepts by size.

    `skyline` are steps from the largest concepts to the smallest: `rows` before, `kept` of them. `concepts` are
    [cluster, rows before, kept] of the largest; `most` and `least` those with the largest and smallest kept share.
    """
    order = np.lexsort((found.concept, -found.before))
    before, after = found.effective
    gini_before, gini_after = found.gini
    return {
        "before": int(found.before.sum()),
        "kept": int(found.kept.sum()),
        "clusters": len(found.concept),
        "emptied": found.emptied,
        "tail_clusters": found.tail_concepts,
        "tail_share": round(found.tail_share, 6),
        "effective": [round(before, 3), round(after, 3)],
        "gini": [round(gini_before, 4), round(gini_after, 4)],
        "skyline": _steps(found.before[order], found.kept[order]),
        "concepts": _listed(found, order[:LISTED]),
        **_extremes(found, order),
    }


def _stages(tables: ReportTables) -> list[dict[str, Any]]:
    """Return the pruning stages, those that saw most rows first; `combined`: whether they combine selectors, `missing`:
    whether they do and have no numbers."""
    reasons = ", ".join(literal(reason) for reason in COMBINATIONS)
    has = tables.has("decisions", "numbers")
    combined = f"len(list_filter(map_keys(numbers), lambda name: {_VERDICT.format('name')})) > 0" if has else "false"
    query = f"""select stage, bool_or(coalesce({combined}, false)) as combined,
            bool_or(coalesce(reason in ({reasons}), false)) and not combined as missing
        from decisions left join (select sample_id, true as is_there from clusters) using (sample_id) group by stage
        having bool_or(coalesce(starts_with(reason, 'pruned_'), false)) and count(*) = count(is_there)
        order by count(*) desc, count(*) filter (where {REJECTED}), stage"""
    return tables.rows(query)


def _of_stage(stage: str) -> str:
    return f"""select 0 as place, null as member, cluster, count(*) as before, count(*) filter (where keep) as kept
        from decisions join clusters using (sample_id)
        where stage = {literal(stage)} and cluster is not null group by cluster order by cluster"""


def _of_members(stage: str) -> str:
    """Return SQL for the rows that each member saw and kept, as the numbers say it, in the members' order."""
    return f"""with judged as (
            select cluster, list_filter(map_entries(numbers), lambda e: {_VERDICT.format("e.key")}) as verdicts
            from decisions join clusters using (sample_id) where stage = {literal(stage)} and cluster is not null),
        each as (select cluster, unnest(verdicts) as verdict, generate_subscripts(verdicts, 1) as place from judged)
        select place, split_part(verdict.key, '.', 1) as member, cluster, count(*) as before,
            count(*) filter (where verdict.value = 1) as kept
        from each group by place, member, cluster order by place, member, cluster"""


def _coverage(rows: Sequence[dict[str, Any]]) -> Coverage:
    concept, before, kept = (np.array([row[name] for row in rows], np.int64) for name in ("cluster", "before", "kept"))
    return Coverage(concept, before, kept)


def _steps(before: np.ndarray, kept: np.ndarray) -> dict[str, list[int]]:
    """Return the rows of neighbouring concepts, put together to at most BINS + 1 steps of about as many rows."""
    start = np.cumsum(before) - before
    _, first = np.unique(start * BINS // max(int(before.sum()), 1), return_index=True)
    rows, left = (np.add.reduceat(x, first) if len(x) else x for x in (before, kept))
    return {"rows": rows.tolist(), "kept": left.tolist()}


def _listed(found: Coverage, places: np.ndarray) -> list[list[int]]:
    rows: list[list[int]] = np.stack([found.concept, found.before, found.kept], axis=1)[places].tolist()
    return rows


def _extremes(found: Coverage, order: np.ndarray) -> dict[str, list[list[int]]]:
    large = order[found.before[order] >= NAMED_ROWS]
    ranked = large[np.argsort(-found.shares[large], kind="stable")]  # of equal shares, the larger concept first
    count = min(NAMED, len(ranked) // 2)
    return {"most": _listed(found, ranked[:count]), "least": _listed(found, ranked[::-1][:count])}


@dataclass(frozen=True)
class Skyline:
    """The picture, in a box of 100 by 100, y downwards: width is rows before, height is the share kept."""

    path: str
    level: float
    """The share kept of all, in hundredths: the height of a selection that is independent of concepts."""
    tail: float
    """The width of the tail, in hundredths, at the right."""


def skyline(row: dict[str, Any]) -> Skyline:
    """Return the picture of an entry of the section."""
    total = max(row["before"], 1)
    path, x = "M0 100", 0.0
    for rows, kept in zip(row["skyline"]["rows"], row["skyline"]["kept"], strict=True):
        x += 100 * rows / total
        path += f"V{100 - 100 * kept / rows:.2f}H{x:.2f}"
    return Skyline(f"{path}V100Z" if x else "", round(100 * row["kept"] / total, 2), 100 * TAIL)


def drawn(row: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """Return an entry with its picture, and its concepts by name (`names`: cluster -> name; others by number)."""

    def named(concepts: Sequence[Sequence[int]]) -> list[tuple[str, float]]:
        return [(names.get(c) or f"cluster {c}", kept / before) for c, before, kept in concepts]

    return row | {"drawing": skyline(row), "most": named(row["most"]), "least": named(row["least"])}
