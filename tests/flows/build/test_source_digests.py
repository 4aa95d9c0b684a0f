"""What a local file is to a build: its content, whatever it says of itself, and one content in one build."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from catalog.database import sql
from catalog.dataset import Catalog
from catalog.errors import UserError
from flows.build.build import build_here
from flows.build.source_digests import Identities
from flows.build.spec import BuildSpec
from tasks.download import Download
from tasks.files.digest import FileState
from tasks.filter.filter import Filter
from tasks.sources.csv import Csv
from tasks.sources.folder import Folder
from tasks.stage import MapStage
from tests.pictures import jpeg
from tests.tasks.sources.test_text import webdataset

KEEP = {"use": "filter", "where": "url is not null"}
GUARDS = {"no_samples": False, "outage": False}


def spec_for(tmp_path: Path, source: dict[str, Any], *stages: dict[str, Any]) -> BuildSpec:
    recipe = {"dataset": "d", "guards": GUARDS, "source": source, "stages": list(stages or [KEEP])}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return BuildSpec.read(tmp_path / "recipe.yaml", catalog=str(tmp_path / "catalog"), executor="inline")


def ask(tmp_path: Path, query: str) -> list[Any]:
    return [next(iter(row.values())) for row in sql(Catalog(tmp_path / "catalog"), query).to_pylist()]


def settle(path: Path) -> None:
    """Wait until a digest of a file may be kept."""
    while time.time_ns() - path.stat().st_ctime_ns < 60_000_000:
        time.sleep(0.01)


def disguised(path: Path, data: bytes, in_place: bool) -> None:
    """Put other content into a file, with the size and time of modification that it had."""
    before = path.stat()
    assert len(data) == before.st_size
    target = path if in_place else path.with_suffix(".new")
    target.write_bytes(data)
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))
    target.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def stored(tmp_path: Path) -> set[str]:
    """Return the parts that are there."""
    return {str(p.relative_to(tmp_path)) for p in (tmp_path / "catalog/d").glob("*/*.parquet") if p.parts[-2] != "runs"}


@pytest.mark.parametrize("in_place", [True, False])
def test_a_source_of_the_same_size_and_time_is_read_again(tmp_path: Path, in_place: bool) -> None:
    file = tmp_path / "a.csv"
    file.write_text("url,caption\nu,one\n")
    settle(file)
    build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}))
    disguised(file, b"url,caption\nu,two\n", in_place)
    build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}))
    assert ask(tmp_path, "select caption from d.samples") == ["two"]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_list_of_the_same_size_and_time_is_read_again(tmp_path: Path, in_place: bool) -> None:
    file, listed = tmp_path / "a.csv", tmp_path / "list.txt"
    file.write_text("url\nu\nv\n")
    listed.write_text("u\n")
    keep = {"use": "filter", "lists": [{"name": "opted_out", "file": str(listed)}]}
    build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}, keep))
    disguised(listed, b"v\n", in_place)
    build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}, keep))
    assert ask(tmp_path, "select url from d.samples") == ["u"]


def test_a_file_that_was_touched_makes_nothing_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("url\nu\n")
    settle(file)
    first = build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}))
    file.chmod(0o600)
    os.utime(file)
    second = build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}))
    assert (second.made, second.version.number) == (0, first.version.number)


def changing(monkeypatch: pytest.MonkeyPatch, kind: type[MapStage], change: Callable[[], object]) -> None:
    """Let a stage change a file as soon as it has begun to work."""
    opened = kind.open

    def open_(self: Any, device: str, sides: Any) -> Any:
        step = opened(self, device, sides)

        def changed(batches: Iterator[pa.Table]) -> Iterator[pa.Table]:
            change()
            yield from step(batches)

        return changed

    monkeypatch.setattr(kind, "open", open_)


@pytest.mark.parametrize("data", [b"url,caption\nu,two\n", b"url,caption\nu,longer\nu,longer\n", b"\n", None])
def test_a_source_that_changes_during_the_build_fails_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None
) -> None:
    file = tmp_path / "a.csv"
    file.write_text("url,caption\nu,one\n")

    def change() -> None:
        if data is None:
            file.unlink()
        elif len(data) == file.stat().st_size:
            disguised(file, data, in_place=True)
        else:
            file.write_bytes(data)

    with monkeypatch.context() as patch:
        changing(patch, Csv, change)
        with pytest.raises(UserError) as caught:
            build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}))
    assert str(caught.value) == f"{file} changed while it was read: build again"
    assert stored(tmp_path) == set()
    file.write_text("url,caption\nu,one\n")
    build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}))
    assert ask(tmp_path, "select caption from d.samples") == ["one"]


def test_a_source_that_is_touched_during_the_build_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.csv"
    file.write_text("url,caption\nu,one\n")
    changing(monkeypatch, Csv, lambda: os.utime(file))
    assert build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)})).version.number == 1


def test_a_list_that_changes_during_the_build_fails_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, listed = tmp_path / "a.csv", tmp_path / "list.txt"
    file.write_text("url\nu\nv\n")
    listed.write_text("u\n")
    keep = {"use": "filter", "lists": [{"name": "opted_out", "file": str(listed)}]}
    with monkeypatch.context() as patch:
        changing(patch, Filter, lambda: disguised(listed, b"v\n", in_place=False))
        with pytest.raises(UserError) as caught:
            build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}, keep))
    assert str(caught.value) == f"{listed} changed while it was read: build again"
    assert not any("/decisions/" in path for path in stored(tmp_path))
    build_here(spec_for(tmp_path, {"use": "csv", "path": str(file)}, keep))
    assert ask(tmp_path, "select url from d.samples") == ["u"]


@pytest.mark.parametrize("name", ["0.jpg", "1.txt"])
def test_a_picture_or_caption_that_changes_during_the_build_fails_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.jpg").write_bytes(jpeg(32, 32, i))
        (folder / f"{i}.txt").write_text(f"caption {i}")
    settle(folder / "1.txt")
    changing(monkeypatch, Folder, lambda: (folder / name).write_bytes(b"other"))
    with pytest.raises(UserError) as caught:
        build_here(spec_for(tmp_path, {"use": "folder", "path": str(folder)}, {"use": "download"}))
    assert str(caught.value) == f"{folder}/{name} changed while it was read: build again"
    assert stored(tmp_path) == set()


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_pictures_that_change_before_they_are_stored_fail_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The rows are there from an earlier build; only the stage that reads the pictures runs."""
    folder = tmp_path / "in"
    folder.mkdir()
    if kind == "folder":
        file = folder / "a.jpg"
        file.write_bytes(jpeg(32, 32, 1))
    else:
        webdataset(folder, [b"a"])
        file = folder / "a.tar"
    source = {"use": kind, "path": str(folder)}
    build_here(spec_for(tmp_path, source, KEEP))
    changing(monkeypatch, Download, lambda: file.write_bytes(b"x" * 600))
    with pytest.raises(UserError) as caught:
        build_here(spec_for(tmp_path, source, {"use": "download"}))
    assert str(caught.value) == f"{file} changed while it was read: build again"
    assert not any("/images/" in path for path in stored(tmp_path))


def test_what_is_kept_of_files_by_older_releases_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"url": ["u"]}), file)
    dataset = Catalog(tmp_path / "catalog", create=True).dataset("d")
    settle(file)
    identities = Identities(dataset)
    digest = identities(str(file))
    identities.save()
    (key,) = dataset.state("identities")
    found = file.stat()
    dataset.set_state("identities", {key: [found.st_size, found.st_mtime_ns, "0" * 64]})
    assert Identities(dataset)(str(file)) == digest
    dataset.set_state("identities", {key: [*FileState.of(file), "kept"]})
    assert Identities(dataset)(str(file)) == "kept"  # and what is kept by this one is not read again
