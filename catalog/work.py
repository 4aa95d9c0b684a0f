"""The work folder of runs: scratch files, which are removed with the run, and checkpoints, which survive a kill.

It is `_work` in the dataset of a local catalog, otherwise a folder per dataset in the machine's temporary folder. It
may contain rows, so a take-down empties it (`catalog.takedown.erase.sweep`) on the machine where the command runs.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from catalog.storage import Storage

FOLDER: Final = "_work"


def folder(storage: Storage) -> Path:
    """Return the work folder of a dataset on this machine, which need not exist. `storage` is the dataset's."""
    local = storage.local(FOLDER)
    if local is not None:
        return local
    name = hashlib.sha256(storage.uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"espalier-work-{os.getuid()}" / name


def make(storage: Storage) -> Path:
    """Return the work folder; create it if it does not exist."""
    place = folder(storage)
    if not storage.is_local:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    return place
