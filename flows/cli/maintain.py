"""Commands that check a catalog, or remove something from it: gc, verify, takedown."""

import sys
from enum import StrEnum
from typing import Annotated

import typer

from catalog.wording import amount
from flows.cli.arguments import AsJson, CatalogUri, DatasetName, Label, open_catalog, open_dataset
from flows.cli.output import print_json, print_message, print_rich, print_rows


class Copies(StrEnum):
    """Which copies a takedown erases too; each choice includes those before it."""

    NONE = "none"
    BYTES = "bytes"
    PIXELS = "pixels"
    DUPLICATES = "duplicates"


def gc(
    dataset: DatasetName,
    catalog: CatalogUri = None,
    delete: Annotated[bool, typer.Option("--delete", help="delete it; default: only show what it is")] = False,
    keep_versions: Annotated[int | None, typer.Option(help="keep only this many of the newest versions")] = None,
    older_than_h: Annotated[float, typer.Option(help="keep younger files: a build may use them")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Remove what no version needs, and what verify --repair set aside. A dry run unless --delete is given."""
    from catalog.errors import UserError
    from catalog.gc import collect
    from catalog.gc import plan as find_garbage

    if not older_than_h >= 0:  # nan, too
        raise UserError(f"files cannot be {older_than_h:g} hours old: expected 0 or more")
    garbage = find_garbage(
        open_dataset(dataset, catalog), older_than_s=older_than_h * 3600, keep_versions=keep_versions
    )
    if delete:
        collect(garbage)
    for number, users in garbage.used.items():
        print_message(f"{dataset}@{number} is kept: needed by {', '.join(users)}")
    if as_json:
        print_json({"files": list(garbage.files), "bytes": garbage.bytes, "deleted": delete, "used": garbage.used})
        return
    verb = "deleted" if delete else "would delete (--delete does it):"
    print(f"{verb} {amount(len(garbage.files), 'file')}, {garbage.bytes / 1e6:,.1f} MB")
    if garbage.quarantined:
        print(f"of these, {amount(len(garbage.quarantined), 'damaged file')} set aside by `verify --repair`:")
        print("\n".join(garbage.quarantined))


def verify(
    label: Label,
    repair: Annotated[bool, typer.Option("--repair", help="restore what is damaged, or set it aside")] = False,
    catalog: CatalogUri = None,
    as_json: AsJson = False,
) -> None:
    """Check every file against the sizes and digests that were recorded. Exit code 1: one line a damaged file.

    With --repair, logs and notes are restored from their copies, and other
    damaged files move to the folder _quarantine of the dataset: the next
    build makes them again. Exit code 0 then: nothing is lost.
    """
    from flows.govern.verify import describe, is_settled, lines
    from flows.govern.verify import verify as run_verify

    findings, mended = run_verify(open_catalog(catalog), label, repair)
    if as_json:
        print_json(describe(findings, mended))
    else:
        print("\n".join(lines(findings, mended)))
    sys.exit(0 if is_settled(findings, mended) else 1)


def takedown(
    dataset: DatasetName,
    file: Annotated[
        str | None,
        typer.Option("--file", help="csv, tsv or parquet whose header has url, sample_id or sha256 (or --column)"),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="KIND=NAME", help="a column and what it holds: url=link; may be repeated"),
    ] = None,
    reason: Annotated[str, typer.Option(help="why; kept with the record")] = "",
    copies: Annotated[
        Copies,
        typer.Option(help="other rows to erase: same bytes, pixels too, or also duplicates that they stand for"),
    ] = Copies.BYTES,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="erase without asking")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be erased and stop")] = False,
    list_: Annotated[bool, typer.Option("--list", help="show the takedowns of the dataset")] = False,
    catalog: CatalogUri = None,
    as_json: AsJson = False,
) -> None:
    """Erase rows from every version, for good, and keep a record without the content.

    Also from every dataset that has rows saved from them, or that they were saved from. What is reached is listed, and
    asked about on a terminal, before anything is erased. Without --file: go on with one that was interrupted.
    """
    from flows.govern.names_file import read_names
    from flows.govern.takedown import confirmation, records, render, take_down

    opened = open_dataset(dataset, catalog)
    if list_:
        return print_rows(records(opened), as_json)
    names = read_names(file, column or ()) if file else None
    confirm = confirmation(dataset, yes or dry_run or names is None)
    record = take_down(opened, names, reason, copies.value, dry_run, print_message, confirm)
    if as_json:
        print_json(record)
    else:
        print_rich(render(dataset, record))
    return None
