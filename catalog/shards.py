"""Tar shards: storage of image bytes in the layout of img2dataset and WebDataset.

For each sample, a shard holds `<key>.<format>`, `<key>.txt` (the caption) and `<key>.json` (its facts). Its sidecar
files are `<stem>.parquet` (a row for every row of the part, failed ones included) and `<stem>_stats.json`. The images
table has the offset of each image in the tar, so reading one image is one range read.
"""

import hashlib
import io
import json
import mmap
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from catalog.errors import damaged, reading
from catalog.schema import PLACE_NAMES, SAMPLE_BITS, SUCCESS, TAKEN_URL
from catalog.storage import Storage

FOLDER: Final = "shards"
ERASED: Final = "__taken_down__"
"""The member that replaces an erased sample, all zeros. It has no extension, so WebDataset's readers skip it."""
_BLOCK: Final = tarfile.BLOCKSIZE
FINGERPRINT_CHARS: Final = 16
"""Characters of the part's fingerprint in the name of its shard."""
_COPIED_BYTES: Final = 8 << 20
_DECODE_REASONS: Final = (
    "not_an_image",
    "unsupported",
    "undecodable",
    "unencodable",
    "truncated",
    "too_",
    "decode_",
    "empty",
)
"""Reasons with these prefixes are img2dataset's `failed_to_resize`; every other is `failed_to_download`."""


def shard_path(number: int, fingerprint: str) -> str:
    """Return the path of the shard of a part, relative to its dataset."""
    return f"{FOLDER}/{number:05d}-{fingerprint[:FINGERPRINT_CHARS]}.tar"


def sample_key(sample_id: int) -> str:
    """Return the name of a sample inside its shard: part number, then row."""
    return f"{sample_id >> SAMPLE_BITS:05d}{sample_id & ((1 << SAMPLE_BITS) - 1):08d}"


def stem(path: str) -> str:
    """Return the common stem of a shard and its sidecar files: `shards/00003-ab12`."""
    return path.removesuffix("_stats.json").removesuffix(".tar").removesuffix(".parquet")


def record_of(data: bytes) -> dict[str, Any]:
    """Return the record of a file: its size and its SHA-256."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class ShardWriter:
    """Writes one shard incrementally; its files appear when it is finished, or closed without an error."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.path = path
        self._storage = storage
        self._stack = ExitStack()
        self._file: Any = None
        self._position = 0
        self._digest = hashlib.sha256()
        self._rows: list[pa.Table] = []
        self._records: dict[str, dict[str, Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self.finish()
        else:
            self._stack.__exit__(kind, error, trace)

    def finish(self) -> dict[str, dict[str, Any]]:
        """Complete the files; return path -> bytes and sha256 of the shard, if there is one, and its sidecar files."""
        if self._records is None:
            self._records = self._close()
        return self._records

    def add(self, rows: pa.Table, image: str) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Append the bytes in column `image`; return their locations in the shard (null for rows without bytes)."""
        facts = rows.drop_columns([image])
        self._rows.append(facts)
        shards: list[str | None] = []
        offsets: list[int | None] = []
        sizes: list[int | None] = []
        for row, data in zip(facts.to_pylist(), rows.column(image).to_pylist(), strict=True):
            if data is None:
                shards.append(None)
                offsets.append(None)
                sizes.append(None)
                continue
            key = sample_key(row["sample_id"])
            shards.append(self.path)
            offsets.append(self._member(f"{key}.{row['format']}", data))
            sizes.append(len(data))
            if row.get("caption") is not None:
                self._member(f"{key}.txt", row["caption"].encode())
            self._member(f"{key}.json", json.dumps({"key": key, **row}, ensure_ascii=False, default=str).encode())
        return pa.array(shards, pa.string()), pa.array(offsets, pa.int64()), pa.array(sizes, pa.int64())

    def _member(self, name: str, data: bytes) -> int:
        """Write one member without time and owner, so that the bytes are deterministic; return its data offset."""
        if self._file is None:
            self._file = self._stack.enter_context(self._storage.writer(self.path))
        info = tarfile.TarInfo(name)
        info.size = len(data)
        header = info.tobuf(tarfile.USTAR_FORMAT)
        self._put(header + data + b"\0" * (-len(data) % _BLOCK))
        begin = self._position + len(header)
        self._position = begin + len(data) + (-len(data) % _BLOCK)
        return begin

    def _put(self, data: bytes) -> None:
        self._digest.update(data)
        self._file.write(data)

    def _close(self) -> dict[str, dict[str, Any]]:
        if self._file is None:
            self._stack.close()
            return {}
        self._put(b"\0" * (2 * _BLOCK))
        size = self._position + 2 * _BLOCK
        self._stack.close()
        shard = {self.path: {"bytes": size, "sha256": self._digest.hexdigest()}}
        return shard | put_recorded(self._storage, sidecars(self.path, pa.concat_tables(self._rows)))


def sidecars(path: str, rows: pa.Table) -> dict[str, bytes]:
    """Return path -> content of the sidecar files of a shard. `rows`: a row for every row of the part."""
    return _sidecars(path, _img2dataset_rows(rows), rows.column("reason").to_pylist())


def _sidecars(path: str, rows: pa.Table, reasons: Sequence[str | None]) -> dict[str, bytes]:
    buffer = io.BytesIO()
    pq.write_table(rows.combine_chunks(), buffer, compression="zstd")
    stats = json.dumps(_stats_of(rows.column("status").to_pylist(), reasons), indent=1)
    return {f"{stem(path)}.parquet": buffer.getvalue(), f"{stem(path)}_stats.json": stats.encode()}


def put_recorded(storage: Storage, files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Write files; return path -> bytes and sha256."""
    for name, data in files.items():
        storage.put(name, data)
    return {name: record_of(data) for name, data in files.items()}


def _img2dataset_rows(rows: pa.Table) -> pa.Table:
    """Return the sidecar table under img2dataset's column names."""
    status = [
        _img2dataset_status(s, r)
        for s, r in zip(*(rows.column(c).to_pylist() for c in ("status", "reason")), strict=True)
    ]
    columns = {"key": [sample_key(i) for i in rows.column("sample_id").to_pylist()], "status": status}
    names = {"reason": "error_message"}
    kept = ("url", "caption", "reason", "width", "height", "original_width", "original_height", "sha256")
    return pa.table(columns | {names.get(c, c): rows.column(c) for c in kept if c in rows.column_names})


def _img2dataset_status(status: str, reason: str | None) -> str:
    if status == SUCCESS:
        return SUCCESS
    return "failed_to_resize" if (reason or "").startswith(_DECODE_REASONS) else "failed_to_download"


def _stats_of(statuses: Sequence[str], reasons: Sequence[str | None]) -> dict[str, Any]:
    counts = Counter(statuses)
    errors = Counter(reason for reason in reasons if reason)
    return {
        "count": len(statuses),
        "successes": counts[SUCCESS],
        "failed_to_download": counts["failed_to_download"],
        "failed_to_resize": counts["failed_to_resize"],
        "status_dict": {SUCCESS: counts[SUCCESS], **dict(sorted(errors.items()))},
    }


class ShardReader:
    """Reads single images from shards: memory maps of local tars, range reads from object stores."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._path = ""
        self._map: mmap.mmap | None = None

    def read(self, rows: pa.Table) -> list[bytes | None]:
        """Return the bytes of rows with shard, byte_offset, byte_size; None for rows without a shard."""
        places = list(zip(*(rows.column(c).to_pylist() for c in PLACE_NAMES), strict=True))
        if self._storage.is_local:
            return [None if s is None else self._slice(s, o, n) for s, o, n in places]
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(lambda p: None if p[0] is None else self._range(*p), places))

    def _slice(self, path: str, offset: int, size: int) -> bytes:
        if path != self._path:
            local = self._storage.local(path)
            assert local is not None
            self._map = None
            with reading(self._storage.uri, path), local.open("rb") as file:
                size_of_file = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size_of_file else None
            self._path = path
        data = self._map[offset : offset + size] if self._map is not None else b""
        return self._whole(path, offset, size, data)

    def _range(self, path: str, offset: int, size: int) -> bytes:
        with reading(self._storage.uri, path):
            return self._whole(path, offset, size, self._storage.read_range(path, offset, size))

    def _whole(self, path: str, offset: int, size: int, data: bytes) -> bytes:
        if len(data) != size:
            raise damaged(self._storage.uri, path, f"it ends before byte {offset + size}")
        return data


Span = tuple[int, int]
"""Begin and end of a range of a tar, in whole blocks."""


def span_of(storage: Storage, path: str, byte_offset: int) -> Span:
    """Return the range of a shard that holds a sample's members (image, text, JSON) with their headers.

    `byte_offset` is where its image begins. For an erased sample, the range is that of the member that replaces it.
    """
    begin = end = byte_offset - _BLOCK
    first: str | None = None
    while (member := _header(storage, path, end)) is not None:
        key = member.name.partition(".")[0]
        if first is not None and (key != first or key == ERASED):
            break
        first = key
        end += _BLOCK + member.size + (-member.size % _BLOCK)
    return begin, end


def _header(storage: Storage, path: str, at: int) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(storage.read_range(path, at, _BLOCK), "utf-8", "surrogateescape")
    except tarfile.HeaderError:  # the end of the archive
        return None


def erase(storage: Storage, path: str, spans: Iterable[Span]) -> None:
    """Overwrite ranges of a shard with one header and zeros each, without moving other bytes.

    On a local disk this happens in place, so that the bytes are overwritten and not only unlinked; an object is
    rewritten. Safe to repeat after a kill.
    """
    ordered = sorted(spans)
    local = storage.local(path)
    if local is None:
        _rewrite(storage, path, ordered)
        return
    with local.open("r+b") as file:
        for begin, end in ordered:
            file.seek(begin)
            for piece in _erased(begin, end):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _erased(begin: int, end: int) -> Iterator[bytes]:
    info = tarfile.TarInfo(ERASED)
    info.size = end - begin - _BLOCK
    yield info.tobuf(tarfile.USTAR_FORMAT)
    for at in range(0, info.size, _COPIED_BYTES):
        yield b"\0" * min(_COPIED_BYTES, info.size - at)


def _rewrite(storage: Storage, path: str, spans: Sequence[Span]) -> None:
    size = storage.list(path.rpartition("/")[0])[path]
    with storage.writer(path) as file:
        at = 0
        for begin, end in [*spans, (size, size)]:
            while at < begin:
                piece = storage.read_range(path, at, min(_COPIED_BYTES, begin - at))
                file.write(piece)
                at += len(piece)
            if begin < end:
                file.writelines(_erased(begin, end))
            at = max(at, end)


def put_back(storage: Storage, path: str, target: str, spans: Iterable[Span]) -> dict[str, Any]:
    """Copy a shard that lacks some samples, inserting replacements for erased ones at their offsets in another shard.

    `spans`: the ranges of that other shard. Returns the record of the copy."""
    size = storage.list(FOLDER)[path]
    digest, written, at = hashlib.sha256(), 0, 0
    with storage.writer(target) as file:

        def put(piece: bytes) -> None:
            nonlocal written
            written += file.write(piece)
            digest.update(piece)

        for begin, end in sorted(spans):
            while written < begin and (piece := storage.read_range(path, at, min(_COPIED_BYTES, begin - written))):
                at += len(piece)
                put(piece)
            for piece in _erased(begin, end):
                put(piece)
        while at < size:
            piece = storage.read_range(path, at, _COPIED_BYTES)
            at += len(piece)
            put(piece)
    return {"bytes": written, "sha256": digest.hexdigest()}


def moved(byte_offset: int, spans: Iterable[Span]) -> int:
    """Return the offset of a byte of a shard after `put_back`."""
    for begin, end in sorted(spans):
        byte_offset += end - begin if byte_offset >= begin else 0
    return byte_offset


def erase_sidecars(storage: Storage, path: str, sample_ids: Iterable[int], reason: str) -> None:
    """Erase samples in the sidecar files of a shard: their rows keep the key, as rows that failed for `reason`.

    The result equals the sidecar files of a shard that is made when the samples have already been taken down.
    """
    if not storage.exists(f"{stem(path)}.parquet"):
        return
    rows = pq.read_table(io.BytesIO(storage.read(f"{stem(path)}.parquet")))
    keys = pa.array([sample_key(sample_id) for sample_id in sample_ids], pa.string())
    gone = pc.is_in(rows.column("key"), keys)
    constants = {"url": TAKEN_URL, "status": "failed_to_download", "error_message": reason}
    for at, field in enumerate(rows.schema):
        if field.name != "key":
            value = pa.scalar(constants.get(field.name), field.type)
            rows = rows.set_column(at, field, pc.if_else(gone, value, rows.column(at)))
    put_recorded(storage, _sidecars(path, rows, rows.column("error_message").to_pylist()))
