"""The folder for files that can be fetched or made again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the user's cache folder for files of one kind: `$XDG_CACHE_HOME/espalier/<name>`, by default under
    `~/.cache`. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier" / name
