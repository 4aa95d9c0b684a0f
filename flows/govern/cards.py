"""Make the data cards of versions with taken-down rows again, from the current content of their tables."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import TypeAdapter

from catalog.dataset import Dataset
from catalog.edges import saved_from
from catalog.lookup import schema_of
from catalog.parts import PartWriter
from catalog.published import pieces_of
from catalog.takedown.scrub import Scrubber
from catalog.version import Version
from flows.build.report import PAGES, REPORT, page_path, run_report, saved_report, write_report
from tasks.report import AnyReport
from tasks.stage import TableStage
from tasks.vectors.seeds import derived_seed

Say = Callable[[str], object]


def remake(dataset: Dataset, versions: Collection[int], say: Say) -> None:
    """Make the report tables of some versions again; a table that cannot be made is emptied."""
    done: set[str] = set()
    for version in reversed(dataset.versions()):
        for path in [f.path for f in dataset.files(version, REPORT)] if REPORT in version.tables else ():
            if path in done:
                continue
            done.add(path)
            if version.number in versions:
                try:
                    _remake(dataset, version, path)
                except Exception as error:  # noqa: BLE001  # a recipe of another release, for example: the rows must be removed anyway
                    say(f"the report of {version.label} cannot be made again and was emptied: {error}")
                    schema = schema_of(dataset.storage, [path])
                    with PartWriter(dataset.storage, REPORT, _fingerprint(path), schema):
                        pass
    there = (f"{REPORT}/{name}.parquet" for name in dataset.finished(REPORT))
    dataset.storage.delete(path for path in list(there) if path not in done)


def _remake(dataset: Dataset, version: Version, path: str) -> None:
    """Run a version's report stage again over what its tables hold now, into the same part."""
    at, facts = next((n, s) for n, s in enumerate(version.stages) if s["table"] == REPORT)
    stage = _stage(version, facts)
    before = dict.fromkeys(s["table"] for s in version.stages[:at] if s["table"] in version.tables)
    tables = {table: pieces_of(dataset, version, table) for table in before}
    seed = version.seed if saved_from(version.recipe) else derived_seed(version.seed, stage.name)
    names = [str(s["name"]) for s in version.stages[:at]]
    run_report(dataset.storage, stage, tables, seed, _fingerprint(path), names)


def _stage(version: Version, facts: Mapping[str, Any]) -> TableStage:
    """Return the stage that made the card of a version, as the version says."""
    if (label := saved_from(version.recipe)) is not None:
        return saved_report(label)
    stage: TableStage = TypeAdapter(AnyReport).validate_python(facts["parameters"])
    return stage


def _fingerprint(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".parquet")


def redraw(dataset: Dataset, versions: Collection[int], say: Say) -> None:
    """Render the pages of some versions, and of the last one, again; a page that cannot be rendered is removed."""
    known = {version.number: version for version in dataset.versions()}
    for path, number in _drawn(dataset).items():
        version = known.get(number)
        if version is None:
            dataset.storage.delete([path])
        elif number in versions:
            _draw(dataset, version, path, say)
    if known:
        last = max(known)
        _draw(dataset, known[last], page_path(last), say)


def redraw_mentioning(dataset: Dataset, scrubber: Scrubber, say: Say) -> None:
    """Render the pages that show one of the words again, for example in the recipe: their data no longer has it."""
    known = {version.number: version for version in dataset.versions()}
    for path, number in _drawn(dataset).items():
        if scrubber.finds(dataset.storage.read(path).decode("utf-8", "replace")) and number in known:
            _draw(dataset, known[number], path, say)


def _drawn(dataset: Dataset) -> dict[str, int]:
    """Return path -> version of the pages that there are; -1 where the name is no version's."""
    names = {path: path.rpartition("/")[2].partition(".")[0] for path in dataset.storage.list(PAGES)}
    return {path: int(name) if name.isdecimal() else -1 for path, name in names.items()}


def _draw(dataset: Dataset, version: Version, path: str, say: Say) -> None:
    try:
        drawn = write_report(dataset, version) is not None
    except Exception as error:  # noqa: BLE001  # whatever it is, the old page may show erased rows
        say(f"the report of {version.label} cannot be drawn and was removed: {error}")
        drawn = False
    if not drawn:
        dataset.storage.delete([path])
