"""The published manifest: one row for each sample that is still in, with all that is known about it but its vectors."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import pyarrow as pa

from catalog.schema import LOCAL, SAMPLE_ID, role
from tasks.stage import Batches, Columns, MapStage, Step, Tables


class Samples(MapStage):
    """Join source, images, scores and clusters of the rows that are in.

    It copies no image byte: shard, offset and size say where they are. Of two columns that differ at most in case,
    the one of the earlier table stays.
    """

    use: Literal["samples"] = "samples"
    table: ClassVar[str] = "samples"

    def inputs(self, available: Tables) -> Columns:
        taken = {"sample_id"} | {f.name for f in LOCAL}
        columns: Columns = {}
        for table, schema in available.items():
            if table in {"decisions", "samples"} or "sample_id" not in schema.names:
                continue
            names = [f.name for f in schema if f.name.lower() not in taken and role(f) != "vector"]
            taken |= {name.lower() for name in names}
            columns[table] = tuple(names)
        return columns

    def schema(self, available: Tables) -> pa.Schema:
        fields = [available[table].field(name) for table, names in self.inputs(available).items() for name in names]
        return pa.schema([SAMPLE_ID, *fields])

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        def step(batches: Iterator[pa.Table]) -> Batches:
            yield from batches

        return step
