"""Damage of every kind, to every file of a small published dataset: it is named, mended, and nothing else is."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import delta, log_copies
from catalog.database import sql
from catalog.dataset import REPAIRS, UNFINISHED, Catalog, Dataset
from catalog.errors import BusyError, DamagedError, HeldError, NotFoundError, UserError
from catalog.gc import collect, plan
from catalog.inputs import STORED, stored_error
from catalog.lease import hold
from catalog.parts import describe_part
from catalog.pieces import read_parquet
from catalog.repair import pending, rewrite, set_pending, settle
from catalog.shard_check import check_shards
from catalog.storage import Storage
from catalog.takedown.amend import amend
from catalog.takedown.reach import Names
from catalog.verify import Verifier
from flows.build.build import build_here
from flows.build.plan import NUMBERS
from flows.build.spec import BuildSpec
from flows.cli import main
from flows.explore.failures import begin_retry
from flows.govern.approve import approve
from flows.govern.takedown import take_down
from flows.govern.verify import is_settled, lines, verify
from tasks.images import decode_fault
from tests.flows.conftest import Web
from tests.hostile_server import HostileServer
from tests.pictures import jpeg

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


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def espalier(web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return a function that runs the command line on this catalog: exit code, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["espalier", *words, "--catalog", web.catalog])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


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


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def named(web: Web) -> list[str]:
    return [damage.path for damage in Verifier(dataset_of(web), decode_fault).run().damages]


def test_a_sound_dataset_is_sound(web: Web) -> None:
    findings = Verifier(dataset_of(web), decode_fault).run()
    assert findings.damages == []
    assert findings.without_digest == 0
    assert findings.files == len(files_of(web))
    one, _ = verify(Catalog(web.catalog), "web@1")
    assert one.is_sound
    assert one.label == "web@1"
    assert next(lines(findings, None)).startswith("web is sound: ")


HARMS = [flip, truncate, empty, delete, zeros]


@pytest.mark.parametrize("harm", HARMS)
def test_each_file_in_turn_is_named(web: Web, harm: Callable[[Path], None]) -> None:
    for path in files_of(web):
        data = path.read_bytes()
        harm(path)
        assert named(web) == [str(path.relative_to(Path(web.catalog, "web")))], harm
        path.write_bytes(data)
    assert named(web) == []


def test_a_flip_anywhere_in_a_file_is_found(web: Web) -> None:
    for path in files_of(web):
        data = path.read_bytes()
        for share in (0.0, 0.25, 0.9, 1.0):
            flip(path, share)
            assert named(web) == [str(path.relative_to(Path(web.catalog, "web")))], share
            path.write_bytes(data)


def mend_each(web: Web, built: Web, harm: Callable[[Path], None], some: slice) -> None:
    before = content(web)
    for original in files_of(built)[some]:
        path = original.relative_to(Path(built.catalog, "web"))
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
            shutil.copytree(built.catalog, web.catalog)


def test_what_is_damaged_is_mended_and_nothing_else_is_made(web: Web, built: Web) -> None:
    for number, harm in enumerate(HARMS):
        mend_each(web, built, harm, slice(number, None, 2 * len(HARMS)))


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_each_file_in_turn_is_mended(web: Web, built: Web, harm: Callable[[Path], None]) -> None:
    mend_each(web, built, harm, slice(None))


def without_places(tables: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return tables without where the bytes lie: pictures that nobody can compare are fetched into another shard."""
    places = ("shard", "byte_offset")
    return {t: [{k: v for k, v in r.items() if k not in places} for r in rows] for t, rows in tables.items()}


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


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(b"x")


def test_a_folder_in_the_place_of_a_file_is_one_damage(web: Web, espalier: Command) -> None:
    """Of each kind of file; it is set aside like any other."""
    before, root = content(web), dataset_root(web)
    files = [p for p in files_of(web) if "runs" not in p.parts and "_copies" not in p.parts]
    each = {(p.parent, p.suffix): p for p in files} | {p.parent: p for p in (root / "_copies").rglob("*.*")}
    for chosen in each.values():
        path = chosen if chosen.exists() else max(chosen.parent.iterdir())  # repeated copies have a new name
        folder(path)
        name = path.relative_to(root).as_posix()
        code, out, _ = espalier("verify", "web")
        assert (code, out.splitlines()[0]) == (1, f"{name}: unreadable: it is a folder, expected a file")
        assert named(web) == [name]
        code, out, err = espalier("verify", "web", "--repair")
        assert code == 0, (name, out, err)
        assert [p.read_bytes() for p in root.glob(f"_quarantine/*/{name}/x")] == [b"x"]
        assert build(web) <= 1
        assert named(web) == []
        shutil.rmtree(root / "_quarantine")
    assert content(web) == before


def test_a_build_that_meets_a_folder_names_it(web: Web) -> None:
    source = dataset_of(web).files(dataset_of(web).version(), "source")[0].path
    kinds = (("_state/numbers.json", DamagedError, " is damaged: it"), (source, NotFoundError, ""))
    for name, kind, said in kinds:  # a part that is not there is made, and cannot take its name
        path = dataset_root(web) / name
        data = path.read_bytes()
        folder(path)
        with pytest.raises(kind, match=f"{name}{said} is a folder, expected a file"):
            build(web, "filter.where=width > 1")
        shutil.rmtree(path)
        path.write_bytes(data)


@pytest.mark.parametrize("harm", [flip, delete, folder])
def test_part_numbers_are_found_again_and_none_is_given_twice(
    web: Web, harm: Callable[[Path], None], espalier: Command
) -> None:
    """Where they and their copy are lost: the names of the source's parts say which chunk has which."""
    before, dataset = content(web), dataset_of(web)
    numbers = dataset.state(NUMBERS)
    added = web.folder / "urls" / "0.parquet"
    try:
        web.add_file("0", web.pictures(range(30, 33)))  # it comes first: numbering again would give it a's numbers
        for name in ("_state/numbers.json", "_copies/state/numbers.json"):
            harm(dataset_root(web) / name)
        assert "_state/numbers.json" in named(web)
        with pytest.raises(DamagedError, match=r"numbers.json is damaged: .*`espalier verify web --repair`"):
            build(web)
        code, out, _ = espalier("verify", "web", "--repair")
        assert code == 0, (out, _)
        assert "_state/numbers.json: set aside in _quarantine, the next build makes it again" in out
        build(web)
    finally:
        added.unlink()
    now = dataset.state(NUMBERS)
    assert {key: now[key] for key in numbers} == numbers
    given = [number for key, number in now.items() if key not in numbers]
    assert len(given) == len(set(given)) == 2
    assert min(given) > 1000
    assert content(web, 1) == before
    ids = {r["sample_id"] for r in before["source"]}
    assert [r for r in content(web)["source"] if r["sample_id"] in ids] == before["source"]
    assert named(web) == []
    assert build(web) == 0
    assert content(web) == before


def test_a_state_that_nothing_can_make_again_is_one_line(web: Web, espalier: Command) -> None:
    dataset = dataset_of(web)
    dataset.set_state("retries", {})
    for name in ("_state/retries.json", "_copies/state/retries.json"):
        flip(dataset_root(web) / name)
    code, out, _ = espalier("verify", "web", "--repair")
    assert code == 1
    assert "_state/retries.json has no undamaged copy: restore it, or its copy, from a backup of the catalog" in out
    with pytest.raises(DamagedError, match=r"retries.json is damaged: .*from a backup of the catalog$"):
        build(web)


def harm_logs(web: Web, harm: Callable[[Path], None], tables: Sequence[str] = ("runs", "versions", "images")) -> None:
    """Damage the last commits of logs, and all copies of logs."""
    root = dataset_root(web)
    last = [max((root / table / "_delta_log").glob("*.json")) for table in tables]
    for path in [*last, *(root / "_copies/logs").iterdir()]:
        harm(path)


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


LOST_LOG = "images/_delta_log/00000000000000000000.json has no copy: versions that need it are lost (1); "


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        (["versions", "_copies"], "no row of a version is left: the next build publishes version 1 again"),
        (["versions/_delta_log", "_copies"], None),
        (["versions/_delta_log", "_copies", "_state/copies.json", "_state/numbers.json"], None),
        (["images", "shards", "versions/_delta_log", "_copies"], LOST_LOG),
        (["images", "_copies"], LOST_LOG),
    ],
)
def test_whole_folders_that_are_gone_with_the_copies(
    web: Web, espalier: Command, gone: list[str], said: str | None
) -> None:
    """The list of versions is written again of their rows; what is lost is one line, and a build goes on after it."""
    before, root = content(web), dataset_root(web)
    for name in gone:
        (root / name).unlink() if (root / name).is_file() else shutil.rmtree(root / name)
    code, out, err = espalier("verify", "web")
    assert (code, err) == (1, ""), out
    if "_state/numbers.json" not in gone:
        with pytest.raises(DamagedError, match="verify web --repair"):
            build(web, "filter.where=width > 1")
    code, out, err = espalier("verify", "web", "--repair")
    assert (code, err) == (0 if said is None else 1, ""), out
    assert said is None or [line for line in out.splitlines() if said in line], out
    build(web)
    assert without_places(content(web)) == without_places(before)
    espalier("verify", "web", "--repair")  # copies of notes that no build writes
    assert espalier("verify", "web")[0] == 0


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


def test_a_repair_that_is_killed_is_finished_by_the_next(web: Web, built: Web) -> None:
    """After any change that it makes: it rewrites logs without a copy, and moves parts and shards to the quarantine."""
    before = content(built)
    judged = dataset_of(web).files(dataset_of(web).version(), "decisions")[0].path
    for changes in range(1, 200):
        shutil.rmtree(web.catalog)
        shutil.copytree(built.catalog, web.catalog)
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


def test_a_dataset_that_forgot_versions_is_sound(web: Web) -> None:
    build(web, "filter.where=width > 1")
    collect(plan(dataset_of(web), older_than_s=-60.0, keep_versions=1))
    assert [version.number for version in dataset_of(web).versions()] == [2]
    assert named(web) == []


def tar_of(web: Web) -> Path:
    return next(p for p in files_of(web) if p.suffix == ".tar")


def dataset_root(web: Web) -> Path:
    return Path(web.catalog, "web")


def test_pictures_that_changed_since_are_another_version(web: Web) -> None:
    """What was made from the old pictures does not stand beside new ones; the old version says what it lacks."""
    dataset, before = dataset_of(web), content(web)
    row = next(row for row in before["images"] if row["shard"])
    with served(web, url_of(web, row["sample_id"]), jpeg(96, 80, 77)):
        flip(Path(web.catalog, "web", row["shard"]))
        assert is_settled(*verify(Catalog(web.catalog), "web", repair=True))
        assert build(web) > 1
        assert dataset.version().number == 2
        now = {r["sample_id"]: r for r in content(web)["images"]}
        assert now[row["sample_id"]]["pixels_sha256"] != row["pixels_sha256"]
        others = {r["sample_id"]: r["bytes"] for r in before["images"] if r["shard"] and r is not row}
        assert {i: now[i]["bytes"] for i in others} == others
        assert verify(Catalog(web.catalog), "web@2")[0].is_sound
        (left,) = verify(Catalog(web.catalog), "web@1")[0].damages
        assert (left.path, left.kind) == (row["shard"], "missing")
        assert pending(dataset) == {"parts": {}, "shards": {}}
        assert build(web) == 0


def test_pictures_that_changed_since_in_a_damaged_part(web: Web) -> None:
    """Nobody can compare them row by row; so what was made from them is made again."""
    dataset, before = dataset_of(web), content(web)
    row = next(row for row in before["images"] if row["shard"])
    paths = [f.path for f in dataset.files(dataset.version(), "images")]
    (path,) = [p for p in paths if row["sample_id"] in read_parquet(dataset.storage, p)["sample_id"].to_pylist()]
    with served(web, url_of(web, row["sample_id"]), jpeg(96, 80, 77)):
        zeros(Path(web.catalog, "web", path))
        assert is_settled(*verify(Catalog(web.catalog), "web", repair=True))
        assert build(web) > 1
        assert verify(Catalog(web.catalog), "web@2")[0].is_sound
        assert [d.path for d in verify(Catalog(web.catalog), "web@1")[0].damages] == [path]
        now = {r["sample_id"]: r["pixels_sha256"] for r in content(web)["images"]}
        changed = {r["sample_id"] for r in before["images"] if r["pixels_sha256"] != now[r["sample_id"]]}
        assert changed == {row["sample_id"]}


def test_pictures_that_are_gone_are_failed_rows(web: Web) -> None:
    row = next(r for r in content(web)["images"] if r["shard"])
    with served(web, url_of(web, row["sample_id"]), b"", 404):
        truncate(Path(web.catalog, "web", row["shard"]))
        verify(Catalog(web.catalog), "web", repair=True)
        build(web)
    now = {r["sample_id"]: r for r in content(web)["images"]}[row["sample_id"]]
    assert (now["status"], now["http_status"]) == ("failed", 404)


def test_a_retry_keeps_its_rows_when_an_attempt_is_damaged(web: Web) -> None:
    gone = next(r for r in content(web)["images"] if r["reason"])
    with served(web, url_of(web, gone["sample_id"]), jpeg(96, 80, 78)):
        spec = begin_retry(dataset_of(web), [gone["reason"]], web.catalog, "inline").spec
        build_here(spec)
        before = content(web)
        shards = sorted({r["shard"] for r in before["images"] if r["shard"]})
        assert len(shards) == 4
        for path in (*shards, *(f.path for f in dataset_of(web).files(dataset_of(web).version(), "images"))):
            flip(Path(web.catalog, "web", path))
            findings, mended = verify(Catalog(web.catalog), "web", repair=True)
            assert [d.path for d in findings.damages] == [path]
            assert is_settled(findings, mended)
            build(web)
            assert content(web) == before
        assert named(web) == []


def test_a_build_stops_at_a_damaged_file(web: Web) -> None:
    """Of each kind that cannot be read; it names the file and the command."""
    dataset = dataset_of(web)
    judged = [f.path for f in dataset.files(dataset.version(), "decisions")]
    read = [dataset.files(dataset.version(), table)[0].path for table in ("source", "images")]
    read += [p for p in judged if "deduplicate" in read_parquet(dataset.storage, p)["stage"].to_pylist()]
    for number, part in enumerate(read):
        table = part.partition("/")[0]
        for step, harm in enumerate((truncate, empty, zeros)):
            path = Path(web.catalog, "web", part)
            data = path.read_bytes()
            harm(path)
            with pytest.raises(DamagedError, match=f"{path.name} is damaged: .*`espalier verify web --repair`"):
                build(web, f"filter.where=width > {1 + 3 * number + step}")  # else what reads it may be there already
            with pytest.raises(DamagedError, match=f"{path.name} is damaged"):
                sql(Catalog(web.catalog), f"select * from web.{table}")
            path.write_bytes(data)
    build(web, "filter.where=width > 1")


def test_an_empty_or_missing_commit_is_no_commit_of_nothing(web: Web) -> None:
    web.add_file("c", web.pictures(range(20, 22)))
    try:
        build(web)
    finally:
        (web.folder / "urls" / "c.parquet").unlink()
    dataset = dataset_of(web)
    commit = Path(web.catalog, "web/images/_delta_log/00000000000000000001.json")
    data = commit.read_bytes()
    for harm in (empty, delete):
        harm(commit)
        with pytest.raises(DamagedError, match="images/_delta_log is damaged"):
            dataset.files(dataset.version(2), "images")
        with pytest.raises(DamagedError, match="verify web --repair"):
            build(web)  # the commit that follows would take its number
        assert verify(Catalog(web.catalog), "web@1")[0].label == "web@1"
        verify(Catalog(web.catalog), "web", repair=True)
        assert commit.read_bytes() == data


@pytest.mark.parametrize("act", ["publish", "approve", "forget"])
def test_a_kill_between_a_commit_and_its_copy_is_no_damage(
    web: Web, act: str, monkeypatch: pytest.MonkeyPatch, espalier: Command
) -> None:
    """The log is only newer than its copies; who takes the lease next copies the rest."""
    acts: dict[str, tuple[str, Callable[[], object]]] = {
        "publish": ("append", lambda: build(web, "filter.where=width > 1")),
        "approve": ("replace", lambda: approve(Catalog(web.catalog), "web@2")),
        "forget": ("remove", lambda: collect(plan(dataset_of(web), older_than_s=-60.0, keep_versions=1))),
    }
    if act == "approve":
        with pytest.raises(HeldError):
            build(web, "filter.where=width > 2", "guards.min_rows=1000")
    elif act == "forget":
        build(web, "filter.where=width > 2")
    name, run = acts[act]
    before = delta.latest(dataset_of(web).storage, "versions")
    real = getattr(delta, name)

    def killed(storage: Storage, table: str, *arguments: Any) -> Any:
        number = real(storage, table, *arguments)
        if table == "versions":
            raise KeyboardInterrupt
        return number

    with monkeypatch.context() as patch:
        patch.setattr(delta, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert delta.latest(dataset_of(web).storage, "versions") == before + 1
    assert espalier("verify", "web")[0] == 0
    with hold(dataset_of(web)):
        pass
    dataset = dataset_of(web)
    newest = log_copies.newest(dataset.storage)
    assert newest is not None
    assert {t: newest.until[t] for t in dataset.tables()} == {
        t: delta.latest(dataset.storage, t) for t in dataset.tables()
    }
    assert newest.until["versions"] == before + 1
    build(web, "filter.where=width > 3")
    assert named(web) == []
    newest_path = max((dataset_root(web) / "_copies/logs").iterdir())
    newest_path.unlink()  # that a file of copies was lost is found all the same
    assert named(web) == [newest_path.relative_to(dataset_root(web)).as_posix()]


def test_a_commit_that_cannot_be_read_is_not_copied(web: Web) -> None:
    """Nor what follows it: a copy is what damage is found by."""
    dataset = dataset_of(web)
    commit = dataset_root(web) / "images/_delta_log/00000000000000000001.json"
    commit.write_bytes(b'{"add"')
    (commit.parent / "00000000000000000002.json").write_bytes(b'{"commitInfo": {}}\n')
    dataset.copy_logs()
    newest = log_copies.newest(dataset.storage)
    assert newest is not None
    assert newest.until["images"] == 0


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


TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 2.0},
}


def test_damaged_pictures_never_become_rows_without_an_embedding(web: Web, tmp_path: Path) -> None:
    config = tmp_path / "tiny.json"
    config.write_text(json.dumps(TINY))
    stages = f"  - use: embed\n    encoders: [{{name: clip, model: {config}, pretrained: random}}]\n"
    spec = BuildSpec((web.folder / "recipe.yaml").read_text() + stages, "r", web.catalog, (), "inline")
    for harm in (zeros, halve, empty, delete):
        tar = tar_of(web)
        data = tar.read_bytes()
        harm(tar)
        with pytest.raises(DamagedError, match=f"{tar.name} is damaged: .*verify web --repair"):
            build_here(spec)
        tar.write_bytes(data)
    zeros(tar_of(web))
    verify(Catalog(web.catalog), "web", repair=True)
    build_here(spec)
    rows = content(web)["embeddings"]
    assert len(rows) == 9
    assert all(row["embed_reason"] is None for row in rows)


def test_a_picture_that_this_decoder_cannot_read_is_no_damage(web: Web, tmp_path: Path) -> None:
    """The shard is what was written: the row has no vector, as it had when its decoder was this one."""
    rows = pa.table({"sample_id": [1], "image": pa.array([b"no picture"], pa.large_binary())})
    assert stored_error(rows, 0, "undecodable") is None
    unchecked = rows.replace_schema_metadata({STORED: b"1"})
    assert isinstance(stored_error(unchecked, 0, "undecodable"), DamagedError)
    parts = [f.path for f in dataset_of(web).files(dataset_of(web).version(), "images")]
    sample = next(r["sample_id"] for r in content(web)["images"] if r["shard"])
    assert check_shards(dataset_of(web).storage, parts, sample, decode_fault) is None


def test_a_takedown_leaves_digests_that_are_right(web: Web) -> None:
    sample = next(r["sample_id"] for r in content(web)["images"] if r["shard"])
    take_down(dataset_of(web), Names(sample_ids=frozenset([sample])))
    assert named(web) == []
    flip(tar_of(web))
    assert named(web) == [tar_of(web).relative_to(dataset_root(web)).as_posix()]


@pytest.mark.parametrize(
    ("taken", "lost"),
    [*itertools.product(("first", "last", "some"), ("part", "shard", "both")), ("all", "part")],
)
def test_what_a_takedown_took_rows_from_is_mended(web: Web, taken: str, lost: str) -> None:
    """Every version, byte for byte, from the web, and the rows stay away."""
    ids = sorted(r["sample_id"] for r in content(web)["images"] if r["shard"] and r["sample_id"] >> 24 == 0)
    gone = {"first": ids[:1], "last": ids[-1:], "some": [ids[0], ids[2]], "all": ids}[taken]
    urls = [url_of(web, sample_id) for sample_id in gone]
    for some in (gone[:1], gone[1:]):  # by two take-downs, where there are several
        if some:
            take_down(dataset_of(web), Names(sample_ids=frozenset(some)))
    build(web)
    assert named(web) == []
    dataset, root = dataset_of(web), dataset_root(web)
    numbers = [version.number for version in dataset.versions()]
    before = {number: content(web, number) for number in numbers}
    parts = [f.path for f in dataset.files(dataset.version(), "images")]
    (part,) = [p for p in parts if gone[0] in read_parquet(dataset.storage, p)["sample_id"].to_pylist()]
    shard = next((p for p in describe_part(dataset.storage, part).files if p.endswith(".tar")), "")
    assert bool(shard) == (taken != "all")  # in which nothing is left
    hits = [web.server.hits[url] for url in urls]
    for path in {"part": [part], "shard": [shard], "both": [part, shard]}[lost]:
        zeros(root / path) if path == part else halve(root / path)
    assert is_settled(*verify(Catalog(web.catalog), "web", repair=True))
    build(web)
    assert named(web) == []
    assert [version.number for version in dataset.versions()] == numbers
    assert {number: content(web, number) for number in numbers} == before
    assert [web.server.hits[url] for url in urls] == hits
    assert {r["reason"] for r in content(web)["images"] if r["sample_id"] in gone} == {"taken_down"}
    assert build(web) == 0


def test_a_takedown_does_not_bless_damage(web: Web) -> None:
    row = next(r for r in content(web)["images"] if r["shard"])
    shard = Path(web.catalog, "web", row["shard"])
    data = bytearray(shard.read_bytes())
    data[-600] ^= 1  # in the padding of the last member: of another row
    shard.write_bytes(data)
    take_down(dataset_of(web), Names(sample_ids=frozenset([row["sample_id"]])))
    assert named(web) == [row["shard"]]


def test_one_version_alone(web: Web) -> None:
    build(web, "filter.where=width > 1")
    dataset = dataset_of(web)
    old = {f.path for f in dataset.files(dataset.version(1), "samples")}
    new = {f.path for f in dataset.files(dataset.version(2), "samples")}
    flip(Path(web.catalog, "web", min(new - old)))
    assert verify(Catalog(web.catalog), "web@1")[0].is_sound
    assert [d.path for d in verify(Catalog(web.catalog), "web@2")[0].damages] == [min(new - old)]
    with pytest.raises(NotFoundError, match="has no version 3"):
        verify(Catalog(web.catalog), "web@3")
    with pytest.raises(UserError, match="espalier verify web --repair"):
        verify(Catalog(web.catalog), "web@2", repair=True)


def test_nobody_mends_what_somebody_builds(web: Web) -> None:
    with hold(dataset_of(web)), pytest.raises(BusyError):
        verify(Catalog(web.catalog), "web", repair=True)


def test_on_an_object_store(s3: Callable[[], str], built: Web) -> None:
    catalog = s3()
    web = Web.__new__(Web)
    web.folder, web.server, web.catalog = built.folder, built.server, catalog
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


def strip(path: Path) -> None:
    """Make a part one of an older release: without digests."""
    rows = pq.read_table(path)
    pq.write_table(rows, path, compression="zstd", write_page_checksum=True)


def test_a_dataset_of_an_older_release_is_checked_as_far_as_can_be(web: Web) -> None:
    root = dataset_root(web)
    shutil.rmtree(root / "_copies")
    (root / "_state/copies.json").unlink()
    for path in sorted((root / "_state").glob("*.json")):
        value = json.loads(path.read_text())
        value.pop("espalier.sha256")
        path.write_text(json.dumps(value))
    dataset = dataset_of(web)
    for path in root.rglob("*.parquet"):
        if "shards" not in path.parts:
            strip(path)
    for table in (*dataset.tables(), "versions", "runs"):
        amend(dataset.storage, table, [f"{table}/{name}.parquet" for name in dataset.finished(table)])
    findings = Verifier(dataset, decode_fault).run()
    assert findings.is_sound, findings.damages
    assert findings.without_digest > 20
    assert "have no digest" in list(lines(findings, None))[-1]
    shard = next(p for p in root.rglob("*.tar"))
    part = next(p for p in root.glob("images/*.parquet"))
    for path, harm in ((shard, zeros), (shard, truncate), (part, truncate), (part, zeros), (part, delete)):
        data = path.read_bytes()
        harm(path)
        assert named(web) == [path.relative_to(root).as_posix()], harm
        path.write_bytes(data)
    before = content(web)
    zeros(shard)
    findings, mended = verify(Catalog(web.catalog), "web", repair=True)
    assert is_settled(findings, mended)
    build(web)
    now = content(web)
    # Nobody can say that it is the same shard: the pictures are an attempt of their own.
    assert without_places(now) == without_places(before)
