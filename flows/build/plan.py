"""What a build would do: every part of every stage, by fingerprint, before anything runs.

A part's fingerprint is a hash of its stage (use, version, parameters, seed where it matters) and of the fingerprints
of the parts that it reads. So the whole plan follows from the recipe and the source's files; what is there under its
fingerprint is cached, and resuming, caching and growing are the same thing.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalog import numbers
from catalog.dataset import Dataset
from catalog.errors import RecipeError, nearest
from catalog.parts import canonical, fingerprint_of, fingerprint_of_canonical, part_path, written_schema
from catalog.pieces import Piece, Pieces
from catalog.published import SAMPLES, PublishedVersion
from catalog.repair import check_finished, pending
from catalog.schema import role
from catalog.takedown.ledger import check_none_pending
from flows.build.source_digests import Identities
from flows.recipe.recipe import Recipe
from tasks.files.digest import Digested, digested
from tasks.sources import Chunk, Note, Origin, Source, Survey
from tasks.stage import SEVERAL, Columns, Size, Stage, TableStage, has_several

NUMBERS = numbers.STATE
RETRIES = "retries"
"""The dataset's state that records which parts are to retry failed rows, and for which reasons."""


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """One part: what it is called, and which chunk or part of the source it belongs to."""

    fingerprint: str
    number: int | None = None
    rows: int | None = None
    """Rows of the source in it, where that is known before it ran."""
    chunk: Mapping[str, Any] | None = None
    """For a source: the chunk's descriptor."""
    core: str | None = None
    """For a source: what the part is but for its columns."""
    made_of: Mapping[str, str] | None = None
    """For a source: column -> what its values are made from; None where columns are not distinguished."""
    origin: Origin | None = None
    """For a stage that reads the source's files, and the source: which files."""
    earlier: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """For a retry: the attempts before, the newest first: the path, and the requested reasons since.

    The retry starts from the first that exists: an earlier attempt may never have been made, or was collected.
    """

    def seen_by(self, columns: Sequence[str]) -> str:
        """Return the fingerprint of what a stage sees that reads some columns of this part."""
        if self.core is None or self.made_of is None:
            return self.fingerprint
        return fingerprint_of(self.core, {name: self.made_of.get(name) for name in columns})


@dataclass(frozen=True)
class PlannedStage:
    """One stage with its parts, and everything that it reads."""

    stage: Stage
    schema: pa.Schema
    """As the stage yields it; `written` is what the table has."""
    parts: tuple[PlannedPart, ...]
    columns: Columns
    reads: Mapping[str, Pieces]
    """Every table that it reads, with all of its parts: those of `columns`, and side tables."""
    judges: tuple[Pieces, ...]
    finished: Mapping[str, int] = field(repr=False)
    """fingerprint -> bytes, of this stage's parts that were there when the plan was made."""
    files: Mapping[str, Digested] = field(default_factory=dict, repr=False)
    """The local files that its parameters name (lists, weights), as they were when they were planned."""
    before: tuple[str, ...] = ()
    """Names of the stages before it, in order."""
    kept: Mapping[str, Pieces] = field(default_factory=dict, repr=False)
    """The samples of the versions of other datasets of which it reads tables, by the recipe's name."""

    @cached_property
    def written(self) -> pa.Schema:
        return written_schema(self.schema)

    @property
    def sides(self) -> tuple[str, ...]:
        """The side tables: those of which it reads every row, beside its input."""
        return tuple(name for name in self.reads if name not in self.columns)

    @cached_property
    def missing(self) -> tuple[PlannedPart, ...]:
        return tuple(p for p in self.parts if p.fingerprint not in self.finished)

    @property
    def status(self) -> str:
        """`cached`, `to run` or `partly`."""
        if not self.missing:
            return "cached"
        return "to run" if len(self.missing) == len(self.parts) else "partly"

    def paths(self) -> list[str]:
        return [part_path(self.stage.table, p.fingerprint) for p in self.parts]


@dataclass(frozen=True)
class Plan:
    """Every stage of a recipe over one state of its source."""

    recipe: Recipe
    dataset: Dataset
    stages: tuple[PlannedStage, ...]
    inputs: tuple[Mapping[str, Any], ...]
    """The source's files: uri, sha256, rows; and the versions of other datasets that stages read, which have `dataset`
    and `version`."""
    numbers: Mapping[str, int]
    notes: tuple[Note, ...] = ()
    """Notes on the source's files."""
    identities: Identities | None = field(default=None, repr=False, compare=False)
    """The digests of the source's files; they are stored already if the dataset exists."""
    versions: Mapping[str, PublishedVersion] = field(default_factory=dict, repr=False)
    """The versions of other datasets that the recipe names, as they were resolved."""

    @property
    def is_cached(self) -> bool:
        return not any(s.missing for s in self.stages)

    def size(self, parts: Sequence[PlannedPart]) -> Size | None:
        """Return the size of a build of some parts of a stage; None where the rows of one are not known yet."""
        counted = self.stages[0].parts if any(part.number is None for part in parts) else parts
        rows = [part.rows for part in counted if part.rows is not None]
        return Size.of(sum(rows), self.recipe.stages) if len(rows) == len(counted) else None


def make_plan(
    recipe: Recipe,
    dataset: Dataset,
    identify: Callable[[str], str] | None = None,
    retries: Mapping[str, Any] | None = None,
    remember: bool = True,
    survey: Survey | None = None,
    versions: Mapping[str, PublishedVersion] | None = None,
) -> Plan:
    """Plan a build. Nothing is made where there is no dataset yet.

    Args:
        identify: returns the digest of a source file; default: of the dataset's recorded digests, or of its content.
        retries: the retries to plan with; default: those of the dataset.
        remember: record the digests of source files that were read, so that the next plan need not read them again.
        survey: what to build of the source (a probe builds some of its rows); default: all that `Source.survey` finds.
        versions: the versions of other datasets that the recipe names; default: those that the dataset's catalog has
            now. (A probe builds in a catalog that has no other datasets.)

    Raises RecipeError where a stage asks for a table or a column that nothing before it writes, UserError where a
    takedown or a repair was interrupted.
    """
    takedowns = check_none_pending(dataset)
    check_finished(dataset)
    rewritten = takedowns.rewritten()
    source = recipe.source
    identities = Identities(dataset)
    survey = survey or source.survey(identify or identities)
    chunks = survey.chunks
    if not chunks:
        raise RecipeError("the source is empty: it has no rows")
    keys = _chunk_keys(chunks)
    ledger = _numbered(
        dataset, keys, lambda at, n: _source_parts(source, survey.schema, [chunks[at]], [n])[0].fingerprint
    )
    retries = dataset.state(RETRIES) if retries is None else retries
    others = _resolved(recipe, dataset) if versions is None else versions
    published = {name: table for version in others.values() for name, table in _tables_of(version).items()}
    tables: dict[str, _Table] = {}
    planned: list[PlannedStage] = []
    for stage in recipe.steps():
        if isinstance(stage, Source):
            schema = survey.schema
            parts = _source_parts(stage, schema, chunks, [ledger[key] for key in keys])
            planned.append(_planned(dataset, stage, schema, parts, {}, {}, ()))
        else:
            with digested() as files_read:
                stage_plan = _plan_stage(dataset, recipe, stage, tables, published, retries)
            stage_plan = replace(stage_plan, files=files_read, before=tuple(s.stage.name for s in planned))
            planned.append(stage_plan if takedowns.is_empty else _without_taken(stage_plan, tables["source"]))
        before = tables.get(stage.table, _Table(planned[-1].written, rewritten))
        tables[stage.table] = before.with_(stage, planned[-1].parts)
    files = {c.uri: {"uri": c.uri, "sha256": c.identity} for c in chunks}
    rows: dict[str, int] = {}
    for c in chunks:
        rows[c.uri] = rows.get(c.uri, 0) + c.rows
    if remember and dataset.exists():
        identities.save()
    read = {name for stage_plan in planned for name in stage_plan.kept}
    versions_read = (version.input for name, version in others.items() if name in read)
    inputs = (*(f | {"rows": rows[u]} for u, f in files.items()), *versions_read)
    return Plan(recipe, dataset, tuple(planned), inputs, ledger, survey.notes, identities, others)


def _resolved(recipe: Recipe, dataset: Dataset) -> dict[str, PublishedVersion]:
    """Return the versions that a recipe names, in the catalog of the dataset that it builds.

    Raises RecipeError where one is the last version of that dataset itself, which every build would replace.
    """
    if dataset.name in recipe.versions.values():
        raise RecipeError(f"from: {dataset.name!r} is what this recipe builds: name one of its versions, like @1")
    names = recipe.versions.items()
    return {name: PublishedVersion.resolve(dataset.catalog, name, label) for name, label in names}


@dataclass(frozen=True)
class _Published:
    """A table of a version of another dataset."""

    version: PublishedVersion
    table: str
    shown: pa.Schema
    """Its schema, as stages are given it."""

    @property
    def digest(self) -> str:
        return self.version.digest(self.table)

    def pieces(self) -> Pieces:
        return self.version.pieces(self.table)


def _tables_of(version: PublishedVersion) -> dict[str, _Published]:
    """Return the tables of a version, by the names under which stages read them."""
    schemas = version.schemas()
    return {f"{version.name}.{table}": _Published(version, table, schema) for table, schema in schemas.items()}


@dataclass(frozen=True)
class _Table:
    """A table as of a stage: the parts of the stages before it that write it. A value: `with_` makes the next one."""

    schema: pa.Schema
    rewritten: Mapping[str, int]
    """Part -> how many takedowns took rows from it."""
    entries: tuple[tuple[Stage, tuple[PlannedPart, ...]], ...] = ()

    @property
    def shown(self) -> pa.Schema:
        """Its schema, as stages are given it."""
        several = any(stage.rows_per_sample == "several" for stage, _ in self.entries)
        return self.schema.with_metadata({**(self.schema.metadata or {}), SEVERAL: b""}) if several else self.schema

    @property
    def has_verdicts(self) -> bool:
        """Whether it says which rows are kept."""
        return any(stage.verdict in self.schema.names for stage, _ in self.entries)

    def with_(self, stage: Stage, parts: tuple[PlannedPart, ...]) -> "_Table":
        """Return the table as of the next stage."""
        return replace(self, entries=(*self.entries, (stage, parts)))

    @cached_property
    def aligned(self) -> dict[int, list[PlannedPart]]:
        """Part number -> parts, of the stages that work part by part."""
        found: dict[int, list[PlannedPart]] = {}
        for _, parts in self.entries:
            for part in parts:
                if part.number is not None:
                    found.setdefault(part.number, []).append(part)
        return found

    @cached_property
    def unaligned(self) -> list[str]:
        """Fingerprints, of the stages that see whole tables."""
        return [p.fingerprint for _, parts in self.entries for p in parts if p.number is None]

    @cached_property
    def digest(self) -> str:
        """What who reads all of its rows depends on: every part, and which of them have lost rows since."""
        parts = [p.fingerprint for _, parts in self.entries for p in parts]
        lost = [(path, self.rewritten[path]) for path in self.paths() if path in self.rewritten]
        return fingerprint_of(parts, lost) if lost else fingerprint_of(parts)

    def read_by(self, number: int | None, columns: Sequence[str] = ()) -> list[str]:
        """Return the fingerprints of what part `number` (None: a whole table) of a later stage reads.

        A part that reads some columns of a source does not depend on the others.
        """
        if number is None:
            return [self.digest]
        return [*(part.seen_by(columns) for part in self.aligned.get(number, [])), *self.unaligned]

    def paths(self) -> list[str]:
        """Return where its parts lie."""
        return [part_path(stage.table, p.fingerprint) for stage, parts in self.entries for p in parts]

    def pieces(self) -> Pieces:
        """Return its parts, as a stage reads them."""
        return self._pieces

    @cached_property
    def _pieces(self) -> Pieces:
        """The same for all stages that read this state of the table."""
        numbers = (p.number for _, parts in self.entries for p in parts)
        return Pieces(self.schema, tuple(map(Piece, self.paths(), numbers)))


def _plan_stage(
    dataset: Dataset,
    recipe: Recipe,
    stage: Stage,
    tables: Mapping[str, _Table],
    published: Mapping[str, _Published],
    retries: Mapping[str, Any],
) -> PlannedStage:
    readable: dict[str, _Table | _Published] = {**tables, **(published if stage.reads_versions else {})}
    available = {name: table.shown for name, table in readable.items()}
    columns, sides = stage.inputs(available), stage.sides(available)
    _check_reads(stage, columns, sides, readable)
    judging = [table for table in tables.values() if stage.alive_only and table.has_verdicts]
    schema = stage.output(available)
    about = canonical(_about(stage, recipe.seed, schema))
    among_inputs = {*columns, *({*sides} & {*stage.sides_hashed_as_inputs()})} & {*tables}
    whole = canonical([[n, readable[n].digest] for n in sorted({*columns, *sides} - among_inputs)])

    def fingerprint(number: int | None) -> str:
        read = [[n, tables[n].read_by(number, columns.get(n, ()))] for n in sorted(among_inputs)]
        judged = [t.read_by(number) for t in judging]
        return fingerprint_of_canonical(about, canonical(read), whole, canonical(judged))

    parts: list[PlannedPart] = []
    if isinstance(stage, TableStage):
        parts.append(PlannedPart(fingerprint(None)))
    else:
        for part in tables["source"].entries[0][1]:
            origin = part.origin if "local_path" in columns.get("source", ()) else None
            planned = PlannedPart(fingerprint(part.number), part.number, part.rows, origin=origin)
            parts.append(_retried(planned, stage, retries))
    reads = {n: readable[n].pieces() for n in (*columns, *sides)}
    others = {table.version.name: table.version for name, table in published.items() if name in reads}
    found = _planned(dataset, stage, schema, parts, columns, reads, tuple(t.pieces() for t in judging))
    return replace(found, kept={name: version.pieces(SAMPLES) for name, version in others.items()})


def _check_reads(stage: Stage, columns: Columns, sides: Sequence[str], readable: Mapping[str, Any]) -> None:
    """Raise RecipeError where a stage reads a table that does not exist, or that it cannot read part by part."""
    for name in (*columns, *sides):
        if name not in readable:
            writers = "which no stage before it writes" if "." not in name else "which no version in `from:` has"
            raise RecipeError(f"stage {stage.name!r} reads the table {name!r}, {writers}{nearest(name, readable)}")
        judges = stage.verdict == "keep" or not isinstance(stage, TableStage)
        if name in columns and judges and stage.rows_per_sample == "one" and has_several(readable[name].shown):
            raise RecipeError(f"stage {stage.name!r} cannot read the table {name!r}, which has several rows a sample")
        if "." in name and name in columns and not isinstance(stage, TableStage):
            raise RecipeError(f"stage {stage.name!r} works part by part: it can read {name!r} only as a side table")


def _without_taken(planned: PlannedStage, source: _Table) -> PlannedStage:
    """Return a stage that also skips the rows that were taken down by their URL.

    Take-downs enter no fingerprint: they apply whenever a part is read or written.
    """
    if not planned.stage.alive_only or "url" not in source.schema.names:
        return planned
    judge = Pieces(pa.schema([source.schema.field(name) for name in ("sample_id", "url")]), source.pieces().pieces)
    return replace(planned, judges=(*planned.judges, judge))


def _planned(
    dataset: Dataset,
    stage: Stage,
    schema: pa.Schema,
    parts: Sequence[PlannedPart],
    columns: Columns,
    reads: Mapping[str, Pieces],
    judges: tuple[Pieces, ...],
) -> PlannedStage:
    there = dataset.finished(stage.table)
    mine = {p.fingerprint: there[p.fingerprint] for p in parts if p.fingerprint in there}
    return PlannedStage(stage, schema, tuple(parts), columns, reads, judges, mine)


def _about(stage: Stage, seed: int, schema: pa.Schema) -> list[Any]:
    """Return what the stage itself gives to its fingerprints: its parameters, and the columns that it writes, without
    annotations: parts made before a column of those was added stay valid."""
    columns = [[f.name, str(f.type)] for f in written_schema(schema) if role(f) != "annotation"]
    return [stage.use, stage.version, stage.parameters(), seed if stage.seeded else None, columns]


def _source_parts(
    stage: Source, schema: pa.Schema, chunks: Sequence[Chunk], numbers: Sequence[int]
) -> list[PlannedPart]:
    # The place of the file changes nothing in the part, unless the rows contain it.
    hidden = {"layout", "state"} if "local_path" in schema.names else {"layout", "state", "uri"}
    about, parameters = canonical(_about(stage, 0, schema)), canonical(stage.parameters())
    kind = canonical(stage.use), canonical(stage.version), parameters
    parts = []
    for chunk, number in zip(chunks, numbers, strict=True):
        facts, made_of = asdict(chunk), stage.made_of(chunk)
        identity = {k: v for k, v in facts.items() if k not in hidden}
        core = fingerprint_of_canonical(*kind, canonical(identity), canonical(number))
        fingerprint = fingerprint_of_canonical(about, canonical(core), canonical(made_of))
        parts.append(PlannedPart(fingerprint, number, chunk.rows, facts, core, made_of, Origin(stage, chunk)))
    return sorted(parts, key=lambda p: p.number or 0)


def _chunk_keys(chunks: Sequence[Chunk]) -> list[str]:
    """Return what the number of each chunk depends on: its content, not its place; copies differ by their order."""
    seen: Counter[tuple[str, int, int]] = Counter()
    keys = []
    for chunk in chunks:
        content = (chunk.identity, chunk.start, chunk.rows)
        keys.append(fingerprint_of(content, seen[content]))
        seen[content] += 1
    return keys


def _numbered(dataset: Dataset, chunks: Sequence[str], fingerprint: Callable[[int, int], str]) -> dict[str, int]:
    """Return a part number for every chunk: the one it has, or the next that was never given.

    `fingerprint`: chunk and number -> that of the source's part.
    """
    known = numbers.known(dataset)
    if numbers.LOST in known:
        known[numbers.RESERVED] = known.pop(numbers.LOST)
        known |= _found_again(dataset, chunks, fingerprint)
    following = max(known.values(), default=-1) + 1
    for chunk in chunks:
        if chunk not in known:
            known[chunk] = following
            following += 1
    return known


def _found_again(dataset: Dataset, chunks: Sequence[str], fingerprint: Callable[[int, int], str]) -> dict[str, int]:
    """Return the numbers of chunks whose part of the source is there, or set aside: its name is made of both."""
    names = {*dataset.finished("source"), *(Path(path).stem for path in pending(dataset)["parts"])}
    left = deque(numbers.found(dataset))
    known: dict[str, int] = {}
    for at, chunk in enumerate(chunks):
        for _ in range(len(left)):
            number = left.popleft()
            if fingerprint(at, number) in names:
                known[chunk] = number
                break
            left.append(number)  # most often the next number is the next chunk's
    return known


def _retried(part: PlannedPart, stage: Stage, retries: Mapping[str, Any]) -> PlannedPart:
    """Return the newest attempt of a part: each requested retry has a fingerprint of its own."""
    for reasons in retries.get(part.fingerprint, []):
        before = ((part_path(stage.table, part.fingerprint), ()), *part.earlier)
        earlier = tuple((path, tuple(sorted({*since, *reasons}))) for path, since in before)
        part = replace(part, fingerprint=fingerprint_of("retry", part.fingerprint, reasons), earlier=earlier)
    return part


def retry_parts(plan: Plan, stage_name: str, reasons: Sequence[str], numbers: Sequence[int]) -> dict[str, Any]:
    """Return the retries state in which the parts `numbers` of a stage get one attempt more."""
    state = dict(plan.dataset.state(RETRIES))
    available = {s.stage.name: s for s in plan.stages}
    planned = available[stage_name]
    bases = _bases(planned, state)
    for part in planned.parts:
        if part.number in numbers:
            base = bases[part.fingerprint]
            state[base] = [*state.get(base, []), sorted(reasons)]
    return state


def _bases(planned: PlannedStage, retries: Mapping[str, Any]) -> dict[str, str]:
    """Return newest attempt -> first attempt, of the parts of a stage."""
    found = {p.fingerprint: p.fingerprint for p in planned.parts}
    for base, attempts in retries.items():
        newest = base
        for reasons in attempts:
            newest = fingerprint_of("retry", newest, reasons)
        if newest in found:
            found[newest] = base
    return found
