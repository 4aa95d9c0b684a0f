"""Map the columns of files to the columns of table `source`: roles, names, types, clean text.

Names are compared without surrounding space and case. Every column of any file is a column of the table; its name is
that in the first file (in sorted order), its type the common type of all files. A value that cannot be converted to
that type becomes null, and is counted.
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
from tasks.sources._captions import CaptionFrom, choose_captions, is_list
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
"""Column names that are recognised, in this order, in any case: LAION (URL, TEXT), DataComp and COYO (url, text),
img2dataset, CC12M and RedCaps (url, caption), Conceptual Captions (image_url), SBU (image_urls, captions),
Recap-DataComp (re_caption), WIT (caption_reference_description), YFCC (downloadurl, title), Unsplash
(photo_image_url)."""

RESERVED: Final = frozenset([*SOURCE.names, *(f.name for f in (*LOCAL, *FAULT))])
"""Our names. A file's column with such a name (in any case: DuckDB ignores case) gets the prefix `source_`."""

BAD_ROW: Final = "bad_row"
"""The fault of a line that is not a record."""
FAULT_AT, DETAIL_AT, LOST_AT = "\0fault", "\0detail", "\0lost:"
"""Internal columns of a piece of a file: the fault and detail of each row, and, for a column, whether the reader lost
the row's value. No column of a file can have these names."""
DETAIL_CHARS: Final = 1000
"""At most this much of a line that is not a record is stored."""

TypeName = Literal["integer", "number", "boolean", "text"]
TYPES: Final[Mapping[TypeName, pa.DataType]] = {
    "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(), "text": pa.string(),
}  # fmt: skip
PATTERNS: Final[Mapping[pa.DataType, str]] = {
    pa.int64(): r"^-?(0|[1-9][0-9]{0,17})$",  # a number with leading zeros is a code
    pa.float64(): r"^-?((0|[1-9][0-9]{0,14})(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$|^-?(inf|Inf|nan|NaN)$",
    pa.bool_(): r"^([tT]rue|TRUE|[fF]alse|FALSE)$",
}
"""The patterns of text that is read as a number, or as a boolean."""
TYPES_OF: Final = "types of column"
"""The beginning of the note about a column of several types."""
_NOT_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_PARTITION: Final = re.compile(r"^([^=/]+)=([^/]*)$")


class File(NamedTuple):
    """One file's columns, and the values in the names of its folders (`year=2024`)."""

    uri: str
    columns: pa.Schema
    partition: Mapping[str, str | None] = {}


@dataclass(frozen=True)
class Column:
    """One column of the source table."""

    field: pa.Field
    """The column of our table."""
    origin: str | None = None
    """Its name in the file; None if the file does not have it."""
    value: str | None = None
    """Its value in every row, if the file's folder specifies it."""


@dataclass(frozen=True)
class Layout:
    """How one file's columns are read. `columns` does not contain those of FAULT, which come last."""

    columns: tuple[Column, ...]
    caption_from: CaptionFrom = "first"

    @property
    def names(self) -> list[str]:
        """Return the columns to read, by their names in the file."""
        return [c.origin for c in self.columns if c.origin is not None]

    def schema(self) -> pa.Schema:
        """Return the schema of the source table, `sample_id` first."""
        return pa.schema([SAMPLE_ID, *(c.field for c in self.columns), *FAULT])

    def wanted(self) -> pa.Schema:
        """Return the columns to read, by their names in the file, with the types to convert them to."""
        return pa.schema([pa.field(c.origin, c.field.type) for c in self.columns if c.origin is not None])

    def made_of(self) -> dict[str, str]:
        """Return our column -> what its values depend on besides the file's content."""
        made = {c.field.name: f"{c.origin!r} {c.value!r} {c.field.type}" for c in self.columns}
        return made | {"caption": f"{made['caption']} {self.caption_from}"} if "caption" in made else made

    def packed(self) -> str:
        """Return the layout as text, to be stored in a chunk."""
        fields = [
            c.field.with_metadata(
                {k: v.encode("utf-8", "surrogatepass") for k, v in (("o", c.origin), ("v", c.value)) if v is not None}
            )
            for c in self.columns
        ]
        return f"{self.caption_from} {base64.b85encode(pa.schema(fields).serialize().to_pybytes()).decode()}"

    @classmethod
    def unpacked(cls, text: str) -> "Layout":
        """Return the layout from the text of `packed`."""
        rule, _, data = text.partition(" ")
        columns = []
        for f in pa.ipc.read_schema(pa.py_buffer(base64.b85decode(data))):
            keys = {k: v.decode("utf-8", "surrogatepass") for k, v in (f.metadata or {}).items()}
            ours = SOURCE.field(f.name) if f.name in SOURCE.names else f.remove_metadata()
            columns.append(Column(ours, keys.get(b"o"), keys.get(b"v")))
        return cls(tuple(columns), rule)  # type: ignore[arg-type]  # `packed` wrote it

    def apply(self, rows: pa.Table, where: str, seed: int = 0, first_row: int = 0) -> pa.Table:
        """Convert rows of a file to rows of our table (without `sample_id`), with clean text and notes as metadata."""
        notes, at, flaws = Notes(), by_folded_name(rows.column_names), Flaws.of(rows)
        arrays = []
        for column in self.columns:
            name = find_name(column.origin, at)
            if name is None:
                value = pa.scalar(column.value, pa.string()).cast(column.field.type)
                arrays.append(pa.repeat(value, rows.num_rows))
                continue
            values = rows.column(name)
            if column.field.name == "caption" and is_list(values.type):
                texts, _ = cast(values, pa.list_(pa.string()))
                arrays.append(flaws.clean(choose_captions(flaws.clean(texts), self.caption_from, seed, first_row)))
                continue
            found, lost = cast(values, column.field.type)
            if LOST_AT + name in rows.column_names:
                lost += rows.num_rows - rows.column(LOST_AT + name).null_count
            place = f"{where}, near row {first_row:,}"
            notes.add(
                lost, f"values of column {column.field.name!r} that are not {column.field.type} and became null", place
            )
            arrays.append(flaws.clean(found))
        for field, name in zip(FAULT, (FAULT_AT, DETAIL_AT), strict=True):
            has = name in rows.column_names
            column = rows.column(name).cast(field.type) if has else pa.nulls(rows.num_rows, field.type)
            arrays.append(flaws.clean(column))
        flaws.note(notes, where, first_row)
        if FAULT_AT in rows.column_names:
            faulty = rows.num_rows - rows.column(FAULT_AT).null_count
            notes.add(faulty, f"lines that are not records ({BAD_ROW})", f"{where}, near row {first_row:,}")
        schema = pa.schema([*(c.field for c in self.columns), *FAULT])
        return pa.table(arrays, schema=schema).replace_schema_metadata(notes.packed())


@dataclass(frozen=True)
class Wanted:
    """The recipe's settings for the columns."""

    columns: Mapping[str, str | None]
    """url, caption and label -> its column in the file; None takes a known name."""
    types: Mapping[str, TypeName]
    caption_from: CaptionFrom = "first"
    needs_url: bool = True
    """False: the rows are not on the web, and a column named url is kept as `source_url`."""

    @property
    def ours(self) -> tuple[str, ...]:
        """Return which of our columns files may have."""
        return tuple(name for name in KNOWN if self.needs_url or name != "url")


def layouts(files: Sequence[File], wanted: Wanted, notes: Notes) -> list[Layout]:
    """Return the layout of every file; all have the same schema. Adds differences between files to `notes`.

    Raises RecipeError if a named column, or any column for the URL, does not exist, UserError if two files have types
    without a common type.
    """
    picked = [_roles(file, wanted) for file in files]
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
        notes.add(len(lack), f"files without column {name!r}, which is null in their rows", lack[0] if lack else "")
    return found


def partition_of(below: str) -> dict[str, str | None]:
    """Return the Hive partition values of a path: `year=2024/month=01/a.parquet`."""
    found = (_PARTITION.match(piece) for piece in below.split("/")[:-1])
    pairs = {unquote(match[1]): unquote(match[2]) for match in found if match}
    return {key: None if value == _NOT_NULL else value for key, value in pairs.items()}


def _roles(file: File, wanted: Wanted) -> dict[str, str | None]:
    """Return url, caption, label -> its column in the file."""
    if twice := sorted(n for n, count in Counter(file.columns.names).items() if count > 1):
        raise RecipeError(f"{file.uri} has two columns {twice[0]!r}; expected every column once")
    found = {ours: choose(ours, wanted.columns.get(ours), file.columns, file.uri) for ours in wanted.ours}
    if wanted.needs_url and found["url"] is None and len(file.columns):
        raise RecipeError(
            f"{file.uri} has no column with a known name for the URL; specify it with `url:`; "
            f"there is: {_shown(file.columns.names)}"
        )
    return found


def _others(file: File, chosen_: set[str | None]) -> Iterator[tuple[tuple[str, int], str, Column]]:
    """Yield (unique key, name, column) of the columns without a role."""
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
            yield (key.casefold(), 1), key, Column(pa.field(key, guess_type(texts)), None, value)


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
    """Return names as printable text for an error: those of a damaged file may hold anything."""
    texts = ["".join(c if c.isprintable() else "?" for c in name[:60]) for name in sorted(names)[:40]]
    return ", ".join(texts) or "no column"


def _common(
    name: str, found: Sequence[tuple[pa.DataType, str]], wanted: Mapping[str, TypeName], notes: Notes
) -> pa.DataType:
    """Return the narrowest type that holds the types of all files; text if only some of them are text."""
    declared = next((TYPES[kind] for key, kind in wanted.items() if fold(key) == fold(name)), None)
    first: dict[pa.DataType, str] = {}
    for type_, uri in found:
        if not pa.types.is_null(type_):
            first.setdefault(type_, uri)
    if declared is not None or not first:
        return declared or pa.string()
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
    """Note if files have different names, beyond case, for url, caption or label."""
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
    """Return the normalised form of a column's name, for comparison."""
    return name.strip(_SPACE).casefold()


def plain(type_: pa.DataType) -> pa.DataType:
    """Return the nearest type that Parquet, Delta Lake and DuckDB all support; null is unchanged: it widens to any."""
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
    """Return the columns of a text file, in which columns that may be the URL are text, whatever their values."""
    names = KNOWN["url"] if wanted is None else (fold(wanted),)
    return pa.schema([pa.field(f.name, pa.string()) if fold(f.name) in names else f for f in found])


def guess_type(texts: pa.ChunkedArray) -> pa.DataType:
    """Return the narrowest type that every text can be parsed as; null if there is no text."""
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
    """Return the column of a file for url, caption or label; `wanted` is its name, None takes a known name."""
    at = by_folded_name(found.names)
    if wanted is not None:
        name = find_name(wanted, at)
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
    """Return whether a column's type is suitable for the url, the caption, or the label."""
    type_ = plain(type_)
    if ours == "caption" and is_list(type_):
        return not pa.types.is_nested(type_.value_type)
    if pa.types.is_null(type_) or pa.types.is_string(type_):
        return True
    if ours == "caption":
        return not pa.types.is_nested(type_)
    numbers = ours == "label" and (pa.types.is_integer(type_) or pa.types.is_boolean(type_))
    return numbers or (ours == "url" and pa.types.is_binary(type_))


def by_folded_name(names: Iterable[str]) -> dict[str, str]:
    """Map every name, and its folded form if no other name has it, to the name."""
    names = list(names)
    return {fold(n): n for n in reversed(names)} | {n: n for n in names}


def find_name(name: str | None, at: Mapping[str, str]) -> str | None:
    """Look a name up in the result of `by_folded_name`."""
    return None if name is None else at.get(name, at.get(fold(name)))


def cast(column: pa.Array | pa.ChunkedArray, to: pa.DataType) -> tuple[pa.Array | pa.ChunkedArray, int]:
    """Convert a column to another type; return it, and how many values could not be converted and became null."""
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
    loose = pa.types.is_timestamp(to) or _is_binary(
        inner
    )  # digits below microseconds are dropped; `Flaws` counts bad UTF-8
    try:
        return column.cast(to, safe=not loose), 0
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        found = _cast_each(column, to)
        return found, found.null_count - column.null_count


def _is_binary(type_: pa.DataType) -> bool:
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def _cast_each(column: pa.Array | pa.ChunkedArray, to: pa.DataType) -> pa.Array:
    """Convert a column value by value; null where a value cannot be converted."""

    def one(scalar: Any) -> Any:
        try:
            return scalar.cast(to).as_py() if scalar.is_valid else None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            return None

    return pa.array([one(scalar) for scalar in column], to)  # rare, so a loop is fast enough
