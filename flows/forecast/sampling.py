"""Choose the rows of a source that a probe builds: stretches from all over the source, no row twice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from tasks.sources import Chunk, Source

WARM_UP: Final = 16
"""The first build has one row for every 16 of the probe."""
SMALL: Final = 4
"""The second and the fourth build have one row for every 4 of the probe."""
BUILDS: Final = {"warm_up": WARM_UP, "before": SMALL, "large": 1, "after": SMALL}
"""The builds in their order, each with the number of rows of the probe for one row of the build."""
_LEAST_PARTS: Final = 4
"""Parts of each build, at least: fewer do not show how much parts vary."""
_MOST_PARTS: Final = 16


def part_count(rows: int, slots: int) -> int:
    """Return how many parts each build has: two for each slot, unless a small build would then have an empty one."""
    return min(_MOST_PARTS, rows // SMALL, max(_LEAST_PARTS, 2 * slots))


def part_rows(rows: int, parts: int) -> list[int]:
    """Return the number of rows of a part, for each build."""
    return [max(1, rows // share // parts) for share in BUILDS.values()]


def sample_chunks(
    source: Source, chunks: Sequence[Chunk], sizes: Sequence[int], parts: int, identify: Callable[[str], str]
) -> list[list[Chunk]]:
    """Return, for each size, `parts` stretches of that many rows, evenly spaced over the source.

    No row is in two of them, unless chunks of the source cannot be cut (`Source.divisible`). Neighbouring rows are
    alike, so the stretches are as far apart as possible.
    """
    if not source.divisible:
        return [_whole_chunks(source, size, parts, identify) for size in sizes]
    total = sum(chunk.rows for chunk in chunks)
    found: list[list[Chunk]] = [[] for _ in sizes]
    gap = max(0, total // parts - sum(sizes)) // len(sizes)
    for i in range(parts):
        at = i * total // parts
        for pieces, size in zip(found, sizes, strict=True):
            pieces += _cut(chunks, at, size)
            at += size + gap
    return found


def _cut(chunks: Sequence[Chunk], start: int, rows: int) -> Iterator[Chunk]:
    """Yield the rows `start` .. `start + rows` of all chunks, in pieces that end where chunks end."""
    first = 0
    for chunk in chunks:
        begin, end = max(start, first), min(start + rows, first + chunk.rows)
        if begin < end:
            yield replace(chunk, start=chunk.start + begin - first, rows=end - begin)
        first += chunk.rows


def _whole_chunks(source: Source, size: int, parts: int, identify: Callable[[str], str]) -> list[Chunk]:
    """Return `parts` chunks, evenly spaced, of the source when it is cut into chunks of this size."""
    pieces = source.model_copy(update={"rows_per_part": size}).chunks(identify)
    count = min(parts, len(pieces))
    return [pieces[i * len(pieces) // count] for i in range(count)]
