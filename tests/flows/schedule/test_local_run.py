"""A build by a local command is a run at the configured Prefect API, which names the process of the command."""

from typing import Any

import pytest

from catalog.dataset import Catalog
from flows.build.context import BuildContext
from flows.build.progress import Display
from flows.build.spec import BuildSpec
from flows.schedule.local_run import build_under_prefect
from tests.flows.conftest import Web

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Messages(Display, list[str]):
    """What a build showed."""

    def message(self, text: str) -> None:
        self.append(text)


def test_a_local_build_is_a_run_of_the_configured_api(web: Web, client: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """It returns the outcome, shows its messages on the given display, and prints nothing itself."""
    from flows.schedule.dead_runs import own_tags

    messages = Messages()
    spec = BuildSpec.read(web.recipe(), catalog=web.catalog, executor="inline")
    outcome = build_under_prefect(spec, BuildContext(messages))
    assert outcome.version.label == Catalog(web.catalog).dataset("web").version().label == "web@1"
    assert [text for text in messages if "not_found" in text]
    assert not [text for text in messages if "starting a Prefect server" in text], "one is configured"
    assert capfd.readouterr() == ("", "")
    run = max(client.read_flow_runs(), key=lambda r: r.created)
    assert (run.name, run.state.type.value) == ("web", "COMPLETED")
    assert set(own_tags()) <= set(run.tags)
    assert run.parameters["catalog"] == web.catalog
