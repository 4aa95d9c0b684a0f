"""A deployment builds the recipe as it was when it was deployed, at its times, and one build at a time."""

import os
import subprocess
import sys
from typing import Any

import pytest

from catalog.dataset import Catalog
from catalog.errors import RecipeError
from flows.build.spec import BuildSpec
from tests.flows.conftest import Web
from tests.helpers import wait_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_it_builds_what_was_deployed_whatever_becomes_of_the_files(
    web: Web, client: Any, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deploying once more replaces it. The lines that `deploy` prints say what was made and how to go on."""
    from flows.schedule.deploy import deploy

    (web.folder / "prune.yaml").write_text("- {use: prune, method: random, keep_rows: 3}\n")
    recipe = web.recipe("  - include: prune.yaml\n", "seed: ${SEED_OF_TEST}\n")
    monkeypatch.setenv("SEED_OF_TEST", "5")
    monkeypatch.chdir(web.folder)
    spec = BuildSpec.read(recipe, catalog="catalog", overrides=("prune.keep_rows=2",), executor="inline")
    lines = list(deploy(spec, "0 3 * * *", "UTC", "espalier-fresh", "nightly"))
    assert lines == [
        "made the work pool 'espalier-fresh'",
        f"registered build/nightly at {prefect_server}: 0 3 * * * (UTC)",
        f"start a worker:  PREFECT_API_URL={prefect_server} espalier worker --pool espalier-fresh",
        f"build it now:    PREFECT_API_URL={prefect_server} prefect deployment run build/nightly",
    ]
    made = client.read_deployment_by_name("build/nightly")
    assert {"espalier", "dataset:web"} == set(made.tags)
    assert made.work_pool_name == "espalier-fresh"
    assert "wait_s" not in made.parameters
    recipe.unlink()
    (web.folder / "prune.yaml").unlink()
    monkeypatch.delenv("SEED_OF_TEST")
    monkeypatch.chdir("/")
    given = {**made.parameters, "overrides": tuple(made.parameters["overrides"])}
    deployed = BuildSpec(**given)
    assert (deployed.checked, deployed.executor) == (spec.checked, "inline")
    assert (deployed.checked.seed, deployed.catalog_uri) == (5, web.catalog)

    again = list(deploy(deployed, "30 4 * * 1", "Europe/Paris", "espalier-fresh", "nightly"))
    assert again == [f"registered build/nightly at {prefect_server}: 30 4 * * 1 (Europe/Paris)", *lines[2:]]
    replaced = client.read_deployment_by_name("build/nightly")
    assert replaced.id == made.id
    (only,) = replaced.schedules
    assert (only.schedule.cron, only.schedule.timezone) == ("30 4 * * 1", "Europe/Paris")


def test_the_catalog_of_an_object_store_stays_as_it_is(web: Web, client: Any) -> None:
    from flows.schedule.deploy import deploy

    list(deploy(BuildSpec.read(web.recipe(), catalog="s3://bucket/catalog"), "0 3 * * *", "UTC", "espalier-test", None))
    assert client.read_deployment_by_name("build/web").parameters["catalog"] == "s3://bucket/catalog"


@pytest.mark.parametrize(
    ("cron", "timezone"), [("at noon", "UTC"), ("", "UTC"), ("0 3 * *", "UTC"), ("0 3 * * *", "Mars/Olympus")]
)
def test_a_wrong_schedule_registers_nothing(web: Web, client: Any, cron: str, timezone: str) -> None:
    from prefect.exceptions import ObjectNotFound

    from flows.schedule.deploy import deploy

    spec = BuildSpec.read(web.recipe(), catalog=web.catalog)
    with pytest.raises(RecipeError) as caught:
        list(deploy(spec, cron, timezone, "espalier-wrong", "wrong"))
    assert str(caught.value).startswith(f"--cron {cron!r} or --timezone {timezone!r} is wrong: ")
    assert "\n" not in str(caught.value)
    for read, name in ((client.read_deployment_by_name, "build/wrong"), (client.read_work_pool, "espalier-wrong")):
        with pytest.raises(ObjectNotFound):
            read(name)


def test_a_deployment_is_run_by_a_worker_and_only_once_at_a_time(web: Web, client: Any, prefect_server: str) -> None:
    from flows.schedule.deploy import deploy

    slow = web.server.drips(b"\xff" * 2000, step=1, pause_s=0.2)
    web.add_file("slow", [slow])
    spec = BuildSpec.read(web.recipe(), catalog=web.catalog, executor="inline")
    lines = list(deploy(spec, "0 3 * * *", "UTC", "espalier-test", None))
    assert any("registered build/web" in line for line in lines)
    deployment = client.read_deployment_by_name("build/web")
    assert deployment.schedules[0].schedule.cron == "0 3 * * *"
    env = os.environ | {"PREFECT_API_URL": prefect_server}
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "espalier-test", "--type", "process"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, "--limit", "4"], env=env, **quiet) as worker:  # type: ignore[call-overload]
        try:
            runs = [client.create_flow_run_from_deployment(deployment.id) for _ in range(2)]
            ended = {"COMPLETED", "CANCELLED", "FAILED", "CRASHED"}

            def finished() -> list[str] | None:
                states = [client.read_flow_run(r.id).state.type.value for r in runs]
                return states if set(states) <= ended else None

            assert sorted(wait_for(finished, 240)) == ["CANCELLED", "COMPLETED"]
        finally:
            worker.terminate()
    assert Catalog(web.catalog).dataset("web").version().tables["source"].rows == 9
