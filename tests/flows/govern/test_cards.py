"""Data cards are made again from the current tables, and rendered again; what cannot be is emptied or removed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from catalog.dataset import Catalog, Dataset
from catalog.takedown.ledger import Ledger
from catalog.takedown.scrub import Scrubber, Words
from flows.build.build import build_here
from flows.build.report import REPORT
from flows.build.spec import BuildSpec
from flows.govern.cards import redraw, redraw_mentioning, remake

OLD = b"<p>an old page about a heron in the reeds</p>"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with two versions of `words`, which differ in the filter and have a card each."""
    folder = tmp_path_factory.mktemp("cards")
    (folder / "s.csv").write_text("url,caption\n" + "".join(f"http://h/{n},{'long ' * n}caption\n" for n in range(6)))
    for at_least in (10, 20):
        (folder / "r.yaml").write_text(
            f"dataset: words\nsource: {{use: csv, path: {folder}/s.csv}}\n"
            f"stages:\n  - {{use: filter, where: length(caption) > {at_least}}}\n  - use: report\n"
        )
        build_here(BuildSpec.read(folder / "r.yaml", catalog=str(folder / "catalog"), executor="inline"))
    return folder / "catalog"


@pytest.fixture
def words(published: Path, tmp_path: Path) -> Dataset:
    """A copy of the dataset that a test may change."""
    shutil.copytree(published, tmp_path / "catalog")
    return Catalog(tmp_path / "catalog").dataset("words")


def report_file(dataset: Dataset, number: int) -> Path:
    (file,) = dataset.files(dataset.version(number), REPORT)
    return Path(dataset.storage.uri) / file.path


def page(dataset: Dataset, name: object) -> Path:
    return Path(dataset.storage.uri) / "_reports" / f"{name}.html"


def card_of(dataset: Dataset, number: int) -> list[dict[str, Any]]:
    return pq.read_table(report_file(dataset, number)).to_pylist()


def kept(dataset: Dataset, number: int) -> int:
    (summary,) = (row for row in card_of(dataset, number) if row["section"] == "summary")
    return int(json.loads(summary["content"])["kept"])


def test_a_report_is_made_again_into_the_same_part_for_the_named_versions_only(words: Dataset) -> None:
    said: list[str] = []
    first, second = report_file(words, 1), report_file(words, 2)
    card, other = card_of(words, 1), second.read_bytes()
    first.write_bytes(other)
    assert card_of(words, 1) != card
    unused = first.with_name(f"{'ab' * 32}.parquet")
    unused.write_bytes(other)
    remake(words, [1], said.append)
    assert card_of(words, 1) == card
    assert second.read_bytes() == other
    assert not unused.exists(), "a report that no version has is deleted"
    second.write_bytes(first.read_bytes())
    remake(words, [], said.append)
    assert kept(words, 2) == kept(words, 1) == 5, "without versions nothing is made again"
    remake(words, [1, 2], said.append)
    assert (kept(words, 1), kept(words, 2), said) == (5, 3, [])


def test_a_report_that_cannot_be_made_is_emptied(words: Dataset) -> None:
    said: list[str] = []
    (source,) = (Path(words.storage.uri) / "source").glob("*.parquet")
    source.write_bytes(b"not a Parquet file")
    before = card_of(words, 2)
    page(words, 1).write_bytes(OLD)
    remake(words, [1], said.append)
    assert (card_of(words, 1), card_of(words, 2)) == ([], before)
    (line,) = said
    assert line.startswith("the report of words@1 cannot be made again and was emptied: ")
    redraw(words, [1], said.append)
    assert (page(words, 1).read_bytes() != OLD, len(said)) == (True, 1), "a card without rows has a page"


def test_a_page_that_cannot_be_rendered_is_removed(words: Dataset) -> None:
    said: list[str] = []
    report_file(words, 1).write_bytes(b"not a Parquet file")
    redraw(words, [1], said.append)
    assert (page(words, 1).exists(), page(words, 2).exists()) == (False, True)
    (line,) = said
    assert line.startswith("the report of words@1 cannot be drawn and was removed: ")


def test_pages_of_the_named_versions_and_of_the_last_are_rendered(words: Dataset) -> None:
    said: list[str] = []
    pages = {number: page(words, number).read_bytes() for number in (1, 2)}
    for name in (1, 2, 3, "notes"):
        page(words, name).write_bytes(OLD)
    redraw(words, [], said.append)
    assert (page(words, 1).read_bytes(), page(words, 2).read_bytes()) == (OLD, pages[2])
    assert not page(words, 3).exists(), "there is no such version"
    assert not page(words, "notes").exists(), "its name is not a version's"
    page(words, 2).unlink()
    redraw(words, [1], said.append)
    assert {number: page(words, number).read_bytes() for number in (1, 2)} == pages
    assert said == []


def test_pages_that_show_a_word_are_rendered(words: Dataset) -> None:
    said: list[str] = []
    rendered = page(words, 1).read_bytes()
    page(words, 1).write_bytes(OLD)
    page(words, 2).write_bytes(b"<p>nothing of it</p>")
    page(words, 3).write_bytes(OLD)
    captions = Words(captions=frozenset(["a heron in the reeds"]))
    redraw_mentioning(words, Scrubber(Words(), Ledger.read(words.storage)), said.append)
    assert page(words, 1).read_bytes() == OLD, "no word, no page"
    redraw_mentioning(words, Scrubber(captions, Ledger.read(words.storage)), said.append)
    assert page(words, 1).read_bytes() == rendered
    assert page(words, 2).read_bytes() == b"<p>nothing of it</p>"
    assert (page(words, 3).read_bytes(), said) == (OLD, [])


def test_a_dataset_without_versions_has_no_cards(tmp_path: Path) -> None:
    said: list[str] = []
    empty = Catalog(tmp_path, create=True).dataset("empty")
    remake(empty, [1], said.append)
    redraw(empty, [1], said.append)
    redraw_mentioning(empty, Scrubber(Words(), Ledger.read(empty.storage)), said.append)
    assert (said, [path for path in tmp_path.rglob("*") if path.is_file()]) == ([], [])
