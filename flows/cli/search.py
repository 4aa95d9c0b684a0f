"""Commands that find samples: search, index."""

from typing import Annotated

import typer

from catalog.wording import amount
from flows.cli.arguments import AsJson, CatalogUri, Label, open_catalog
from flows.cli.output import print_json, print_message, print_rows


def search(
    label: Label,
    text: Annotated[str | None, typer.Option(help="find images that this text describes")] = None,
    image: Annotated[str | None, typer.Option(metavar="FILE", help="find images similar to this file")] = None,
    like: Annotated[int | None, typer.Option(metavar="SAMPLE_ID", help="find images similar to this sample's")] = None,
    catalog: CatalogUri = None,
    column: Annotated[str, typer.Option(help="embedding column; default: the first")] = "",
    top: Annotated[int, typer.Option(help="how many results")] = 20,
    where: Annotated[str, typer.Option(metavar="SQL", help="only rows of `samples` for which this holds")] = "",
    exact: Annotated[bool, typer.Option("--exact", help="compare every row, without the index")] = False,
    unique: Annotated[float | None, typer.Option(metavar="COSINE", help="show one of near-duplicates: 0.94")] = None,
    all_: Annotated[bool, typer.Option("--all", help="also rows that were rejected")] = False,
    save: Annotated[str | None, typer.Option(metavar="NAME", help="make a dataset of the results")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="write the results as an HTML page")] = None,
    open_: Annotated[bool, typer.Option("--open", help="show that page in the browser")] = False,
    as_json: AsJson = False,
) -> None:
    """Find samples by text, by an image, or by another sample."""
    from flows.explore.search import Query
    from flows.explore.search import search as run_search

    opened = open_catalog(catalog)
    asked = Query(text, image, like, column, top, where, exact, unique, all_)
    if save is not None:
        from flows.explore.save import check_target
        from flows.explore.save import save as save_as

        check_target(opened, save)
    if html:
        from flows.explore.export import check_target as check_file

        check_file(html)
    found = run_search(opened, label, asked)
    print_message(f"{found.version.label}, {found.column}: {found.how}")
    if html or open_:
        from flows.explore.gallery import render, show_page

        show_page(render(found, opened.existing(found.version.dataset)), html, open_)
    saved = None
    if save is not None:
        saved = save_as(opened, found, save, print_message).label
        print_message(f"saved {amount(len(found.hits), 'sample')} as {saved}")
    if as_json:
        print_json(found.describe() | ({"saved": saved} if saved else {}))
    else:
        print_rows([vars(hit) | {"score": round(hit.score, 4)} for hit in found.hits], False)


def index(
    label: Label,
    catalog: CatalogUri = None,
    column: Annotated[str, typer.Option(help="embedding column; default: the first")] = "",
    kind: Annotated[str, typer.Option(help="auto, flat, ivf, hnsw, ivfpq or opq")] = "auto",
    memory_mb: Annotated[float, typer.Option(help="memory that the index may use")] = 4000,
    recall: Annotated[float, typer.Option(help="share of the 10 nearest that a search must find")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """Make or extend the index that `search` uses, and measure its recall."""
    from flows.build.progress import RichDisplay
    from flows.explore.index import budget_of, counted, render, update

    opened = open_catalog(catalog)
    version = opened.resolve(label)
    budget = budget_of(kind, memory_mb, recall)
    show = RichDisplay()
    with counted(show.console) as progress:
        made = update(opened.existing(version.dataset), version, column, budget, progress, show.message)
    if as_json:
        print_json(made.facts)
    else:
        print(render(made))
