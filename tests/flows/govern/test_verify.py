"""`espalier verify`: it names damaged files, repairs them, and says what to do; builds stop at damage."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catalog import delta, log_copies
from catalog.database import sql
from catalog.dataset import Catalog
from catalog.errors import DamagedError, HeldError, NotFoundError, UserError
from catalog.gc import collect, plan
from catalog.lease import hold
from catalog.pieces import read_parquet
from catalog.storage import Storage
from flows.build.plan import NUMBERS
from flows.cli import main
from flows.govern.approve import approve
from flows.govern.verify import verify
from tests.damage import (
    build,
    content,
    damaged_copy,
    dataset_of,
    dataset_root,
    delete,
    empty,
    files_of,
    flip,
    folder,
    named,
    truncate,
    without_places,
    zeros,
)
from tests.flows.conftest import Web

__all__ = ["damaged_copy"]  # the fixture `web`


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
    for name, kind, said in kinds:  # a part that does not exist is made, and cannot take its name
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
