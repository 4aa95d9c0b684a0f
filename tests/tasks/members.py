"""Running one member of a family on tables that vary: what the contract tests need.

The tables come from a real build of two dozen pictures, so every column holds what stages really write. A case changes
their rows; the member then runs in this process on the changed tables.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from catalog.inputs import Inputs
from catalog.pieces import Pieces, read_parquet
from catalog.schema import vector
from catalog.storage import Storage
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from tasks.stage import MapStage, Stage, TableStage
from tests.helpers import LocalRun
from tests.pictures import jpeg

KEY: Final = "sample_id"
ROWS: Final = 24
WORDS: Final = ("a red house", "two dogs on a beach", "a cat in the garden", "an old car near the river")
LARGE: Final = 768
"""Width of the second embedding column, `l14`: that of the scorers whose weights are published."""


def name_of(model: type[Stage]) -> str:
    """Return the name of a stage: its use, or use/method where it has a method."""
    names = (str(model.model_fields[field].default) for field in ("use", "method") if field in model.model_fields)
    return "/".join(names)


@dataclass(frozen=True)
class World:
    """Tables that stages read, and the storage that holds their image bytes."""

    tables: Mapping[str, pa.Table]
    storage: Storage

    @property
    def schemas(self) -> dict[str, pa.Schema]:
        """The schema of every table."""
        return {name: table.schema for name, table in self.tables.items()}

    @property
    def of_samples(self) -> frozenset[str]:
        """The tables with one row a sample."""
        return frozenset(name for name, table in self.tables.items() if table.column_names[0] == KEY)

    def only(self, ids: np.ndarray) -> "World":
        """Return the tables with the rows of some samples; tables that are not about samples are whole."""
        return self._changed(lambda table: table.filter(pc.is_in(table.column(KEY), pa.array(ids, pa.int64()))))

    def without_values(self) -> "World":
        """Return the tables with null in every nullable column but the key."""

        def emptied(table: pa.Table) -> pa.Table:
            columns = [
                table.column(f.name) if f.name == KEY or not f.nullable else pa.nulls(table.num_rows, f.type)
                for f in table.schema
            ]
            return pa.table(columns, schema=table.schema)

        return self._changed(emptied)

    def renumbered(self, new: Mapping[int, int]) -> "World":
        """Return the tables with other sample_ids, sorted by them."""

        def moved(table: pa.Table) -> pa.Table:
            ids = [new[old] for old in table.column(KEY).to_pylist()]
            at = table.schema.get_field_index(KEY)
            return table.set_column(at, table.schema.field(KEY), pa.array(ids, pa.int64())).sort_by(KEY)

        return self._changed(moved)

    def _changed(self, change: Any) -> "World":
        tables = {name: change(t) if name in self.of_samples else t for name, t in self.tables.items()}
        return replace(self, tables=tables)

    def run(self, stage: Stage, folder: Path, batch_rows: int = ROWS) -> tuple[pa.Table, np.ndarray]:
        """Return what a stage writes, in the schema that it declares, and the ids of the rows that it was given."""
        inputs = Inputs({name: Pieces.of(table) for name, table in self.tables.items()}, (), self.storage)
        if isinstance(stage, MapStage):
            batches = list(inputs.batches(stage.inputs(self.schemas), batch_rows))
            given = np.concatenate([np.empty(0, np.int64), *(batch.column(KEY).to_numpy() for batch in batches)])
            sides = {name: inputs.whole(name) for name in stage.sides(self.schemas)}
            made = list(stage.open("cpu", sides)(iter(batches)))
        else:
            assert isinstance(stage, TableStage)
            wanted = {*stage.inputs(self.schemas), *stage.sides(self.schemas)}
            inputs = Inputs({n: Pieces.of(t) for n, t in self.tables.items() if n in wanted}, (), self.storage)
            given = inputs.ids()
            made = list(stage.run(inputs, LocalRun(folder, inputs=inputs)))
        schema = stage.output(self.schemas)
        rows = pa.concat_tables([schema.empty_table(), *(piece.select(schema.names).cast(schema) for piece in made)])
        return rows, given


def make_world(folder: Path, config: Path, weights: Path) -> World:
    """Build a dataset of pictures with a tiny encoder; return its tables, and an embedding column of LARGE numbers."""
    source = folder / "pictures"
    source.mkdir(parents=True)
    for row in range(ROWS):
        (source / f"{row:02d}.jpg").write_bytes(jpeg(72 + row, 60, seed=row % (ROWS - 2)))  # two pictures are repeated
        (source / f"{row:02d}.txt").write_text(f"{WORDS[row % len(WORDS)]}, number {row % 7}")
    encoder = {"name": "clip", "model": str(config), "pretrained": str(weights), "dtype": "float32"}
    recipe = {
        "dataset": "world",
        "source": {"use": "folder", "path": str(source)},
        "stages": [
            {"use": "download", "image_size": 64},
            {"use": "embed", "encoders": [encoder]},
            {"use": "image_issues"},
            {"use": "language"},
            {"use": "filter", "where": "original_width > 0"},
            {"use": "cluster", "k": 3},
        ],
    }
    spec = BuildSpec(yaml.safe_dump(recipe), "recipe.yaml", str(folder / "catalog"), (), "inline")
    version = build_here(spec).version
    dataset = spec.dataset(create=None)
    tables = {}
    for name in set(version.tables) - {"samples"}:  # no stage reads it
        tables[name] = pa.concat_tables([read_parquet(dataset.storage, p.path) for p in dataset.files(version, name)])
    tables["embeddings"] = _with_large(tables["embeddings"], json.dumps({"name": "l14"}))
    return World(tables, dataset.storage)


def _with_large(table: pa.Table, encoder: str) -> pa.Table:
    matrix = np.random.default_rng(0).normal(size=(table.num_rows, LARGE))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float16).ravel()), LARGE)
    return table.append_column(vector("l14", LARGE, "", encoder=encoder), column)
