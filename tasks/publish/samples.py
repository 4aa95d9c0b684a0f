"""The published manifest: one row for each kept sample, with all of its columns except vectors."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import pyarrow as pa

from catalog.schema import FAULT, LOCAL, SAMPLE_ID, role
from tasks.stage import Batches, Columns, MapStage, Step, Tables, has_several


class Samples(MapStage):
    """Join source, images, scores and clusters of the kept rows: all tables with one row a sample.

    It copies no image bytes: shard, byte_offset and byte_size locate them. A column of the source whose name differs
    from one of ours only by case (LAION's WIDTH) is in `source` only: SQL could not distinguish them.
    """

    use: Literal["samples"] = "samples"
    table: ClassVar[str] = "samples"

    def inputs(self, available: Tables) -> Columns:
        tables = {
            name: schema
            for name, schema in available.items()
            if name != "decisions" and "sample_id" in schema.names and not has_several(schema)
        }
        taken = {"sample_id"} | {f.name for f in (*LOCAL, *FAULT)}
        columns: Columns = {}
        for table, schema in sorted(tables.items(), key=lambda named: named[0] == "source"):
            names = [f.name for f in schema if f.name.lower() not in taken and role(f) != "vector"]
            taken |= {name.lower() for name in names}
            columns[table] = tuple(names)
        return {table: columns[table] for table in tables}

    def output(self, available: Tables) -> pa.Schema:
        fields = [available[table].field(name) for table, names in self.inputs(available).items() for name in names]
        return pa.schema([SAMPLE_ID, *fields])

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        def step(batches: Iterator[pa.Table]) -> Batches:
            yield from batches

        return step
