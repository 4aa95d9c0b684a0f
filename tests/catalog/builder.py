"""What the tests of several processes run: `python builder.py MODE CATALOG ...`, one builder of the dataset `birds`.

grow CATALOG TIMES NAME    under the lease, add one part of our own and publish, so many times
race CATALOG TIMES NAME    the same without the lease: commits alone must keep it whole
soak CATALOG SEED KILLS    fork a builder that publishes for ever, kill it at a random moment, check; so many times
hold CATALOG LIFE_S        take the lease, say `held`, and sleep
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable

import deltalake
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from catalog import delta, lease
from catalog.dataset import Catalog, Dataset
from catalog.errors import NotFoundError
from catalog.parts import PartFile, PartWriter
from catalog.schema import DECISIONS, SOURCE
from catalog.storage import is_temporary
from catalog.version import TableState, VersionFacts

ROWS = 3
# What the work would import later is imported before any fork: pandas, for one, by the first array.
assert deltalake, pyarrow.fs
assert len(pa.array([1])) == 1


def write(dataset: Dataset, table: str, number: int, name: str) -> PartFile:
    """Write the part of ROWS rows that `number` says."""
    schema = SOURCE if table == "source" else DECISIONS
    ids = [number << 24 | row for row in range(ROWS)]
    rows = [{"sample_id": i} | ({"url": f"{name}/{i}"} if table == "source" else {"keep": True}) for i in ids]
    with PartWriter(dataset.storage, table, f"{number:032x}", schema) as writer:
        writer.write(pa.Table.from_pylist(rows, schema=schema))
    return writer.part()


def published(dataset: Dataset, table: str) -> list[PartFile]:
    try:
        return dataset.files(dataset.version(), table)
    except NotFoundError:
        return []


def publish_one_more(dataset: Dataset, number: int, name: str) -> int:
    states = {}
    for table, schema in (("source", SOURCE), ("decisions", DECISIONS)):
        parts = published(dataset, table)
        states[table] = TableState(schema, [*parts, write(dataset, table, number, name)])
    return dataset.publish(states, VersionFacts("", f"{number}", "test")).number


def grow(dataset: Dataset, times: int, name: str) -> None:
    for turn in range(times):
        with lease.hold(dataset, wait_s=None) as held:
            number = int(name) * 1000 + turn
            held.check()
            publish_one_more(dataset, number, name)


def race(dataset: Dataset, times: int, name: str) -> None:
    for turn in range(times):
        number = int(name) * 1000 + turn
        part = write(dataset, "source", number, name)
        dataset.publish({"source": TableState(SOURCE, [part])}, VersionFacts("", f"{number}", "test"))
        dataset.record_run({"run_id": f"{name}-{turn}"})


def check(dataset: Dataset) -> None:
    """Fail unless every version is readable and holds each of its rows once."""
    versions = dataset.versions()
    assert [version.number for version in versions] == list(range(1, len(versions) + 1))
    for version in versions[-2:]:
        for table in ("source", "decisions"):
            files = dataset.files(version, table)
            ids = [i for file in files for i in read_ids(dataset, file)]
            expected = [n << 24 | row for n in range(1, version.number + 1) for row in range(ROWS)]
            assert sorted(ids) == expected, f"{version.label} {table}"
            assert version.tables[table].rows == len(expected)


def read_ids(dataset: Dataset, file: PartFile) -> list[int]:
    ids: list[int] = pq.read_table(file.path, filesystem=dataset.storage.filesystem())["sample_id"].to_pylist()
    return ids


def in_child(act: Callable[[], None]) -> int:
    """Start a forked process that runs `act`; return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        act()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def build_for_ever(dataset: Dataset, done: int) -> None:
    """Publish version after version, and write a byte to the pipe `done` after each."""
    while True:
        with lease.hold(dataset, wait_s=10):
            publish_one_more(dataset, len(dataset.versions()) + 1, "soak")
        os.write(done, b".")


def left_by_halves(dataset: Dataset) -> bool:
    """Whether a publish was begun and not ended: a temporary file, or a part or commit that no version names.

    Sweeps the temporary files, so that the next kill is asked for its own.
    """
    last = dataset.version()
    debris = [path for path in dataset.storage.list() if is_temporary(path)]
    dataset.storage.delete(debris)
    return (
        bool(debris)
        or len(dataset.finished("source")) > last.tables["source"].files
        or len(dataset.finished("versions")) > last.number
        or delta.latest(dataset.storage, "decisions") > last.tables["decisions"].delta_version
    )


def soak(dataset: Dataset, seed: int, kills: int) -> None:
    """Print how many versions and commits there are, and after how many of the kills a publish was left by halves."""
    rng = random.Random(seed)
    halves, counted = os.pipe()

    def check_and_count() -> None:
        check(dataset)
        if left_by_halves(dataset):
            os.write(counted, b".")

    for _ in range(kills):
        published_one, done = os.pipe()
        builder = in_child(lambda: build_for_ever(dataset, done))  # noqa: B023  # forked at once
        os.close(done)
        assert os.read(published_one, 1) == b"."
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(builder, signal.SIGKILL)
        os.close(published_one)
        _, status = os.waitpid(builder, 0)
        assert os.WIFSIGNALED(status), "the builder failed before it was killed"
        # Looked at now: the next builder writes over what this one left.
        _, status = os.waitpid(in_child(check_and_count), 0)
        assert status == 0
    os.close(counted)
    print(len(dataset.versions()), delta.latest(dataset.storage, "source"), len(os.read(halves, kills)))


def hold(dataset: Dataset, life_s: float) -> None:
    with lease.hold(dataset, life_s=life_s):
        print("held", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    mode, uri, *rest = sys.argv[1:]
    birds = Catalog(uri).dataset("birds")
    if mode == "grow":
        grow(birds, int(rest[0]), rest[1])
    elif mode == "race":
        race(birds, int(rest[0]), rest[1])
    elif mode == "soak":
        soak(birds, int(rest[0]), int(rest[1]))
    else:
        hold(birds, float(rest[0]))
