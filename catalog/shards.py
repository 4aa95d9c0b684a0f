"""Tar shards: where image bytes live, in the layout of img2dataset and WebDataset.

A shard holds, for each sample, `<key>.<format>`, `<key>.txt` (the caption) and `<key>.json` (its facts); beside it lie
`<stem>.parquet` (a row for every row of the part, failed ones too) and `<stem>_stats.json`. The images table says
where in the tar an image begins, so one image is one range read.
"""

import json
import mmap
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.schema import SAMPLE_BITS, SUCCESS
from catalog.storage import Storage

FOLDER: Final = "shards"
_BLOCK: Final = tarfile.BLOCKSIZE
_DECODE_REASONS: Final = ("not_an_image", "undecodable", "unencodable", "truncated", "too_", "empty")
"""Reasons with these beginnings are img2dataset's `failed_to_resize`; every other is `failed_to_download`."""


def shard_path(number: int, fingerprint: str) -> str:
    """Return where the shard of a part lies, relative to its dataset."""
    return f"{FOLDER}/{number:05d}-{fingerprint[:16]}.tar"


def sample_key(sample_id: int) -> str:
    """Return the name of a sample inside its shard: part number, then row."""
    return f"{sample_id >> SAMPLE_BITS:05d}{sample_id & ((1 << SAMPLE_BITS) - 1):08d}"


class ShardWriter:
    """Writes one shard as rows come; its files appear when it is closed without an error."""

    def __init__(self, storage: Storage, path: str) -> None:
        self.path = path
        self._storage = storage
        self._stack = ExitStack()
        self._file: Any = None
        self._position = 0
        self._rows: list[pa.Table] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is None:
            self._close()
        else:
            self._stack.__exit__(kind, error, trace)

    def add(self, rows: pa.Table, image: str) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Append rows whose bytes are in column `image`; return their place in it (null where no bytes)."""
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
        """Write one member; return where its data begins. No time and no owner: the same rows give the same bytes."""
        if self._file is None:
            self._file = self._stack.enter_context(self._storage.writer(self.path))
        info = tarfile.TarInfo(name)
        info.size = len(data)
        header = info.tobuf(tarfile.USTAR_FORMAT)
        self._file.write(header + data + b"\0" * (-len(data) % _BLOCK))
        begin = self._position + len(header)
        self._position = begin + len(data) + (-len(data) % _BLOCK)
        return begin

    def _close(self) -> None:
        if self._file is None:
            self._stack.close()
            return
        self._file.write(b"\0" * (2 * _BLOCK))
        self._stack.close()
        rows = pa.concat_tables(self._rows)
        stem = self.path.removesuffix(".tar")
        with self._storage.writer(f"{stem}.parquet") as file:
            pq.write_table(_img2dataset_rows(rows), file, compression="zstd")
        self._storage.put(f"{stem}_stats.json", json.dumps(_img2dataset_stats(rows), indent=1).encode())


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


def _img2dataset_stats(rows: pa.Table) -> dict[str, Any]:
    counts = Counter(_img2dataset_rows(rows).column("status").to_pylist())
    errors = Counter(r for r in rows.column("reason").to_pylist() if r)
    return {
        "count": rows.num_rows,
        "successes": counts[SUCCESS],
        "failed_to_download": counts["failed_to_download"],
        "failed_to_resize": counts["failed_to_resize"],
        "status_dict": {SUCCESS: counts[SUCCESS], **dict(sorted(errors.items()))},
    }


class ShardReader:
    """Reads single images out of shards: memory maps of local tars, range reads from object stores."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._path = ""
        self._map: mmap.mmap | None = None

    def read(self, rows: pa.Table) -> list[bytes | None]:
        """Return the bytes of rows with shard, byte_offset, byte_size; None where shard is null."""
        places = list(zip(*(rows.column(c).to_pylist() for c in ("shard", "byte_offset", "byte_size")), strict=True))
        if self._storage.is_local:
            return [None if s is None else self._slice(s, o, n) for s, o, n in places]
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(lambda p: None if p[0] is None else self._storage.read_range(*p), places))

    def _slice(self, path: str, offset: int, size: int) -> bytes:
        if path != self._path:
            with (self._storage.local(path) or _refuse(path)).open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._path = path
        assert self._map is not None
        return self._map[offset : offset + size]


def _refuse(path: str) -> Any:
    raise FileNotFoundError(path)
