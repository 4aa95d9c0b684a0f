"""`plan --probe`: what it foretells comes true, it says what it does, and it leaves nothing behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from catalog.errors import UserError
from catalog.storage import Storage
from flows.build.build import build_here
from flows.build.plan import make_plan
from flows.build.progress import Display
from flows.build.spec import BuildSpec
from flows.demo.corpus import plant
from flows.demo.run import RECIPE
from flows.demo.server import serve
from flows.forecast import probe as probes
from flows.forecast.probe import LEAST_ROWS, probe, sampled
from tasks.sources import Chunk, Folder, Parquet
from tests.flows.conftest import Run, Web
from tests.pictures import jpeg

STAGES = """\
  - {use: filter, where: original_width >= 100}
  - {use: prune, method: random, keep: 0.5}
"""


class Notes(Display):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def crawl(web: Web) -> Web:
    """640 rows in two files: one in five is gone, one in four is too narrow."""
    pictures = [web.server.body(jpeg(96 if i % 4 == 0 else 128, 80, i)) for i in range(40)]
    gone = web.server.body(b"gone", status=404)
    for name in ("b", "c"):
        urls = [f"{gone if i % 5 == 0 else pictures[i % 40]}?{name}{i}" for i in range(320)]
        web.add_file(name, urls)
    (web.folder / "urls" / "a.parquet").unlink()
    return web


def spec_of(web: Web, stages: str = STAGES, rows_per_part: int = 80, executor: str = "inline") -> BuildSpec:
    path = web.recipe(stages, "prices: {cpu_hour: 0.05, gb_month: 0.02}\n")
    overrides = (f"source.rows_per_part={rows_per_part}",)
    return BuildSpec.read(path, catalog=web.catalog, executor=executor, overrides=overrides)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_rows_and_bytes_come_true_and_nothing_is_left(crawl: Web) -> None:
    spec = spec_of(crawl)
    before = files(crawl.folder)
    notes = Notes()
    told = probe(spec, 160, notes)
    assert files(crawl.folder) == before
    assert (told.rows, told.source_rows, told.is_whole) == (160, 640, False)
    assert [line for line in notes.said if line.startswith("probe")] == [
        "probe, warming up, not counted: 8 of 640 rows",
        "probe, 1 of 3: 40 of 640 rows",
        "probe, 2 of 3: 160 of 640 rows",
        "probe, 3 of 3: 40 of 640 rows",
    ]
    outcome = build_here(spec)
    facts = {s["name"]: s for s in outcome.version.stages}
    shards = sum(p.stat().st_size for p in Path(crawl.catalog).glob("web/shards/*"))
    for forecast in told.told.stages:
        rows = facts[forecast.stage]["rows"]
        size = facts[forecast.stage]["bytes"] + (shards if forecast.stage == "download" else 0)
        assert forecast.rows.value == pytest.approx(rows, rel=0.3), forecast
        assert forecast.rows.low <= rows <= forecast.rows.high, forecast
        assert forecast.bytes.value == pytest.approx(size, rel=0.3), forecast
        assert forecast.parts == facts[forecast.stage]["parts"]
        assert 0 < forecast.seconds.low <= forecast.seconds.value <= forecast.seconds.high
        assert forecast.cost is not None


def test_no_row_is_fetched_twice(crawl: Web) -> None:
    spec = spec_of(crawl)
    plan = make_plan(spec.checked, spec.dataset(create=None))
    chunks = [Chunk(**dict(part.chunk or {})) for part in plan.stages[0].parts]
    source = spec.checked.source
    found = sampled(source, chunks, [3, 10, 40], 4, lambda uri: uri)
    rows = [(c.uri, c.start + i) for pieces in found for c in pieces for i in range(c.rows)]
    assert [sum(c.rows for c in pieces) for pieces in found] == [12, 40, 160]
    assert len(rows) == len(set(rows))
    assert {Path(uri).name for uri, _ in rows} == {"b.parquet", "c.parquet"}
    assert all(0 <= row < 320 for _, row in rows)


@pytest.mark.parametrize("rows", [LEAST_ROWS, 17, 63, 64, 1000])
@pytest.mark.parametrize("slots", [1, 2, 8, 64])
def test_small_builds_are_a_quarter_however_many_slots_there_are(rows: int, slots: int) -> None:
    """Else nothing would grow between them, and the whole would seem to take as long as the probe."""
    batches = probes.batches_of(rows, slots)
    warm_up, before, large, after = probes.sizes_of(rows, batches)
    assert batches >= 4
    assert 0 < warm_up <= before == after
    assert large >= 4 * before
    assert large * batches <= rows


def test_stretches_lie_apart() -> None:
    (small,), (large,) = sampled(Parquet(path="x"), [Chunk("a", "1", 0, 100)], [10, 30], 1, str)
    assert (small.start, small.rows, large.start, large.rows) == (0, 10, 40, 30)


def test_rows_that_failed_are_told(crawl: Web) -> None:
    told = probe(spec_of(crawl, "  - {use: deduplicate}\n"), 160, Display())
    assert told.notes[0] == "32 of 160 rows failed: not_found 32"
    assert told.notes[1].startswith("deduplicate: a sample holds fewer copies than the whole")
    assert told.told.total.received.value > 0


def test_stretches_end_where_chunks_end() -> None:
    chunks = [Chunk("a", "1", 100, 7), Chunk("b", "2", 0, 3), Chunk("c", "3", 50, 10)]
    (found,) = sampled(Parquet(path="x"), chunks, [5], 2, lambda uri: uri)
    assert [(c.uri, c.start, c.rows) for c in found] == [("a", 100, 5), ("c", 50, 5)]
    (found,) = sampled(Parquet(path="x"), chunks, [20], 1, lambda uri: uri)
    assert [(c.uri, c.start, c.rows) for c in found] == [("a", 100, 7), ("b", 0, 3), ("c", 50, 10)]


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(80):
        (tmp_path / "pictures" / f"{i:03}.jpg").write_bytes(jpeg(64, 64, i))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"dataset: p\nsource: {{use: folder, path: {tmp_path}/pictures, rows_per_part: 20}}\n"
        "stages: [{use: download, image_size: 64}]\n"
    )
    told = probe(BuildSpec.read(recipe, catalog=str(tmp_path / "catalog"), executor="inline"), 40, Display())
    download = next(f for f in told.told.stages if f.stage == "download")
    assert download.rows.value == pytest.approx(80, rel=0.05)
    pieces = sampled(Folder(path=str(tmp_path / "pictures")), [], [2, 5], 4, lambda uri: uri)
    assert [[c.rows for c in piece] for piece in pieces] == [[2] * 4, [5] * 4]


def test_a_source_smaller_than_the_probe_runs_whole_and_says_so(crawl: Web) -> None:
    notes = Notes()
    told = probe(spec_of(crawl), 1000, notes)
    assert "the source has 640 rows, hardly more than the probe: it runs whole" in notes.said
    assert told.is_whole
    rows = {f.stage: (f.rows.low, f.rows.value, f.rows.high) for f in told.told.stages}
    assert rows["download"] == (640, 640, 640)
    assert rows["samples"] == (192, 192, 192)
    assert not list(Path(crawl.catalog).glob("_probe*"))


@pytest.mark.parametrize("rows", [-1, 0, LEAST_ROWS - 1])
def test_too_few_rows_are_refused(crawl: Web, rows: int) -> None:
    with pytest.raises(UserError, match=f"--probe {rows}: too few"):
        probe(spec_of(crawl), rows, Display())


def test_a_stage_that_cannot_work_on_so_few_rows_says_so(crawl: Web) -> None:
    stages = "  - {use: filter, where: width > 9000}\n  - {use: train_clip, steps: 1}\n"
    with pytest.raises(UserError, match=r"in the probe's build of \d+ rows: .*give --probe more rows"):
        probe(spec_of(crawl, stages), 160, Display())
    assert not list(Path(crawl.catalog).glob("_probe*"))


def test_a_catalog_in_an_object_store(crawl: Web, s3: Callable[[], str]) -> None:
    bucket = s3()
    spec = replace(spec_of(crawl), catalog=f"{bucket}/catalog")
    told = probe(spec, 160, Display())
    assert told.told.total.rows.value > 0
    assert told.told.total.received.value > 0
    assert set(Storage(bucket).list()) == set()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_stops_it_leaves_nothing_behind(crawl: Web, monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    made: list[Path] = []

    def stops(*_: object) -> None:
        made.extend(Path(crawl.catalog).glob("_probe*"))
        raise error

    monkeypatch.setattr(probes, "run_stage", stops)
    crawl.catalog = str(crawl.folder / "not" / "yet" / "there")
    spec = spec_of(crawl)
    before = files(crawl.folder)
    with pytest.raises(error):
        probe(spec, 160, Display())
    assert made
    assert files(crawl.folder) == before


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_command(crawl: Web, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = str(crawl.recipe(STAGES, "prices: {cpu_hour: 0.05, gb_month: 0.02}\n"))
    words = ["plan", recipe, "--catalog", crawl.catalog, "--executor", "inline", "--probe"]
    code, out, err = run(*words, "64", "--json")
    told = json.loads(out)
    assert (code, told["probe_rows"], told["source_rows"]) == (0, 64, 640)
    assert told["total"]["rows"]["low"] <= told["total"]["rows"]["value"]
    assert "probe, 1 of 3: 16 of 640 rows" in err
    code, out, _ = run(*words, "64")
    assert code == 0
    assert "for 640 rows, built from nothing; estimated from 64 of them" in out
    with monkeypatch.context() as patch:
        patch.setattr(probes, "run_stage", interrupted)
        code, out, err = run(*words, "64")
    assert (code, out) == (130, "")
    assert err.endswith("espalier: stopped; the probe left nothing behind\n")
    code, out, err = run(*words, "3")
    assert (code, out) == (2, "")
    assert err == f"espalier: --probe 3: too few to tell anything from; give at least {LEAST_ROWS}\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_time_of_the_demo_comes_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_started: None) -> None:
    """Every stage, every hazard, on Ray: what 1,000 rows foretell of the demo, against the build."""

    def spec_at(base_url: str) -> BuildSpec:
        planted = plant(tmp_path, 3000, base_url=base_url)
        monkeypatch.setenv("ESPALIER_DEMO_URLS", str(planted.urls))
        monkeypatch.setenv("ESPALIER_DEMO_HOST", base_url.removeprefix("http://"))
        return BuildSpec.read(RECIPE, catalog=str(tmp_path / "catalog"))

    with serve(tmp_path, port=0) as base_url:
        told = probe(spec_at(base_url), 1000, Display())
    with serve(tmp_path, port=0) as base_url:  # a fresh one: what the probe made heal is broken again
        spec = spec_at(base_url)
        build_here(spec)
    runs = spec.dataset().runs().to_pylist()
    seconds = {run["stage"]: run["seconds"] for run in runs}
    found = {f.stage: (round(f.seconds.value, 1), round(seconds[f.stage], 1)) for f in told.told.stages}
    total, truth = told.told.total.seconds, sum(seconds.values())
    assert total.value == pytest.approx(truth, rel=0.3), (total, truth, found)
    assert total.low <= truth <= total.high, (total, truth, found)
    assert total.high - total.low < 1.5 * truth, (total, truth, found)  # else it says nothing
    rows = {run["stage"]: run["rows"] for run in runs}
    for forecast in told.told.stages:
        assert forecast.rows.value == pytest.approx(rows[forecast.stage], rel=0.3), forecast
