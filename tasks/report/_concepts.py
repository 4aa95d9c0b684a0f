"""The clusters as concepts: a name from their captions, the share that is kept, pictures at the centre."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tasks.concepts.coverage import effective_number
from tasks.concepts.names import CAPTION_CHARS, name_classes
from tasks.report._base import TEXT_LIMIT, Entry, ReportTables, id_list
from tasks.report._pictures import describe

NAMED: Final = 1000
"""Clusters that compete for words; the largest ones."""
CAPTIONS: Final = 64
"""Captions for the name of a cluster: those nearest to its centroid."""
NEAREST: Final = 4
"""Pictures of a concept at its centre, and, if the table `concepts` has them, at its edge."""
CURVE_POINTS: Final = 200
_SANE: Final = "isfinite(distance) and abs(distance) <= 1e6"
COLUMNS: Final = ("intra", "inter", "name_caption", "name_label", "label_cosine", "nearest", "farthest")
"""Columns of the table `concepts` that a card shows."""


def concepts(tables: ReportTables, limit: int) -> Iterator[Entry]:
    """Yield the sections `balance` (one entry), `concept` (the `limit` largest) and `concept_image`.

    Names, distances and pictures come from the table `concepts` if it exists, and are computed here otherwise. Kept
    rows are counted here in both cases: stages after `concepts` may have rejected more.
    """
    if not tables.has("clusters", "cluster", "distance"):
        return
    sizes = _sizes(tables)
    if not sizes:
        return
    yield _balance(sizes)
    shown = sizes[:limit]
    facts_of = _stored(tables, shown) if tables.has("concepts", *COLUMNS) else _found(tables, sizes, shown)
    facts_of = {row["cluster"]: _NOTHING for row in shown} | facts_of
    for row in shown:
        yield Entry("concept", row | facts_of[row["cluster"]].facts)
    pictured = {row["cluster"]: facts_of[row["cluster"]] for row in shown}
    described = describe(tables, {i for one in pictured.values() for i in (*one.nearest, *one.farthest)})
    for cluster, one in pictured.items():
        for sample_id in one.nearest:
            yield Entry("concept_image", described[sample_id] | {"cluster": cluster}, sample_id)
    for cluster, one in pictured.items():  # last: they are the first to be dropped if there are too many pictures
        for sample_id in one.farthest:
            yield Entry("concept_image", described[sample_id] | {"cluster": cluster, "at": "edge"}, sample_id)


@dataclass(frozen=True)
class _Facts:
    """What a card says of one concept beside its counts."""

    facts: dict[str, Any]
    nearest: list[int]
    farthest: list[int] = field(default_factory=list)


_NOTHING: Final = _Facts({"terms": []}, [])
"""Of a cluster that the table `concepts` does not have."""


def _stored(tables: ReportTables, shown: Sequence[dict[str, Any]]) -> dict[int, _Facts]:
    """Return what the table `concepts` says of some clusters."""
    query = (
        f"select cluster, {', '.join(COLUMNS)} from concepts where cluster in ({id_list(r['cluster'] for r in shown)})"
    )
    found = {}
    for row in tables.rows(query):
        facts = {name: row[name] if row[name] is None else round(row[name], 6) for name in ("intra", "inter")}
        facts["terms"] = row["name_caption"][:TEXT_LIMIT].split(", ") if row["name_caption"] else []
        if row["name_label"] is not None:
            facts |= {"label": row["name_label"][:TEXT_LIMIT], "label_cosine": _rounded(row["label_cosine"])}
        near = _ids(row["nearest"])[:NEAREST]
        far = [sample_id for sample_id in _ids(row["farthest"]) if sample_id not in near][:NEAREST]
        found[row["cluster"]] = _Facts(facts, near, far)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _ids(listed: list[int | None] | None) -> list[int]:
    """Return the samples of a list that may be null, or contain nulls."""
    return [sample_id for sample_id in listed or () if sample_id is not None]


def _found(tables: ReportTables, sizes: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]]) -> dict[int, _Facts]:
    """Return names and nearest samples of some clusters, found from captions and distances."""
    nearest = _nearest(tables, [row["cluster"] for row in sizes[:NAMED]])
    names = _names(tables, nearest)
    return {c: _Facts({"terms": names[c]}, nearest[c][:NEAREST]) for c in (row["cluster"] for row in shown)}


def _sizes(tables: ReportTables) -> list[dict[str, Any]]:
    """Return size, rows kept and mean distance of every cluster, the largest first.

    The mean is a sum of integers (millionths): a sum of floats would depend on the order of DuckDB's threads. Distances
    that are not finite (of a vector with NaN) are excluded; the mean is null if all are.
    """
    query = f"""select cluster, count(*) as size,
            count(*) filter (where sample_id not in ({tables.gone})) as kept,
            sum(case when {_SANE} then round(distance * 1e6)::bigint end)::double / 1e6
                / nullif(count(*) filter (where {_SANE}), 0) as mean_distance
        from clusters where cluster is not null group by cluster order by size desc, cluster"""
    return tables.rows(query)


def _balance(sizes: Sequence[dict[str, Any]]) -> Entry:
    curves = {}
    for key in ("size", "kept"):
        ranked = sorted((row[key] for row in sizes), reverse=True)
        places = np.unique(np.linspace(0, len(ranked) - 1, min(len(ranked), CURVE_POINTS)).round().astype(int))
        curves[key] = {
            "effective": round(effective_number(np.array(ranked)), 3),
            "empty": ranked.count(0),
            "ranks": (places + 1).tolist(),
            "rows": [ranked[place] for place in places],
        }
    return Entry("balance", {"clusters": len(sizes), "before": curves["size"], "after": curves["kept"]})


def _nearest(tables: ReportTables, clusters: Sequence[int]) -> dict[int, list[int]]:
    """Return the samples nearest to the centroids, nearest first, by one bounded heap per cluster."""
    query = f"""select cluster, min({{'distance': distance, 'id': sample_id}}, {CAPTIONS}) as nearest
        from clusters where cluster in ({id_list(clusters)}) and distance is not null group by cluster"""
    found = {row["cluster"]: [near["id"] for near in row["nearest"]] for row in tables.rows(query)}
    return {cluster: found.get(cluster, []) for cluster in clusters}


def _names(tables: ReportTables, nearest: dict[int, list[int]]) -> dict[int, list[str]]:
    captions = tables.captions(sample_id for ids in nearest.values() for sample_id in ids)
    documents: dict[int, list[str]] = defaultdict(list)
    for cluster, sample_ids in nearest.items():
        for sample_id in sample_ids:
            documents[cluster].append(captions.get(sample_id, "")[:CAPTION_CHARS])
    texts = ["\n".join(documents[cluster]) for cluster in nearest]
    return dict(zip(nearest, name_classes(texts), strict=True))
