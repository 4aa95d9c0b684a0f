"""Commands that messages suggest, as the user would type them."""

import os
import shlex
from pathlib import Path

from catalog.dataset import DEFAULT_CATALOG, Dataset


def command_for(dataset: Dataset, words: str) -> str:
    """Return `espalier <words>`, with --catalog unless the dataset is where the command looks without it."""
    uri = dataset.catalog.uri
    usual = os.environ.get("ESPALIER_CATALOG") or DEFAULT_CATALOG
    there = usual.rstrip("/") if "://" in usual else str(Path(usual).expanduser().resolve())
    return f"espalier {words}" + ("" if there == uri else f" --catalog {shlex.quote(uri)}")
