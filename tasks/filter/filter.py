"""`use: filter`: keep the rows for which an SQL predicate is true; record which condition a rejected row failed."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from catalog import schema
from catalog.decisions import Numbers, decisions
from catalog.duck import Limits, identifier, limited, literal
from catalog.errors import QueryError, RecipeError, nearest
from catalog.schema import DECISIONS
from tasks.filter._lists import Entries, Listed, Words, fails_list, fails_words, read, text
from tasks.filter._predicate import MAX_CONDITIONS, Conjunct, Path, connect, one_line, shorten, split
from tasks.stage import Batches, Columns, MapStage, Resources, Step, Tables

MAX_VALUE_CHARS: Final = 80
"""Values are truncated to this in the evidence."""

MEMORY_MB: Final = 2000
"""DuckDB's memory limit for one batch."""
BIND_S: Final = 10.0
"""Time limit to bind a predicate: more means that its constants alone are as expensive as a build."""

_NOT_FOR_FILTERS: Final = frozenset(["decisions"])


@dataclass(frozen=True)
class Condition:
    """A condition that must be true for a row."""

    reason: str
    """The `reason` of a row for which it is not true."""
    conjunct: Conjunct


class Filter(MapStage):
    """Keep the rows for which every condition is true. Writes a decision for every input row.

    `where` is a DuckDB predicate over the columns of all earlier tables. Each operand of its top-level AND is evaluated
    separately, and is the reason of the rows that fail it. `rules` gives reasons names instead. A row that fails
    several has the first one as its reason, and all of them in its evidence:

        reason      width >= 200
        evidence    width=120 fails width >= 200; clip_score=null: clip_score >= 0.28 is null

    `words` and `lists` look up a column in a file of any length: a word of the caption among the names of classes, the
    host of the URL among those that opted out. They are applied after the predicates.

    If a condition is null, the row is rejected. NaN counts as null, and so does a value that cannot be computed (a cast
    of text that is not a number). If two tables have a column of the same name, qualify it: `images.width`. An exact
    match of upper and lower case takes precedence.

    Not for whole-table conditions (ranks, counts, duplicates): a condition is evaluated on one row.
    """

    table: ClassVar[str] = "decisions"
    shares_table = True
    verdict = "keep"
    thresholds = ("where", "rules")

    version: ClassVar[int] = 2
    use: Literal["filter"] = "filter"
    where: str | None = Field(
        None, description="SQL predicate that is true for the rows to keep: width >= 200 and nsfw < 0.5"
    )
    rules: dict[str, str] = Field(
        default_factory=dict, description="reason -> predicate that is true for the rows to keep"
    )

    words: dict[str, Words] = Field(
        default_factory=dict, description="reason -> file of words; a text column must contain at least one of them"
    )
    lists: tuple[Listed, ...] = Field((), description="files of values that a column must, or must not, have")
    timeout_s: float = Field(
        600, gt=0, description="time limit of the predicates for one batch of rows (resources.batch_rows)"
    )
    resources: Resources = Resources(batch_rows=8192)

    @model_validator(mode="after")
    def _something_to_judge(self) -> "Filter":
        if self.where is not None and self.rules:
            raise ValueError("a filter has either `where` or `rules`")
        if self.where is None and not (self.rules or self.words or self.lists):
            raise ValueError("a filter has either `where` or `rules`, or else `words` or `lists`")
        return self

    def parameters(self) -> dict[str, Any]:
        """Return the fields, with lists by content and not by path."""
        settings = super().parameters()
        del settings["timeout_s"]  # it changes no result
        for reason, words in self.words.items():
            settings["words"][reason]["file"] = words.digest()
        for one, listed in zip(settings["lists"], self.lists, strict=True):
            one["file"] = listed.digest()
        return {name: value for name, value in settings.items() if value or name not in ("words", "lists")}

    def conditions(self) -> list[Condition]:
        """Return the conditions in order. Raises RecipeError if a predicate cannot be parsed or is not allowed."""
        if self.where is not None:
            found = [Condition(c.text, c) for c in split(self.where)]
        else:
            found = [Condition(name, c) for name, predicate in self.rules.items() for c in split(predicate)]
        if len(found) > MAX_CONDITIONS:
            raise RecipeError(f"a filter has {len(found):,} conditions; expected at most {MAX_CONDITIONS}")
        return found

    def inputs(self, available: Tables, bind_s: float = BIND_S) -> Columns:
        """Return the columns of the conditions, after binding each to the tables' types within `bind_s`."""
        names = _Names(available)
        conditions = self.conditions()
        asked: list[Words | Listed] = [*self.words.values(), *self.lists]
        for file in asked:
            file.check()
        looked_up = [names.text(file.column) for file in asked]
        places = dict.fromkeys([*(names.place(path) for c in conditions for path in c.conjunct.paths), *looked_up])
        read = [place for place in places if place[1] != "sample_id"]
        _distinct(read)
        _bind(conditions, names.types(read), self.name, bind_s)
        columns: Columns = {}
        for table, column in read:
            columns[table] = (*columns.get(table, ()), column)
        return columns or {names.first(): ()}

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        connection = connect()
        conditions = self.conditions()
        lookups = self._lookups()
        limits = Limits(self.timeout_s, MEMORY_MB, "; lower `resources.batch_rows`", " or raise `timeout_s`")
        what = _named(self.name, " and ".join(condition.conjunct.text for condition in conditions))

        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                verdicts = [(lookup.reason, *lookup.fails(batch, connection)) for lookup in lookups]
                *judged, numbers = _judged(conditions, batch, connection, limits, what)
                rejections = [judged, *(_verdict(*verdict) for verdict in verdicts)]
                reason = pc.coalesce(*(reasons for reasons, _ in rejections))
                evidence = _joined([found for _, found in rejections])
                yield decisions(batch.column("sample_id"), self.name, reason, evidence, numbers)

        return step

    def _lookups(self) -> "list[_Lookup]":
        return [
            *(_Lookup(reason, words, read(words, lower=words.ignore_case)) for reason, words in self.words.items()),
            *(_Lookup(listed.name, listed, read(listed, listed.match != "exact")) for listed in self.lists),
        ]


@dataclass(frozen=True)
class _Lookup:
    """A loaded list with its settings."""

    reason: str
    asked: Words | Listed
    entries: Entries

    def fails(self, batch: pa.Table, connection: Any) -> tuple[np.ndarray, pa.Array]:
        values = batch.column(_column(tuple(self.asked.column.split(".")), batch.schema)[0])
        if isinstance(self.asked, Words):
            return fails_words(self.asked, self.entries, values, connection)
        return fails_list(self.asked, self.entries, values, connection)


def _judged(
    conditions: list[Condition], batch: pa.Table, connection: Any, limits: Limits, what: str
) -> tuple[pa.Array, pa.Array, Numbers]:
    """Return reason and evidence by the predicates, string (n,), null for rows that pass all; and their numbers.

    `what`: what a message that a limit was passed calls them.
    """
    if not conditions:
        return pa.nulls(batch.num_rows, pa.string()), pa.nulls(batch.num_rows, pa.string()), {}
    connection.register("batch", _readable(batch))
    with limited(connection, limits, what):
        verdicts = connection.sql(_query(conditions, batch.schema)).to_arrow_table()
    connection.unregister("batch")
    reason, evidence = (text(verdicts.column(name)).cast(pa.string()) for name in ("reason", "evidence"))
    columns = enumerate(_numeric(conditions, batch.schema))
    return reason, evidence, {name: pc.fill_null(verdicts.column(f"n{at}"), np.nan).to_numpy() for at, name in columns}


def _verdict(reason: str, fails: np.ndarray, evidence: pa.Array) -> tuple[pa.Array, pa.Array]:
    return pc.if_else(pa.array(fails), pa.scalar(reason), pa.scalar(None, pa.string())), evidence


def _joined(evidence: list[pa.Array]) -> pa.Array:
    """Join the evidence of each row in one line, null if there is none."""
    joined, *others = evidence
    for other in others:  # in pairs: Arrow 26 drops rows if it skips nulls and a row has only nulls
        joined = pc.coalesce(pc.binary_join_element_wise(joined, other, "; "), joined, other)
    return joined


Place = tuple[str, str]
"""A table and one of its columns."""


class _Names:
    """The columns that a filter may refer to, and their tables."""

    def __init__(self, available: Tables) -> None:
        tables = {t: s for t, s in available.items() if "sample_id" in s.names and t not in _NOT_FOR_FILTERS}
        self._tables = {table.casefold(): table for table in tables}
        self._types: dict[Place, pa.DataType] = {
            (table, field.name): field.type
            for table, fields in tables.items()
            for field in fields
            if field.name != "sample_id" and schema.role(field) not in {"image", "sidecar"}
        }

    def first(self) -> str:
        """Return a table to read rows from if no column is needed."""
        if not self._tables:
            raise RecipeError("a filter has nothing to read: there is no earlier table")
        return next(iter(self._tables.values()))

    def types(self, places: Iterable[Place]) -> pa.Schema:
        """Return the schema of a batch with some columns."""
        return pa.schema([schema.SAMPLE_ID, *(pa.field(place[1], self._types[place]) for place in places)])

    def place(self, path: Path) -> Place:
        """Return the table and column of a path. Raises RecipeError if no table has it, or several have it."""
        found = self._search(path[0])
        table = self._tables.get(path[0].casefold()) if len(path) > 1 else None
        name = path[0]
        if table is not None and not any(pa.types.is_struct(self._types[place]) for place in found):
            name = path[1]
            found = self._search(name, table)
        if name.casefold() == "sample_id":
            return self.first(), "sample_id"
        if not found:
            known = {column for where, column in self._types if table in {None, where}}
            raise RecipeError(f"a filter names an unknown column {'.'.join(path)!r}{nearest(name, known)}")
        if len(found) > 1:
            choices = " or ".join(".".join(place) for place in found)
            raise RecipeError(f"a filter names column {name!r}, which several tables have; write {choices}")
        return found[0]

    def text(self, column: str) -> Place:
        """Return the table and name of a text column. Raises RecipeError if it does not exist or is not text."""
        if column == "host" and not self._search("host"):
            raise RecipeError(
                "a filter's list names column 'host'; expected `column: url` and `match: host` or `suffix`"
            )
        found = self.place(tuple(column.split(".")))
        type_ = pa.int64() if found[1] == "sample_id" else self._types[found]
        if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
            raise RecipeError(f"a filter's list looks up {'.'.join(found)}, which is {type_}; expected text")
        return found

    def _search(self, column: str, table: str | None = None) -> list[Place]:
        """Return the columns of a name: exact matches, or else matches in any case."""
        places = [place for place in self._types if table in {None, place[0]}]
        exact = [place for place in places if place[1] == column]
        return exact or [place for place in places if place[1].casefold() == column.casefold()]


def _distinct(places: Iterable[Place]) -> None:
    """Raise RecipeError if one filter reads columns of the same name (in any case) from two tables."""
    seen: dict[str, Place] = {}
    for place in places:
        other = seen.setdefault(place[1].casefold(), place)
        if other != place:
            both = " and ".join(".".join(p) for p in (other, place))
            raise RecipeError(f"a filter reads both {both}, which have one name; use two filters, one after the other")


def _named(stage: str, predicate: str) -> str:
    return f"stage {stage!r}: the filter {shorten(predicate)}"


def _bind(conditions: list[Condition], found: pa.Schema, stage: str, bind_s: float) -> None:
    """Raise RecipeError if DuckDB cannot bind a condition, or it is not boolean."""
    import duckdb

    limits = Limits(bind_s, MEMORY_MB, "; its constants cost too much")
    with connect() as connection:
        for condition in conditions:
            named = f"the filter {shorten(condition.conjunct.text)}"
            try:
                connection.register("batch", _readable(found.empty_table()))
                with limited(connection, limits, _named(stage, condition.conjunct.text)):
                    columns = connection.execute(f"describe select {_sql(condition, found)} from batch").fetchall()
                    connection.execute(_query([condition], found)).fetchall()
            except QueryError as error:
                raise RecipeError(str(error)) from error
            except duckdb.Error as error:
                raise RecipeError(f"{named}: {one_line(str(error))}") from error
            if columns[0][1] != "BOOLEAN":
                raise RecipeError(f"{named} is {columns[0][1]}; expected true or false")


def _query(conditions: list[Condition], found: pa.Schema) -> str:
    """Return the statement for reason, evidence and its numbers of every row of `batch`, in order."""
    verdicts = ", ".join(f"try({_sql(c, found)}) as ok{i}" for i, c in enumerate(conditions))
    reasons = " ".join(f"when ok{i} is not true then {literal(c.reason)}" for i, c in enumerate(conditions))
    evidence = ", ".join(_evidence(f"ok{i}", c, found) for i, c in enumerate(conditions))
    numbers = "".join(
        f", case when {' or '.join(f'ok{i} is not true' for i in failed)} then {identifier(name)}::double end as n{at}"
        for at, (name, failed) in enumerate(_numeric(conditions, found).items())
    )
    return (
        f"select case {reasons} end as reason, nullif(concat_ws('; ', {evidence}), '') as evidence{numbers} "
        f"from (select *, {verdicts} from batch)"
    )


def _numeric(conditions: list[Condition], found: pa.Schema) -> dict[str, list[int]]:
    """Return the columns of numbers that conditions name -> the places of those conditions."""
    named: dict[str, list[int]] = {}
    for at, condition in enumerate(conditions):
        for name in dict.fromkeys(_column(path, found)[0] for path in condition.conjunct.paths):
            type_ = found.field(name).type
            if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
                named.setdefault(name, []).append(at)
    return named


def _evidence(verdict: str, condition: Condition, found: pa.Schema) -> str:
    text = condition.conjunct.text
    columns = dict.fromkeys(_column(path, found)[0] for path in condition.conjunct.paths)
    values = [
        f"{literal(f'{c}=')}, coalesce(left({identifier(c)}::varchar, {MAX_VALUE_CHARS}), 'null')" for c in columns
    ]
    shown = ", ', ', ".join(values) or "''"
    failed = f"case when {verdict} is null then {literal(f': {text} is null')} else {literal(f' fails {text}')} end"
    return f"case when {verdict} is not true then concat({shown}, {failed}) end"


def _sql(condition: Condition, found: pa.Schema) -> str:
    return condition.conjunct.sql(lambda path: _column(path, found))


def _column(path: Path, found: pa.Schema) -> Path:
    """Return a path without the table, as the columns of a batch are named."""
    names = {name.casefold(): name for name in found.names}
    first = names.get(path[0].casefold())
    if (
        len(path) > 1
        and path[1].casefold() in names
        and (first is None or not pa.types.is_struct(found.field(first).type))
    ):
        return (names[path[1].casefold()], *path[2:])
    return (names[path[0].casefold()], *path[1:])


def _readable(batch: pa.Table) -> pa.Table:
    """Convert a batch for DuckDB: no half floats, and null for NaN, which DuckDB orders as the largest number."""
    columns = {}
    for name, column in zip(batch.column_names, batch.columns, strict=True):
        type_ = _without_halves(column.type)
        column = column if type_ == column.type else column.cast(type_)
        if pa.types.is_floating(type_):
            column = pc.if_else(pc.is_nan(column), None, column)
        columns[name] = column
    return pa.table(columns)


def _without_halves(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_float16(type_):
        return pa.float32()
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_without_halves(type_.value_type), type_.list_size)
    return pa.list_(_without_halves(type_.value_type)) if pa.types.is_list(type_) else type_
