"""A repair restores damaged files, or the next build makes them again; nothing else changes."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog import delta
from catalog.dataset import REPAIRS, UNFINISHED, Catalog, Dataset
from catalog.errors import BusyError, HeldError, UserError
from catalog.lease import hold
from catalog.parts import describe_part
from catalog.pieces import read_parquet
from catalog.repair import rewrite, set_pending, settle
from catalog.storage import Storage
from catalog.verify import Verifier
from flows.govern.approve import approve
from flows.govern.verify import is_settled, lines, verify
from tasks.images import decode_fault
from tests.damage import (
    HARMS,
    build,
    content,
    damaged_copy,
    dataset_of,
    dataset_root,
    empty,
    files_of,
    flip,
    halve,
    harm_logs,
    named,
    tar_of,
    without_places,
    zeros,
)
from tests.flows.conftest import Web

__all__ = ["damaged_copy"]  # the fixture `web`


def mend_each(web: Web, published_web: Web, harm: Callable[[Path], None], some: slice) -> None:
    before = content(web)
    for original in files_of(published_web)[some]:
        path = original.relative_to(Path(published_web.catalog, "web"))
        harm(Path(web.catalog, "web", path))
        findings, mended = verify(Catalog(web.catalog), "web", repair=True)
        assert [damage.path for damage in findings.damages] == [str(path)]
        assert is_settled(findings, mended) or str(path).startswith("runs/"), list(lines(findings, mended))
        assert build(web) <= 1
        assert content(web) == before
        assert dataset_of(web).version().number == 1
        assert named(web) == []
        if str(path).startswith("runs/"):  # what it said is lost
            shutil.rmtree(web.catalog)
            shutil.copytree(published_web.catalog, web.catalog)


def test_what_is_damaged_is_mended_and_nothing_else_is_made(web: Web, published_web: Web) -> None:
    for number, harm in enumerate(HARMS):
        mend_each(web, published_web, harm, slice(number, None, 2 * len(HARMS)))


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_each_file_in_turn_is_mended(web: Web, published_web: Web, harm: Callable[[Path], None]) -> None:
    mend_each(web, published_web, harm, slice(None))


def test_everything_at_once_is_mended(web: Web) -> None:
    """All parts, shards and commits together, as a bad disk does it; the copies are sound."""
    before = content(web)
    harmed = [p for p in files_of(web) if "_copies" not in p.parts and "runs" not in p.parts]
    for number, path in enumerate(harmed):
        HARMS[number % len(HARMS)](path)
    findings, mended = verify(Catalog(web.catalog), "web", repair=True)
    assert is_settled(findings, mended), list(lines(findings, mended))
    build(web)
    now = content(web)
    assert without_places(now) == without_places(before)


@pytest.mark.parametrize("harm", [halve, empty])
def test_logs_whose_copies_are_lost_too_are_written_anew(web: Web, harm: Callable[[Path], None]) -> None:
    """With parts of them, and the commits of a table that versions need."""
    before = content(web)
    harm_logs(web, harm)
    for table in ("runs", "versions"):
        harm(min((dataset_root(web) / table).glob("*.parquet")))
    findings, mended = verify(Catalog(web.catalog), "web", repair=True)
    assert mended
    assert len(mended.lost) == 3, list(lines(findings, mended))
    assert build(web) == 0
    assert named(web) == []
    assert without_places(content(web)) == without_places(before)


class Killed(BaseException):
    """As a kill is, nothing catches it."""


@contextmanager
def killed_after(changes: int) -> Iterator[list[str]]:
    """Raise Killed at once after so many changes of files and logs; give the list of those that were made."""
    made: list[str] = []

    def changing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **named: Any) -> Any:
            done = real(*arguments, **named)
            made.append(name)
            if len(made) >= changes:
                raise Killed
            return done

        return change

    with pytest.MonkeyPatch.context() as patch:
        for place, names in ((Storage, ("put", "move", "create", "delete")), (delta, ("commit", "remove"))):
            for name in names:
                patch.setattr(place, name, changing(name, getattr(place, name)))
        yield made


def test_a_repair_that_is_killed_is_finished_by_the_next(web: Web, published_web: Web) -> None:
    """After any change that it makes: it rewrites logs without a copy, and moves parts and shards to the quarantine."""
    before = content(published_web)
    judged = dataset_of(web).files(dataset_of(web).version(), "decisions")[0].path
    for changes in range(1, 200):
        shutil.rmtree(web.catalog)
        shutil.copytree(published_web.catalog, web.catalog)
        harm_logs(web, halve)
        zeros(dataset_root(web) / judged)
        flip(tar_of(web))
        with killed_after(changes) as made:
            try:
                verify(Catalog(web.catalog), "web", repair=True)
            except Killed:
                pass
            else:
                break
        if UNFINISHED in dataset_of(web).state(REPAIRS):
            with pytest.raises(UserError, match="a repair of 'web' was interrupted"):
                build(web)
        verify(Catalog(web.catalog), "web", repair=True)
        build(web)
        assert named(web) == [], (changes, made)
        assert without_places(content(web)) == without_places(before), (changes, made)
    assert 15 < changes < 199


def test_a_log_of_versions_that_is_written_anew_keeps_an_approval(web: Web) -> None:
    with pytest.raises(HeldError):
        build(web, "filter.where=width > 2", "guards.min_rows=1000")
    approve(Catalog(web.catalog), "web@2")
    harm_logs(web, empty, ["versions"])
    verify(Catalog(web.catalog), "web", repair=True)
    assert [(v.number, v.is_held) for v in dataset_of(web).versions()] == [(1, False), (2, False)]


def test_a_sidecar_waits_for_the_source_that_it_repeats(web: Web) -> None:
    """Also where the source's part, and the version, are other sound files."""
    before = content(web)
    root = Path(web.catalog, "web")
    sidecar = next(p for p in sorted((root / "shards").glob("*.parquet")))
    right = sidecar.read_bytes()
    sources = sorted((root / "source").glob("*.parquet"))
    first, last = sources[0].read_bytes(), sources[-1].read_bytes()
    sources[0].write_bytes(last)
    for path in sources[1:]:
        path.write_bytes(first)
    next((root / "versions").glob("*.parquet")).write_bytes(first)
    sidecar.unlink()
    _, mended = verify(Catalog(web.catalog), "web", repair=True)
    assert mended
    assert "build, then" in mended.lost[0]
    build(web)
    assert is_settled(*verify(Catalog(web.catalog), "web", repair=True))
    assert named(web) == []
    assert sidecar.read_bytes() == right
    assert without_places(content(web)) == without_places(before)


def test_a_kill_while_a_part_that_was_made_again_is_settled(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says already what the part is now, and its copy does not: the next build settles it."""
    dataset = dataset_of(web)
    part = describe_part(dataset.storage, dataset.files(dataset.version(), "source")[0].path)
    rewrite(dataset, part.path, Path(part.path).stem, {"made": "otherwise"}, part.files, {})
    set_pending(dataset, {part.path: part.sha256}, {})

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("catalog.repair.restate", killed)
        with pytest.raises(KeyboardInterrupt):
            settle(dataset)
    settle(dataset)
    assert named(web) == []


def test_nobody_mends_what_somebody_builds(web: Web) -> None:
    with hold(dataset_of(web)), pytest.raises(BusyError):
        verify(Catalog(web.catalog), "web", repair=True)


def test_on_an_object_store(s3: Callable[[], str], published_web: Web) -> None:
    catalog = s3()
    web = Web.__new__(Web)
    web.folder, web.server, web.catalog = published_web.folder, published_web.server, catalog
    build(web)
    dataset = dataset_of(web)
    rows = {t: read(dataset, t) for t in ("images", "samples", "decisions")}
    damaged, other = [f.path for f in dataset.files(dataset.version(), "images")][:2]
    sample = dataset.files(dataset.version(), "samples")[0].path
    # Of the shard of a part that is damaged itself nothing is known: so another's.
    shards = [path for path in describe_part(dataset.storage, other).files if not path.endswith(".json")]
    chosen = ["images/_delta_log/00000000000000000000.json", damaged, sample, *shards]
    for number, path in enumerate(chosen):
        data = bytearray(dataset.storage.read(path))
        data[len(data) // 2] ^= 1
        dataset.storage.put(path, b"" if number == 2 else bytes(data))
    findings, mended = verify(Catalog(catalog), "web", repair=True)
    assert [d.path for d in findings.damages] == sorted(chosen)
    assert is_settled(findings, mended)
    build(web)
    assert {t: read(dataset, t) for t in rows} == rows
    assert Verifier(dataset, decode_fault).run().is_sound


def read(dataset: Dataset, table: str) -> list[Any]:
    paths = [f.path for f in dataset.files(dataset.version(), table)]
    rows: list[Any] = pa.concat_tables([read_parquet(dataset.storage, path) for path in paths]).to_pylist()
    return rows
