"""A published version as stages of other datasets read it: its tables, without the samples that it rejected.

A recipe names such versions (`from: {real: laion@3}`), and their tables are then `real.images`, `real.embeddings`, ...
Rows are those of the version's own table `samples`: what it published, without what was taken down since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from catalog.dataset import Catalog, Dataset
from catalog.errors import NotFoundError, UserError, nearest
from catalog.lookup import KEY, schema_of, spans
from catalog.parts import fingerprint_of
from catalog.pieces import Piece, Pieces
from catalog.schema import SAMPLE_BITS
from catalog.takedown.ledger import Ledger, check_none_pending
from catalog.version import Version

SAMPLES: Final = "samples"


def pieces_of(dataset: Dataset, version: Version, table: str) -> Pieces:
    """Return a table of a version in part order, with the dataset's storage.

    Reads the footer of one part if all are alike, and of those whose range of sample_ids the log lacks.
    """
    files = dataset.files(version, table)
    paths = [file.path for file in files]
    schema = _schema(dataset, version, table, paths)
    if KEY not in schema.names:
        return Pieces(schema, tuple(Piece(path, storage=dataset.storage) for path in paths))
    known = {file.path: file.span for file in files if file.span is not None}
    known |= spans(dataset.storage, [path for path in paths if path not in known])
    found = sorted((span, path) for path, span in known.items())
    numbers = [((low >> SAMPLE_BITS, high >> SAMPLE_BITS), path) for (low, high), path in found]
    pieces = (Piece(path, low if low == high else None, storage=dataset.storage) for (low, high), path in numbers)
    return Pieces(schema, tuple(pieces))


def _schema(dataset: Dataset, version: Version, table: str, paths: Sequence[str]) -> pa.Schema:
    """Return the schema of a table of a version, with the types of its parts."""
    if not paths:
        return dataset.schema(version, table)
    return schema_of(dataset.storage, paths[: 1 if version.tables[table].uniform else None])


@dataclass(frozen=True)
class PublishedVersion:
    """A version of another dataset, under the name that a recipe gives it."""

    name: str
    dataset: Dataset
    version: Version

    @classmethod
    def resolve(cls, catalog: Catalog, name: str, label: str) -> "PublishedVersion":
        """Return the version that `laion@3` or `laion` (the last one) names now.

        Raises NotFoundError where there is no such dataset or version, UserError while a take-down of it is
        interrupted, or where it published no samples.
        """
        try:
            version = catalog.resolve(label)
        except NotFoundError as error:
            raise NotFoundError(f"from: {name}: {error}") from None
        dataset = catalog.dataset(version.dataset)
        check_none_pending(dataset)
        if SAMPLES not in version.tables or not version.tables[SAMPLES].rows:
            raise UserError(f"from: {name}: {version.label} published no samples")
        return cls(name, dataset, version)

    @property
    def input(self) -> Mapping[str, Any]:
        """The entry among the inputs of the versions that read it."""
        facts = {"as": self.name, "dataset": self.version.dataset, "version": self.version.number}
        rows = self.version.tables[SAMPLES].rows
        return {"uri": self.version.label, "sha256": self.version.recipe_sha256, "rows": rows} | facts

    def schemas(self) -> dict[str, pa.Schema]:
        """Return the schemas of all tables, with the types of the parts. Reads one footer if all parts are alike."""
        tables = sorted(self.version.tables)
        return {t: _schema(self.dataset, self.version, t, self._paths(t)) for t in tables}

    def pieces(self, table: str) -> Pieces:
        """Return a table, as a stage reads it. Raises NotFoundError where the version has no such table."""
        if table not in self.version.tables:
            raise NotFoundError(f"{self.version.label} has no table {table!r}{nearest(table, self.version.tables)}")
        return pieces_of(self.dataset, self.version, table)

    def digest(self, table: str) -> str:
        """Return what a stage that reads a table depends on: its parts, the samples, and what was erased from them."""
        paths = [path for name in (table, SAMPLES) for path in self._paths(name)]
        rewritten = Ledger.read(self.dataset.storage).rewritten()
        lost = [(path, rewritten[path]) for path in paths if path in rewritten]
        return fingerprint_of("version", self.dataset.name, table, paths, lost)

    def _paths(self, table: str) -> list[str]:
        return [file.path for file in self.dataset.files(self.version, table)]
