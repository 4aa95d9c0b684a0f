"""`espalier verify`: check files, render the result, and show progress while files are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from catalog.dataset import Catalog
from catalog.errors import UserError
from catalog.findings import Findings
from catalog.repair import Mended
from catalog.repair import repair as repair_dataset
from catalog.verify import Progress, Verifier
from catalog.wording import amount


def verify(catalog: Catalog, label: str, repair: bool = False) -> tuple[Findings, Mended | None]:
    """Check a dataset (all of its versions), or one version, `laion@3`; with `repair`, repair the dataset.

    Raises UserError if there is no such version, or for `repair` of a single version.
    """
    name, at, _ = label.partition("@")
    if at and repair:
        raise UserError(f"versions share files, so --repair works on a whole dataset: espalier verify {name} --repair")
    number = catalog.resolve(label).number if at else None
    dataset = catalog.existing(name)
    from tasks.images import decode_fault

    with _bar() as progress:
        if repair:
            return repair_dataset(dataset, decode_fault, progress)
        return Verifier(dataset, decode_fault, progress).run(number), None


def is_settled(findings: Findings, mended: Mended | None) -> bool:
    """Return whether nothing is damaged, or all damaged files were restored or will be made again."""
    return findings.is_sound or (mended is not None and not mended.lost)


def lines(findings: Findings, mended: Mended | None) -> Iterator[str]:
    """Yield one line a damaged file with the action taken, then a summary."""
    yield from map(str, findings.damages)
    name = findings.label.partition("@")[0]
    if mended is not None:
        yield from (f"{path}: restored" for path in mended.restored)
        yield from (f"{path}: set aside in _quarantine, the next build makes it again" for path in mended.set_aside)
        yield from mended.lost
    old = f", {findings.without_digest:,} of them have no digest and were decoded" if findings.without_digest else ""
    checked = f"{amount(findings.files, 'file')} ({findings.bytes / 1e6:,.1f} MB) checked{old}"
    damaged = amount(len(findings.damages), "damaged file")
    if findings.is_sound:
        yield f"{findings.label} is sound: {checked}"
    elif mended is None:
        yield (
            f"{findings.label}: {damaged}; {checked}; "
            f"`espalier verify {name} --repair` restores them or sets them aside, then build again"
        )
    else:
        again = "; build again" if mended.set_aside else ""
        yield f"{findings.label}: {damaged}; {checked}{again}"


def describe(findings: Findings, mended: Mended | None) -> dict[str, Any]:
    """Return the result as JSON values."""
    facts = vars(findings) | {"sound": findings.is_sound, "damages": [vars(damage) for damage in findings.damages]}
    return facts | ({} if mended is None else {"repair": vars(mended)})


@contextmanager
def _bar() -> Iterator[Progress]:
    """Provide a function that shows how many bytes were read, on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bars = Progress(TextColumn("verifying"), *columns, console=console, transient=True, disable=not console.is_terminal)
    with bars:
        task = bars.add_task("verify", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
