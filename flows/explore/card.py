"""`espalier report`: write the data card of a version to the catalog or to a file."""

from catalog.dataset import Catalog
from catalog.errors import NotFoundError, UserError
from flows.build.report import draw_report, report_path, write_report
from flows.explore.export import target


def card_of(catalog: Catalog, label: str, output: str | None) -> str:
    """Render the card of `DATASET[@N]`; return its path: `output`, or by default its place in the catalog.

    With `output`, nothing is written to the catalog. If the catalog is read-only, returns the card that the build
    rendered. Raises NotFoundError if the recipe has no report.
    """
    version = catalog.resolve(label)
    dataset = catalog.existing(version.dataset)
    missing = NotFoundError(f"{version.label} has no report: add `- use: report` to its recipe")
    if output is not None:
        card = draw_report(dataset, version)
        if card is None:
            raise missing
        with target(output) as file:
            file.write(card)
        return output
    try:
        path = write_report(dataset, version)
    except UserError:
        path = report_path(dataset, version)
        if path is None:
            raise
    if path is None:
        raise missing
    return path
