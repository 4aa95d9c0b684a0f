"""Lists in files: words of which a caption must have one, hosts and URLs that opted out, licences that are allowed.

A list is stored in memory as sorted 128-bit hashes of its entries: 16 bytes per entry and actor (1.6 GB for 100
million; three times that during sorting; reading streams through DuckDB). A row's value is hashed by the same function
and looked up by bisection, so the cost of a batch hardly depends on the length of the list. The probability that any
two of 10^18 pairs of texts share a hash by chance is 3e-21.
"""

from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from catalog.duck import identifier, literal, lock, open_database
from catalog.errors import RecipeError, first_line, nearest
from catalog.user_file import NOT_THERE, unreadable
from tasks.files.digest import digest_of
from tasks.stage import Config

Match = Literal["exact", "host", "suffix"]

_READ_ROWS: Final = 1 << 20
_HOST: Final = r"^[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]*)"
_KEEP_CHARS: Final = 80


class ListFile(Config):
    """A local file of entries: text (one per line), CSV with a header, or Parquet. Text and CSV may be gzipped."""

    file: str = Field(description="a local txt, csv or parquet file; txt and csv may end in .gz")
    entries: str | None = Field(None, description="the column of a csv or parquet file; default: its only column")

    def digest(self) -> str:
        """Return the SHA-256 of the file's content, in hex. Raises RecipeError if it does not exist."""
        path = Path(self.file)
        if (why := unreadable(path)) and why != NOT_THERE:
            raise RecipeError(f"a filter's list {self.file!r} cannot be read: {why}")
        if why:
            beside = [str(p) for p in sorted(path.parent.glob("*")) if p.is_file()] if path.parent.is_dir() else []
            raise RecipeError(f"a filter's list {self.file!r}: no such file{nearest(self.file, beside)}")
        return digest_of(path)

    def check(self) -> None:
        """Raise RecipeError if the file does not exist, or is of another kind."""
        self.digest()
        self.kind()

    def kind(self) -> str:
        """Return txt, csv or parquet. Raises RecipeError for any other file."""
        name = self.file.lower().removesuffix(".gz")
        found = next((kind for kind in ("txt", "csv", "parquet") if name.endswith(f".{kind}")), None)
        if found is None or (found == "parquet" and self.file.lower().endswith(".gz")):
            raise RecipeError(f"a filter's list {self.file!r}: expected .txt, .csv (both also .gz) or .parquet")
        return found


class Words(ListFile):
    """Keep the rows with at least one word that is in a file.

    Words are separated by whitespace and compared exactly: punctuation is not stripped, and `Dog` differs from `dog`
    unless `ignore_case` is set.
    """

    column: str = Field("caption", description="the text column")
    ignore_case: bool = Field(False, description="compare the lower-case forms of both")


class Listed(ListFile):
    """Keep the rows whose value is in a file, or is not."""

    name: str = Field(description="the reason of the rejected rows")
    column: str = Field("url", description="url, licence, sha256: any text column")
    match: Match = Field(
        "exact", description="exact: the value; host: the host of a URL; suffix: that host, or a parent domain"
    )
    keep: Literal["absent", "present"] = Field("absent", description="absent: reject matches; present: keep them")


class Entries(NamedTuple):
    """A loaded list: the hashes of its entries, uint64 upper and lower halves, ascending."""

    upper: np.ndarray
    lower: np.ndarray

    def contain(self, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return which hashes are in the list: bool (n,)."""
        found = np.zeros(len(upper), bool)
        at = np.searchsorted(self.upper, upper)
        open_ = np.arange(len(upper))
        while True:  # one iteration, unless entries share an upper half
            open_ = open_[at[open_] < len(self.upper)]
            open_ = open_[self.upper[at[open_]] == upper[open_]]
            if not len(open_):
                return found
            found[open_] |= self.lower[at[open_]] == lower[open_]
            at[open_] += 1


def read(listed: ListFile, hosts: bool = False, lower: bool = False) -> Entries:
    """Read a list, with `lower` in lower case. With `hosts`, entries are domains (`example.com`, `*.example.com`), or
    URLs, of which the host is used.

    Blank entries and surrounding spaces are ignored. Raises RecipeError if the file cannot be read.
    """
    import duckdb

    entry = "trim(entry, ' \t\r')"
    if hosts:
        url = f"regexp_extract(lower({entry}), '{_HOST}', 1)"
        domain = f"ltrim(ltrim(lower({entry}), '*'), '.')"
        entry = f"rtrim(case when contains(entry, '://') then {url} else {domain} end, '.')"
    elif lower:
        entry = f"lower({entry})"
    with open_database(threads=1, outside=True) as connection:
        try:
            lock(connection, files=[listed.file])
            source = _source(listed, connection)
            entries = f"(select {entry} as e from {source})"
            query = f"select {_hash('e')} from {entries} where e <> ''"
            batches = connection.sql(query).to_arrow_reader(_READ_ROWS)
            pieces = [tuple(column.to_numpy() for column in batch.columns) for batch in batches]
        except duckdb.Error as error:
            raise RecipeError(f"a filter's list {listed.file!r} cannot be read: {first_line(error)}") from None
    return _sorted(pieces)


def _sorted(pieces: list[tuple[Any, ...]]) -> Entries:
    empty = np.empty(0, np.uint64)
    upper, lower = (np.concatenate([empty, *(piece[half] for piece in pieces)]) for half in (0, 1))
    pieces.clear()
    order = np.argsort(upper, kind="stable")
    upper, lower = upper[order], lower[order]
    again = np.zeros(len(upper), bool)
    again[1:] = (upper[1:] == upper[:-1]) & (lower[1:] == lower[:-1])
    return Entries(upper[~again], lower[~again])


def _source(listed: ListFile, connection: Any) -> str:
    """Return the SQL relation of the file, with one text column `entry`."""
    listed.digest()
    path, kind = literal(listed.file), listed.kind()
    if kind == "txt":
        # A delimiter that no text contains: a line is one entry, including quotes and commas.
        options = "header=false, auto_detect=false, delim='\x01', quote='', escape='', strict_mode=false"
        return f"read_csv({path}, {options}, columns={{'entry': 'VARCHAR'}})"
    table = f"read_csv({path}, header=true, all_varchar=true)" if kind == "csv" else f"read_parquet({path})"
    names = [row[0] for row in connection.execute(f"describe select * from {table}").fetchall()]
    name = str(listed.entries or (names[0] if len(names) == 1 else ""))
    if name not in names:
        which = f"columns {', '.join(names)}; specify one as `entries`"
        found = f"no column {name!r}{nearest(name, names)}" if name else which
        raise RecipeError(f"a filter's list {listed.file!r} has {found}")
    return f"(select {identifier(name)}::varchar as entry from {table})"


# ---- look-ups


def fails_words(words: Words, entries: Entries, values: pa.ChunkedArray, connection: Any) -> tuple[Any, Any]:
    """Return which rows are rejected (bool (n,)), and their evidence (string, null for other rows)."""
    # Trimmed first: after white space at the end of a buffer, Arrow's splitting reads past it.
    tokens = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(text(values)))
    rows = pc.list_parent_indices(tokens).to_numpy()
    coded = pc.list_flatten(tokens).dictionary_encode()  # words repeat: each is hashed once
    found = entries.contain(*_hashes(coded.dictionary, connection, words.ignore_case))
    has = np.zeros(len(values), bool)
    has[rows[found[coded.indices.to_numpy()]]] = True
    name = Path(words.file).name
    return ~has, _evidence(words.column, values, f"has no word of {name}", ~has)


def fails_list(listed: Listed, entries: Entries, values: pa.ChunkedArray, connection: Any) -> tuple[Any, Any]:
    """Return which rows are rejected (bool (n,)), and their evidence (string, null for other rows): what matched.

    A null value is in no list.
    """
    array = text(values)
    keys, rows = _keys(array, listed.match, connection)
    found = entries.contain(*_hashes(keys, connection))
    has = np.zeros(len(array), bool)
    has[rows[found]] = True
    name = Path(listed.file).name
    if listed.keep == "present":
        return ~has, _evidence(listed.column, array, f"is not in {name}", ~has)
    matched = np.full(len(array), -1)
    matched[rows[found][::-1]] = np.flatnonzero(found)[::-1]  # the first key that matched: the longest domain
    as_entry = _joined(f"is in {name} as ", keys.take(pa.array(matched, mask=~has)))
    return has, _evidence(listed.column, array, as_entry, has)


def text(values: pa.ChunkedArray) -> pa.Array:
    """Return text as one array of valid UTF-8; invalid bytes become replacement characters."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    raw = array.cast(pa.large_binary())
    try:
        return raw.cast(pa.large_string())
    except pa.ArrowInvalid:
        decoded = (None if value is None else value.decode("utf-8", "replace") for value in raw.to_pylist())
        return pa.array(decoded, pa.large_string())


def _keys(values: pa.Array, match: Match, connection: Any) -> tuple[pa.Array, np.ndarray]:
    """Return the values to look up, longest domains first, and the row of each: int64."""
    if match == "exact":
        return values, np.arange(len(values))
    table = pa.table({"value": values})
    connection.register("keyed", table)
    query = f"select rtrim(regexp_extract(lower(value), '{_HOST}', 1), '.') as host from keyed"
    hosts = connection.sql(query).to_arrow_table().column("host").combine_chunks()
    connection.unregister("keyed")
    hosts = hosts.cast(pa.large_string())
    if match == "host":
        return hosts, np.arange(len(hosts))
    keys, rows, left = [hosts], [np.arange(len(hosts))], hosts
    while True:
        below = pc.greater_equal(pc.fill_null(pc.find_substring(left, "."), -1), 0)
        if not pc.any(below).as_py():
            break
        mine = below.to_numpy(zero_copy_only=False)
        left = pc.replace_substring_regex(left.filter(below), r"^[^.]*\.", "")
        keys.append(left)
        rows.append(rows[-1][mine])
    return pa.concat_arrays(keys), np.concatenate(rows)


def _hashes(keys: pa.Array, connection: Any, lower: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the halves of the hash of every text, uint64; null is hashed as empty text, which no list contains."""
    connection.register("keys", pa.table({"key": keys}))
    key = "lower(coalesce(key, ''))" if lower else "coalesce(key, '')"  # by DuckDB, like the list's entries
    found = connection.sql(f"select {_hash(key)} from keys").to_arrow_table()
    connection.unregister("keys")
    return found.column("u").to_numpy(), found.column("l").to_numpy()


def _hash(text_: str) -> str:
    """Return the SQL of the two halves of a hash: DuckDB's 64-bit hash, made independent by a prefix."""
    return f"hash({text_}) as u, hash('espalier' || {text_}) as l"


def _evidence(column: str, values: Any, says: Any, where: np.ndarray) -> pa.Array:
    """Return `column=value` followed by `says`: string (n,), null except `where`."""
    shown = pc.fill_null(pc.utf8_slice_codeunits(text(values), 0, _KEEP_CHARS), "null")
    sentence = _joined(f"{column}=", shown, " ", says).cast(pa.string())
    return pc.if_else(pa.array(where), sentence, pa.scalar(None, pa.string()))


def _joined(*parts: Any) -> Any:
    """Concatenate texts and columns of texts: large_string (n,)."""
    wide = (pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in parts)
    return pc.binary_join_element_wise(*wide, pa.scalar("", pa.large_string()))
