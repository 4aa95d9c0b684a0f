"""What to build: a recipe that is resolved once, the catalog, and the engine."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalog.dataset import DEFAULT_CATALOG, Catalog, Dataset
from catalog.version import Version
from flows.recipe.recipe import Recipe, read_text, resolve


@dataclass(frozen=True)
class BuildSpec:
    """What to build. The recipe is read and resolved once, when the spec is made: that is what is planned, built and
    recorded, even if fragments, variables or the recipe's file change meanwhile.

    Everything in it can be recorded: runs and deployments of Prefect have `parameters()`. What shows the progress of a
    build is in its `BuildContext`.

    Raises RecipeError, with the file and line of what was read.
    """

    recipe: str
    """The YAML text."""
    name: str = "recipe"
    """What errors call the recipe: its path."""
    catalog: str | None = None
    overrides: tuple[str, ...] = ()
    executor: str = "ray"
    """`ray` or `inline`: the engine that makes the parts."""
    wait_s: float | None = 0.0
    """How long to wait for another builder of the same dataset, in seconds; None: without a limit."""
    is_resolved: bool = False
    """Whether the text was resolved before: it then needs no other file and no environment."""
    _resolved: tuple[Recipe, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_resolved", resolve(self.recipe, self.name, self.overrides, self.is_resolved))

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> "BuildSpec":
        """Return the spec that builds the recipe in a file."""
        return cls(read_text(path), str(path), **options)

    @classmethod
    def of_version(cls, version: Version, **options: Any) -> "BuildSpec":
        """Return the spec that builds what a version was built from: its recorded text."""
        return cls(version.recipe, f"the recipe of {version.label}", is_resolved=True, **options)

    @property
    def checked(self) -> Recipe:
        """The checked recipe."""
        return self._resolved[0]

    @property
    def resolved(self) -> str:
        """The recipe's text as it is built: with its fragments, variables and overrides."""
        return self._resolved[1]

    @property
    def catalog_uri(self) -> str:
        """The catalog: that of the spec, the recipe or the environment, or ./datasets."""
        return self.catalog or self.checked.catalog or os.environ.get("ESPALIER_CATALOG") or DEFAULT_CATALOG

    def parameters(self) -> dict[str, Any]:
        """Return the fields as a run or a deployment records them, in JSON: with the resolved text."""
        name = self.name if self.resolved == self.recipe else f"{self.name} (as it was resolved)"
        recorded: dict[str, Any] = {"recipe": self.resolved, "name": name, "catalog": self.catalog, "overrides": []}
        return recorded | {"executor": self.executor, "wait_s": self.wait_s, "is_resolved": True}

    def dataset(self, create: bool | None = True) -> Dataset:
        """Return the dataset in its catalog. `create` as in `Catalog`: None creates nothing, for plans."""
        return Catalog(self.catalog_uri, create=create).dataset(self.checked.dataset)
