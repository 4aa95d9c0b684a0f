"""`use: near_targets`: keep the rows of those clusters to which an image of a target set is assigned.

Source: the image-based filter of DataComp (Gadre et al. 2023, arXiv 2304.14108), whose targets are the training images
of ImageNet-1k. Clusters here are those of spherical k-means, and a target is assigned like any row; DataComp's code
assigns by inner products with centroids that it fitted by Euclidean distance.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from catalog.decisions import decisions
from catalog.errors import RecipeError, first_line, nearest
from catalog.inputs import Inputs, as_matrix
from catalog.schema import DECISIONS
from catalog.user_file import NOT_THERE, unreadable
from tasks.encoders.encoder import encoder_of
from tasks.files.digest import digest_of
from tasks.stage import Batches, Columns, Run, Tables, TableStage
from tasks.vectors.columns import clustered_column, width
from tasks.vectors.nearest_centroid import Assigner

if TYPE_CHECKING:
    from tasks.encoders.model import Model

_READ_ROWS: Final = 4096
_FAR: Final = "far_from_targets"
_NO_VECTOR: Final = "no_embedding"


class NearTargets(TableStage):
    """Keep a row if its cluster is the nearest one of at least `least` targets. Writes a decision for every row.

    Reasons: far_from_targets, no_embedding (the row has no cluster). Evidence: the cluster, and the number of targets
    in it. Targets are read from one Parquet file, part by part: vectors, or encoded images, which are first embedded by
    the encoder of the embedding column. Targets without a usable vector are counted (note `unusable`) and ignored.
    """

    table: ClassVar[str] = "decisions"
    shares_table = True
    verdict = "keep"
    thresholds = ("least",)
    version: ClassVar[int] = 1

    use: Literal["near_targets"] = "near_targets"
    targets: str = Field(description="Parquet file with a column of vectors, or of encoded images")
    column: str = Field("", description="that column; default: the only one of vectors, or else of bytes")
    encoder: str = Field("", description="embedding column of the clusters; default: from their metadata")
    least: int = Field(1, gt=0, description="targets that a cluster must have")

    def inputs(self, available: Tables) -> Columns:
        """Return the clusters and the encoder's model. Raises RecipeError: no clusters, no targets, other width."""
        if "clusters" not in available or "centroids" not in available:
            raise RecipeError("near_targets needs clusters: put a stage `use: cluster` before it")
        encoded = clustered_column(available, self.encoder)
        field = self._field()
        if _is_image(field.type):
            encoder_of(available["embeddings"], encoded)  # the vectors say which one made them
            return {"clusters": ("cluster",), "embeddings": ()}
        expected = width(available["embeddings"], encoded)
        found = field.type.list_size if pa.types.is_fixed_size_list(field.type) else expected
        if found != expected:
            raise RecipeError(
                f"near_targets: {self.targets}: {field.name!r} has {found} numbers a row, expected {expected}"
            )
        return {"clusters": ("cluster",)}

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    def sides(self, available: Tables) -> tuple[str, ...]:
        """Return the centroids, and the models where an encoder that the recipe trains embeds the targets."""
        if not _is_image(self._field().type):
            return ("centroids",)
        encoder = encoder_of(available["embeddings"], clustered_column(available, self.encoder))
        return ("centroids",) if encoder.trained is None else ("centroids", "models")

    def sides_hashed_as_inputs(self) -> tuple[str, ...]:
        return ("models",)

    def parameters(self) -> dict[str, Any]:
        """Return the fields, with the targets by content, not by path."""
        self._field()
        return super().parameters() | {"targets": digest_of(Path(self.targets))}

    def run(self, inputs: Inputs, run: Run, read_rows: int = _READ_ROWS) -> Batches:
        centroids = inputs.whole("centroids")
        names = np.asarray(centroids.column("cluster").to_numpy(), np.int64)
        assigner = Assigner(as_matrix(centroids.column("centroid")), run.device)
        fell = np.zeros(int(names.max(initial=-1)) + 1, np.int64)
        unusable = 0
        for vectors in self._vectors(inputs, run, read_rows):
            at, _ = assigner(vectors)
            unusable += int((at < 0).sum())
            np.add.at(fell, names[at[at >= 0]], 1)
        run.note(targets=int(fell.sum()), unusable=unusable, clusters_near=int((fell >= self.least).sum()))
        for batch in inputs.batches({"clusters": ["cluster"]}):
            yield self._decided(batch, fell)

    def _decided(self, batch: pa.Table, fell: np.ndarray) -> pa.Table:
        cluster = batch.column("cluster").combine_chunks()
        sentences = pa.array([f"cluster {c}: {n} targets" for c, n in enumerate(fell.tolist())], pa.string())
        near = pc.fill_null(pa.array(fell >= self.least).take(cluster), False)
        far = pc.if_else(cluster.is_valid(), _FAR, _NO_VECTOR)
        reason = pc.if_else(near, pa.scalar(None, pa.string()), far)
        evidence = pc.fill_null(sentences.take(cluster), "no cluster")
        numbers = {"cluster": _floats(cluster), "targets": _floats(pa.array(fell).take(cluster))}
        return decisions(batch.column("sample_id"), self.name, reason, evidence, numbers)

    # ---- the targets

    def _field(self) -> pa.Field:
        """Return the field of the targets' file to read. Raises RecipeError."""
        path = Path(self.targets)
        if (why := unreadable(path)) and why != NOT_THERE:
            raise RecipeError(f"near_targets: cannot read {self.targets!r}: {why}")
        if why:
            beside = [str(p) for p in sorted(path.parent.glob("*.parquet"))] if path.parent.is_dir() else []
            raise RecipeError(f"near_targets: no file {self.targets!r}{nearest(self.targets, beside)}")
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise RecipeError(f"near_targets: {self.targets!r} is not a Parquet file: {first_line(error)}") from None
        vectors, images = ([f for f in schema if test(f.type)] for test in (_is_vector, _is_image))
        named = [f for f in (*vectors, *images) if f.name == self.column]
        chosen = named if self.column else vectors or images
        if len(chosen) != 1:
            names = [f.name for f in (*vectors, *images)]
            hint = nearest(self.column, names) if self.column else "; specify one as `column`"
            raise RecipeError(
                f"near_targets: {self.targets}: columns of vectors or images: {', '.join(names) or 'none'}{hint}"
            )
        return chosen[0]

    def _vectors(self, inputs: Inputs, run: Run, read_rows: int) -> Iterator[np.ndarray]:
        """Yield the targets' vectors, float32 (n, d); not normalised, NaN for missing ones."""
        field = self._field()
        model: Model | None = None
        with pq.ParquetFile(self.targets) as file:
            total, done = file.metadata.num_rows, 0
            for batch in file.iter_batches(read_rows, columns=[field.name]):
                column = batch.column(0)
                if _is_image(field.type):
                    model = model or self._model(inputs, run)
                    yield model.unit_images(column.to_pylist())[0]
                else:
                    yield _matrix(column, self._dim(inputs), self.targets)
                done += batch.num_rows
                run.progress(done, total, "targets")

    def _dim(self, inputs: Inputs) -> int:
        return int(inputs.schema("centroids").field("centroid").type.list_size)

    def _model(self, inputs: Inputs, run: Run) -> "Model":
        from tasks.encoders.model import load

        schema = inputs.schema("embeddings")
        tables = {"embeddings": schema, "centroids": inputs.schema("centroids")}
        encoder = encoder_of(schema, clustered_column(tables, self.encoder))
        return load(encoder, run.device, {} if encoder.trained is None else {"models": inputs.whole("models")})


def _floats(column: pa.Array) -> np.ndarray:
    """Return numbers as float64 (n,), NaN for null."""
    return np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))


def _is_vector(type_: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(type_) or pa.types.is_list(type_) or pa.types.is_large_list(type_)
    return bool(lists and pa.types.is_floating(type_.value_type))


def _is_image(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _matrix(column: pa.Array, dim: int, path: str) -> np.ndarray:
    """Return a column of lists as float32 (n, dim), NaN for null. Raises RecipeError for another length."""
    present = column.drop_null()
    values = present.flatten().cast(pa.float32())
    lengths = set(present.value_lengths().to_pylist()) if not pa.types.is_fixed_size_list(column.type) else {dim}
    if lengths - {dim}:
        raise RecipeError(f"near_targets: {path}: a vector of {min(lengths - {dim})} numbers, expected {dim}")
    found = np.full((len(column), dim), np.nan, np.float32)
    found[column.is_valid().to_numpy(zero_copy_only=False)] = values.to_numpy(zero_copy_only=False).reshape(-1, dim)
    return found
