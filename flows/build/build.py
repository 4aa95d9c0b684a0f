"""A build: hold the dataset, plan, make what is missing, publish one version, write its report.

It runs as a Prefect flow with a task a stage, never a task a part: Prefect keeps runs, retries of stages, schedules
and artifacts; Ray places the parts. Killed anywhere, it leaves the last version as it was, and the next build continues
from the finished parts.
"""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from catalog.dataset import Dataset
from catalog.errors import first_line
from catalog.lease import hold
from catalog.parts import PartFile, describe_part, fingerprint_of, part_path
from catalog.repair import pending, settle
from catalog.version import TableState, Version, VersionFacts
from flows.build.balance import check_balance
from flows.build.code_version import code_version
from flows.build.context import BuildContext
from flows.build.engine import Engine
from flows.build.failed_rows import FailedRows, failed_rows
from flows.build.guards import held_error, tripped
from flows.build.hints import command_for
from flows.build.mend import mend
from flows.build.plan import NUMBERS, Plan, PlannedPart, PlannedStage, make_plan
from flows.build.ray_engine import open_engine
from flows.build.report import report_path, write_report_or_warn
from flows.build.source_notes import described, lines, of_file, of_version, recorded
from flows.build.spec import BuildSpec
from flows.build.worker import clear_scratch, jobs_of, work_of
from tasks.sources import Notes
from tasks.stage import TableStage


@dataclass(frozen=True)
class Outcome:
    """The result of a build."""

    version: Version
    made: int
    """Parts that were made; 0 where everything was there."""
    report: str | None
    """Where the report is, where the recipe asks for one."""
    failed: FailedRows | None = None
    """Which rows of the version have no image; None where it has no images."""

    def describe(self) -> dict[str, Any]:
        """Return it in a form that JSON can hold."""
        failed = self.failed.describe() if self.failed else None
        facts = {"version": self.version.label, "parts_made": self.made, "report": self.report, "failed": failed}
        facts |= {"source_notes": described(of_version(self.version))}
        return facts | {"held": list(self.version.held) if self.version.is_held else []}

    def last_line(self, dataset: Dataset) -> str | None:
        """Return how many rows failed and why, which ends every build; None where the version has no images."""
        label = self.version.label if self.version.is_held else self.version.dataset
        return self.failed.line(command_for(dataset, f"errors {label}")) if self.failed else None


StageRunner = Callable[[Plan, PlannedStage, Engine, BuildContext], int]
"""Runs one stage of a plan on an engine; returns how many parts it made."""


def up_to_date(spec: BuildSpec) -> Outcome | None:
    """Return the last version if it is what the spec would give. Needs neither Prefect nor Ray, and no lease.

    Raises HeldError where a version that is held is what it would give, and its guards would hold it again.
    """
    recipe = spec.checked
    dataset = spec.dataset(create=None)  # a recipe that is refused leaves nothing
    plan = make_plan(recipe, dataset)
    if not plan.is_cached or any(pending(dataset).values()):
        if plan.identities:
            spec.dataset()
            plan.identities.save()  # the build need not read the files again to plan
        return None
    last, digest = dataset.last(), recipe_digest(plan)
    if last is not None and last.recipe_sha256 == digest:
        return Outcome(last, 0, report_path(dataset, last), failed_rows(dataset, last))
    for version in dataset.held():
        files = {table: dataset.files(version, table) for table in version.tables}
        if version.recipe_sha256 == digest and tripped(recipe.guards, dataset, files, last) == version.held:
            outcome = Outcome(version, 0, report_path(dataset, version), failed_rows(dataset, version))
            raise held_error(dataset, version, outcome.failed, outcome.describe())
    return None


def build_here(
    spec: BuildSpec, context: BuildContext | None = None, stage_runner: StageRunner | None = None
) -> Outcome:
    """Build in this process, without Prefect. The flow calls it too, with a `stage_runner` that makes Prefect tasks.

    Raises HeldError where a guard of the recipe holds the version: it is stored, and is not the latest.
    """
    context = context or BuildContext()
    show, recipe, dataset = context.display, spec.checked, spec.dataset()
    with hold(dataset, spec.wait_s, show.message) as lease:
        clear_scratch(dataset.storage)
        plan = make_plan(recipe, dataset)
        dataset.set_state(NUMBERS, plan.numbers)
        with ExitStack() as stack:
            mending = cache(lambda: stack.enter_context(open_engine(spec.executor, show.message)))
            if mend(plan, mending, lambda planned: run_stage(plan, planned, mending(), context), show.message):
                plan = make_plan(recipe, dataset)
        show.plan(plan)
        made = 0
        if not plan.is_cached:
            with open_engine(spec.executor, show.message) as engine:
                for planned in plan.stages:
                    made += (stage_runner or run_stage)(plan, planned, engine, context)
        lease.check()  # on object stores, another process may have taken it over
        version = publish(plan, spec.resolved)
        report = write_report_or_warn(dataset, version, show.message)
        outcome = Outcome(version, made, report, failed_rows(dataset, version))
        if not version.is_held:
            show.published(version, outcome.report)
        if line := outcome.last_line(dataset):
            show.message(line)
    if version.is_held:
        raise held_error(dataset, version, outcome.failed, outcome.describe())
    return outcome


def run_stage(plan: Plan, planned: PlannedStage, engine: Engine, context: BuildContext) -> int:
    """Make the missing parts of a stage, and record how that went."""
    show = context.display
    there = plan.dataset.finished(planned.stage.table)  # again: a stage that Prefect retries has made some
    mine = {p.fingerprint: there[p.fingerprint] for p in planned.parts if p.fingerprint in there}
    planned = replace(planned, finished=mine)
    tally = _Tally(planned)
    with show.stage(planned) as bar, _recorded(plan, planned, tally, context.run_id):

        def on_part(part: PlannedPart, file: PartFile) -> None:
            tally.add(file)
            bar.part(part, file)

        if planned.missing:
            device = engine.device(planned.stage.resources)
            work = work_of(planned, plan.dataset.storage, device, plan.recipe.seed)
            if isinstance(planned.stage, TableStage):
                on_part(planned.missing[0], engine.run_once(work, planned.missing[0], bar.progress))
            else:
                engine.map_parts(work, jobs_of(planned), on_part)
    for line in lines(tally.notes.all()):
        show.message(line)
    return tally.parts


class _Tally:
    """What a stage has made so far."""

    def __init__(self, planned: PlannedStage) -> None:
        self.cached = len(planned.finished)
        self.parts = self.rows = self.bytes = 0
        self.notes = Notes()

    def add(self, file: PartFile) -> None:
        self.notes.add_all(of_file(file))
        self.parts += 1
        self.rows += file.rows
        self.bytes += file.bytes


@contextmanager
def _recorded(plan: Plan, planned: PlannedStage, tally: _Tally, run_id: str) -> Iterator[None]:
    """Append one row to the dataset's `runs`, however the stage ends."""
    started, begin = datetime.now(UTC), time.monotonic()
    status, message = "completed", None
    try:
        yield
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) else "crashed"
        message = first_line(error, 500)
        raise
    finally:
        if tally.parts or message:
            plan.dataset.record_run(
                {
                    "run_id": run_id,
                    "started_at": started,
                    "stage": planned.stage.name,
                    "use": planned.stage.use,
                    "seconds": time.monotonic() - begin,
                    "rows": tally.rows,
                    "parts_made": tally.parts,
                    "parts_cached": tally.cached,
                    "bytes": tally.bytes,
                    "status": status,
                    "error": message,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "fingerprint": _fingerprint(planned),
                    "work": None if (size := plan.size(planned.missing)) is None else planned.stage.work(size),
                }
            )


def _fingerprint(planned: PlannedStage) -> str:
    """Return the fingerprint of all parts of a stage."""
    return fingerprint_of([part.fingerprint for part in planned.parts])


def publish(plan: Plan, recipe_text: str) -> Version:
    """Commit the tables and one new version; return it. The same state twice is one version.

    A version that trips a guard of the recipe is published as held.
    Raises BalanceError, and publishes nothing, where the published rows are not those that every stage keeps.
    """
    dataset = plan.dataset
    settle(dataset)
    last, waiting = dataset.last(), dataset.held()
    known = _known_parts(dataset, waiting[0] if waiting else last)
    tables: dict[str, TableState] = {}
    facts: list[Mapping[str, Any]] = []
    for planned in plan.stages:
        table, stage = planned.stage.table, planned.stage
        table_stage = isinstance(stage, TableStage)
        parts = zip(planned.paths(), planned.parts, strict=True)
        there = {path: planned.finished.get(part.fingerprint) for path, part in parts}
        files = [
            known[path]
            if path in known and size == known[path].bytes and not table_stage
            else describe_part(dataset.storage, path)  # also what was lost and is made again: the web has changed since
            for path, size in there.items()
        ]
        tables[table] = TableState(planned.written, [*(tables[table].parts if table in tables else ()), *files])
        facts.append(
            {
                "name": stage.name,
                "use": stage.use,
                "table": table,
                "version": stage.version,
                "parameters": stage.parameters(),
                "fingerprint": _fingerprint(planned),
                "parts": len(files),
                "rows": sum(f.rows for f in files),
                "bytes": sum(f.bytes for f in files),
                "notes": _notes(plan, planned, files, last),
            }
        )
    digest = recipe_digest(plan)
    held: Sequence[str] = ()
    if digest not in [version.recipe_sha256 for version in (last, *waiting) if version]:  # those were in balance
        source = zip(plan.stages[0].parts, tables["source"].parts, strict=True)
        check_balance(plan, {p.number: f.rows for p, f in source if p.number is not None}, frozenset(known))
    if last is None or last.recipe_sha256 != digest:  # else it is that version, which counts already
        held = tripped(plan.recipe.guards, dataset, {name: table.parts for name, table in tables.items()}, last)
    return dataset.publish(
        tables,
        VersionFacts(recipe_text, digest, code_version(), plan.inputs, facts, plan.recipe.seed),
        held,
    )


def _notes(plan: Plan, planned: PlannedStage, files: Sequence[PartFile], last: Version | None) -> dict[str, Any]:
    """Return what a stage noted."""
    if planned is plan.stages[0]:
        return recorded(plan.notes, planned.parts, files, last)
    return {k: v for f in files for k, v in f.notes.items()} if isinstance(planned.stage, TableStage) else {}


def _known_parts(dataset: Dataset, last: Version | None) -> dict[str, PartFile]:
    """Return the parts of the last version: their footers need not be read again."""
    return {f.path: f for table in last.tables for f in dataset.files(last, table)} if last else {}


def recipe_digest(plan: Plan) -> str:
    """Return the SHA-256 of what a plan would publish: every part of every stage, by fingerprint."""
    parts = [[s.stage.name, part_path(s.stage.table, p.fingerprint)] for s in plan.stages for p in s.parts]
    return hashlib.sha256(repr(parts).encode()).hexdigest()
