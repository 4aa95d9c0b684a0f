"""Sealed files carry their own digest, so that any changed byte is detected."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.seal import JSON_KEY, Seal, digest_of, is_sealed, opened_json, read_seal, sealed_json, sealed_parquet
from catalog.storage import Storage

ROWS = pa.table({"sample_id": list(range(100)), "caption": ["a bird"] * 100})


def seal_of(folder: Path, data: bytes) -> Seal:
    storage = Storage.open(folder, create=True)
    storage.put("rows.parquet", data)
    *_, seal = read_seal(storage, "rows.parquet", len(data))
    assert isinstance(seal, Seal)
    return seal


def test_a_sealed_parquet_file_is_readable_and_matches_its_digest(tmp_path: Path) -> None:
    data = sealed_parquet(ROWS)
    seal = seal_of(tmp_path, data)
    assert seal.recorded == seal.found
    assert pq.read_table(pa.BufferReader(data)).equals(ROWS)


@pytest.mark.parametrize("at", [10, 200, -20])
def test_a_changed_byte_of_a_sealed_parquet_file_is_detected(tmp_path: Path, at: int) -> None:
    data = bytearray(sealed_parquet(ROWS))
    data[at] ^= 1
    seal = seal_of(tmp_path, bytes(data))
    assert seal.recorded != seal.found


def test_a_file_without_a_seal_has_no_recorded_digest(tmp_path: Path) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(ROWS, buffer)
    assert seal_of(tmp_path, buffer.getvalue().to_pybytes()).recorded is None
    assert seal_of(tmp_path, b"not a Parquet file").recorded is None


def test_sealed_json_gives_its_object_back() -> None:
    data = sealed_json({"b": [1, 2], "a": "é"})
    assert is_sealed(data)
    assert opened_json(data) == {"a": "é", "b": [1, 2]}


def test_changed_json_is_refused() -> None:
    changed = json.loads(sealed_json({"number": 1})) | {"number": 2}
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        opened_json(json.dumps(changed).encode())


def test_json_of_an_older_release_is_accepted_without_a_digest() -> None:
    data = b'{"number": 1}'
    assert not is_sealed(data)
    assert opened_json(data) == {"number": 1}


@pytest.mark.parametrize("data", [b"[1]", b"{", b"\xff"])
def test_other_content_is_not_a_json_object(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is not"):
        opened_json(data)


def test_sealing_a_sealed_object_again_replaces_its_digest() -> None:
    once = json.loads(sealed_json({"number": 1}))
    again = json.loads(sealed_json(once | {"number": 2}))
    assert again[JSON_KEY] != once[JSON_KEY]
    assert opened_json(json.dumps(again).encode()) == {"number": 2}


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    storage = Storage.open(tmp_path, create=True)
    storage.put("x", b"abc")
    *_, digest = digest_of(storage, "x", 3)
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
