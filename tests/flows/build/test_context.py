"""What belongs to one run of a build reaches every stage, and is no parameter of Prefect."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from catalog.dataset import Catalog
from flows.build.context import BuildContext
from flows.build.plan import PlannedStage
from flows.build.progress import Bar, Display
from flows.build.spec import BuildSpec
from tests.flows.conftest import Web


def test_each_context_is_another_run_and_shows_nothing_by_default(capfd: pytest.CaptureFixture[str]) -> None:
    one, other = BuildContext(), BuildContext()
    assert one.run_id != other.run_id
    assert len(bytes.fromhex(one.run_id)) == 16
    one.display.message("a message")
    assert capfd.readouterr() == ("", "")
    shown = dataclasses.replace(one, display=Untraversable())
    assert shown.run_id == one.run_id, "another display is no other run"


class Untraversable(Display, list[str]):
    """A display that fails where Prefect traverses it, copies it or records it; its items are what it was shown."""

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("traversed")

    def __reduce__(self) -> Any:
        raise AssertionError("copied")

    def message(self, text: str) -> None:
        self.append(text)

    @contextmanager
    def stage(self, planned: PlannedStage) -> Iterator[Bar]:
        self.append(planned.stage.name)
        yield Bar()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_context_of_a_build_reaches_every_stage_and_no_argument_of_prefect(web: Web, client: Any) -> None:
    from flows.schedule.prefect_flow import build_flow

    display = Untraversable()
    context = BuildContext(display)
    outcome = build_flow(BuildSpec.read(web.recipe(), catalog=web.catalog, executor="inline"), context)
    assert [display[at] for at in range(3)] == ["parquet", "download", "samples"]
    assert len(display) > 3, "the line on failed rows"
    runs = Catalog(web.catalog).dataset("web").runs().to_pylist()
    assert {run["run_id"] for run in runs} == {context.run_id}
    recorded = max(client.read_flow_runs(), key=lambda r: r.created).parameters
    assert set(recorded) == {"recipe", "name", "catalog", "overrides", "executor", "wait_s", "is_resolved"}
    assert recorded["recipe"] == outcome.version.recipe
