"""The numbers of input rows, of rows that each stage rejected by reason, and of kept rows."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from catalog.takedown.ledger import REASON
from tasks.report._base import FAILED, REJECTED, TEXT_LIMIT, Entry, ReportTables, cut

KEPT_REASONS: Final = 50
"""Reasons of a step on the card, the most frequent: a list of words may have 100,000 of them."""
STEPS: Final = 200
"""Stages on the card: those with the most input rows."""

Reasons = list[dict[str, Any]]
_TAKEN: Final = "select count(*) from ({})"


def funnel(tables: ReportTables) -> Iterator[Entry]:
    """Yield one entry per step: stage, rows seen, kept and rejected, and the most frequent reasons.

    Steps are in the order in which the stages ran. Stages whose place is not known come last, those that saw most rows
    first, as a stage judges every row that was kept when it ran.
    """
    if not tables.base:
        return
    rows = tables.number(f"select count(*) from {tables.base}")
    downloads = tables.has("images", "status")
    taken = 0 if downloads or not tables.has("source", "url") else tables.number(_TAKEN.format(tables.taken))
    yield _step("source", rows, taken, [{"reason": REASON, "rows": taken, "example": None}] if taken else [])
    if downloads:
        failed = tables.number(f"select count(*) from images where {FAILED}")
        yield _step("download", rows, failed, _failures(tables))
    if tables.has("decisions"):
        yield from _judged(tables)


def summary(tables: ReportTables, title: str, description: str) -> Entry:
    """Return the entry of the first screen: rows, rows kept, and other totals."""
    rows = tables.number(f"select count(*) from {tables.base}") if tables.base else 0
    gone = tables.number(f"select count(distinct sample_id) from ({tables.gone})")
    facts: dict[str, Any] = {"title": title, "description": description, "rows": rows, "kept": rows - gone}
    if tables.has("images", "byte_size"):
        facts["kept_bytes"] = tables.number(
            f"select sum(byte_size) from images where sample_id not in ({tables.gone})",
        )
    if tables.has("clusters"):
        facts["concepts"] = tables.number("select count(distinct cluster) from clusters")
    return Entry("summary", facts)


def _failures(tables: ReportTables) -> Reasons:
    detail = "min_by(detail, sample_id)" if tables.has("images", "detail") else "null::varchar"
    grouped = f"""select coalesce(reason, 'unknown') as reason, count(*) as rows, {detail} as example
        from images where {FAILED} group by 1"""
    return tables.rows(_commonest(grouped))


def _judged(tables: ReportTables) -> Iterator[Entry]:
    reasons: dict[str, Reasons] = defaultdict(list)
    grouped = f"""select stage, coalesce(reason, 'unknown') as reason, count(*) as rows,
            min_by(evidence, sample_id) as example
        from decisions where {REJECTED} group by 1, 2"""
    for row in tables.rows(_commonest(grouped, "stage")):
        reasons[row.pop("stage")].append(row)
    query = f"""select stage, count(*) as seen, count(*) filter (where {REJECTED}) as rejected
        from decisions group by stage order by seen desc, rejected, stage limit {STEPS}"""
    for row in tables.in_order(tables.rows(query)):
        yield _step(row["stage"], row["seen"], row["rejected"], reasons[row["stage"]])


def _commonest(grouped: str, *by: str) -> str:
    """Return SQL for the KEPT_REASONS commonest rows of `grouped`, of each value of `by`, cut to what a card keeps."""
    columns = [*by, f"left(reason, {TEXT_LIMIT}) as reason", "rows", f"left(example, {TEXT_LIMIT}) as example"]
    part = f"partition by {', '.join(by)} " if by else ""
    order = ", ".join(["rows desc", "reason", *by])
    return f"""select {", ".join(columns)} from (select * from ({grouped})
        qualify row_number() over ({part}order by {order}) <= {KEPT_REASONS}) as g
        order by g.rows desc, {", ".join(f"g.{name}" for name in ("reason", *by))}"""


def _step(stage: str, seen: int, rejected: int, reasons: Reasons) -> Entry:
    """Return one step. `reasons` may be the commonest alone: the rows of all others are `other_rows`."""
    others = rejected - sum(reason["rows"] for reason in reasons)
    content = {"stage": cut(stage), "seen": seen, "kept": seen - rejected, "rejected": rejected, "reasons": reasons}
    return Entry("funnel", content | {"other_rows": others})
