"""Semantic ties among all rows: within cells, and across their borders. A cell is a cluster, or a part of one."""

from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from catalog.inputs import Inputs
from tasks.deduplicate._base import Preference
from tasks.deduplicate._borders import Borders
from tasks.deduplicate._cells import shared, split
from tasks.deduplicate._limits import LIMITS, Limits
from tasks.deduplicate._near import FIT_PAIRS, Fold, Near
from tasks.deduplicate._semantic import BLOCK_ROWS, Clusters, Rule, Semantic, Verdict, asked_vectors, decide
from tasks.deduplicate._spill import spill
from tasks.deduplicate._ties import Pairs, Ties, roots
from tasks.stage import Run
from tasks.vectors.columns import vector_column, width
from tasks.vectors.mapped import gather, release
from tasks.vectors.unit_rows import UnitRows

Places = slice | np.ndarray
"""Places of one cluster: all of them, or int64 (m,), ascending."""


class Meaning:
    """Finds semantic ties among n rows. Rows with a cluster and a vector are stored on disk, by cluster and within it
    in the order of preference; a *place* is a row's index there.

    Memory: 40 bytes per row; for each core that of `judge` for one cell (large cells are processed alone); and that of
    `Borders`.
    """

    def __init__(
        self,
        inputs: Inputs,
        run: Run,
        config: Semantic,
        ids: np.ndarray,
        given: Clusters,
        order: Preference,
        limits: Limits = LIMITS,
    ) -> None:
        """`ids`: int64 (n,), ascending."""
        column = vector_column({"embeddings": inputs.schema("embeddings")}, config.encoder)
        self._run, self._config, self._rank, self._limits = run, config, order.rank, limits
        rows = order.row[given.cluster[order.row] >= 0]
        rows = rows[np.argsort(given.cluster[rows], kind="stable")]
        vectors, there = _spilled(inputs, run.scratch / "vectors.npy", column, ids, rows)
        self._rows, self._vectors = _present(rows, vectors, there)
        own = given.cluster[self._rows]
        edges = np.flatnonzero(np.diff(own)) + 1
        self._starts = np.r_[0, edges, len(own)] if len(own) else np.zeros(1, np.int64)
        centroids = self._divide(given, own[self._starts[:-1]])
        self._place = np.full(len(ids), -1, np.int64)
        self._place[self._rows] = np.arange(len(self._rows))
        sizes = np.diff(self._starts)
        run.note(semantic_encoder=column, semantic_cells=len(sizes), semantic_largest_cell=int(sizes.max(initial=0)))
        run.note(semantic_pairs=int((sizes * (sizes - 1)).sum()) // 2)
        self._folded = self._fold()
        self._borders = self._open_borders(centroids)

    def _divide(self, given: Clusters, clusters: np.ndarray) -> np.ndarray:
        """Split large clusters into cells if borders are compared; return the centroids: float32 (c, d)."""
        self._run.note(semantic_clusters=len(clusters))
        if self._config.borders == 0 or len(clusters) == 0:
            return np.empty((len(clusters), 0), np.float32)
        centroids = self._means() if given.centroids is None else given.centroids[clusters]
        if self._config.reach == "certain":
            return centroids
        how = self._run.seed, self._run.device, self._limits
        self._starts, centroids = split(self._rows, self._vectors, self._starts, centroids, *how)
        return centroids

    def _fold(self) -> np.ndarray | None:
        """Fold all vectors to disk, float16 (m, w), if it saves more than it costs; else None."""
        sizes = np.diff(self._starts)
        pairs = int((sizes * (sizes - 1)).sum()) // 2
        if pairs < max(self._limits.least_folded_pairs, self._limits.folded_pairs_per_row * len(self._rows)):
            return None
        rng = np.random.default_rng(self._run.seed)
        one = np.sort(rng.integers(0, len(self._rows), 2 * FIT_PAIRS))
        cell = np.searchsorted(self._starts, one, side="right") - 1
        other = self._starts[cell] + rng.integers(0, sizes[cell])
        differ = rng.permutation(np.flatnonzero(one != other))
        left, right = (gather(self._vectors, side[differ]) for side in (one, other))
        fold = Fold.fit(left, right, 1 - self._config.epsilon, self._run.device, self._limits)
        self._run.note(semantic_folded_width=0 if fold is None else fold.width)
        if fold is None:
            return None
        shape = (len(self._rows), fold.width)
        folded = np.lib.format.open_memmap(self._run.scratch / "folded.npy", mode="w+", dtype=np.float16, shape=shape)
        fold.write(self._vectors, folded, self._run.device)
        return folded

    def _near(self, places: Places) -> Near:
        how = 1 - self._config.epsilon, self._run.device, self._limits
        return Near(self._vectors, self._folded, places, *how)

    def _open_borders(self, centroids: np.ndarray) -> Borders | None:
        if self._config.borders == 0 or len(centroids) < 2:
            return None
        config, run = self._config, self._run
        how = config.borders, config.epsilon, config.reach, run.device
        found = Borders(self._vectors, self._starts, centroids, *how, folded=self._folded, limits=self._limits)
        run.note(border_visits=found.candidates, border_rows_cut_short=found.truncated, border_strays=found.misassigned)
        return found

    def _means(self) -> np.ndarray:
        """Return the direction of each cluster's mean: float32 (k, d)."""
        sums = np.zeros((len(self._starts) - 1, self._vectors.shape[1]))
        for cluster, (start, stop) in enumerate(pairwise(self._starts.tolist())):
            unit = UnitRows(self._vectors[start:stop], self._run.device)
            for begin in range(0, stop - start, BLOCK_ROWS):
                sums[cluster] += unit[begin : min(begin + BLOCK_ROWS, stop - start)].sum(dim=0).cpu().numpy()
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        return np.asarray(sums / np.maximum(length, np.finfo(np.float32).tiny), np.float32)

    @property
    def across(self) -> bool:
        """Whether ties across borders are searched for."""
        return self._borders is not None

    def compared(self) -> np.ndarray:
        """Return which rows were compared: bool (n,)."""
        return np.asarray(self._place >= 0)

    def facts(self) -> dict[str, int]:
        """Return counts of the search across borders so far."""
        return {} if self._borders is None else {"border_pairs": self._borders.compared}

    def before(self, among: np.ndarray | None = None) -> Ties:
        """Return the most similar preferred row that each row is tied to, among rows int64 (k,) (None: all)."""
        found = Ties.of(len(self._rank))
        for places, verdict in self._judged("order", among):
            self._offer(found, places, verdict)
        chosen = self._chosen(among)
        for pairs in self._across(chosen, chosen):
            found.offer(pairs.late, pairs.early, pairs.cosine)
        return found

    def greedy(self) -> Ties:
        """Return, for each row that the greedy rule removes within its cluster, the most similar row that is kept."""
        found = Ties.of(len(self._rank))
        for places, verdict in self._judged("greedy", None):
            self._offer(found, places, verdict)
        return found

    def linked(self) -> tuple[np.ndarray, Ties]:
        """Return (pairs of rows that link all tied rows, int64 (m, 2); the most similar tied row of each row)."""
        found, links = Ties.of(len(self._rank)), [np.empty((0, 2), np.int64)]
        for places, verdict in self._judged("components", None):
            rows = self._rows[places]
            out = np.flatnonzero(~verdict.keep)
            links.append(np.stack([rows[out], rows[verdict.representative[out]]], axis=1))
            self._offer(found, places, verdict)
        for pairs in self._across(None, None):
            found.offer(pairs.late, pairs.early, pairs.cosine)
            found.offer(pairs.early, pairs.late, pairs.cosine)
            links.append(np.stack([pairs.late, pairs.early], axis=1))
            if sum(map(len, links)) > 4 * len(self._rank):
                links = [_thinned(len(self._rank), np.concatenate(links))]
        return np.concatenate(links), found

    def near(self, among: np.ndarray) -> Pairs | None:
        """Return all ties among some rows, int64 (k,); None if there are too many for memory (`Limits`)."""
        held: list[Pairs] = []
        count = 0
        for pairs in self._all_pairs(among):
            held.append(pairs)
            count += len(pairs.late)
            if count > self._limits.pairs_in_memory:
                return None
        return Pairs.joined(held)

    def cover(self, found: Ties, of: np.ndarray, among: np.ndarray) -> None:
        """Offer to each row of `of`, int64 (m,), the rows of `among`, int64 (k,), that it is tied to."""
        wanted, offered = self._chosen(of), self._chosen(among)
        assert wanted is not None
        for mine, theirs in zip(self._by_cluster(wanted), self._by_cluster(offered), strict=True):
            for rows, others, cosine in self._products(mine, theirs):
                found.offer(rows, others, cosine)
        for pairs in chain(self._across(wanted, offered), self._across(offered, wanted)):
            late = wanted[self._place[pairs.late]]
            rows, others = np.where(late, pairs.late, pairs.early), np.where(late, pairs.early, pairs.late)
            found.offer(rows, others, pairs.cosine)

    def cosines(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the cosine of each pair of rows, int64 (m,) twice: float32 (m,), NaN if one has no place."""
        one, other = self._place[rows], self._place[others]
        known = np.flatnonzero((one >= 0) & (other >= 0))
        known = known[np.argsort(one[known], kind="stable")]  # read the disk sequentially
        found = np.full(len(rows), np.nan, np.float32)
        for begin in range(0, len(known), BLOCK_ROWS):
            at = known[begin : begin + BLOCK_ROWS]
            sides = [gather(self._vectors, side[at]) for side in (one, other)]
            left, right = (UnitRows(side, self._run.device)[0 : len(at)] for side in sides)
            found[at] = (left * right).sum(dim=1).cpu().numpy()
        return found

    def _chosen(self, rows: np.ndarray | None) -> np.ndarray | None:
        """Return which places are those of some rows: bool (m,); None for all."""
        if rows is None:
            return None
        chosen = np.zeros(len(self._rows), bool)
        places = self._place[rows]
        chosen[places[places >= 0]] = True
        return chosen

    def _by_cluster(self, chosen: np.ndarray | None) -> Iterator[Places]:
        """Yield the chosen places of each cluster."""
        for start, stop in pairwise(self._starts.tolist()):
            whole = chosen is None or bool(chosen[start:stop].all())
            yield slice(start, stop) if whole or chosen is None else start + np.flatnonzero(chosen[start:stop])

    def _judged(self, rule: Rule, among: np.ndarray | None) -> Iterator[tuple[Places, Verdict]]:
        """Yield the verdict on each cell, in no order."""

        def judge(places: Places) -> tuple[Places, Verdict]:
            found = decide(self._near(places), rule)
            self._release()
            return places, found

        done = 0
        cells = (places for places in self._by_cluster(self._chosen(among)) if _size(places))
        for places, verdict in shared(judge, cells, _size, self._run.device, self._limits):
            yield places, verdict
            done += len(verdict.keep)
            self._run.progress(done, len(self._rows))

    def _offer(self, found: Ties, places: Places, verdict: Verdict) -> None:
        """Record the ties of one cluster, whose rows have none yet."""
        rows = self._rows[places]
        tied = np.flatnonzero(verdict.tied >= 0)
        found.partner[rows[tied]] = rows[verdict.tied[tied]]
        found.cosine[rows[tied]] = verdict.tied_cosine[tied]

    def _across(self, sources: np.ndarray | None, targets: np.ndarray | None) -> Iterator[Pairs]:
        if self._borders is None:
            return
        for one, other, cosine in self._borders.pairs(sources, targets):
            yield self._ordered(self._rows[one], self._rows[other], cosine)

    def _ordered(self, one: np.ndarray, other: np.ndarray, cosine: np.ndarray) -> Pairs:
        after = self._rank[one] > self._rank[other]
        return Pairs(np.where(after, one, other), np.where(after, other, one), cosine)

    def _all_pairs(self, among: np.ndarray) -> Iterator[Pairs]:
        chosen = self._chosen(among)
        for places in self._by_cluster(chosen):
            for late, early, cosine in self._products(places, places):  # places are in the order of preference
                yield Pairs(late, early, cosine)
        yield from self._across(chosen, chosen)

    def _products(self, mine: Places, theirs: Places) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (row, other row, cosine) of the ties between two sets of one cluster's rows, block by block.

        If both are the same set, each pair is yielded once, and only blocks on and below the diagonal are multiplied.
        """
        one = self._near(mine)
        other = one if mine is theirs else self._near(theirs)
        self._release()
        rows, columns = self._rows[mine], self._rows[theirs]
        for start in range(0, len(one), BLOCK_ROWS):
            block = slice(start, min(start + BLOCK_ROWS, len(one)))
            for begin in range(0, block.stop if mine is theirs else len(other), BLOCK_ROWS):
                at, to, cosine = one.pairs(block, other, slice(begin, min(begin + BLOCK_ROWS, len(other))))
                yield rows[at], columns[to], cosine
        self._release()

    def _release(self) -> None:
        release(self._vectors)
        if self._folded is not None:
            release(self._folded)


def _size(places: Places) -> int:
    return len(places) if isinstance(places, np.ndarray) else places.stop - places.start


def _thinned(count: int, links: np.ndarray) -> np.ndarray:
    """Return fewer pairs that link the same rows of `count`: int64 (m, 2)."""
    first = roots(count, links)
    rows = np.flatnonzero(first != np.arange(count))
    return np.stack([rows, first[rows]], axis=1)


def _spilled(
    inputs: Inputs, path: Path, column: str, ids: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Write the vectors of `rows` to disk in that order; return (float16 (m, d), mapped; which are usable, (m,))."""
    place = np.full(len(ids), -1, np.int64)
    place[rows] = np.arange(len(rows))
    asked = asked_vectors(inputs, column, ids, place >= 0)
    dim = width(inputs.schema("embeddings"), column)
    return spill(((place[at], vectors) for at, vectors in asked), path, len(rows), dim)


def _present(rows: np.ndarray, vectors: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove rows without a usable vector, in place."""
    if there.all():
        return rows, vectors
    present = np.flatnonzero(there)
    for start in range(0, len(present), 65536):
        piece = present[start : start + 65536]
        vectors[start : start + len(piece)] = vectors[piece]
        release(vectors)
    return rows[present], vectors[: len(present)]
