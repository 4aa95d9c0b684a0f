"""Building decisions, and reading a table of which some parts were written without `numbers`, as older releases do."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.decisions import decisions, number_maps
from catalog.inputs import Inputs
from catalog.parts import PartFile
from catalog.pieces import Piece, Pieces
from catalog.schema import DECISIONS, SOURCE
from catalog.version import TableState, VersionFacts
from tests.catalog.conftest import WritePart

OLDER = pa.schema([field for field in DECISIONS if field.name != "numbers"])


def test_a_row_without_a_reason_is_kept() -> None:
    reason = pa.array([None, "dull"], pa.string())
    found = decisions(np.array([3, 4]), "filter", reason, pa.array(["a", "b"]), {"blur": np.array([np.nan, 2.5])})
    assert found.schema.equals(DECISIONS, check_metadata=True)
    nothing = {"representative": None, "similarity": None}
    assert found.to_pylist(maps_as_pydicts="strict") == [
        {"sample_id": 3, "stage": "filter", "keep": True, "reason": None, "evidence": "a", "numbers": None} | nothing,
        {"sample_id": 4, "stage": "filter", "keep": False, "reason": "dull", "evidence": "b"}
        | {"numbers": {"blur": 2.5}}
        | nothing,
    ]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, [None, None, None]),
        ({"rank": np.arange(3), "of": 3}, [[("rank", i), ("of", 3.0)] for i in range(3)]),
        (
            {"b": np.array([1, np.nan, np.nan]), "a": np.array([np.inf, np.nan, 2])},
            [[("b", 1), ("a", np.inf)], None, [("a", 2)]],
        ),
        ({"x": np.array([0.1, 0.2, 0.3], np.float32)}, [[("x", float(np.float32(x)))] for x in (0.1, 0.2, 0.3)]),
    ],
)  # fmt: skip
def test_numbers_keep_their_order_and_missing_ones_are_left_out(numbers: Any, expected: list[Any]) -> None:
    assert number_maps(numbers, 3).to_pylist() == expected


def test_no_rows_have_no_numbers() -> None:
    assert number_maps({"x": np.empty(0)}, 0).type == DECISIONS.field("numbers").type


def judged(number: int) -> list[dict[str, Any]]:
    return [{"sample_id": number << 24, "stage": "f", "keep": False, "reason": "dull", "evidence": "blur 3"}]


def written(dataset: Dataset, write_part: WritePart, older: Sequence[bool]) -> list[PartFile]:
    """Write a part for each, without `numbers` where it is of an older release."""
    parts = []
    for number, is_older in enumerate(older):
        rows = judged(number)
        schema = OLDER if is_older else DECISIONS
        rows = rows if is_older else [row | {"numbers": {"blur": 3.0}} for row in rows]
        parts.append(write_part(dataset, "decisions", number, rows, schema))
    return parts


MIXES = [(True, False), (False, True), (True, True), (False, False)]


@pytest.mark.parametrize("older", MIXES)
def test_sql_gives_null_for_the_numbers_of_older_parts(
    dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str, older: tuple[bool, bool]
) -> None:
    state = TableState(DECISIONS, written(dataset, write_part, older))
    version = dataset.publish({"decisions": state}, facts)
    found = sql(Catalog(uri), "select * from birds.decisions order by sample_id").to_pylist(maps_as_pydicts="strict")
    assert [row["evidence"] for row in found] == ["blur 3"] * 2
    if all(older):  # no part has them, so neither has the table
        assert "numbers" not in found[0]
        assert version.tables["decisions"].uniform
    else:
        assert [row["numbers"] for row in found] == [None if is_older else {"blur": 3.0} for is_older in older]
        assert version.tables["decisions"].uniform == (not any(older))


@pytest.mark.parametrize("older", MIXES)
def test_a_stage_reads_null_for_the_numbers_of_older_parts(
    dataset: Dataset, write_part: WritePart, older: tuple[bool, bool]
) -> None:
    parts = written(dataset, write_part, older)
    pieces = Pieces(DECISIONS, tuple(Piece(part.path, number) for number, part in enumerate(parts)))
    inputs = Inputs({"decisions": pieces}, (), dataset.storage)
    expected = [None if is_older else [("blur", 3.0)] for is_older in older]
    assert inputs.whole("decisions").schema.names == DECISIONS.names
    assert inputs.whole("decisions")["numbers"].to_pylist() == expected
    assert inputs.table({"decisions": ("numbers", "reason")})["numbers"].to_pylist() == expected
    found = inputs.sql("select numbers, reason from decisions order by sample_id").to_pylist()
    assert [row["numbers"] for row in found] == expected


def test_a_table_of_an_older_release_that_gains_no_part_does_not_change(
    local_dataset: Dataset, write_part: WritePart, facts: VersionFacts
) -> None:
    source = TableState(SOURCE, [write_part(local_dataset, "source", 0, [{"sample_id": 0, "url": "u"}])])
    parts = written(local_dataset, write_part, [True])
    before = local_dataset.publish({"source": source, "decisions": TableState(OLDER, parts)}, facts)
    after = local_dataset.publish({"source": source, "decisions": TableState(DECISIONS, parts)}, facts)
    assert (after.label, after.tables) == ("birds@1", before.tables)
    grown = [*parts, *written(local_dataset, write_part, [True, False])[1:]]
    third = local_dataset.publish(
        {"source": source, "decisions": TableState(DECISIONS, grown)}, replace(facts, recipe_sha256="other")
    )
    assert third.label == "birds@2"
    assert local_dataset.schema(third, "decisions").names == DECISIONS.names
    assert local_dataset.schema(before, "decisions").names == OLDER.names
