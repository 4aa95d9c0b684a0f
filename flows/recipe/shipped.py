"""The recipes and fragments that Espalier ships: `configs/` of a checkout, `flows/configs/` of an installed wheel."""

from importlib.resources import files
from pathlib import Path
from typing import Final


def shipped_configs() -> Path:
    """Return the folder of the shipped recipes.

    The wheel stores it inside the package `flows`, because a top-level `configs` in site-packages could belong to
    anybody. In a checkout it lies beside the package.
    """
    package = Path(str(files("flows")))
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


SHIPPED: Final = shipped_configs()
