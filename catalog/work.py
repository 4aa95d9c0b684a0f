"""Where what runs keeps files of its own: scratch, which goes with the run, and checkpoints, which outlive a kill.

It is `_work` of the dataset where the catalog is local, and else a folder for each dataset in the temporary folder of
the machine. Rows may be in it, so a takedown empties it (`catalog.takedown.erase.sweep`), on the machine where it is
given.
"""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from catalog.storage import Storage

FOLDER: Final = "_work"


def folder(storage: Storage) -> Path:
    """Return the folder of a dataset's runs on this machine, which need not exist. `storage` is the dataset's."""
    local = storage.local(FOLDER)
    if local is not None:
        return local
    name = hashlib.sha256(storage.uri.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"espalier-work-{os.getuid()}" / name


def make(storage: Storage) -> Path:
    """Return that folder, made where it is not there."""
    place = folder(storage)
    if not storage.is_local:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.mkdir(parents=True, exist_ok=True)
    return place
