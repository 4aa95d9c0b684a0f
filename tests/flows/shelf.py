"""A dataset whose parts and versions are written directly."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog.dataset import Catalog
from catalog.parts import PartFile, PartWriter
from catalog.schema import IMAGES, SAMPLE_ID, SOURCE
from catalog.version import TableState, Version, VersionFacts
from flows.build.guards import tripped
from flows.recipe.guards import Guards


class Shelf:
    """A dataset whose versions are written as they are shown, without stages."""

    def __init__(self, folder: Path) -> None:
        self.dataset = Catalog(folder, create=True).dataset("web")
        self._made = 0

    def part(self, table: str, number: int, rows: Sequence[Mapping[str, Any]]) -> PartFile:
        """Write a part; its sample_ids are `number << 24 | row`, unless a row says its own."""
        self._made += 1
        schema = {"images": IMAGES, "source": SOURCE}.get(table, pa.schema([SAMPLE_ID]))
        with PartWriter(self.dataset.storage, table, f"{self._made:032x}", schema, number) as writer:
            numbered = [{"sample_id": number << 24 | row, **facts} for row, facts in enumerate(rows)]
            writer.write(pa.Table.from_pylist(numbered, schema=schema))
        return writer.part()

    def images(self, number: int, reasons: Sequence[str | None]) -> PartFile:
        """Write a part of images: a reason a row, None for a success."""
        return self.part("images", number, [{"status": "failed" if r else "success", "reason": r} for r in reasons])

    def samples(self, number: int, rows: int) -> PartFile:
        return self.part("samples", number, [{}] * rows)

    def publish(self, images: Sequence[PartFile] = (), samples: Sequence[PartFile] = ()) -> Version:
        tables = {
            "images": TableState(IMAGES, images),
            "samples": TableState(pa.schema([SAMPLE_ID]), samples),
        }
        return self.dataset.publish(tables, VersionFacts("", str(self._made), ""))

    def tripped(
        self, guards: Guards, images: Sequence[PartFile] = (), samples: Sequence[PartFile] = ()
    ) -> tuple[str, ...]:
        return tripped(guards, self.dataset, {"images": images, "samples": samples}, self.dataset.last())
