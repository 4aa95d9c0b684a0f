"""Storage: the same behaviour on a folder and on an S3 server; whole files or none; one line for each trouble."""

import errno
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import BuildError, NotFoundError, UserError
from catalog.storage import Storage, is_temporary


def test_put_read_list(storage: Storage) -> None:
    rng = random.Random(0)
    files = {f"t/{i}/{'x' * i}.bin": rng.randbytes(rng.randrange(2000)) for i in range(8)}
    for path, data in files.items():
        storage.put(path, data)
    assert storage.list() == {path: len(files[path]) for path in sorted(files)}
    assert all(storage.read(path) == data for path, data in files.items())
    assert storage.list("t/3") == {f"t/3/{'x' * 3}.bin": len(files[f"t/3/{'x' * 3}.bin"])}
    assert storage.list("t/33") == {}
    assert storage.list("nothing/here") == {}
    assert storage.folders() == ("t",)
    assert storage.child("t").folders() == tuple(str(i) for i in range(8))
    assert storage.child("t").list() == {path[2:]: size for path, size in storage.list().items()}


def test_read_range_is_a_slice(storage: Storage) -> None:
    data = bytes(range(256)) * 10
    storage.put("a.bin", data)
    for offset, size in ((0, 1), (5, 100), (2550, 10), (2550, 100)):
        assert storage.read_range("a.bin", offset, size) == data[offset : offset + size]


def test_put_replaces_and_create_does_not(storage: Storage) -> None:
    storage.put("a", b"one")
    storage.put("a", b"two")
    assert storage.read("a") == b"two"
    assert not storage.create("a", b"three")
    assert storage.create("b", b"three")
    assert (storage.read("a"), storage.read("b")) == (b"two", b"three")


def test_of_racing_creators_one_wins(storage: Storage) -> None:
    barrier = threading.Barrier(6)

    def create(i: int) -> bool:
        barrier.wait()
        return storage.create("lease", str(i).encode())

    with ThreadPoolExecutor(6) as pool:
        won = list(pool.map(create, range(6)))
    assert sum(won) == 1
    assert storage.read("lease") == str(won.index(True)).encode()


def test_writer_shows_nothing_before_the_end(storage: Storage) -> None:
    with storage.writer("big.bin") as file:
        for _ in range(12):
            file.write(b"x" * (1 << 20))
        assert not storage.exists("big.bin")
    assert storage.list() == {"big.bin": 12 << 20}


def test_writer_leaves_nothing_after_an_error(storage: Storage) -> None:
    with pytest.raises(KeyError), storage.writer("bad.bin") as file:  # noqa: PT012
        file.write(b"x")
        raise KeyError("the block's own")
    assert storage.list() == {}


def test_writer_lets_the_blocks_own_os_errors_through(storage: Storage) -> None:
    with pytest.raises(PermissionError), storage.writer("bad.bin"):
        raise PermissionError(errno.EACCES, "of another file")


def test_delete_passes_over_what_is_not_there(storage: Storage) -> None:
    storage.put("a/b", b"1")
    storage.put("a/c", b"2")
    storage.delete(["a/b", "a/nothing"])
    storage.delete([])
    assert list(storage.list()) == ["a/c"]


def test_missing_file_is_one_line(storage: Storage) -> None:
    with pytest.raises(NotFoundError, match=r"no/file does not exist$"):
        storage.read("no/file")
    with pytest.raises(NotFoundError, match=r"no/file does not exist$"):
        storage.read_range("no/file", 0, 1)
    assert not storage.exists("no/file")


def test_arrow_reads_and_duckdb_paths(storage: Storage) -> None:
    rows = pa.table({"a": [1, 2, 3]})
    with storage.child("d").writer("t/p.parquet") as file:
        pq.write_table(rows, file)
    assert pq.read_table("d/t/p.parquet", filesystem=storage.filesystem()) == rows
    assert pq.read_table("t/p.parquet", filesystem=storage.child("d").filesystem()) == rows


def test_pickled_it_is_the_same_place(storage: Storage) -> None:
    storage.put("a", b"1")
    assert pickle.loads(pickle.dumps(storage)).read("a") == b"1"


def test_scan_tells_age(storage: Storage) -> None:
    before = time.time()
    storage.put("a", b"1")
    (entry,) = storage.scan()
    assert before - 1 <= entry.modified_s <= time.time()  # S3 cuts the fraction of a second off


def test_open_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        Storage.open(tmp_path / "no")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFoundError, match="not a folder"):
        Storage.open(tmp_path / "file")
    with pytest.raises(UserError, match="unknown scheme 's33'; did you mean 's3'"):
        Storage.open("s33://bucket/x")
    assert Storage.open(f"file://{tmp_path}").uri == str(tmp_path)


@pytest.mark.usefixtures("bucket")
def test_missing_bucket_is_one_line() -> None:
    with pytest.raises(BuildError, match="no-such-bucket") as caught:
        Storage.open("s3://no-such-bucket/x")
    assert "\n" not in str(caught.value)


def test_a_failed_upload_leaves_no_pieces(bucket: str) -> None:
    import boto3

    storage = Storage.open(f"{bucket}/x")
    with pytest.raises(RuntimeError), storage.writer("half.bin") as file:  # noqa: PT012
        file.write(b"x" * (11 << 20))
        raise RuntimeError
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    assert not client.list_multipart_uploads(Bucket=bucket.removeprefix("s3://")).get("Uploads")
    assert storage.list() == {}


def test_replace_wants_the_tag_that_it_saw(bucket: str) -> None:
    storage = Storage.open(bucket)
    storage.put("a", b"1")
    data, tag = storage.tagged("a")
    assert data == b"1"
    assert storage.replace("a", b"2", tag)
    assert not storage.replace("a", b"3", tag)
    assert storage.read("a") == b"2"


def test_temporary_names_are_recognised(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path)
    with storage.writer("t/a.parquet"):
        (unfinished,) = storage.list()
    assert is_temporary(unfinished)
    assert not is_temporary("t/a.parquet")
    assert not any(is_temporary(path) for path in storage.list())


def test_killed_writer_leaves_only_a_temporary_file(tmp_path: Path) -> None:
    script = (
        "import sys, time; from catalog.storage import Storage\n"
        "with Storage.open(sys.argv[1]).writer('t/a') as f:\n"
        "    f.write(b'x' * 100_000); f.flush(); print('writing', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.kill()
    (left,) = Storage.open(tmp_path).list()
    assert is_temporary(left)


def test_full_disk_is_one_line(full_disk: Path) -> None:
    storage = Storage.open(full_disk)
    storage.put("small", b"kept")
    with pytest.raises(BuildError, match="no space left") as caught:
        storage.put("large", b"x" * (8 << 20))
    assert "\n" not in str(caught.value)
    assert storage.list() == {"small": 4}


def test_folder_that_we_may_not_write_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o555)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    script = (
        "import os, sys; from catalog.errors import UserError; from catalog.storage import Storage\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: Storage.open(sys.argv[1]).put('a', b'1')\n"
        "except UserError as error: print(error)"
    )
    ran = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=60)
    assert ran.stdout.strip() == f"may not use {folder}/a: Permission denied", ran.stderr
