"""From the columns that files have to the columns of table `source`: which is which, new names, types, clean text.

Names are compared without surrounding space and case. Every column of any file is one of the table, called as the first
file (in sorted order) calls it, and of the common type of all files. A value that cannot be of that type is null, and
counted.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import RecipeError, UserError, nearest
from catalog.schema import FAULT, LOCAL, SAMPLE_ID, SOURCE
from tasks.sources._captions import CaptionFrom, chosen, is_list
from tasks.sources._notes import Notes
from tasks.sources._text import Flaws, cleaned

KNOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "url": ("url", "image_url", "img_url", "image_link", "downloadurl", "photo_image_url", "image_urls"),
    "caption": (
        "caption", "text", "alt_text", "alt", "captions", "re_caption", "org_caption",
        "caption_reference_description", "title", "description", "prompt",
    ),
    "label": ("label", "label_name", "class", "class_name", "category"),
}  # fmt: skip
"""Column names that are recognised, in this order, whatever their case: LAION (URL, TEXT), DataComp and COYO (url,
text), img2dataset, CC12M and RedCaps (url, caption), Conceptual Captions (image_url), SBU (image_urls, captions),
Recap-DataComp (re_caption), WIT (caption_reference_description), YFCC (downloadurl, title), Unsplash
(photo_image_url)."""

RESERVED: Final = frozenset([*SOURCE.names, *(f.name for f in (*LOCAL, *FAULT))])
"""Our names. Another column that is called so (in any case: DuckDB knows none) gets the prefix `source_`."""

BAD_ROW: Final = "bad_row"
"""The fault of a line that is no record."""
FAULT_AT, DETAIL_AT, LOST_AT = "\0fault", "\0detail", "\0lost:"
"""Columns of a piece of a file that say which of its rows are faulty, and of a column which values its reader lost
(true where one was). No column of a file can be called so."""
DETAIL_CHARS: Final = 1000
"""No more of a line that is no record is kept."""

TypeName = Literal["integer", "number", "boolean", "text"]
TYPES: Final[Mapping[TypeName, pa.DataType]] = {
    "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "text": pa.string(),
}  # fmt: skip
PATTERNS: Final[Mapping[pa.DataType, str]] = {
    pa.int64(): r"^-?(0|[1-9][0-9]{0,17})$",  # with leading zeros it is a code, not a number
    pa.float64(): r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$|^-?(inf|Inf|nan|NaN)$",
    pa.bool_(): r"^([tT]rue|TRUE|[fF]alse|FALSE)$",
}
"""What text must look like to be read as a number, or as true or false."""
TYPES_OF: Final = "types of column"
"""How the note of a column of several types begins."""
_NOT_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_PARTITION: Final = re.compile(r"^([^=/]+)=([^/]*)$")


class File(NamedTuple):
    """What a layout is made from: one file's columns, and the values that its folders name (`year=2024`)."""

    uri: str
    columns: pa.Schema
    partition: Mapping[str, str | None] = {}


@dataclass(frozen=True)
class Column:
    """One column of the source table."""

    field: pa.Field
    """As our table has it."""
    origin: str | None = None
    """What the file calls it; None where the file does not have it."""
    value: str | None = None
    """Its value in every row, where the file's folder says it."""


@dataclass(frozen=True)
class Layout:
    """What becomes of one file's columns. `columns` does not hold those of FAULT, which come last."""

    columns: tuple[Column, ...]
    caption_from: CaptionFrom = "first"

    @property
    def names(self) -> list[str]:
        """The columns to read, as the file calls them."""
        return [c.origin for c in self.columns if c.origin is not None]

    def schema(self) -> pa.Schema:
        """Return the schema of the source table, `sample_id` first."""
        return pa.schema([SAMPLE_ID, *(c.field for c in self.columns), *FAULT])

    def wanted(self) -> pa.Schema:
        """Return the columns to read, as the file calls them, with the types that they are to have."""
        return pa.schema([pa.field(c.origin, c.field.type) for c in self.columns if c.origin is not None])

    def made_of(self) -> dict[str, str]:
        """Return our column -> what its values are made from, beside the file's content."""
        made = {c.field.name: f"{c.origin!r} {c.value!r} {c.field.type}" for c in self.columns}
        return made | {"caption": f"{made['caption']} {self.caption_from}"} if "caption" in made else made

    def packed(self) -> str:
        """Return the layout as text: it travels with a chunk."""
        fields = [
            c.field.with_metadata(
                {k: v.encode("utf-8", "surrogatepass") for k, v in (("o", c.origin), ("v", c.value)) if v is not None}
            )
            for c in self.columns
        ]
        return f"{self.caption_from} {base64.b85encode(pa.schema(fields).serialize().to_pybytes()).decode()}"

    @classmethod
    def unpacked(cls, text: str) -> "Layout":
        """Return the layout that `packed` gave."""
        rule, _, data = text.partition(" ")
        columns = []
        for f in pa.ipc.read_schema(pa.py_buffer(base64.b85decode(data))):
            said = {k: v.decode("utf-8", "surrogatepass") for k, v in (f.metadata or {}).items()}
            ours = SOURCE.field(f.name) if f.name in SOURCE.names else f.remove_metadata()
            columns.append(Column(ours, said.get(b"o"), said.get(b"v")))
        return cls(tuple(columns), rule)  # type: ignore[arg-type]  # we wrote it

    def apply(self, rows: pa.Table, where: str, seed: int = 0, first_row: int = 0) -> pa.Table:
        """Return rows of a file as rows of our table (without `sample_id`), with clean text; its metadata has notes."""
        notes, at, flaws = Notes(), positions(rows.column_names), Flaws.of(rows)
        arrays = []
        for column in self.columns:
            name = same(column.origin, at)
            if name is None:
                value = pa.scalar(column.value, pa.string()).cast(column.field.type)
                arrays.append(pa.repeat(value, rows.num_rows))
                continue
            values = rows.column(name)
            if column.field.name == "caption" and is_list(values.type):
                texts, _ = cast(values, pa.list_(pa.string()))
                arrays.append(flaws.clean(chosen(flaws.clean(texts), self.caption_from, seed, first_row)))
                continue
            found, lost = cast(values, column.field.type)
            if LOST_AT + name in rows.column_names:
                lost += rows.num_rows - rows.column(LOST_AT + name).null_count
            place = f"{where}, near row {first_row:,}"
            notes.add(
                lost, f"values of column {column.field.name!r} that are no {column.field.type} and became null", place
            )
            arrays.append(flaws.clean(found))
        for field, name in zip(FAULT, (FAULT_AT, DETAIL_AT), strict=True):
            has = name in rows.column_names
            column = rows.column(name).cast(field.type) if has else pa.nulls(rows.num_rows, field.type)
            arrays.append(flaws.clean(column))
        flaws.note(notes, where, first_row)
        if FAULT_AT in rows.column_names:
            faulty = rows.num_rows - rows.column(FAULT_AT).null_count
            notes.add(faulty, f"lines that are no records ({BAD_ROW})", f"{where}, near row {first_row:,}")
        schema = pa.schema([*(c.field for c in self.columns), *FAULT])
        return pa.table(arrays, schema=schema).replace_schema_metadata(notes.packed())


@dataclass(frozen=True)
class Wanted:
    """What a recipe says of the columns."""

    columns: Mapping[str, str | None]
    """For url, caption and label: the file's name of it; None takes a known one."""
    types: Mapping[str, TypeName]
    caption_from: CaptionFrom = "first"
    needs_url: bool = True
    """False: the rows are not on the web, and a column that is called url comes along as `source_url`."""

    @property
    def ours(self) -> tuple[str, ...]:
        """Which of our columns files may have."""
        return tuple(name for name in KNOWN if self.needs_url or name != "url")


def layouts(files: Sequence[File], wanted: Wanted, notes: Notes) -> list[Layout]:
    """Return the layout of every file; all have the same schema. Notes what differs from file to file.

    Raises RecipeError where a named column, or any column for the URL, is not there, UserError where two files have
    types that have nothing in common.
    """
    picked = [_picked(file, wanted) for file in files]
    names: dict[tuple[str, int], str] = {}
    types: dict[str, list[tuple[pa.DataType, str]]] = {}
    taken = {name.casefold() for name in RESERVED}
    places: list[dict[str, Column]] = []
    for file, ours in zip(files, picked, strict=True):
        mine: dict[str, Column] = {}
        for key, name, column in _others(file, set(ours.values())):
            if key not in names:
                names[key] = _free(name, taken)
            mine[names[key]] = column
            types.setdefault(names[key], []).append((plain(column.field.type), file.uri))
        places.append(mine)
    _check_types(wanted.types, types, files)
    common = {name: _common(name, found, wanted.types, notes) for name, found in types.items()}
    _note_choices(files, picked, notes)
    found = []
    for ours, mine in zip(picked, places, strict=True):
        first = [Column(SOURCE.field(name), ours[name]) for name in wanted.ours]
        rest = [
            Column(pa.field(n, t), *((mine[n].origin, mine[n].value) if n in mine else ())) for n, t in common.items()
        ]
        found.append(Layout((*first, *rest), wanted.caption_from))
    for name in common:
        lack = [file.uri for file, mine in zip(files, places, strict=True) if name not in mine and len(file.columns)]
        notes.add(len(lack), f"files without column {name!r}, which is null there", lack[0] if lack else "")
    return found


def partition_of(below: str) -> dict[str, str | None]:
    """Return what the folders of a path say in Hive's way: `year=2024/month=01/a.parquet`."""
    found = (_PARTITION.match(piece) for piece in below.split("/")[:-1])
    pairs = {unquote(match[1]): unquote(match[2]) for match in found if match}
    return {key: None if value == _NOT_NULL else value for key, value in pairs.items()}


def _picked(file: File, wanted: Wanted) -> dict[str, str | None]:
    """Return url, caption, label -> what the file calls it."""
    if twice := sorted(n for n, count in Counter(file.columns.names).items() if count > 1):
        raise RecipeError(f"{file.uri} has two columns {twice[0]!r}; expected every column once")
    found = {ours: choose(ours, wanted.columns.get(ours), file.columns, file.uri) for ours in wanted.ours}
    if wanted.needs_url and found["url"] is None and len(file.columns):
        raise RecipeError(
            f"{file.uri} has no column that is known to hold a URL; name one with `url:`; "
            f"there is: {_shown(file.columns.names)}"
        )
    return found


def _others(file: File, chosen_: set[str | None]) -> Iterator[tuple[tuple[str, int], str, Column]]:
    """Yield (what tells a column from others, its name, the column) of those that come along."""
    seen: Counter[str] = Counter()
    for f in file.columns:
        if f.name in chosen_:
            continue
        name = f.name.replace("\0", "").strip(_SPACE) or "unnamed"
        seen[name.casefold()] += 1
        yield (name.casefold(), seen[name.casefold()]), name, Column(f, f.name)
    for key, value in file.partition.items():
        if not seen[key.casefold()]:
            texts = pa.chunked_array([pa.array([value], pa.string())])
            yield (key.casefold(), 1), key, Column(pa.field(key, guessed(texts)), None, value)


def _free(name: str, taken: set[str]) -> str:
    while name.casefold() in taken:
        name = f"source_{name}"
    taken.add(name.casefold())
    return name


def _check_types(wanted: Mapping[str, TypeName], types: Iterable[str], files: Sequence[File]) -> None:
    known = {fold(name) for name in types} | {fold(name) for file in files for name in file.columns.names}
    if unknown := sorted(name for name in wanted if fold(name) not in known):
        there = _shown(files[0].columns.names)
        raise UserError(f"{files[0].uri} has no column {unknown[0]!r} (types); there is: {there}")


def _shown(names: Sequence[str]) -> str:
    """Return names as an error can show them, whatever is in them: not all of a file may be what it says."""
    texts = ["".join(c if c.isprintable() else "?" for c in name[:60]) for name in sorted(names)[:40]]
    return ", ".join(texts) or "no column"


def _common(
    name: str, found: Sequence[tuple[pa.DataType, str]], wanted: Mapping[str, TypeName], notes: Notes
) -> pa.DataType:
    """Return the narrowest type that holds those of all files; text where some are text and others are not."""
    said = next((TYPES[kind] for key, kind in wanted.items() if fold(key) == fold(name)), None)
    first: dict[pa.DataType, str] = {}
    for type_, uri in found:
        if not pa.types.is_null(type_):
            first.setdefault(type_, uri)
    if said is not None or not first:
        return said or pa.string()
    common, *others = first
    for other in others:
        common = _both(common, other, name, first)
    if others:
        where = ", ".join(f"{type_} ({uri})" for type_, uri in list(first.items())[:3])
        notes.add(len(first), f"{TYPES_OF} {name!r} in different files, read as {common}", where)
    return common


def _both(one: pa.DataType, other: pa.DataType, name: str, first: Mapping[pa.DataType, str]) -> pa.DataType:
    schemas = [pa.schema([("c", one)]), pa.schema([("c", other)])]
    if not (pa.types.is_string(one) or pa.types.is_string(other)):
        try:
            return plain(pa.unify_schemas(schemas, promote_options="permissive").field("c").type)
        except pa.ArrowException:
            pass
    if pa.types.is_nested(one) or pa.types.is_nested(other):
        raise UserError(
            f"{first[other]}: column {name!r} is {other}, which cannot become {one} as in other files "
            f"(such as {next(iter(first.values()))})"
        )
    return pa.string()


def _note_choices(files: Sequence[File], picked: Sequence[Mapping[str, str | None]], notes: Notes) -> None:
    """Note where files call url, caption or label differently, but for case."""
    for ours in picked[0]:
        names: dict[str, str] = {}
        for file, found in zip(files, picked, strict=True):
            if len(file.columns):
                names.setdefault(fold(found[ours] or ""), file.uri)
        if len(names) > 1:
            where = ", ".join(f"{name or 'none'} ({uri})" for name, uri in list(names.items())[:3])
            notes.add(len(names), f"columns that hold the {ours} in different files", where)


_SPACE: Final = " \t\r\n\v\f\u00a0\ufeff\u200b\u3000"


def fold(name: str) -> str:
    """Return what a column's name is compared by."""
    return name.strip(_SPACE).casefold()


def plain(type_: pa.DataType) -> pa.DataType:
    """Return the nearest type that Parquet, Delta Lake and DuckDB all have; null stays, as it may become any."""
    if isinstance(type_, pa.BaseExtensionType):
        return plain(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return plain(type_.value_type)
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(f.name, _inner(f.type)) for f in type_])
    if pa.types.is_map(type_):
        return pa.map_(_inner(type_.key_type), _inner(type_.item_type))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_inner(type_.value_type), type_.list_size)
    if is_list(type_):
        return pa.list_(_inner(type_.value_type))
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", type_.tz)
    if type_.id in _PLAIN:
        return _PLAIN[type_.id]
    if type_.id in _AS_TEXT:
        return pa.string()
    return type_


def _inner(type_: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_null(type_) else plain(type_)


def with_text_urls(found: pa.Schema, wanted: str | None) -> pa.Schema:
    """Return the columns of a file of text: what may hold the URL is text, whatever its values look like."""
    names = KNOWN["url"] if wanted is None else (fold(wanted),)
    return pa.schema([pa.field(f.name, pa.string()) if fold(f.name) in names else f for f in found])


def guessed(texts: pa.ChunkedArray) -> pa.DataType:
    """Return the narrowest type that every text can be read as; null where there is no text."""
    if texts.null_count == len(texts):
        return pa.null()
    fits = (type_ for type_, pattern in PATTERNS.items() if pc.all(pc.match_substring_regex(texts, pattern)).as_py())
    return next(fits, pa.string())


_PLAIN: Final = {
    pa.string_view().id: pa.string(),
    pa.large_string().id: pa.string(),
    pa.binary_view().id: pa.binary(),
    pa.float16().id: pa.float32(),
    pa.uint8().id: pa.int16(),
    pa.uint16().id: pa.int32(),
    pa.uint32().id: pa.int64(),
    pa.uint64().id: pa.decimal128(20, 0),
    pa.date64().id: pa.date32(),
}
_AS_TEXT: Final = {pa.time32("s").id, pa.time64("us").id, pa.duration("s").id, pa.decimal256(40).id}


def choose(ours: str, wanted: str | None, found: pa.Schema, where: str) -> str | None:
    """Return the column of a file that holds url, caption or label; `wanted` names it, None takes a known name."""
    at = positions(found.names)
    if wanted is not None:
        name = same(wanted, at)
        if name is None:
            if not len(found):
                return None
            raise RecipeError(f"{where} has no column {wanted!r} ({ours}){nearest(wanted, found.names)}")
        if not _can_be(found.field(name).type, ours):
            raise RecipeError(f"{where}: column {name!r} ({ours}) is {found.field(name).type}; expected text")
        return name
    names = (at.get(known) for known in KNOWN[ours])
    return next((n for n in names if n is not None and _can_be(found.field(n).type, ours)), None)


def _can_be(type_: pa.DataType, ours: str) -> bool:
    """Say whether a column can hold the url, the caption, or the label."""
    type_ = plain(type_)
    if ours == "caption" and is_list(type_):
        return not pa.types.is_nested(type_.value_type)
    if pa.types.is_null(type_) or pa.types.is_string(type_):
        return True
    if ours == "caption":
        return not pa.types.is_nested(type_)
    numbers = ours == "label" and (pa.types.is_integer(type_) or pa.types.is_boolean(type_))
    return numbers or (ours == "url" and pa.types.is_binary(type_))


def positions(names: Iterable[str]) -> dict[str, str]:
    """Return every name under itself and, where that is free, under what it is compared by."""
    names = list(names)
    return {fold(n): n for n in reversed(names)} | {n: n for n in names}


def same(name: str | None, at: Mapping[str, str]) -> str | None:
    """Return what `positions` has of a name."""
    return None if name is None else at.get(name, at.get(fold(name)))


def cast(column: pa.Array | pa.ChunkedArray, to: pa.DataType) -> tuple[pa.Array | pa.ChunkedArray, int]:
    """Return a column as another type, and how many of its values cannot be of it, and are null."""
    if column.type == to:
        return column, 0
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) and to in PATTERNS:
        fits = pc.match_substring_regex(cleaned(column), PATTERNS[to])
        found = pc.if_else(fits, column, None)
        return found.cast(to), found.null_count - column.null_count
    if pa.types.is_integer(column.type) and pa.types.is_floating(to):
        found = column.cast(to, safe=False)
        found = pc.if_else(pc.equal(found.cast(column.type, safe=False), column), found, None)
        return found, found.null_count - column.null_count
    inner = column.type.value_type if is_list(column.type) else column.type
    loose = pa.types.is_timestamp(to) or _is_binary(inner)  # below microseconds; bad UTF-8, which `Flaws` counts
    try:
        return column.cast(to, safe=not loose), 0
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        found = _each(column, to)
        return found, found.null_count - column.null_count


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _each(column: pa.Array | pa.ChunkedArray, to: pa.DataType) -> pa.Array:
    """Return a column of which not every value can be of a type: null where it cannot."""

    def one(scalar: Any) -> Any:
        try:
            return scalar.cast(to).as_py() if scalar.is_valid else None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            return None

    return pa.array([one(scalar) for scalar in column], to)  # rare: a loop over the rows of one piece
