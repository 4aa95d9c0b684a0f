"""Versions: published whole or not at all, by however many builders, killed whenever; and readable for ever."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import delta
from catalog.dataset import Catalog, Dataset, check_name
from catalog.errors import BalanceError, BuildError, NotFoundError, UserError
from catalog.parts import PartFile
from catalog.schema import DECISIONS, SOURCE
from catalog.version import TableState, VersionFacts

StartBuilder = Callable[..., "subprocess.Popen[str]"]
ROOT = Path(__file__).parents[2]
WritePart = Callable[..., PartFile]


def outcome(process: "subprocess.Popen[str]", timeout_s: float = 120) -> str:
    """Wait for a builder; return what it printed."""
    with process:
        out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err[-3000:]
    return out


@pytest.fixture
def parts(dataset: Dataset, write_part: WritePart) -> list[PartFile]:
    return [
        write_part(dataset, "source", number, [{"sample_id": number << 24 | row} for row in range(number + 1)])
        for number in range(4)
    ]


def state(parts: list[PartFile]) -> dict[str, TableState]:
    return {"source": TableState(SOURCE, parts), "decisions": TableState(DECISIONS, [])}


def test_a_version_says_where_it_comes_from(dataset: Dataset, parts: list[PartFile], facts: VersionFacts) -> None:
    before = datetime.now(UTC)
    version = dataset.publish(state(parts), facts)
    assert version.label == "birds@1"
    assert before - timedelta(seconds=1) < version.created_at < datetime.now(UTC) + timedelta(seconds=1)
    read = dataset.version()
    assert read == version
    for name, value in vars(facts).items():
        assert getattr(read, name) == value
    assert read.tables["source"].rows == 1 + 2 + 3 + 4
    assert read.bytes == sum(dataset.storage.list("source")[part.path] for part in parts)
    assert dataset.files(read, "source") == parts
    assert dataset.files(read, "decisions") == []


def test_old_versions_stay(dataset: Dataset, parts: list[PartFile], facts: VersionFacts) -> None:
    for n in (2, 4, 1):
        dataset.publish(state(parts[:n]), facts)
    assert [v.number for v in dataset.versions()] == [1, 2, 3]
    assert [dataset.files(v, "source") for v in dataset.versions()] == [parts[:2], parts, parts[:1]]


def test_publishing_the_same_again_is_the_same_version(
    dataset: Dataset, parts: list[PartFile], facts: VersionFacts
) -> None:
    first = dataset.publish(state(parts), facts)
    assert dataset.publish(state(parts[::-1]), replace(facts, stages=[{"seconds": 3}])) == first
    assert dataset.publish(state(parts), replace(facts, recipe_sha256="1" * 64)).number == 2


def test_a_kill_between_commit_and_version_costs_nothing(
    dataset: Dataset, parts: list[PartFile], facts: VersionFacts
) -> None:
    first = dataset.publish(state(parts[:2]), facts)
    delta.commit(dataset.storage, "source", SOURCE, parts)  # and here it was killed
    assert dataset.version() == first
    assert dataset.files(dataset.version(), "source") == parts[:2]
    assert dataset.publish(state(parts[:2]), facts) == first  # the old recipe again: nothing new
    assert dataset.publish(state(parts), facts).number == 2


def test_finished_parts_by_one_listing(dataset: Dataset, parts: list[PartFile]) -> None:
    dataset.storage.put("source/.x.parquet.tmp-12-0123abcd", b"half")
    delta.commit(dataset.storage, "source", SOURCE, parts[:1])
    assert dataset.finished("source") == {f"{n:032x}": part.bytes for n, part in enumerate(parts)}
    assert dataset.finished("nothing") == {}
    assert dataset.tables() == ("source",)


def test_parts_with_other_columns_are_noticed(
    dataset: Dataset, parts: list[PartFile], facts: VersionFacts, write_part: WritePart
) -> None:
    assert dataset.publish(state(parts[:2]), facts).tables["source"].uniform
    wider = SOURCE.append(pa.field("licence", pa.string()))
    new = write_part(dataset, "source", 9, [{"sample_id": 9 << 24, "licence": "CC0"}], wider)
    grown = dataset.publish({"source": TableState(wider, [*parts[:2], new])}, facts)
    assert not grown.tables["source"].uniform
    assert dataset.publish({"source": TableState(wider, [new])}, facts).tables["source"].uniform


def test_wrong_claims_publish_nothing(dataset: Dataset, parts: list[PartFile], facts: VersionFacts) -> None:
    more = replace(parts[0], rows=99)
    with pytest.raises(BalanceError, match="has 1 row, expected 99"):
        dataset.publish(state([more]), facts)
    with pytest.raises(BuildError, match="does not exist"):
        dataset.publish(state([PartFile("source/ff.parquet", 1, 1)]), facts)
    assert dataset.versions() == []
    with pytest.raises(NotFoundError, match="has no version yet"):
        dataset.version()


def test_what_is_not_there_says_what_is(catalog: Catalog, parts: list[PartFile], facts: VersionFacts) -> None:
    birds = catalog.dataset("birds")
    birds.publish(state(parts[:1]), facts)
    birds.publish(state(parts[:2]), facts)
    assert catalog.datasets() == ("birds",)
    assert catalog.resolve("birds@1").number == 1
    assert catalog.resolve("birds").number == 2
    for label, words in (
        ("birds@7", "no version 7; there is: 1, 2"),
        ("bird", "did you mean 'birds'"),
        ("birds@x", "expected DATASET or DATASET@NUMBER"),
    ):
        with pytest.raises(UserError, match=words):
            catalog.resolve(label)
    with pytest.raises(NotFoundError, match="no table 'sourc'; did you mean 'source'"):
        birds.files(birds.version(), "sourc")


@pytest.mark.parametrize("name", ["laion", "a", "laion_2b", "x" * 63])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "Laion", "my-set", "2b", "../x", "a b", "main", "temp", "_x", "x" * 64, "naïve"])
def test_bad_names_get_a_good_one(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a dataset") as caught:
        check_name(name)
    suggested = str(caught.value).split("'")[-2]
    assert check_name(suggested) == suggested


def test_state_is_kept(dataset: Dataset) -> None:
    assert dataset.state("attempts") == {}
    dataset.set_state("attempts", {"a": [1, {"b": None}]})
    assert dataset.state("attempts") == {"a": [1, {"b": None}]}
    dataset.storage.put("_state/attempts.json", b"{")
    with pytest.raises(BuildError, match="not JSON"):
        dataset.state("attempts")


def test_other_tools_read_the_last_version(dataset: Dataset, parts: list[PartFile], facts: VersionFacts) -> None:
    from deltalake import DeltaTable

    dataset.publish(state(parts), facts)
    place = dataset.storage.child("source")
    read = DeltaTable(place.uri, storage_options=place.delta_options()).to_pyarrow_table()
    expected = pa.concat_tables(
        [pq.read_table(p.path, filesystem=dataset.storage.filesystem(), columns=["sample_id"]) for p in parts]
    )
    assert sorted(read["sample_id"].to_pylist()) == expected["sample_id"].to_pylist()


def test_builders_at_once_lose_and_double_nothing(catalog: Catalog, builder: StartBuilder) -> None:
    processes, times = 2, 3
    for process in [builder("grow", catalog.uri, times, name) for name in range(1, processes + 1)]:
        outcome(process)
    birds = catalog.dataset("birds")
    versions = birds.versions()
    assert [v.number for v in versions] == list(range(1, processes * times + 1))
    expected = [f"{n * 1000 + t:032x}" for n in range(1, processes + 1) for t in range(times)]
    for table in ("source", "decisions"):
        assert [Path(p.path).stem for p in birds.files(versions[-1], table)] == expected


def test_without_the_lease_every_version_is_whole(catalog: Catalog, builder: StartBuilder) -> None:
    processes, times = 2, 3
    for process in [builder("race", catalog.uri, times, name) for name in range(1, processes + 1)]:
        outcome(process)
    birds = catalog.dataset("birds")
    versions = birds.versions()
    assert [v.number for v in versions] == list(range(1, processes * times + 1))
    for version in versions:  # each is exactly what its publisher said
        assert [p.path for p in birds.files(version, "source")] == [f"source/{int(version.recipe_sha256):032x}.parquet"]
    assert sorted(birds.runs()["run_id"].to_pylist()) == [
        f"{name}-{turn}" for name in range(1, processes + 1) for turn in range(times)
    ]


def test_killed_builders_leave_the_last_version(tmp_path: Path, builder: StartBuilder) -> None:
    Catalog(tmp_path, create=True)
    kills = 12
    versions, commits, halves = map(int, outcome(builder("soak", tmp_path, 1, kills)).split())
    assert versions >= kills
    assert commits >= versions - 1
    assert halves, "kills that hit nothing prove nothing: some must leave a publish half done"


def test_full_disk_publishes_nothing_by_halves(full_disk: Path, facts: VersionFacts, write_part: WritePart) -> None:
    birds = Catalog(full_disk).dataset("birds")
    parts = [write_part(birds, "source", 0, [{"sample_id": 0}])]
    first = birds.publish(state(parts), facts)
    with (full_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(b"x" * 4096):
            pass
    more = replace(facts, recipe_sha256="1" * 64, recipe="x" * 100_000)
    with pytest.raises(BuildError, match="no space left") as caught:
        birds.publish({"source": TableState(SOURCE.append(pa.field("more", pa.string())), parts)}, more)
    assert "\n" not in str(caught.value)
    assert birds.versions() == [first]
    assert birds.files(birds.version(), "source") == parts
    (full_disk / "filler").unlink()
    assert birds.publish(state(parts), more).number == 2


def test_catalog_that_we_may_not_write_is_one_line(tmp_path: Path) -> None:
    catalog = tmp_path / "theirs"
    catalog.mkdir()
    for parent in catalog.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    catalog.chmod(0o555)
    script = (
        "import os, sys\n"
        "from catalog.dataset import *; from catalog.errors import UserError; from catalog.schema import SOURCE\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: Catalog(sys.argv[1]).dataset('birds').publish({'source': TableState(SOURCE, [])}, "
        "VersionFacts('', '', ''))\n"
        "except UserError as error: print(error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(catalog)], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert ran.stdout.startswith(f"may not write {catalog}/birds/source"), ran.stderr
    assert ran.stdout.count("\n") == 1


HELD = ("no samples", "all 3 rows that were tried failed")


def publish_as(dataset: Dataset, parts: list[PartFile], facts: VersionFacts, digest: str, held: bool = False) -> int:
    found = replace(facts, recipe_sha256=digest * 64)
    return dataset.publish(state(parts), found, HELD if held else ()).number


def test_a_held_version_is_there_and_never_the_last(
    catalog: Catalog, parts: list[PartFile], facts: VersionFacts
) -> None:
    birds = catalog.dataset("birds")
    assert publish_as(birds, parts[:1], facts, "a", held=True) == 1
    assert birds.last() is None
    with pytest.raises(NotFoundError, match=r"every version .* is held: name one, like birds@1, .*approve birds@1`"):
        birds.version()
    assert publish_as(birds, parts[:2], facts, "b") == 2
    assert [publish_as(birds, parts[:n], facts, "c", held=True) for n in (3, 4)] == [3, 4]
    assert (catalog.resolve("birds").number, catalog.resolve("birds@4").held) == (2, HELD)
    assert [v.number for v in birds.held()] == [4, 3]
    assert [v.is_held for v in birds.versions()] == [True, False, True, True]
    assert birds.files(birds.version(4), "source") == parts
    assert birds.republish().number == 5
    assert (birds.files(birds.version(), "source"), birds.version().held) == (parts[:2], ())


def test_publishing_a_held_version_again_is_the_same_version(
    dataset: Dataset, parts: list[PartFile], facts: VersionFacts
) -> None:
    publish_as(dataset, parts[:1], facts, "a")
    assert publish_as(dataset, parts, facts, "b", held=True) == 2
    assert publish_as(dataset, parts, facts, "b", held=True) == 2
    assert publish_as(dataset, parts[:1], facts, "a", held=True) == 1  # what counts already is not held afterwards
    assert publish_as(dataset, parts, facts, "b") == 3  # no guard holds it any more: it counts, under its own number
    assert [v.is_held for v in dataset.versions()] == [False, True, False]
    assert publish_as(dataset, parts[:1], facts, "a", held=True) == 4
    assert publish_as(dataset, parts, facts, "b", held=True) == 3


def test_approving_a_held_version(dataset: Dataset, parts: list[PartFile], facts: VersionFacts) -> None:
    publish_as(dataset, parts[:1], facts, "a")
    for digest in ("b", "c"):
        publish_as(dataset, parts, facts, digest, held=True)
    before = dataset.version(2)
    approved = dataset.approve(2)
    assert approved == replace(before, approved_at=approved.approved_at) == dataset.last()
    assert (approved.held, approved.is_held) == (HELD, False)
    assert [v.number for v in dataset.held()] == [3]
    assert publish_as(dataset, parts, facts, "b", held=True) == 2  # approved once, it is not held again
    for number, words in (
        (1, "birds@1 is not held: there is nothing to approve"),
        (2, "birds@2 was approved before, at 20"),
        (9, "no version 9; there is: 1, 2, 3"),
    ):
        with pytest.raises(UserError, match=words):
            dataset.approve(number)
    publish_as(dataset, parts[:2], facts, "d")
    dataset.approve(3)
    assert dataset.version().number == 4  # a later one counts already
    assert [v.number for v in dataset.versions()] == [1, 2, 3, 4]
    with pytest.raises(UserError, match="version 4 is the last one and cannot be removed"):
        dataset.forget([4])


def test_the_last_version_that_counts_is_never_forgotten(
    dataset: Dataset, parts: list[PartFile], facts: VersionFacts
) -> None:
    publish_as(dataset, parts[:1], facts, "a")
    publish_as(dataset, parts, facts, "b", held=True)
    with pytest.raises(UserError, match="version 1 is the last one and cannot be removed"):
        dataset.forget([1])
    dataset.forget([2])
    assert [v.number for v in dataset.versions()] == [1]


def test_an_approval_that_is_killed_leaves_the_version_held(
    dataset: Dataset, parts: list[PartFile], facts: VersionFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_as(dataset, parts, facts, "b", held=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(delta, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            dataset.approve(1)
    assert len(dataset.finished("versions")) == 2  # its new row is written, and no commit names it
    assert (dataset.last(), [v.is_held for v in dataset.versions()]) == (None, [True])
    dataset.approve(1)
    assert [v.is_held for v in dataset.versions()] == [False]


def test_approving_while_others_publish(
    tmp_path: Path, parts: list[PartFile], facts: VersionFacts, builder: StartBuilder
) -> None:
    """Without the lease, commits alone must keep both: neither row may be lost."""
    birds = Catalog(tmp_path, create=True).dataset("birds")
    for number in range(1, 4):
        birds.publish({}, replace(facts, recipe_sha256=f"held {number}"), HELD)
    racing = builder("race", tmp_path, 4, 1)
    for number in range(1, 4):
        birds.approve(number)
    outcome(racing)
    assert [v.number for v in birds.versions()] == list(range(1, 8))
    assert [bool(v.approved_at) for v in birds.versions()] == [True] * 3 + [False] * 4


def test_versions_of_an_older_release(
    dataset: Dataset, parts: list[PartFile], facts: VersionFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows have no `held`: they count. The first write adds the columns, and SQL reads both kinds."""
    from catalog.database import sql
    from catalog.version import VERSIONS

    fields = [f for f in VERSIONS if f.name not in ("held", "approved_at")]
    with monkeypatch.context() as patch:
        for module in ("catalog.dataset", "catalog.version"):
            patch.setattr(f"{module}.VERSIONS", pa.schema(fields))
        publish_as(dataset, parts[:1], facts, "a")
        publish_as(dataset, parts[:2], facts, "b")
    assert [(v.held, v.approved_at) for v in dataset.versions()] == [((), None)] * 2
    assert publish_as(dataset, parts, facts, "c", held=True) == 3
    assert dataset.version().number == 2
    catalog = Catalog(dataset.storage.uri.rpartition("/")[0])
    found = sql(catalog, "select number, held, approved_at is null as waits from birds.versions order by 1")
    assert [tuple(row.values()) for row in found.to_pylist()] == [(1, None, True), (2, None, True), (3, [*HELD], True)]
    dataset.approve(3)
    assert dataset.version().number == 3
