"""A card is drawn of whatever the tables hold: seeded random tables with every value that a column can degenerate to.

Every case is named by its seed, which reproduces it.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, IMAGES, MODELS, SAMPLE_ID, SOURCE, score
from tasks.report import Report
from tasks.report._funnel import KEPT_REASONS
from tasks.report._page import render
from tests.helpers import LocalRun
from tests.pictures import jpeg
from tests.tasks.report.test_page import Page, check_self_contained

SEEDS = [*range(14), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(14, 400))]
PAGE_LIMIT_BYTES = 12_000_000

TEXTS = (
    *(None, "", " ", "a", "word", "two words", "\x00\x07", "\u202e\u200b", "<script>alert(1)</script>", "' \" >"),
    *("{{ 7 * 7 }}", "é漢字🙂" * 60, "x" * 5000, "a, b, c", "nan", "line\nline\ttab\r", "pruned_union", "0 keeps: y"),
)
FLOATS = (None, math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, 1.0, -1.0, 5e-324, 1e-30, 3e38, -3e38, 1e308, -1e308)
INTS = (None, 0, 1, -1, 2, 7, 100, 2**31 - 1, -(2**31))
BYTES = (None, b"", b"\xff\xd8\xff", b"not an image", jpeg(8, 8, 1), jpeg(8, 8, 1), jpeg(300, 2, 2))
METRICS = (
    *(None, "", "null", "{", "[]", '"x"', "3", '{"loss": []}', '{"loss": "x"}', '{"loss": {"a": 1}}'),
    *('{"loss": [1]}', '{"loss": [1, 1, 1]}', '{"loss": [NaN, Infinity]}', '{"loss": [true, null, 2, -1e999]}'),
    *('{"loss": [1e308, -1e308, 0]}', json.dumps({"loss": list(range(5000))})),
)
CONCEPTS = pa.schema(
    [
        *(pa.field("cluster", pa.int32()), pa.field("intra", pa.float32()), pa.field("inter", pa.float32())),
        *(pa.field("name_caption", pa.string()), pa.field("name_label", pa.string())),
        pa.field("label_cosine", pa.float32()),
        *(pa.field("nearest", pa.list_(pa.int64())), pa.field("farthest", pa.list_(pa.int64()))),
    ]
)
SCORES = pa.schema([SAMPLE_ID, *(score(name, "x", 1, "a score") for name in ("aesthetic", "odd \"name'"))])


MAPS: list[Any] = [
    None,
    [],
    [("density.keep", 1.0), ("density.rank", 3.0), ("random.keep", 0.0)],
    [("random.keep", math.nan), ("a.b.keep", None), (".keep", math.inf), ("", 1.0), ("keep", 1.0)],
]


class Draw:
    """Columns of a few rows, drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.rows = int(self.rng.choice([0, 1, 1, 2, 3, 8, 30]))
        self.ids = sorted({int(i) for i in self.rng.choice(2**25, self.rows)})

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, pool: Sequence[Any]) -> Any:
        return pool[int(self.rng.integers(len(pool)))]

    def column(self, pool: Sequence[Any], rows: int) -> list[Any]:
        """Return values that are all one, all null, or any: what a column can be."""
        kind = self.rng.random()
        if kind < 0.3:
            return [self.pick(pool)] * rows
        few = [self.pick(pool) for _ in range(2)] if kind < 0.5 else pool
        return [self.pick(few) for _ in range(rows)]

    def table(self, schema: pa.Schema, ids: Sequence[int], **given: Callable[[int], list[Any]]) -> pa.Table:
        columns = [pa.array(self._values(field, ids, given), field.type, from_pandas=False) for field in schema]
        return pa.table(columns, schema=schema)

    def _values(self, field: pa.Field, ids: Sequence[int], given: dict[str, Callable[[int], list[Any]]]) -> list[Any]:
        kind, rows = field.type, len(ids)
        if field.name == "sample_id":
            return list(ids)
        if field.name in given:
            return given[field.name](rows)
        if pa.types.is_floating(kind):
            limit = float(np.finfo(np.float32).max) if kind == pa.float32() else math.inf
            fits = [v if v is None or not math.isfinite(v) or abs(v) <= limit else 0.25 for v in FLOATS]
            return self.column(fits, rows)
        if pa.types.is_integer(kind):
            limits = np.iinfo(kind.to_pandas_dtype())
            return self.column([v for v in INTS if v is None or limits.min <= v <= limits.max], rows)
        if pa.types.is_boolean(kind):
            return self.column([True, False, None], rows)
        if pa.types.is_map(kind):
            return self.column(MAPS, rows)
        if pa.types.is_list(kind):
            return [self.pick([None, [], self.ids[:1], [*self.ids[:3], None, 5], list(self.ids)]) for _ in range(rows)]
        if pa.types.is_large_binary(kind):
            return self.column(BYTES, rows)
        return self.column(TEXTS, rows)

    def some(self, ids: Sequence[int]) -> list[int]:
        return [i for i in ids if self.chance(0.8)]


def tables_of(draw: Draw) -> dict[str, pa.Table]:
    """Return tables as stages could write them, any of them missing."""
    clusters = [None, 0, 0, 1, 2, 40]
    made: dict[str, Callable[[], pa.Table]] = {
        "source": lambda: draw.table(SOURCE, draw.ids),
        "images": lambda: draw.table(
            IMAGES.append(pa.field("image", pa.large_binary())),
            draw.ids,
            status=lambda n: draw.column(["success", "success", "failed", None], n),
            shard=lambda n: [None] * n,
        ),
        "decisions": lambda: _decisions(draw),
        "clusters": lambda: draw.table(CLUSTERS, draw.some(draw.ids), cluster=lambda n: draw.column(clusters, n)),
        "concepts": lambda: draw.table(CONCEPTS, range(3), cluster=lambda n: list(range(n))),
        "scores": lambda: draw.table(SCORES, draw.some(draw.ids)),
        "models": lambda: draw.table(MODELS, range(draw.pick([0, 1, 3])), metrics=lambda n: draw.column(METRICS, n)),
    }
    there = [name for name in made if draw.chance(0.75)] or ["source"]
    return {name: made[name]() for name in there}


def _decisions(draw: Draw) -> pa.Table:
    stages = [draw.pick([t for t in TEXTS if t]) for _ in range(3)]
    others = [None, *draw.ids, 3]
    reasons = ["pruned_density", "pruned_union", "duplicate_exact", None, *TEXTS]
    tables = [
        draw.table(
            DECISIONS,
            draw.ids if draw.chance(0.5) else draw.some(draw.ids),
            stage=lambda n, stage=stage: [stage] * n,  # type: ignore[misc]
            keep=lambda n: draw.column([True, False], n),
            reason=lambda n: draw.column(reasons, n),
            evidence=lambda n: draw.column([*TEXTS, "density keeps: 1; random drops: 2"], n),
            representative=lambda n: draw.column(others, n),
        )
        for stage in dict.fromkeys(stages)
    ]
    return pa.concat_tables(tables)


def lineage_of(draw: Draw) -> dict[str, Any]:
    """Return what a version says of itself, any of it missing or odd."""
    facts = {
        "dataset": draw.pick(TEXTS),
        "version": draw.pick(INTS),
        "recipe": draw.pick(TEXTS),
        "code_version": draw.pick(TEXTS),
        "inputs": [{"uri": draw.pick(TEXTS), "rows": draw.pick(INTS)} for _ in range(draw.pick([0, 1, 60]))],
        "stages": [
            {
                "name": f"stage {i}",
                "rows": draw.pick([None, 0, 7]),
                "bytes": draw.pick([None, 0, 10**13]),
                "notes": {"a": draw.pick(FLOATS), "b": draw.pick(TEXTS), "c": [1, 2, 3, 4, 5], "d": {"x": [None]}},
            }
            for i in range(draw.pick([0, 1, 3]))
        ],
    }
    return {key: value for key, value in facts.items() if draw.chance(0.8)}


def timings_of(draw: Draw) -> list[dict[str, Any]]:
    seconds = [None, 0, 0.0, 1e-9, 3.0, 1e9]
    return [
        {"stage": f"stage {i}", "seconds": draw.pick(seconds), "rows": draw.pick([None, 0, 9]), "parts": 1}
        for i in range(draw.pick([0, 1, 3]))
    ]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_card_of_anything(seed: int, tmp_path: Path) -> None:
    draw = Draw(seed)
    tables = tables_of(draw)
    inputs = Inputs.of(alive_only=False, **tables)
    (card,) = Report(title=draw.pick(TEXTS[1:9]), samples=6).run(inputs, LocalRun(tmp_path))
    page = render(card, lineage_of(draw), timings_of(draw))
    check_self_contained(page)
    assert len(page) < PAGE_LIMIT_BYTES
    base = next((tables[name] for name in ("source", "images") if name in tables), None)
    summary = json.loads(card["content"][card["section"].index("summary").as_py()].as_py())
    rejected: set[int] = set()
    if "images" in tables:
        rejected |= {r["sample_id"] for r in tables["images"].to_pylist() if r["status"] != "success"}
    if "decisions" in tables:
        rejected |= {r["sample_id"] for r in tables["decisions"].to_pylist() if r["keep"] is not True}
    rows = base.num_rows if base is not None else 0
    assert summary["rows"] == rows
    if base is not None:
        assert summary["kept"] == rows - len(rejected)
    assert Page(page).words.count("Data card") == 1


def test_a_hundred_thousand_reasons_make_a_small_card(tmp_path: Path) -> None:
    """The card keeps the commonest, and how many rows all others have; table and page stay small."""
    count = 100_000
    ids = pa.array(range(count))
    evidence = pa.array(["e" * 300] * count)
    source = pa.table({"sample_id": ids, "url": evidence})
    images = pa.table(
        {"sample_id": ids, "status": ["failed"] * count, "reason": [f"r{i}" for i in range(count)], "detail": evidence}
    )
    decisions = {"sample_id": ids, "stage": ["filter"] * count, "keep": [False] * count, "evidence": evidence}
    reasons = [f"reason {max(i, 10)}" for i in range(count)]
    tables = {
        "source": source,
        "decisions": pa.table(decisions | {"reason": reasons}),
    }
    no_bytes = pa.nulls(count, pa.large_binary())
    tables["images"] = images.append_column("image", no_bytes)
    (card,) = Report().run(Inputs.of(alive_only=False, **tables), LocalRun(tmp_path))
    assert card.nbytes < 200_000
    page = render(card, {"dataset": "laion"})
    assert len(page) < 300_000
    steps = [json.loads(row["content"]) for row in card.to_pylist() if row["section"] == "funnel"]
    assert steps[2]["reasons"][0]["rows"] == 11
    for step in steps[1:]:
        assert len(step["reasons"]) == KEPT_REASONS
        assert sum(reason["rows"] for reason in step["reasons"]) + step["other_rows"] == step["rejected"] == count
    assert f"{count - 18:,} for more than 42 other reasons" in Page(page).words


def test_the_metrics_of_a_model_are_bounded(tmp_path: Path) -> None:
    metrics = json.dumps({"loss": [float(i) for i in range(200_000)], "notes": "n" * 100_000})
    table = pa.Table.from_pylist([{"name": f"m{i:04d}", "metrics": metrics} for i in range(150)], MODELS)
    (card,) = Report().run(Inputs.of(alive_only=False, models=table, source=SOURCE.empty_table()), LocalRun(tmp_path))
    found = [json.loads(row["content"]) for row in card.to_pylist() if row["section"] == "model"]
    assert len(found) == 100
    assert len(found[0]["metrics"]["loss"]) == 1000
    assert len(render(card, {})) < 2_000_000
