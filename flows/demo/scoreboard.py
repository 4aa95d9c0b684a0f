"""Check the demo: compare the outcome of every planted row with the ground truth, which the build never reads.

All checks count rows in SQL over Arrow tables; they use none of the numbers that the build reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from catalog.duck import identifier, open_database
from catalog.rejection import rejects_sql
from catalog.wording import amount

if TYPE_CHECKING:
    import duckdb
    from rich.console import RenderableType

REJECTED: Final = rejects_sql("keep")
"""Of a row of `decisions`."""
MIN_REENCODED_RECALL: Final = 0.95
MAX_FALSE_MERGES: Final = 0.005
MIN_PURITY: Final = 0.85
MIN_AUC: Final = 0.90
_EXAMPLES: Final = 8


@dataclass(frozen=True)
class Check:
    """One line of the scoreboard. `found` is compared with `planted`; `value` is the number that has a goal."""

    name: str
    found: int
    planted: int
    value: float
    goal: str
    passed: bool
    detail: tuple[str, ...] = ()
    """Deviations, one line a kind, the most frequent first."""


def score(
    truth: pa.Table,
    *,
    source: pa.Table,
    images: pa.Table,
    decisions: pa.Table,
    clusters: pa.Table | None = None,
    embeddings: pa.Table | None = None,
    samples: pa.Table | None = None,
    keep: float | None = None,
    score_column: str = "clip_score",
    filter_stage: str = "filter",
    deduplicate_stage: str | None = "deduplicate",
    prune_stage: str = "prune",
) -> list[Check]:
    """Return the checks of a build of a planted web. Checks whose tables are not given are omitted.

    Columns used: source (sample_id, url, caption), images (sample_id, status, reason), decisions (as
    `catalog.schema.DECISIONS`), clusters (sample_id, cluster), embeddings (sample_id and `score_column`), samples
    (sample_id). `keep` is the fraction that the recipe's `prune` keeps.
    """
    with open_database() as db:
        tables = {"truth": truth, "source": source, "images": images, "decisions": decisions}
        for name, table in tables.items():
            db.register(name, table)
        db.execute(_JOINED)
        checks = [_rows(db), _captions(db), _ordinary(db, filter_stage), _hazards(db, filter_stage)]
        if deduplicate_stage is not None:
            judged = _judged(filter_stage, deduplicate_stage)
            checks += [_exact(db, judged), _reencoded(db, judged), _false_merges(db, judged)]
        if clusters is not None:
            db.register("clusters", clusters)
            checks.append(_purity(db))
        if embeddings is not None:
            db.register("embeddings", embeddings)
            checks.append(_wrong_captions(db, score_column))
        if keep is not None:
            checks.append(_kept(db, prune_stage, keep))
        if samples is not None:
            db.register("samples", samples.select(["sample_id"]))
            checks.append(_balance(db))
    return checks


_JOINED: Final = """
create table planted as
with t as (select *, row_number() over (partition by coalesce(url, '') order by url nulls first) as nth from truth),
     s as (select *, row_number() over (partition by coalesce(url, '') order by url nulls first, sample_id) as nth
           from source)
select t.* exclude (nth), s.sample_id, s.caption as found_caption, i.status, i.reason
from t left join s on coalesce(t.url, '') = coalesce(s.url, '') and t.nth = s.nth
left join images i using (sample_id)
"""
"""URLs are unique except for empty and null ones, which are equivalent; a lost row has no sample_id."""


def render(checks: Sequence[Check], stages: Sequence[Mapping[str, Any]] = ()) -> "RenderableType":
    """Return the scoreboard for a terminal. `stages`: stage, seconds, rows, parts, cached_parts, bytes of each."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    board = Table(title="Scoreboard: found against planted", title_justify="left", show_edge=False, pad_edge=False)
    for name, justify in (("", "left"), ("check", "left"), ("found", "right"), ("planted", "right")):
        board.add_column(name, justify=justify)  # type: ignore[arg-type]
    board.add_column("value", justify="right")
    board.add_column("goal")
    for check in checks:
        mark = Text("ok", "green") if check.passed else Text("NO", "bold red")
        found, planted = f"{check.found:,}", f"{check.planted:,}"
        board.add_row(mark, check.name, found, planted, f"{check.value:.4g}", check.goal)
    amiss = [Text(f"   {check.name}: {line}", "red") for check in checks if not check.passed for line in check.detail]
    if not stages:
        return Group(board, *amiss)
    costs = Table(title="Stages", title_justify="left", show_edge=False, pad_edge=False)
    costs.add_column("stage")
    for name in ("seconds", "rows", "parts", "cached", "MB"):
        costs.add_column(name, justify="right")
    for stage in stages:
        costs.add_row(
            str(stage["stage"]),
            f"{stage['seconds']:.1f}",
            f"{stage['rows']:,}",
            f"{stage['parts']:,}",
            f"{stage['cached_parts']:,}",
            f"{stage['bytes'] / 1e6:,.1f}",
        )
    return Group(board, *amiss, Text(), costs)


def _rows(db: "duckdb.DuckDBPyConnection") -> Check:
    planted, found = _one(db, "select count(*), count(sample_id) from planted")
    (rows,) = _one(db, "select count(*) from source")
    lost = _lines(db, "select 'lost ' || coalesce(url, 'the row without a URL') from planted where sample_id is null")
    detail = [*lost, f"{amount(rows - found, 'row')} that nobody planted"] if rows != found else lost
    return Check("rows of the source", found, planted, found / planted, "all", found == planted == rows, tuple(detail))


def _captions(db: "duckdb.DuckDBPyConnection") -> Check:
    """Captions must not change; sources drop NUL characters, and an empty caption may become null."""
    same = "replace(coalesce(caption, ''), chr(0), '') = replace(coalesce(found_caption, ''), chr(0), '')"
    found, planted = _one(db, f"select count(*) filter ({same}), count(*) from planted")
    detail = _lines(db, f"select coalesce(hazard, 'ordinary') || ': ' || url from planted where not ({same})")
    return Check("captions as they were", found, planted, found / planted, "all", found == planted, detail)


def _outcome(filter_stage: str) -> str:
    """Return a query: every planted row with its outcome in download and filter, as `stage` and `why`."""
    return f"""
        select p.*,
            case when p.sample_id is null then 'lost' when {rejects_sql("status", "p.status")} then 'download'
                 when d.sample_id is not null then 'filter' end as stage,
            case when {rejects_sql("status", "p.status")} then coalesce(p.reason, 'no reason') else d.reason end as why
        from planted p left join (select sample_id, min(reason) as reason from decisions
                                  where stage = '{filter_stage}' and {REJECTED} group by 1) d using (sample_id)
    """


def _ordinary(db: "duckdb.DuckDBPyConnection", filter_stage: str) -> Check:
    rows = f"({_outcome(filter_stage)}) where hazard is null"
    found, planted = _one(db, f"select count(*) filter (stage is null), count(*) from {rows}")
    detail = _lines(
        db,
        f"select stage || ' ' || why || ' (' || count(*) || ')' from {rows} and stage is not null group by stage, why",
    )
    return Check("ordinary rows came through", found, planted, found / planted, "all", found == planted, detail)


def _hazards(db: "duckdb.DuckDBPyConnection", filter_stage: str) -> Check:
    rows = f"({_outcome(filter_stage)}) where hazard is not null"
    right = "stage is not distinct from expected_stage and why is not distinct from expected_reason"
    found, planted = _one(db, f"select count(*) filter ({right}), count(*) from {rows}")
    detail = _lines(
        db,
        f"""select hazard || ': expected ' || coalesce(expected_stage || ' ' || expected_reason, 'to come through')
            || ', found ' || coalesce(stage || ' ' || coalesce(why, ''), 'it came through') || ' (' || count(*) || ')'
        from {rows} and not ({right}) group by hazard, expected_stage, expected_reason, stage, why
        order by count(*) desc, hazard""",
    )
    return Check("hazards with the right reason", found, planted, found / planted, "all", found == planted, detail)


def _judged(filter_stage: str, stage: str) -> str:
    """Return a query: the images that deduplication judged, with its verdict; kept if it has none."""
    return f"""
        select p.* exclude (stage, why), coalesce(d.keep, true) as keep, d.reason as why, d.representative, d.similarity
        from ({_outcome(filter_stage)}) p
        left join (select * from decisions where stage = '{stage}') d using (sample_id)
        where p.stage is null and p.picture is not null
    """


def _exact(db: "duckdb.DuckDBPyConnection", judged: str) -> Check:
    """Of n rows with the same bytes any one may be kept: n - 1 duplicates are planted.

    They are found as copies of each other or, if all are rejected, in the group of one row that represents all of them.
    """
    planted, found = _one(
        db,
        f"""select coalesce(sum(n - 1), 0), coalesce(sum(least(n - 1, out)), 0) from (
            select count(*) as n, case when not bool_or(keep) and count(distinct representative) = 1 then n - 1
                else count(*) filter (not keep and why = 'duplicate_exact') end as out
            from ({judged}) group by file)""",
    )
    detail = _lines(
        db,
        f"select file || ': ' || count(*) filter (keep) || ' of ' || count(*) || ' kept' from ({judged}) "
        "group by file having count(*) filter (keep) > 1 order by file",
    )
    value = found / planted if planted else 1.0
    return Check("exact duplicates", int(found), int(planted), value, "all", found == planted, detail)


def _reencoded(db: "duckdb.DuckDBPyConnection", judged: str) -> Check:
    """Of m different files of one image one may be kept; a file is rejected if all rows with its bytes are."""
    files = f"select picture, file, bool_or(keep) as stays from ({judged}) group by picture, file"
    planted, found = _one(
        db,
        f"""select coalesce(sum(m - 1), 0), coalesce(sum(least(m - 1, out)), 0)
            from (select count(*) as m, count(*) filter (not stays) as out from ({files}) group by picture)""",
    )
    detail = _lines(
        db,
        f"select string_agg(file, ' ' order by file) || ' all kept' from ({files}) where stays "
        "group by picture having count(*) > 1 order by min(file)",
    )
    value = found / planted if planted else 1.0
    goal = f">= {MIN_REENCODED_RECALL:.0%}"
    return Check("re-encoded duplicates", int(found), int(planted), value, goal, value >= MIN_REENCODED_RECALL, detail)


def _false_merges(db: "duckdb.DuckDBPyConnection", judged: str) -> Check:
    """A row is merged falsely if its representative is another image."""
    merged = (
        f"({judged}) r left join planted other on other.sample_id = r.representative "
        "where not r.keep and r.why like 'duplicate%' and other.picture is distinct from r.picture"
    )
    (found,) = _one(db, f"select count(*) from {merged}")
    (rows,) = _one(db, f"select count(*) from ({judged})")
    detail = _lines(
        db,
        f"select r.file || ' (' || r.concept || ') is not ' || coalesce(other.file || ' (' || other.concept || ')', "
        f"'a planted picture') || coalesce(', similarity ' || round(r.similarity, 4), '') "
        f"from {merged} order by r.similarity desc, r.file",
    )
    value = found / rows if rows else 0.0
    goal = f"< {MAX_FALSE_MERGES:.1%}"
    return Check("false merges, of rows judged", found, rows, value, goal, value < MAX_FALSE_MERGES, detail)


def _purity(db: "duckdb.DuckDBPyConnection") -> Check:
    """Purity: the share of rows whose concept is the most frequent of their cluster (Manning et al., 2008, 16.3)."""
    pairs = (
        "select c.cluster, p.concept, count(*) as n from planted p join clusters c using (sample_id) "
        "where c.cluster is not null and p.concept is not null group by 1, 2"
    )
    found, planted = _one(
        db,
        "select coalesce(sum(most), 0), coalesce(sum(n), 0) "
        f"from (select max(n) as most, sum(n) as n from ({pairs}) group by cluster)",
    )
    detail = _lines(
        db,
        f"select 'cluster ' || cluster || ': ' || string_agg(concept || ' ' || n, ', ' order by n desc) from ({pairs}) "
        f"group by cluster having max(n) < {MIN_PURITY} * sum(n) order by sum(n) - max(n) desc, cluster",
    )
    value = found / planted if planted else 0.0
    goal = f">= {MIN_PURITY:.0%}"
    return Check(
        "rows in a cluster of their concept", int(found), int(planted), value, goal, value >= MIN_PURITY, detail
    )


def _wrong_captions(db: "duckdb.DuckDBPyConnection", column: str) -> Check:
    """Area under the ROC curve: how often a correct caption scores above a wrong one. `found` counts scored rows."""
    from sklearn.metrics import roc_auc_score

    sound = f"p.hazard is null and not {rejects_sql('status', 'p.status')} and score is not null"
    rows = db.execute(
        f"select not p.wrong_caption as right_one, e.{identifier(column)} as score "
        f"from planted p join embeddings e using (sample_id) where {sound} order by sample_id"
    ).fetchnumpy()
    right = np.asarray(rows["right_one"], dtype=bool)
    (wrong,) = _one(db, "select count(*) from planted where wrong_caption")
    scored = int((~right).sum())
    value = float(roc_auc_score(right, rows["score"])) if 0 < scored < len(right) else 0.0
    detail = (f"{amount(len(right), 'row')} scored, {scored} of them with a wrong caption",)
    return Check("wrong captions score low (AUC)", scored, wrong, value, f">= {MIN_AUC}", value >= MIN_AUC, detail)


def _kept(db: "duckdb.DuckDBPyConnection", stage: str, keep: float) -> Check:
    kept, judged = _one(
        db,
        "select count(*) filter (keep), count(*) filter (reason is distinct from 'no_embedding') "
        f"from decisions where stage = '{stage}'",
    )
    target = floor(keep * judged)
    detail = (f"{amount(judged, 'row')} to choose from, {target} to keep, {kept} kept",)
    return Check("kept by prune", kept, target, kept - target, "exact", kept == target, detail)


def _balance(db: "duckdb.DuckDBPyConnection") -> Check:
    """Every row of the source either failed, was rejected, or is in the published manifest."""
    ends = f"""
        select s.sample_id, {rejects_sql("status", "i.status")}::int as failed,
            (s.sample_id in (select sample_id from decisions where {REJECTED}))::int as rejected,
            (s.sample_id in (select sample_id from samples))::int as published
        from source s left join images i using (sample_id)
    """
    found, planted = _one(db, f"select count(*) filter (failed + rejected + published = 1), count(*) from ({ends})")
    (published,) = _one(db, "select count(*) from samples")
    (known,) = _one(db, "select count(*) from samples where sample_id in (select sample_id from source)")
    detail = _lines(
        db,
        "select 'failed ' || failed || ', rejected ' || rejected || ', published ' || published || ': ' || count(*) "
        f"|| ' rows' from ({ends}) where failed + rejected + published <> 1 "
        "group by failed, rejected, published order by 1",
    )
    if published != known:
        detail = (*detail, f"{published - known} published rows that the source does not have")
    passed = found == planted and published == known
    return Check("rows that end once: in = out + kept", found, planted, found / planted, "all", passed, detail)


def _one(db: "duckdb.DuckDBPyConnection", query: str) -> tuple[Any, ...]:
    (row,) = db.execute(query).fetchall()
    return tuple(row)


def _lines(db: "duckdb.DuckDBPyConnection", query: str) -> tuple[str, ...]:
    """Return the first column of a query's first rows as text, and the number of further rows."""
    rows = [str(row[0]) for row in db.execute(query).fetchall()]
    more = len(rows) - _EXAMPLES
    return (*rows[:_EXAMPLES], f"and {more} more") if more > 0 else tuple(rows)
