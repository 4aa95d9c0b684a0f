"""What a statement can need: only certain conditions restrict it."""

import duckdb
import pytest

from catalog.parts import PartFile
from catalog.requested import holding, requested

ONE: dict[str, frozenset[int] | None] = {"images": frozenset([5])}
ALL: dict[str, frozenset[int] | None] = {"images": None}
BOTH: dict[str, frozenset[int] | None] = {"images": frozenset([5]), "source": frozenset([5])}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select * from images where sample_id = 5", ONE),
        ("select * from a.images where width > 3 and 5 = sample_id", ONE),
        ("select * from Images i where I.Sample_Id in (5, 7) and sample_id = 5", ONE),
        ("select max(width) from images where sample_id in (5) group by all limit 1", ONE),
        ("select * from images join source using (sample_id) where sample_id = 5", BOTH),
        ("select * from images i left join source s using (sample_id) where i.sample_id = 5", BOTH),
        ("select * from images i full join source s using (sample_id) where s.sample_id = 5", BOTH),
        (
            "select * from images i join source s on i.sample_id = s.sample_id where i.sample_id = 5",
            {"images": frozenset([5]), "source": None},
        ),
        (
            "select * from images where sample_id = 5 union all select * from images where sample_id = 6",
            {"images": frozenset([5, 6])},
        ),
        ("select * from (select * from images where sample_id = 5) where width > 3", ONE),
        ("select * from images", ALL),
        ("select * from images where sample_id = 5 or width = 3", ALL),
        ("select * from images where not (sample_id = 5)", ALL),
        ("select * from images where sample_id >= 5", ALL),
        ("select * from images where sample_id = 5.0", ALL),
        ("select * from images where sample_id = width", ALL),
        ("select * from images where sample_id + 0 = 5", ALL),
        ("select * from images tablesample 10% where sample_id = 5", ALL),
        ("select * from images as i(width, sample_id) where sample_id = 5", ALL),
        ("select * from images having sample_id = 5", ALL),
        ("select * from images qualify sample_id = 5", ALL),
        ("select * from images i positional join source s where i.sample_id = 5", {"images": None, "source": None}),
        ("select * from images i, source s where sample_id = 5", {"images": None, "source": None}),
        ("select * from images where sample_id = 5 and exists (select 1 from images)", ALL),
        ("select (select count(*) from images) from source where sample_id = 5", {**ALL, "source": frozenset([5])}),
        ("select * from images where sample_id = 5 using sample 3 rows", ALL),
        ("select * from b.images where sample_id = 5", {}),
    ],
)
def test_what_is_certain(text: str, expected: dict[str, frozenset[int] | None]) -> None:
    with duckdb.connect() as connection:
        found = requested(connection, text)
    assert found is not None
    assert found.of("a") == expected


@pytest.mark.parametrize("text", ["show tables", "describe images", "from query_table('images')", "select * from", ""])
def test_what_is_unknown(text: str) -> None:
    with duckdb.connect() as connection:
        assert requested(connection, text) is None


def test_names_of_a_statement_are_its_own() -> None:
    with duckdb.connect() as connection:
        found = requested(connection, "with images as (select * from source) select * from images where sample_id = 5")
    assert found is not None
    assert found.own == {"images"}
    assert found.of("a") == {"images": frozenset([5]), "source": None}


def test_parts_that_may_hold_a_row() -> None:
    parts = [PartFile("a", 1, 1, span=(0, 9)), PartFile("b", 1, 1, span=(10, 19)), PartFile("old", 1, 1)]
    assert [p.path for p in holding(parts, frozenset([10]))] == ["b", "old"]
    assert [p.path for p in holding(parts, frozenset([0, 19]))] == ["a", "b", "old"]
    assert [p.path for p in holding(parts[:2], frozenset([99]))] == ["a"]
    assert [p.path for p in holding(parts[:2], frozenset())] == ["a"]
    assert holding(parts, None) == parts
    assert holding([], frozenset([1])) == []
