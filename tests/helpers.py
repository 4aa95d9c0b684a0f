"""What several tests need: a place for a TableStage to run in, and small tables."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.inputs import Inputs
from flows.recipe.recipe import Recipe, parse, read_text
from tasks.stage import Columns, Reducer


def recipe_in(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe in a file."""
    return parse(read_text(path), str(path), overrides)


class LocalRun:
    """A `tasks.stage.Run` in this process. Facts that were noted are in `notes`."""

    def __init__(self, folder: Path, seed: int = 0, device: str = "cpu", inputs: Inputs | None = None) -> None:
        self.seed = seed
        self.device = device
        self.stages: tuple[str, ...] = ()
        self.scratch = folder / "scratch"
        self.checkpoints = folder / "checkpoints"
        self.notes: dict[str, Any] = {}
        self.progressed: list[tuple[int, int, str]] = []
        self._inputs = inputs
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def progress(self, done: int, total: int, unit: str = "rows") -> None:
        self.progressed.append((done, total, unit))

    def note(self, **facts: Any) -> None:
        self.notes |= facts

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)

    def reduce(self, reducer: Reducer[Any, Any], columns: Columns) -> Any:
        assert self._inputs is not None, "give LocalRun the inputs to reduce over"
        state = reducer.init()
        for batch in self._inputs.batches(columns):
            state = reducer.update(state, batch)
        return reducer.compute(state)


def check_numbers(decisions: pa.Table) -> None:
    """Fail unless every number of a decision is in its evidence, as it is or rounded to four digits."""
    for row in decisions.select(["evidence", "numbers"]).to_pylist(maps_as_pydicts="strict"):
        for name, number in (row["numbers"] or {}).items():
            shown = {f"{number:g}", f"{number:.0f}", f"{round(number, 4):g}", f"{round(number, 4)}"}
            assert any(text in row["evidence"] for text in shown), (name, number, row["evidence"])


def wait_for(condition: Callable[[], Any], limit_s: float = 120) -> Any:
    """Return what a condition gives, once it gives something true. Fails after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")
