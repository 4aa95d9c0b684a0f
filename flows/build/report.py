"""The data card of a version: the report stage that makes its table, and the page that is drawn from it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from catalog.dataset import Dataset
from catalog.inputs import Inputs
from catalog.parts import PartFile
from catalog.pieces import Piece, Pieces
from catalog.storage import Storage
from catalog.version import Version
from flows.build.hints import command_for
from flows.build.plan import PlannedPart
from flows.build.worker import Work, make_table, one_by_one
from tasks.stage import TableStage

REPORT: Final = "report"
"""The table of a report stage."""
PAGES: Final = "_reports"
"""The folder of a dataset that has the pages of its data cards."""


def run_report(
    storage: Storage,
    stage: TableStage,
    tables: Mapping[str, Pieces],
    seed: int,
    fingerprint: str,
    before: Sequence[str] = (),
) -> PartFile:
    """Run a report stage in this process over tables as they are stored, outside of a build; return the part.

    `seed` is that of the stage (`tasks.vectors.seeds.derived_seed`); `fingerprint` names the part; `before` are
    the names of the stages that made the tables, in order.
    """
    available = {name: pieces.schema for name, pieces in tables.items()}
    columns = stage.inputs(available)
    reads = {name: tables[name] for name in (*columns, *stage.sides(available))}
    work = Work(stage, stage.output(available), columns, reads, (), storage, "cpu", seed, before=tuple(before))
    return make_table(work, PlannedPart(fingerprint), one_by_one, lambda done, total, unit: None)


def saved_report(label: str) -> TableStage:
    """Return the stage that makes the card of what a search of a version found."""
    from tasks.report import Report

    return Report(description=f"Saved from a search of {label}.")


def page_path(number: int) -> str:
    """Return the path of the page of a version's data card, relative to the dataset."""
    return f"{PAGES}/{number}.html"


def report_path(dataset: Dataset, version: Version) -> str | None:
    """Return the URI of the page of a version's data card, or None if there is no page."""
    path = page_path(version.number)
    return f"{dataset.storage.uri}/{path}" if dataset.storage.exists(path) else None


def write_report(dataset: Dataset, version: Version) -> str | None:
    """Render the version's data card and store its page; return its URI, or None if the version has no report."""
    card = draw_report(dataset, version)
    if card is None:
        return None
    path = page_path(version.number)
    dataset.storage.put(path, card)
    return f"{dataset.storage.uri}/{path}"


def draw_report(dataset: Dataset, version: Version) -> bytes | None:
    """Return the version's data card as HTML, or None if the version has no report. Writes nothing."""
    if REPORT not in version.tables:
        return None
    from tasks.report import Report

    schema, files = dataset.contents(version, REPORT)
    card = Inputs({REPORT: Pieces(schema, tuple(Piece(f.path) for f in files))}, (), dataset.storage).whole(REPORT)
    return Report.page(card, lineage(version), timings(dataset, version)).encode()


def write_report_or_warn(dataset: Dataset, version: Version, message: Callable[[str], object]) -> str | None:
    """Render the version's data card as `write_report` does; if that fails, show one line and return None.

    For commands that have published the version already, which an error in rendering must not make fail.
    """
    try:
        return write_report(dataset, version)
    except Exception as error:  # noqa: BLE001  # whatever it is, the version is published
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        command = command_for(dataset, f"report {version.label}")
        message(f"the report of {version.label} could not be drawn ({what}); `{command}` draws it again")
        return None


def lineage(version: Version) -> dict[str, Any]:
    """Return where a version comes from, as the report shows it.

    Rows and bytes of a table are what the version has now: a takedown may have erased some since it was built.
    """
    names = ("dataset", "created_at", "recipe", "code_version", "inputs", "seed")
    writers = Counter(stage["table"] for stage in version.stages)
    stages = [
        {**stage, "rows": version.tables[table].rows, "bytes": version.tables[table].bytes}
        if writers[table := stage["table"]] == 1 and table in version.tables
        else stage
        for stage in version.stages
    ]
    return {name: getattr(version, name) for name in names} | {"version": version.number, "stages": stages}


def timings(dataset: Dataset, version: Version) -> list[dict[str, Any]]:
    """Return what each stage of a version took, in the order of its stages, whatever ran since.

    That is the last run before the version was published that made some of the very parts that it has; runs of older
    releases do not record which parts they made, and are matched by the stage's name.
    """
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    for run in dataset.runs().to_pylist():
        if run["status"] == "completed" and run["parts_made"] and run["started_at"] <= version.created_at:
            found[run["stage"], run["fingerprint"]] = run
    of_stages = [found.get((s["name"], s["fingerprint"])) or found.get((s["name"], None)) for s in version.stages]
    return [run | {"parts": run["parts_made"], "cached_parts": run["parts_cached"]} for run in of_stages if run]
