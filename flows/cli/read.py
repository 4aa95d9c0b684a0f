"""Commands that show what a catalog has: sql, ls, versions, show, diff, errors, why, report."""

from typing import Annotated

import typer

from flows.cli.arguments import AsJson, CatalogUri, DatasetName, Label, open_catalog, open_dataset
from flows.cli.output import print_json, print_rich, print_rows
from flows.explore.formats import Format


def sql(
    query: Annotated[str, typer.Argument(help="SQL over DATASET.TABLE; read-only")],
    catalog: CatalogUri = None,
    at: Annotated[int | None, typer.Option(min=1, help="read this version of the datasets")] = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="default: as the ending of --output, else a table")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="write all rows to this file")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="rows shown as a table; files get all")] = 100,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="stop the query after this long; 0: never")] = 600,
    memory: Annotated[
        int | None, typer.Option(metavar="MB", min=64, help="spill to disk beyond; default: half of what there is")
    ] = None,
) -> None:
    """Query the tables of datasets with DuckDB.

    With -o, all rows are written to a .csv, .json, .jsonl, .parquet or .txt
    file, which appears when it is whole. A CSV has lists, structs, maps and
    vectors as JSON text, and blobs as base64.

    A dataset whose name is a word of SQL is written in double quotes:
    select * from "order".samples
    """
    from flows.explore.export import format_of, write_query
    from flows.explore.query import limits_of, versions_at

    opened = open_catalog(catalog)
    limits = limits_of(timeout, memory)
    write_query(opened, query, versions_at(opened, query, at), limits, format_of(output, format_), output, limit)


def ls(catalog: CatalogUri = None, as_json: AsJson = False) -> None:
    """List the datasets of the catalog: last version, samples, versions, size with images, last build."""
    from flows.explore.ls import datasets

    print_rows(datasets(open_catalog(catalog)), as_json)


def versions(dataset: DatasetName, catalog: CatalogUri = None, as_json: AsJson = False) -> None:
    """List the versions of a dataset, with the size of their tables and images.

    One that is held is not the latest; `espalier show DATASET@N` says why it is held.
    """
    from flows.explore.ls import megabytes

    opened = open_dataset(dataset, catalog)
    found = opened.versions()
    sizes = megabytes(opened, found)
    rows = [
        {
            "version": v.label,
            "created_at": v.created_at.isoformat(timespec="seconds"),
            "samples": v.tables["samples"].rows if "samples" in v.tables else None,
            "MB": sizes[v.number],
            "code": v.code_version,
            "recipe": v.recipe_sha256[:12],
            "state": "held" if v.is_held else "approved" if v.held else "",
            **({"held_for": list(v.held)} if as_json else {}),
        }
        for v in found
    ]
    print_rows(rows, as_json)


def show(
    label: Label,
    catalog: CatalogUri = None,
    as_json: AsJson = False,
) -> None:
    """Show one version: its tables, recipe, code and inputs."""
    from flows.explore.show import describe, render

    version = open_catalog(catalog).resolve(label)
    if as_json:
        print_json(describe(version))
    else:
        print_rich(render(version))


def diff(
    one: Annotated[str, typer.Argument(metavar="DATASET@N", help="a version; without @N the last one")],
    other: Annotated[str, typer.Argument(metavar="DATASET@M", help="the version that it is compared with")],
    catalog: CatalogUri = None,
    examples: Annotated[int, typer.Option(min=0, help="examples of each kind")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions: rows, and decisions by reason."""
    from catalog.diff import diff as compare
    from flows.explore.show import describe_diff, render_diff

    found = compare(open_catalog(catalog), one, other, examples)
    if as_json:
        print_json(describe_diff(found))
    else:
        print_rich(render_diff(found))


def errors(label: Label, catalog: CatalogUri = None, as_json: AsJson = False) -> None:
    """Show why rows of a dataset failed, and what may be tried again."""
    from flows.explore.failures import failures

    opened = open_catalog(catalog)
    version = opened.resolve(label)
    print_rows(failures(opened.existing(version.dataset), version), as_json)


def why(
    label: Label,
    row: Annotated[str, typer.Argument(metavar="URL|SAMPLE_ID", help="which row; a URL may name several")],
    catalog: CatalogUri = None,
    as_json: AsJson = False,
) -> None:
    """Explain a row: where it came from, what each stage decided, and why it was kept or rejected."""
    from flows.explore.why import render, stories

    found = stories(open_catalog(catalog), label, row)
    if as_json:
        print_json(found)
    else:
        print_rich(render(found))


def report(
    label: Label,
    catalog: CatalogUri = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="write the HTML to this file")] = None,
) -> None:
    """Write the data card of a version, and print its path."""
    from flows.explore.card import card_of

    print(card_of(open_catalog(catalog), label, output))
