"""Limits of a filter's predicates: hostile ones are a one-line error before a build starts, or while it runs."""

from typing import Any

import pyarrow as pa
import pytest

from catalog.errors import QueryError, RecipeError
from catalog.schema import SAMPLE_ID
from tasks.filter import Filter

COLUMNS = pa.schema([SAMPLE_ID, ("width", pa.int64()), ("caption", pa.string())])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("predicate", "words"),
    [
        ("not " * 5000 + "true", "depth limit of 100"),
        ("(" * 5000 + "true" + ")" * 5000, "depth limit"),
        ("not " * 900 + "true", "depth limit of 100"),
        ("case when true then " * 300 + "true" + " end" * 300, "depth limit of 100"),
        (" + ".join(["width"] * 900) + " > 1", "depth limit of 100"),
        (" and ".join(["width > 1"] * 5000), "5,000 conditions; expected at most 500"),
        (f"width in ({', '.join(map(str, range(100_000)))})", "expected at most 200,000: put long lists into a file"),
        ("regexp_matches(caption, repeat('(a*)*b', 1000000))", "pattern too large"),
        ("regexp_matches(caption, '(a{1000}){1000}')", "repetition"),
        ("caption = '\0'", "NUL"),
        ("1", "expected true or false"),
        ("", "cannot read the filter"),
        ("width > 1; drop table x", "Only SELECT"),
    ],
)
def test_a_hostile_predicate_is_a_one_line_error(predicate: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Filter(where=predicate).inputs({"images": COLUMNS})
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


def test_constants_need_no_column() -> None:
    rows = pa.table([pa.array([0, 1])], schema=pa.schema([SAMPLE_ID]))
    for predicate, kept in (("1=1", [True, True]), ("1=2", [False, False]), ("null::bool", [False, False])):
        stage = Filter(where=predicate)
        assert stage.inputs({"images": COLUMNS}) == {"images": ()}
        (found,) = stage.open("cpu", {})(iter([rows]))
        assert found.column("keep").to_pylist() == kept


def test_constants_that_cost_too_much_are_refused_before_a_build() -> None:
    slow = "levenshtein(repeat('a', 20000), repeat('b', 20000)) > width"
    message = (
        r"stage 'filter': the filter .leven.* took longer than 0\.1 s and was stopped; its constants cost too much"
    )
    with pytest.raises(RecipeError, match=message):
        Filter(where=slow).inputs({"images": COLUMNS}, bind_s=0.1)


def batch(rows: int) -> pa.Table:
    ids: Any = range(rows)
    return pa.table([pa.array(ids), pa.array(ids), pa.array(["a"] * rows)], schema=COLUMNS)


def test_a_batch_that_takes_too_long_is_reported_with_advice() -> None:
    stage = Filter(where="levenshtein(repeat(caption, 600), repeat('b', 600)) > 0", timeout_s=0.2)
    stage.inputs({"images": COLUMNS})
    message = (
        r"stage 'filter': the filter .levenshtein\(repeat\(caption.* > 0. took longer than 0\.2 s and was stopped; "
        r"lower `resources\.batch_rows` or raise `timeout_s`$"
    )
    with pytest.raises(QueryError, match=message):
        list(stage.open("cpu", {})(iter([batch(4096)])))
    assert "timeout_s" not in stage.parameters()
