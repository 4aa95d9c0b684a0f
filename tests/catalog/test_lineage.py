"""Lineage in SQL: the edges of all datasets, and everything that derives from a row, as a walk over them finds it."""

import random
from collections import deque
from collections.abc import Sequence

import pyarrow as pa
import pytest

from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.errors import QueryError
from catalog.lineage import is_named
from catalog.parts import PartWriter
from catalog.schema import EDGES, SAMPLE_ID
from catalog.version import TableState, VersionFacts

Node = tuple[str, int]
NAMES = ("ants", "bees", "cats")


def publish(dataset: Dataset, edges: Sequence[tuple[int, Node]]) -> None:
    """Publish a dataset with one sample, and with these edges (child, parent) in two parts."""
    tables = {}
    rows = [
        {"child": child, "parent_dataset": of, "parent_version": 1, "parent": parent, "role": "mix", "weight": 0.5}
        for child, (of, parent) in edges
    ]
    for table, schema, pieces in (
        ("samples", pa.schema([SAMPLE_ID]), [[{"sample_id": 0}]]),
        ("edges", EDGES, [rows[::2], rows[1::2]]),
    ):
        parts = []
        for at, piece in enumerate(pieces if rows or table == "samples" else []):
            with PartWriter(dataset.storage, table, f"{table}{at}", schema) as writer:
                writer.write(pa.Table.from_pylist(piece, schema))
            parts.append(writer.part())
        tables[table] = TableState(schema, parts)
    dataset.publish(tables, VersionFacts("", str(edges), "test"))


def walked(edges: dict[str, list[tuple[int, Node]]], start: Node) -> list[Node]:
    """Return everything that derives from a row, by a breadth-first walk."""
    found: set[Node] = set()
    queue = deque([start])
    while queue:
        at = queue.popleft()
        for name, pairs in edges.items():
            for child in [(name, row) for row, parent in pairs if parent == at]:
                if child not in found:
                    found.add(child)
                    queue.append(child)
    return sorted(found)


def derived(catalog: Catalog, start: Node) -> list[Node]:
    rows = sql(catalog, f"select * from derived_from('{start[0]}', {start[1]}) order by all").to_pylist()
    return [(row["dataset"], row["sample_id"]) for row in rows]


@pytest.mark.parametrize("seed", range(3))
def test_everything_that_derives_from_a_row(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    catalog = Catalog(tmp_path_factory.mktemp("catalog"), create=True)
    nodes = [(name, row) for name in NAMES for row in range(6)]
    edges = {name: [(rng.randrange(6), rng.choice(nodes)) for _ in range(4)] for name in NAMES}
    for name in NAMES:
        publish(catalog.dataset(name), edges[name])
    sizes = []
    for start in nodes:
        expected = walked(edges, start)
        assert derived(catalog, start) == expected
        sizes.append(len(expected))
    assert max(sizes) > 2
    rows = sql(catalog, "select dataset, sample_id, parent_dataset, parent from lineage").to_pylist()
    listed = sorted((r["dataset"], r["sample_id"], r["parent_dataset"], r["parent"]) for r in rows)
    assert listed == sorted((name, child, *parent) for name in NAMES for child, parent in edges[name])


def test_a_circle_ends_and_a_catalog_without_edges_has_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    catalog = Catalog(tmp_path_factory.mktemp("catalog"), create=True)
    publish(catalog.dataset("ants"), [])
    assert derived(catalog, ("ants", 0)) == []
    assert sql(catalog, "select * from lineage").num_rows == 0
    publish(catalog.dataset("bees"), [(1, ("bees", 2)), (2, ("bees", 1))])
    assert derived(catalog, ("bees", 1)) == [("bees", 1), ("bees", 2)]


def test_a_statement_that_names_neither_is_not_slowed_down(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert is_named("select * from Derived_From('a', 1)")
    assert not is_named("select * from samples")
    catalog = Catalog(tmp_path_factory.mktemp("catalog"), create=True)
    publish(catalog.dataset("ants"), [])
    with pytest.raises(QueryError, match="no table 'linage'; did you mean"):
        sql(catalog, "select * from linage, derived_from('ants', 0)")
