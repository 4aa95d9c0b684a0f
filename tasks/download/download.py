"""`download`: fetch images by URL, or from files of a local source, into shards, and describe them in table `images`.

Every row of the source yields one row. A row without an image has a reason (`tasks.download._reasons`).
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any, ClassVar, Final, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from catalog.errors import RecipeError, nearest
from catalog.schema import FAULT, IMAGES, LOCAL, PLACE_NAMES, field, local_file
from tasks.download._base import Engine, LocalFile, Outcome, Request, Settings
from tasks.reasons import REASONS
from tasks.stage import Batches, Columns, MapStage, Step, Tables

_PIECE_ROWS: Final = 1000
PIECE_BYTES: Final = 64 << 20
_LOCAL: Final = tuple(f.name for f in LOCAL)
_FAULT: Final = tuple(f.name for f in FAULT)

SCHEMA: Final = pa.schema(
    [f for f in IMAGES if f.name not in PLACE_NAMES]
    + [
        field("image", pa.large_binary(), "the bytes to store", role="image"),
        field("url", pa.string(), "as in the source", role="sidecar"),
        field("caption", pa.string(), "as in the source", role="sidecar"),
    ]
)
"""Schema of what a step yields. The part writer stores the bytes in a shard, and their location in the table."""


class Download(Settings, MapStage):
    """Fetch, verify, decode once, hash, measure, resize and store images.

    Engine `http` is the built-in fetcher. Engine `img2dataset` runs img2dataset 1.47.0 in a separate environment, with
    its behaviour on the network; the table and the reasons are the same (see `_img2dataset.py`). Engine `http` obeys
    robots.txt and TDM reservations unless the recipe disables it (see `_permission.py`); what hosts allow, like the
    pictures themselves, may differ between builds.
    """

    version: ClassVar[int] = 4
    table: ClassVar[str] = "images"
    verdict = "status"
    alive_only: ClassVar[bool] = False

    use: Literal["download"] = "download"
    engine: Literal["http", "img2dataset"] = "http"
    engine_limit_s: float | None = Field(
        None, gt=0, description="engine img2dataset: time limit of one part; default: derived from its timeouts"
    )

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.engine == "img2dataset" and self.verify_hash and self.verify_hash.type != "sha256":
            raise RecipeError(f"engine img2dataset verifies sha256 only; verify_hash.type is {self.verify_hash.type}")
        asked = next((n for n in ("respect_robots", "respect_tdm") if getattr(self, n)), None)
        if self.engine == "img2dataset" and asked:
            raise RecipeError(f"engine img2dataset supports only X-Robots-Tag: {asked} requires engine http")
        return self

    def inputs(self, available: Tables) -> Columns:
        """Return url, caption, location of local files, faults of the source, and the digest to verify."""
        columns = available["source"].names
        wanted = ["url", "caption", *(name for name in (*_LOCAL, *_FAULT) if name in columns)]
        if self.verify_hash:
            if self.verify_hash.column not in columns:
                near = nearest(self.verify_hash.column, columns)
                raise RecipeError(f"verify_hash: the source has no column {self.verify_hash.column!r}{near}")
            if self.verify_hash.column not in wanted:
                wanted.append(self.verify_hash.column)
        return {"source": tuple(wanted)}

    def output(self, available: Tables) -> pa.Schema:
        """Return SCHEMA."""
        return SCHEMA

    def parameters(self) -> dict[str, Any]:
        """Return every field except those that affect only the speed."""
        hidden = ("concurrency", "per_host", "backoff_s")
        settings = {name: value for name, value in super().parameters().items() if name not in hidden}
        polite = self.engine == "http"
        return settings | {"respect_robots": polite and self.obeys_robots, "respect_tdm": polite and self.obeys_tdm}

    def open(self, device: str, sides: Mapping[str, pa.Table], piece_bytes: int = PIECE_BYTES) -> Step:
        """Return the step. A piece of its table ends with the image that reaches `piece_bytes`.

        The engine's connections are open for the duration of a part.
        """
        engine = self._engine()

        def step(batches: Iterator[pa.Table]) -> Batches:
            reader = _Rows(batches, self.verify_hash.column if self.verify_hash else None, piece_bytes)
            return reader.pieces(engine.outcomes(reader.requests()))

        return step

    def _engine(self) -> Engine:
        cpus = max(1, int(self.resources.cpus))
        if self.engine == "img2dataset":
            from tasks.download._img2dataset import Img2datasetEngine

            return Img2datasetEngine(self, cpus, self.engine_limit_s)
        from tasks.download._http import HttpEngine

        return HttpEngine(self, cpus)


class _Rows:
    """Converts batches to requests, and outcomes, which arrive in the same order, to pieces of bounded size.

    Captions are never converted to Python strings, so bytes of any encoding pass unchanged.
    """

    def __init__(self, batches: Iterator[pa.Table], digest: str | None, piece_bytes: int) -> None:
        self._batches = batches
        self._digest = digest
        self._piece_bytes = piece_bytes
        self._waiting: list[pa.Table] = []

    def requests(self) -> Iterator[Request]:
        for batch in self._batches:
            self._waiting.append(batch.select(["sample_id", "url", "caption"]).cast(_SIDES))
            yield from self._requests_of(batch)

    def _requests_of(self, batch: pa.Table) -> Iterator[Request]:
        urls = [_text(url) for url in batch.column("url").cast(pa.binary()).to_pylist()]
        digests = batch.column(self._digest).to_pylist() if self._digest else [None] * len(urls)
        faults = _faults(batch)
        if "local_path" not in batch.column_names:
            yield from (
                Request(url, digest, None, fault) for url, digest, fault in zip(urls, digests, faults, strict=True)
            )
            return
        places = zip(*(batch.column(name).to_pylist() for name in _LOCAL), strict=True)
        for url, digest, (path, offset, size), fault in zip(urls, digests, places, faults, strict=True):
            file = None if path is None else LocalFile(local_file(path), offset or 0, size)
            yield Request(url, digest, file, None if file else fault)

    def pieces(self, outcomes: Iterable[Outcome]) -> Iterator[pa.Table]:
        ready: list[Outcome] = []
        size = 0
        for outcome in outcomes:
            ready.append(outcome)
            size += len(outcome.image or b"")
            if len(ready) >= _PIECE_ROWS or size >= self._piece_bytes:
                yield self._piece(ready)
                ready, size = [], 0
        if ready:
            yield self._piece(ready)

    def _piece(self, outcomes: list[Outcome]) -> pa.Table:
        rows = self._take(len(outcomes))
        columns = [
            rows.column(f.name)
            if f.name in rows.column_names
            else pa.array([getattr(o, f.name) for o in outcomes], f.type)
            for f in SCHEMA
        ]
        return pa.table(columns, schema=SCHEMA)

    def _take(self, count: int) -> pa.Table:
        rows = pa.concat_tables(self._waiting)
        self._waiting = [rows.slice(count)] if rows.num_rows > count else []
        return rows.slice(0, count)


def _faults(batch: pa.Table) -> Iterator[tuple[str, str] | None]:
    """Yield, for every row, the reason and detail why the source could not read it, or None."""
    if "row_fault" not in batch.column_names or batch.column("row_fault").null_count == batch.num_rows:
        yield from repeat(None, batch.num_rows)
        return
    for fault, detail in zip(*(batch.column(name).to_pylist() for name in _FAULT), strict=True):
        yield (fault, detail or "") if fault in REASONS else None


_SIDES: Final = pa.schema([SCHEMA.field(name) for name in ("sample_id", "url", "caption")])


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "replace")
