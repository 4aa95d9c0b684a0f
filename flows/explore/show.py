"""Render one version, or the difference of two versions, for a terminal and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from catalog.diff import Diff, Example
from catalog.version import Version

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def describe(version: Version) -> dict[str, Any]:
    """Return a version as JSON values."""
    return {
        "version": version.label,
        "created_at": version.created_at.isoformat(timespec="seconds"),
        "code_version": version.code_version,
        "seed": version.seed,
        "recipe_sha256": version.recipe_sha256,
        "held": list(version.held),
        "approved_at": version.approved_at.isoformat(timespec="seconds") if version.approved_at else None,
        "tables": {n: {"rows": t.rows, "bytes": t.bytes, "parts": t.files} for n, t in version.tables.items()},
        "stages": list(version.stages),
        "inputs": list(version.inputs),
        "recipe": version.recipe,
    }


def render(version: Version) -> "RenderableType":
    """Render a version for a terminal."""
    from rich.console import Group
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text

    head = Text(
        f"{version.label}  published {version.created_at:%Y-%m-%d %H:%M} UTC by espalier {version.code_version}\n"
    )
    if version.held:
        state = f"approved {version.approved_at:%Y-%m-%d %H:%M} UTC; held" if version.approved_at else "held"
        head.append("".join(f"{state}: {reason}\n" for reason in version.held), style="bold")
    tables = Table(box=None, header_style="bold")
    for name, justify in (
        ("table", "left"),
        ("rows", "right"),
        ("MB", "right"),
        ("parts", "right"),
        ("written by", "left"),
    ):
        tables.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich has a Literal of its own
    for name, table in version.tables.items():
        writers = ", ".join(s["name"] for s in version.stages if s["table"] == name)
        tables.add_row(name, f"{table.rows:,}", f"{table.bytes / 1e6:,.2f}", f"{table.files:,}", writers)
    inputs = Table(box=None, header_style="bold")
    for name in ("input", "rows", "sha256"):
        inputs.add_column(name)
    for file in version.inputs[:20]:
        inputs.add_row(Text(str(file["uri"])), f"{file['rows']:,}", str(file["sha256"])[:12])
    if len(version.inputs) > 20:
        inputs.add_row(f"and {len(version.inputs) - 20} more", "", "")
    recipe = Syntax(version.recipe, "yaml", background_color="default", word_wrap=True)
    return Group(head, tables, Text(), inputs, Text("\nrecipe", style="bold"), recipe)


def describe_diff(found: Diff) -> dict[str, Any]:
    """Return a difference as JSON values."""
    return {
        "a": found.a.label,
        "b": found.b.label,
        "key": found.key,
        "rows": [asdict(rows) for rows in found.rows],
        "decisions": [asdict(change) for change in found.decisions],
    }


def render_diff(found: Diff) -> "RenderableType":
    """Render a difference for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(f"{found.a.label} -> {found.b.label}  (rows are the same where their {found.key} is)\n")
    rows = Table(box=None, header_style="bold")
    for name, justify in (("table", "left"), ("added", "right"), ("removed", "right"), ("for example", "left")):
        rows.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich has a Literal of its own
    for r in found.rows:
        rows.add_row(r.table, f"{r.added:,}", f"{r.removed:,}", _examples([*r.added_examples, *r.removed_examples]))
    changes = Table(box=None, header_style="bold")
    for name, justify in (
        ("stage", "left"),
        ("was", "left"),
        ("is", "left"),
        ("rows", "right"),
        ("for example", "left"),
    ):
        changes.add_column(name, justify=justify)  # type: ignore[arg-type]  # rich has a Literal of its own
    for c in found.decisions:
        changes.add_row(c.stage, c.before, c.after, f"{c.rows:,}", _examples(c.examples))
    return Group(head, rows, Text(), changes if found.decisions else Text("no decision changed"))


def _examples(examples: Sequence[Example]) -> "Text":
    from rich.text import Text

    return Text(", ".join(e.url or str(e.sample_id) for e in examples[:2]), overflow="ellipsis", no_wrap=True)
