"""Displays of a build's progress: `Display` shows nothing, `RichDisplay` draws bars on a terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from catalog.schema import role
from catalog.wording import amount

if TYPE_CHECKING:
    from collections.abc import Collection

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from catalog.dataset import Dataset
    from catalog.parts import PartFile
    from catalog.version import Version
    from flows.build.plan import Plan, PlannedPart, PlannedStage


class Bar:
    """Receives the progress of one stage. This one ignores it."""

    def part(self, part: "PlannedPart", file: "PartFile") -> None:
        """Count a part that was written."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """Show how much of a stage over whole tables is done."""


class Display:
    """Receives the messages and the progress of a build. This one ignores them."""

    def message(self, text: str) -> None:
        """Show one line."""

    def plan(self, plan: "Plan") -> None:
        """Show the plan."""

    @contextmanager
    def stage(self, planned: "PlannedStage") -> Iterator[Bar]:
        """Show a stage, which runs while the block does; give the bar that receives its progress."""
        yield Bar()

    def published(self, version: "Version", report: str | None) -> None:
        """Show the version that the build published."""


class Displays(Display):
    """Passes everything to several displays."""

    def __init__(self, *displays: Display) -> None:
        self._displays = displays

    def message(self, text: str) -> None:
        for each in self._displays:
            each.message(text)

    def plan(self, plan: "Plan") -> None:
        for each in self._displays:
            each.plan(plan)

    @contextmanager
    def stage(self, planned: "PlannedStage") -> Iterator[Bar]:
        from contextlib import ExitStack

        with ExitStack() as stack:
            yield _Bars([stack.enter_context(each.stage(planned)) for each in self._displays])

    def published(self, version: "Version", report: str | None) -> None:
        for each in self._displays:
            each.published(version, report)


class _Bars(Bar):
    def __init__(self, bars: list[Bar]) -> None:
        self._bars = bars

    def part(self, part: "PlannedPart", file: "PartFile") -> None:
        for bar in self._bars:
            bar.part(part, file)

    def progress(self, done: int, total: int, unit: str) -> None:
        for bar in self._bars:
            bar.progress(done, total, unit)


class RichDisplay(Display):
    """Draws bars on a terminal; elsewhere prints lines. All of it on standard error."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self._progress: RichProgress | None = None
        self._dataset: Dataset | None = None

    def message(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def plan(self, plan: "Plan") -> None:
        self._dataset = plan.dataset
        parts = sum(len(s.parts) for s in plan.stages)
        missing = sum(len(s.missing) for s in plan.stages)
        self.message(
            f"{plan.recipe.dataset}: {amount(parts, 'part')} in {amount(len(plan.stages), 'stage')}, {missing} to make"
        )
        for note in plan.notes:
            self.message(f"source: {note}")

    @contextmanager
    def stage(self, planned: "PlannedStage") -> Iterator[Bar]:
        name, missing = planned.stage.name, len(planned.missing)
        if not missing:
            self.console.print(f"[dim]{name:<14} cached ({amount(len(planned.parts), 'part')})[/dim]", highlight=False)
            yield Bar()
            return
        began_s = time.monotonic()
        with self._bars() as progress:
            bar = _RichBar(progress, progress.add_task(name, total=missing, unit="parts", note=""))
            yield bar
        if any(role(field) == "image" for field in planned.schema) and self._dataset is not None:
            bar.bytes += _images_of(self._dataset, bar.fingerprints)
        kept = f", {len(planned.finished)} cached" if planned.finished else ""
        seconds = time.monotonic() - began_s
        self.console.print(
            f"{name:<14} {bar.rows:>10,} rows  {bar.bytes / 1e6:>9,.1f} MB  {seconds:>7.1f} s  "
            f"({amount(missing, 'part')}{kept})",
            highlight=False,
        )

    def _bars(self) -> "RichProgress":
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        return Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def published(self, version: "Version", report: str | None) -> None:
        rows: Any = version.tables["samples"].rows if "samples" in version.tables else 0
        self.message(f"published {version.label}: {amount(rows, 'sample')}" + (f"; report: {report}" if report else ""))


class _RichBar(Bar):
    def __init__(self, progress: "RichProgress", task: "TaskID") -> None:
        self._progress = progress
        self._task = task
        self.rows = self.bytes = 0
        self.fingerprints: list[str] = []

    def part(self, part: "PlannedPart", file: "PartFile") -> None:
        self.fingerprints.append(part.fingerprint)
        self.rows += file.rows
        self.bytes += file.bytes
        self._progress.advance(self._task)

    def progress(self, done: int, total: int, unit: str) -> None:
        self._progress.update(self._task, completed=done, total=total, unit=unit)


def _images_of(dataset: "Dataset", fingerprints: "Collection[str]") -> int:
    """Return the size in bytes of the shards that parts just made wrote."""
    from catalog.shards import FINGERPRINT_CHARS
    from catalog.sizes import shard_bytes

    mine = {fingerprint[:FINGERPRINT_CHARS] for fingerprint in fingerprints}
    return sum(size for stem, size in shard_bytes(dataset).items() if stem.partition("-")[2] in mine)
