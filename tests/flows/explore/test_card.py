"""A card belongs to its version, whatever is built later, and drawing it never makes a build fail."""

from pathlib import Path

import pyarrow.parquet as pq

from catalog.database import sql
from catalog.dataset import Catalog
from catalog.takedown.reach import Names
from flows.build.build import build_here
from flows.build.report import draw_report
from flows.build.spec import BuildSpec
from flows.explore.card import card_of
from flows.explore.failures import begin_retry
from flows.govern.takedown import take_down
from tests.flows.cards import build
from tests.flows.conftest import Web
from tests.pictures import jpeg


def test_the_card_of_a_version_stays_its_own(web: Web) -> None:
    """Its page is the same byte for byte, drawn again after a growth, other parameters, a retry and a takedown."""
    dataset = Catalog(web.catalog, create=True).dataset("web")
    first = build(web)
    page = (Path(web.catalog) / "web/_reports/1.html").read_bytes()
    web.add_file("b", [web.server.heals(jpeg(96, 80, 77), [(503, {})]), *web.pictures(range(20, 23))])
    build(web)
    build(web, kept=2)
    spec = begin_retry(dataset, ["server_error"], web.catalog, "inline").spec
    build_here(spec)
    newest = sql(Catalog(web.catalog), "select max(sample_id)::varchar as id from web.samples").to_pylist()[0]["id"]
    take_down(dataset, Names.of([newest]))
    assert draw_report(dataset, first) == page
    assert Path(card_of(Catalog(web.catalog), "web@1", None)).read_bytes() == page
    cards = {version.number: draw_report(dataset, version) for version in dataset.versions()}
    assert cards[2] != cards[1]


def test_pictures_of_one_size_and_one_that_is_not(web: Web) -> None:
    """Their aspect ratios fall into one bin, however often it is cut finer: a division by zero, once."""
    web.add_file("a", [*[web.server.body(jpeg(24, 24, seed)) for seed in range(220)], web.server.body(jpeg(30, 2, 1))])
    recipe = web.recipe("  - use: report\n")
    recipe.write_text(recipe.read_text().replace("rows_per_part: 4", "rows_per_part: 500"))
    outcome = build_here(BuildSpec.read(recipe, catalog=web.catalog, executor="inline"))
    assert outcome.report is not None
    rows = pq.read_table(sorted((Path(web.catalog) / "web/report").glob("*.parquet"))[0])["section"].to_pylist()
    assert "histogram" in rows
