"""Lineage in SQL: where single rows come from, over all datasets of a catalog.

    lineage                            view: dataset, sample_id, parent_dataset, parent_version, parent, role, weight
    derived_from(dataset, sample_id)   table function: dataset, sample_id of every row that was made or copied from
                                       this row, directly or through others

They exist on a connection whose statement names one of them. They read the table `edges` of the last version of every
dataset (`catalog.edges`). `derived_from` is a function and not a view, because DuckDB would compute a recursive view
for all rows before it filters it for one.
"""

import re
from typing import TYPE_CHECKING, Final

from catalog.dataset import Catalog
from catalog.duck import literal
from catalog.edges import TABLE
from catalog.schema import EDGES

if TYPE_CHECKING:
    import duckdb

VIEW: Final = "lineage"
FUNCTION: Final = "derived_from"
_NAMED: Final = re.compile(rf"\b({VIEW}|{FUNCTION})\b", re.IGNORECASE)

_COLUMNS: Final = "child as sample_id, parent_dataset, parent_version, parent, role, weight"
_DERIVED_FROM: Final = f"""
create macro main.{FUNCTION}(of_dataset, of_sample) as table
with recursive found(dataset, sample_id) as (
    select dataset, sample_id from main.{VIEW} where parent_dataset = of_dataset and parent = of_sample
    union
    select l.dataset, l.sample_id from main.{VIEW} l
    join found f on l.parent_dataset = f.dataset and l.parent = f.sample_id
)
select dataset, sample_id from found
"""


def is_named(text: str) -> bool:
    """Return whether a statement may use the view or the function."""
    return _NAMED.search(text) is not None


def attach(connection: "duckdb.DuckDBPyConnection", catalog: Catalog) -> list[str]:
    """Create the view and the function; return the folders that they read."""
    connection.register("_no_edges", EDGES.empty_table())
    queries = [f"select '' as dataset, {_COLUMNS} from _no_edges"]
    folders = []
    for dataset in map(catalog.dataset, catalog.datasets()):
        version = dataset.last()
        parts = dataset.files(version, TABLE) if version and TABLE in version.tables else []
        if parts:
            folders.append(f"{dataset.storage.uri}/{TABLE}/")
            files = ", ".join(literal(f"{dataset.storage.uri}/{part.path}") for part in parts)
            queries.append(f"select {literal(dataset.name)}, {_COLUMNS} from read_parquet([{files}])")
    connection.execute(f"create view main.{VIEW} as {' union all '.join(queries)}")
    connection.execute(_DERIVED_FROM)
    return folders
