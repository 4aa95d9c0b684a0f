from itertools import pairwise

import pyarrow as pa

from catalog.inputs import Inputs
from catalog.schema import DECISIONS, IMAGES, SOURCE
from tasks.report._base import ReportTables
from tasks.report._funnel import funnel, summary
from tests.tasks.report.gallery import Gallery


def planted(order: tuple[str, ...] = ("b", "a")) -> Inputs:
    """Ten rows: 2 fail, stage b sees 8 and rejects 3 for two reasons, stage a sees 5 and rejects 1."""
    failed = {0: "timeout", 1: None}
    out = {2: ("b", "dull"), 3: ("b", "dull"), 4: ("b", 'it\'s; "odd"'), 5: ("a", None)}
    seen = {"b": range(2, 10), "a": range(5, 10)}
    decisions = [
        {
            "sample_id": i,
            "stage": s,
            "keep": out.get(i, ("", ""))[0] != s,
            "reason": out.get(i, ("", None))[1],
            "evidence": f"e{i}",
        }
        for s in order
        for i in seen[s]
    ]
    images = [
        {
            "sample_id": i,
            "status": "failed" if i in failed else "success",
            "reason": failed.get(i),
            "detail": f"d{i}",
            "byte_size": 2**i,
        }
        for i in range(10)
    ]
    return Inputs.of(
        alive_only=False,
        source=pa.Table.from_pylist([{"sample_id": i} for i in range(10)], SOURCE),
        images=pa.Table.from_pylist(images, IMAGES),
        decisions=pa.Table.from_pylist(decisions, DECISIONS),
    )


def test_every_row_is_counted_once_with_its_reason() -> None:
    steps = [entry.content for entry in funnel(ReportTables(planted()))]
    assert [(s["stage"], s["seen"], s["rejected"], s["kept"]) for s in steps] == [
        ("source", 10, 0, 10),
        ("download", 10, 2, 8),
        ("b", 8, 3, 5),
        ("a", 5, 1, 4),
    ]
    assert steps[1]["reasons"] == [
        {"reason": "timeout", "rows": 1, "example": "d0"},
        {"reason": "unknown", "rows": 1, "example": "d1"},
    ]
    assert steps[2]["reasons"] == [
        {"reason": "dull", "rows": 2, "example": "e2"},
        {"reason": 'it\'s; "odd"', "rows": 1, "example": "e4"},
    ]
    assert steps[3]["reasons"] == [{"reason": "unknown", "rows": 1, "example": "e5"}]


def test_stages_stand_in_the_order_they_ran_whatever_their_names_and_the_order_of_the_table() -> None:
    one, other = ([e.content for e in funnel(ReportTables(planted(order)))] for order in (("a", "b"), ("b", "a")))
    assert one == other


def test_the_order_is_that_in_which_the_stages_ran() -> None:
    """Two stages that reject nothing saw as many rows: nothing but the stages of the version says which was first."""
    decisions = [{"sample_id": i, "stage": s, "keep": True} for s in ("x", "z", "y") for i in range(3)]
    inputs = Inputs.of(
        alive_only=False,
        source=pa.Table.from_pylist([{"sample_id": i} for i in range(3)], SOURCE),
        decisions=pa.Table.from_pylist(decisions, DECISIONS),
    )
    for order, expected in ((("z", "y", "x"), "zyx"), (("y", "z"), "yzx"), ((), "xyz")):  # x is last where not known
        steps = [entry.content["stage"] for entry in funnel(ReportTables(inputs, order))]
        assert steps == ["source", *expected]


def test_the_summary_counts_what_is_left() -> None:
    assert summary(ReportTables(planted()), "t", "d").content == {
        "title": "t",
        "description": "d",
        "rows": 10,
        "kept": 4,
        "kept_bytes": 2**6 + 2**7 + 2**8 + 2**9,
    }


def test_each_step_takes_what_the_one_before_left(photos: Gallery) -> None:
    steps = [entry.content for entry in funnel(ReportTables(photos.inputs))]
    for before, after in pairwise(steps):
        assert after["seen"] == before["kept"]
    for step in steps:
        assert step["seen"] == step["kept"] + step["rejected"]
        assert step["rejected"] == sum(reason["rows"] for reason in step["reasons"])
    assert steps[-1]["kept"] == summary(ReportTables(photos.inputs), "", "").content["kept"]


def test_no_tables_no_funnel() -> None:
    assert list(funnel(ReportTables(Inputs.of(alive_only=False)))) == []
    assert summary(ReportTables(Inputs.of(alive_only=False)), "", "").content["rows"] == 0
