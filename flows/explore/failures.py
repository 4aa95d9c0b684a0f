"""List the reasons of failed rows, and retry some of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalog.database import sql
from catalog.dataset import Dataset
from catalog.duck import identifier, literal
from catalog.errors import NotFoundError, UserError, nearest
from catalog.lease import hold
from catalog.rejection import rejects_sql
from catalog.takedown.ledger import REASON as TAKEN_DOWN
from catalog.version import Version
from catalog.wording import amount
from flows.build.plan import RETRIES, Plan, make_plan, retry_parts
from flows.build.spec import BuildSpec
from flows.forecast.history import Estimate, estimate
from tasks.reasons import REASONS


def failures(dataset: Dataset, version: Version | None = None) -> list[dict[str, Any]]:
    """Return one entry a reason: rows, share, whether a retry may help, its meaning, an example.

    `version` defaults to the last one. In a version without downloads the only possible reason is a take-down; raises
    NotFoundError if there was none.
    """
    version = version or dataset.version()
    if "images" not in version.tables and (taken := _taken(dataset, version)):
        return taken
    rows = _images(
        dataset,
        version,
        "select i.reason, count(*) as n, any_value(s.url order by s.sample_id) as example, "
        "any_value(i.detail order by s.sample_id) as detail, (select count(*) from {d}.images) as total "
        "from {d}.images i join {d}.source s using (sample_id) where i.reason is not null "
        "group by 1 order by 2 desc, 1",
    )
    found = []
    for row in rows:
        about = REASONS.get(row["reason"])
        found.append(
            {
                "reason": row["reason"],
                "rows": row["n"],
                "share": round(row["n"] / row["total"], 4),
                "retry_may_help": about is not None and about.retry != "never",
                "meaning": about.about if about else "",
                "example": row["example"],
                "detail": row["detail"],
            }
        )
    return found


@dataclass(frozen=True)
class Retry:
    """Failed rows to retry, and the parts that have to be made again for them."""

    spec: BuildSpec
    """The build that retries them."""
    rows: int
    parts: int
    """Parts of `images` with such rows; the other parts are not touched."""
    plan: Plan
    """The plan of that build: these parts, and all parts that depend on them."""
    attempts: Mapping[str, Any]
    """The content of the state RETRIES that requests the retry."""

    @property
    def made(self) -> int:
        """The number of parts to make, in all stages."""
        return sum(len(stage.missing) for stage in self.plan.stages)

    def describe(self) -> dict[str, Any]:
        """Return the rows, and the parts of each stage, as JSON values."""
        stages = [
            {n: getattr(e, n) for n in ("stage", "use", "parts", "parts_to_run", "rows")} for e in self.estimates()
        ]
        parts = sum(len(stage.parts) for stage in self.plan.stages)
        facts = {"rows_tried": self.rows, "parts_tried": self.parts, "parts_to_run": self.made, "parts": parts}
        return facts | {"stages": stages}

    def estimates(self) -> list[Estimate]:
        """Return the estimate of each stage of the build."""
        return estimate(self.plan)

    def line(self) -> str:
        """Return a summary in one line."""
        rows, parts = amount(self.rows, "row"), amount(self.parts, "part")
        of = sum(len(stage.parts) for stage in self.plan.stages)
        return f"{rows} of {parts} to retry; with all parts that depend on them, {self.made:,} of {of:,} parts are made"


def begin_retry(
    dataset: Dataset, reasons: Sequence[str], catalog: str | None, executor: str, version: Version | None = None
) -> Retry:
    """Request the retry that `plan_retry` returns; the next build performs it. Raises also BusyError."""
    with hold(dataset):
        found = plan_retry(dataset, reasons, catalog, executor, version)
        dataset.set_state(RETRIES, found.attempts)
    return found


def plan_retry(
    dataset: Dataset, reasons: Sequence[str], catalog: str | None, executor: str, version: Version | None = None
) -> Retry:
    """Return the plan of a retry of all rows that failed for some reasons. Changes nothing.

    Rows and recipe are those of `version`, by default the last; a held version can be retried by its number. Raises
    UserError if a reason is unknown, or if no row of the current source failed for it.
    """
    asked = version.label if version else dataset.name
    version = version or dataset.version()
    there = {f["reason"] for f in failures(dataset, version)}
    if not any(r.strip() for r in reasons):
        raise UserError(f"no reason is named{nearest('', there)}")
    wanted = sorted({_full_name(r.strip(), {*REASONS, *there}) for r in reasons if r.strip()})
    if TAKEN_DOWN in wanted:
        raise UserError(f"rows that were taken down are never downloaded again: {TAKEN_DOWN!r} cannot be retried")
    reasons = ", ".join(map(literal, wanted))
    rows = _images(
        dataset,
        version,
        f"select sample_id >> 24 as number, count(*) as n from {{d}}.images where reason in ({reasons}) group by 1",
    )
    if not rows:
        raise UserError(f"no row of {asked!r} failed for {' or '.join(wanted)}{nearest('', there)}")
    spec = BuildSpec.of_version(version, catalog=catalog, executor=executor)
    plan = make_plan(spec.checked, dataset, remember=False)
    stage = next(s for s in plan.stages if s.stage.fails_rows)
    known = {part.number for part in stage.parts}
    tried = {row["number"]: row["n"] for row in rows if row["number"] in known}
    if not tried:
        many = amount(sum(row["n"] for row in rows), "row")
        raise UserError(
            f"{many} failed for {' or '.join(wanted)}, but none is in the source any more: its files changed"
        )
    attempts = retry_parts(plan, stage.stage.name, wanted, list(tried))
    again = make_plan(spec.checked, dataset, retries=attempts, remember=False)
    return Retry(spec, sum(tried.values()), len(tried), again, attempts)


def _taken(dataset: Dataset, version: Version) -> list[dict[str, Any]]:
    """Return the entry of rows that were taken down, for a version without images; empty if there are none."""
    text = f"select count(*) filter ({rejects_sql('url')}) as n, count(*) as total from {{d}}.source"
    (counts,) = _rows(dataset, version, text)
    if not counts["n"]:
        return []
    facts = {"reason": TAKEN_DOWN, "rows": counts["n"], "share": round(counts["n"] / counts["total"], 4)}
    about = REASONS.get(TAKEN_DOWN)
    return [facts | {"retry_may_help": False, "meaning": about.about if about else "", "example": None, "detail": None}]


def _images(dataset: Dataset, version: Version, text: str) -> list[dict[str, Any]]:
    if "images" not in version.tables:
        raise NotFoundError(f"{version.label} has no images table: its recipe downloads nothing")
    return _rows(dataset, version, text)


def _rows(dataset: Dataset, version: Version, text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = sql(
        dataset.catalog, text.replace("{d}", identifier(dataset.name)), {dataset.name: version.number}
    ).to_pylist()
    return rows


def _full_name(reason: str, known: Collection[str]) -> str:
    """Return the name of a reason from its name or a unique prefix (`dns` for `dns_failed`)."""
    if reason in known:
        return reason
    begin = [name for name in known if name.startswith(reason)]
    if len(begin) != 1:
        raise UserError(f"unknown reason {reason!r}{nearest(reason, begin or known)}")
    return begin[0]
