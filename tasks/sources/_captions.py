"""Lists of captions: one of them, or all, by the rule `caption_from`."""

from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CaptionFrom = Literal["first", "join", "random"]
ABOUT: Final = (
    "from a list of captions: the first, all joined by a space, or a random one (seeded by the file's content and the "
    "row's number, so always the same)"
)


def is_list(type_: pa.DataType) -> bool:
    """Return whether a type is a list type."""
    return bool(
        pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
        or pa.types.is_list_view(type_)
    )  # fmt: skip


def choose_captions(lists: pa.ChunkedArray, rule: CaptionFrom, seed: int, first_row: int) -> pa.Array:
    """Return the caption of every row: string (n,), from list<string> (n,); null where the list has no text.

    Items that are null or blank are skipped. `random` is seeded by `seed` and the row's number (`first_row` + index).
    """
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    items, rows = pc.list_flatten(lists), pc.list_parent_indices(lists)
    there = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(items), ""), False)
    items, rows = items.filter(there), rows.filter(there).to_numpy(zero_copy_only=False)
    counts = np.bincount(rows, minlength=len(lists)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if rule == "join":
        texts = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)
        return pc.if_else(pa.array(counts > 0), pc.binary_join(texts, " "), None)
    at = offsets[:-1].copy()
    if rule == "random":
        at += (
            _mixed(np.arange(first_row, first_row + len(lists), dtype=np.uint64), seed) % np.maximum(counts, 1)
        ).astype(np.int64)
    return items.take(pa.array(at, mask=counts == 0))


def _mixed(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return 63 well-mixed bits for each row: SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        bits = (rows + np.uint64(seed & (2**64 - 1))) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
