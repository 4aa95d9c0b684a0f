"""Taking rows down: they leave every version, their bytes are gone, and no later build brings them back.

First the order is written down (`catalog.takedown`, digests and numbers only), then the steps are carried out, each of
which may be repeated. So after a kill at any moment the same command goes on; until then nobody can plan or build.
"""

import csv
import getpass
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from catalog import erase
from catalog.dataset import Dataset, Version
from catalog.erase import Found, Names, Order
from catalog.errors import BuildError, EspalierError, UserError, nearest
from catalog.inputs import Piece, Pieces
from catalog.lease import hold
from catalog.lookup import schema_of, spans
from catalog.parts import PartWriter
from catalog.schema import SAMPLE_BITS
from catalog.takedown import Ledger
from flows.build import write_report
from flows.plan import PlannedPart, stage_seed
from flows.worker import Work, make_table
from tasks.report import AnyReport
from tasks.stage import TableStage

if TYPE_CHECKING:
    from rich.console import RenderableType

Record = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")

COLUMNS: Final = ("url", "sample_id", "sha256")
"""What a file may name rows by; all of these columns that it has count."""
_REPORT: Final = "report"


def take_down(
    dataset: Dataset,
    names: Names | None,
    reason: str = "",
    copies: bool = True,
    dry_run: bool = False,
    message: Callable[[str], object] = lambda line: None,
) -> Record:
    """Take rows down, and return the record of it; with `dry_run`, what it would be.

    A takedown that was interrupted is carried through first; without `names` that is all. Raises UserError where there
    is nothing to do, BusyError while somebody builds, BuildError where something is left of the rows.
    """
    if dry_run and names is not None:
        ledger = Ledger.read(dataset.storage)
        return _facts(ledger, names, _found(dataset, ledger, names, copies), dataset, "", copies) | {"dry_run": True}
    with hold(dataset) as lease:
        ledger = Ledger.read(dataset.storage)
        resumed = None
        if ledger.pending is not None:
            message("going on with the takedown that was interrupted")
            resumed = carry_out(dataset, ledger, message)
            ledger = Ledger.read(dataset.storage)
        if names is None:
            if resumed is None:
                raise UserError("nothing to take down: name the rows with --file, like --file ids.csv")
            return resumed
        found = _found(dataset, ledger, names, copies)
        if resumed is not None and not found.rows.sample_ids:
            return resumed
        order = erase.order_for(dataset, found)
        facts = _facts(ledger, names, found, dataset, reason, copies, order)
        lease.check()
        ledger = ledger.ordered(found.rows.urls, found.rows.sha256, replace(order, facts=facts).to_json())
        ledger.save(dataset.storage)
        return carry_out(dataset, ledger, message)


def _found(dataset: Dataset, ledger: Ledger, names: Names, copies: bool) -> Found:
    """Return the rows that are meant. Raises UserError where no row is, and no name is left to remember."""
    found = erase.find(dataset, names, copies)
    fresh = [url for url in names.urls if ledger.url(url) not in ledger.urls]
    fresh += [digest for digest in names.sha256 if ledger.content(digest) not in ledger.contents]
    if not found.rows.sample_ids and not fresh:
        old = len(names) - len(names.sample_ids)
        said = f"{old:,} were taken down before" if old else "there is no such sample_id"
        raise UserError(f"no row of {dataset.name!r} has any of these {len(names):,} names: {said}")
    return found


def _facts(
    ledger: Ledger, names: Names, found: Found, dataset: Dataset, reason: str, copies: bool, order: Order | None = None
) -> Record:
    """Return what the record says: counts, digests and files, and nothing of the content."""
    order = order or erase.order_for(dataset, found)
    last = dataset.last()
    digests = [*map(ledger.url, found.rows.urls), *map(ledger.content, found.rows.sha256)]
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": _user(),
        "reason": ledger.ordered(found.rows.urls, (), {}).scrubbed(reason),
        "given": {"url": len(names.urls), "sha256": len(names.sha256), "sample_id": len(names.sample_ids)},
        "unknown": len(found.unknown),
        "samples": len(order.sample_ids),
        "copies": found.copies if copies else 0,
        "rows": dict(order.rows),
        "versions": list(order.versions),
        "files": [*order.parts, *order.spans],
        "digests": sorted(digests),
        "last_version": last.number if last else None,
    }


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def carry_out(dataset: Dataset, ledger: Ledger, message: Callable[[str], object]) -> Record:
    """Do what is pending, and keep the record. Only for whoever holds the dataset."""
    assert ledger.pending is not None
    order = Order.of_json(ledger.pending)
    told: Record = dict(order.facts)
    if order.sample_ids:
        erase.erase_shards(dataset, order)
        erase.erase_parts(dataset, order)
        erase.scrub(dataset, order, ledger)
        told["index"] = _forget(dataset, order)
        _remake_cards(dataset, order, message)
        erase.sweep(dataset)
        erase.settle(dataset, order)
        told["published"] = _publish(dataset, told["last_version"])
        _redraw(dataset, order, message)
        if left := erase.remaining(dataset, order, ledger):
            raise BuildError(f"something is left in {left[0]} ({len(left)} files): run the takedown again")
    ledger.done(told).save(dataset.storage)
    return told


def _publish(dataset: Dataset, before: int | None) -> str | None:
    """Publish the version without the rows, once; return its label."""
    last = dataset.last()
    if last is None:
        return None
    return (dataset.republish() if last.number == before else last).label


def _forget(dataset: Dataset, order: Order) -> list[str]:
    """Take the samples out of the search indexes."""
    if "_index" not in dataset.storage.folders():
        return []
    from flows.index import forget

    return forget(dataset, order.ids)


def _remake_cards(dataset: Dataset, order: Order, message: Callable[[str], object]) -> None:
    """Make the tables of the reports anew that may show such a row; one that cannot be made is emptied."""
    done: set[str] = set()
    for version in reversed(dataset.versions()):
        for path in [f.path for f in dataset.files(version, _REPORT)] if _REPORT in version.tables else ():
            if path in done:
                continue
            done.add(path)
            if version.number in order.versions:
                try:
                    _remake_card(dataset, version, path)
                except Exception as error:  # noqa: BLE001  # a recipe of another release, say: the rows must go anyway
                    message(f"the report of {version.label} cannot be made again and was emptied: {error}")
                    schema = schema_of(dataset.storage, [path])
                    with PartWriter(dataset.storage, _REPORT, _fingerprint(path), schema):
                        pass
    there = (f"{_REPORT}/{name}.parquet" for name in dataset.finished(_REPORT))
    dataset.storage.delete(path for path in list(there) if path not in done)


def _remake_card(dataset: Dataset, version: Version, path: str) -> None:
    """Run a version's report stage again over what its tables hold now, into the same part."""
    at, facts = next((n, s) for n, s in enumerate(version.stages) if s["table"] == _REPORT)
    stage: TableStage = TypeAdapter(AnyReport).validate_python(facts["parameters"])
    before = dict.fromkeys(s["table"] for s in version.stages[:at] if s["table"] in version.tables)
    tables = {table: _pieces(dataset, version, table) for table in before}
    available = {table: pieces.schema for table, pieces in tables.items()}
    columns = stage.inputs(available)
    reads = {name: tables[name] for name in (*columns, *stage.sides())}
    seed = stage_seed(version.seed, stage.name)
    work = Work(stage, stage.output(available), columns, reads, (), dataset.storage, "cpu", seed)
    make_table(work, PlannedPart(_fingerprint(path)), _one_by_one, lambda done, total, unit: None)


def _one_by_one(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    return map(function, items)


def _pieces(dataset: Dataset, version: Version, table: str) -> Pieces:
    paths = [file.path for file in dataset.files(version, table)]
    schema = schema_of(dataset.storage, paths) if paths else dataset.schema(version, table)
    if "sample_id" not in schema.names:
        return Pieces(schema, tuple(Piece(path) for path in paths))
    found = sorted((span, path) for path, span in spans(dataset.storage, paths).items())
    numbers = [((low >> SAMPLE_BITS, high >> SAMPLE_BITS), path) for (low, high), path in found]
    return Pieces(schema, tuple(Piece(path, low if low == high else None) for (low, high), path in numbers))


def _fingerprint(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".parquet")


def _redraw(dataset: Dataset, order: Order, message: Callable[[str], object]) -> None:
    """Draw the report pages anew of the versions that held such a row, and of the new one; others stay."""
    versions = {version.number: version for version in dataset.versions()}
    for path in dataset.storage.list("_reports"):
        number = path.rpartition("/")[2].partition(".")[0]
        version = versions.get(int(number)) if number.isdecimal() else None
        if version is not None and version.number not in order.versions:
            continue
        if version is None or not _drawn(dataset, version, message):
            dataset.storage.delete([path])
    if versions:
        _drawn(dataset, versions[max(versions)], message)


def _drawn(dataset: Dataset, version: Version, message: Callable[[str], object]) -> bool:
    try:
        return write_report(dataset, version) is not None
    except Exception as error:  # noqa: BLE001  # an emptied card
        message(f"the report of {version.label} cannot be drawn and was removed: {error}")
        return False


def records(dataset: Dataset) -> list[Record]:
    """Return the takedowns of a dataset as a table shows them, oldest first."""
    ledger = Ledger.read(dataset.storage)
    pending = [Order.of_json(ledger.pending).facts] if ledger.pending else []
    return [
        {
            "at": told["at"],
            "by": told["by"],
            "reason": told["reason"],
            "samples": told["samples"],
            "copies": told["copies"],
            "files": len(told["files"]),
            "versions": ", ".join(map(str, told["versions"])),
            "published": told.get("published"),
            "state": "interrupted" if told in pending else "done",
        }
        for told in (*ledger.records, *pending)
    ]


def render(told: Record) -> "RenderableType":
    """Return a record as a terminal shows it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    verb = "would be taken down" if told.get("dry_run") else "taken down"
    copies = f", {told['copies']:,} of them copies of rows that were named" if told["copies"] else ""
    head = Text(f"{told['samples']:,} samples {verb}{copies}", style="bold")
    table = Table(box=None, header_style="bold")
    table.add_column("table")
    table.add_column("rows", justify="right")
    for name, rows in told["rows"].items():
        table.add_row(name, f"{rows:,}")
    done = "would be rewritten" if told.get("dry_run") else "rewritten"
    lines = [f"{len(told['files']):,} files {done}; versions {', '.join(map(str, told['versions'])) or 'none'}"]
    if told["unknown"]:
        lines.append(f"{told['unknown']:,} names are of no row; URLs and digests are remembered and will not come in")
    lines += told.get("index", [])
    if told.get("published"):
        lines.append(f"{told['published']} is published without them")
    return Group(head, table, *map(Text, lines)) if told["rows"] else Group(head, *map(Text, lines))


def read_names(path: str) -> Names:
    """Return the rows that a file names: columns url, sample_id, sha256 (Parquet, or CSV with a header), else lines.

    Raises UserError where it cannot be read, names nothing, or a sample_id is no number.
    """
    try:
        columns = _parquet_columns(path) if path.lower().endswith((".parquet", ".pq")) else _text_columns(path)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, EspalierError):
            raise
        raise UserError(f"cannot read {path!r}: {str(error).splitlines()[0]}") from None
    if bad := next((v for v in columns["sample_id"] if not v.isdecimal()), None):
        raise UserError(f"{path}: {bad!r} is no sample_id; expected a number")
    urls, digests = Names(frozenset(columns["url"])), Names.of(columns["sha256"])
    if digests.urls or digests.sample_ids:
        raise UserError(f"{path}: {next(iter(digests.urls | set(map(str, digests.sample_ids))))!r} is no SHA-256")
    names = urls.joined(digests).joined(Names.of(columns["sample_id"])).joined(Names.of(columns["lines"]))
    if not names:
        raise UserError(f"{path} names no row")
    return names


def _parquet_columns(path: str) -> dict[str, list[str]]:
    with pq.ParquetFile(path) as file:
        there = file.schema_arrow.names
        rows = file.read([name for name in COLUMNS if name in there])
    if not rows.column_names:
        raise UserError(f"{path} has no column url, sample_id or sha256{nearest('url', there)}")
    return _columns(
        {name: [str(v) for v in rows.column(name).to_pylist() if v is not None] for name in rows.column_names}
    )


def _text_columns(path: str) -> dict[str, list[str]]:
    text = Path(path).read_text("utf-8-sig")
    lines = text.splitlines()
    header = [cell.strip().lower() for cell in next(csv.reader(lines[:1]), [])]
    if not set(header) & set(COLUMNS):
        if len(header) > 1 and not any("://" in line for line in lines):  # a table, and no list of names
            raise UserError(f"{path} has no column url, sample_id or sha256{nearest('url', header)}")
        return _columns({"lines": lines})
    rows = list(csv.reader(StringIO(text)))[1:]
    return _columns(
        {name: [row[header.index(name)] for row in rows if len(row) > header.index(name)] for name in COLUMNS
         if name in header}
    )  # fmt: skip


def _columns(found: dict[str, list[str]]) -> dict[str, list[str]]:
    stripped = {name: [v.strip() for v in values if v.strip()] for name, values in found.items()}
    return {name: stripped.get(name, []) for name in (*COLUMNS, "lines")}
