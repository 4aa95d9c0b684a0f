"""Commands that build a dataset or show what a build would do: build, plan, approve, retry, schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.wording import amount
from flows.cli.arguments import AsJson, CatalogUri, Executor, Overrides, RecipePath, open_catalog
from flows.cli.console import INTERRUPTED, fail
from flows.cli.output import print_json, print_rich

if TYPE_CHECKING:
    from flows.build.spec import BuildSpec


def build(
    recipe: RecipePath,
    catalog: CatalogUri = None,
    set_: Overrides = None,
    executor: Annotated[Executor, typer.Option(help="where parts are made")] = Executor.RAY,
    wait: Annotated[bool, typer.Option("--wait", help="wait for another builder of the same dataset")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the plan and stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Build what is not built yet, and publish a new version.

    A version that trips a guard of the recipe (`guards:`) is held: stored, readable
    as DATASET@N, and not the latest until `espalier approve DATASET@N`. Exit code 1.
    """
    if dry_run:
        return plan(recipe, catalog, set_, as_json)
    from flows.build.build import up_to_date
    from flows.build.context import BuildContext
    from flows.build.progress import RichDisplay
    from flows.build.spec import BuildSpec
    from flows.schedule.local_run import build_under_prefect

    spec = BuildSpec.read(
        recipe, catalog=catalog, overrides=tuple(set_ or ()), executor=executor.value, wait_s=None if wait else 0.0
    )
    show = RichDisplay()
    with _printed_if_held(as_json):
        outcome = up_to_date(spec)
        if outcome:
            show.message(f"{outcome.version.label} is up to date")
            if line := outcome.last_line(spec.dataset(create=None)):
                show.message(line)
        else:
            outcome = build_under_prefect(spec, BuildContext(show))
    if as_json:
        print_json(outcome.describe())
    return None


def plan(
    recipe: RecipePath,
    catalog: CatalogUri = None,
    set_: Overrides = None,
    as_json: AsJson = False,
    probe: Annotated[
        int | None,
        typer.Option(metavar="ROWS", help="build this many rows (such as 1000) and estimate the whole build from them"),
    ] = None,
    executor: Annotated[Executor, typer.Option(help="where a probe's parts are made")] = Executor.RAY,
) -> None:
    """Show what a build would do: cached or to run, parts, rows, bytes, time and cost.

    Without --probe nothing runs: the numbers are those of earlier builds
    of the dataset, and `unknown` where there are none.

    With --probe ROWS, that many rows from all over the source are built for
    real, downloads too, and half as many again to see how much times vary;
    all of it is thrown away. From that come rows, bytes, time, GPU hours and
    cost of building the whole from nothing, with their 90 % intervals.
    Costs require `prices` in the recipe.
    """
    from flows.build.plan import make_plan
    from flows.build.source_notes import lines
    from flows.build.spec import BuildSpec
    from flows.forecast.history import estimate, render

    spec = BuildSpec.read(recipe, catalog=catalog, overrides=tuple(set_ or ()), executor=executor.value)
    if probe is not None:
        return _probe(spec, probe, as_json)
    made = make_plan(spec.checked, spec.dataset(create=None))
    estimates = estimate(made)
    if as_json:
        print_json([vars(e) for e in estimates])
    else:
        print_rich(render(estimates, spec.checked.prices))
        print(*lines(made.notes), sep="\n", end="\n" if made.notes else "")
    return None


def approve(
    label: Annotated[str, typer.Argument(metavar="DATASET@N", help="a version that is held")],
    catalog: CatalogUri = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait for a builder of the dataset")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a version count that a guard holds: it is the latest then, unless a later one is."""
    from flows.govern.approve import approve as let_count
    from flows.govern.approve import describe, summary

    approved, last = let_count(open_catalog(catalog), label, None if wait else 0.0)
    if as_json:
        print_json(describe(approved, last))
    else:
        print(summary(approved, last))


def retry(
    label: Annotated[str, typer.Argument(metavar="DATASET[@N]", help="a dataset, or a version of it that is held")],
    reason: Annotated[str, typer.Option(help="reasons to try again, with commas: timeout,dns")],
    catalog: CatalogUri = None,
    executor: Annotated[Executor, typer.Option(help="where parts are made")] = Executor.RAY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show rows and parts, stage by stage, and stop")] = False,
    as_json: AsJson = False,
) -> None:
    """Try failed rows again, just those of the given reasons, and publish a new version.

    `espalier errors DATASET` says which reasons there are. A reason may be
    cut short where one name alone begins so: dns for dns_failed. With @N the
    rows and the recipe are those of that version, like one that is held.

    Only these rows are fetched, but the parts that they are in are made again
    by every stage: --dry-run says how many that is.
    """
    from flows.build.context import BuildContext
    from flows.build.progress import RichDisplay
    from flows.explore.failures import begin_retry, plan_retry
    from flows.forecast.history import render
    from flows.schedule.local_run import build_under_prefect

    show = RichDisplay()
    opened = open_catalog(catalog)
    version = opened.resolve(label)
    at = version if "@" in label else None
    begin = plan_retry if dry_run else begin_retry
    found = begin(opened.existing(version.dataset), reason.split(","), catalog, executor.value, at)
    if dry_run and as_json:
        return print_json(found.describe())
    if dry_run:
        print(found.line())
        return print_rich(render(found.estimates(), found.spec.checked.prices))
    show.message(found.line())
    with _printed_if_held(as_json, rows_tried=found.rows):
        outcome = build_under_prefect(found.spec, BuildContext(show))
    if as_json:
        print_json(outcome.describe() | {"rows_tried": found.rows})
    return None


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from flows.recipe.recipe import json_schema

    print(json_schema())


@contextmanager
def _printed_if_held(as_json: bool, **more: Any) -> "Iterator[None]":
    """With --json, print the facts of a version that is held before its error ends the command."""
    from catalog.errors import HeldError

    try:
        yield
    except HeldError as held:
        if as_json:
            print_json(held.facts | more)
        raise


def _probe(spec: "BuildSpec", rows: int, as_json: bool) -> None:
    from flows.build.progress import RichDisplay
    from flows.forecast.probe import probe
    from flows.forecast.rendering import describe, render

    prices = spec.checked.prices
    try:
        found = probe(spec, rows, RichDisplay())
    except KeyboardInterrupt:
        fail("stopped; the probe left nothing behind", INTERRUPTED)
    if as_json:
        facts = {"probe_rows": found.rows, "source_rows": found.source_rows, "notes": list(found.notes)}
        print_json(facts | describe(found.forecast, prices))
        return
    whole = "all of them were built" if found.is_whole else f"estimated from {found.rows:,} of them"
    print(f"for {amount(found.source_rows, 'row')}, built from nothing; {whole}\n")
    print_rich(render(found.forecast, prices))
    for line in found.notes:
        print(line)
