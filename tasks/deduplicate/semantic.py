"""Copies that mean the same: neighbours by cosine within a cluster (SemDeDup), and two stricter readings of it.

`find` takes clusters, or makes them, and sorts the vectors by cluster into a memory map; `judge` decides one cluster in
blocks. Memory: some 40 bytes a row, one cluster's rows (or two blocks of a large one), one block of products.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from catalog.inputs import Inputs
from tasks import kmeans
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

    Within each cluster, rows are ordered; a row goes where its cosine to an earlier row is above 1 - epsilon. Rules:

    - `order`: any earlier row counts, also one that itself goes (the published code). The representative is the most
      similar earlier row, which may be out itself.
    - `greedy`: only earlier rows that stay count. Takes out a subset of `order`; every representative stays.
    - `components`: one row, the first, stays of each connected component ("one per group", the paper's wording). Takes
      out a superset of `order`; the representative stays, but may be less similar than 1 - epsilon.

    Copies across a cluster's border are not found: fewer clusters find more, at n^2 / k multiplications.
    Source: Abbas et al., SemDeDup, 2023 (arXiv 2303.09540), section 3 and algorithm A7.
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


def find(
    inputs: Inputs, run: Run, config: Semantic, ids: np.ndarray, asked: np.ndarray, key: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Find near-copies among some rows.

    `ids`: int64 (n,), ascending; `asked`: bool (n,), the rows to compare; `key`: (n,), smallest comes first, or None
    for the distance to the centroid (`order` hard or easy). Returns (rows that go, int64 (m,); the row that stands for
    each, int64 (m,); cosine to it, float32 (m,); which rows were compared, bool (n,)).
    """
    column = kmeans.vector_column({"embeddings": inputs.schema("embeddings")}, config.encoder)
    cluster, distance = _clusters(inputs, run, config, column, ids, asked)
    if key is None:
        key = distance if config.order == EASY else -distance
    rows = np.flatnonzero(cluster >= 0)
    rows = rows[np.lexsort((key[rows], cluster[rows]))]
    vectors, there = _spill(inputs, run.scratch / "vectors.npy", column, ids, rows)
    rows, vectors = _present(rows, vectors, there)
    compared = np.zeros(len(ids), bool)
    compared[rows] = True
    starts = np.r_[0, np.flatnonzero(np.diff(cluster[rows])) + 1, len(rows)] if len(rows) else np.zeros(1, np.int64)
    gone, stands, cosine = [rows[:0]], [rows[:0]], [np.empty(0, np.float32)]
    for start, stop in pairwise(starts.tolist()):
        verdict = judge(vectors[start:stop], config.rule, config.epsilon, run.device)
        out = np.flatnonzero(~verdict.keep)
        gone.append(rows[start + out])
        stands.append(rows[start + verdict.representative[out]])
        cosine.append(verdict.similarity[out])
        run.progress(stop, len(rows))
    largest = int(np.diff(starts).max(initial=0))
    run.note(semantic_encoder=column, semantic_clusters=len(starts) - 1, semantic_largest_cluster=largest)
    return np.concatenate(gone), np.concatenate(stands), np.concatenate(cosine), compared


def _clusters(
    inputs: Inputs, run: Run, config: Semantic, column: str, ids: np.ndarray, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (cluster int32 (n,), -1 where it has none or is not asked for; distance float32 (n,))."""
    cluster, distance = np.full(len(ids), -1, np.int32), np.full(len(ids), np.nan, np.float32)
    if config.clusters == "auto" and "clusters" in inputs:
        for batch in inputs.batches({"clusters": ("cluster", "distance")}):
            at = np.searchsorted(ids, batch.column("sample_id").to_numpy())
            cluster[at] = pc.fill_null(batch.column("cluster"), -1).to_numpy()
            distance[at] = pc.fill_null(batch.column("distance"), np.nan).to_numpy()
        cluster[~asked] = -1
        return cluster, distance
    count = int(asked.sum())
    k = min(-(-count // CLUSTER_ROWS), MOST_CLUSTERS) if config.clusters == "auto" else config.clusters
    dim = kmeans.width(inputs.schema("embeddings"), column)
    sample = kmeans.Sample(run.scratch / "sample.npy", max(min(SAMPLE_PER_CENTROID * k, count), 1), dim, run.seed)
    for at, vectors in _vectors(inputs, column, ids, asked):
        sample.add(ids[at], vectors)
    _, rows = sample.take()
    if len(rows) == 0:
        return cluster, distance
    fit = kmeans.fit(rows, min(k, len(rows)), niter=ITERATIONS, seed=run.seed, device=run.device)
    run.note(**{f"semantic_{name}": fact for name, fact in fit.facts().items()})
    assigner = kmeans.Assigner(fit.centroids, run.device)
    for at, vectors in _vectors(inputs, column, ids, asked):
        cluster[at], distance[at] = assigner(vectors)
    return cluster, distance


def _vectors(
    inputs: Inputs, column: str, ids: np.ndarray, asked: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (rows int64 (m,), vectors (m, d)) of the rows that are asked for."""
    for sample_ids, vectors in inputs.vectors("embeddings", column):
        at = np.searchsorted(ids, sample_ids)
        wanted = asked[at]
        yield at[wanted], vectors[wanted]


def _spill(inputs: Inputs, path: Path, column: str, ids: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write the vectors of `rows` to disk in that order; return (float16 (m, d), mapped; which are usable, (m,))."""
    place = np.full(len(ids), -1, np.int64)
    place[rows] = np.arange(len(rows))
    dim = kmeans.width(inputs.schema("embeddings"), column)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(max(len(rows), 1), dim))[: len(rows)]
    there = np.zeros(len(rows), bool)
    for at, vectors in _vectors(inputs, column, ids, place >= 0):
        out[place[at]] = vectors
        there[place[at]] = kmeans.usable(vectors)
    return out, there


def _present(rows: np.ndarray, vectors: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out rows without a usable vector, moving the others up in place."""
    if there.all():
        return rows, vectors
    present = np.flatnonzero(there)
    for start in range(0, len(present), 65536):
        piece = present[start : start + 65536]
        vectors[start : start + len(piece)] = vectors[piece]
    return rows[present], vectors[: len(present)]


@dataclass(frozen=True)
class Verdict:
    """What `judge` says of one cluster's rows, in their order."""

    keep: np.ndarray
    """bool (n,)."""
    representative: np.ndarray
    """int64 (n,): place of the row that stands for it; -1 where it stays."""
    similarity: np.ndarray
    """float32 (n,): cosine to it; NaN where it stays."""


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
    return Verdict(keep, nearest, np.where(keep, np.float32(np.nan), best))


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
    spans = _spans(len(unit), block)
    labels = np.arange(len(unit))
    held: list[np.ndarray] = []
    for number, span in enumerate(spans):
        mine = unit[span]
        for other in spans[: number + 1]:
            product = mine @ unit[other].T
            if other is span:
                product.tril_(-1)
            if bool(product.amax() <= threshold):
                continue
            held.append(_forest(product > threshold, span.start, other.start))
            if sum(map(len, held)) > 4 * len(unit):
                labels, held = _link(labels, held), []
    first = _link(labels, held)
    keep = first == np.arange(len(unit))
    similarity = np.full(len(unit), np.nan, np.float32)
    for span in _spans(int((~keep).sum()), block):
        rows = np.flatnonzero(~keep)[span]
        similarity[rows] = unit.cosines(rows, first[rows])
    return Verdict(keep, np.where(keep, -1, first), similarity)


def _forest(near: "torch.Tensor", row: int, column: int) -> np.ndarray:
    """Return as few pairs as link the same rows as a block of pairs does: int64 (m, 2), m below its two sides' sum."""
    count = len(near)
    pairs = near.nonzero().cpu().numpy()
    number = np.arange(row, row + count)
    if row != column:  # two ranges of rows: columns are numbered after rows
        pairs[:, 1] += count
        number = np.concatenate([number, np.arange(column, column + near.shape[1])])
    first = _roots(len(number), pairs)
    linked = np.flatnonzero(first != np.arange(len(number)))
    return np.stack([number[linked], number[first[linked]]], axis=1)


def _link(labels: np.ndarray, held: list[np.ndarray]) -> np.ndarray:
    """Return the first row of each row's component, where rows with one label, and pairs, are linked."""
    return _roots(len(labels), np.concatenate([np.stack([np.arange(len(labels)), labels], axis=1), *held]))


def _roots(count: int, pairs: np.ndarray) -> np.ndarray:
    """Return the lowest row of each row's component: int64 (count,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    _, lowest = np.unique(component, return_index=True)
    roots: np.ndarray = lowest[component].astype(np.int64)
    return roots
