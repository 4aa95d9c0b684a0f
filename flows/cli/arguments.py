"""Arguments and options that several commands have, and what they name."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from catalog.dataset import Catalog, Dataset


class Executor(StrEnum):
    """Where parts are made."""

    RAY = "ray"
    INLINE = "inline"


RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")]
DatasetName = Annotated[str, typer.Argument(metavar="DATASET", help="the name of a dataset in the catalog")]
Label = Annotated[str, typer.Argument(metavar="DATASET[@N]", help="a dataset, or one version of it")]
CatalogUri = Annotated[
    str | None,
    typer.Option("--catalog", envvar="ESPALIER_CATALOG", help="folder or object-store URI; default: ./datasets"),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="STAGE.FIELD=VALUE", help="change the recipe; may be repeated")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def open_catalog(uri: str | None) -> "Catalog":
    from catalog.dataset import DEFAULT_CATALOG, Catalog

    return Catalog(uri or DEFAULT_CATALOG)


def open_dataset(name: str, uri: str | None) -> "Dataset":
    return open_catalog(uri).existing(name)
