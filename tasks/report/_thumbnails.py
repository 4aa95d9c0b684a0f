"""The pictures of a card: small, few, and bounded in bytes."""

from collections.abc import Iterator, Sequence
from typing import Final

from catalog.inputs import Inputs

SIDE_PX: Final = 160
BUDGET_BYTES: Final = 3_000_000
"""The limit of all pictures of a card together; base64 adds a third."""
FETCHED_AT_ONCE: Final = 16
"""Encoded images in memory at once: each may be megabytes."""


def thumbnails(inputs: Inputs, sample_ids: Sequence[int], budget_bytes: int = BUDGET_BYTES) -> dict[int, bytes]:
    """Return a small picture of each sample, in the order given, until the budget is spent.

    Samples without bytes, or whose bytes do not decode, are skipped. Raises DamagedError if a shard is damaged.
    """
    from tasks.images import decode_fault
    from tasks.images.thumbnail import thumbnail

    if "images" not in inputs:
        return {}
    made: dict[int, bytes] = {}
    spent = 0
    for sample_id, data in _fetched(inputs, list(dict.fromkeys(sample_ids))):
        small = thumbnail(data, SIDE_PX)
        if small is None:
            inputs.check_stored(sample_id, decode_fault)
        if small is None or spent + len(small) > budget_bytes:
            continue
        made[sample_id] = small
        spent += len(small)
    return made


def _fetched(inputs: Inputs, sample_ids: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    for start in range(0, len(sample_ids), FETCHED_AT_ONCE):
        some = sample_ids[start : start + FETCHED_AT_ONCE]
        images = inputs.images(some)
        yield from ((sample_id, images[sample_id]) for sample_id in some if sample_id in images)
