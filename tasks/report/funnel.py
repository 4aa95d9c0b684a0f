"""How many rows came in, how many each stage rejected and why, how many are left."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from catalog.takedown import REASON
from tasks.report._base import TEXT_LIMIT, Entry, Evidence

Reasons = list[dict[str, Any]]
_TAKEN: Final = "select count(*) from ({})"


def funnel(evidence: Evidence) -> Iterator[Entry]:
    """Yield one entry a step: stage, rows seen, kept and rejected, and the reasons, the commonest first.

    A stage judges every row that was alive when it ran, so the stages' order is that of the rows they saw.
    """
    if not evidence.base:
        return
    rows = evidence.number(f"select count(*) from {evidence.base}")
    downloads = evidence.has("images", "status")
    taken = 0 if downloads or not evidence.has("source", "url") else evidence.number(_TAKEN.format(evidence.taken))
    yield _step("source", rows, taken, [{"reason": REASON, "rows": taken, "example": None}] if taken else [])
    if downloads:
        reasons = _failures(evidence)
        yield _step("download", rows, sum(reason["rows"] for reason in reasons), reasons)
    if evidence.has("decisions"):
        yield from _judged(evidence)


def summary(evidence: Evidence, title: str, description: str) -> Entry:
    """Return the one entry of the first screen: rows, rows kept, and what else is known about them."""
    rows = evidence.number(f"select count(*) from {evidence.base}") if evidence.base else 0
    gone = evidence.number(f"select count(distinct sample_id) from ({evidence.gone})")
    facts: dict[str, Any] = {"title": title, "description": description, "rows": rows, "kept": rows - gone}
    if evidence.has("images", "byte_size"):
        facts["kept_bytes"] = evidence.number(
            f"select sum(byte_size) from images where sample_id not in ({evidence.gone})",
        )
    if evidence.has("clusters"):
        facts["concepts"] = evidence.number("select count(distinct cluster) from clusters")
    return Entry("summary", facts)


def _failures(evidence: Evidence) -> Reasons:
    detail = f"left(min_by(detail, sample_id), {TEXT_LIMIT})" if evidence.has("images", "detail") else "null"
    return evidence.rows(
        f"""select coalesce(reason, 'unknown') as reason, count(*) as rows, {detail} as example
        from images where status is distinct from 'success' group by 1 order by rows desc, 1"""
    )


def _judged(evidence: Evidence) -> Iterator[Entry]:
    reasons: dict[str, Reasons] = defaultdict(list)
    query = f"""select stage, coalesce(reason, 'unknown') as reason, count(*) as rows,
            left(min_by(evidence, sample_id), {TEXT_LIMIT}) as example
        from decisions where not keep group by 1, 2 order by rows desc, 2, 1"""
    for row in evidence.rows(query):
        reasons[row.pop("stage")].append(row)
    query = """select stage, count(*) as seen, count(*) filter (where not keep) as rejected
        from decisions group by stage order by seen desc, rejected, stage"""
    for row in evidence.rows(query):
        yield _step(row["stage"], row["seen"], row["rejected"], reasons[row["stage"]])


def _step(stage: str, seen: int, rejected: int, reasons: Reasons) -> Entry:
    content = {"stage": stage, "seen": seen, "kept": seen - rejected, "rejected": rejected, "reasons": reasons}
    return Entry("funnel", content)
