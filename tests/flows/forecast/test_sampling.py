"""The rows that a probe builds: from all over the source, none of them twice."""

from pathlib import Path

import pytest

from flows.forecast.probe import LEAST_ROWS
from flows.forecast.sampling import part_count, part_rows, sample_chunks
from tasks.sources import Chunk, Parquet
from tests.stages import write_source


def test_no_row_is_built_twice(tmp_path: Path) -> None:
    source = Parquet(path=str(write_source(tmp_path, files=2, rows=320)), rows_per_part=80)
    chunks = source.chunks(lambda uri: uri)
    found = sample_chunks(source, chunks, [3, 10, 40], 4, lambda uri: uri)
    rows = [(c.uri, c.start + i) for pieces in found for c in pieces for i in range(c.rows)]
    assert [sum(c.rows for c in pieces) for pieces in found] == [12, 40, 160]
    assert len(rows) == len(set(rows))
    assert {Path(uri).name for uri, _ in rows} == {"0000.parquet", "0001.parquet"}
    assert all(0 <= row < 320 for _, row in rows)


@pytest.mark.parametrize("rows", [LEAST_ROWS, 17, 63, 64, 1000])
@pytest.mark.parametrize("slots", [1, 2, 8, 64])
def test_small_builds_are_a_quarter_however_many_slots_there_are(rows: int, slots: int) -> None:
    """Otherwise nothing would grow between them, and the build would seem to take as long as the probe."""
    parts = part_count(rows, slots)
    warm_up, before, large, after = part_rows(rows, parts)
    assert parts >= 4
    assert 0 < warm_up <= before == after
    assert large >= 4 * before
    assert large * parts <= rows


def test_stretches_lie_apart() -> None:
    (small,), (large,) = sample_chunks(Parquet(path="x"), [Chunk("a", "1", 0, 100)], [10, 30], 1, str)
    assert (small.start, small.rows, large.start, large.rows) == (0, 10, 40, 30)


def test_stretches_end_where_chunks_end() -> None:
    chunks = [Chunk("a", "1", 100, 7), Chunk("b", "2", 0, 3), Chunk("c", "3", 50, 10)]
    (found,) = sample_chunks(Parquet(path="x"), chunks, [5], 2, lambda uri: uri)
    assert [(c.uri, c.start, c.rows) for c in found] == [("a", 100, 5), ("c", 50, 5)]
    (found,) = sample_chunks(Parquet(path="x"), chunks, [20], 1, lambda uri: uri)
    assert [(c.uri, c.start, c.rows) for c in found] == [("a", 100, 7), ("b", 0, 3), ("c", 50, 10)]
