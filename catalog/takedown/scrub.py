"""Erase the text of taken-down rows from everything else: other tables, notes, recipes and the builder's state.

Rows of samples are erased by `catalog.takedown.erase`. A URL, a file name or a caption may also occur in the error of a
run, in a recipe (a saved search records its query), in an example in a stage's notes, or in the name of a concept.
`Words` are the texts of the rows, read before the rows are erased; a `Scrubber` replaces them.

A URL is replaced wherever it occurs as a whole. A caption that could be a common word (`fox`) is replaced only where it
is the whole query of a search, a longer one wherever it occurs. JSON and YAML are parsed and written again, so that a
replacement cannot break them.
"""

import html
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from catalog.dataset import Dataset
from catalog.edges import SAVED
from catalog.edges import TABLE as EDGES_TABLE
from catalog.lookup import rows_of
from catalog.parts import NOTES
from catalog.schema import TAKEN_URL
from catalog.seal import sealed_parquet
from catalog.takedown.amend import amend
from catalog.takedown.ledger import STATE, Ledger
from catalog.takedown.reach import columns_of, opened, parts_of

CONCEPTS: Final = "concepts"
"""Table with one row a cluster: a name from its captions (`name_caption`), samples (`nearest`, `farthest`)."""
TAKEN_TEXT: Final = "(taken down)"
"""The replacement of a caption or a file name."""
_SPOKEN: Final = {"source": ("url", "caption", "local_path"), "images": ("final_url",)}
_LONG: Final = 12
"""Least bytes of a caption that is considered unique, if it also is not a plain word as recipes use them."""
_PLAIN: Final = re.compile(r"[a-z0-9_.:/-]+")
_BEFORE: Final = r"(?<!\w)"
_AFTER: Final = r"(?![\w?/&=%#~+@-]|[.,:;!]\w)"
"""What may follow a whole URL or text: /1 is not /12, and /a is not /a.jpg."""


@dataclass(frozen=True)
class Words:
    """The texts of erased rows."""

    addresses: frozenset[str] = frozenset()
    """URLs and paths of files."""
    files: frozenset[str] = frozenset()
    """Names of local files."""
    captions: frozenset[str] = frozenset()

    def joined(self, other: "Words") -> "Words":
        """Return the union of the words."""
        return Words(self.addresses | other.addresses, self.files | other.files, self.captions | other.captions)

    @property
    def needles(self) -> dict[str, str]:
        """Text to replace wherever it occurs -> its replacement."""
        own = {caption: TAKEN_TEXT for caption in self.captions if _is_own(caption)}
        return own | dict.fromkeys(self.files, TAKEN_TEXT) | dict.fromkeys(self.addresses, TAKEN_URL)


def words_of(dataset: Dataset, sample_ids: np.ndarray) -> Words:
    """Return the texts of rows, int64 (n,) ascending, in all parts of all versions; none of rows already erased."""
    values: dict[str, set[str]] = {}
    for table, names in _SPOKEN.items():
        for path in parts_of(dataset, table):
            there = [name for name in names if name in columns_of(dataset.storage, path)]
            rows = rows_of(dataset.storage, [path], sample_ids, there)
            for name in there:
                values.setdefault(name, set()).update(pc.unique(rows.column(name)).drop_null().to_pylist())
    urls = values.get("url", set()) | values.get("final_url", set())
    paths = values.get("local_path", set())
    files = {name for path in paths if "." in (name := re.split(r"[/\\#]", path)[-1]) and len(name) >= _LONG // 2}
    return Words(frozenset((urls | paths) - {TAKEN_URL, ""}), frozenset(files), frozenset(values.get("caption", ())))


def _is_own(caption: str) -> bool:
    """Return whether a caption is considered unique: long, and not a plain word as recipes use them."""
    return len(caption.encode("utf-8", "replace")) >= _LONG and not _PLAIN.fullmatch(caption)


def variants(word: str) -> set[str]:
    """Return the spellings of a word in files: plain, and escaped as in JSON, Python and HTML."""
    spelled = {word, repr(word)[1:-1], html.escape(word)}
    return spelled | {json.dumps(word, ensure_ascii=ascii)[1:-1] for ascii in (True, False)}


class Scrubber:
    """Replaces words and every URL that a ledger lists."""

    def __init__(self, words: Words, ledger: Ledger) -> None:
        self._ledger = ledger
        self._captions = words.captions
        self._needles = {spelled: put for word, put in words.needles.items() for spelled in variants(word)}

    def texts(self, values: Sequence[str | None]) -> list[str | None]:
        """Return texts with the words replaced."""
        blob = "\0".join(text for text in values if text)
        here = {word: put for word, put in self._needles.items() if word in blob}  # few of many words occur at all
        listed = [None if text is None else self._ledger.scrubbed(text) for text in values]
        if not here:
            return listed
        longest = sorted(here, key=len, reverse=True)
        pattern = re.compile(_BEFORE + "(" + "|".join(map(re.escape, longest)) + ")" + _AFTER)
        return [None if text is None else pattern.sub(lambda found: here[found[1]], text) for text in listed]

    def finds(self, text: str) -> bool:
        """Return whether a text contains one of the words, or a listed URL."""
        return any(word in text for word in self._needles) or self._ledger.scrubbed(text) != text

    def text(self, value: str) -> str:
        """Return a text with the words replaced."""
        return self.texts([value])[0] or ""

    def value(self, given: Any) -> Any:
        """Return a JSON value with the words replaced; entries whose key contains one are removed."""
        spoken: list[str] = []

        def note(text: str) -> str:
            spoken.append(text)
            return text

        _walk(given, note)
        clean = dict(zip(spoken, self.texts(spoken), strict=True))
        return _walk(given, lambda text: clean[text] or "")

    def asked(self, given: Any) -> Any:
        """Return the query of a search with the words replaced, and with a caption that is its whole text replaced."""
        if isinstance(given, dict) and given.get("text") in self._captions:
            given = given | {"text": TAKEN_TEXT}
        return self.value(given)

    def recipe(self, text: str) -> str:
        """Return a recipe's text with the words replaced. If there was one, comments are lost."""
        try:
            parsed = yaml.safe_load(text)
        except yaml.YAMLError:
            return self.text(text)
        clean = self.value(parsed)
        if isinstance(clean, dict) and SAVED in clean:
            clean[SAVED] = self.asked(clean[SAVED])
        if clean == parsed:
            return text if self.text(text) == text else _dumped(clean)
        return _dumped(clean)


def _dumped(parsed: Any) -> str:
    return str(yaml.safe_dump(parsed, sort_keys=False, allow_unicode=True))


def _walk(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value with a function applied to every string; entries of objects whose key would change are removed."""
    if isinstance(value, dict):
        pairs = [(key, change(key) if isinstance(key, str) else key, _walk(v, change)) for key, v in value.items()]
        return {key: kept for key, changed, kept in pairs if key == changed}
    if isinstance(value, list | tuple):
        return [_walk(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def scrub(dataset: Dataset, sample_ids: np.ndarray, clusters: Iterable[int], scrubber: Scrubber) -> None:
    """Replace the words in everything that a dataset stores besides its samples. Safe to repeat after a kill.

    Concepts that contained a row lose the name that was made from captions, and no longer list the row.
    """
    changed = set()
    for path in plain_parts(dataset):
        with opened(dataset.storage, path) as file:
            before = file.read()
        after = _scrubbed(before, scrubber)
        if path.startswith(f"{CONCEPTS}/"):
            after = unnamed(after, sample_ids, clusters)
        if not after.equals(before, check_metadata=True):
            _write(dataset, path, after)
            changed.add(path.partition("/")[0])
    for table in sorted(changed | {"runs"}):  # a log may contain the smallest and the largest value of a column
        amend(dataset.storage, table, parts_of(dataset, table))
    _scrub_versions(dataset, scrubber)
    for name in dataset.states():
        if name != STATE:
            state = dataset.state(name)
            if (clean := scrubber.value(state)) != state:
                dataset.set_state(name, clean)


def plain_parts(dataset: Dataset) -> list[str]:
    """Return the parts of tables that are not of samples, and the log of runs."""
    parts = [path for table in (*dataset.tables(), "runs") if table != EDGES_TABLE for path in parts_of(dataset, table)]
    return [path for path in parts if "sample_id" not in columns_of(dataset.storage, path)]


def unnamed(concepts: pa.Table, sample_ids: np.ndarray, clusters: Iterable[int]) -> pa.Table:
    """Return concepts without the row, and without names from captions in clusters that contained it."""
    gone, of = set(sample_ids.tolist()), pa.array(list(clusters), pa.int64())
    for at, column in enumerate(concepts.schema):
        if column.name == "name_caption":
            hit = pc.is_in(concepts.column("cluster").cast(pa.int64()), of)
            values = pc.if_else(hit, pa.scalar(None, column.type), concepts.column(at))
        elif column.name in ("nearest", "farthest"):
            lists = concepts.column(at).to_pylist()
            values = pa.array([ids and [i for i in ids if i not in gone] for ids in lists], column.type)
        else:
            continue
        concepts = concepts.set_column(at, column, values)
    return concepts


def _scrubbed(rows: pa.Table, scrubber: Scrubber) -> pa.Table:
    for at, column in enumerate(rows.schema):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            values = scrubber.texts(rows.column(at).to_pylist())
        elif _holds_text(column.type):
            values = [scrubber.value(value) for value in rows.column(at).to_pylist()]
        else:
            continue
        rows = rows.set_column(at, column, pa.array(values, column.type))
    notes = (rows.schema.metadata or {}).get(NOTES)
    if notes is None:
        return rows
    clean = json.dumps(scrubber.value(json.loads(notes)), sort_keys=True).encode()
    return rows.replace_schema_metadata({**rows.schema.metadata, NOTES: clean}) if clean != notes else rows


def _holds_text(kind: pa.DataType) -> bool:
    """Return whether values of a nested type may contain strings."""
    inner = [kind.field(at).type for at in range(kind.num_fields)] if pa.types.is_nested(kind) else []
    return any(pa.types.is_string(t) or pa.types.is_large_string(t) or _holds_text(t) for t in inner)


def _write(dataset: Dataset, path: str, rows: pa.Table) -> None:
    dataset.storage.put(path, sealed_parquet(rows))


def _scrub_versions(dataset: Dataset, scrubber: Scrubber) -> None:
    """Replace the words in the recipes, stages and inputs of versions, including replaced rows of versions."""
    for path in parts_of(dataset, "versions"):
        before = pq.read_table(io.BytesIO(dataset.storage.read(path)))
        after = before
        for name, clean in (("recipe", scrubber.recipe), ("stages", _stages(scrubber)), ("inputs", _json(scrubber))):
            at = after.column_names.index(name)
            values = [None if text is None else clean(text) for text in after.column(at).to_pylist()]
            after = after.set_column(at, after.schema.field(at), pa.array(values, pa.string()))
        if not after.equals(before):
            _write(dataset, path, after)
    amend(dataset.storage, "versions", parts_of(dataset, "versions"))


def _json(scrubber: Scrubber) -> Callable[[str], str]:
    def clean(text: str) -> str:
        parsed = json.loads(text)
        now = scrubber.value(parsed)
        return text if now == parsed else json.dumps(now)

    return clean


def _stages(scrubber: Scrubber) -> Callable[[str], str]:
    def clean(text: str) -> str:
        parsed = json.loads(text)
        now = scrubber.value(parsed)
        for stage in now:
            if stage.get("use") == "search":
                stage["parameters"] = scrubber.asked(stage.get("parameters"))
        return text if now == parsed else json.dumps(now)

    return clean
