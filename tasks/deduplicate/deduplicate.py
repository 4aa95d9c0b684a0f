"""`use: deduplicate`: leave one of each group of copies, by bytes, by looks, or by meaning."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from catalog.schema import DECISIONS
from tasks.deduplicate import exact, perceptual, semantic
from tasks.deduplicate._base import FIRST, REASONS, Verdicts, order_columns, order_key
from tasks.deduplicate.perceptual import Perceptual
from tasks.deduplicate.semantic import EASY, HARD, Semantic
from tasks.kmeans import vector_column
from tasks.stage import Batches, Columns, Run, Tables, TableStage

PIECE_ROWS = 1 << 17


class Deduplicate(TableStage):
    """Takes out copies, one kind after the other: the same file, then the same looks, then the same meaning.

    Each kind sees the rows that the one before left. `representative` is the row that stays for a copy (but see the
    rule `order` of `Semantic`), `similarity` the cosine to it, 1 for the same file; null for looks. Rows that a kind
    cannot judge (no digest, no hash, no embedding) stay.
    """

    use: Literal["deduplicate"] = "deduplicate"
    table = "decisions"
    seeded = True
    exact: bool = Field(True, description="the same file: equal SHA-256")
    perceptual: Perceptual | None = Field(None, description="the same looks: perceptual hashes within a radius")
    semantic: Semantic | None = Field(None, description="the same meaning: neighbours by cosine within a cluster")
    keep: str | None = Field(
        None, description="which copy stays: first (lowest sample_id), largest (in pixels), random, or a column of "
        "numbers, highest first; default: first, and hard for semantic ones"
    )  # fmt: skip

    def inputs(self, available: Tables) -> Columns:
        columns: dict[str, list[str]] = {}
        wanted = [(self.exact, "sha256"), (self.perceptual is not None, "phash")]
        pixels = [name for asked, name in wanted if asked]
        if pixels:
            if "images" not in available:
                raise RecipeError("deduplicate reads images: put a stage `use: download` before it")
            columns["images"] = pixels
        if self.semantic is not None:
            columns["embeddings"] = [vector_column(available, self.semantic.encoder)]
            if self.semantic.clusters == "auto" and "clusters" in available:
                columns["clusters"] = ["cluster", "distance"]
        if not columns:
            raise RecipeError(
                "deduplicate has nothing to do: exact is off, and there is neither perceptual nor semantic"
            )
        for rule in self._rules():
            for table, names in order_columns(rule, available).items():
                columns[table] = columns.get(table, []) + [n for n in names if n not in columns.get(table, [])]
        return {table: tuple(names) for table, names in columns.items()}

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    def run(self, inputs: Inputs, run: Run) -> Batches:
        verdicts = Verdicts.of(inputs.ids())
        compared = np.ones(len(verdicts.ids), bool)
        if self.exact:
            self._by_bytes(verdicts, inputs, run)
        if self.perceptual is not None:
            self._by_looks(verdicts, inputs, run)
        if self.semantic is not None:
            compared = self._by_meaning(verdicts, inputs, run)
        counts = np.bincount(verdicts.reason, minlength=len(REASONS)).tolist()
        run.note(rows=len(verdicts.ids), **{reason or "kept": n for reason, n in zip(REASONS, counts, strict=True)})
        yield from self._decisions(verdicts, compared)

    def _rules(self) -> set[str]:
        """Return the order rules that need a column looked up."""
        return {self.keep or FIRST, self._order() or FIRST}

    def _order(self) -> str | None:
        """Return the order rule of semantic copies; None for the distance to the centroid."""
        if self.semantic is None:
            return FIRST
        order = self.semantic.order or self.keep or HARD
        return None if order in (HARD, EASY) else order

    def _by_bytes(self, verdicts: Verdicts, inputs: Inputs, run: Run) -> None:
        words, known = exact.digests(inputs, verdicts.ids)
        rows = np.flatnonzero(known)
        key = order_key(self.keep or FIRST, inputs, verdicts.ids, run.seed)
        first = rows[exact.representatives(words[rows], key[rows])]
        out = rows != first
        verdicts.reject(rows[out], "duplicate_exact", first[out], np.ones(int(out.sum()), np.float32))

    def _by_looks(self, verdicts: Verdicts, inputs: Inputs, run: Run) -> None:
        assert self.perceptual is not None
        hashes, known = perceptual.hashes(inputs, verdicts.ids)
        rows = np.flatnonzero(known & verdicts.kept())
        key = order_key(self.keep or FIRST, inputs, verdicts.ids, run.seed)
        gone, stands = perceptual.find(hashes[rows], key[rows], self.perceptual.radius)
        unknown = np.full(len(gone), np.nan, np.float32)
        verdicts.reject(rows[gone], "duplicate_perceptual", rows[stands], unknown)

    def _by_meaning(self, verdicts: Verdicts, inputs: Inputs, run: Run) -> np.ndarray:
        """Return which rows were compared, or were out before: bool (n,)."""
        assert self.semantic is not None
        order = self._order()
        key = None if order is None else order_key(order, inputs, verdicts.ids, run.seed)
        asked = verdicts.kept()
        gone, stands, cosine, compared = semantic.find(inputs, run, self.semantic, verdicts.ids, asked, key)
        verdicts.reject(gone, "duplicate_semantic", stands, cosine)
        return np.asarray(compared | ~asked)

    def _decisions(self, verdicts: Verdicts, compared: np.ndarray) -> Iterator[pa.Table]:
        at = verdicts.representative
        copies = np.bincount(at[at >= 0], minlength=len(at))
        for start in range(0, len(verdicts.ids), PIECE_ROWS):
            piece = slice(start, start + PIECE_ROWS)
            reason = pa.array(REASONS, pa.string()).take(pa.array(verdicts.reason[piece]))
            stands, cosine = at[piece], verdicts.similarity[piece]
            columns = {
                "sample_id": pa.array(verdicts.ids[piece]),
                "stage": pa.repeat(self.name, len(stands)),
                "keep": reason.is_null(),
                "reason": reason,
                "evidence": self._evidence(verdicts.reason[piece], cosine, copies[piece], compared[piece]),
                "representative": pa.array(verdicts.ids[np.maximum(stands, 0)], mask=stands < 0),
                "similarity": pa.array(cosine, mask=np.isnan(cosine)),
            }
            yield pa.table(columns, schema=DECISIONS)

    def _evidence(self, reason: np.ndarray, cosine: np.ndarray, copies: np.ndarray, compared: np.ndarray) -> pa.Array:
        epsilon = self.semantic.epsilon if self.semantic is not None else 0.0
        radius = self.perceptual.radius if self.perceptual is not None else 0
        shown = pc.cast(pc.round(pa.array(cosine.astype(np.float64)), 4), pa.string())
        near = pc.binary_join_element_wise("cosine ", shown, f" to its representative, epsilon {epsilon:g}", "")
        stands = pc.binary_join_element_wise("stands for ", pc.cast(pa.array(copies), pa.string()), " copies", "")
        alone = pc.if_else(pa.array(compared), "no copy found", "no usable embedding: not compared by meaning")
        kept = pc.if_else(pa.array(copies > 0), stands, alone)
        exact_, looks = REASONS.index("duplicate_exact"), REASONS.index("duplicate_perceptual")
        cases = [pa.array(reason == code) for code in (0, exact_, looks)]
        conditions = pa.StructArray.from_arrays(cases, ["kept", "exact", "looks"])
        looks_like = f"perceptual hash within {radius} bits of its representative's"
        return pc.case_when(conditions, kept, "same SHA-256", looks_like, near)
