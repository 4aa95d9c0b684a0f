"""`use: deduplicate`: keep one of each group of copies: exact, of pixels, perceptual, or semantic."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from catalog.decisions import Numbers, decisions
from catalog.errors import RecipeError, nearest
from catalog.inputs import Inputs
from catalog.schema import DECISIONS
from tasks.deduplicate import _exact as exact
from tasks.deduplicate import _perceptual as perceptual
from tasks.deduplicate import _semantic as semantic
from tasks.deduplicate._base import (
    EXACT,
    FIRST,
    LOOKS,
    MEANING,
    PIECE_ROWS,
    PIXELS,
    REASONS,
    Best,
    Keep,
    Preference,
    order_columns,
    order_key,
)
from tasks.deduplicate._limits import LIMITS, Limits
from tasks.deduplicate._meaning import Meaning
from tasks.deduplicate._merge import Settled, settle
from tasks.deduplicate._perceptual import Looks, Perceptual
from tasks.deduplicate._semantic import CLUSTER_ROWS, EASY, HARD, Semantic
from tasks.stage import Batches, Columns, Run, Size, Tables, TableStage
from tasks.vectors.columns import vector_column


@dataclass
class Verdicts:
    """The verdict on each of n rows, in `sample_id` order."""

    reason: np.ndarray
    """int8 (n,): index into `REASONS`; 0 is kept."""
    partner: np.ndarray
    """int64 (n,): the row that it is tied to, by its content if another row has the same; -1 for kept rows."""
    content: np.ndarray
    """int8 (n,): EXACT or PIXELS if it has the content of its partner; else 0."""
    tied: np.ndarray
    """int64 (n,): the perceptual or semantic copy that it, or the row with its content, is tied to; -1 for none."""
    representative: np.ndarray
    """int64 (n,): the row that is kept instead; -1 for kept rows."""
    similarity: np.ndarray
    """float32 (n,): cosine to the representative; NaN for kept rows, or if unknown."""
    bits: np.ndarray
    """int8 (n,): differing bits of its perceptual hash and the partner's; -1 if it is no perceptual copy."""
    cosine: np.ndarray
    """float32 (n,): cosine to its semantic copy; NaN for none."""
    meant: np.ndarray
    """int64 (n,): its semantic copy; -1 for none."""
    compared: np.ndarray
    """bool (n,): whether it, or the row with the same content, was compared semantically, if configured."""


class Deduplicate(TableStage):
    """Remove copies of four kinds with one verdict: the same file, the same pixels, perceptual and semantic copies.

    Rows with the same bytes or pixels are one node: the first of them by `keep` is compared for all. Nodes are tied if
    they are perceptual or semantic copies, and one rule determines, over the ties of both kinds, which are kept:
    `greedy` for perceptual ties alone (a row is removed only if a row that is kept is tied to it), else the `rule` of
    `semantic`. Each removed row has

    - a `representative`, which is kept and preferred by `keep`: all rows with one representative are a group;
    - as `reason` the strongest kind that ties it to a row of its group: exact, pixels, perceptual, semantic; but exact
      only if the representative has the same bytes, and pixels only if it has the same pixels: a copy of a removed row
      has the reason of that row;
    - in its `evidence` the row that it is tied to, if that is not the representative, and its other ties;
    - as `similarity` the cosine to the representative: 1 for the same file or pixels, null without vectors.

    Rows that cannot be compared by a kind (no digest, no hash, no embedding) are not tied by it.
    """

    version = 3

    use: Literal["deduplicate"] = "deduplicate"
    table = "decisions"
    shares_table = True
    verdict = "keep"
    thresholds = ("keep", "perceptual", "semantic")
    grows_with = "rows^2 / k"
    seeded = True
    exact: bool = Field(True, description="the same file: equal SHA-256")
    pixels: bool = Field(False, description="the same picture, whatever its metadata: equal digests of the pixels")
    perceptual: Perceptual | None = Field(None, description="perceptual copies: hashes within a radius")
    semantic: Semantic | None = Field(None, description="semantic copies: neighbours by cosine within a cluster")
    keep: Keep | None = Field(
        None, description="which copy to keep: first (lowest sample_id), largest (in pixels), random, or a column of "
        "numbers, highest first, by name or as {best: name}; default: first, or hard with `semantic`"
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_order(self) -> "Deduplicate":
        order = self.semantic.order if self.semantic is not None else None
        keep = self.keep.best if isinstance(self.keep, Best) else self.keep
        if order is not None and keep is not None and keep != order:
            raise ValueError(
                f"keep is {keep!r}, but semantic.order is {order!r}: a group has one order, so specify one of them"
            )
        return self

    def inputs(self, available: Tables) -> Columns:
        columns: dict[str, list[str]] = {}
        wanted = [(self.exact, exact.BYTES), (self.pixels, exact.PIXELS), (self.perceptual is not None, "phash")]
        names = [name for asked, name in wanted if asked]
        if names:
            columns["images"] = _known(available, names)
        if self.semantic is not None:
            columns["embeddings"] = [vector_column(available, self.semantic.encoder)]
            if self.semantic.clusters == "auto" and "clusters" in available:
                columns["clusters"] = ["cluster", "distance"]
        if not columns:
            raise RecipeError(
                "deduplicate has nothing to do: exact and pixels are off, and there is neither perceptual nor semantic"
            )
        for rule in (self.keep or FIRST, self._order() or FIRST):
            for table, more in order_columns(rule, available).items():
                columns[table] = columns.get(table, []) + [n for n in more if n not in columns.get(table, [])]
        return {table: tuple(names) for table, names in columns.items()}

    def sides(self, available: Tables) -> tuple[str, ...]:
        """Return `centroids` if rows are compared across the borders of clusters."""
        reads_clusters = self._borders() and "clusters" in self.inputs(available)
        return ("centroids",) if reads_clusters and "centroids" in available else ()

    def sides_hashed_as_inputs(self) -> tuple[str, ...]:
        return ("centroids",)

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    def work(self, size: Size) -> float:
        """Return the rows that are read; with `semantic`, plus the comparisons within clusters.

        n rows in K clusters are n^2 / K comparisons (SemDeDup, section 3); reading a row costs as much as a hundred.
        """
        if self.semantic is None:
            return float(size.rows)
        wanted = self.semantic.clusters
        clusters = wanted if isinstance(wanted, int) else max(size.clusters, size.rows // CLUSTER_ROWS)
        return size.rows * 100 + size.rows**2 / max(clusters, 1)

    def sampling_caveats(self) -> tuple[str, ...]:
        return ("a sample holds fewer copies than the whole: the build may keep fewer rows than forecast",)

    def run(self, inputs: Inputs, run: Run, limits: Limits = LIMITS) -> Batches:
        ids = inputs.ids()
        verdicts = self._judge(inputs, run, ids, limits)
        counts = np.bincount(verdicts.reason, minlength=len(REASONS)).tolist()
        run.note(rows=len(ids), **{reason or "kept": n for reason, n in zip(REASONS, counts, strict=True)})
        yield from self._decisions(ids, verdicts)

    def _borders(self) -> int:
        return self.semantic.borders if self.semantic is not None else 0

    def _order(self) -> Keep | None:
        """Return the order of preference; None for the distance to the centroid."""
        if self.semantic is None:
            return self.keep or FIRST
        order = self.semantic.order or self.keep or HARD
        return None if order in (HARD, EASY) else order

    def _judge(self, inputs: Inputs, run: Run, ids: np.ndarray, limits: Limits) -> Verdicts:
        content, toward = self._same_content(inputs, run, ids)
        nodes = toward < 0
        order, meaning = self._ordered(inputs, run, ids, nodes, limits)
        looks = None
        if self.perceptual is not None:
            hash_, known = perceptual.hashes(inputs, ids)
            looks = Looks(hash_, known & nodes, self.perceptual.radius, run.scratch)
        found = settle(self.semantic.rule if self.semantic is not None else "greedy", order, looks, meaning)
        if meaning is not None:
            run.note(**meaning.facts())
        return _verdicts(content, toward, nodes, found, looks, meaning)

    def _same_content(self, inputs: Inputs, run: Run, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (reason int8 (n,); the first row with the same content, int64 (n,), -1 where that is the row)."""
        reason, toward = np.zeros(len(ids), np.int8), np.full(len(ids), -1, np.int64)
        if not (self.exact or self.pixels):
            return reason, toward
        key = order_key(self.keep or FIRST, inputs, ids, run.seed)
        for asked, column, code in ((self.exact, exact.BYTES, EXACT), (self.pixels, exact.PIXELS, PIXELS)):
            if asked:
                words, known = exact.digests(inputs, ids, column)
                rows = np.flatnonzero(known & (reason == 0))
                first = rows[exact.representatives(words[rows], key[rows])]
                out = rows != first
                reason[rows[out]], toward[rows[out]] = code, first[out]
        return reason, toward

    def _ordered(
        self, inputs: Inputs, run: Run, ids: np.ndarray, nodes: np.ndarray, limits: Limits
    ) -> tuple[Preference, Meaning | None]:
        """Return (the order of preference of some rows, bool (n,); the finder of semantic ties)."""
        rule = self._order()
        key = None if rule is None else order_key(rule, inputs, ids, run.seed)
        if self.semantic is None:
            assert key is not None
            return Preference(np.flatnonzero(nodes), key), None
        given = semantic.clusters(inputs, run, self.semantic, ids, nodes)
        if key is None:
            key = given.distance if self.semantic.order == EASY else -given.distance
        order = Preference(np.flatnonzero(nodes), key)
        return order, Meaning(inputs, run, self.semantic, ids, given, order, limits)

    def _decisions(self, ids: np.ndarray, verdicts: Verdicts) -> Iterator[pa.Table]:
        at = verdicts.representative
        copies = np.bincount(at[at >= 0], minlength=len(at))
        for start in range(0, len(ids), PIECE_ROWS):
            piece = slice(start, start + PIECE_ROWS)
            reason = pa.array(REASONS, pa.string()).take(pa.array(verdicts.reason[piece]))
            stands, cosine = at[piece], verdicts.similarity[piece]
            yield decisions(
                ids[piece],
                self.name,
                reason,
                self._evidence(ids, verdicts, piece, copies[piece]),
                self._numbers(verdicts, piece, copies[piece]),
                representative=pa.array(ids[np.maximum(stands, 0)], mask=stands < 0),
                similarity=pa.array(cosine, mask=np.isnan(cosine)),
            )

    def _numbers(self, verdicts: Verdicts, piece: slice, copies: np.ndarray) -> Numbers:
        """Return the numbers in the evidence of some rows: float64 (m,) each, NaN where it does not mention them."""
        reason, meant = verdicts.reason[piece], verdicts.meant[piece]
        looks = reason == LOOKS
        means = (reason == MEANING) | (looks & (meant >= 0))
        epsilon = self.semantic.epsilon if self.semantic is not None else np.nan
        return {
            "copies": np.where((reason == 0) & (copies > 0), copies, np.nan),
            "bits": np.where(looks, verdicts.bits[piece], np.nan),
            "cosine": np.where(means, verdicts.cosine[piece], np.nan),
            "epsilon": np.where(means, epsilon, np.nan),
        }

    def _evidence(self, ids: np.ndarray, verdicts: Verdicts, piece: slice, copies: np.ndarray) -> pa.Array:
        """Return the evidence of some rows: string (m,)."""
        reason, stands, content = verdicts.reason[piece], verdicts.representative[piece], verdicts.content[piece]
        epsilon = self.semantic.epsilon if self.semantic is not None else 0.0
        means = _joined(
            "cosine ", _text(verdicts.cosine[piece]), " to ", _who(ids, verdicts, verdicts.meant[piece], stands),
            f", epsilon {epsilon:g}",
        )  # fmt: skip
        also = pc.if_else(pa.array(verdicts.meant[piece] >= 0), _joined("; ", means), "")
        tied = _who(ids, verdicts, verdicts.tied[piece], stands)
        looks = _joined("perceptual hash ", _text(verdicts.bits[piece]), " bits from that of ", tied, also)
        stays = _joined("stands for ", _text(copies), " copies")
        alone = pc.if_else(
            pa.array(verdicts.compared[piece]), "no copy found", "no usable embedding: not compared by meaning"
        )
        kept = pc.if_else(pa.array(copies > 0), stays, alone)
        to = _who(ids, verdicts, verdicts.partner[piece], stands)
        same = pc.if_else(pa.array(content == EXACT), _joined("same SHA-256 as ", to), _joined("same pixels as ", to))
        names = ("kept", "same", "pixels", "looks")
        cases = pa.StructArray.from_arrays([pa.array(reason == code) for code in (0, EXACT, PIXELS, LOOKS)], names)
        why = pc.case_when(cases, kept, "", "same pixels as its representative", looks, means)
        first = pc.if_else(pa.array(reason == content), same, _joined(same, "; ", why))
        return pc.if_else(pa.array((content > 0) & (reason > 0)), first, why)


def _known(available: Tables, names: list[str]) -> list[str]:
    """Return `names`. Raises RecipeError unless they are columns of images."""
    if "images" not in available:
        raise RecipeError("deduplicate reads images: put a stage `use: download` before it")
    for name in names:
        if name not in available["images"].names:
            raise RecipeError(
                f"deduplicate reads images.{name}, which does not exist{nearest(name, available['images'].names)}"
            )
    return names


def _verdicts(
    content: np.ndarray,
    toward: np.ndarray,
    nodes: np.ndarray,
    found: Settled,
    looks: Looks | None,
    meaning: Meaning | None,
) -> Verdicts:
    """Return the verdicts.

    `content` int8 (n,): EXACT or PIXELS where a row has the content of the row `toward`, int64 (n,), -1 for none;
    `nodes` bool (n,): rows that represent their content.
    """
    tied = np.where(found.looks >= 0, found.looks, found.meaning.partner)
    end = _ends(np.where(nodes, found.toward, toward))
    node = np.where(nodes, np.arange(len(nodes)), _leads(toward, nodes))
    reason = np.zeros(len(nodes), np.int8)
    gone = np.flatnonzero(nodes & (end >= 0))
    reason[gone] = np.where(found.looks[gone] >= 0, LOOKS, MEANING)
    twins = np.flatnonzero(~nodes)
    # Not stronger than the tie of the row with its content: if that is removed, the representative's content differs.
    reason[twins] = np.maximum(np.maximum(content[twins], content[toward[twins]]), reason[node[twins]])
    similarity = np.full(len(nodes), np.nan, np.float32)
    if meaning is not None:
        direct = found.meaning.partner[gone] == end[gone]
        similarity[gone[direct]] = found.meaning.cosine[gone[direct]]
        similarity[gone[~direct]] = meaning.cosines(gone[~direct], end[gone[~direct]])
    similarity[twins] = np.where(node[twins] == end[twins], np.float32(1), similarity[node[twins]])
    bits = np.full(len(nodes), -1, np.int8)
    if looks is not None:
        near = gone[found.looks[gone] >= 0]
        bits[near] = perceptual.distance(looks.hash[near], looks.hash[found.looks[near]])
    meant = np.where(nodes & (reason > 0), found.meaning.partner, -1)
    compared = np.ones(len(nodes), bool) if meaning is None else meaning.compared()[node]
    partner = np.where(reason > 0, np.where(nodes, tied, toward), -1)
    cosine = found.meaning.cosine[node]
    return Verdicts(reason, partner, content, tied[node], end, similarity, bits[node], cosine, meant[node], compared)


def _ends(toward: np.ndarray) -> np.ndarray:
    """Return the last row of each row's path, int64 (n,); -1 for rows without a path.

    `toward`: int64 (n,), no cycles. The number of steps is the logarithm of the longest path.
    """
    here = np.arange(len(toward))
    end = np.where(toward < 0, here, toward)
    while (further := end[end] != end).any():
        end[further] = end[end[further]]
    return np.where(end == here, -1, end)


def _leads(toward: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Return the node with each row's content: int64 (n,). The path has two steps: bytes, then pixels."""
    here = np.arange(len(toward))
    first = np.where(nodes, here, toward)
    return np.where(nodes[first], first, toward[first])


def _who(ids: np.ndarray, verdicts: Verdicts, rows: np.ndarray, representatives: np.ndarray) -> pa.Array:
    """Return the description of rows, int64 (m,), relative to their representatives: string (m,)."""
    row = np.maximum(rows, 0)
    other = pc.if_else(pa.array(verdicts.reason[row] > 0), ", a copy itself", ", which stays too")
    return pc.if_else(pa.array(rows == representatives), "its representative", _joined(_text(ids[row]), other))


def _text(numbers: np.ndarray) -> pa.Array:
    if np.issubdtype(numbers.dtype, np.floating):
        return pc.cast(pc.round(pa.array(numbers.astype(np.float64)), 4), pa.string())
    return pc.cast(pa.array(numbers), pa.string())


def _joined(*pieces: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*pieces, "")
