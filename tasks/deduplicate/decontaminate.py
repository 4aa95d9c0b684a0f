"""`use: decontaminate`: remove copies of evaluation images: exact, of pixels, perceptual, or semantic."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from catalog.decisions import Numbers, decisions
from catalog.errors import RecipeError, nearest
from catalog.inputs import Inputs, as_matrix
from catalog.schema import DECISIONS
from tasks.deduplicate import _exact as exact
from tasks.deduplicate import _perceptual as perceptual
from tasks.deduplicate._evaluation import CHUNK_ROWS, GIVEN, Evaluation, EvaluationSet, read
from tasks.deduplicate._perceptual import MOST_RADIUS
from tasks.encoders.encoder import encoder_of
from tasks.stage import Batches, Columns, Run, Tables, TableStage
from tasks.vectors.columns import vector_column, width
from tasks.vectors.mapped import usable
from tasks.vectors.unit_rows import UnitRows

REASONS: Final = (
    None, "contaminated_exact", "contaminated_pixels", "contaminated_perceptual", "contaminated_semantic"
)  # fmt: skip
"""By code: 0 is kept; then by strength, the strongest first."""
EXACT, PIXELS, LOOKS, MEANING = range(1, len(REASONS))
ROWS: Final = 8192
TARGETS: Final = 16_384
"""Rows of the dataset, and of the evaluation sets, multiplied at once: 512 MB of products."""


@dataclass
class Matches:
    """The evaluation image that each row of a batch duplicates; arrays (n,)."""

    reason: np.ndarray
    """int8: index into `REASONS`."""
    target: np.ndarray
    """int64: place among the evaluation images; -1 for none."""
    similarity: np.ndarray
    """float32: cosine to it; 1 for the same bytes or pixels, NaN if unknown."""
    bits: np.ndarray
    """int8: differing bits of the hashes."""


class Decontaminate(TableStage):
    """Remove rows that duplicate an image of the evaluation sets. Writes `decisions`.

    The reason of a row is the strongest kind that ties it to an evaluation image: the same bytes, the same pixels,
    perceptual hashes within `radius`, or a cosine above 1 - `epsilon`; its evidence names the set, and the row in it:
    the nearest image of that kind, and in a tie the first. Evaluation images are hashed as in `download`, and encoded
    by the encoder that made the column of vectors. `reason like 'contaminated_%'` selects the removed rows in
    `decisions`; they have no representative.
    """

    use: Literal["decontaminate"] = "decontaminate"
    table = "decisions"
    shares_table = True
    verdict = "keep"
    thresholds = ("epsilon", "radius")
    reads_versions = True
    sets: tuple[EvaluationSet, ...] = Field(
        min_length=1, description="the evaluation sets: Parquet files, or versions of other datasets"
    )
    exact: bool = Field(True, description="the same file: equal SHA-256")
    pixels: bool = Field(False, description="the same picture with any metadata: equal digests of the pixels")
    radius: int | None = Field(
        3, ge=0, le=MOST_RADIUS, description="perceptual copies: maximum number of differing bits of 64; null: off"
    )
    epsilon: float | None = Field(
        None, gt=0, le=1, description="semantic copies: 1 - the cosine above which a row is removed; default: off"
    )
    encoder: str = Field("", description="embedding column to compare by; default: the first one")

    @model_validator(mode="after")
    def _distinct(self) -> "Decontaminate":
        names = [one.name for one in self.sets]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"two sets are named {doubled[0]!r}: give them other names")
        return self

    def inputs(self, available: Tables) -> Columns:
        columns: dict[str, tuple[str, ...]] = {}
        names = tuple(name for name in self.asked() if name != "vector")
        if names:
            columns["images"] = _known(available, names)
        if self.epsilon is not None:
            column = vector_column(available, self.encoder)
            columns["embeddings"] = (column,)
            if self._encodes():
                encoder_of(available["embeddings"], column)  # the metadata must have the encoder
        if not columns:
            raise RecipeError("decontaminate has nothing to do: exact and pixels are off, radius and epsilon are null")
        column = next(iter(columns.get("embeddings", ())), "")
        for one in self.sets:
            one.check(self.asked(), column, available)
            columns |= one.reads(self.asked(), column)
        return columns

    def sides(self, available: Tables) -> tuple[str, ...]:
        """Return `models` if the evaluation sets are embedded by an encoder that the recipe trains."""
        if self.epsilon is None or not self._encodes():
            return ()
        encoder = encoder_of(available["embeddings"], vector_column(available, self.encoder))
        return () if encoder.trained is None else ("models",)

    def sides_hashed_as_inputs(self) -> tuple[str, ...]:
        return ("models",)

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    def parameters(self) -> dict[str, Any]:
        """Return the fields, with the sets' files by content: moving one changes nothing."""
        return super().parameters() | {"sets": [one.parameters() for one in self.sets]}

    def run(
        self, inputs: Inputs, run: Run, *, rows: int = ROWS, targets: int = TARGETS, chunk_rows: int = CHUNK_ROWS
    ) -> Batches:
        """Yield the decisions. `rows` and `targets` are multiplied at once; `chunk_rows`: see `_evaluation.read`."""
        evaluation = self._read(inputs, run, chunk_rows)
        matcher = _Matcher(self, evaluation, inputs, run, targets)
        counts = np.zeros((len(self.sets), len(REASONS)), np.int64)
        done, total = 0, inputs.rows()
        for batch in inputs.batches(self._reads(inputs), rows):
            found = matcher(batch)
            of = found.target >= 0
            np.add.at(counts, (evaluation.set[found.target[of]], found.reason[of]), 1)
            done += batch.num_rows
            run.progress(done, total)
            yield self._decisions(batch.column("sample_id"), found, evaluation)
        run.note(rows=total, kept=total - int(counts.sum()))
        run.note(sets={one.name: evaluation.facts(at) | _named(counts[at]) for at, one in enumerate(self.sets)})

    def asked(self) -> tuple[str, ...]:
        """Return the columns of `GIVEN` by which rows are compared."""
        wanted = (self.exact, self.pixels, self.radius is not None, self.epsilon is not None)
        return tuple(name for name, is_wanted in zip(GIVEN, wanted, strict=True) if is_wanted)

    def _encodes(self) -> bool:
        """Return whether an evaluation image has to be encoded."""
        return self.epsilon is not None and any(one.image is not None and one.vector is None for one in self.sets)

    def _reads(self, inputs: Inputs) -> Columns:
        """Return the columns of the dataset by which rows are compared."""
        columns: Columns = {}
        images = tuple(name for name in self.asked() if name != "vector")
        if images:
            columns["images"] = images
        if self.epsilon is not None:
            columns["embeddings"] = (self._column(inputs),)
        return columns

    def _column(self, inputs: Inputs) -> str:
        return vector_column({"embeddings": inputs.schema("embeddings")}, self.encoder)

    def _read(self, inputs: Inputs, run: Run, chunk_rows: int) -> Evaluation:
        dim, model, column = 0, None, ""
        if self.epsilon is not None:
            column = self._column(inputs)
            dim = width(inputs.schema("embeddings"), column)
            if self._encodes():
                from tasks.encoders.model import load

                sides = {"models": inputs.whole("models")} if "models" in inputs else {}
                model = load(encoder_of(inputs.schema("embeddings"), column), run.device, sides)
        return read(self.sets, self.asked(), dim, model, inputs, column, run, chunk_rows)

    def _decisions(self, ids: pa.ChunkedArray, found: Matches, evaluation: Evaluation) -> pa.Table:
        reason = pa.array(REASONS, pa.string()).take(pa.array(found.reason))
        similarity = pa.array(found.similarity, mask=np.isnan(found.similarity))
        evidence, numbers = self._evidence(found, evaluation), self._numbers(found, evaluation)
        return decisions(ids, self.name, reason, evidence, numbers, similarity=similarity)

    def _numbers(self, found: Matches, evaluation: Evaluation) -> Numbers:
        """Return the numbers in the evidence: float64 (n,) each, NaN where it does not mention them."""
        means = found.reason == MEANING
        return {
            "row": np.where(found.target >= 0, evaluation.row[np.maximum(found.target, 0)], np.nan),
            "bits": np.where(found.reason == LOOKS, found.bits, np.nan),
            "cosine": np.where(means, found.similarity, np.nan),
            "epsilon": np.where(means, self.epsilon or np.nan, np.nan),
        }

    def _evidence(self, found: Matches, evaluation: Evaluation) -> pa.Array:
        at = np.maximum(found.target, 0)
        names = pa.array([one.name for one in self.sets]).take(pa.array(evaluation.set[at]))
        kinds = pa.array(["row " if one.version is None else "sample " for one in self.sets])
        kind = kinds.take(pa.array(evaluation.set[at]))
        image = _joined(kind, pc.cast(pa.array(evaluation.row[at]), pa.string()), " of ", names)
        shown = pc.cast(pc.round(pa.array(found.similarity.astype(np.float64)), 4), pa.string())
        bits = pc.cast(pa.array(found.bits), pa.string())
        cases = [pa.array(found.reason == code) for code in range(len(REASONS))]
        return pc.case_when(
            pa.StructArray.from_arrays(cases, [reason or "kept" for reason in REASONS]),
            "in none of the evaluation sets",
            _joined("same SHA-256 as ", image),
            _joined("same pixels as ", image),
            _joined("perceptual hash ", bits, " bits from that of ", image),
            _joined("cosine ", shown, " to ", image, f", epsilon {self.epsilon or 0:g}"),
        )


class _Matcher:
    """Finds the evaluation image that each row of a batch duplicates."""

    def __init__(
        self, stage: Decontaminate, evaluation: Evaluation, inputs: Inputs, run: Run, targets_at_once: int
    ) -> None:
        self._stage, self._targets, self._run, self._at_once = stage, evaluation.targets, run, targets_at_once
        targets = evaluation.targets
        self._bytes = _Digests(targets.bytes, targets.has_bytes)
        self._pixels = _Digests(targets.pixels, targets.has_pixels)
        self._hashes = self._near_hashes(inputs) if stage.radius is not None else None
        self._vector_at = np.flatnonzero(targets.has_vector)
        self._units = UnitRows(targets.vector[self._vector_at], run.device)

    def _near_hashes(self, inputs: Inputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (hashes of rows that are near a target's, int64 (h,), ascending; the nearest target; bits apart)."""
        assert self._stage.radius is not None
        columns = (batch.column("phash") for batch in inputs.batches({"images": ("phash",)}))
        seen = [np.unique(column.drop_null().to_numpy()) for column in columns]
        values = np.unique(np.concatenate([np.empty(0, np.int64), *seen]))
        values = values[perceptual.is_meaningful(values)]
        known = np.flatnonzero(self._targets.has_phash)
        others, first = np.unique(self._targets.phash[known], return_index=True)
        pairs = perceptual.between(values, others, self._stage.radius, self._run.scratch)
        bits = perceptual.distance(values[pairs[:, 0]], others[pairs[:, 1]])
        target = known[first[pairs[:, 1]]]
        order = np.lexsort((target, bits, pairs[:, 0]))
        order = order[np.r_[True, np.diff(pairs[order, 0]) != 0][: len(order)]]
        return values[pairs[order, 0]], target[order], bits[order].astype(np.int8)

    def __call__(self, batch: pa.Table) -> Matches:
        """Return the matches of a batch's rows, each of the strongest kind."""
        count, stage = batch.num_rows, self._stage
        found = Matches(
            np.zeros(count, np.int8), np.full(count, -1, np.int64), np.full(count, np.nan, np.float32),
            np.zeros(count, np.int8),
        )  # fmt: skip
        if stage.epsilon is not None:
            self._by_meaning(found, batch.column(next(n for n in batch.column_names if n not in _IMAGES)))
        if self._hashes is not None:
            self._by_looks(found, batch.column("phash"))
        if stage.pixels:
            self._by_digest(found, batch.column(exact.PIXELS), self._pixels, PIXELS)
        if stage.exact:
            self._by_digest(found, batch.column(exact.BYTES), self._bytes, EXACT)
        return found

    def _by_digest(self, found: Matches, column: pa.ChunkedArray, digests: "_Digests", code: int) -> None:
        target = digests.find(*exact.parse(column))
        rows = np.flatnonzero(target >= 0)
        found.reason[rows], found.target[rows], found.similarity[rows] = code, target[rows], 1

    def _by_looks(self, found: Matches, column: pa.ChunkedArray) -> None:
        assert self._hashes is not None
        values, target, bits = self._hashes
        if len(values) == 0:
            return
        mine = pc.fill_null(column, 0).to_numpy()  # 0 is the hash of a flat image, which is never among the values
        at = np.minimum(np.searchsorted(values, mine), len(values) - 1)
        rows = np.flatnonzero(values[at] == mine)
        other = found.target[rows] != target[at[rows]]
        found.similarity[rows[other]] = np.nan
        found.reason[rows], found.target[rows], found.bits[rows] = LOOKS, target[at[rows]], bits[at[rows]]

    def _by_meaning(self, found: Matches, column: pa.ChunkedArray) -> None:
        import torch

        assert self._stage.epsilon is not None
        present = np.flatnonzero(column.is_valid().to_numpy())
        if len(present) == 0 or len(self._units) == 0:
            return
        vectors = as_matrix(column.drop_null())
        good = usable(vectors)
        rows, unit = present[good], UnitRows(vectors[good], self._run.device)[0 : int(good.sum())]
        best = torch.full((len(rows),), 1 - self._stage.epsilon, device=unit.device)
        at = torch.full((len(rows),), -1, dtype=torch.int64, device=unit.device)
        for start in range(0, len(self._units), self._at_once):
            stop = min(start + self._at_once, len(self._units))
            value, place = (unit @ self._units[start:stop].T).max(dim=1)
            more = value > best
            best[more], at[more] = value[more], place[more] + start
        hit = (at >= 0).cpu().numpy()
        rows = rows[hit]
        found.reason[rows] = MEANING
        found.target[rows] = self._vector_at[at.cpu().numpy()[hit]]
        found.similarity[rows] = best.cpu().numpy()[hit]


_IMAGES: Final = ("sample_id", exact.BYTES, exact.PIXELS, "phash")


class _Digests:
    """A look-up table of the digests of evaluation images: the first image of each, sorted by the first word."""

    def __init__(self, words: np.ndarray, known: np.ndarray) -> None:
        """`words`: uint64 (m, 2); `known`: bool (m,)."""
        place = np.flatnonzero(known)
        _, first = np.unique(words[place], axis=0, return_index=True)
        self._place = place[first]  # sorted by the first word, then the second
        self._words = words[self._place]

    def find(self, words: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return the first image with the same digest, int64 (n,); -1 for none. `words`: uint64 (n, 2)."""
        found = np.full(len(words), -1, np.int64)
        start = np.searchsorted(self._words[:, 0], words[:, 0])
        for step in range(self._widest()):  # one, unless two digests share 64 bits
            at = np.minimum(start + step, len(self._words) - 1)
            same = known & (self._words[at] == words).all(axis=1)
            found[same] = self._place[at[same]]
        return found

    def _widest(self) -> int:
        _, counts = np.unique(self._words[:, 0], return_counts=True)
        return int(counts.max(initial=0))


def _known(available: Tables, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `names`. Raises RecipeError unless they are columns of images."""
    if "images" not in available:
        raise RecipeError("decontaminate reads images: put a stage `use: download` before it")
    there = available["images"].names
    for name in names:
        if name not in there:
            raise RecipeError(f"decontaminate reads images.{name}, which does not exist{nearest(name, there)}")
    return names


def _named(counts: np.ndarray) -> dict[str, int]:
    return {reason: int(n) for reason, n in zip(REASONS, counts, strict=True) if reason is not None}


def _joined(*pieces: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*pieces, "")
