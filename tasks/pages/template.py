"""Templates of pages. All text is escaped; the filters are the functions of `tasks.pages.text`."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.pages import text

if TYPE_CHECKING:
    from jinja2 import Template


@cache
def template(path: Path) -> "Template":
    """Return the template of a file. Rendering it escapes all text, and fails for a variable that is missing."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("clean", "moment", "note", "code", "count", "compact", "percent", "size", "duration", "number", "data_uri")
    environment.filters |= {name: getattr(text, name) for name in names}
    return environment.get_template(path.name)
