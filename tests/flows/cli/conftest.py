"""A small catalog that commands read, and the check of how they answer a mistake."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.build.build import build_here
from flows.build.spec import BuildSpec
from tests.flows.conftest import Web
from tests.hostile_server import HostileServer
from tests.pictures import jpeg


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Two versions of `web`, and `order` and `select`, whose names are words of SQL. No test changes the catalog.

    `web` has eight rows: samples 0 and 6 have the same URL, 1 and 5 the same bytes, and the server does not find 7. Its
    versions keep four and two of them. Beside the catalog are files that commands cannot use.
    """
    with HostileServer() as server:
        web = Web(tmp_path_factory.mktemp("commands"), server)
        urls = [*web.pictures(range(5)), server.body(jpeg(96, 80, 1))]
        web.add_file("a", [*urls, urls[0], server.body(b"gone", status=404)])
        for name, keep in (("web", 4), ("web", 2), ("order", 2), ("select", 2)):
            recipe = web.recipe(f"  - {{use: prune, method: random, keep_rows: {keep}}}\n  - use: report\n")
            recipe.write_text(recipe.read_text().replace("dataset: web", f"dataset: {name}"))
            build_here(BuildSpec.read(recipe, catalog=web.catalog, executor="inline"))
            recipe.rename(web.folder / "latest.yaml") if name == "web" else None
        web.recipe("  - {use: prune, method: random, keep_rows: 1}\n  - use: report\n", "prices: {cpu_hour: 0.1}\n")
        (web.folder / "file").write_text("text\n")
        (web.folder / "twice.csv").write_text("url,url\nu,v\n")
        os.mkfifo(web.folder / "fifo")
        for name in ("binary", "binary.parquet"):
            (web.folder / name).write_bytes(bytes(range(256)) * 9)
        yield web


@pytest.fixture
def own(built: Web, tmp_path: Path) -> str:
    """A copy of the catalog, which a test may change."""
    return str(shutil.copytree(built.catalog, tmp_path / "own"))


def filled(built: Web, words: list[str]) -> list[str]:
    """Return words with the paths of files beside the catalog in place of their names in braces."""
    known = {name: built.folder / name for name in ("file", "binary", "fifo")}
    known |= {"folder": built.folder, "recipe": built.folder / "recipe.yaml"}
    for name, path in known.items():
        words = [word.replace(f"{{{name}}}", str(path)) for word in words]
    return words


def check(words: list[str], code: int, out: str, err: str, codes: tuple[int, ...] = (2,), expected: str = "") -> None:
    """Check that a command answered a mistake with one line, which has the expected text."""
    assert code in codes, (words, err)
    assert out == "", words
    assert err.startswith("espalier: "), (words, err)
    assert len(err.splitlines()) == 1, err
    assert err.strip() != "espalier:", words
    assert "fault of Espalier" not in err, (words, err)
    assert "Value error" not in err, (words, err)
    assert "Assertion failed" not in err, (words, err)
    assert "Traceback" not in err
    assert "Errno" not in err, err
    assert err.strip().isprintable(), err
    assert expected in err, words


def name_of(mistake: tuple[str, ...]) -> str:
    """Return the name of the test of a mistake, whose first item is the expected text."""
    return " ".join(mistake[1:])[:60].encode("unicode_escape").decode()
