"""Copies that mean the same: neighbours by cosine within a cluster (SemDeDup), and two stricter readings of it.

`clusters` takes clusters, or makes them; `judge` decides one cluster in blocks. Memory: one cluster's rows (or two
blocks of a large one), one block of products. `_meaning` walks over all clusters, `borders` finds what lies across.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from catalog.inputs import Inputs, as_matrix
from tasks import kmeans
from tasks.deduplicate._ties import roots
from tasks.deduplicate.borders import Reach
from tasks.stage import Config, Run

if TYPE_CHECKING:
    import torch

Rule = Literal["order", "greedy", "components"]

BLOCK_ROWS: Final = 1024
CLUSTER_ROWS: Final = 4096
"""Mean size of the clusters that it makes itself: below it, comparing all rows of a cluster costs little."""
MOST_CLUSTERS: Final = 50_000
SAMPLE_PER_CENTROID: Final = 256
ITERATIONS: Final = 10
HARD: Final = "hard"
EASY: Final = "easy"


class Semantic(Config):
    """How near-copies are found.

    Rows are tied where their cosine is above 1 - epsilon, within a cluster and, with `borders`, across. Rules:

    - `order`: a row goes where any earlier row is tied to it, also one that itself goes (the published code).
    - `greedy`: only earlier rows that stay count. Takes out a subset of `order`; a row that goes is tied to a row that
      stays.
    - `components`: one row, the first, stays of each connected component ("one per group", the paper's wording). Takes
      out a superset of `order`; the representative may be less similar than 1 - epsilon.

    With `borders` and a likely reach, clusters above 4096 rows are cut into cells of about 2048 (`_cells`), so that the
    cost of a row does not grow with the corpus.
    The rule holds for ties by looks as well, where the stage has both (`_merge`). As published: `borders: 0`, no
    perceptual copies, and neither `order` nor `keep`; clusters are then judged one by one, at n^2 / 2k products.
    Source: Abbas et al., SemDeDup, 2023 (arXiv 2303.09540), section 3 and algorithm A7; borders are ours.
    """

    encoder: str = Field("", description="embedding column; default: the first one")
    epsilon: float = Field(0.05, gt=0, le=1, description="1 - the cosine above which two rows are copies")
    rule: Rule = Field("order", description="order (SemDeDup's code), greedy, or components")
    order: str | None = Field(
        None, description="who comes first: hard (far from its centroid), easy, random, first, largest, or a column, "
        "highest first; default: as `keep` says, else hard, as published"
    )  # fmt: skip
    clusters: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="clusters to make; auto: those of an earlier `cluster`, else one for 4096 rows"
    )
    borders: int = Field(
        2, ge=0, le=64, description="rows close to the border of their cluster are compared with so many of the "
        "nearest other ones too; 0: only within a cluster, as published"
    )  # fmt: skip
    reach: Reach = Field(
        "likely", description="how close to a border: likely (where copies lie that differ in a random direction) or "
        "certain (where any copy can lie, which may be nearly everywhere)"
    )  # fmt: skip


@dataclass(frozen=True)
class Clusters:
    """Which cluster each of n rows is in."""

    cluster: np.ndarray
    """int32 (n,); -1 where it has none or is not asked for."""
    distance: np.ndarray
    """float32 (n,): 1 - cosine to its centroid; NaN where it has none."""
    centroids: np.ndarray | None
    """float32 (k, d), unit rows; None where they are not known."""


def clusters(inputs: Inputs, run: Run, config: Semantic, ids: np.ndarray, asked: np.ndarray) -> Clusters:
    """Return the clusters of an earlier stage, or make some. `ids`: int64 (n,), ascending; `asked`: bool (n,)."""
    column = kmeans.vector_column({"embeddings": inputs.schema("embeddings")}, config.encoder)
    if config.clusters == "auto" and "clusters" in inputs:
        return _earlier_clusters(inputs, column, ids, asked)
    cluster, distance = np.full(len(ids), -1, np.int32), np.full(len(ids), np.nan, np.float32)
    count = int(asked.sum())
    k = min(-(-count // CLUSTER_ROWS), MOST_CLUSTERS) if config.clusters == "auto" else config.clusters
    dim = kmeans.width(inputs.schema("embeddings"), column)
    sample = kmeans.Sample(run.scratch / "sample.npy", max(min(SAMPLE_PER_CENTROID * k, count), 1), dim, run.seed)
    for at, vectors in asked_vectors(inputs, column, ids, asked):
        sample.add(ids[at], vectors)
    _, rows = sample.take()
    if len(rows) == 0:
        return Clusters(cluster, distance, None)
    fit = kmeans.fit(rows, min(k, len(rows)), niter=ITERATIONS, seed=run.seed, device=run.device)
    run.note(**{f"semantic_{name}": fact for name, fact in fit.facts().items()})
    assigner = kmeans.Assigner(fit.centroids, run.device)
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
    theirs = centroids.shape[1] == kmeans.width(inputs.schema("embeddings"), column)
    return Clusters(cluster, distance, centroids if theirs and cluster.max(initial=-1) < len(centroids) else None)


def asked_vectors(
    inputs: Inputs, column: str, ids: np.ndarray, asked: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows int64 (m,), vectors (m, d)) of the rows that are asked for."""
    for sample_ids, vectors in inputs.vectors("embeddings", column):
        at = np.searchsorted(ids, sample_ids)
        wanted = asked[at]
        yield at[wanted], vectors[wanted]


@dataclass(frozen=True)
class Verdict:
    """What `judge` says of one cluster's rows, in their order."""

    keep: np.ndarray
    """bool (n,)."""
    representative: np.ndarray
    """int64 (n,): place of the row that stands for it; -1 where it stays."""
    similarity: np.ndarray
    """float32 (n,): cosine to it; NaN where it stays."""
    tied: np.ndarray
    """int64 (n,): place of the most similar row that it goes for; -1 for none. For `components`: of any that it is
    tied to, so that the first of a component has one too; for the other rules: the representative."""
    tied_cosine: np.ndarray
    """float32 (n,): cosine to that; NaN for none."""


def judge(rows: np.ndarray, rule: Rule, epsilon: float, device: str = "cpu", block: int = BLOCK_ROWS) -> Verdict:
    """Judge one cluster. `rows`: (n, d), float16 or float32, each with a direction, in the order of preference.

    Multiplies each block of rows with the blocks before it only, and holds one product at a time: block x block.
    """
    unit = kmeans.UnitRows(rows, device)
    if rule == "components":
        return _components(unit, 1 - epsilon, block)
    return _earlier(unit, 1 - epsilon, block, kept_only=rule == "greedy")


def _spans(count: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, count)) for start in range(0, count, block)]


def _earlier(unit: kmeans.UnitRows, threshold: float, block: int, kept_only: bool) -> Verdict:
    """Compare each row with the earlier ones (all, or those that stay)."""
    import torch

    spans = _spans(len(unit), block)
    nearest = np.full(len(unit), -1, np.int64)
    best = np.full(len(unit), np.nan, np.float32)
    stays: list[torch.Tensor] = []
    for number, span in enumerate(spans):
        mine = unit[span]
        cosine = torch.full((len(mine),), threshold, device=mine.device)
        at = torch.full((len(mine),), -1, dtype=torch.int64, device=mine.device)
        for other in range(number):
            theirs = unit[spans[other]]
            if kept_only:
                theirs = theirs[stays[other]]
            where = stays[other] if kept_only else torch.arange(len(theirs), device=mine.device)
            _raise(cosine, at, mine @ theirs.T, where + spans[other].start)
        own = (mine @ mine.T).tril_(-1)  # zeros are never above the threshold
        if kept_only:
            staying = _first_of_each(own, threshold, at >= 0)
            stays.append(staying.nonzero().squeeze(1))
            own *= staying
        _raise(cosine, at, own, torch.arange(span.start, span.stop, device=mine.device))
        nearest[span] = at.cpu().numpy()
        best[span] = cosine.cpu().numpy()
    keep = nearest < 0
    best[keep] = np.nan
    return Verdict(keep, nearest, best, nearest, best)


def _raise(cosine: "torch.Tensor", at: "torch.Tensor", product: "torch.Tensor", rows: "torch.Tensor") -> None:
    """Take over what is larger in `product`, in place; column j is row rows[j], and ties stay with the earlier row."""
    if product.shape[1] == 0:
        return
    value = product.amax(dim=1)
    more = (value > cosine).nonzero().squeeze(1)  # few rows have a copy: only they are searched for the place of it
    cosine[more] = value[more]
    at[more] = rows[product[more].argmax(dim=1)]


def _first_of_each(own: "torch.Tensor", threshold: float, out: "torch.Tensor") -> "torch.Tensor":
    """Return which rows of a block stay under the greedy rule: bool (b,).

    `own`: float32 (b, b), cosines to the earlier rows of the block, 0 above the diagonal; `out`: bool (b,), rows that
    are out already. Rows whose earlier neighbours are all settled are settled at once: as many rounds as the longest
    chain of neighbours.
    """
    import torch

    if bool(own.amax() <= threshold):
        return ~out
    near = own > threshold
    stay = torch.zeros_like(out)
    unsettled = ~out
    while unsettled.any():
        ready = unsettled & ~(near & unsettled).any(dim=1)
        stay |= ready
        unsettled &= ~ready & ~(near & ready).any(dim=1)
    return stay


def _components(unit: kmeans.UnitRows, threshold: float, block: int) -> Verdict:
    """Link neighbours into components; the first of each stays."""
    import torch

    spans = _spans(len(unit), block)
    labels = np.arange(len(unit))
    held: list[np.ndarray] = []
    cosine = torch.full((len(unit),), threshold, device=unit[0:0].device)
    tied = torch.full_like(cosine, -1, dtype=torch.int64)
    number = torch.arange(len(unit), device=cosine.device)
    for at, span in enumerate(spans):
        mine = unit[span]
        for other in spans[: at + 1]:
            product = mine @ unit[other].T
            if other is span:
                product.tril_(-1)
            if bool(product.amax() <= threshold):
                continue
            _raise(cosine[span], tied[span], product, number[other])
            _raise(cosine[other], tied[other], product.T, number[span])
            held.append(_forest(product > threshold, span.start, other.start))
            if sum(map(len, held)) > 4 * len(unit):
                labels, held = _link(labels, held), []
    first = _link(labels, held)
    keep = first == np.arange(len(unit))
    similarity = np.full(len(unit), np.nan, np.float32)
    for span in _spans(int((~keep).sum()), block):
        rows = np.flatnonzero(~keep)[span]
        similarity[rows] = unit.cosines(rows, first[rows])
    cosine[tied < 0] = torch.nan
    return Verdict(keep, np.where(keep, -1, first), similarity, tied.cpu().numpy(), cosine.cpu().numpy())


def _forest(near: "torch.Tensor", row: int, column: int) -> np.ndarray:
    """Return as few pairs as link the same rows as a block of pairs does: int64 (m, 2), m below its two sides' sum."""
    count = len(near)
    pairs = near.nonzero().cpu().numpy()
    number = np.arange(row, row + count)
    if row != column:  # two ranges of rows: columns are numbered after rows
        pairs[:, 1] += count
        number = np.concatenate([number, np.arange(column, column + near.shape[1])])
    first = roots(len(number), pairs)
    linked = np.flatnonzero(first != np.arange(len(number)))
    return np.stack([number[linked], number[first[linked]]], axis=1)


def _link(labels: np.ndarray, held: list[np.ndarray]) -> np.ndarray:
    """Return the first row of each row's component, where rows with one label, and pairs, are linked."""
    return roots(len(labels), np.concatenate([np.stack([np.arange(len(labels)), labels], axis=1), *held]))
