"""Exact copies: grouping by digest against a dictionary, and which copy is kept."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import DECISIONS
from tasks.deduplicate._exact import parse
from tasks.deduplicate.deduplicate import Deduplicate
from tests.helpers import LocalRun


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def images(contents: list[int | None], **columns: object) -> pa.Table:
    hashes = pa.array([None if c is None else digest(c) for c in contents], pa.string())
    base = {"sample_id": np.arange(len(contents)) * 10, "status": ["success"] * len(contents), "sha256": hashes}
    return pa.table(base | columns)


def test_parse_reads_the_first_16_bytes() -> None:
    texts = pa.chunked_array([[digest(1), None, "ab", digest(2).upper()], ["z" * 64], []], pa.string())
    words, valid = parse(texts)
    assert valid.tolist() == [True, False, False, True, False]
    assert words[0].tobytes() == hashlib.sha256(b"1").digest()[:16]
    assert words[3].tobytes() == hashlib.sha256(b"2").digest()[:16]
    words, valid = parse(texts.slice(3, 1))  # an offset into the buffers
    assert words[0].tobytes() == hashlib.sha256(b"2").digest()[:16]


@pytest.mark.parametrize("seed", range(3))
def test_one_of_each_is_kept(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    contents: list[int | None] = rng.integers(0, 60, 200).tolist()
    contents[7] = contents[9] = None
    width, height = rng.integers(1, 50, 200), rng.integers(1, 50, 200)
    table = images(contents, width=width.astype(np.int32), height=height.astype(np.int32))
    for keep in ("first", "largest"):
        found = pa.concat_tables(Deduplicate(keep=keep).run(Inputs.of(images=table), LocalRun(tmp_path)))
        assert found.schema == DECISIONS
        best: dict[int, int] = {}
        for row, content in enumerate(contents):
            if content is not None:
                size = width[row] * height[row]
                old = best.setdefault(content, row)
                if keep == "largest" and size > width[old] * height[old]:
                    best[content] = row
        stands = [row if c is None else best[c] for row, c in enumerate(contents)]
        assert found["keep"].to_pylist() == [s == row for row, s in enumerate(stands)]
        assert found["representative"].to_pylist() == [None if s == row else s * 10 for row, s in enumerate(stands)]
        assert found["similarity"].to_pylist() == [None if s == row else 1.0 for row, s in enumerate(stands)]
        assert set(found["reason"].to_pylist()) == {None, "duplicate_exact"}


def test_keep_by_a_score_with_nulls(tmp_path: Path) -> None:
    table = images([1, 1, 1, 2, 2], blur=pa.array([None, 3.0, 2.0, None, float("nan")], pa.float32()))
    found = pa.concat_tables(Deduplicate(keep="blur").run(Inputs.of(images=table), LocalRun(tmp_path)))
    assert found["keep"].to_pylist() == [False, True, False, True, False]
