"""Scheduled builds: a Prefect deployment on a process work pool, which a worker picks up.

A deployment records the recipe as it was resolved when it was deployed: every run builds that text, even if the
recipe's file, its fragments or its variables change later. Running `espalier deploy` again replaces it.

Two limits keep a schedule from building one dataset twice at once: the deployment runs one flow at a time and cancels
runs that start meanwhile, and the dataset's lease refuses any second builder.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from catalog.errors import RecipeError, UserError
from catalog.wording import plain_message
from flows.build.spec import BuildSpec
from flows.schedule.prefect_server import quiet_environment


def deploy(spec: BuildSpec, cron: str, timezone: str, pool: str, name: str | None) -> Iterator[str]:
    """Register a deployment that builds a spec, in place of any of the same name; yield messages for the user.

    Raises UserError if no Prefect API is configured, since a schedule needs a server that outlives the command, and
    RecipeError, before anything is registered, if the schedule or the time zone is invalid.
    """
    quiet_environment()
    api = lasting_api()
    recipe = spec.checked
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.deployments.runner import RunnerDeployment
    from prefect.exceptions import ObjectNotFound
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    from flows.schedule.dead_runs import reap_dead_runs
    from flows.schedule.prefect_flow import build

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValueError as error:
        raise RecipeError(f"--cron {cron!r} or --timezone {timezone!r} is wrong: {_reason(error)}") from None
    reap_dead_runs()
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            yield f"made the work pool {pool!r}"
    deployment = RunnerDeployment.from_flow(
        build,
        name=name or recipe.dataset,
        schedule=Cron(cron, timezone=timezone),
        parameters=_parameters(spec),
        tags=["espalier", f"dataset:{recipe.dataset}"],
        work_pool_name=pool,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables={"working_dir": str(Path.cwd())},
    )
    deployment.apply()
    yield f"registered build/{deployment.name} at {api}: {cron} ({timezone})"
    yield f"start a worker:  PREFECT_API_URL={api} espalier worker --pool {pool}"
    yield f"build it now:    PREFECT_API_URL={api} prefect deployment run build/{deployment.name}"


def _parameters(spec: BuildSpec) -> dict[str, object]:
    """Return the flow's parameters: the resolved recipe, and the catalog.

    The path of a local catalog is made absolute, since a worker may have another working directory.
    """
    uri = spec.catalog_uri
    given = spec.parameters() | {"catalog": uri if "://" in uri else str(Path(uri).absolute())}
    return {name: value for name, value in given.items() if name != "wait_s"}


def lasting_api() -> str:
    """Return the URL of the configured Prefect API. Raises UserError if there is none."""
    from prefect.settings import PREFECT_API_URL

    api = os.environ.get("PREFECT_API_URL") or PREFECT_API_URL.value()
    if not api:
        raise UserError(
            "a schedule needs a Prefect server that keeps running: start one with "
            "`prefect server start --host 127.0.0.1`, and set PREFECT_API_URL=http://127.0.0.1:4200/api"
        )
    return str(api)


def _reason(error: ValueError) -> str:
    """Return why Prefect refuses a schedule, in one line."""
    if isinstance(error, ValidationError):
        return plain_message(error.errors()[0]["msg"])
    return " ".join(str(error).split())
