"""Check whether guards of a recipe (`flows.recipe.guards`) hold a version, and make the error that explains it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from catalog.dataset import Dataset
from catalog.errors import HeldError
from catalog.parts import PartFile
from catalog.rejection import rejects_sql
from catalog.takedown.ledger import REASON as TAKEN_DOWN
from catalog.version import Version
from catalog.wording import amount
from flows.build.failed_rows import IMAGES, FailedRows, connected, count_failed, parts
from flows.build.hints import command_for
from flows.recipe.guards import ANY, Guards
from tasks.reasons import NETWORK, REASONS

_SAMPLES: Final = "samples"

Tables = Mapping[str, Sequence[PartFile]]
"""The parts of every table that a version would have."""


def tripped(guards: Guards, dataset: Dataset, tables: Tables, last: Version | None) -> tuple[str, ...]:
    """Return why guards hold what would be published, a sentence a guard; nothing where none does.

    Args:
        tables: the parts of every table that the version would consist of.
        last: the last version that is not held; None where there is none.
    """
    return tuple(_reasons(guards, dataset, tables, last))


def _reasons(guards: Guards, dataset: Dataset, tables: Tables, last: Version | None) -> Iterator[str]:
    rows = _rows(tables.get("source", ()))
    kept = _rows(tables.get(_SAMPLES, ()))
    if guards.no_samples and not kept:
        yield f"no_samples: none of its {rows:,} rows is kept"
    if guards.outage and (lost := _outage(dataset, tables.get(IMAGES, ()), last)):
        yield lost
    if guards.min_rows is not None and kept < guards.min_rows:
        yield f"min_rows: {amount(kept, 'row is', 'rows are')} kept, expected at least {guards.min_rows:,}"
    if guards.max_failed is not None and IMAGES in tables:
        yield from _too_many_failed(guards.max_failed, count_failed(dataset, tables[IMAGES]))
    if guards.max_change is not None and last is not None and _SAMPLES in last.tables:
        yield from _too_much_change(guards.max_change, dataset, tables.get(_SAMPLES, ()), last)


def _rows(files: Sequence[PartFile]) -> int:
    return sum(file.rows for file in files)


def _outage(dataset: Dataset, images: Sequence[PartFile], last: Version | None) -> str | None:
    """Return the sentence where every row that was tried since the last version failed for reasons of the network.

    Rows that had failed in the last version too (a retry that did not help) are none of them: nothing got worse.
    """
    before = dataset.files(last, IMAGES) if last and IMAGES in last.tables else []
    there, now = {file.path for file in before}, {file.path for file in images}
    fresh = [file for file in images if file.path not in there]
    found = count_failed(dataset, fresh) if fresh else FailedRows(0, {})
    if not found.rows or found.rows < found.of or not set(found.reasons) <= NETWORK:
        return None
    replaced = [file for file in before if file.path not in now]
    query = f"""select reason, count(*) as n from {parts(dataset, fresh)} anti join
        (select sample_id from {parts(dataset, replaced)} where {rejects_sql("status")}) using (sample_id)
        group by 1 order by 2 desc, 1"""
    with connected(dataset) as connection:
        lost: dict[str, int] = dict(connection.execute(query).fetchall())
    if not lost:
        return None
    named = ", ".join(f"{rows:,} {reason}" for reason, rows in lost.items())
    return f"outage: every row that was tried failed for reasons of the network ({named})"


def _too_many_failed(shares: Mapping[str, float], failed: FailedRows) -> Iterator[str]:
    for reason, share in sorted(shares.items()):
        rows = sum(n for r, n in failed.reasons.items() if r == reason or (reason == ANY and r != TAKEN_DOWN))
        if rows > share * failed.of:
            about = "" if reason == ANY else f" for {reason}"
            found = f"{rows:,} of {amount(failed.of, 'row')} ({_percent(rows / failed.of)}) failed{about}"
            yield f"max_failed: {found}, expected at most {_percent(share)}"


def _too_much_change(share: float, dataset: Dataset, samples: Sequence[PartFile], last: Version) -> Iterator[str]:
    before = dataset.files(last, _SAMPLES)
    if not _rows(before):
        return
    there, now = {file.path for file in before}, {file.path for file in samples}
    old = parts(dataset, [file for file in before if file.path not in now], "sample_id")
    new = parts(dataset, [file for file in samples if file.path not in there], "sample_id")
    query = f"""select (select count(*) from {old} anti join {new} using (sample_id)),
        (select count(*) from {new} anti join {old} using (sample_id))"""
    with connected(dataset) as connection:
        ((removed, added),) = connection.execute(query).fetchall()
    changed = (removed + added) / _rows(before)
    if changed > share:
        found = f"{removed:,} of the {amount(_rows(before), 'row')} of {last.label} are removed and {added:,} came in"
        yield f"max_change: {found} ({_percent(changed)}), expected at most {_percent(share)}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def held_error(dataset: Dataset, version: Version, failed: FailedRows | None, facts: Mapping[str, Any]) -> HeldError:
    """Return the error of a build whose version is held: why, and what may be done. `facts` are for --json."""
    last = dataset.last()
    stays = f"{last.label} stays the latest" if last else "there is no other version"
    ways = [f"`{command_for(dataset, f'approve {version.label}')}` makes it the latest"]
    may_help = [r for r in (failed.reasons if failed else ()) if r in REASONS and REASONS[r].retry != "never"]
    if may_help:
        retry = command_for(dataset, f"retry {version.label} --reason {','.join(may_help[:3])}")
        ways.append(f"`{retry}` tries failed rows again")
    return HeldError(f"{version.label} is held, and {stays}: {'; '.join(version.held)}. {'; '.join(ways)}", facts)
