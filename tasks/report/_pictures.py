"""The samples on the card: random ones of the input, random ones of the kept rows, and some of every reason."""

from collections.abc import Iterator
from typing import Any, Final

from tasks.report._base import FAILED, REJECTED, TEXT_LIMIT, Entry, ReportTables, drawn, id_list

REASONS: Final = 12
"""Reasons with pictures on the card, the most frequent first."""
SHOWN_PER_REASON: Final = 6
EQUAL_PAIRS: Final = 2


def grids(tables: ReportTables, samples: int, seed: int) -> Iterator[Entry]:
    """Yield the sections `before`, `after` and `rejected`: `samples` pictures each, drawn with one seed.

    All three have the same random order, so samples in both grids are in the same order.
    """
    if not tables.has("images", "status"):
        return
    decoded = f"select sample_id from images where not {FAILED}"
    before = _ids(tables, f"{decoded} order by {drawn(seed)} limit {samples}")
    after = _ids(tables, f"{decoded} and sample_id not in ({tables.gone}) order by {drawn(seed)} limit {samples}")
    rejected = _rejected(tables, samples, seed)
    described = describe(tables, {*before, *after, *rejected})
    for section, sample_ids in (("before", before), ("after", after), ("rejected", rejected)):
        for sample_id in sample_ids:
            yield Entry(section, described[sample_id], sample_id)


def describe(tables: ReportTables, sample_ids: set[int]) -> dict[int, dict[str, Any]]:
    """Return caption, whether it is kept, and otherwise the stage, reason and evidence, of some samples."""
    captions = tables.captions(sample_ids)
    described: dict[int, dict[str, Any]] = {
        sample_id: {"sample_id": sample_id, "caption": captions.get(sample_id), "kept": True}
        for sample_id in sorted(sample_ids)
    }
    if tables.has("decisions"):
        query = f"""select sample_id, stage, reason, left(evidence, {TEXT_LIMIT}) as evidence from decisions
            where {REJECTED} and sample_id in ({id_list(described)}) order by sample_id, stage desc"""
        for row in tables.rows(query):
            described[row["sample_id"]] |= row | {"kept": False}
    return described


def pairs(tables: ReportTables, limit: int) -> Iterator[Entry]:
    """Yield the section `pair`: a rejected sample and its representative, with similarity and reason.

    For every reason these are the least similar pairs, which show whether the threshold is right, and two pairs with
    similarity 1.
    """
    if not tables.has("decisions", "representative", "similarity"):
        return
    query = f"""with ranked as (
            select sample_id, representative, similarity, stage, reason,
                row_number() over (partition by reason, similarity >= 1 order by similarity, sample_id) as rank
            from decisions where {REJECTED} and representative is not null
            qualify rank <= if(similarity >= 1, {EQUAL_PAIRS}, {limit})),
        chosen as (select * from ranked order by rank, reason, similarity, sample_id limit {limit})
        select * exclude (rank) from chosen order by similarity, reason, sample_id"""
    found = tables.rows(query)
    captions = tables.captions({row[side] for row in found for side in ("sample_id", "representative")})
    for number, row in enumerate(found):
        for side in ("representative", "sample_id"):
            content = row | {"pair": number, "shows": side, "caption": captions.get(row[side])}
            yield Entry("pair", content, row[side])


def _ids(tables: ReportTables, query: str) -> list[int]:
    return [row["sample_id"] for row in tables.rows(query)]


def _rejected(tables: ReportTables, samples: int, seed: int) -> list[int]:
    """Return samples of the most frequent reasons, equally many of each, reason by reason."""
    if not tables.has("decisions"):
        return []
    query = f"""with counted as (
            select stage, reason, count(*) as rows from decisions where {REJECTED} group by all
            order by rows desc, stage, reason limit {REASONS}),
        ranked as (
            select sample_id, rows, stage, reason,
                row_number() over (partition by stage, reason order by {drawn(seed)}) as rank
            from decisions join counted using (stage, reason) where {REJECTED})
        select sample_id from ranked
        where rank <= least({SHOWN_PER_REASON}, greatest(1, {samples} // greatest(1, (select count(*) from counted))))
        order by rows desc, stage, reason, rank limit {samples}"""
    return _ids(tables, query)
