"""A small published dataset to damage, and ways to damage its files."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from catalog.dataset import Catalog, Dataset
from catalog.verify import Verifier
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from tasks.images import decode_fault
from tests.flows.conftest import Web
from tests.hostile_server import HostileServer

STAGES = "  - use: deduplicate\n  - use: filter\n    where: width > 0\n"


@contextmanager
def published(folder: Path) -> Iterator[Web]:
    """Provide a published dataset of three parts, and the web server of its pictures."""
    with HostileServer() as server:
        web = Web(folder, server)
        web.add_file("a", [*web.pictures(range(6)), server.body(b"gone", status=404)])
        web.add_file("b", [*web.pictures(range(6, 9))])
        web.recipe(STAGES)
        build(web)
        yield web


def copy_of(web: Web, catalog: Path) -> Web:
    """Copy the catalog; return the same dataset in the copy."""
    copy = Web.__new__(Web)
    copy.folder, copy.server, copy.catalog = web.folder, web.server, str(catalog)
    shutil.copytree(web.catalog, copy.catalog)
    return copy


@pytest.fixture(name="web")
def damaged_copy(published_web: Web, tmp_path: Path) -> Web:
    """A published dataset in a catalog that a test may damage."""
    return copy_of(published_web, tmp_path / "catalog")


@contextmanager
def served(web: Web, url: str, data: bytes, status: int = 200) -> Iterator[None]:
    """Let a URL answer otherwise for a while."""
    name = url.rpartition("/")[2]
    before = web.server._handlers[name]
    web.server.at(name, web.server.body(data, status=status))
    yield
    web.server._handlers[name] = before


def url_of(web: Web, sample_id: int) -> str:
    return next(str(row["url"]) for row in content(web)["source"] if row["sample_id"] == sample_id)


def build(web: Web, *overrides: str) -> int:
    """Build; return how many parts were made."""
    spec = BuildSpec.read(web.folder / "recipe.yaml", catalog=web.catalog, executor="inline", overrides=overrides)
    return build_here(spec).made


def dataset_of(web: Web) -> Dataset:
    return Catalog(web.catalog).dataset("web")


def dataset_root(web: Web) -> Path:
    return Path(web.catalog, "web")


def content(web: Web, number: int | None = None) -> dict[str, list[Any]]:
    """Return every row of every table of a version; images with their bytes."""
    dataset = dataset_of(web)
    version = dataset.version(number)
    found = {}
    for table in version.tables:
        files = [str(dataset.storage.local(f.path)) for f in dataset.files(version, table)]
        rows = (
            duckdb.default_connection()
            .sql(f"select * from read_parquet({files!r}, union_by_name = true) order by all")
            .to_arrow_table()
        )
        found[table] = rows.to_pylist()
    for row in found["images"]:
        if row["shard"]:
            row["bytes"] = dataset.storage.read_range(row["shard"], row["byte_offset"], row["byte_size"])
    return found


def without_places(tables: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return tables without where the bytes lie: pictures that nobody can compare are fetched into another shard."""
    places = ("shard", "byte_offset")
    return {t: [{k: v for k, v in r.items() if k not in places} for r in rows] for t, rows in tables.items()}


def files_of(web: Web) -> list[Path]:
    """Return every file of the dataset that is checked."""
    root = Path(web.catalog, "web")
    return sorted(p for p in root.rglob("*") if p.is_file() and p.name != "_lease" and "_reports" not in p.parts)


def tar_of(web: Web) -> Path:
    return next(p for p in files_of(web) if p.suffix == ".tar")


def named(web: Web) -> list[str]:
    return [damage.path for damage in Verifier(dataset_of(web), decode_fault).run().damages]


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


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


HARMS = [flip, truncate, empty, delete, zeros]


def harm_logs(web: Web, harm: Callable[[Path], None], tables: Sequence[str] = ("runs", "versions", "images")) -> None:
    """Damage the last commits of logs, and all copies of logs."""
    root = dataset_root(web)
    last = [max((root / table / "_delta_log").glob("*.json")) for table in tables]
    for path in [*last, *(root / "_copies/logs").iterdir()]:
        harm(path)
