"""What the combinations of selectors share: members with labels, seeds and notes of their own."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from catalog.errors import RecipeError
from catalog.inputs import Inputs
from tasks.prune._base import Evidence, Measured, Selection, Selector
from tasks.stage import Columns, Reducer, Resources, Run, Tables
from tasks.vectors.seeds import derived_seed

if TYPE_CHECKING:
    from tasks.prune import AnyPrune

T = TypeVar("T")
R = TypeVar("R")

KEEP: Final = "keep"
_LABEL: Final = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class MemberVote:
    """The verdict of one member on all n rows, including those that it did not judge."""

    label: str
    seen: np.ndarray
    """bool (n,): the rows that it judged."""
    keep: np.ndarray
    """bool (n,)."""
    evidence: Evidence
    """Null for rows that it did not judge."""
    numbers: Measured
    nested: bool
    """Whether the member is a combination."""


class Combination(Selector):
    """Combine the verdicts of several selectors, each with its own `keep`; the combination has none.

    The rows are read once for all members. A member's label is its `name`, by default its method; its seed is derived
    from the stage's seed and that label. The reason of a rejected row is `pruned_<method>`; its evidence lists which
    members keep and which drop it, with their evidence:

        score keeps: clip_score 0.31, rank 50 of 100 has 0.28; random drops: drawn as 51 of 100

    The numbers say the same: `score.keep` 1, `score.score` 0.31, ..., `random.keep` 0, `random.rank` 51.
    """

    seeded = True
    of: tuple["AnyPrune", ...] = Field(description="the selectors to combine, two or more")

    @model_validator(mode="before")
    @classmethod
    def _no_keep_of_its_own(cls, data: Any) -> Any:
        given = sorted({"keep", "keep_rows", "threshold"} & set(data)) if isinstance(data, dict) else []
        if given:
            raise RecipeError(f"a combination takes no `{given[0]}`: put it into the entries of `of`")
        return data

    @model_validator(mode="after")
    def _sound_members(self) -> Self:
        if len(self.of) < 2:
            raise RecipeError(f"method {self.method} combines two or more selectors in `of`; found {len(self.of)}")
        for label, member in self.members():
            if not _LABEL.fullmatch(label):
                raise RecipeError(f"a selector in `of` is named {label!r}; use only a-z, 0-9, _ and -")
            if member.resources != Resources():
                raise RecipeError(f"the selector {label!r} in `of` has `resources`: they belong to the stage around it")
            if getattr(member, "of", None) == "all":
                raise RecipeError(
                    f"the selector {label!r} is `of: all`, which a combination does not support: use intersection "
                    "(both fractions are of the same rows), or `of_total` of method then"
                )
        return self

    def reduced(self, rows: int, of: int) -> Self:
        return self.model_copy(update={"of": tuple(member.reduced(rows, of) for member in self.of)})

    def members(self) -> list[tuple[str, Selector]]:
        """Return the members with their labels; a repeated label gets a number: score, score-2."""
        named = [member.method if member.name == member.use else member.name for member in self.of]
        seen: Counter[str] = Counter()
        labels = []
        for name in named:
            seen[name] += 1
            labels.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
        if len(set(labels)) < len(labels):
            raise RecipeError(f"two selectors in `of` are named {Counter(labels).most_common(1)[0][0]!r}: name them")
        return list(zip(labels, self.of, strict=True))

    def inputs(self, available: Tables) -> Columns:
        """Return what any member reads. Raises RecipeError if two read columns of one name from two tables."""
        columns: Columns = {}
        for _, member in self.members():
            for table, names in member.inputs(available).items():
                columns[table] = tuple(dict.fromkeys((*columns.get(table, ()), *names)))
        about_samples = [(n, t) for t, names in columns.items() if "sample_id" in available[t].names for n in names]
        for name, table in about_samples:
            other = next(t for n, t in about_samples if n == name)
            if other != table:
                raise RecipeError(
                    f"method {self.method} reads both {other}.{name} and {table}.{name}, which have one name; "
                    "use two stages, one after the other"
                )
        return columns

    def sides(self, available: Tables) -> tuple[str, ...]:
        return tuple(dict.fromkeys(side for member in self.of for side in member.sides(available)))

    def sides_hashed_as_inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(side for member in self.of for side in member.sides_hashed_as_inputs()))

    def usable(self, rows: pa.Table) -> np.ndarray:
        return np.ones(rows.num_rows, bool)

    def asked(self, place: int, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> MemberVote:
        """Return the verdict of member `place` on `rows`."""
        label, member = self.members()[place]
        mine = MemberRun(run, label)
        chosen = member.judge(rows, pool, inputs, mine)
        mine.note(kept=int(chosen.keep.sum()))
        every = np.ones(rows.num_rows, bool)
        return MemberVote(label, every, chosen.keep, chosen.evidence, chosen.numbers, isinstance(member, Combination))


class Vote(Combination):
    """Every member judges every row, with fractions of the same rows; their verdicts are combined row by row."""

    decide: ClassVar[np.ufunc]
    """The reduction of bool (n,), one per member."""

    def judge(self, rows: pa.Table, pool: pa.Table, inputs: Inputs, run: Run) -> Selection:
        votes = [self.asked(place, rows, pool, inputs, run) for place in range(len(self.of))]
        keep = self.decide.reduce([one.keep for one in votes])
        run.note(rows=rows.num_rows, kept=int(keep.sum()))
        return Selection(keep, together(votes), numbers_of(votes))


def together(votes: Sequence[MemberVote]) -> Evidence:
    """Join the evidence of all members that judged a row, in their order, with `; `."""

    def of(places: np.ndarray) -> pa.Array:
        columns = [_with_label(one, places) for one in votes]
        return pc.binary_join_element_wise(*columns, "; ", null_handling="skip")

    return of


def numbers_of(votes: Sequence[MemberVote]) -> Measured:
    """Return the numbers of all members that judged a row, in their order: `<label>.keep`, 1 or 0, and its own numbers
    as `<label>.<name>`."""

    def numbers(places: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for one in votes:
            seen = one.seen[places]
            found[f"{one.label}.{KEEP}"] = np.where(seen, one.keep[places].astype(np.float64), np.nan)
            for name, values in one.numbers(places).items():
                found[f"{one.label}.{name}"] = np.where(seen, values, np.nan)
        return found

    return numbers


def _with_label(vote: MemberVote, places: np.ndarray) -> pa.Array:
    verdict = np.where(vote.keep[places], f"{vote.label} keeps: ", f"{vote.label} drops: ")
    text = vote.evidence(places)
    if vote.nested:  # `; ` separates only the members of the outermost combination
        text = pc.binary_join_element_wise("(", pc.replace_substring(text, "; ", " & "), ")", "")
    joined = pc.binary_join_element_wise(pa.array(verdict), text, "")
    return pc.if_else(pa.array(vote.seen[places]), joined, pa.scalar(None, pa.string()))


class MemberRun:
    """The run of one member (`tasks.stage.Run`): it has its own seed and notes, and shares the rest with the stage."""

    def __init__(self, run: Run, label: str) -> None:
        self.seed = derived_seed(run.seed, label)
        self.device = run.device
        self.stages = run.stages
        self.scratch: Path = run.scratch
        self.checkpoints: Path = run.checkpoints
        self._run = run
        self._label = label

    def progress(self, done: int, total: int, unit: str = "rows") -> None:
        self._run.progress(done, total, unit)

    def note(self, **facts: Any) -> None:
        self._run.note(**{f"{self._label}_{name}": fact for name, fact in facts.items()})

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        return self._run.map(function, items)

    def reduce(self, reducer: Reducer[Any, R], columns: Columns) -> R:
        return self._run.reduce(reducer, columns)
