"""The top of a ranking: exactly as a sort has it, with ties, nulls, any type of number, and over parts."""

from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.pieces import Piece, Pieces
from catalog.schema import DECISIONS, SAMPLE_ID
from tasks.prune._order import CHUNK, Digit, Taker, dtype_of, find_cut, key_bits, keys, value_of
from tasks.prune.score import Score
from tasks.stage import Columns
from tests.helpers import LocalRun
from tests.tasks.prune.worlds import SCORES, decide, kept, make

FLOAT = pa.float32()


def scored(values: object, type_: pa.DataType = FLOAT, ids: np.ndarray | None = None) -> pa.Table:
    column = pa.array(values, type_)
    found = np.arange(len(column)) if ids is None else ids
    return pa.table([found, column], schema=pa.schema([SAMPLE_ID, ("clip_score", type_)]))


def first(values: np.ndarray, total: int, lowest: bool) -> list[int]:
    """The definition: the first `total` by value, ties by place."""
    order = sorted(range(len(values)), key=lambda i: (values[i] if lowest else -values[i], i))
    return sorted(order[:total])


@pytest.mark.parametrize(
    "type_", [pa.float16(), pa.float32(), pa.float64(), pa.int16(), pa.int64(), pa.uint8()], ids=str
)
@pytest.mark.parametrize("lowest", [False, True])
def test_score_takes_exactly_the_first(tmp_path: Path, type_: pa.DataType, lowest: bool) -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(0, 60, 500) if pa.types.is_integer(type_) else rng.integers(-30, 30, 500) / 8
    column = values.astype(type_.to_pandas_dtype())
    for total in (1, 250, 499, 500):
        table = decide(Score(keep_rows=total, lowest=lowest), Inputs.of(embeddings=scored(column, type_)), tmp_path)
        assert kept(table) == first(values, total, lowest)
        assert table.schema == DECISIONS


NUMBERS = {
    np.dtype(np.float32): st.floats(width=32, allow_nan=False),
    np.dtype(np.float64): st.floats(allow_nan=False),
    np.dtype(np.int64): st.integers(-(2**63), 2**63 - 1),
}


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("lowest", [False, True])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_keys_sort_as_their_values(dtype: np.dtype, lowest: bool, data: st.DataObject) -> None:
    """Infinities, denormals, both zeros and the ends of the integers too."""
    values = data.draw(hnp.arrays(dtype, st.integers(1, 30), elements=NUMBERS[dtype]))
    found = keys(values, lowest)
    assert found.dtype.kind == "u"
    order = np.argsort(values if lowest else np.negative(values, dtype=object), kind="stable")
    assert (np.argsort(found, kind="stable") == order).all()
    assert [value_of(int(key), dtype, lowest) for key in found] == values.tolist()


@pytest.mark.parametrize("lowest", [False, True])
def test_cut_in_chunks_agrees_with_a_sort(lowest: bool) -> None:
    """More values than are counted at once, of few different bits below a digit's border."""
    rng = np.random.default_rng(1)
    values = (0.25 + rng.integers(0, 3000, CHUNK + 1000) * 2.0**-26).astype(np.float32)

    def count(digit: Digit) -> np.ndarray:
        return digit.count(digit.init(), values)

    for total in (1, 1234, len(values) // 2, len(values)):
        cut = find_cut("x", lowest, 32, lambda _: total, count)  # noqa: B023  # called at once
        order = np.argsort(values if lowest else -values, kind="stable")
        taker = Taker(cut)
        halves = [taker(keys(part, lowest)) for part in np.split(values, [777])]
        assert (np.flatnonzero(np.concatenate(halves)) == np.sort(order[:total])).all()
        assert value_of(cut.key, values.dtype, lowest) == values[order[total - 1]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nulls_and_nans_come_last_and_say_so(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values: list[float | None] = rng.random(90).astype(np.float32).tolist()
    for place, nothing in zip(rng.choice(90, 20, replace=False).tolist(), [None, float("nan")] * 10, strict=True):
        values[place] = nothing
    table = decide(Score(keep=0.29), Inputs.of(embeddings=scored(values)), tmp_path)
    usable = [i for i, v in enumerate(values) if v is not None and v == v]
    best = sorted(usable, key=lambda i: -float(values[i] or 0))[:20]  # floor(0.29 * 70)
    assert kept(table) == sorted(best)
    reasons = table["reason"].to_pylist()
    assert {i for i, r in enumerate(reasons) if r == "no_score"} == set(range(90)) - set(usable)
    assert {r for i, r in enumerate(reasons) if i in usable and i not in best} == {"pruned_score"}
    everything = decide(Score(keep_rows=90), Inputs.of(embeddings=scored(values)), tmp_path)
    assert kept(everything) == usable


def test_evidence_says_what_decided(tmp_path: Path) -> None:
    table = decide(Score(keep=0.5), Inputs.of(embeddings=scored([0.1, 0.3, 0.2, 0.2, None])), tmp_path)
    assert table["evidence"].to_pylist() == [
        "clip_score 0.1, rank 2 of 4 has 0.2",
        "clip_score 0.3, rank 2 of 4 has 0.2",
        "clip_score 0.2, rank 2 of 4 has 0.2",
        "clip_score 0.2, rank 2 of 4 has 0.2, a later tie",
        "no clip_score",
    ]
    none = decide(Score(keep=0.1), Inputs.of(embeddings=scored([0.1, 0.3])), tmp_path)
    assert none["evidence"].to_pylist()[0] == "clip_score 0.1, 0 rows are to be kept in all"


def test_threshold_is_inclusive_and_in_the_precision_of_the_column(tmp_path: Path) -> None:
    inputs = Inputs.of(embeddings=scored([0.7, 0.69, 0.71, None]))  # float32(0.7) < 0.7
    table = decide(Score(threshold=0.7), inputs, tmp_path)
    assert table["keep"].to_pylist() == [True, False, True, False]
    assert table["evidence"][1].as_py() == "clip_score 0.69, threshold 0.7"
    assert decide(Score(threshold=0.7, lowest=True), inputs, tmp_path)["keep"].to_pylist() == [True, True, False, False]
    whole = Inputs.of(embeddings=scored([1, 2, 3], pa.int32()))
    assert decide(Score(threshold=1.5), whole, tmp_path)["keep"].to_pylist() == [False, True, True]


def pieces(table: pa.Table, at: list[int]) -> Pieces:
    cuts = [0, *at, table.num_rows]
    parts = [Piece(number=i, memory=table.slice(a, b - a)) for i, (a, b) in enumerate(pairwise(cuts))]
    return Pieces(table.schema, tuple(parts))


class PartsRun(LocalRun):
    """Reduces part by part, and merges, as the engine does."""

    def reduce(self, reducer: Any, columns: Columns) -> Any:
        assert self._inputs is not None
        state = reducer.init()
        for part in self._inputs.split(next(iter(columns))):
            mine = reducer.init()
            for batch in part.batches(columns):
                mine = reducer.update(mine, batch)
            state = reducer.merge(state, mine)
        return reducer.compute(state)


@pytest.mark.parametrize("of", ["alive", "all"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_parts_change_nothing_and_the_pool_is_as_configured(tmp_path: Path, seed: int, of: str) -> None:
    """Of 300 rows in 4 parts, a third is out already: `alive` ranks the others, `all` all, and keeps who is left."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 20, 300) / 32
    ids = np.sort(rng.choice(5000, 300, replace=False))
    out = rng.random(300) < 1 / 3
    judge = pa.table({"sample_id": ids[out], "keep": np.zeros(out.sum(), bool)})
    inputs = Inputs({"embeddings": pieces(scored(values, ids=ids), [40, 40, 222])}, [Pieces.of(judge)])
    run = PartsRun(tmp_path, inputs=inputs)
    table = pa.concat_tables(Score(keep=0.3, of=of).run(inputs, run))
    assert table["sample_id"].to_pylist() == ids[~out].tolist()
    if of == "alive":
        alive = np.flatnonzero(~out)
        expected = alive[first(values[alive], int(len(alive) * 3 // 10), False)]
        assert run.notes["kept"] == run.notes["total"] == len(expected)
    else:
        best = np.array(first(values, 90, False))
        expected = best[~out[best]]
        assert run.notes["total"] == 90
        assert run.notes["kept"] == len(expected) < 90
    assert kept(table) == ids[expected].tolist()


def test_decimals_are_numbers(tmp_path: Path) -> None:
    column = scored([Decimal("0.10"), Decimal("0.30"), Decimal("-1.00")], pa.decimal128(5, 2))
    assert kept(decide(Score(keep_rows=1), Inputs.of(embeddings=column), tmp_path)) == [1]
    assert dtype_of(pa.decimal128(5, 2)) == np.float64
    assert key_bits(pa.float16()) == 32


TABLES = {
    "source": pa.schema([SAMPLE_ID, ("caption", pa.string()), ("width", pa.int32()), ("punsafe", pa.float64())]),
    "images": pa.schema([SAMPLE_ID, ("width", pa.int32()), ("status", pa.string())]),
    "embeddings": SCORES,
}


def test_the_column_may_be_in_any_table() -> None:
    assert Score(keep=0.5).inputs(TABLES) == {"embeddings": ("clip_score",)}
    assert Score(keep=0.5, column="punsafe", lowest=True).inputs(TABLES) == {"source": ("punsafe",)}
    assert Score(keep=0.5, column="images.width").inputs(TABLES) == {"images": ("width",)}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("clip_scor", r"no earlier table has a column 'clip_scor'; did you mean 'clip_score'\?"),
        ("width", "several tables have a column 'width'; write source.width or images.width"),
        ("caption", "ranks by numbers: the column source.caption is string"),
        ("images.clip_score", "no earlier table has a column 'images.clip_score'"),
        ("sample_id", "no earlier table has a column 'sample_id'"),
    ],
)
def test_wrong_columns(column: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Score(keep=0.5, column=column).inputs(TABLES)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "one of `keep`, `keep_rows` and `threshold`; found none of them"),
        ({"keep": 0.3, "threshold": 0.28}, "found keep and threshold"),
        ({"threshold": 0.28, "of": "all"}, "`threshold` cannot be combined with"),
        ({"threshold": float("nan")}, "finite"),
    ],
)
def test_wrong_fields(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make(method="score", **fields)
