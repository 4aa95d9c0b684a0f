"""The command line: `espalier <command>`. Results go to standard output, everything else to standard error.

A user's mistake is one line and exit code 2; a build that could not finish is exit code 1; --debug shows the traceback.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalog.wording import amount
from flows.cli.console import CLOSED, INTERRUPTED, explained, fail, finish, give_up, is_closed, reopen_closed
from flows.explore.formats import Format

if TYPE_CHECKING:
    from collections.abc import Iterator

    from catalog.dataset import Catalog, Dataset
    from flows.build.build import Order, Outcome

app = typer.Typer(
    name="espalier",
    help="Build, prune, version and query image-text datasets. A recipe (YAML) defines a dataset.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Executor(StrEnum):
    """Where parts are made."""

    RAY = "ray"
    INLINE = "inline"


class Copies(StrEnum):
    """Which copies a takedown erases too; each with those of the one before."""

    NONE = "none"
    BYTES = "bytes"
    PIXELS = "pixels"
    DUPLICATES = "duplicates"


RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")]
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="the name of a dataset in the catalog")]
Label = Annotated[str, typer.Argument(metavar="DATASET[@N]", help="a dataset, or one version of it")]
CatalogUri = Annotated[
    str | None,
    typer.Option("--catalog", envvar="ESPALIER_CATALOG", help="folder or object-store URI; default: ./datasets"),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="change the recipe; may be repeated")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def _version(asked: bool) -> None:
    if asked:
        from flows.build.code_version import code_version

        print(f"espalier {code_version()}")
        raise typer.Exit


@app.callback()
def root(
    debug: Debug = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    """Build, prune, version and query image-text datasets. A recipe (YAML) defines a dataset."""


def main() -> None:
    """Run the command line."""
    debug = "--debug" in sys.argv
    sys.argv = [a for a in sys.argv if a != "--debug"]
    if bad := next((a for a in sys.argv if not _is_text(a)), None):
        fail(f"{os.fsencode(bad)!r} is no UTF-8 text", 2)
    try:
        code = app(standalone_mode=False, prog_name="espalier")
    except SystemExit as exit_:  # typer makes 1 of a closed pipe
        sys.exit(CLOSED if is_closed() else exit_.code)
    except BaseException as error:
        if debug and (trace := getattr(error, "traceback", "")):
            print(trace, file=sys.stderr)
        fail(*explained(error), debug)
    if code == INTERRUPTED:  # typer gives exit codes back, and makes one of Ctrl-C
        fail(*explained(KeyboardInterrupt()))
    sys.exit(code if isinstance(code, int) else 0)


def _is_text(argument: str) -> bool:
    """Say whether an argument can be written as text: the shell hands any bytes on."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def entry() -> None:
    """Run the command line as a program."""
    from catalog.duck import on_stuck

    reopen_closed()
    on_stuck(give_up)
    code: object = 0
    try:
        main()
    except SystemExit as exit_:
        code = exit_.code
    finish(code)


@app.command()
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
    from flows.build.build import Order, display, up_to_date
    from flows.build.progress import RichDisplay

    order = Order.read(
        recipe, catalog=catalog, overrides=tuple(set_ or ()), executor=executor.value, wait_s=None if wait else 0.0
    )
    show = RichDisplay()
    display.set(show)
    with _told_if_held(as_json):
        outcome = up_to_date(order)
        if outcome:
            show.message(f"{outcome.version.label} is up to date")
            if line := outcome.last_line(order.open(order.load(), create=None)):
                show.message(line)
        else:
            outcome = _build_under_prefect(order, show.message)
    if as_json:
        _print_json(outcome.describe())
    return None


@contextmanager
def _told_if_held(as_json: bool, **more: Any) -> "Iterator[None]":
    """Print the facts of a version that is held, as --json asks for, before its error ends the command."""
    from catalog.errors import HeldError

    try:
        yield
    except HeldError as held:
        if as_json:
            _print_json(held.facts | more)
        raise


def _build_under_prefect(order: "Order", message: Callable[[str], Any]) -> "Outcome":
    from flows.schedule.prefect_server import prefect_api

    with prefect_api(message):
        from flows.schedule.prefect_flow import build_flow

        return build_flow(order)


@app.command()
def plan(
    recipe: RecipePath,
    catalog: CatalogUri = None,
    set_: Overrides = None,
    as_json: AsJson = False,
    probe: Annotated[
        int | None,
        typer.Option(metavar="ROWS", help="build so many rows (1000, say) for real and estimate the whole from them"),
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
    from flows.build.build import Order
    from flows.build.plan import make_plan
    from flows.build.source_notes import lines
    from flows.forecast.history import estimate, render

    order = Order.read(recipe, catalog=catalog, overrides=tuple(set_ or ()), executor=executor.value)
    checked = order.load()
    if probe is not None:
        return _probe(order, probe, as_json)
    made = make_plan(checked, order.open(checked, create=None))
    estimates = estimate(made)
    if as_json:
        _print_json([vars(e) for e in estimates])
    else:
        _print_rich(render(estimates, checked.prices))
        print(*lines(made.notes), sep="\n", end="\n" if made.notes else "")
    return None


def _probe(order: "Order", rows: int, as_json: bool) -> None:
    from flows.build.progress import RichDisplay
    from flows.forecast.forecast import describe, render
    from flows.forecast.probe import probe

    prices = order.load().prices
    try:
        found = probe(order, rows, RichDisplay())
    except KeyboardInterrupt:
        fail("stopped; the probe left nothing behind", INTERRUPTED)
    if as_json:
        facts = {"probe_rows": found.rows, "source_rows": found.source_rows, "notes": list(found.notes)}
        _print_json(facts | describe(found.told, prices))
        return
    whole = "all of them were built" if found.is_whole else f"estimated from {found.rows:,} of them"
    print(f"for {amount(found.source_rows, 'row')}, built from nothing; {whole}\n")
    _print_rich(render(found.told, prices))
    for line in found.notes:
        print(line)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="SQL over DATASET.TABLE; read-only")],
    catalog: CatalogUri = None,
    at: Annotated[int | None, typer.Option(min=1, help="read this version of the datasets")] = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="default: as the ending of --output, else a table")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="write all rows to this file")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="rows shown as a table; files get all")] = 100,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="stop the query after this long; 0: never")] = 600,
    memory: Annotated[
        int | None, typer.Option(metavar="MB", min=64, help="spill to disk beyond; default: half of what there is")
    ] = None,
) -> None:
    """Query the tables of datasets with DuckDB.

    With -o, all rows are written to a .csv, .json, .jsonl, .parquet or .txt
    file, which appears when it is whole. A CSV has lists, structs, maps and
    vectors as JSON text, and blobs as base64.

    A dataset whose name is a word of SQL is written in double quotes:
    select * from "order".samples
    """
    from flows.explore.export import format_of, write_query
    from flows.explore.query import limits_of, versions_at

    opened = _catalog(catalog)
    limits = limits_of(timeout, memory)
    write_query(opened, query, versions_at(opened, query, at), limits, format_of(output, format_), output, limit)


@app.command()
def ls(catalog: CatalogUri = None, as_json: AsJson = False) -> None:
    """List the datasets of the catalog: last version, samples, versions, size with images, last build."""
    from flows.explore.ls import datasets

    _print_rows(datasets(_catalog(catalog)), as_json)


@app.command()
def versions(dataset: DatasetName, catalog: CatalogUri = None, as_json: AsJson = False) -> None:
    """List the versions of a dataset, with the size of their tables and images.

    One that is held is not the latest; `espalier show DATASET@N` says why it is held.
    """
    from flows.explore.ls import megabytes

    opened = _dataset(dataset, catalog)
    found = opened.versions()
    sizes = megabytes(opened, found)
    rows = [
        {
            "version": v.label,
            "created_at": v.created_at.isoformat(timespec="seconds"),
            "samples": v.tables["samples"].rows if "samples" in v.tables else None,
            "MB": sizes[v.number],
            "code": v.code_version,
            "recipe": v.recipe_sha256[:12],
            "state": "held" if v.is_held else "approved" if v.held else "",
            **({"held_for": list(v.held)} if as_json else {}),
        }
        for v in found
    ]
    _print_rows(rows, as_json)


@app.command()
def show(
    label: Label,
    catalog: CatalogUri = None,
    as_json: AsJson = False,
) -> None:
    """Show one version: its tables, recipe, code and inputs."""
    from flows.explore.show import describe, render

    version = _catalog(catalog).resolve(label)
    if as_json:
        _print_json(describe(version))
    else:
        _print_rich(render(version))


@app.command()
def diff(
    one: Annotated[str, typer.Argument(metavar="DATASET@N", help="a version; without @N the last one")],
    other: Annotated[str, typer.Argument(metavar="DATASET@M", help="the version that it is compared with")],
    catalog: CatalogUri = None,
    examples: Annotated[int, typer.Option(min=0, help="examples of each kind")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions: rows, and decisions by reason."""
    from catalog.diff import diff as compare
    from flows.explore.show import describe_diff, render_diff

    found = compare(_catalog(catalog), one, other, examples)
    if as_json:
        _print_json(describe_diff(found))
    else:
        _print_rich(render_diff(found))


@app.command()
def gc(
    dataset: DatasetName,
    catalog: CatalogUri = None,
    delete: Annotated[bool, typer.Option("--delete", help="delete it; default: only show what it is")] = False,
    keep_versions: Annotated[int | None, typer.Option(help="keep only this many of the newest versions")] = None,
    older_than_h: Annotated[float, typer.Option(help="keep younger files: a build may use them")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Remove what no version needs, and what verify --repair set aside. A dry run unless --delete is given."""
    from catalog.errors import UserError
    from catalog.gc import collect
    from catalog.gc import plan as find_garbage

    if not older_than_h >= 0:  # nan, too
        raise UserError(f"files cannot be {older_than_h:g} hours old: expected 0 or more")
    garbage = find_garbage(_dataset(dataset, catalog), older_than_s=older_than_h * 3600, keep_versions=keep_versions)
    if delete:
        collect(garbage)
    for number, users in garbage.used.items():
        print(f"{dataset}@{number} is kept: {', '.join(users)} has rows of it", file=sys.stderr)
    if as_json:
        _print_json({"files": list(garbage.files), "bytes": garbage.bytes, "deleted": delete, "used": garbage.used})
        return
    verb = "deleted" if delete else "would delete (--delete does it):"
    print(f"{verb} {amount(len(garbage.files), 'file')}, {garbage.bytes / 1e6:,.1f} MB")
    if garbage.quarantined:
        print(f"{len(garbage.quarantined)} of them are damaged files that `verify --repair` set aside:")
        print("\n".join(garbage.quarantined))


@app.command()
def errors(label: Label, catalog: CatalogUri = None, as_json: AsJson = False) -> None:
    """Show why rows of a dataset failed, and what may be tried again."""
    from flows.explore.failures import failures

    opened = _catalog(catalog)
    version = opened.resolve(label)
    _print_rows(failures(opened.existing(version.dataset), version), as_json)


@app.command()
def why(
    label: Label,
    row: Annotated[str, typer.Argument(metavar="URL|SAMPLE_ID", help="which row; a URL may name several")],
    catalog: CatalogUri = None,
    as_json: AsJson = False,
) -> None:
    """Explain a row: where it came from, what each stage decided, and why it was kept or rejected."""
    from flows.explore.why import render, stories

    told = stories(_catalog(catalog), label, row)
    if as_json:
        _print_json(told)
    else:
        _print_rich(render(told))


@app.command()
def approve(
    label: Annotated[str, typer.Argument(metavar="DATASET@N", help="a version that is held")],
    catalog: CatalogUri = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait for a builder of the dataset")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a version count that a guard holds: it is the latest then, unless a later one is."""
    from flows.govern.approve import approve as let_count
    from flows.govern.approve import describe, told

    approved, last = let_count(_catalog(catalog), label, None if wait else 0.0)
    if as_json:
        _print_json(describe(approved, last))
    else:
        print(told(approved, last))


@app.command()
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

    Only these rows are fetched, but the parts that they are in are made anew
    by every stage: --dry-run says how many that is.
    """
    from flows.build.build import display
    from flows.build.progress import RichDisplay
    from flows.explore.failures import begin_retry, plan_retry
    from flows.forecast.history import render

    show = RichDisplay()
    display.set(show)
    opened = _catalog(catalog)
    version = opened.resolve(label)
    at = version if "@" in label else None
    begin = plan_retry if dry_run else begin_retry
    found = begin(opened.existing(version.dataset), reason.split(","), catalog, executor.value, at)
    if dry_run and as_json:
        return _print_json(found.describe())
    if dry_run:
        print(found.line())
        return _print_rich(render(found.estimates(), found.order.load().prices))
    show.message(found.line())
    with _told_if_held(as_json, rows_tried=found.rows):
        outcome = _build_under_prefect(found.order, show.message)
    if as_json:
        _print_json(outcome.describe() | {"rows_tried": found.rows})
    return None


@app.command()
def search(
    label: Label,
    text: Annotated[str | None, typer.Option(help="find images that this text describes")] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="find images similar to this file")] = None,
    like: Annotated[int | None, typer.Option(metavar="SAMPLE_ID", help="find images similar to this sample's")] = None,
    catalog: CatalogUri = None,
    column: Annotated[str, typer.Option(help="embedding column; default: the first")] = "",
    top: Annotated[int, typer.Option(help="how many results")] = 20,
    where: Annotated[str, typer.Option(metavar="SQL", help="only rows of `samples` for which this holds")] = "",
    exact: Annotated[bool, typer.Option("--exact", help="compare every row, without the index")] = False,
    unique: Annotated[float | None, typer.Option(metavar="COSINE", help="show one of near-duplicates: 0.94")] = None,
    all_: Annotated[bool, typer.Option("--all", help="also rows that were rejected")] = False,
    save: Annotated[str | None, typer.Option(metavar="NAME", help="make a dataset of the results")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="write the results as an HTML page")] = None,
    open_: Annotated[bool, typer.Option("--open", help="show that page in the browser")] = False,
    as_json: AsJson = False,
) -> None:
    """Find samples by text, by an image, or by another sample."""
    from flows.explore.search import Query
    from flows.explore.search import search as run_search

    opened = _catalog(catalog)
    asked = Query(text, image, like, column, top, where, exact, unique, all_)
    if save is not None:
        from flows.explore.save import check_target
        from flows.explore.save import save as save_as

        check_target(opened, save)
    if html:
        from flows.explore.export import check_target as check_file

        check_file(html)
    found = run_search(opened, label, asked)
    print(f"{found.version.label}, {found.column}: {found.how}", file=sys.stderr)
    if html or open_:
        from flows.explore.gallery import render, show_page

        show_page(render(found, opened.existing(found.version.dataset)), html, open_)
    saved = None
    if save is not None:
        saved = save_as(opened, found, save, lambda line: print(line, file=sys.stderr)).label
        print(f"saved {amount(len(found.hits), 'sample')} as {saved}", file=sys.stderr)
    if as_json:
        _print_json(found.describe() | ({"saved": saved} if saved else {}))
    else:
        _print_rows([vars(hit) | {"score": round(hit.score, 4)} for hit in found.hits], False)


@app.command()
def index(
    label: Label,
    catalog: CatalogUri = None,
    column: Annotated[str, typer.Option(help="embedding column; default: the first")] = "",
    kind: Annotated[str, typer.Option(help="auto, flat, ivf, hnsw, ivfpq or opq")] = "auto",
    memory_mb: Annotated[float, typer.Option(help="memory that the index may use")] = 4000,
    recall: Annotated[float, typer.Option(help="share of the 10 nearest that a search must find")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Make or extend the index that `search` uses, and measure its recall."""
    from flows.build.progress import RichDisplay
    from flows.explore.index import budget_of, counted, render, update

    opened = _catalog(catalog)
    version = opened.resolve(label)
    budget = budget_of(kind, memory_mb, recall)
    show = RichDisplay()
    with counted(show.console) as progress:
        made = update(opened.existing(version.dataset), version, column, budget, progress, show.message)
    if as_json:
        _print_json(made.facts)
    else:
        print(render(made))


@app.command()
def verify(
    label: Annotated[str, typer.Argument(metavar="DATASET[@N]", help="a dataset, or one version of it")],
    repair: Annotated[bool, typer.Option("--repair", help="restore what is damaged, or set it aside")] = False,
    catalog: CatalogUri = None,
    as_json: AsJson = False,
) -> None:
    """Check every file against the sizes and digests that were recorded. Exit code 1: one line a damaged file.

    With --repair, logs and notes are restored from their copies, and other
    damaged files move to the folder _quarantine of the dataset: the next
    build makes them again. Exit code 0 then: nothing is lost.
    """
    from flows.govern.verify import describe, is_settled, lines
    from flows.govern.verify import verify as run_verify

    findings, mended = run_verify(_catalog(catalog), label, repair)
    if as_json:
        _print_json(describe(findings, mended))
    else:
        print("\n".join(lines(findings, mended)))
    sys.exit(0 if is_settled(findings, mended) else 1)


@app.command()
def takedown(
    dataset: DatasetName,
    file: Annotated[
        str | None,
        typer.Option("--file", help="csv, tsv or parquet whose header has url, sample_id or sha256 (or --column)"),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="KIND=NAME", help="a column and what it holds: url=link; may be repeated"),
    ] = None,
    reason: Annotated[str, typer.Option(help="why; kept with the record")] = "",
    copies: Annotated[
        Copies,
        typer.Option(help="other rows to erase: same bytes, pixels too, or also duplicates that they stand for"),
    ] = Copies.BYTES,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="erase without asking")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be erased and stop")] = False,
    list_: Annotated[bool, typer.Option("--list", help="show the takedowns of the dataset")] = False,
    catalog: CatalogUri = None,
    as_json: AsJson = False,
) -> None:
    """Erase rows from every version, for good, and keep a record without the content.

    Also from every dataset that has rows saved from them, or that they were saved from. What is reached is listed, and
    asked about on a terminal, before anything is erased. Without --file: go on with one that was interrupted.
    """
    from flows.govern.names_file import read_names
    from flows.govern.takedown import confirmation, records, render, take_down

    opened = _dataset(dataset, catalog)
    if list_:
        return _print_rows(records(opened), as_json)
    names = read_names(file, column or ()) if file else None
    confirm = confirmation(dataset, yes or dry_run or names is None)
    message: Callable[[str], None] = lambda line: print(line, file=sys.stderr)  # noqa: E731
    told = take_down(opened, names, reason, copies.value, dry_run, message, confirm)
    if as_json:
        _print_json(told)
    else:
        _print_rich(render(dataset, told))
    return None


@app.command()
def report(
    label: Label,
    catalog: CatalogUri = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="write the HTML to this file")] = None,
) -> None:
    """Write the data card of a version, and print its path."""
    from flows.explore.card import card_of

    print(card_of(_catalog(catalog), label, output))


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    print(recipe_schema())


@app.command()
def deploy(
    recipe: RecipePath,
    cron: Annotated[str, typer.Option(help='when to build, like "0 3 * * *"')],
    catalog: CatalogUri = None,
    set_: Overrides = None,
    timezone: Annotated[str, typer.Option(help="time zone of the schedule")] = "UTC",
    pool: Annotated[str, typer.Option(help="Prefect work pool; made if it is not there")] = "espalier",
    name: Annotated[str | None, typer.Option(help="name of the deployment; default: the dataset")] = None,
) -> None:
    """Register a scheduled build with Prefect; a worker picks it up."""
    from flows.build.build import Order
    from flows.schedule.deploy import deploy as register

    order = Order.read(recipe, catalog=catalog, overrides=tuple(set_ or ()))
    for line in register(order, cron, timezone, pool, name):
        print(line)


@app.command()
def worker(
    pool: Annotated[str, typer.Option(help="Prefect work pool of the deployments")] = "espalier",
    limit: Annotated[int | None, typer.Option(min=1, help="builds at once; default: no limit")] = None,
) -> None:
    """Run scheduled builds, until stopped. Runs that were killed are marked as crashed, so the next one may start."""
    from flows.schedule.prefect_worker import work

    sys.exit(work(pool, limit, lambda line: print(line, file=sys.stderr)))


@app.command()
def demo(
    catalog: CatalogUri = None,
    rows: Annotated[int, typer.Option(help="rows of the source")] = 3000,
    executor: Annotated[Executor, typer.Option(help="where parts are made")] = Executor.RAY,
    as_json: AsJson = False,
) -> None:
    """Build a dataset from a small local web server with every hazard of a crawl, and check the result."""
    from flows.demo.run import run

    sys.exit(run(catalog, rows, executor.value, as_json))


def recipe_schema() -> str:
    """Return the JSON Schema of recipes, as `configs/recipe.schema.json` has it."""
    from flows.recipe.recipe import Recipe

    return json.dumps(Recipe.model_json_schema(), indent=1, sort_keys=True)


def _catalog(uri: str | None) -> "Catalog":
    from catalog.dataset import DEFAULT_CATALOG, Catalog

    return Catalog(uri or DEFAULT_CATALOG)


def _dataset(name: str, uri: str | None) -> "Dataset":
    return _catalog(uri).existing(name)


def _print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(rows)
        return
    import pyarrow as pa

    from flows.explore.export import table_text

    print(table_text(pa.Table.from_pylist(rows), 1000) if rows else "nothing")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str, ensure_ascii=False))


def _print_rich(value: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 110))).print(value)
