"""A version of a dataset: which commit of every table, from which recipe and code, and the row that stores it."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.parts import PartFile
from catalog.schema import field
from catalog.seal import sealed_parquet

VERSIONS: Final = pa.schema(
    [
        field("number", pa.int64(), "1, 2, 3, ... in the order of publishing"),
        field("created_at", pa.timestamp("us", "UTC"), "when it was published"),
        field(
            "tables",
            pa.list_(
                pa.struct(
                    [
                        ("name", pa.string()),
                        ("delta_version", pa.int64()),
                        ("rows", pa.int64()),
                        ("bytes", pa.int64()),
                        ("files", pa.int64()),
                        ("uniform", pa.bool_()),
                    ]
                )
            ),
            "the tables, and the commit of each",
        ),
        field("recipe", pa.string(), "the recipe as it was built, YAML"),
        field("recipe_sha256", pa.string(), "hex digest of what the recipe says"),
        field("code_version", pa.string(), "of Espalier"),
        field("inputs", pa.string(), "JSON: where the source was read from"),
        field("stages", pa.string(), "JSON: what each stage was and did"),
        field("seed", pa.int64(), "the recipe's seed"),
        field("held", pa.list_(pa.string()), "why a guard held it when it was published; empty where none did"),
        field("approved_at", pa.timestamp("us", "UTC"), "when somebody approved a held version; null where nobody did"),
    ]
)
"""A version's row is written once, and changes in two cases: `approve` replaces it by one commit, and a takedown
(`catalog.takedown.restate`) corrects its counts. Whether a version is held is stored here and nowhere else."""


@dataclass(frozen=True)
class TableState:
    """The schema and all the parts that a table is to have."""

    schema: pa.Schema
    parts: Sequence[PartFile]


@dataclass(frozen=True)
class TableVersion:
    """A table in a version."""

    delta_version: int
    rows: int
    bytes: int
    files: int
    uniform: bool = True
    """Whether every part has every column. It is not so where a source grew by files with other columns."""


@dataclass(frozen=True)
class VersionFacts:
    """Where a version comes from. `inputs` and `stages` are anything that JSON can represent."""

    recipe: str
    recipe_sha256: str
    code_version: str
    inputs: Sequence[Mapping[str, Any]] = ()
    stages: Sequence[Mapping[str, Any]] = ()
    seed: int = 0


@dataclass(frozen=True)
class Version:
    """An immutable, published state of a dataset."""

    dataset: str
    number: int
    created_at: datetime
    tables: Mapping[str, TableVersion]
    recipe: str
    recipe_sha256: str
    code_version: str
    inputs: Sequence[Mapping[str, Any]]
    stages: Sequence[Mapping[str, Any]]
    seed: int
    held: Sequence[str] = ()
    """Why a guard held it when it was published, a sentence a guard; empty where none did."""
    approved_at: datetime | None = None

    @property
    def is_held(self) -> bool:
        """Whether it is waiting for approval: it can be read by its number, and is never the latest."""
        return bool(self.held) and self.approved_at is None

    @property
    def label(self) -> str:
        """The name that users write: `laion@3`."""
        return f"{self.dataset}@{self.number}"

    @property
    def bytes(self) -> int:
        """Size of its tables (without the image shards)."""
        return sum(table.bytes for table in self.tables.values())


def number_in(path: str) -> int:
    """Return the number of the version that a file of `versions` is named by."""
    return int(path.removeprefix("versions/").partition("-")[0])


def to_parquet(version: Version) -> bytes:
    """Return the bytes of the file of `versions` that stores a version."""
    tables = [{"name": name, **vars(table)} for name, table in version.tables.items()]
    row = {
        **vars(version),
        "tables": tables,
        "inputs": json.dumps(list(version.inputs), default=str),
        "stages": json.dumps(list(version.stages), default=str),
        "held": list(version.held),
    }
    del row["dataset"]
    return sealed_parquet(pa.Table.from_pylist([row], schema=VERSIONS))


def from_parquet(dataset: str, data: bytes) -> Version | None:
    """Return the version in the bytes of a file of `versions`; None where the file holds something else."""
    row: dict[str, Any] = pq.read_table(io.BytesIO(data)).to_pylist()[0]
    if "tables" not in row:
        return None
    tables = {table.pop("name"): TableVersion(**table) for table in row.pop("tables")}
    inputs, stages = json.loads(row.pop("inputs")), json.loads(row.pop("stages"))
    held = tuple(row.pop("held", None) or ())  # rows of older releases have no such column
    return Version(dataset=dataset, tables=tables, inputs=inputs, stages=stages, held=held, **row)
