"""The one rule of what is kept, null values included: its three forms, and everything that asks for it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.diff import diff
from catalog.duck import open_database
from catalog.errors import BalanceError
from catalog.inputs import Inputs
from catalog.rejection import REJECTING, rejects, rejects_sql, rejects_value
from catalog.schema import DECISIONS, IMAGES, SOURCE, TAKEN_URL
from catalog.version import TableState, VersionFacts
from flows.build.balance import check_saved
from flows.explore.why import stories
from tasks.report._base import ReportTables
from tasks.report._funnel import funnel, summary
from tests.catalog.conftest import SCHEMAS, WritePart

VALUES: dict[str, list[tuple[object, bool]]] = {
    "status": [("success", False), ("failed", True), ("Success", True), (None, True)],
    "keep": [(True, False), (False, True), (None, True)],
    "url": [("http://x", False), (TAKEN_URL, True), ("", False), (None, False)],
}


@pytest.mark.parametrize("column", REJECTING.values())
def test_arrow_sql_and_python_agree(column: str) -> None:
    values, expected = zip(*VALUES[column], strict=True)
    array = pa.array(values, pa.bool_() if column == "keep" else pa.string())
    assert rejects(array, column).to_pylist() == list(expected)
    assert rejects(pa.chunked_array([array]), column).to_pylist() == list(expected)
    assert [rejects_value(value, column) for value in array.to_pylist()] == list(expected)
    with open_database(threads=1) as connection:
        connection.register("t", pa.table({"n": range(len(array)), column: array}))
        conditions = f"{rejects_sql(column)}, {rejects_sql(column, f't.{column}')}"
        found = connection.execute(f"select {conditions} from t order by n").fetchall()
    assert found == [(value, value) for value in expected]


IDS = range(9)
STATUS: Sequence[str | None] = ["success"] * 7 + ["failed", None]
KEEP: dict[int, Sequence[bool | None]] = {0: [True], 1: [False], 2: [None], 3: [True, None], 4: [True, True]}
URLS = [f"http://x/{i}" for i in range(5)] + [TAKEN_URL, None, "http://x/7", "http://x/8"]
KEPT = [0, 4, 6]
"""Row 6 has neither a decision nor a URL."""


@pytest.fixture
def tables() -> dict[str, pa.Table]:
    judged = [
        {"sample_id": i, "stage": f"stage {at}", "keep": keep, "reason": None if keep else "dull"}
        for i, verdicts in KEEP.items()
        for at, keep in enumerate(verdicts)
    ]
    source = [{"sample_id": i, "url": url} for i, url in zip(IDS, URLS, strict=True)]
    images = [{"sample_id": i, "status": status} for i, status in zip(IDS, STATUS, strict=True)]
    return {
        "source": pa.Table.from_pylist(source, SOURCE),
        "images": pa.Table.from_pylist(images, IMAGES),
        "decisions": pa.Table.from_pylist(judged, DECISIONS),
    }


def test_a_stage_reads_what_is_kept(tables: dict[str, pa.Table]) -> None:
    taken = tables["source"].select(["sample_id", "url"])
    inputs = Inputs.of(**tables)
    judges = [*inputs._judges, Inputs.of(url=taken)._pieces("url")]
    assert Inputs(inputs._tables, judges).ids().tolist() == KEPT


def test_the_card_counts_what_is_kept(tables: dict[str, pa.Table]) -> None:
    found = ReportTables(Inputs.of(alive_only=False, **tables))
    assert summary(found, "", "").content["kept"] == len(KEPT)
    steps = {entry.content["stage"]: entry.content["rejected"] for entry in funnel(found)}
    assert steps == {"source": 0, "download": 2, "stage 0": 2, "stage 1": 1}


def test_sql_why_and_diff_say_what_is_kept(
    tables: dict[str, pa.Table], local_dataset: Dataset, write_part: WritePart, facts: VersionFacts, tmp_path: Path
) -> None:
    dataset, catalog = local_dataset, Catalog(tmp_path / "catalog")
    stages = [{"name": "download", "use": "download", "table": "images"}]
    stages += [{"name": f"stage {at}", "use": "filter", "table": "decisions"} for at in range(2)]
    states = {
        name: TableState(table.schema, [write_part(dataset, name, 0, table.to_pylist(), table.schema)])
        for name, table in tables.items()
    }
    dataset.publish(states, replace(facts, stages=stages))
    found = sql(catalog, "select sample_id, keep, reason from birds.verdicts order by 1").to_pylist()
    assert [row["sample_id"] for row in found if row["keep"]] == KEPT
    assert [row["sample_id"] for row in found if row["reason"] == "dull"] == [1, 2, 3]
    shown = [stories(catalog, "birds", str(i))[0]["verdict"]["keep"] for i in IDS]
    assert [i for i, keep in zip(IDS, shown, strict=True) if keep] == KEPT

    sound = tables["decisions"].set_column(2, DECISIONS.field("keep"), pa.array([True] * tables["decisions"].num_rows))
    part = write_part(dataset, "decisions", 1, sound.to_pylist(), DECISIONS)
    dataset.publish(states | {"decisions": TableState(DECISIONS, [part])}, replace(facts, stages=stages))
    changed = {change.stage: change.rows for change in diff(catalog, "birds@1", "birds@2").decisions}
    assert changed == {"stage 0": 2, "stage 1": 1}


@pytest.mark.parametrize(("table", "column", "kept"), [("images", "status", range(7)), ("decisions", "keep", range(2))])
def test_only_rows_that_are_kept_are_in_balance(
    local_dataset: Dataset, write_part: WritePart, table: str, column: str, kept: Sequence[int]
) -> None:
    values = {"status": STATUS, "keep": [True, True, None, False]}[column]
    rows: list[dict[str, object]] = [{"sample_id": i, column: value} for i, value in enumerate(values)]
    if table == "decisions":
        rows = [row | {"stage": "filter"} for row in rows]

    def check(chosen: Sequence[int]) -> None:
        part = write_part(local_dataset, table, len(chosen), [row for row in rows if row["sample_id"] in chosen])
        check_saved(local_dataset, np.array(chosen, np.int64), {table: TableState(SCHEMAS[table], [part])})

    check(kept)
    for rejected in set(range(len(rows))) - set(kept):
        with pytest.raises(BalanceError, match=f"sample {rejected} is one"):
            check([*kept, rejected])
