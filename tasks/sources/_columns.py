"""From the columns that a file has to the columns of table `source`: which is which, new names, types, clean text.

The first file (in sorted order) decides for all: later files are cast to its types, lack columns as nulls, and lose
the columns that it does not have.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from catalog.errors import RecipeError, UserError, nearest
from catalog.schema import LOCAL, SAMPLE_ID, SOURCE
from tasks.sources._files import one_line

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

RESERVED: Final = frozenset([*SOURCE.names, *(f.name for f in LOCAL)])
"""Our names. Another column that is called so (in any case: DuckDB knows none) gets the prefix `source_`."""


@dataclass(frozen=True)
class Column:
    """One column of the source table."""

    field: pa.Field
    """As our table has it."""
    origin: str | None
    """What the file calls it; None where no file has it (it is null)."""


@dataclass(frozen=True)
class Layout:
    """What becomes of a file's columns."""

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, found: pa.Schema, wanted: Mapping[str, str | None], where: str) -> "Layout":
        """Return the layout for files with the schema `found`.

        `wanted` names the columns for url, caption and label; None takes a known name. Raises RecipeError where a
        named column, or any column for the url, is not there; `where` is the file that is shown in the message.
        """
        if twice := sorted({n for n in found.names if found.names.count(n) > 1}):
            raise RecipeError(f"{where} has two columns {twice[0]!r}; expected every column once")
        chosen = {ours: _choose(ours, wanted.get(ours), found, where) for ours in KNOWN}
        if chosen["url"] is None:
            raise RecipeError(
                f"{where} has no column that is known to hold a URL; name one with `url:`; "
                f"there is: {', '.join(sorted(found.names)) or 'no column'}"
            )
        ours = [Column(SOURCE.field(name), origin) for name, origin in chosen.items()]
        return cls((*ours, *others(f for f in found if f.name not in chosen.values())))

    @property
    def names(self) -> list[str]:
        """The columns to read, as the first file calls them."""
        return [c.origin for c in self.columns if c.origin is not None]

    def schema(self) -> pa.Schema:
        """Return the schema of the source table, `sample_id` first."""
        return pa.schema([SAMPLE_ID, *(c.field for c in self.columns)])

    def digest(self) -> str:
        """Return a short hash of what the layout does: it changes parts as the content of their file does."""
        said = "\n".join(f"{c.origin!r} {c.field.name!r} {c.field.type}" for c in self.columns)
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def check(self, found: pa.Schema, where: str) -> None:
        """Raise UserError where a file lacks the URL, or has a column that can never be cast to ours."""
        at = _positions(found.names)
        for column in self.columns:
            name = _same(column.origin, at)
            if name is None:
                if column.field.name == "url":
                    raise UserError(f"{where} has no column {column.origin!r}, which holds the URL in the first file")
                continue
            _cast(pa.nulls(0, found.field(name).type), column, where)

    def apply(self, rows: pa.Table, where: str) -> pa.Table:
        """Return rows of a file as rows of our table (without `sample_id`), with clean text."""
        at = _positions(rows.column_names)
        arrays = []
        for column in self.columns:
            name = _same(column.origin, at)
            if name is None:
                arrays.append(pa.nulls(rows.num_rows, column.field.type))
                continue
            arrays.append(clean(_cast(rows.column(name), column, where)))
        return pa.table(arrays, schema=pa.schema([c.field for c in self.columns]))


def others(fields: Iterable[pa.Field]) -> tuple[Column, ...]:
    """Return the layout of the columns that merely come along: renamed where they collide (in any case), and with
    types that every reader of the table understands."""
    taken = {name.casefold() for name in RESERVED}
    columns = []
    for field in fields:
        name = field.name.replace("\0", "") or "unnamed"
        while name.casefold() in taken:
            name = f"source_{name}"
        taken.add(name.casefold())
        columns.append(Column(pa.field(name, plain(field.type)), field.name))
    return tuple(columns)


def plain(type_: pa.DataType) -> pa.DataType:
    """Return the nearest type that Parquet, Delta Lake and DuckDB all have."""
    if isinstance(type_, pa.BaseExtensionType):
        return plain(type_.storage_type)
    if pa.types.is_dictionary(type_):
        return plain(type_.value_type)
    if pa.types.is_struct(type_):
        return pa.struct([pa.field(f.name, plain(f.type)) for f in type_])
    if pa.types.is_map(type_):
        return pa.map_(plain(type_.key_type), plain(type_.item_type))
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(plain(type_.value_type), type_.list_size)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        return pa.list_(plain(type_.value_type))
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", type_.tz)
    if type_.id in _PLAIN:
        return _PLAIN[type_.id]
    if type_.id in _AS_TEXT:
        return pa.string()
    return type_


def clean(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return text that is valid UTF-8 without NUL characters (broken bytes become U+FFFD); other types as they are."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        raw = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
        column = pa.array([None if b is None else b.decode("utf-8", "replace") for b in raw.to_pylist()], column.type)
    if pc.any(pc.match_substring(column, "\0")).as_py():
        column = pc.replace_substring(column, "\0", "")
    return column


def text_of(values: Iterable[bytes | None]) -> pa.Array:
    """Return bytes that claim to be UTF-8 as clean text."""
    return clean(pa.array(values, pa.binary()).cast(pa.string(), safe=False))


_PLAIN: Final = {
    pa.null().id: pa.string(),
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


def _choose(ours: str, wanted: str | None, found: pa.Schema, where: str) -> str | None:
    at = _positions(found.names)
    if wanted is not None:
        name = _same(wanted, at)
        if name is None:
            raise RecipeError(f"{where} has no column {wanted!r} ({ours}){nearest(wanted, found.names)}")
        if not _is_text(found.field(name).type, ours):
            raise RecipeError(f"{where}: column {name!r} ({ours}) is {found.field(name).type}; expected text")
        return name
    names = (at.get(known) for known in KNOWN[ours])
    return next((n for n in names if n is not None and _is_text(found.field(n).type, ours)), None)


def _is_text(type_: pa.DataType, ours: str) -> bool:
    type_ = plain(type_)
    numbers = ours == "label" and (pa.types.is_integer(type_) or pa.types.is_boolean(type_))
    return numbers or pa.types.is_string(type_) or (ours != "label" and pa.types.is_binary(type_))


def _positions(names: Iterable[str]) -> dict[str, str]:
    """Return every name under itself and, where that is free, under its lower case."""
    names = list(names)
    return {n.casefold(): n for n in reversed(names)} | {n: n for n in names}


def _same(name: str | None, at: Mapping[str, str]) -> str | None:
    return None if name is None else at.get(name, at.get(name.casefold()))


def _cast(column: pa.Array | pa.ChunkedArray, to: Column, where: str) -> pa.Array | pa.ChunkedArray:
    if column.type == to.field.type:
        return column
    try:
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.cast(column.type.storage_type)
        loose = pa.types.is_timestamp(to.field.type) or pa.types.is_binary(column.type)  # below microseconds; bad UTF-8
        return column.cast(to.field.type, safe=not loose)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(
            f"{where}: column {to.origin!r} is {column.type}, which cannot become {to.field.type} as in the first file "
            f"({one_line(error)})"
        ) from error
