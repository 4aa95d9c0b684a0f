"""Stages read published versions of other datasets: only what these kept, whatever became of rows with the same ids."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest

from catalog.database import sql
from catalog.dataset import Catalog
from catalog.errors import NotFoundError, RecipeError
from catalog.gc import collect
from catalog.gc import plan as find_garbage
from catalog.storage import Storage
from catalog.takedown.reach import Names
from catalog.version import Version
from flows.build.build import build_here, publish, run_stage
from flows.build.context import BuildContext
from flows.build.engine import InlineEngine
from flows.build.plan import NUMBERS, Plan, make_plan
from flows.build.ray_engine import RayEngine
from flows.build.spec import BuildSpec
from flows.govern.takedown import take_down
from tasks.stage import Columns, Stage, Tables
from tests.flows.conftest import Run, Web
from tests.stages import DropOdd, Lengths, OfVersion, ReadsVersions, Views, recipe_of, write_source

STAGES = """\
  - use: prune
    method: random
    keep_rows: {rows}
"""


def build_web(web: Web, rows: int = 5) -> Version:
    """Build the dataset that others read; it keeps some of seven rows, of which one is a copy and one has no image."""
    text = STAGES.format(rows=rows)
    return build_here(BuildSpec.read(web.recipe(text), catalog=web.catalog, executor="inline")).version


def plan_of(web: Web, *stages: Stage, versions: Mapping[str, str]) -> Plan:
    folder = web.folder / "own"
    if not folder.exists():
        write_source(folder)
    return make_plan(recipe_of(folder, *stages, versions=versions), Catalog(web.catalog, create=None).dataset("tiny"))


def build(plan: Plan, engine: Any = None) -> tuple[Version, dict[str, int]]:
    """Build a plan; return the version, and how many parts each stage made."""
    plan.dataset.set_state(NUMBERS, plan.numbers)
    made = {p.stage.name: run_stage(plan, p, engine or InlineEngine(), BuildContext()) for p in plan.stages}
    return publish(plan, "a recipe"), {name: count for name, count in made.items() if count}


def kept(web: Web, number: int) -> list[tuple[Any, ...]]:
    """Return (sample_id, digest of the stored bytes, caption) of every sample of a version of `web`."""
    query = "select sample_id, shard, byte_offset, byte_size, caption from web.samples order by sample_id"
    rows = sql(Catalog(web.catalog), query, {"web": number}).to_pylist()
    storage = Storage.open(f"{web.catalog}/web")
    data = [storage.read_range(r["shard"], r["byte_offset"], r["byte_size"]) for r in rows]
    return [(r["sample_id"], hashlib.sha256(d).hexdigest(), r["caption"]) for r, d in zip(rows, data, strict=True)]


def listed(web: Web, version: Version, name: str = "real") -> list[tuple[Any, ...]]:
    query = f"select sample, sha256, caption from tiny.listed where version = '{name}' order by sample"
    return [tuple(r.values()) for r in sql(Catalog(web.catalog), query, {"tiny": version.number}).to_pylist()]


@pytest.fixture(params=["inline", "ray"])
def engine(request: pytest.FixtureRequest) -> Any:
    if request.param == "inline":
        return InlineEngine()
    request.getfixturevalue("ray_started")
    return RayEngine.start()


def test_a_stage_reads_what_each_version_kept(web: Web, engine: Any) -> None:
    build_web(web, rows=5)
    build_web(web, rows=3)
    stages = (Lengths(), DropOdd(), ReadsVersions(of=("real", "few")), OfVersion())
    with engine:  # DropOdd rejects every row of our own, which have ids that `web` has too
        version, made = build(plan_of(web, *stages, versions={"real": "web@1", "few": "web"}), engine)
    assert made["reads_versions"] == 1
    assert listed(web, version) == kept(web, 1)
    assert listed(web, version, "few") == kept(web, 2)
    assert len(kept(web, 1)) == 5
    assert len(kept(web, 2)) == 3
    notes = next(stage["notes"] for stage in version.stages if stage["name"] == "reads_versions")
    assert notes == {"real_width": 5 * 64, "real_rows": 5, "few_width": 3 * 64, "few_rows": 3}


def test_a_side_table_has_the_kept_rows(web: Web) -> None:
    build_web(web, rows=3)
    version, _ = build(plan_of(web, OfVersion(), versions={"real": "web"}))
    lengths = [len(caption) for _, _, caption in kept(web, 1)]
    own = sql(Catalog(web.catalog), "select caption, length from tiny.source join tiny.alike using (sample_id)")
    assert own.num_rows == 10
    assert [row["length"] for row in own.to_pylist()] == [lengths.count(len(row["caption"])) for row in own.to_pylist()]
    assert version.tables["alike"].rows == 10


def test_the_version_is_recorded_and_only_another_one_makes_parts(web: Web) -> None:
    build_web(web)
    stages = (Lengths(), ReadsVersions())
    version, _ = build(plan_of(web, *stages, versions={"real": "web"}))
    (read,) = [entry for entry in version.inputs if "dataset" in entry]
    assert (read["as"], read["dataset"], read["version"], read["rows"]) == ("real", "web", 1, 5)
    assert plan_of(web, *stages, versions={"real": "web"}).is_cached
    build_web(web, rows=3)
    assert plan_of(web, *stages, versions={"real": "web@1"}).is_cached
    plan = plan_of(web, *stages, versions={"real": "web"})
    assert {s.stage.name: s.status for s in plan.stages if s.missing} == {"reads_versions": "to run"}
    version, made = build(plan)
    assert made == {"reads_versions": 1}
    assert [entry["version"] for entry in version.inputs if "dataset" in entry] == [2]
    assert listed(web, version) == kept(web, 2)


def test_a_takedown_there_is_respected(web: Web) -> None:
    build_web(web)
    stages = (Lengths(), ReadsVersions())
    before, _ = build(plan_of(web, *stages, versions={"real": "web@1"}))
    gone = listed(web, before)[0]
    take_down(Catalog(web.catalog).dataset("web"), Names(sample_ids=frozenset([gone[0]])), "asked")
    plan = plan_of(web, *stages, versions={"real": "web@1"})
    assert [s.stage.name for s in plan.stages if s.missing] == ["reads_versions"]
    version, _ = build(plan)
    assert listed(web, version) == kept(web, 1)
    assert gone not in listed(web, version)
    assert len(listed(web, version)) == 4


def test_gc_keeps_a_version_that_another_dataset_was_built_from(web: Web) -> None:
    build_web(web)
    build(plan_of(web, ReadsVersions(), versions={"real": "web@1"}))
    before = kept(web, 1)
    build_web(web, rows=3)
    garbage = find_garbage(Catalog(web.catalog).dataset("web"), older_than_s=0, keep_versions=1)
    assert garbage.used == {1: ["tiny"]}
    collect(garbage)
    assert kept(web, 1) == before
    assert plan_of(web, ReadsVersions(), versions={"real": "web@1"}).is_cached


def test_mistakes(web: Web) -> None:
    build_web(web)
    with pytest.raises(NotFoundError, match=r"from: real: no dataset 'wep' in .*; did you mean 'web'"):
        plan_of(web, ReadsVersions(), versions={"real": "wep"})
    with pytest.raises(NotFoundError, match="from: real: dataset 'web' has no version 7; there is: 1"):
        plan_of(web, ReadsVersions(), versions={"real": "web@7"})
    with pytest.raises(RecipeError, match="from: 'tiny' is what this recipe builds"):
        plan_of(web, ReadsVersions(), versions={"real": "tiny"})
    message = "reads the table 'reel.images', which no version in `from:` has; did you mean 'real.images'"
    with pytest.raises(RecipeError, match=message):
        plan_of(web, ReadsVersions(of=("reel",)), versions={"real": "web"})


def test_a_recipe_names_versions(web: Web, run: Run) -> None:
    build_web(web)
    stage = "  - {use: decontaminate, sets: [{name: exam, version: real}]}\n"
    text = web.recipe(stage).read_text().replace("dataset: web", "dataset: other\nfrom: {real: web, unused: web@1}")
    path = web.folder / "other.yaml"
    path.write_text(text)
    build_here(BuildSpec.read(path, catalog=web.catalog, executor="inline"))
    _, shown, _ = run("show", "other", "--catalog", web.catalog, "--json")
    assert [(i["as"], i["uri"]) for i in json.loads(shown)["inputs"] if "as" in i] == [("real", "web@1")]
    path.write_text(text.replace("real: web", "Real: web"))
    code, _, error = run("plan", str(path), "--catalog", web.catalog)
    assert code == 2
    assert "other.yaml:2: from: 'Real' cannot name a version" in error
    path.write_text(text.replace("real: web", "real: wep"))
    code, _, error = run("plan", str(path), "--catalog", web.catalog)
    assert code == 2
    assert error.splitlines() == [f"espalier: from: real: no dataset 'wep' in {web.catalog}; did you mean 'web'?"]


def test_a_probe_reads_versions_of_the_catalog(web: Web, run: Run) -> None:
    build_web(web)
    web.add_file("b", web.pictures(range(20, 40)))
    text = web.recipe().read_text().replace("dataset: web", "dataset: other\nfrom: {real: web}")
    (web.folder / "other.yaml").write_text(text)
    code, out, error = run(
        "plan", str(web.folder / "other.yaml"), "--catalog", web.catalog, "--probe", "16", "--executor", "inline"
    )
    assert code == 0, error
    assert "download" in out


def test_decontaminate_compares_with_the_samples_of_a_version(web: Web, run: Run) -> None:
    build_web(web, rows=3)
    text = web.recipe("  - {use: decontaminate, sets: [{name: exam, version: real}], radius: null}\n").read_text()
    text = text.replace("dataset: web", "dataset: other\nfrom: {real: web@1}")
    path = web.folder / "other.yaml"
    path.write_text(text)
    build_here(BuildSpec.read(path, catalog=web.catalog, executor="inline"))
    query = (
        "select i.sample_id, i.sha256 in (select sha256 from web.samples) as shown, d.keep, d.reason, d.evidence "
        "from other.images i join other.decisions d using (sample_id) order by 1"
    )
    rows = sql(Catalog(web.catalog), query).to_pylist()
    assert len(rows) == 7
    assert 3 <= sum(row["shown"] for row in rows) <= 4  # two rows have the same picture
    exam = {row[0] for row in kept(web, 1)}
    for row in rows:
        assert row["keep"] != row["shown"]
        assert row["reason"] == ("contaminated_exact" if row["shown"] else None)
        if row["shown"]:
            *words, sample, _, _ = row["evidence"].split()
            assert " ".join(words) == "same SHA-256 as sample"
            assert int(sample) in exam
    for wrong, message in (
        ("version: reel", "set 'exam': `from:` has no version 'reel'; did you mean 'real'?"),
        ("version: real, path: a.parquet", "set 'exam': specify either `path` or `version`"),
        ("version: real, image: image", "set 'exam': 'image' names a column of `path`, not of `version`"),
    ):
        path.write_text(text.replace("version: real", wrong))
        code, _, error = run("plan", str(path), "--catalog", web.catalog)
        assert (code, len(error.splitlines())) == (2, 1), error
        assert message in error


def test_a_dataset_keeps_the_version_of_its_own_that_it_was_built_from(web: Web) -> None:
    build_web(web, rows=5)
    stage = "  - {use: decontaminate, sets: [{name: before, version: old}]}\n"
    path = web.recipe(stage)
    path.write_text(path.read_text().replace("dataset: web", "dataset: web\nfrom: {old: web@1}"))
    for _ in range(2):
        build_here(BuildSpec.read(path, catalog=web.catalog, executor="inline"))
    dataset = Catalog(web.catalog).dataset("web")
    assert [version.number for version in dataset.versions()] == [1, 2]
    assert find_garbage(dataset, older_than_s=0, keep_versions=1).used == {1: ["web"]}


def test_a_stage_that_judges_rows_reads_no_table_with_several_rows_a_sample(web: Web) -> None:
    class Judges(DropOdd):
        def inputs(self, available: Tables) -> Columns:
            return {"views": ("view",)}

    with pytest.raises(RecipeError, match="'drop_odd' cannot read the table 'views', which has several rows a sample"):
        plan_of(web, Lengths(), Views(), Judges(), versions={})
