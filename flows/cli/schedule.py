"""Commands that build on a schedule: deploy, worker."""

import sys
from typing import Annotated

import typer

from flows.cli.arguments import CatalogUri, Overrides, RecipePath
from flows.cli.output import print_message


def deploy(
    recipe: RecipePath,
    cron: Annotated[str, typer.Option(help='when to build, like "0 3 * * *"')],
    catalog: CatalogUri = None,
    set_: Overrides = None,
    timezone: Annotated[str, typer.Option(help="time zone of the schedule")] = "UTC",
    pool: Annotated[str, typer.Option(help="Prefect work pool; created if it does not exist")] = "espalier",
    name: Annotated[str | None, typer.Option(help="name of the deployment; default: the dataset")] = None,
) -> None:
    """Register a scheduled build with Prefect; a worker picks it up."""
    from flows.build.spec import BuildSpec
    from flows.schedule.deploy import deploy as register

    spec = BuildSpec.read(recipe, catalog=catalog, overrides=tuple(set_ or ()))
    for line in register(spec, cron, timezone, pool, name):
        print(line)


def worker(
    pool: Annotated[str, typer.Option(help="Prefect work pool of the deployments")] = "espalier",
    limit: Annotated[int | None, typer.Option(min=1, help="builds at once; default: no limit")] = None,
) -> None:
    """Run scheduled builds, until stopped. Runs that were killed are marked as crashed, so the next one may start."""
    from flows.schedule.prefect_worker import work

    sys.exit(work(pool, limit, print_message))
