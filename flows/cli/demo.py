"""The command that shows all of it on a small web of its own: demo."""

import sys
from typing import Annotated

import typer

from flows.cli.arguments import AsJson, CatalogUri, Executor


def demo(
    catalog: CatalogUri = None,
    rows: Annotated[int, typer.Option(help="rows of the source")] = 3000,
    executor: Annotated[Executor, typer.Option(help="where parts are made")] = Executor.RAY,
    as_json: AsJson = False,
) -> None:
    """Build a dataset from a small local web server with every hazard of a crawl, and check the result."""
    from flows.demo.run import run

    sys.exit(run(catalog, rows, executor.value, as_json))
