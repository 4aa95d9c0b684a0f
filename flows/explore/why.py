"""Why a row is in a version, or out: its whole story, from the file that it came from to the shard that it is in.

A row is asked for by its sample_id, which row-group statistics find without reading what else there is, or by its URL,
which takes one scan of the source.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from catalog import lineage
from catalog.database import SCORES_TABLE, connect
from catalog.dataset import Catalog, Dataset
from catalog.duck import identifier
from catalog.errors import NotFoundError, RecipeError
from catalog.parts import fingerprint_of
from catalog.rejection import rejects_sql, rejects_value
from catalog.schema import PLACE_NAMES, SAMPLE_BITS, role
from catalog.takedown.ledger import REASON as TAKEN_DOWN
from catalog.takedown.ledger import Ledger
from catalog.version import Version
from flows.build.plan import NUMBERS
from flows.recipe.recipe import parse, stage_model

if TYPE_CHECKING:
    import duckdb
    from rich.console import RenderableType
    from rich.text import Text

Row = dict[str, Any]

STATISTICS: Final = ("phash", "brightness", "brightness_p5", "brightness_p99", "blur", "entropy", "greyscale")
_RELATIVES: Final = (("made from", "parents"), ("used for", "children"))
"""Heading -> the rows of a story that are linked to it by an edge."""
_MOST_RELATIVES: Final = 20
_NEAR: Final = 0.9
"""How alike (Jaro-Winkler, 0..1) a known URL must be to be suggested."""


def stories(catalog: Catalog, label: str, key: str) -> list[Row]:
    """Return the story of every row of a version (`laion` or `laion@3`) with this URL, or of one sample_id, as JSON.

    Raises NotFoundError, with the nearest known URL, where there is no such row.
    """
    version = catalog.resolve(label)
    dataset = catalog.existing(version.dataset)
    if "source" not in version.tables:
        raise NotFoundError(f"{version.label} has no table 'source', so its rows have no story")
    found = []
    for sample_id in _find(dataset, version, key):
        only = frozenset([sample_id])
        at = {dataset.name: version.number}
        with connect(catalog, at, [dataset.name], statement=lineage.VIEW, rows=only) as connection:
            found.append(_Teller(connection, dataset, version).story(sample_id))
    return found


def _scan(dataset: Dataset, version: Version, text: str, *values: Any) -> list[Row]:
    """Run a query over all rows of the tables that it names."""
    at = {dataset.name: version.number}
    with connect(dataset.catalog, at, [dataset.name], statement=text) as connection:
        rows: list[Row] = connection.sql(text, params=list(values)).to_arrow_table().to_pylist()
        return rows


def _find(dataset: Dataset, version: Version, key: str) -> list[int]:
    """Return the sample_ids that a key means, ascending."""
    if key.isdecimal():
        known = len(key) <= 19 and int(key) < 1 << 63  # 64 bits
        if not known or not _scan(dataset, version, f"select sample_id from source where sample_id = {int(key)}"):
            raise NotFoundError(f"{version.label} has no row with the sample_id {key[:40]}")
        return [int(key)]
    found = _scan(dataset, version, "select sample_id from source where url = ? order by 1", key)
    if not found:
        ledger = Ledger.read(dataset.storage)
        if ledger.url(key) in ledger.urls:
            raise NotFoundError(f"{key!r} was taken down: espalier takedown {dataset.name} --list")
        near = _scan(
            dataset,
            version,
            "select url, jaro_winkler_similarity(url, ?) as alike from source where alike >= ? "
            "order by alike desc, url limit 1",
            key,
            _NEAR,
        )
        hint = f"; did you mean {near[0]['url']!r}?" if near else "; a row is named by its URL or its sample_id"
        raise NotFoundError(f"{version.label} has no row with the URL {key!r}{hint}")
    return [row["sample_id"] for row in found]


class _Teller:
    """Collects what a version records about a row; its connection shows only the parts that may hold the row."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection", dataset: Dataset, version: Version) -> None:
        self._connection = connection
        self._dataset = dataset
        self._version = version
        shown = {name for (name,) in connection.execute("select table_name from information_schema.tables").fetchall()}
        self._names = {t: SCORES_TABLE if t == "scores" and SCORES_TABLE in shown else t for t in version.tables}
        self._schemas = {table: dataset.schema(version, table) for table in version.tables}
        self._order = {str(stage["name"]): at for at, stage in enumerate(version.stages)}
        self._thresholds = {str(stage["name"]): _thresholds(stage) for stage in version.stages}

    def story(self, sample_id: int) -> Row:
        """Return all that is known of one row."""
        source = self._rows("source", sample_id)[0]
        images = self._one("images", sample_id)
        decisions = self._decisions(sample_id)
        named = {"sample_id", "url", "caption", "label"}
        return {
            "version": self._version.label,
            "sample_id": sample_id,
            **{name: source.get(name) for name in ("url", "caption", "label")},
            "columns": {name: value for name, value in source.items() if name not in named},
            "source": self._origin(sample_id),
            "images": {k: v for k, v in images.items() if k not in STATISTICS} if images else None,
            "statistics": {k: v for k, v in images.items() if k in STATISTICS} if images else {},
            "scores": self._scores(sample_id),
            "decisions": decisions,
            "cluster": self._cluster(sample_id),
            "stands_for": self._stands_for(sample_id),
            "parents": self._relatives(
                "parent_dataset as dataset, parent as sample_id", "dataset", "sample_id", sample_id
            ),
            "children": self._relatives("dataset, sample_id", "parent_dataset", "parent", sample_id),
            "verdict": self._verdict(source, images, decisions),
            "published": self._published(sample_id),
        }

    def _decisions(self, sample_id: int) -> list[Row]:
        if "decisions" not in self._names:
            return []
        found = self._rows("decisions", sample_id)
        found.sort(key=lambda row: self._order.get(row["stage"], len(self._order)))
        for row in found:
            row["thresholds"] = self._thresholds.get(row["stage"], {})
            stands = row["representative"]
            row["numbers"] = dict(row.get("numbers") or ())
            twin = [] if stands is None else self._scan(f"select * from source where sample_id = {stands}")
            row["representative_url"] = twin[0].get("url") if twin else None
            del row["sample_id"]
        return found

    def _verdict(self, source: Row, images: Row | None, decisions: Sequence[Row]) -> Row:
        makers = {s.get("table"): s["name"] for s in reversed(self._version.stages)}
        if images and rejects_value(images["status"], "status"):
            maker = makers.get("images", "images")
            return {"keep": False, "stage": maker, "reason": images["reason"], "evidence": images.get("detail")}
        if rejects_value(source.get("url"), "url"):
            return {"keep": False, "stage": makers.get("source", "source"), "reason": TAKEN_DOWN, "evidence": None}
        out = next((row for row in decisions if rejects_value(row["keep"], "keep")), None)
        return {"keep": out is None} | {k: out[k] if out else None for k in ("stage", "reason", "evidence")}

    def _scores(self, sample_id: int) -> Row:
        found: Row = {}
        for table, schema in self._schemas.items():
            names = [f.name for f in schema if role(f) == "score" or (table == "scores" and f.name != "sample_id")]
            if table != "samples" and names and "sample_id" in schema.names:
                row = self._one(table, sample_id, names) or {}
                found |= {name: row.get(name) for name in names}
        return found

    def _cluster(self, sample_id: int) -> Row | None:
        if "clusters" not in self._schemas or not {"cluster", "distance"} <= set(self._schemas["clusters"].names):
            return None
        row = self._one("clusters", sample_id, ["cluster", "distance"])
        if row is None or row["cluster"] is None:
            return None
        ranks = self._scan(
            "select count(*) filter (distance < ?) + 1 as rank, count(*) as of from clusters where cluster = ?",
            row["distance"],
            row["cluster"],
        )
        return row | ranks[0]

    def _stands_for(self, sample_id: int) -> int:
        if "decisions" not in self._names:
            return 0
        query = f"select count(*) as n from decisions where representative = ? and {rejects_sql('keep')}"
        found = self._scan(query, sample_id)
        return int(found[0]["n"])

    def _relatives(self, columns: str, dataset: str, row: str, sample_id: int) -> list[Row]:
        """Return the rows that are linked to a row by an edge: dataset, sample_id, role, weight of each."""
        query = (
            f"select {columns}, role, weight from main.{lineage.VIEW} where {dataset} = ? and {row} = ? order by all"
        )
        return self._ask(query, self._dataset.name, sample_id)

    def _published(self, sample_id: int) -> Row | None:
        if "samples" not in self._names or not self._rows("samples", sample_id):
            return None
        place = [n for n in PLACE_NAMES if n in self._schemas["samples"].names]
        return self._one("samples", sample_id, place) if place else {}

    def _origin(self, sample_id: int) -> Row:
        """Return the part, and the file and its row where the recipe and the part numbers still tell."""
        number, row = sample_id >> SAMPLE_BITS, sample_id & ((1 << SAMPLE_BITS) - 1)
        found = _chunk_of(self._dataset, self._version, number)
        return {"part": number, "file": found[0] if found else None, "row": found[1] + row if found else None}

    def _one(self, table: str, sample_id: int, columns: Sequence[str] = ()) -> Row | None:
        return next(iter(self._rows(table, sample_id, columns)), None) if table in self._names else None

    def _rows(self, table: str, sample_id: int, columns: Sequence[str] = ()) -> list[Row]:
        chosen = columns or [f.name for f in self._schemas[table] if role(f) != "vector"]
        listed = ", ".join(identifier(name) for name in chosen)
        return self._ask(f"select {listed} from {identifier(self._names[table])} where sample_id = ?", sample_id)

    def _scan(self, text: str, *values: Any) -> list[Row]:
        return _scan(self._dataset, self._version, text, *values)

    def _ask(self, text: str, *values: Any) -> list[Row]:
        rows: list[Row] = self._connection.sql(text, params=list(values)).to_arrow_table().to_pylist()
        return rows


def _thresholds(stage: Mapping[str, Any]) -> Row:
    """Return the parameters of a stage of a version that its class declares as thresholds, those that are set."""
    parameters = stage.get("parameters") or {}
    model = stage_model(stage["use"], parameters.get("method"))
    names = model.thresholds if model else ()  # None: a stage of another release
    return {name: parameters[name] for name in names if parameters.get(name) not in (None, {})}


def _chunk_of(dataset: Dataset, version: Version, number: int) -> tuple[str, int] | None:
    """Return (file, first row) of the chunk that a part was made from; None if it can no longer be determined.

    A part's number hangs on its chunk's content (`flows.build.plan`): the chunks that the recipe cuts are tried.
    """
    numbers: Mapping[str, int] = dataset.state(NUMBERS)
    key = next((k for k, n in numbers.items() if n == number), None)
    try:
        size = parse(version.recipe, version.label).source.rows_per_part
    except RecipeError:  # of another release
        return None
    seen: dict[tuple[str, int, int], int] = {}
    for file in version.inputs:
        if "dataset" in file:  # a version of another dataset that stages read
            continue
        for start in range(0, file["rows"], size):
            content = (file["sha256"], start, min(size, file["rows"] - start))
            copy = seen.get(content, 0)
            seen[content] = copy + 1
            if fingerprint_of(content, copy) == key:
                return str(file["uri"]), start
    return None


def render(found: Sequence[Row]) -> "RenderableType":
    """Return stories as a terminal shows them."""
    from rich.console import Group

    return Group(*(line for story in found for line in _lines(story)))


def _lines(story: Row) -> "list[RenderableType]":
    from rich.table import Table
    from rich.text import Text

    verdict = story["verdict"]
    head = Text(f"{story['version']}  sample {story['sample_id']}  ", style="bold")
    head.append(_plain(story["url"]), style="cyan")
    sign = Text("  kept" if verdict["keep"] else f"  rejected: {verdict['reason']}, by {verdict['stage']}")
    sign.stylize("green" if verdict["keep"] else "red")
    body = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    body.add_column(style="bold")
    body.add_column(overflow="fold")
    for name, text in _facts(story):
        body.add_row(name, text)
    return [head + sign, body, Text()]


def _facts(story: Row) -> "list[tuple[str, Text]]":
    from rich.text import Text

    facts = [("came from", _came_from(story["source"]))]
    facts += [(name, _plain(story[name])) for name in ("caption", "label") if story[name] is not None]
    if story["images"]:
        facts.append(("fetched", _fetched(story["images"])))
    for name in ("statistics", "scores"):
        if shown := ", ".join(f"{k} {_number(v)}" for k, v in story[name].items() if v is not None):
            facts.append((name, shown))
    facts += [(row["stage"], _judged(row, story["version"])) for row in story["decisions"]]
    if cluster := story["cluster"]:
        place = f"number {cluster['rank']:,} of {cluster['of']:,} from its centre"
        facts.append(("cluster", f"{cluster['cluster']}, distance {_number(cluster['distance'])}: {place}"))
    if story["stands_for"]:
        facts.append(("stands for", f"{story['stands_for']:,} of the rejected rows"))
    facts += [(title, _relatives(story[key])) for title, key in _RELATIVES if story[key]]
    facts.append(("published", _place(story["published"])))
    return [(name, Text(text)) for name, text in facts]


def _came_from(source: Row) -> str:
    file = f"{_plain(source['file'])}, row {source['row']:,} " if source["file"] else ""
    return f"{file}(part {source['part']})"


def _fetched(images: Row) -> str:
    if rejects_value(images["status"], "status"):
        return f"failed: {images['reason']}" + (f": {_plain(images['detail'])}" if images.get("detail") else "")
    size = f"{images['width']} x {images['height']} {images['format']}"
    was = f", received {images['original_width']} x {images['original_height']}"
    return f"{size}{was}, sha256 {images['sha256']}"


def _judged(row: Row, version: str) -> str:
    lines = "kept" if row["keep"] else f"rejected: {row['reason']}"
    lines += f" ({_plain(row['evidence'])})" if row["evidence"] else ""
    if shown := ", ".join(f"{name} {_number(value)}" for name, value in row["numbers"].items()):
        lines += f"\nnumbers: {_plain(shown)}"
    if row["representative"] is not None:
        alike = f", similarity {_number(row['similarity'])}" if row["similarity"] is not None else ""
        stands = f"sample {row['representative']} {_plain(row['representative_url'])}{alike}"
        lines += f"\nits representative: {stands}\nespalier why {version} {row['representative']}"
    asked = ", ".join(f"{name}: {value}" for name, value in row["thresholds"].items())
    return lines + (f"\nasked for {_plain(asked)}" if asked else "")


def _relatives(rows: Sequence[Row]) -> str:
    """Return rows of datasets with what they were for, a line each."""
    lines = [f"{row['dataset']} {row['sample_id']} ({_plain(row['role'])})" for row in rows[:_MOST_RELATIVES]]
    if len(rows) > _MOST_RELATIVES:
        lines.append(f"and {len(rows) - _MOST_RELATIVES:,} more")
    return "\n".join(lines)


def _place(published: Row | None) -> str:
    if published is None:
        return "no"
    if not published.get("shard"):
        return "yes"
    return f"{published['shard']}, {published['byte_size']:,} bytes at {published['byte_offset']:,}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> str:
    """Return text that a terminal can take: it is the web's."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else " " for c in text[:500])
