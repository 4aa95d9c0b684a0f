"""Semantic copies: neighbours by cosine within a cluster (SemDeDup), and two variants of its rule.

`clusters` reads clusters, or makes them; `judge` processes one cluster in blocks. Memory: one cluster's rows (or two
blocks of a large one), one block of products. `_near` finds the pairs of a block, `_meaning` iterates over all
clusters, `_borders` finds pairs across clusters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from catalog.inputs import Inputs, as_matrix
from tasks.deduplicate._borders import Reach
from tasks.deduplicate._limits import LIMITS, Limits
from tasks.deduplicate._near import CosinePairs, Near
from tasks.deduplicate._ties import Ties, roots
from tasks.stage import Config, Run
from tasks.vectors import kmeans
from tasks.vectors.columns import vector_column, width
from tasks.vectors.nearest_centroid import Assigner
from tasks.vectors.sample import Sample

Rule = Literal["order", "greedy", "components"]

BLOCK_ROWS: Final = 1024
CLUSTER_ROWS: Final = 4096
"""Mean size of the clusters that it makes: below it, comparing all rows of a cluster costs little."""
MOST_CLUSTERS: Final = 50_000
SAMPLE_PER_CENTROID: Final = 256
ITERATIONS: Final = 10
HARD: Final = "hard"
EASY: Final = "easy"


class Semantic(Config):
    """Settings of semantic copies.

    Rows are tied if their cosine is above 1 - epsilon, within a cluster and, with `borders`, across clusters. Rules:

    - `order`: a row is removed if any earlier row, removed or not, is tied to it (the published code).
    - `greedy`: a row is removed if an earlier row that is kept is tied to it. Removes a subset of `order`; every
      removed row is tied to a kept one.
    - `components`: the first row of each connected component is kept ("one per group", the paper's wording). Removes a
      superset of `order`; the representative may be less similar than 1 - epsilon.

    With `borders` and a likely reach, clusters above 4096 rows are split into cells of about 2048 (`_cells`), so that
    the cost per row does not grow with the corpus.
    If the stage also has perceptual copies, the rule applies to both kinds of ties (`_merge`). As published:
    `borders: 0`, no perceptual copies, and neither `order` nor `keep`; clusters are then processed independently, at
    n^2 / 2k products.
    Source: Abbas et al., SemDeDup, 2023 (arXiv 2303.09540), section 3 and algorithm A7; borders are ours.
    """

    encoder: str = Field("", description="embedding column; default: the first one")
    epsilon: float = Field(0.05, gt=0, le=1, description="1 - the cosine above which two rows are copies")
    rule: Rule = Field("order", description="order (SemDeDup's code), greedy, or components")
    order: str | None = Field(
        None, description="preference: hard (far from its centroid), easy, random, first, largest, or a column, "
        "highest first; default: `keep`, else hard, as published"
    )  # fmt: skip
    clusters: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="clusters to make; auto: those of an earlier `cluster`, else one per 4096 rows"
    )
    borders: int = Field(
        2, ge=0, le=64, description="rows near the border of their cluster are also compared with this many of "
        "the nearest other clusters; 0: only within a cluster, as published"
    )  # fmt: skip
    reach: Reach = Field(
        "likely", description="how near to a border: likely (for copies that differ in a random direction) or "
        "certain (for all copies, which may include nearly all rows)"
    )  # fmt: skip


@dataclass(frozen=True)
class Clusters:
    """The cluster of each of n rows."""

    cluster: np.ndarray
    """int32 (n,); -1 for rows without one, and rows that were not requested."""
    distance: np.ndarray
    """float32 (n,): 1 - cosine to its centroid; NaN without one."""
    centroids: np.ndarray | None
    """float32 (k, d), unit rows; None if they are unknown."""


def clusters(inputs: Inputs, run: Run, config: Semantic, ids: np.ndarray, asked: np.ndarray) -> Clusters:
    """Return the clusters of an earlier stage, or make them. `ids`: int64 (n,), ascending; `asked`: bool (n,)."""
    column = vector_column({"embeddings": inputs.schema("embeddings")}, config.encoder)
    if config.clusters == "auto" and "clusters" in inputs:
        return _earlier_clusters(inputs, column, ids, asked)
    cluster, distance = np.full(len(ids), -1, np.int32), np.full(len(ids), np.nan, np.float32)
    count = int(asked.sum())
    k = min(-(-count // CLUSTER_ROWS), MOST_CLUSTERS) if config.clusters == "auto" else config.clusters
    dim = width(inputs.schema("embeddings"), column)
    sample = Sample(run.scratch / "sample.npy", max(min(SAMPLE_PER_CENTROID * k, count), 1), dim, run.seed)
    for at, vectors in asked_vectors(inputs, column, ids, asked):
        sample.add(ids[at], vectors)
    _, rows = sample.take()
    if len(rows) == 0:
        return Clusters(cluster, distance, None)
    fit = kmeans.fit(rows, min(k, len(rows)), niter=ITERATIONS, seed=run.seed, device=run.device)
    run.note(**{f"semantic_{name}": fact for name, fact in fit.facts().items()})
    assigner = Assigner(fit.centroids, run.device)
    for at, vectors in asked_vectors(inputs, column, ids, asked):
        cluster[at], distance[at] = assigner(vectors)
    return Clusters(cluster, distance, fit.centroids)


def _earlier_clusters(inputs: Inputs, column: str, ids: np.ndarray, asked: np.ndarray) -> Clusters:
    cluster, distance = np.full(len(ids), -1, np.int32), np.full(len(ids), np.nan, np.float32)
    for batch in inputs.batches({"clusters": ("cluster", "distance")}):
        at = np.searchsorted(ids, batch.column("sample_id").to_numpy())
        cluster[at] = pc.fill_null(batch.column("cluster"), -1).to_numpy()
        distance[at] = pc.fill_null(batch.column("distance"), np.nan).to_numpy()
    cluster[~asked] = -1
    if "centroids" not in inputs:
        return Clusters(cluster, distance, None)
    centroids = as_matrix(inputs.whole("centroids").column("centroid"))
    theirs = centroids.shape[1] == width(inputs.schema("embeddings"), column)
    return Clusters(cluster, distance, centroids if theirs and cluster.max(initial=-1) < len(centroids) else None)


def asked_vectors(
    inputs: Inputs, column: str, ids: np.ndarray, asked: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows int64 (m,), vectors (m, d)) of the requested rows."""
    for sample_ids, vectors in inputs.vectors("embeddings", column):
        at = np.searchsorted(ids, sample_ids)
        wanted = asked[at]
        yield (at, vectors) if wanted.all() else (at[wanted], vectors[wanted])


@dataclass(frozen=True)
class Verdict:
    """The result of `judge` for one cluster's rows, in their order."""

    keep: np.ndarray
    """bool (n,)."""
    representative: np.ndarray
    """int64 (n,): place of its representative; -1 for kept rows."""
    similarity: np.ndarray
    """float32 (n,): cosine to the representative; NaN for kept rows."""
    tied: np.ndarray
    """int64 (n,): place of the most similar row for which it is removed; -1 for none. For `components`: the most
    similar tied row, which the first of a component has too; for the other rules: the representative."""
    tied_cosine: np.ndarray
    """float32 (n,): cosine to that; NaN for none."""


def judge(
    rows: np.ndarray,
    rule: Rule,
    epsilon: float,
    device: str = "cpu",
    block: int = BLOCK_ROWS,
    limits: Limits = LIMITS,
) -> Verdict:
    """Apply a rule to one cluster. `rows`: (n, d), float16 or float32, each with a direction, in preference order."""
    return decide(Near.of(rows, 1 - epsilon, device, limits), rule, block)


def decide(near: Near, rule: Rule, block: int = BLOCK_ROWS) -> Verdict:
    """Apply a rule to rows in the order of preference.

    Each block of rows is compared only with the blocks before it, with one product in memory: block x block.
    """
    if rule == "components":
        return _components(near, block)
    return _earlier(near, block, kept_only=rule == "greedy")


def _spans(count: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, count)) for start in range(0, count, block)]


def _earlier(near: Near, block: int, kept_only: bool) -> Verdict:
    """Compare each row with the earlier ones (all, or only kept ones)."""
    tied = Ties.of(len(near))
    spans = _spans(len(near), block)
    for number, span in enumerate(spans):
        for other in spans[:number]:
            columns = other.start + np.flatnonzero(tied.partner[other] < 0) if kept_only else other
            tied.offer_sorted(near.pairs(span, near, columns))
        own = near.pairs(span, near, span)
        if kept_only:
            stays = _first_of_each(own, span, tied.partner[span] >= 0)
            of = stays[own[1] - span.start]
            own = own[0][of], own[1][of], own[2][of]
        tied.offer_sorted(own)
    keep = tied.partner < 0
    return Verdict(keep, tied.partner, tied.cosine, tied.partner, tied.cosine)


def _first_of_each(own: CosinePairs, span: slice, out: np.ndarray) -> np.ndarray:
    """Return which rows of a block the greedy rule keeps: bool (b,).

    `own`: pairs of its rows; `out`: bool (b,), rows that are removed already. Rows whose earlier neighbours are all
    decided are decided in one round: the number of rounds is the longest chain of neighbours.
    """
    late, early = own[0] - span.start, own[1] - span.start
    stays, unsettled = np.zeros_like(out), ~out
    while unsettled.any():
        ready = unsettled.copy()
        ready[late[unsettled[early]]] = False
        stays |= ready
        unsettled &= ~ready
        unsettled[late[ready[early]]] = False
    return stays


def _components(near: Near, block: int) -> Verdict:
    """Link neighbours into components; keep the first of each."""
    count = len(near)
    spans = _spans(count, block)
    labels, tied = np.arange(count), Ties.of(count)
    held: list[np.ndarray] = []
    for at, span in enumerate(spans):
        for other in spans[: at + 1]:
            late, early, cosine = near.pairs(span, near, other)
            tied.offer_sorted((late, early, cosine))
            back = np.argsort(early, kind="stable")
            tied.offer_sorted((early[back], late[back], cosine[back]))
            held.append(_forest(late, early, span, other))
            if sum(map(len, held)) > 4 * count:
                labels, held = _link(labels, held), []
    first = _link(labels, held)
    keep = first == np.arange(count)
    similarity = np.full(count, np.nan, np.float32)
    gone = np.flatnonzero(~keep)
    similarity[gone] = near.cosines(gone, near, first[gone])
    return Verdict(keep, np.where(keep, -1, first), similarity, tied.partner, tied.cosine)


def _forest(late: np.ndarray, early: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """Return a spanning forest of a block's pairs: int64 (m, 2), m below the sum of its two sides."""
    number = np.unique(np.r_[np.arange(columns.start, columns.stop), np.arange(rows.start, rows.stop)])
    first = roots(len(number), np.searchsorted(number, np.stack([late, early], axis=1)))
    linked = np.flatnonzero(first != np.arange(len(number)))
    return np.stack([number[linked], number[first[linked]]], axis=1)


def _link(labels: np.ndarray, held: list[np.ndarray]) -> np.ndarray:
    """Return the first row of each row's component; rows with the same label, and pairs, are linked."""
    return roots(len(labels), np.concatenate([np.stack([np.arange(len(labels)), labels], axis=1), *held]))
