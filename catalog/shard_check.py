"""Finding damage of one shard: by its recorded digest, or by decoding every picture where none was recorded."""

import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from catalog.findings import Damage
from catalog.lookup import rows_of
from catalog.parts import describe_part
from catalog.pieces import read_parquet
from catalog.schema import PLACE_NAMES
from catalog.seal import digest_of
from catalog.shards import FOLDER
from catalog.storage import Storage

DecodeFault = Callable[[bytes], str | None]
"""Returns the reason for which an image cannot be decoded; None where it can (`tasks.images.decode_fault`)."""


def shard_fault(storage: Storage, path: str, parts: Sequence[str], decode_fault: DecodeFault) -> str | None:
    """Return what is wrong with a shard of which no digest was recorded; None where nothing was found.

    Reads all members, and decodes every image that `parts` locate in the shard.
    """
    try:
        with _file(storage, path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            places = {member.offset_data: member.size for member in tar}
    except (tarfile.TarError, OSError, EOFError) as error:
        return f"it is no whole tar ({error})"
    size = storage.list(path.rpartition("/")[0])[path]
    if any(begin + length > size for begin, length in places.items()) or not _ends(storage, path, size):
        return "it ends early"
    for part in parts:
        rows = read_parquet(storage, part, ["sample_id", *PLACE_NAMES])
        rows = rows.filter(pc.equal(rows.column("shard"), path))
        for row in rows.to_pylist():
            if places.get(row["byte_offset"]) != row["byte_size"]:
                return f"the picture of sample {row['sample_id']} is not where {part} says"
            if fault := decode_fault(storage.read_range(path, row["byte_offset"], row["byte_size"])):
                return f"the picture of sample {row['sample_id']} cannot be decoded: {fault}"
    return None


def shard_damage(storage: Storage, part: str, shard: str, decode_fault: DecodeFault) -> Damage | None:
    """Return the damage of a shard that a part names, after reading all of it; None where it is as it was written."""
    size = storage.list(FOLDER).get(shard)
    record = describe_part(storage, part).files.get(shard)
    if size is None:
        return Damage(shard, "missing", storage.why_missing(shard))
    if record is None:
        fault = shard_fault(storage, shard, [part], decode_fault)
        return Damage(shard, "unreadable", fault) if fault else None
    *_, digest = digest_of(storage, shard, size)
    if (size, digest) != (record["bytes"], record["sha256"]):
        return Damage(shard, "digest", "its bytes are not those that were written")
    return None


def check_shards(storage: Storage, parts: Sequence[str], sample_id: int, decode_fault: DecodeFault) -> Damage | None:
    """Return the damage of the shard that holds a sample's image, which could not be decoded; None where the shard is
    as it was written, so that the decoder must have changed."""
    for part in parts:
        found = rows_of(storage, [part], np.array([sample_id]), ["shard"]).column("shard").drop_null().to_pylist()
        if found:
            return shard_damage(storage, part, found[0], decode_fault)
    return None


def _file(storage: Storage, path: str) -> Any:
    local = storage.local(path)
    return local.open("rb") if local else storage.filesystem().open_input_file(path)


def _ends(storage: Storage, path: str, size: int) -> bool:
    """Return whether a tar ends as every shard does: with two empty blocks."""
    end = 2 * tarfile.BLOCKSIZE
    return size >= end and size % tarfile.BLOCKSIZE == 0 and not any(storage.read_range(path, size - end, end))
