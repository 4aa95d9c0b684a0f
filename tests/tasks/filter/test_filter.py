import random
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import DECISIONS, IMAGES, SAMPLE_ID, SOURCE, score, vector
from tasks.filter import Filter
from tasks.filter._predicate import split

SOURCE_SCHEMA = pa.schema([*SOURCE, pa.field("WIDTH", pa.int64()), pa.field("meta", pa.struct([("iso", pa.int32())]))])
EMBEDDINGS = pa.schema([SAMPLE_ID, vector("clip", 2, "image"), score("clip_score", "clip", 1, "cosine")])
AVAILABLE = {"source": SOURCE_SCHEMA, "images": IMAGES, "embeddings": EMBEDDINGS, "decisions": DECISIONS}


def table(schema: pa.Schema, **columns: Any) -> pa.Table:
    rows = len(next(iter(columns.values())))
    ids = list(range(rows))
    given = {"sample_id": ids, **columns}
    return pa.table([pa.array(given.get(f.name, [None] * rows), f.type) for f in schema], schema=schema)


def judge(
    stage: Filter, available: dict[str, pa.Schema] | None = None, rows: int = 65536, **tables: pa.Table
) -> pa.Table:
    """Plan and run a filter as the engine does; return its decisions."""
    schemas = available or {name: t.schema for name, t in tables.items()}
    columns = stage.inputs(schemas)
    inputs = Inputs.of(alive_only=False, **tables)
    found = pa.concat_tables(stage.open("cpu", {})(inputs.batches(columns, rows)))
    assert found.schema.equals(stage.output(schemas), check_metadata=True)
    return found


def images(**columns: Any) -> pa.Table:
    return table(IMAGES, **columns)


def test_every_row_has_a_decision_with_its_reason_and_evidence() -> None:
    found = judge(
        Filter(where="width >= 200 and height >= 100 and clip_score >= 0.28"),
        images=images(width=[300, 120, 300, 50, None], height=[100, 200, 99, None, 100]),
        embeddings=table(EMBEDDINGS, clip_score=[0.5, 0.5, 0.25, 0.1, np.nan]),
    )
    assert found.column("sample_id").to_pylist() == [0, 1, 2, 3, 4]
    assert found.column("keep").to_pylist() == [True, False, False, False, False]
    assert found.column("stage").to_pylist() == ["filter"] * 5
    assert found.column("reason").to_pylist() == [
        None, "width >= 200", "height >= 100", "width >= 200", "width >= 200",
    ]  # fmt: skip
    assert found.column("evidence").to_pylist() == [
        None,
        "width=120 fails width >= 200",
        "height=99 fails height >= 100; clip_score=0.25 fails clip_score >= 0.28",
        "width=50 fails width >= 200; height=null: height >= 100 is null; clip_score=0.1 fails clip_score >= 0.28",
        "width=null: width >= 200 is null; clip_score=null: clip_score >= 0.28 is null",  # NaN is no score
    ]
    assert found.column("representative").null_count == 5
    assert found.to_pydict(maps_as_pydicts="strict")["numbers"] == [
        None,
        {"width": 120},
        {"height": 99, "clip_score": 0.25},
        {"width": 50, "clip_score": pytest.approx(0.1)},
        None,
    ]


def test_rules_name_the_reasons() -> None:
    rules = {"too small": "width >= 200 and height >= 200", "it's dark": "brightness > 0.1"}
    found = judge(
        Filter(name="pixels", rules=rules),
        images=images(width=[300, 120, 300], height=[300, 120, 300], brightness=[0.5, 0.5, 0.05]),
    )
    assert found.column("reason").to_pylist() == [None, "too small", "it's dark"]
    assert found.column("evidence").to_pylist() == [
        None,
        "width=120 fails width >= 200; height=120 fails height >= 200",
        "brightness=0.05 fails brightness > 0.1",
    ]
    assert set(found.column("stage").to_pylist()) == {"pixels"}


@pytest.mark.parametrize(
    ("predicate", "conjuncts"),
    [
        ("a", ["a"]),
        ("a and b", ["a", "b"]),
        ("a and (b and c) and d", ["a", "b", "c", "d"]),
        ("(a and b)", ["a", "b"]),
        ("a or b and c", ["a or b and c"]),
        ("(a or b) and c", ["a or b", "c"]),
        ("x between 1 and 2 and y", ["x between 1 and 2", "y"]),
        ("not (a and b)", ["not (a and b)"]),
        ("case when a and b then c else d end and e", ["case when a and b then c else d end", "e"]),
        ("(x) like '%a and b%' and y in (1, 2)", ["(x ~~ '%a and b%')", "y in (1, 2)"]),
        ("é > 1 AND ü = 'ß and ''q'''", ["é > 1", "ü = 'ß and ''q'''"]),
        ("lower(\"my col\") = 'a' and t.x is not null", ["lower(\"my col\") = 'a'", "t.x is not null"]),
        ("a > 1 -- and b\n and c", ["a > 1", "c"]),
        ("a\n  > 1 and c", ["(a > 1)", "c"]),
        ("list_filter(v, lambda e: e > 1 and e < 3) and b", ["list_filter(v, lambda e: e > 1 and e < 3)", "b"]),
    ],
)  # fmt: skip
def test_split(predicate: str, conjuncts: list[str]) -> None:
    assert [c.text for c in split(predicate)] == conjuncts


def test_columns_that_a_condition_names() -> None:
    paths = [
        c.paths for c in split("a.b.c > 1 and len(list_filter(v, lambda e: e > w)) > 0 and (j -> '$.x') = k and 1 = 1")
    ]
    assert paths == [(("a", "b", "c"),), (("v",), ("w",)), (("j",), ("k",)), ()]


@pytest.mark.parametrize(
    "predicate",
    [
        "caption like '%cat%' or caption ilike 'DOG%'",
        "regexp_matches(caption, '^[a-z ]+$')",
        "length(caption) between 3 and 10",
        "not (WIDTH > 2 and WIDTH < 5)",
        "case when label = 'x' then WIDTH > 1 else WIDTH is null end",
        "label in ('x', 'y') and WIDTH % 2 = 0",
        "coalesce(WIDTH, 0) > 1 and meta.iso >= 100",
        "caption = 'it''s; drop table x' or \"WIDTH\"::varchar = '3'",
        "try_cast(label as int) = 7 or label is distinct from 'x'",
        "list_contains(['x', 'y'], label) and starts_with(lower(caption), 'a')",
        "len(list_filter([WIDTH, 1, 2], lambda e: e > 1)) > 1",
        "true",
        "url ~~ 'http%' and source.caption != ''",
        "source.meta.iso is null or source.WIDTH = 1",
    ],
)
def test_keeps_what_duckdb_selects(predicate: str) -> None:
    """The reference is the same predicate in a plain WHERE."""
    import duckdb

    draw = random.Random(7)
    n = 300
    source = table(
        SOURCE_SCHEMA,
        url=[draw.choice(["http://a", "ftp://b", None]) for _ in range(n)],
        caption=[draw.choice(["a cat", "Dog", "it's; drop table x", "", None, "é" * 5]) for _ in range(n)],
        label=[draw.choice(["x", "y", "7", None]) for _ in range(n)],
        WIDTH=[draw.choice([1, 2, 3, 4, None]) for _ in range(n)],
        meta=[draw.choice([{"iso": 50}, {"iso": 100}, {"iso": None}, None]) for _ in range(n)],
    )
    expected = [
        i
        for (i,) in duckdb.default_connection()
        .sql(f"select sample_id from source where {predicate} order by 1")
        .fetchall()
    ]
    found = judge(Filter(where=predicate), rows=64, source=source)
    assert found.column("sample_id").to_pylist() == list(range(n))
    assert found.filter(found.column("keep")).column("sample_id").to_pylist() == expected
    rejected = found.filter(pa.compute.invert(found.column("keep")))
    assert rejected.column("reason").null_count == rejected.column("evidence").null_count == 0
    kept = found.filter(found.column("keep"))
    assert kept.column("reason").null_count == kept.column("evidence").null_count == len(kept)


def test_values_that_cannot_be_computed_reject_their_row_only() -> None:
    found = judge(Filter(where="caption::int > 3"), source=table(SOURCE, caption=["5", "abc", "1", None]))
    assert found.column("keep").to_pylist() == [True, False, False, False]
    assert found.column("evidence").to_pylist() == [
        None,
        "caption=abc: caption::int > 3 is null",
        "caption=1 fails caption::int > 3",
        "caption=null: caption::int > 3 is null",
    ]


def test_long_values_are_cut_in_the_evidence() -> None:
    found = judge(Filter(where="caption = ''"), source=table(SOURCE, caption=["x" * 1000]))
    assert found.column("evidence").to_pylist() == ["caption=" + "x" * 80 + " fails caption = ''"]


def test_names_with_any_characters() -> None:
    names = ["é", "my col", 'say "x"', "it's", "select", "a.b", "日本", "x; drop table y"]
    schema = pa.schema([SAMPLE_ID, *(pa.field(n, pa.int32()) for n in names)])
    where = " and ".join('"' + n.replace('"', '""') + '" > 1' for n in names)
    found = judge(Filter(where=where), source=table(schema, **{n: [2, 1] for n in names}))
    assert found.column("keep").to_pylist() == [True, False]
    assert (
        found.column("evidence").to_pylist()[1].startswith('é=1 fails "é" > 1; my col=1 fails "my col" > 1; say "x"=1')
    )


def test_inputs_are_the_referenced_columns() -> None:
    where = "height > 1 and clip_score > 0.2 and caption != '' and height < 9 and sample_id > 3 and meta.iso > 1"
    assert Filter(where=where).inputs(AVAILABLE) == {
        "images": ("height",), "embeddings": ("clip_score",), "source": ("caption", "meta"),
    }  # fmt: skip
    assert Filter(where="sample_id % 2 = 0").inputs(AVAILABLE) == {"source": ()}


def test_resolution_of_names() -> None:
    assert Filter(where="width > 1").inputs(AVAILABLE) == {"images": ("width",)}  # spelt exactly as in images
    assert Filter(where="WIDTH > 1").inputs(AVAILABLE) == {"source": ("WIDTH",)}
    assert Filter(where="Images.Width > 1").inputs(AVAILABLE) == {"images": ("width",)}
    with pytest.raises(RecipeError, match=r"'Width', which several tables have; write source\.WIDTH or images\.width"):
        Filter(where="Width > 1").inputs(AVAILABLE)
    with pytest.raises(RecipeError, match=r"reads both images\.width and source\.WIDTH"):
        Filter(where="width = WIDTH").inputs(AVAILABLE)
    with pytest.raises(RecipeError, match=r"unknown column 'widht'; did you mean 'width'\?"):
        Filter(where="widht > 1").inputs(AVAILABLE)
    with pytest.raises(RecipeError, match=r"unknown column 'images\.caption'"):
        Filter(where="images.caption = ''").inputs(AVAILABLE)
    with pytest.raises(RecipeError, match="unknown column 'keep'"):
        Filter(where="keep").inputs(AVAILABLE)
    with pytest.raises(RecipeError, match="there is no earlier table"):
        Filter(where="true").inputs({})


def test_a_struct_field_may_have_the_name_of_a_column() -> None:
    schema = pa.schema(
        [SAMPLE_ID, pa.field("images", pa.struct([("width", pa.int32())])), pa.field("width", pa.int32())]
    )
    found = judge(
        Filter(where="images.width > 1 and width > 5"),
        source=table(schema, images=[{"width": 2}, {"width": 0}, {"width": 2}], width=[9, 9, 0]),
    )
    assert found.column("keep").to_pylist() == [True, False, False]


def test_vectors_can_be_used() -> None:
    found = judge(
        Filter(where="array_inner_product(clip, [1, 0]::float[2]) > 0.5"),
        embeddings=table(EMBEDDINGS, clip=[np.array([1, 0], np.float16), np.array([0, 1], np.float16), None]),
    )
    assert found.column("keep").to_pylist() == [True, False, False]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("width >=", r"cannot read the filter 'width >=': syntax error"),
        ("width >= 'a", "unterminated"),
        ("", "cannot read the filter"),
        ("width", r"is INTEGER; expected true or false"),
        ("null", 'is "NULL"; expected true or false'),
        ("width + 1", "is INTEGER; expected true or false"),
        ("caption > 5", "'caption > 5': Binder Error: Cannot compare values of type VARCHAR"),
        ("caption + 1 > 2", "No function matches"),
        ("lowwer(caption) = 'a'", r"no function 'lowwer'; did you mean 'lower'\?"),
        ("width > 1; drop table source", "Only SELECT"),
        ("width > 1; select 1", "not one expression"),
        ("width > 1 from source", "not one expression"),
        ("width > 1 where true", "not one expression"),
        ("width > 1, true", "not one expression"),
        ("width > 1 as x", "not one expression"),
        ("width > 1 limit 1", "not one expression"),
        ("distinct width > 1", "not one expression"),
        ("width > 1 union select true", "not one expression"),
        ("width > (select 1)", "a subquery"),
        ("exists (from read_text('/etc/passwd'))", "a subquery"),
        ("width in (select size from read_parquet('/x'))", "a subquery"),
        ("read_text('/etc/passwd') = ''", r"may not use read_text\(\)"),
        ("width > avg(width)", r"may not use avg\(\)"),
        ("row_number() over () > 1", "a window function"),
        ("count(*) > 1", r"may not use count_star\(\)"),
        ("columns(*) > 1", r"has \*"),
        ("width > ?", "a parameter"),
        ("random() < 0.5", r"may not use random\(\)"),
        ("now() > '2024-01-01'::timestamptz", r"may not use now\(\)"),
        ("current_date > '2024-01-01'::date", "unknown column 'current_date'"),
        ("age('2020-01-01'::timestamp) > interval 1 day", r"may not use age\(\)"),
        ("getenv('HOME') = ''", "no function 'getenv'"),
        ("current_setting('threads') = 1", r"may not use current_setting\(\)"),
        ("uuid()::varchar > 'a'", r"may not use uuid\(\)"),
        ("error('x')", r"may not use error\(\)"),
        ("width > 1\0 or true", "NUL character"),
    ],
)
def test_invalid_predicates_are_refused_when_planned(where: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Filter(where=where).inputs(AVAILABLE)
    assert "\n" not in str(caught.value)
    assert "LINE 1" not in str(caught.value)


def test_no_variable_of_the_process_can_be_read() -> None:
    secret = pa.table({"x": [1]})
    assert secret.num_rows
    with pytest.raises(RecipeError, match=r"unknown column 'secret\.x'"):
        Filter(where="secret.x = 1").inputs(AVAILABLE)


def test_either_where_or_rules() -> None:
    for fields in ({}, {"where": "a", "rules": {"x": "b"}}):
        with pytest.raises(ValidationError, match="either `where` or `rules`"):
            Filter(**fields)


def test_parts_do_not_change_decisions() -> None:
    rng = np.random.default_rng(0)
    all_rows = images(width=rng.integers(0, 400, 5000), height=rng.integers(0, 400, 5000))
    stage = Filter(where="width >= 200 and height >= 200")
    assert judge(stage, rows=65536, images=all_rows).equals(judge(stage, rows=7 * 64, images=all_rows).combine_chunks())


def test_two_actors_in_one_process() -> None:
    stage = Filter(where="width >= 200")
    batch = images(width=list(range(1000))).select(["sample_id", "width"])
    found: list[int] = []

    def work() -> None:
        step = stage.open("cpu", {})
        found.extend(pa.compute.sum(t.column("keep")).as_py() for t in step(iter([batch] * 20)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [800] * 80


_WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(name=_WORD, value=_WORD)
def test_any_name_and_any_literal(name: str, value: str) -> None:
    if name.casefold() == "sample_id":
        return
    schema = pa.schema([SAMPLE_ID, pa.field(name, pa.string())])
    where = '"' + name.replace('"', '""') + "\" = '" + value.replace("'", "''") + "' and true"
    found = judge(Filter(where=where), source=table(schema, **{name: [value, value + "x"]}))
    assert found.column("keep").to_pylist() == [True, False]
    assert found.column("evidence").to_pylist()[1].startswith(f"{name}={value}x fails ")


def test_the_connection_is_locked() -> None:
    import duckdb

    from tasks.filter._predicate import connect

    local = pa.table({"x": [1]})
    assert local.num_rows
    with connect() as connection:
        for query in (
            "from local", "from read_text('/etc/passwd')", "copy (select 1) to '/tmp/x.csv'", "set threads = 2",
            "set enable_external_access = true", "attach '/tmp/x.db'", "install httpfs", "load httpfs",
        ):  # fmt: skip
            with pytest.raises(duckdb.Error):
                connection.execute(query).fetchall()
        assert connection.execute("select current_setting('TimeZone')").fetchall() == [("UTC",)]
