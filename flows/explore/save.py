"""Save the results of a search as a new dataset: rows, vectors and image bytes, published as a version.

Every table of the searched version is copied: tables of samples with the found rows only, other tables (centroids,
models) whole. Samples keep their ids. Their image bytes are copied into new shards, so the new dataset does not depend
on the old one. Only the report is rendered again, because the old one describes the dataset that was searched.

The table `edges` records the row and version that each row was copied from, across all datasets in between, so that a
take-down reaches it (`catalog.edges`). It is written first, and a take-down that begins meanwhile aborts the save.

Before bytes are copied, every shard that they come from is read once and compared with its digest. The new tables are
checked like those of a build (`flows.build.balance`). Damage is therefore not copied, and nothing unbalanced is
published.

Saving the same result twice yields one version; a different result under the same name is the next version.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from catalog import edges, lookup
from catalog.dataset import Catalog, Dataset, check_name
from catalog.edges import SAVED
from catalog.errors import UserError, damaged
from catalog.lease import hold
from catalog.lookup import KEY
from catalog.parts import PartFile, PartWriter, fingerprint_of
from catalog.pieces import Piece, Pieces, read_parquet
from catalog.schema import EDGES, PLACE_NAMES, field
from catalog.shard_check import shard_damage
from catalog.shards import ShardReader
from catalog.takedown.ledger import Ledger, check_none_pending
from catalog.version import TableState, Version, VersionFacts
from flows.build.balance import check_saved
from flows.build.code_version import code_version
from flows.build.report import REPORT, run_report, saved_report, write_report_or_warn
from flows.explore.search import Found

SHARD_ROWS: Final = 10_000
_COPIED_AT_ONCE: Final = 256
"""Images in memory at once."""
_IMAGE: Final = field("image", pa.large_binary(), "encoded image", "image")


def save(
    catalog: Catalog,
    found: Found,
    name: str,
    message: Callable[[str], object] = lambda line: None,
    shard_rows: int = SHARD_ROWS,
) -> Version:
    """Publish search results as the dataset `name`; return the version.

    Raises UserError if there are no results, if they may include rejected rows, if rows were taken down (in the dataset
    `name`, or since the search), or if `name` is a dataset that was built; BusyError while another process writes the
    dataset; DamagedError and BalanceError if the data to copy differs from what was recorded when it was written.
    """
    _check(catalog, found, name)
    dataset = catalog.dataset(name)
    work = _Saving(catalog.existing(found.version.dataset), found, dataset, shard_rows)
    with hold(dataset, wait_s=None) as lease:
        check_none_pending(dataset)
        before = set(dataset.storage.list())
        law = work.law()
        try:
            tables = work.tables()
            check_saved(dataset, work.sample_ids, tables)
            if work.law() != law:
                raise UserError(f"rows of {found.version.dataset!r} were taken down meanwhile: search again")
        except BaseException:  # leave no copy of rows that a take-down may have to erase
            made = sorted(set(dataset.storage.list()) - before)
            dataset.storage.delete(path for path in made if not path.startswith(f"{edges.TABLE}/"))
            dataset.storage.delete(path for path in made if path.startswith(f"{edges.TABLE}/"))
            raise
        lease.check()
        version = dataset.publish(tables, work.facts(catalog, tables))
        write_report_or_warn(dataset, version, message)
        return version


def recipe_text(found: Found, name: str) -> str:
    """Return YAML that describes a saved dataset."""
    asked = found.describe()
    about = {"from": found.version.label, **asked["query"], "how": found.how, "rows": len(found.hits)}
    about |= {"code_version": code_version()}
    text = yaml.safe_dump({"dataset": name, SAVED: about}, sort_keys=False, allow_unicode=True)
    return f"# Not a recipe to build: `espalier search ... --save {name}` made this from {found.version.label}.\n{text}"


def check_target(catalog: Catalog, name: str) -> None:
    """Raise UserError if nothing can be saved as `name`; called before the search starts."""
    check_name(name)
    if name not in catalog.datasets():
        return
    dataset = catalog.dataset(name)
    last = dataset.last() or next(iter(dataset.held()), None)
    if last is not None and SAVED not in (yaml.safe_load(last.recipe) or {}):
        raise UserError(f"{name!r} is a dataset that was built, and a search must not replace it: give another name")


def _check(catalog: Catalog, found: Found, name: str) -> None:
    check_target(catalog, name)
    if not found.hits:
        raise UserError(f"the search has no results, so there is nothing to save as {name!r}")
    if found.query.all:
        raise UserError("--save copies kept rows only: leave out --all")
    if "samples" not in found.version.tables or "images" not in found.version.tables:
        raise UserError(f"{found.version.label} has no samples with images: there is nothing to save")


@dataclass(frozen=True)
class _Saving:
    """Copies one search result into a dataset."""

    source: Dataset
    found: Found
    target: Dataset
    shard_rows: int

    @property
    def sample_ids(self) -> np.ndarray:
        return np.unique(np.array([hit.sample_id for hit in self.found.hits], np.int64))

    def law(self) -> str:
        """Return the rows of the searched dataset that were taken down; they must be the same before and after.

        Raises UserError while a takedown of it is pending.
        """
        check_none_pending(self.source)
        return json.dumps([record["at"] for record in Ledger.read(self.source.storage).records])

    def tables(self) -> dict[str, TableState]:
        """Write every table; return their descriptions.

        `edges` comes first, before anything that has content. Then `images`, because other tables refer to its shards.
        """
        version = self.found.version
        lineage = self._edges()
        self.law()
        self._check_rows()
        images = self._images()
        places = pa.concat_tables(
            [read_parquet(self.target.storage, part.path, (KEY, *PLACE_NAMES)) for part in images.parts]
        )
        made = {edges.TABLE: lineage, "images": images}
        for table in version.tables:
            if table not in ("images", edges.TABLE, REPORT):
                made[table] = self._table(table, places)
        return made | {REPORT: self._report(made)}

    def facts(self, catalog: Catalog, tables: Mapping[str, TableState]) -> VersionFacts:
        """Return the origin of the version."""
        found = self.found
        recipe = recipe_text(found, self.target.name)
        paths = sorted(part.path for table in tables.values() for part in table.parts)
        digest = hashlib.sha256(json.dumps([found.version.label, found.describe()["query"], paths]).encode())
        place = f"{catalog.uri}/{found.version.label}"
        inputs = [{"uri": place, "rows": found.searched, "sha256": found.version.recipe_sha256}]
        stages = [self._stage(table, state) for table, state in tables.items()]
        return VersionFacts(recipe, digest.hexdigest(), code_version(), inputs, stages, found.version.seed)

    def _edges(self) -> TableState:
        """Return the edges from each row to the row that it is a copy of, and to the origins of that row."""
        older = edges.edges_of(self.source)
        mine = pc.is_in(older.column("child"), pa.array(self.sample_ids))
        rows = pa.concat_tables([edges.copies(self.sample_ids, self.found.version), older.filter(mine)])
        rows = rows.group_by(EDGES.names).aggregate([]).select(EDGES.names)
        rows = rows.sort_by([(name, "ascending") for name in EDGES.names[:-1]])
        fingerprint = fingerprint_of("save", edges.TABLE, rows.to_pylist())
        with PartWriter(self.target.storage, edges.TABLE, fingerprint, EDGES) as writer:
            writer.write(rows)
        return TableState(EDGES, [writer.part()])

    def _check_rows(self) -> None:
        """Raise UserError if a result is no longer in the version, or must not enter the target."""
        ids = self.sample_ids
        there = lookup.rows_of(self.source.storage, self._paths("samples"), ids, ()).num_rows
        if there < len(ids):
            raise UserError(f"{len(ids) - there:,} of the rows that were found were taken down since: search again")
        ledger = Ledger.read(self.target.storage)
        if ledger.is_empty:
            return
        source = lookup.rows_of(self.source.storage, self._paths("source"), ids)
        images = lookup.rows_of(self.source.storage, self._paths("images"), ids)
        hidden = ledger.hidden_source(source) | ledger.hidden_images(images)
        if hidden.any():
            raise UserError(
                f"{int(hidden.sum()):,} of the rows that were found were taken down from {self.target.name!r} and must "
                "not come back: save under another name, or search without them"
            )

    def _stage(self, table: str, state: TableState) -> dict[str, Any]:
        return {
            "name": "search",
            "use": "search",
            "table": table,
            "version": 1,
            "parameters": self.found.describe()["query"],
            "fingerprint": fingerprint_of([part.path for part in state.parts]),
            "parts": len(state.parts),
            "rows": sum(part.rows for part in state.parts),
            "bytes": sum(part.bytes for part in state.parts),
            "notes": {"from": self.found.version.label, "how": self.found.how},
        }

    def _paths(self, table: str) -> list[str]:
        if table not in self.found.version.tables:
            return []
        return [part.path for part in self.source.files(self.found.version, table)]

    def _fingerprint(self, table: str, sample_ids: np.ndarray) -> str:
        """Return the fingerprint of a part: the table of a version, and the rows."""
        return fingerprint_of("save", self.source.name, table, self._paths(table), sample_ids.tolist())

    def _images(self) -> TableState:
        """Copy bytes, a shard for every `shard_rows` rows; return the images table."""
        ids = self.sample_ids
        self._check_shards()
        chunks = [ids[start : start + self.shard_rows] for start in range(0, len(ids), self.shard_rows)]
        written = [self._shard(number, chunk) for number, chunk in enumerate(chunks)]
        schema = lookup.schema_of(self.target.storage, [part.path for part in written])
        return TableState(schema, written)

    def _check_shards(self) -> None:
        """Raise DamagedError if a shard that rows are copied from does not match its digest."""
        from tasks.images import decode_fault

        storage, checked = self.source.storage, set()
        for part in self._paths("images"):
            shards = lookup.rows_of(storage, [part], self.sample_ids, ["shard"]).column("shard")
            for shard in pc.unique(shards).drop_null().to_pylist():
                if shard not in checked and (damage := shard_damage(storage, part, shard, decode_fault)):
                    raise damaged(storage.uri, shard, damage.detail)
                checked.add(shard)

    def _report(self, tables: Mapping[str, TableState]) -> TableState:
        """Render the data card of the new dataset."""
        stage, seed = saved_report(self.found.version.label), self.found.version.seed
        schemas = {name: state.schema for name, state in tables.items()}
        read = sorted(part.path for name in stage.inputs(schemas) for part in tables[name].parts)
        fingerprint = fingerprint_of("save", stage.version, stage.parameters(), seed, read)
        pieces = {n: Pieces(state.schema, tuple(Piece(p.path) for p in state.parts)) for n, state in tables.items()}
        names = [str(s["name"]) for s in self.found.version.stages]
        part = run_report(self.target.storage, stage, pieces, seed, fingerprint, names)
        return TableState(stage.output(schemas), [part])

    def _shard(self, number: int, ids: np.ndarray) -> PartFile:
        images = lookup.rows_of(self.source.storage, self._paths("images"), ids)
        rows = lookup.rows_of(self.source.storage, self._paths("source"), ids)
        beside = [name for name in ("url", "caption") if name in rows.column_names]
        kept = [f for f in images.schema if f.name not in PLACE_NAMES]
        new = [name for name in beside if name not in images.column_names]
        sidecars = [field(name, pa.string(), "of the source", "sidecar") for name in new]
        schema = pa.schema([*kept, _IMAGE, *sidecars])
        reader = ShardReader(self.source.storage)
        writer = PartWriter(self.target.storage, "images", self._fingerprint("images", ids), schema, number)
        with writer:
            for start in range(0, images.num_rows, _COPIED_AT_ONCE):
                some = images.slice(start, _COPIED_AT_ONCE)
                columns = [some.column(f.name) for f in kept]
                columns.append(pa.chunked_array([pa.array(reader.read(some), pa.large_binary())]))
                columns += [rows.column(f.name).slice(start, _COPIED_AT_ONCE) for f in sidecars]
                writer.write(pa.table(columns, schema=schema))
        return writer.part()

    def _table(self, table: str, places: pa.Table) -> TableState:
        """Copy the found rows of a table, or all rows of a table that is not of samples."""
        ids, paths = self.sample_ids, self._paths(table)
        if not paths:
            return TableState(self.source.schema(self.found.version, table), [])
        schema = lookup.schema_of(self.source.storage, paths)
        about_samples = KEY in schema.names
        writer = PartWriter(
            self.target.storage, table, self._fingerprint(table, ids if about_samples else ids[:0]), schema
        )
        with writer:
            for rows in self._rows(table, schema, about_samples):
                writer.write(_replaced(rows, places))
        return TableState(schema, [writer.part()])

    def _rows(self, table: str, schema: pa.Schema, about_samples: bool) -> Iterator[pa.Table]:
        paths = self._paths(table)
        if not about_samples:
            yield from (read_parquet(self.source.storage, path) for path in paths)
            return
        for start in range(0, len(self.sample_ids), self.shard_rows):
            ids = self.sample_ids[start : start + self.shard_rows]
            yield lookup.rows_of(self.source.storage, paths, ids, schema.names)


def _replaced(rows: pa.Table, places: pa.Table) -> pa.Table:
    """Return rows with the new location of their image, for every table that has these columns."""
    if KEY not in rows.column_names or not set(PLACE_NAMES) <= set(rows.column_names):
        return rows
    known = np.asarray(places.column(KEY).to_numpy())
    at = np.searchsorted(known, np.asarray(rows.column(KEY).to_numpy()))
    now = places.take(pa.array(at))
    for name in PLACE_NAMES:
        number = rows.column_names.index(name)
        rows = rows.set_column(number, rows.schema.field(name), now.column(name).cast(rows.schema.field(name).type))
    return rows
