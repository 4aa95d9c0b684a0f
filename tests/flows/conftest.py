"""A small real corpus behind a real server, and a recipe for it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.cli import main
from tests.hostile_server import HostileServer
from tests.pictures import jpeg

Run = Callable[..., tuple[int, str, str]]


class Web:
    """Pictures on loopback, the Parquet files that point at them, and a recipe that builds a dataset from them."""

    def __init__(self, folder: Path, server: HostileServer) -> None:
        self.folder = folder
        self.server = server
        self.catalog = str(folder / "catalog")
        (folder / "urls").mkdir()

    def add_file(self, name: str, urls: list[str]) -> None:
        """Write one Parquet file of the source."""
        table = pa.table(
            {"URL": urls, "TEXT": [f"picture {i} of {name}" for i in range(len(urls))], "WIDTH": [9] * len(urls)}
        )
        pq.write_table(table, self.folder / "urls" / f"{name}.parquet")

    def pictures(self, seeds: range) -> list[str]:
        """Serve pictures; return their URLs."""
        return [self.server.body(jpeg(96, 80, seed)) for seed in seeds]

    def recipe(self, stages: str = "", text: str = "") -> Path:
        """Write the recipe; return its path."""
        path = self.folder / "recipe.yaml"
        path.write_text(
            f"dataset: web\nsource: {{use: parquet, path: {self.folder}/urls, rows_per_part: 4}}\n"
            f"stages:\n  - use: download\n    image_size: 64\n    timeout_s: 5\n    retries: 0\n"
            f"    allow_hosts: {list(self.server.hosts)!r}\n{stages}{text}"
        )
        return path


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    with HostileServer() as server:
        made = Web(tmp_path, server)
        urls = made.pictures(range(6))
        made.add_file("a", [*urls, urls[0], server.body(b"gone", status=404)])
        yield made


@pytest.fixture
def client(prefect_server: str) -> Iterator[Any]:
    """A client of the session's Prefect API."""
    from prefect import get_client

    with get_client(sync_client=True) as made:
        yield made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command and returns (exit code, standard output, standard error)."""

    def run_command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["espalier", *words])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run_command
