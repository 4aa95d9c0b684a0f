"""A build publishes one version, makes nothing twice, grows, resumes, and retries what failed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from catalog.database import sql
from catalog.dataset import Catalog
from catalog.errors import BusyError, EspalierError, PartError, RecipeError, UserError
from catalog.lease import hold
from catalog.parts import PartWriter
from catalog.storage import Storage
from flows.build.build import build_here, run_stage, up_to_date
from flows.build.context import BuildContext
from flows.build.engine import Engine
from flows.build.plan import Plan, PlannedStage, make_plan
from flows.build.spec import BuildSpec
from flows.explore.failures import begin_retry, failures
from flows.explore.why import stories
from tests.flows.conftest import Web
from tests.pictures import jpeg
from tests.stages import content

STAGES = """\
  - use: filter
    where: width >= 10
  - use: deduplicate
  - use: prune
    method: random
    keep_rows: 4
  - use: report
"""


def spec_of(web: Web, stages: str = STAGES) -> BuildSpec:
    return BuildSpec.read(web.recipe(stages), catalog=web.catalog, executor="inline")


def rows(web: Web, query: str) -> list[tuple[Any, ...]]:
    return [tuple(r.values()) for r in sql(Catalog(web.catalog), query).to_pylist()]


def image_hits(web: Web) -> dict[str, int]:
    """Return how often each URL was asked for, but for robots.txt and the like."""
    about = ("/robots.txt", "/.well-known/tdmrep.json")
    return {url: n for url, n in web.server.hits.items() if not url.endswith(about)}


def images_asked(web: Web) -> int:
    return sum(image_hits(web).values())


def test_a_build_from_urls_to_a_version(web: Web) -> None:
    outcome = build_here(spec_of(web))
    assert outcome.version.label == "web@1"
    assert rows(web, "select status, reason, count(*) from web.images group by all order by all") == [
        ("failed", "not_found", 1), ("success", None, 7),
    ]  # fmt: skip
    assert rows(web, "select stage, reason, count(*) from web.decisions group by all order by all") == [
        ("deduplicate", "duplicate_exact", 1), ("deduplicate", None, 6),
        ("filter", None, 7), ("prune", "pruned_random", 2), ("prune", None, 4),
    ]  # fmt: skip
    assert rows(web, "select count(*), max(width) from web.samples") == [(4, 64)]
    assert outcome.report is not None
    assert "<html" in Path(outcome.report).read_text()[:200]


def test_samples_lead_to_their_bytes(web: Web) -> None:
    build_here(spec_of(web))
    shard, offset, size = rows(web, "select shard, byte_offset, byte_size from web.samples limit 1")[0]
    assert Storage.open(web.catalog).read_range(f"web/{shard}", offset, size)[:2] == b"\xff\xd8"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_shards(web: Web) -> None:
    import webdataset

    build_here(spec_of(web, ""))
    shards = sorted(str(p) for p in (Path(web.catalog) / "web" / "shards").glob("*.tar"))
    found = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert len(found) == 7
    assert {"jpg", "txt", "json", "__key__"} <= set(found[0])
    assert found[0]["json"]["url"].startswith("http://127.0.0.1")


def test_nothing_is_made_twice(web: Web) -> None:
    first = build_here(spec_of(web))
    found = up_to_date(spec_of(web))
    assert found is not None
    assert (found.version.label, found.made, found.report) == ("web@1", 0, first.report)
    asked = images_asked(web)
    assert build_here(spec_of(web)).version.label == first.version.label
    assert images_asked(web) == asked


def test_a_new_file_downloads_only_itself(web: Web) -> None:
    first = build_here(spec_of(web))
    asked = images_asked(web)
    web.add_file("0", web.pictures(range(10, 13)))  # sorts before the other
    second = build_here(spec_of(web))
    assert second.version.number == 2
    assert images_asked(web) == asked + 3
    assert rows(web, "select count(*) from web.source") == [(11,)]
    old = {(r["sample_id"], r["url"]) for r in content(Catalog(web.catalog).dataset("web"), first.version)["source"]}
    new = {(r["sample_id"], r["url"]) for r in content(Catalog(web.catalog).dataset("web"))["source"]}
    assert old < new


def test_a_changed_threshold_downloads_nothing(web: Web) -> None:
    build_here(spec_of(web))
    asked = images_asked(web)
    recipe = web.recipe(STAGES.replace("width >= 10", "width >= 1000"), "guards: {no_samples: false}\n")
    outcome = build_here(BuildSpec.read(recipe, catalog=web.catalog, executor="inline"))
    assert (outcome.version.number, images_asked(web)) == (2, asked)
    assert outcome.version.tables["samples"].rows == 0
    assert rows(web, "select distinct reason from web.decisions where stage = 'filter'") == [("width >= 1000",)]


def test_a_changed_pruning_changes_what_is_published(web: Web) -> None:
    """And the card: what a stage wrote after the table was first read is part of what later stages read."""
    build_here(spec_of(web))
    build_here(replace(spec_of(web), overrides=("prune.keep_rows=2",)))
    kept = rows(web, "select sample_id from web.verdicts where keep order by 1")
    assert len(kept) == 2
    assert rows(web, "select sample_id from web.samples order by 1") == kept
    steps = rows(web, "select content->>'stage', (content->>'kept')::int from web.report where section = 'funnel'")
    assert ("prune", 2) in steps


def test_the_previous_version_stays_as_it_was(web: Web) -> None:
    dataset = Catalog(web.catalog, create=True).dataset("web")
    first = build_here(spec_of(web)).version
    before = content(dataset, first)
    build_here(spec_of(web, STAGES.replace("keep_rows: 4", "keep_rows: 2")))
    assert content(dataset, dataset.version(1)) == before


def test_a_retry_asks_for_the_failed_rows_alone(web: Web) -> None:
    flaky = web.server.heals(jpeg(96, 80, 77), [(503, {})])
    web.add_file("b", [*web.pictures(range(20, 23)), flaky])
    build_here(spec_of(web))
    dataset = Catalog(web.catalog).dataset("web")
    facts = {f["reason"]: (f["rows"], f["retry_may_help"]) for f in failures(dataset)}
    assert facts == {"not_found": (1, False), "server_error": (1, True)}
    before = image_hits(web)
    found = begin_retry(dataset, ["server"], web.catalog, "inline")
    spec, count = found.spec, found.rows
    assert count == 1
    outcome = build_here(spec)
    assert outcome.version.number == 2
    assert {u: n - before.get(u, 0) for u, n in image_hits(web).items() if n != before.get(u, 0)} == {flaky: 1}
    assert rows(web, "select reason, count(*) from web.images group by all order by all") == [
        ("not_found", 1),
        (None, 11),
    ]
    assert rows(web, "select count(distinct shard) from web.images") == [(4,)]
    storage = Storage.open(f"{web.catalog}/web")
    for place in rows(web, "select shard, byte_offset, byte_size from web.images where shard is not null"):
        assert storage.read_range(*place)[:2] == b"\xff\xd8"
    assert up_to_date(spec) is not None


@pytest.mark.parametrize("lost", [False, True])
def test_a_retry_goes_on_from_the_newest_attempt_there_is(web: Web, lost: bool) -> None:
    """Whether an order was never built, or its part is gone: what was downloaded is not asked for again."""
    flaky = web.server.heals(jpeg(96, 80, 77), [(503, {})] * (2 if lost else 1))
    web.add_file("b", [*web.pictures(range(20, 23)), flaky])
    build_here(spec_of(web, ""))
    dataset = Catalog(web.catalog).dataset("web")
    spec = begin_retry(dataset, ["server"], web.catalog, "inline").spec
    if lost:
        build_here(spec)
        first, second = ({f.path for f in dataset.files(dataset.version(n), "images")} for n in (1, 2))
        dataset.storage.delete(second - first)
    before = image_hits(web)
    spec = spec if lost else begin_retry(dataset, ["server"], web.catalog, "inline").spec
    build_here(spec)
    assert {u: n - before.get(u, 0) for u, n in image_hits(web).items() if n != before.get(u, 0)} == {flaky: 1}
    assert rows(web, "select count(*) from web.images where reason = 'server_error'") == [(0,)]


def test_a_retry_keeps_what_the_build_was_told(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    web.add_file("b", [web.server.heals(jpeg(96, 80, 77), [(503, {})])])
    recipe = web.recipe(STAGES)
    recipe.write_text(recipe.read_text().replace("keep_rows: 4", "keep_rows: ${KEEP_ROWS}"))
    monkeypatch.setenv("KEEP_ROWS", "3")
    facts = BuildSpec.read(recipe, catalog=web.catalog, executor="inline", overrides=("download.image_size=32",))
    build_here(facts)
    monkeypatch.delenv("KEEP_ROWS")
    spec = begin_retry(Catalog(web.catalog).dataset("web"), ["server"], web.catalog, "inline").spec
    build_here(spec)
    assert rows(web, "select count(*), max(width) from web.samples") == [(3, 32)]
    assert rows(web, "select count(*) from web.images where reason = 'server_error'") == [(0,)]


def test_what_was_read_is_built_and_recorded(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fragment, a variable and the recipe itself change while the first stage runs."""
    fragment = web.folder / "wide.yaml"
    fragment.write_text("- {use: filter, name: wide, where: original_width >= 10}\n")
    text = '  - include: wide.yaml\n  - {use: prune, method: random, keep_rows: "${KEEP_ROWS}"}\n'
    recipe = web.recipe(text)
    monkeypatch.setenv("KEEP_ROWS", "3")
    spec = BuildSpec.read(recipe, catalog=web.catalog, executor="inline")

    def changing(plan: Plan, planned: PlannedStage, engine: Engine, context: BuildContext) -> int:
        fragment.write_text("- {use: filter, name: narrow, where: original_width < 10}\n")
        monkeypatch.setenv("KEEP_ROWS", "1")
        recipe.write_text("no recipe any more")
        return run_stage(plan, planned, engine, context)

    version = build_here(spec, stage_runner=changing).version
    assert version.recipe == spec.resolved
    assert "original_width >= 10" in version.recipe
    assert "include" not in version.recipe
    assert [s["name"] for s in version.stages] == ["parquet", "download", "wide", "prune", "samples"]
    assert version.stages[3]["parameters"]["keep_rows"] == 3
    assert rows(web, "select count(*) from web.samples") == [(3,)]
    monkeypatch.delenv("KEEP_ROWS")
    fragment.unlink()
    again = up_to_date(BuildSpec.of_version(version, catalog=web.catalog, executor="inline"))
    assert again is not None
    assert again.version.number == version.number


def test_a_recorded_recipe_is_taken_as_it_is(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a variable came out of one."""
    monkeypatch.setenv("ABOUT", "costs ${PRICE} a row")
    recipe = web.recipe('  - {use: report, description: "${ABOUT}"}\n')
    version = build_here(BuildSpec.read(recipe, catalog=web.catalog, executor="inline")).version
    again = BuildSpec.of_version(version, catalog=web.catalog, executor="inline")
    assert again.checked == BuildSpec.read(recipe, catalog=web.catalog, executor="inline").checked
    assert again.resolved == version.recipe


def test_a_run_and_a_deployment_are_given_the_resolved_text(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = web.recipe(STAGES.replace("keep_rows: 4", "keep_rows: ${KEEP_ROWS}"))
    monkeypatch.setenv("KEEP_ROWS", "2")
    spec = BuildSpec.read(recipe, catalog=web.catalog, executor="inline", overrides=("filter.where=width >= 7",))
    given = json.loads(json.dumps(spec.parameters()))
    monkeypatch.setenv("KEEP_ROWS", "5")
    there = BuildSpec(**given | {"overrides": tuple(given["overrides"])})
    assert there.checked == spec.checked
    assert there.resolved == spec.resolved
    assert there.name == f"{recipe} (as it was resolved)"
    monkeypatch.setenv("KEEP_ROWS", "none")
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: stages\[prune\].keep_rows: "):
        BuildSpec.read(recipe, catalog=web.catalog)


def test_a_retry_that_cannot_be(web: Web) -> None:
    build_here(spec_of(web))
    dataset = Catalog(web.catalog).dataset("web")
    with pytest.raises(UserError, match="unknown reason 'timeuot'; did you mean 'timeout'"):
        begin_retry(dataset, ["timeuot"], web.catalog, "inline")
    with pytest.raises(UserError, match="no row of 'web' failed for timeout"):
        begin_retry(dataset, ["timeout"], web.catalog, "inline")


def test_a_failed_build_keeps_what_is_finished_and_publishes_nothing(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks.deduplicate.deduplicate as module

    def broken(*_: object) -> None:
        raise RuntimeError("the disk caught fire")

    with monkeypatch.context() as patch:
        patch.setattr(module.Deduplicate, "run", broken)
        with pytest.raises((PartError, RuntimeError), match="the disk caught fire"):
            build_here(spec_of(web))
    dataset = Catalog(web.catalog).dataset("web")
    assert dataset.versions() == []
    assert dataset.runs().filter(dataset.runs()["status"].to_numpy(zero_copy_only=False) == "failed").num_rows == 1
    asked = images_asked(web)
    assert build_here(spec_of(web)).version.number == 1
    assert images_asked(web) == asked


def test_a_second_builder_says_who_builds(web: Web) -> None:
    with (
        hold(Catalog(web.catalog, create=True).dataset("web")),
        pytest.raises(BusyError, match="is being built by process"),
    ):
        build_here(spec_of(web))


def test_lineage_and_runs(web: Web) -> None:
    version = build_here(spec_of(web)).version
    assert [s["name"] for s in version.stages] == [
        "parquet",
        "download",
        "filter",
        "deduplicate",
        "prune",
        "report",
        "samples",
    ]
    assert version.inputs[0]["rows"] == 8
    assert len(version.inputs[0]["sha256"]) >= 40
    assert rows(web, "select stage, parts_made from web.runs order by started_at")[:2] == [
        ("parquet", 2),
        ("download", 2),
    ]
    json.dumps(version.stages)


def test_an_empty_source(tmp_path: Path, web: Web) -> None:
    web.add_file("a", [])
    with pytest.raises(UserError, match="the source is empty: no row in "):
        build_here(spec_of(web))


def test_an_unknown_column_is_found_before_anything_runs(web: Web) -> None:
    with pytest.raises(RecipeError, match=r"widht.*did you mean 'width'"):
        make_plan(
            spec_of(web, STAGES.replace("width", "widht")).checked, Catalog(web.catalog, create=True).dataset("web")
        )
    assert not web.server.hits


def test_a_build_on_an_object_store(web: Web, s3: Callable[[], str]) -> None:
    web.catalog = f"{s3()}/some/prefix"
    first = build_here(spec_of(web))
    assert first.version.tables["samples"].rows == 4
    web.add_file("b", web.pictures(range(40, 42)))
    second = build_here(spec_of(web))
    assert (second.version.number, second.version.tables["source"].rows) == (2, 10)
    assert up_to_date(spec_of(web)) is not None
    shard, *place = rows(web, "select shard, byte_offset, byte_size from web.samples limit 1")[0]
    assert Storage.open(web.catalog).read_range(f"web/{shard}", *place)[:2] == b"\xff\xd8"
    assert second.report is not None
    assert second.report.startswith("s3://")


def test_a_full_disk_is_one_line_and_nothing_is_half_published(web: Web, full_disk: Path) -> None:
    web.catalog = str(full_disk / "catalog")
    web.add_file("big", [web.server.body(jpeg(900, 900, seed, 100)) for seed in range(12)])
    spec = replace(spec_of(web), overrides=("download.resize_mode=no",))
    with pytest.raises(EspalierError, match="no space left") as caught:
        build_here(spec)
    assert len(str(caught.value).splitlines()) == 1
    assert Catalog(web.catalog).dataset("web").versions() == []


def test_a_catalog_that_may_not_be_written(web: Web) -> None:
    blocked = Path(web.catalog)
    blocked.write_text("a file, not a folder")
    with pytest.raises(UserError, match="is a file, expected a folder"):
        build_here(spec_of(web))


def older_writer(storage: Storage, table: str, fingerprint: str, schema: pa.Schema, number: int = 0) -> PartWriter:
    """Write decisions as a release did that had no numbers."""
    fields = [field for field in schema if (table, field.name) != ("decisions", "numbers")]
    return PartWriter(storage, table, fingerprint, pa.schema(fields), number)


def test_parts_of_a_release_without_numbers_stay_valid_beside_new_ones(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = STAGES.replace("width >= 10", "original_width >= 50")
    web.add_file("b", [web.server.body(jpeg(40, 80, 99))])
    with monkeypatch.context() as patched:
        patched.setattr("flows.build.worker.PartWriter", older_writer)
        first = build_here(spec_of(web, stages)).version
    dataset = Catalog(web.catalog).dataset("web")
    assert "numbers" not in dataset.schema(first, "decisions").names
    before = {file.path: file.bytes for file in dataset.files(first, "decisions")}
    again = build_here(spec_of(web, stages))
    assert (again.version.label, again.made) == ("web@1", 0)
    (story,) = stories(Catalog(web.catalog), "web", "0")
    judged = [(row["stage"], row["numbers"]) for row in story["decisions"]]
    assert judged == [("filter", {}), ("deduplicate", {}), ("prune", {})]

    web.add_file("c", [web.server.body(jpeg(30, 80, 98)), *web.pictures(range(20, 22))])
    grown = build_here(spec_of(web, stages))
    after = {file.path: file.bytes for file in dataset.files(grown.version, "decisions")}
    kept = [path for path in before if path in after]
    assert len(kept) == 3, "the parts of the filter over old rows"
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    query = "select evidence, numbers from web.decisions where stage = 'filter' and not keep order by sample_id"
    assert rows(web, query) == [
        ("original_width=40 fails original_width >= 50", None),
        ("original_width=30 fails original_width >= 50", [("original_width", 30.0)]),
    ]
    assert rows(web, "select count(*) from web.decisions where stage = 'prune' and numbers['rank'] is null") == [(0,)]
    assert grown.report is not None
    steps = sql(Catalog(web.catalog), "select content from web.report where section = 'funnel' order by position")
    assert [json.loads(step)["stage"] for step in steps["content"].to_pylist()] == [
        "source", "download", "filter", "deduplicate", "prune",
    ]  # fmt: skip
