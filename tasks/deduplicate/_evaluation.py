"""Evaluation sets: their digests, hashes and vectors, from a version of another dataset, from columns of a Parquet
file, or computed once from its images."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from catalog.errors import RecipeError, UserError, nearest
from catalog.inputs import Inputs, as_matrix
from catalog.user_file import unreadable
from tasks.deduplicate import _exact as exact
from tasks.deduplicate import _perceptual as perceptual
from tasks.encoders.encoder import encoder_of, made_by
from tasks.files.digest import digest_of
from tasks.stage import Columns, Config, Run, Tables
from tasks.vectors.mapped import usable

if TYPE_CHECKING:
    from tasks.encoders.model import Model

CHUNK_ROWS: Final = 1024
"""Rows that are read, hashed and encoded before each checkpoint."""
HASHED_PX: Final = 256
"""Longer side at which a picture is hashed, as in `download`."""
GIVEN: Final = ("sha256", "pixels_sha256", "phash", "vector")
"""The columns that can be compared; all of them can be computed from `image`."""


class EvaluationSet(Config):
    """One evaluation set: a version's samples, or a Parquet file with encoded images, digests, hashes or vectors."""

    name: str = Field(min_length=1, description="its name in the evidence")
    path: str | None = Field(None, description="a local Parquet file")
    version: str | None = Field(
        None, description="instead of `path`: a version that the recipe names in `from:`, with its own columns"
    )
    image: str | None = Field(None, description="column of encoded images: bytes, or a struct with a field `bytes`")
    sha256: str | None = Field(None, description="column of the files' SHA-256, in hex")
    pixels_sha256: str | None = Field(None, description="column of the pictures' digests, as images.pixels_sha256")
    phash: str | None = Field(None, description="column of 64-bit perceptual hashes, as images.phash")
    vector: str | None = Field(None, description="column of vectors, by the encoder of the column compared with")

    @model_validator(mode="after")
    def _has_something(self) -> "EvaluationSet":
        if (self.path is None) == (self.version is None):
            raise ValueError(f"set {self.name!r}: specify either `path` or `version`")
        if self.version is not None and self.columns():
            given = next(iter(self.columns()))
            raise ValueError(f"set {self.name!r}: {given!r} names a column of `path`, not of `version`")
        if self.path is not None and not self.columns():
            raise ValueError(f"set {self.name!r}: specify at least one column: image, or any of {', '.join(GIVEN)}")
        return self

    def columns(self) -> dict[str, str]:
        """Return field -> column of the file."""
        named = {name: getattr(self, name) for name in ("image", *GIVEN)}
        return {name: column for name, column in named.items() if column is not None}

    def reads(self, asked: Sequence[str], column: str) -> Columns:
        """Return the columns of its version to read for `asked` (of GIVEN); `column` has the vectors."""
        if self.version is None:
            return {}
        images = tuple(name for name in asked if name != "vector")
        found = {f"{self.version}.images": images} if images else {}
        return found | ({f"{self.version}.embeddings": (column,)} if "vector" in asked else {})

    def check(self, asked: Sequence[str], column: str, available: Tables) -> None:
        """Raise RecipeError if its file, version or a column does not exist, or it has none of `asked` (of GIVEN)."""
        if self.path is not None:
            self._check_columns(asked)
        versions = sorted({name.partition(".")[0] for name in available if "." in name})
        if self.version is not None and self.version not in versions:
            raise RecipeError(
                f"set {self.name!r}: `from:` has no version {self.version!r}{nearest(self.version, versions)}"
            )
        for table, names in self.reads(asked, column).items():
            if table not in available:
                known = sorted(name for name in available if "." in name)
                raise RecipeError(f"set {self.name!r}: no table {table!r} in `from:`{nearest(table, known)}")
            for name in names:
                if name not in available[table].names:
                    near = nearest(name, available[table].names)
                    raise RecipeError(f"set {self.name!r}: {table} has no column {name!r}{near}")
        if "vector" in asked and self.version is not None:
            schemas = [available[f"{of}embeddings"] for of in (f"{self.version}.", "")]
            if made_by(schemas[0], column) != made_by(schemas[1], column):
                raise RecipeError(
                    f"set {self.name!r}: its vectors {column!r} were made with other settings of an encoder"
                )
            if encoder_of(schemas[1], column).trained is not None:
                raise RecipeError(
                    f"set {self.name!r}: its vectors {column!r} are those of a model that its recipe trained, which is "
                    "not this recipe's: set `epsilon: null`, or use an encoder that no recipe trains"
                )

    def _check_columns(self, asked: Sequence[str]) -> None:
        schema = self._schema()
        for name, column in self.columns().items():
            if column not in schema.names:
                raise RecipeError(
                    f"set {self.name!r}: {self.path} has no column {column!r}{nearest(column, schema.names)}"
                )
            if not _fits(name, schema.field(column).type):
                found = schema.field(column).type
                raise RecipeError(f"set {self.name!r}: column {column!r} is {found}, expected {EXPECTED[name]}")
        if self.image is None and not set(self.columns()) & set(asked):
            raise RecipeError(
                f"set {self.name!r} gives {', '.join(self.columns())}, but rows are compared by {', '.join(asked)}"
            )

    def _schema(self) -> pa.Schema:
        assert self.path is not None
        self._check_file(self.path)
        try:
            return pq.read_schema(self.path)
        except (pa.ArrowException, OSError) as error:
            raise RecipeError(f"set {self.name!r}: {self.path} is not a readable Parquet file") from error

    def _check_file(self, path: str) -> None:
        if why := unreadable(path):
            raise RecipeError(f"set {self.name!r}: cannot read {path!r}: {why}")

    def parameters(self) -> dict[str, Any]:
        """Return the fields, with the file by content."""
        if self.path is None:
            return self.settings()
        self._check_file(self.path)
        return self.settings() | {"path": digest_of(Path(self.path))}


EXPECTED: Final = {
    "image": "bytes, or a struct with a field `bytes`",
    "sha256": "text",
    "pixels_sha256": "text",
    "phash": "64-bit integers",
    "vector": "lists of one length",
}


def _fits(name: str, type_: pa.DataType) -> bool:
    types = pa.types
    if name == "image":
        inner = type_.field("bytes").type if types.is_struct(type_) and type_.get_field_index("bytes") >= 0 else type_
        return bool(types.is_binary(inner) or types.is_large_binary(inner))
    if name == "phash":
        return bool(types.is_int64(type_) or types.is_uint64(type_))
    if name == "vector":
        return bool(types.is_fixed_size_list(type_) and types.is_floating(type_.value_type))
    return bool(types.is_string(type_) or types.is_large_string(type_))


@dataclass
class Targets:
    """Digests, hashes and vectors of evaluation images; (m, ...) each."""

    bytes: np.ndarray
    """uint64 (m, 2): 128 bits of the SHA-256."""
    has_bytes: np.ndarray
    """bool (m,)."""
    pixels: np.ndarray
    """uint64 (m, 2)."""
    has_pixels: np.ndarray
    """bool (m,)."""
    phash: np.ndarray
    """int64 (m,)."""
    has_phash: np.ndarray
    """bool (m,): false for flat images, whose hashes are meaningless."""
    vector: np.ndarray
    """float16 (m, d)."""
    has_vector: np.ndarray
    """bool (m,): those that have a direction."""

    @classmethod
    def of(cls, count: int, dim: int) -> "Targets":
        """Return images without any values."""
        words = (np.zeros((count, 2), np.uint64), np.zeros(count, bool))
        more = (
            np.zeros((count, 2), np.uint64),
            np.zeros(count, bool),
            np.zeros(count, np.int64),
            np.zeros(count, bool),
        )
        return cls(*words, *more, np.zeros((count, dim), np.float16), np.zeros(count, bool))

    @classmethod
    def joined(cls, chunks: "Sequence[Targets]") -> "Targets":
        """Concatenate at least one chunk."""
        return cls(*(np.concatenate([getattr(chunk, f.name) for chunk in chunks]) for f in fields(cls)))

    def known(self) -> np.ndarray:
        """Return which images have at least one value: bool (m,)."""
        return np.asarray(self.has_bytes | self.has_pixels | self.has_phash | self.has_vector)


@dataclass(frozen=True)
class Evaluation:
    """The images of all sets, concatenated."""

    targets: Targets
    set: np.ndarray
    """int16 (m,): the set of each."""
    row: np.ndarray
    """int64 (m,): its row in the file, from 0; or its sample_id in the version."""

    def facts(self, number: int) -> dict[str, int]:
        """Return how many images a set has, and how many of them have each value."""
        mine = self.set == number
        return {"images": int(mine.sum()), "usable": int(self.targets.known()[mine].sum())}


def read(
    sets: Sequence[EvaluationSet],
    asked: Sequence[str],
    dim: int,
    model: "Model | None",
    inputs: Inputs,
    column: str,
    run: Run,
    chunk_rows: int = CHUNK_ROWS,
) -> Evaluation:
    """Read the sets. `asked`: of GIVEN; `dim`: length of the vectors, 0 for none; `column`: theirs in versions.

    Completed chunks of `chunk_rows` are written to the checkpoints. Memory: 50 bytes and a vector per image. Raises
    UserError if no image of a set is usable.
    """
    chunks, which, rows = [], [], []
    for number, one in enumerate(sets):
        if one.version is not None:
            ids, mine = _of_version(one, asked, dim, inputs, column, chunk_rows)
        else:
            mine = list(_chunks(one, number, asked, dim, model, run, chunk_rows))
            ids = np.arange(sum(len(chunk.phash) for chunk in mine))
        if not any(chunk.known().any() for chunk in mine):
            place = one.path or one.version
            raise UserError(f"set {one.name!r}: no row of {place} has anything to compare by ({', '.join(asked)})")
        which.append(np.full(len(ids), number, np.int16))
        rows.append(ids)
        chunks += mine
    return Evaluation(Targets.joined(chunks), np.concatenate(which), np.concatenate(rows))


def _of_version(
    one: EvaluationSet, asked: Sequence[str], dim: int, inputs: Inputs, column: str, chunk_rows: int
) -> tuple[np.ndarray, list[Targets]]:
    """Return the sample_ids of a version's samples, int64 (m,), and their values."""
    ids, chunks = [np.empty(0, np.int64)], []
    for batch in inputs.batches(one.reads(asked, column), chunk_rows):
        found = Targets.of(batch.num_rows, dim)
        _take(one, found, {name: batch.column(column if name == "vector" else name) for name in asked}, dim)
        ids.append(batch.column("sample_id").to_numpy())
        chunks.append(found)
    return np.concatenate(ids), chunks


def _chunks(
    one: EvaluationSet,
    number: int,
    asked: Sequence[str],
    dim: int,
    model: "Model | None",
    run: Run,
    chunk_rows: int,
) -> Iterator[Targets]:
    columns = list(dict.fromkeys(one.columns().values()))
    assert one.path is not None
    with pq.ParquetFile(one.path) as file:
        done = 0
        for at, batch in enumerate(file.iter_batches(chunk_rows, columns=columns)):
            place = run.checkpoints / f"set-{number}-{at}.npz"
            if not place.exists():
                _write(place, _made(one, pa.table(batch), asked, dim, model))
            with np.load(place) as held:
                yield Targets(**held)
            done += batch.num_rows
            run.progress(done, file.metadata.num_rows, f"images of {one.name}")


def _write(place: Path, targets: Targets) -> None:
    fresh = place.with_suffix(".fresh")
    with fresh.open("wb") as file:
        np.savez(file, **vars(targets))
    fresh.replace(place)


def _made(one: EvaluationSet, rows: pa.Table, asked: Sequence[str], dim: int, model: "Model | None") -> Targets:
    """Return the values of a chunk: from columns if the set has them, else from the images."""
    found = Targets.of(rows.num_rows, dim)
    given = {name: rows.column(column) for name, column in one.columns().items() if name in asked}
    if one.image is not None:
        column = rows.column(one.image)
        images = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        _from_images(found, images.to_pylist(), [name for name in asked if name not in given], model)
    _take(one, found, given, dim)
    return found


def _take(one: EvaluationSet, found: Targets, given: Mapping[str, pa.ChunkedArray], dim: int) -> None:
    """Set the values that are given as columns, by their names in GIVEN."""
    if "sha256" in given:
        found.bytes, found.has_bytes = exact.parse(given["sha256"])
    if "pixels_sha256" in given:
        found.pixels, found.has_pixels = exact.parse(given["pixels_sha256"])
    if "phash" in given:
        there = given["phash"].is_valid().to_numpy()
        found.phash = pc.fill_null(given["phash"], 0).to_numpy().astype(np.int64)
        found.has_phash = there & perceptual.is_meaningful(found.phash)
    if "vector" in given:
        _take_vectors(one, found, given["vector"], dim)


def _take_vectors(one: EvaluationSet, found: Targets, column: pa.ChunkedArray, dim: int) -> None:
    if column.type.list_size != dim:
        raise UserError(f"set {one.name!r}: vectors of {column.type.list_size} numbers, the embedding column has {dim}")
    there = column.is_valid().to_numpy()
    if there.any():
        found.vector[there] = as_matrix(column.drop_null())
    found.has_vector = there & usable(found.vector)


def _from_images(found: Targets, images: Sequence[bytes | None], wanted: Sequence[str], model: "Model | None") -> None:
    for at, data in enumerate(images):
        if data is not None:
            _measure(found, at, data, wanted)
    if "vector" in wanted and model is not None:
        vectors, good = model.unit_images(images)
        found.vector[:] = vectors
        found.has_vector = good & usable(found.vector)


def _measure(found: Targets, at: int, data: bytes, wanted: Sequence[str]) -> None:
    """Compute an image's digests and hash; for bytes that are not an image, only their digest."""
    from tasks import images

    if "sha256" in wanted:
        found.bytes[at] = np.frombuffer(hashlib.sha256(data).digest()[:16], np.uint64)
        found.has_bytes[at] = True
    if not {"pixels_sha256", "phash"} & set(wanted):
        return
    try:
        header = images.inspect(data)
        pixels = images.decode(data, scale=HASHED_PX / max(header.width, header.height))
        if "pixels_sha256" in wanted:
            digest = bytes.fromhex(images.pixels_sha256(data, header))
            found.pixels[at], found.has_pixels[at] = np.frombuffer(digest[:16], np.uint64), True
    except images.ImageError:
        return
    value = images.phash(pixels) if "phash" in wanted else None
    if value is not None:
        found.phash[at], found.has_phash[at] = value, True
