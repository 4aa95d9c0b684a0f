"""What every stage is: a pydantic model whose fields are what a recipe can specify, in one of two shapes.

A `MapStage` turns batches of one part into batches of one part; it runs on a pool of actors, and its heavy state
is made once per actor, in `open`. A `TableStage` sees whole tables and writes one.

    MapStage.open(device, sides)  ->  step;   step(batches) -> batches
    TableStage.run(inputs, run)   ->  batches

Both declare which columns they read (`inputs`) and which they write (`output`), so a recipe is checked, and its
fingerprints are computed, before anything runs. Nothing here knows Ray, Prefect or a path of the catalog.

What is known about a method is declared in its class, and has a default here: how its work grows (`work`), how a probe
reduces it (`reduced`), what a probe cannot show of it (`sampling_caveats`), which column says that a row is kept
(`verdict`), which fields explain a decision (`thresholds`). These are class variables and methods, never fields, so
none of them is in a fingerprint.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NamedTuple, Protocol, Self, TypeVar, get_args, get_origin

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from catalog.inputs import Inputs
from tasks.first_fields import FIRST_FIELDS

Tables = Mapping[str, pa.Schema]
"""The tables that earlier stages write, by name, with their schemas. That of a table with several rows a sample has the
metadata key SEVERAL (`has_several`)."""

SEVERAL: Final = b"espalier.several_rows_per_sample"

Columns = dict[str, tuple[str, ...]]
"""Table -> the columns of it that a stage reads (without `sample_id`, which is always there)."""

Batches = Iterable[pa.Table]
Step = Callable[[Iterator[pa.Table]], Batches]
"""Batches of one part in, batches of one part out, both in `sample_id` order. A step may hold batches back
(to decode the next one while the device works), may cut them otherwise, and must yield every row exactly once."""

T = TypeVar("T")
R = TypeVar("R")
State = TypeVar("State")


class Config(BaseModel):
    """Base of whatever a recipe may say: frozen; unknown keys, and numbers that are infinite or none, are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    def settings(self) -> dict[str, Any]:
        """Return the fields as JSON values, in the form that fingerprints are made of.

        A field is omitted at its default, so that a later version can add optional fields to any configuration
        without a change of fingerprints. Fields that name the kind of a configuration (`use`, `method`: literals of
        one value) are never omitted, nor are those of `FIRST_FIELDS`.
        """
        return dict(_pruned(self, self.model_dump(mode="json")))

    def _counts(self, name: str, info: FieldInfo) -> bool:
        """Return whether a field is among the settings."""
        return name in _first_fields(type(self)) or self._differs(name, info)

    def _differs(self, name: str, info: FieldInfo) -> bool:
        """Return whether a field differs from its default. Discriminators always do: they select the class."""
        if get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1:
            return True
        return bool(getattr(self, name) != info.get_default(call_default_factory=True, validated_data={}))


def _pruned(value: Any, dumped: Any) -> Any:
    """Return the JSON of a value without the fields of configurations that do not count."""
    if isinstance(value, Config):
        fields = type(value).model_fields.items()
        return {name: _pruned(getattr(value, name), dumped[name]) for name, info in fields if value._counts(name, info)}
    if isinstance(value, Mapping):
        return {key: _pruned(one, dumped[key]) for key, one in zip(dumped, value.values(), strict=True)}
    if isinstance(value, list | tuple):
        return [_pruned(one, its) for one, its in zip(value, dumped, strict=True)]
    return dumped


@cache
def _first_fields(model: type[Config]) -> frozenset[str]:
    """Return the fields of a class that are part of fingerprints even at their default."""
    bases = [f"{base.__module__.removeprefix('tasks.')}.{base.__name__}" for base in model.__mro__]
    return frozenset(name for base in bases for name in FIRST_FIELDS.get(base, "").split())


class Resources(Config):
    """What one actor (or one run) of a stage asks for. Never part of a fingerprint: it changes no result."""

    cpus: float = Field(1, gt=0, description="cores, and threads of the numeric libraries, of one actor")
    gpus: float | Literal["auto"] = Field(0.0, description="GPUs of one actor; auto: one where there is one")
    memory_gb: float | None = Field(None, gt=0, description="memory of one actor, for placement")
    batch_rows: int = Field(1024, gt=0, description="rows handed to a step at once")
    actors: int | None = Field(None, gt=0, description="size of the pool; default: as many as the cluster holds")


class Size(NamedTuple):
    """The size of a build. A stage's work is a function of it and of the stage's own fields (steps, iterations)."""

    rows: int
    """Rows of the source. A stage may see fewer of them, because earlier stages reject some."""
    clusters: int = 1
    """The largest number of clusters that a stage of the recipe makes; 1 where none makes any."""

    @classmethod
    def of(cls, rows: int, stages: "Iterable[Stage]") -> Self:
        """Return the size of a build of these stages over a source of `rows` rows."""
        return cls(rows, max((stage.cluster_count for stage in stages), default=0) or 1)


class Stage(Config, ABC):
    """One step of a recipe. Subclasses add `use: Literal["x"] = "x"` and their own fields."""

    version: ClassVar[int] = 1
    """Raise it when the output changes for the same input: it is in the fingerprint."""
    table: ClassVar[str]
    """The table that this stage writes."""
    shares_table: ClassVar[bool] = False
    """Whether other stages may write the same table."""
    rows_per_sample: ClassVar[Literal["one", "several", "none"]] = "one"
    """How many rows its table has for each sample that it reads; `none` where its rows are not about samples. A table
    with `several` (views of an image, soft labels) is never joined to others by `sample_id`, nor to `samples`."""
    verdict: ClassVar[Literal["", "status", "keep"]] = ""
    """The column of its table that says which rows are kept: `status` where a row can fail, `keep` where the stage
    rejects rows. Empty where every row is kept."""
    thresholds: ClassVar[tuple[str, ...]] = ()
    """The fields that `espalier why` shows beside a decision of this stage."""
    grows_with: ClassVar[str] = "rows"
    """What `work` depends on, in the words of a forecast: `rows`, `rows * k`, `steps`."""
    alive_only: ClassVar[bool] = True
    """Whether the input lacks the rows that failed or that an earlier stage rejected."""
    reads_versions: ClassVar[bool] = False
    """Whether it can read tables of the versions of other datasets that a recipe names in `from:` (`real.images`). The
    tables that `inputs`, `sides` and `output` are given then include those. A MapStage reads them as side tables."""
    seeded: ClassVar[bool] = False
    """Whether the result depends on the recipe's seed (which then is in the fingerprint)."""

    use: str
    name: str = Field("", description="how this stage is called; default: what it uses")
    resources: Resources = Resources()

    def model_post_init(self, context: Any) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.use)

    @abstractmethod
    def inputs(self, available: Tables) -> Columns:
        """Return the columns to read. Raises RecipeError where `available` lacks them."""

    @abstractmethod
    def output(self, available: Tables) -> pa.Schema:
        """Return the schema of the table that it writes (roles `image` and `sidecar` as the step yields them)."""

    def sides(self, available: Tables) -> tuple[str, ...]:
        """Return the side tables: those that `open` or `run` reads whole, beside its rows (centroids, models)."""
        return ()

    def sides_hashed_as_inputs(self) -> tuple[str, ...]:
        """Return the side tables that fingerprints have among the inputs, as when `inputs` declared them.

        Only for stages of which parts were made before they had `sides`: another place would change the fingerprints.
        """
        return ()

    def expand(self) -> tuple["Stage", ...]:
        """Return the stages that this entry of a recipe stands for (k-means: fit the centroids, then assign)."""
        return (self,)

    def parameters(self) -> dict[str, Any]:
        """Return what the stage contributes to its fingerprints: its settings without those that change no result."""
        return {name: value for name, value in self.settings().items() if name != "resources"}

    @property
    def fails_rows(self) -> bool:
        """Whether a row can fail in this stage: its table then has the columns `status` and `reason`."""
        return self.verdict == "status"

    @property
    def cluster_count(self) -> int:
        """The number of clusters that this stage makes, or the largest that it may choose; 0 where it makes none."""
        return 0

    def work(self, size: Size) -> float:
        """Return the work of this stage in a build of this size, in any unit; a forecast measures the time per unit.

        The default grows with the rows of the source.
        """
        return float(size.rows)

    def reduced(self, rows: int, of: int) -> Self:
        """Return the stage as a probe runs it on `rows` of the `of` rows of a source.

        Settings that need many rows, or that make the probe as long as the build, are reduced in proportion. The
        default changes nothing.
        """
        return self

    def sampling_caveats(self) -> tuple[str, ...]:
        """Return, a sentence each, what the rows of a probe cannot show of this stage. The default has none."""
        return ()


def has_several(schema: pa.Schema) -> bool:
    """Return whether a table that a stage is given has several rows a sample."""
    return SEVERAL in (schema.metadata or {})


class MapStage(Stage):
    """Part in, part out."""

    @abstractmethod
    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        """Load models, open sessions; return the step. `device` is `cpu` or `cuda`. Called once an actor.

        An input batch has `sample_id` and the columns that `inputs` names, joined (column names are unique over
        the tables that a stage reads); the virtual column `images.image` (large_binary) holds the encoded bytes,
        read from the shards. Every input row must come out exactly once, in order; with `rows_per_sample = "several"`
        at least once, its rows together.
        """


class Run(Protocol):
    """What a TableStage may use of the place where it runs."""

    seed: int
    """Derived from the recipe's seed and the stage's name; never from time, worker or order."""
    device: str
    stages: tuple[str, ...]
    """Names of the stages before this one, in the order in which they ran."""
    scratch: Path
    """An empty local folder, removed afterwards (memory maps, external sorts)."""
    checkpoints: Path
    """A local folder that survives a kill and belongs to this very fingerprint: work that takes hours leaves its
    state here (write to a temporary name, then rename) and continues from it. Removed when the part is written."""

    def progress(self, done: int, total: int, unit: str = "rows") -> None:
        """Show how far it is."""

    def note(self, **facts: Any) -> None:
        """Keep facts beside the part, in its file (deterministic ones: sample sizes, entropies, clamped clusters)."""

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Apply a picklable function to every item, distributed over the cluster; results in the items' order."""

    def reduce(self, reducer: "Reducer[State, R]", columns: Columns) -> R:
        """Run a mergeable statistic over all alive rows of the input, part by part, distributed over the cluster."""


class Reducer(Protocol[State, R]):  # type: ignore[misc]  # R only leaves, State goes both ways
    """A statistic of any number of parts in one pass: FID moments, k-means sums, histograms. Picklable."""

    def init(self) -> State:
        """Return the state of no rows."""

    def update(self, state: State, batch: pa.Table) -> State:
        """Return the state with a batch's rows in it."""

    def merge(self, one: State, other: State) -> State:
        """Return the state of both. States are merged in part order, whatever order they were made in."""

    def compute(self, state: State) -> R:
        """Return the statistic."""


class TableStage(Stage):
    """Whole tables in, one table out."""

    @abstractmethod
    def run(self, inputs: Inputs, run: Run) -> Batches:
        """Yield the output in pieces, in `sample_id` order where it has samples; `inputs` has the side tables too."""
