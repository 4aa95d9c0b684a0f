"""Damage of every kind, to every file of a small published dataset: it is named, mended, and nothing else is."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from catalog.dataset import Catalog, Dataset
from catalog.errors import BuildError, NotFoundError, UserError
from catalog.repair import pending
from catalog.verify import Findings, Verifier
from flows.build import Order, build_here
from flows.verify import is_settled, lines, verify
from tests.hostile_server import HostileServer
from tests.pictures import jpeg

from .conftest import Web

STAGES = "  - use: deduplicate\n  - use: filter\n    where: width > 0\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """A dataset of three parts, one of them with a retry, that nobody changes."""
    with HostileServer() as server:
        web = Web(tmp_path_factory.mktemp("verify"), server)
        web.add_file("a", [*web.pictures(range(6)), server.body(b"gone", status=404)])
        web.add_file("b", [*web.pictures(range(6, 9))])
        web.recipe(STAGES)
        build(web)
        yield web


@pytest.fixture
def web(built: Web, tmp_path: Path) -> Web:
    """The same dataset in a catalog of its own."""
    copy = Web.__new__(Web)
    copy.folder, copy.server, copy.catalog = built.folder, built.server, str(tmp_path / "catalog")
    shutil.copytree(built.catalog, copy.catalog)
    return copy


def build(web: Web) -> int:
    """Build; return how many parts were made."""
    order = Order.read(web.folder / "recipe.yaml", catalog=web.catalog, executor="inline")
    return build_here(order).made


def dataset_of(web: Web) -> Dataset:
    return Catalog(web.catalog).dataset("web")


def content(web: Web, number: int | None = None) -> dict[str, list[Any]]:
    """Return every row of every table of a version; images with their bytes."""
    dataset = dataset_of(web)
    version = dataset.version(number)
    found = {}
    for table in version.tables:
        files = [str(dataset.storage.local(f.path)) for f in dataset.files(version, table)]
        rows: pa.Table = duckdb.sql(
            f"select * from read_parquet({files!r}, union_by_name = true) order by all"
        ).to_arrow_table()
        found[table] = rows.to_pylist()
    for row in found["images"]:
        if row["shard"]:
            row["bytes"] = dataset.storage.read_range(row["shard"], row["byte_offset"], row["byte_size"])
    return found


def files_of(web: Web) -> list[Path]:
    """Return every file of the dataset that is checked."""
    root = Path(web.catalog, "web")
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name != "_lease" and "_reports" not in p.parts)


def flip(path: Path, share: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * share), len(data) - 1)] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


def zeros(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def named(web: Web) -> list[str]:
    return [damage.path for damage in Verifier(dataset_of(web)).run().damages]


def test_a_sound_dataset_is_sound(web: Web) -> None:
    findings = Verifier(dataset_of(web)).run()
    assert findings.damages == []
    assert findings.without_digest == 0
    assert findings.files == len(files_of(web))
    one, _ = verify(Catalog(web.catalog), "web@1")
    assert one.is_sound
    assert one.label == "web@1"
    assert next(lines(findings, None)).startswith("web is sound: ")


@pytest.mark.parametrize("harm", [flip, truncate, empty, delete, zeros])
def test_each_file_in_turn_is_named_and_mended(web: Web, built: Web, harm: Callable[[Path], None]) -> None:
    before = content(web)
    for original in files_of(built):
        path = original.relative_to(Path(built.catalog, "web"))
        harm(Path(web.catalog, "web", path))
        assert named(web) == [str(path)], harm
        findings, mended = verify(Catalog(web.catalog), "web", repair=True)
        assert is_settled(findings, mended) or str(path).startswith("runs/"), list(lines(findings, mended))
        made = build(web)
        assert made <= 1
        assert content(web) == before
        assert dataset_of(web).version().number == 1
        shutil.rmtree(Path(web.catalog, "web/_quarantine"), ignore_errors=True)
        assert named(web) == []
        if str(path).startswith("runs/"):  # what it said is lost
            shutil.rmtree(web.catalog)
            shutil.copytree(built.catalog, web.catalog)
