"""Render search results as one self-contained HTML file: no script, no font, no request.

All text is escaped, and invisible and bidirectional control characters are removed; in addition, a
Content-Security-Policy forbids scripts and requests.
"""

import tempfile
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np

from catalog import lookup
from catalog.dataset import Dataset
from catalog.errors import UserError
from catalog.schema import PLACE_NAMES
from catalog.shards import ShardReader
from catalog.wording import amount
from flows.explore.search import Found
from tasks.images.thumbnail import thumbnail
from tasks.pages import text
from tasks.pages.template import template

SIDE_PX: Final = 240
BUDGET_BYTES: Final = 12_000_000
"""Most bytes of all images together; later hits are shown without an image."""
_FETCHED_AT_ONCE: Final = 16


def render(found: Found, dataset: Dataset, budget_bytes: int = BUDGET_BYTES) -> str:
    """Return the page."""
    images = pictures(found, dataset, budget_bytes)
    return template(Path(__file__).with_name("gallery.html.j2")).render(
        title=text.clean(_title(found), 200),
        version=found.version.label,
        about=text.clean(_about(found), 600),
        hits=[asdict(hit) | {"image": images.get(hit.sample_id)} for hit in found.hits],
    )


def show_page(page: str, path: str | None, browse: bool) -> None:
    """Write a page to `path`, or to a temporary file, and open it in the browser. Raises UserError."""
    if path is None:
        with tempfile.NamedTemporaryFile("w", suffix=".html", prefix="espalier-", delete=False) as file:
            path = file.name
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path!r}: {error.strerror}") from error
    if browse and not webbrowser.open(Path(path).resolve().as_uri()):
        raise UserError(f"no browser to open {path!r} with")


def pictures(found: Found, dataset: Dataset, budget_bytes: int = BUDGET_BYTES) -> dict[int, bytes]:
    """Return a small WebP of each hit that has image bytes, best first, until the byte budget is spent."""
    if "images" not in found.version.tables:
        return {}
    paths = [part.path for part in dataset.files(found.version, "images")]
    reader = ShardReader(dataset.storage)
    made: dict[int, bytes] = {}
    spent = 0
    ids = [hit.sample_id for hit in found.hits]
    for start in range(0, len(ids), _FETCHED_AT_ONCE):
        some = np.sort(np.array(ids[start : start + _FETCHED_AT_ONCE], np.int64))
        rows = lookup.rows_of(dataset.storage, paths, some, PLACE_NAMES)
        for sample_id, data in zip(rows.column(lookup.KEY).to_pylist(), reader.read(rows), strict=True):
            small = thumbnail(data, SIDE_PX) if data is not None else None
            if small is not None and spent + len(small) <= budget_bytes:
                made[sample_id] = small
                spent += len(small)
    return made


def _title(found: Found) -> str:
    asked = found.query
    if asked.text is not None:
        return asked.text
    return f"like {Path(asked.image).name}" if asked.image is not None else f"like sample {asked.like}"


def _about(found: Found) -> str:
    asked = found.query
    facts = [f"{len(found.hits)} of {amount(found.searched, 'row')}", f"column {found.column}", found.how]
    facts += [f"where {asked.where}"] if asked.where else []
    facts += [f"near-duplicates from {asked.unique:g} on omitted"] if asked.unique is not None else []
    return " · ".join(facts)
