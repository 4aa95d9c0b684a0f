"""SQL: the same rows as plain DuckDB over the same files, for any version; and nothing but reading."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.database import VERDICTS, connect, query, sql
from catalog.dataset import Catalog, Dataset
from catalog.errors import DamagedError, NotFoundError, QueryError
from catalog.parts import PartFile
from catalog.schema import DECISIONS, IMAGES, SAMPLE_ID, SOURCE, score, vector
from catalog.version import TableState, Version, VersionFacts

WritePart = Callable[..., PartFile]
EMBEDDINGS = pa.schema(
    [SAMPLE_ID, vector("clip", 4, "of the image"), score("clip_score", "clip", 1, "cosine to the caption")]
)
SCORES = pa.schema([SAMPLE_ID, score("aesthetic", "linear", 1, "1..10")])


def publish(dataset: Dataset, write_part: WritePart, facts: VersionFacts, count: int) -> Version:
    """Publish a dataset of `count` parts of 4 rows: row 0 failed, row 1 was rejected."""
    source, images, embeddings, scores, decisions = [], [], [], [], []
    for n in range(count):
        ids = [n << 24 | row for row in range(4)]
        source.append(write_part(dataset, "source", n, [{"sample_id": i, "url": f"http://x/{i}"} for i in ids]))
        status = ["failed", "success", "success", "success"]
        images.append(
            write_part(
                dataset,
                "images",
                n,
                [{"sample_id": i, "status": s, "width": 9} for i, s in zip(ids, status, strict=True)],
            )
        )
        vectors = (np.arange(16).reshape(4, 4) / 7).astype(np.float16)
        rows = [{"sample_id": i, "clip": v, "clip_score": i % 4 / 4} for i, v in zip(ids[1:], vectors[1:], strict=True)]
        embeddings.append(write_part(dataset, "embeddings", n, rows, EMBEDDINGS))
        scores.append(
            write_part(dataset, "aesthetics", n, [{"sample_id": i, "aesthetic": 5.0} for i in ids[2:]], SCORES)
        )
        judged = [{"sample_id": i, "stage": "filter", "keep": i % 4 > 1, "reason": "blurry"} for i in ids[1:]]
        decisions.append(write_part(dataset, "decisions", n, judged))
    tables = {
        "source": TableState(SOURCE, source),
        "images": TableState(IMAGES, images),
        "embeddings": TableState(EMBEDDINGS, embeddings),
        "aesthetics": TableState(SCORES, scores),
        "decisions": TableState(DECISIONS, decisions),
        "clusters": TableState(pa.schema([SAMPLE_ID, ("cluster", pa.int32())]), []),
    }
    return dataset.publish(tables, replace(facts, recipe_sha256=str(count)))


def ids(table: pa.Table) -> list[int]:
    return sorted(table["sample_id"].to_pylist())


def test_tables_are_the_files_of_a_version(
    dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str
) -> None:
    one, _two = publish(dataset, write_part, facts, 1), publish(dataset, write_part, facts, 3)
    catalog = Catalog(uri)
    for at, count in ((None, 3), ({"birds": 1}, 1), ({"birds": 2}, 3)):
        for table in ("embeddings", "decisions"):
            seen = sql(catalog, f"select * from birds.{table}", at)
            paths = [f"{table}/{n:032x}.parquet" for n in range(count)]
            expected = pq.read_table(paths, filesystem=dataset.storage.filesystem())
            assert ids(seen) == ids(expected)
            assert seen.column_names == expected.column_names
    assert one.number == 1
    assert sql(catalog, "select * from birds.clusters").schema.names == ["sample_id", "cluster"]


def test_vectors_are_lists_of_float(dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str) -> None:
    publish(dataset, write_part, facts, 1)
    rows = sql(Catalog(uri), "select clip, list_dot_product(clip, clip) d from birds.embeddings order by sample_id")
    vectors = (np.arange(16).reshape(4, 4) / 7).astype(np.float16)[1:].astype(np.float32)
    np.testing.assert_array_equal(np.array(rows["clip"].to_pylist(), np.float32), vectors)
    np.testing.assert_allclose(rows["d"].to_numpy(), (vectors**2).sum(1), rtol=1e-6)


def test_scores_are_those_of_every_table(
    dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str
) -> None:
    publish(dataset, write_part, facts, 2)
    catalog = Catalog(uri)
    scores = sql(catalog, "select * from birds.scores order by sample_id").to_pylist()
    assert [tuple(row) for row in scores[:1]] == [("sample_id", "aesthetic", "clip_score")]
    expected = [
        {"sample_id": n << 24 | row, "clip_score": row / 4, "aesthetic": 5.0 if row > 1 else None}
        for n in range(2)
        for row in (1, 2, 3)
    ]
    assert scores == expected


@pytest.mark.parametrize("empty", [False, True])
def test_a_table_of_scores_stands_beside_those_of_other_tables(
    dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str, empty: bool
) -> None:
    tagged = SCORES.append(pa.field("tag", pa.string()))
    scores = [write_part(dataset, "scores", 0, [{"sample_id": 2, "aesthetic": 5.0, "tag": "dog"}], tagged)]
    rows = [{"sample_id": i, "clip": [0.0] * 4, "clip_score": i / 4} for i in (0, 2)]
    embeddings = [write_part(dataset, "embeddings", 0, rows, EMBEDDINGS)]
    samples = pa.schema([SAMPLE_ID, EMBEDDINGS.field("clip_score"), SCORES.field("aesthetic")])
    manifest = [write_part(dataset, "samples", 0, [{"sample_id": 0, "clip_score": 0.0}], samples)]
    tables = {
        "scores": TableState(tagged, [] if empty else scores),
        "embeddings": TableState(EMBEDDINGS, embeddings),
        "samples": TableState(samples, manifest),
    }
    dataset.publish(tables, facts)
    found = sql(Catalog(uri), "select sample_id, aesthetic, tag, clip_score from birds.scores order by 1").to_pylist()
    second = (None, None) if empty else (5.0, "dog")
    assert [tuple(row.values()) for row in found] == [(0, None, None, 0.0), (2, *second, 0.5)]


def test_one_verdict_a_row(dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str) -> None:
    stages = [{"name": "fetch", "table": "images"}, {"name": "z", "table": "decisions"}]
    stages += [{"name": "a", "table": "decisions"}, {"name": "samples", "table": "samples"}]
    urls = [{"sample_id": i, "url": f"http://x/{i}"} for i in range(4)]
    images = [{"sample_id": i, "status": "success"} for i in range(3)]
    images.append({"sample_id": 3, "status": "failed", "reason": "timeout", "detail": "10 s"})
    judged: list[dict[str, Any]] = [{"sample_id": i, "stage": "z", "keep": i != 1} for i in range(3)]
    judged[1] |= {"reason": "blurry", "evidence": "blur 3"}
    judged.append(
        {"sample_id": 0, "stage": "a", "keep": False, "reason": "copy", "representative": 2} | {"similarity": 0.5}
    )
    judged.append({"sample_id": 2, "stage": "a", "keep": True})
    tables = {
        "source": TableState(SOURCE, [write_part(dataset, "source", 0, urls)]),
        "images": TableState(IMAGES, [write_part(dataset, "images", 0, images)]),
        "decisions": TableState(DECISIONS, [write_part(dataset, "decisions", 0, judged)]),
    }
    dataset.publish(tables, replace(facts, stages=stages))
    found = sql(Catalog(uri), "select * from birds.verdicts order by sample_id")
    assert tuple(found.column_names) == VERDICTS
    assert [tuple(row.values())[2:] for row in found.to_pylist()] == [
        (False, "a", "copy", None, 2, 0.5),
        (False, "z", "blurry", "blur 3", None, None),
        (True, None, None, None, None, None),
        (False, "fetch", "timeout", "10 s", None, None),
    ]
    dropped = sql(Catalog(uri), "select sample_id, reason from birds.verdicts where url = 'http://x/1'")
    assert dropped.to_pylist() == [{"sample_id": 1, "reason": "blurry"}]


def test_verdicts_of_a_version_that_says_little(
    dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str
) -> None:
    publish(dataset, write_part, facts, 2)  # its facts name no stage that judges
    counted = sql(Catalog(uri), "select keep, stage, reason, count(*) n from birds.verdicts group by all order by all")
    assert [tuple(row.values()) for row in counted.to_pylist()] == [
        (False, "filter", "blurry", 2),
        (False, "images", None, 2),
        (True, None, None, 4),
    ]
    bare = Catalog(uri).dataset("cats")
    bare.publish({"source": TableState(SOURCE, [write_part(bare, "source", 0, [{"sample_id": 7}])])}, facts)
    assert sql(Catalog(uri), "select keep, stage from cats.verdicts").to_pylist() == [{"keep": True, "stage": None}]


def test_versions_and_runs(dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str) -> None:
    publish(dataset, write_part, facts, 1)
    publish(dataset, write_part, facts, 2)
    dataset.record_run({"run_id": "r", "rows": 3})
    rows = sql(Catalog(uri), "select number, t.rows from birds.versions, unnest(tables) u(t) where t.name = 'source'")
    assert sorted(zip(*rows.to_pydict().values(), strict=True)) == [(1, 4), (2, 8)]
    assert sql(Catalog(uri), "select run_id, rows from birds.runs").to_pylist() == [{"run_id": "r", "rows": 3}]


def test_columns_that_some_parts_lack_are_null(
    dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str
) -> None:
    wider = SOURCE.append(pa.field("licence", pa.string()))
    parts = [write_part(dataset, "source", n, [{"sample_id": n}], wider if n in {1, 3} else SOURCE) for n in range(5)]
    dataset.publish({"source": TableState(wider, parts)}, facts)
    assert ids(sql(Catalog(uri), "select * from birds.source where licence is null")) == [0, 1, 2, 3, 4]


def test_one_dataset_needs_no_prefix(dataset: Dataset, write_part: WritePart, facts: VersionFacts, uri: str) -> None:
    publish(dataset, write_part, facts, 1)
    catalog = Catalog(uri)
    assert sql(catalog, "select count(*) n from decisions").to_pylist() == [{"n": 3}]
    publish(catalog.dataset("cats"), write_part, facts, 2)
    both = sql(catalog, "select (select count(*) from birds.source) b, (select count(*) from cats.source) c")
    assert both.to_pylist() == [{"b": 4, "c": 8}]


@pytest.fixture
def birds(local_dataset: Dataset, write_part: WritePart, facts: VersionFacts) -> Catalog:
    publish(local_dataset, write_part, facts, 2)
    local_dataset.set_state("x", {"secret": 1})
    catalog = Catalog(str(local_dataset.storage.local("..")))
    (catalog.storage.local("secret.csv") or Path()).write_text("secret\n1\n")
    catalog.dataset("unfinished").set_state("x", {})
    return catalog


WRITES = [
    "copy (select 1) to '{birds}/evil.csv'",
    "explain analyze copy (select 1) to '{birds}/evil.csv'",
    "EXPLAIN ANALYZE copy (select 1) to '{birds}/evil.csv'",
    "explain (analyze) copy (select 1) to '{birds}/evil.csv'",
    "explain /* */ analyze copy (select 1) to '{birds}/evil.csv'",
    "/* explain (*/ explain analyze copy (select 1) to '{birds}/evil.csv' -- */ select 1",
    "explain (analyze /* ) select 1 -- */) copy (select 1) to '{birds}/evil.csv'",
    "explain analyze explain analyze copy (select 1) to '{birds}/evil.csv'",
    "select 1; copy (select 1) to '{birds}/evil.csv'",
    "attach '{birds}/evil.db'",
    "export database '{birds}/evil'",
    "create table t as select 1",
    "insert into birds.clusters values (1, 1)",
    "drop view birds.source",
    "set enable_external_access = true",
    "reset lock_configuration",
    "pragma enable_profiling",
    "install httpfs",
    "load httpfs",
    "use birds",
    "call enable_logging()",
    "begin",
    "vacuum",
    "prepare p as copy (select 1) to '{birds}/evil.csv'",
    "with t as (select 1) insert into birds.clusters select 1, 1",
    "with t as (copy (select 1) to '{birds}/source/evil.parquet') from t",
    "with t as materialized (copy (select 1) to '{birds}/source/evil.csv') select 1",
    "explain analyze with t as (copy (select 1) to '{birds}/source/evil.csv') from t",
    "with t as (delete from birds.clusters returning *) from t",
    "with t as (insert into birds.clusters values (1, 1) returning *) from t",
    "from json_execute_serialized_sql(json_serialize_sql("
    "'with t as (copy (select 1) to ''{birds}/source/evil.csv'') from t'))",
    "select (from system.main.Json_Execute_Serialized_SQL('x'))",
    "from query('from json_execute_serialized_sql(''x'')')",
    "with a as (from birds.source, lateral query('select 1')) from a",
    "select * from destroy_external_resource('json_execute_serialized_sql', 'x')",
    "select * from checkpoint()",
    "update extensions",
    "pivot birds.source on url using count(*)",
    "",
    "-- nothing",
]
OUTSIDE = [
    "select * from read_csv('{root}/secret.csv')",
    "select * from '{root}/secret.csv'",
    "select * from read_text('{birds}/../secret.csv')",
    "select * from read_text('{birds}/source/../_state/x.json')",
    "select * from '{birds}/_state/x.json'",
    "select * from glob('{birds}/*')",
    "select * from read_blob('/etc/passwd')",
    "select * from read_text('/proc/self/environ')",
    "select * from glob('{root}/*')",
    "select * from parquet_metadata('{root}/other/source/x.parquet')",
    "select * from query('copy (select 1) to ''{birds}/evil.csv''')",
    "select * from read_csv('http://127.0.0.1:1/x.csv')",
    "select * from read_parquet('s3://bucket/x.parquet')",
    "select getenv('HOME')",
    "select * from enable_logging(storage = 'file', storage_config = {{'path': '{birds}/evil'}})",
    "select * from birds",
    "select * from secret_table_of_the_test",
]


@pytest.mark.parametrize("statement", WRITES + OUTSIDE)
def test_users_can_only_read_the_datasets(birds: Catalog, statement: str) -> None:
    secret_table_of_the_test = pa.table({"a": [1]})  # DuckDB would find it by its Python name
    root = birds.uri
    before = birds.storage.list()
    with connect(birds) as connection:
        with pytest.raises(QueryError) as caught:
            query(connection, statement.format(root=root, birds=f"{root}/birds"))
        assert "\n" not in str(caught.value)
        assert len(query(connection, "select * from birds.source")) == 8
        with pytest.raises(duckdb.Error, match="locked"):
            connection.execute("set enable_external_access = true")
    assert birds.storage.list() == before
    assert secret_table_of_the_test.num_rows == 1


@pytest.mark.parametrize(
    "statement",
    [
        "explain select * from birds.source",
        "explain analyze select 1",
        "describe birds.source",
        "show tables",
        "summarize birds.source",
        "from birds.source",
        "values (1)",
        "with t as (select 1) from t",
        "select 1 -- copy",
        "select 'copy_query_node' as type, '{\"type\": \"COPY_QUERY_NODE\"}'",
        "with recursive t(n) as (select 1 union all select n + 1 from t where n < 3) select n from t union select 9",
        "select x, (select max(range) from range(3)) from unnest([1, 2]) t(x), lateral (select x + 1)",
        "select " + " + ".join(["1"] * 900),
        "pivot birds.decisions on keep in (true, false) using count(*) group by stage",
    ],
)
def test_reading_statements_run(birds: Catalog, statement: str) -> None:
    assert sql(birds, statement).num_rows >= 1


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("select * from birds.decision", "no table 'decision'; did you mean 'birds.decisions'"),
        ("select * from bird.decisions", "no table 'bird.decisions'; did you mean 'birds.decisions'"),
        ("select reson from birds.decisions", "no column 'reson'; did you mean 'reason'"),
        ("select d.reson from birds.decisions d", "no column 'reson'; did you mean 'reason'"),
        ("from rang(3)", r"rang\(\) may not be used; did you mean 'range'"),
        ("from range(3) where 1 " + " + 1" * 900 + " > 0", "nested too deeply|[Mm]ax"),
        ("selec 1", 'syntax error at or near "selec"'),
        ("select cast('x' as int)", "Could not convert string 'x' to INT32"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(birds: Catalog, statement: str, words: str) -> None:
    with pytest.raises(QueryError, match=words) as caught:
        sql(birds, statement)
    assert "\n" not in str(caught.value)


def test_limits(birds: Catalog) -> None:
    with connect(birds, threads=1) as connection:
        with pytest.raises(QueryError, match=r"longer than 0\.3 s"):  # this one takes days
            query(
                connection, "select count(*) from range(1000000000) a, range(1000000) b where a.range <> b.range", 0.3
            )
        assert query(connection, "select * from range(1000000000)", 60, max_rows=7).num_rows == 7
        assert query(connection, "select * from birds.source", 60).num_rows == 8


def test_large_queries_spill(birds: Catalog) -> None:
    with connect(birds, threads=1, memory_mb=58) as connection:
        rows = query(connection, "select count(*) n from (select range, count(*) from range(3000000) group by 1)")
    assert rows.to_pylist() == [{"n": 3_000_000}]


def test_what_is_not_there(birds: Catalog) -> None:
    with pytest.raises(NotFoundError, match="no version 9; there is: 1"):
        connect(birds, {"birds": 9})
    with pytest.raises(NotFoundError, match=r"no dataset 'bird' in .*; did you mean 'birds'"):
        connect(birds, datasets=["bird"])
    with pytest.raises(NotFoundError, match="has no version yet"):
        connect(birds, datasets=["unfinished"])


ONE_ROW = [
    "select * from birds.images where sample_id = {id}",
    "select i.status, s.url from birds.images i join birds.source s using (sample_id) where sample_id in ({id}, 2)",
    "select status, keep from birds.images i left join birds.decisions using (sample_id) where i.sample_id = {id}",
    "select * from birds.verdicts where sample_id = {id}",
    "select * from birds.scores where sample_id = {id}",
    "select * from birds.verdicts v join birds.scores s using (sample_id) where sample_id = {id}",
    "select count(*) from birds.source where sample_id = {id} or url is not null",
    "select * from birds.source where sample_id = {id} union all select * from birds.source where sample_id = 1",
    "with images as (select * from birds.source) select * from images where sample_id = {id}",
    "select * from birds.source where sample_id = {id} and (select count(*) from birds.source) > 4",
    "select * from birds.source where sample_id = (select max(sample_id) from birds.images)",
]


@pytest.mark.parametrize("text", ONE_ROW)
def test_a_statement_about_single_rows_gives_what_all_parts_give(birds: Catalog, text: str) -> None:
    rows = 0
    for sample_id in (0, 2, 1 << 24 | 3, 7 << 24, -1):
        statement = f"{text.format(id=sample_id)} order by all"
        with connect(birds, None, ["birds"]) as everything:
            expected = query(everything, statement).to_pylist()
        assert sql(birds, statement).to_pylist() == expected
        rows += len(expected)
    assert rows > 0


def test_one_row_opens_the_part_that_has_it_and_no_other(local_dataset: Dataset, birds: Catalog) -> None:
    statement = "select sample_id, status from birds.images where sample_id = {}"
    version = local_dataset.version()
    for table in version.tables:
        for part in local_dataset.files(version, table):
            if table != "images" or part.span is None or part.span[0] >> 24 == 0:
                (local_dataset.storage.local(part.path) or Path()).unlink()
    assert sql(birds, statement.format(1 << 24 | 2)).to_pylist() == [{"sample_id": 1 << 24 | 2, "status": "success"}]
    with pytest.raises(DamagedError, match="images/"):
        sql(birds, statement.format(2))


@pytest.mark.parametrize("text", ["select '\udcff'", "select \udcff", "\udcff"])
def test_text_that_is_not_unicode_is_one_line(birds: Catalog, text: str) -> None:
    with pytest.raises(QueryError) as caught:
        sql(birds, text)
    assert len(str(caught.value).splitlines()) == 1
