"""`use: concepts`: a summary of each cluster: size, distances, rows kept, two names, nearest and farthest samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from catalog.errors import RecipeError, UserError, nearest
from catalog.inputs import Inputs, as_matrix
from catalog.schema import field
from catalog.user_file import NOT_THERE, read_lines
from tasks.concepts.names import CAPTION_CHARS, TERMS, name_classes
from tasks.encoders.encoder import encoder_of
from tasks.files.digest import digest_of
from tasks.stage import Batches, Columns, Run, Tables, TableStage
from tasks.vectors import kmeans
from tasks.vectors.columns import clustered_column
from tasks.vectors.nearest_centroid import assign

LISTED: Final = 8
"""Samples of each cluster that the table lists, at the centre and at the edge."""
CAPTIONS: Final = 64
"""The maximum number of captions for the name of a cluster: those nearest to its centroid."""
ALL_CAPTIONS: Final = 640_000
"""The maximum for all clusters together: with very many clusters each has fewer captions, but at least `LISTED`."""
LABELS_AT_ONCE: Final = 512

CONCEPTS: Final = pa.schema(
    [
        field("cluster", pa.int32(), "number of the cluster, 0 .. k - 1"),
        field("size", pa.int64(), "samples in it"),
        field("kept", pa.int64(), "of them not rejected by any stage before this one"),
        field("kept_share", pa.float32(), "kept / size; null where the cluster is empty"),
        field("intra", pa.float32(), "mean distance, 1 - cosine, of its samples to its centroid"),
        field("inter", pa.float32(), "mean distance of its centroid to the nearest others"),
        field("name_caption", pa.string(), "terms that set its captions apart, best first, joined by a comma"),
        field("name_label", pa.string(), "the given label whose text vector is nearest to the centroid"),
        field("label_cosine", pa.float32(), "cosine of that label and the centroid"),
        field("nearest", pa.list_(pa.int64()), "samples at the centre, nearest first"),
        field("farthest", pa.list_(pa.int64()), "samples at the edge, farthest first"),
    ]
)


class Concepts(TableStage):
    """Write `concepts`, one row per cluster of `centroids`; clusters without samples have size 0.

    `intra` and `inter` are d_intra and d_inter of Abbas et al. 2024 (arXiv 2401.04578), over all samples of a cluster.
    `name_caption` is by class-based TF-IDF (`tasks.concepts.names`). `name_label` is zero-shot, as CLIP classifies
    images (Radford et al. 2021, section 3.1.4), with the centroid in place of the image: a label's vector is the mean
    of the text vectors of all templates, from the encoder that made the clustered embeddings.
    Memory: 8 bytes per rejected row, and a few hundred bytes and at most 64 captions per cluster.
    Raises UserError if the encoder's vectors do not have the length of the centroids.
    """

    use: Literal["concepts"] = "concepts"
    version = 2
    table: ClassVar[str] = "concepts"
    rows_per_sample = "none"
    neighbours: int = Field(20, gt=0, description="number of nearest other centroids for `inter`")
    terms: int = Field(TERMS, gt=0, le=10, description="terms of a name from captions")
    labels: tuple[str, ...] | str | None = Field(
        None, description="candidate names: a list, or a text file with one per line; default: no name_label"
    )
    templates: tuple[str, ...] = Field(
        ("a photo of a {}.",), min_length=1, description="sentences with {} for the label"
    )
    encoder: str = Field(
        "", description="with labels: the embedding column that was clustered; default: from the clusters' metadata"
    )

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"the template {template!r} lacks {{}} for the label")
        return templates

    def inputs(self, available: Tables) -> Columns:
        if "clusters" not in available:
            raise RecipeError("there are no clusters to describe: put a stage `use: cluster` before this one")
        columns: Columns = {"clusters": ("cluster", "distance")}
        if "source" in available and "caption" in available["source"].names:
            columns["source"] = ("caption",)
        if self.labels is not None:
            column = clustered_column(available, self.encoder)
            columns["embeddings"] = (column,)
            encoder_of(available["embeddings"], column)  # the vectors say which one made them
        return columns

    def sides(self, available: Tables) -> tuple[str, ...]:
        """Return the centroids, and the models where an encoder that the recipe trains embeds the labels."""
        if self.labels is None:
            return ("centroids",)
        encoder = encoder_of(available["embeddings"], clustered_column(available, self.encoder))
        return ("centroids",) if encoder.trained is None else ("centroids", "models")

    def sides_hashed_as_inputs(self) -> tuple[str, ...]:
        return ("models",)

    def output(self, available: Tables) -> pa.Schema:
        return CONCEPTS

    def parameters(self) -> dict[str, Any]:
        """Return the fields, with labels by content, so that moving their file changes nothing."""
        return super().parameters() | {"labels": None if self.labels is None else self.label_list()}

    def label_list(self) -> list[str]:
        """Return the labels that are not empty. Raises RecipeError if the file does not exist, or has no label."""
        if self.labels is None:
            return []
        lines = self.labels if isinstance(self.labels, tuple) else _lines(self.labels)
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise RecipeError(f"concepts: {self.labels!r} has no label")
        return found

    def run(self, inputs: Inputs, run: Run) -> Batches:
        centroids = as_matrix(inputs.whole("centroids").sort_by("cluster").column("centroid"))
        k = len(centroids)
        if k == 0:
            yield CONCEPTS.empty_table()
            return
        members = _members(inputs, k)
        size = members.column("size").to_numpy()
        kept = _kept(inputs, k, int(size.sum()), run)
        inter = kmeans.between(centroids, self.neighbours)
        labels, cosine = self._labels(inputs, centroids, run)
        columns = [
            members.column("cluster"), members.column("size"), pa.array(kept), _share(kept, size),
            members.column("intra"), pa.array(inter.astype(np.float32), mask=np.isnan(inter)),
            self._captions(inputs, members), labels, cosine,
            _first(members.column("nearest")), members.column("farthest"),
        ]  # fmt: skip
        run.note(clusters=k, empty=int((size == 0).sum()), rows=int(size.sum()), kept=int(kept.sum()))
        yield pa.table(columns, schema=CONCEPTS)

    def _captions(self, inputs: Inputs, members: pa.Table) -> pa.Array:
        """Return a name from captions for each cluster: null if it has no captions."""
        k = members.num_rows
        if "source" not in inputs:
            return pa.nulls(k, pa.string())
        near = members.column("nearest").combine_chunks()
        wanted = pa.table({"cluster": pc.list_parent_indices(near), "sample_id": pc.list_flatten(near)})
        wanted = wanted.append_column("place", pa.array(np.arange(wanted.num_rows)))
        query = f"""select cluster, string_agg(left(caption, {CAPTION_CHARS}), chr(10) order by place) as document
            from source join wanted using (sample_id) where caption is not null group by cluster order by cluster"""
        found = inputs.sql(query, wanted=wanted)
        documents = np.full(k, "", object)
        documents[found.column("cluster").to_numpy()] = found.column("document").to_numpy()
        names = name_classes(documents.tolist(), self.terms)
        return pa.array([", ".join(terms) or None for terms in names], pa.string())

    def _labels(self, inputs: Inputs, centroids: np.ndarray, run: Run) -> tuple[pa.Array, pa.Array]:
        """Return the nearest label of each centroid and its cosine; nulls if there are no labels."""
        labels = self.label_list()
        if not labels:
            return pa.nulls(len(centroids), pa.string()), pa.nulls(len(centroids), pa.float32())
        from tasks.encoders.model import load

        schema = inputs.schema("embeddings")
        tables = {"embeddings": schema, "centroids": inputs.schema("centroids")}
        encoder = encoder_of(schema, clustered_column(tables, self.encoder))
        sides = {"models": inputs.whole("models")} if encoder.trained is not None else {}
        vectors = label_vectors(labels, self.templates, load(encoder, run.device, sides))
        if vectors.shape[1] != centroids.shape[1]:
            raise UserError(
                f"concepts: the vectors of encoder {encoder.name!r} have {vectors.shape[1]} numbers, the centroids "
                f"{centroids.shape[1]}: specify the clustered column as `encoder`"
            )
        at, cosine = assign(centroids, vectors, run.device)
        run.note(labels=len(labels), templates=len(self.templates), encoder=encoder.name)
        return pa.array(labels).take(pa.array(at)), pa.array(cosine)


def label_vectors(labels: Sequence[str], templates: Sequence[str], model: Any) -> np.ndarray:
    """Return one unit vector per label, the mean of its sentences': float32 (n, d). `model`: a `Model`."""
    from tasks.encoders.model import unit

    found = []
    for start in range(0, len(labels), LABELS_AT_ONCE):
        some = labels[start : start + LABELS_AT_ONCE]
        sentences = model.unit_texts([template.replace("{}", label) for label in some for template in templates])
        found.append(unit(sentences.reshape(len(some), len(templates), -1).mean(axis=1))[0])
    return np.concatenate(found)


def _lines(path: str) -> list[str]:
    try:
        found = read_lines(path)
    except UserError as error:
        beside = sorted(str(p) for p in Path(path).parent.glob("*.txt"))
        hint = nearest(path, beside) if str(error) == NOT_THERE else ""
        raise RecipeError(f"concepts: labels: cannot read {path!r}: {error}{hint}") from None
    digest_of(Path(path))  # recorded, so that a change after planning is noticed
    return found


def _members(inputs: Inputs, k: int) -> pa.Table:
    """Return one row for each of k clusters: cluster, size, intra, nearest (enough for a name), farthest.

    It uses bounded heaps per cluster instead of sorting all rows. The mean is a sum of integers (millionths): a sum of
    floats would depend on the order of DuckDB's threads.
    """
    near = min(max(ALL_CAPTIONS // k, LISTED), CAPTIONS)
    query = f"""with found as (
            select cluster, count(*) as size, sum(round(distance * 1e6)::bigint)::double / 1e6 / count(*) as intra,
                min({{'distance': distance, 'id': sample_id}}, {near}) filter (where distance is not null) as low,
                max({{'distance': distance, 'id': -sample_id}}, {LISTED}) filter (where distance is not null) as high
            from clusters where cluster is not null group by cluster)
        select cluster::integer as cluster, coalesce(size, 0)::bigint as size, intra::float as intra,
            coalesce([row.id for row in low], []) as nearest, coalesce([-row.id for row in high], []) as farthest
        from (select unnest(range({k})) as cluster) left join found using (cluster) order by cluster"""
    return inputs.sql(query)


def _kept(inputs: Inputs, k: int, total: int, run: Run) -> np.ndarray:
    """Return how many rows of each cluster are alive: int64 (k,)."""
    kept = np.zeros(k, np.int64)
    done = 0
    for batch in inputs.batches({"clusters": ("cluster",)}):
        kept += np.bincount(batch.column("cluster").drop_null().to_numpy(), minlength=k)
        done += batch.num_rows
        run.progress(min(done, total), total)
    return kept


def _share(kept: np.ndarray, size: np.ndarray) -> pa.Array:
    return pa.array((kept / np.maximum(size, 1)).astype(np.float32), mask=size == 0)


def _first(lists: pa.ChunkedArray) -> pa.Array:
    """Return the first `LISTED` of each list."""
    return pc.list_slice(lists, 0, LISTED)
