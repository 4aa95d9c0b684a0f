"""`plan --probe`: its forecasts come true, it shows what it does, and it leaves nothing behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from catalog.errors import UserError
from catalog.storage import Storage
from flows.build.build import build_here
from flows.build.progress import Display
from flows.build.spec import BuildSpec
from flows.demo.corpus import plant
from flows.demo.run import RECIPE
from flows.demo.server import serve
from flows.forecast import probe as probes
from flows.forecast.probe import LEAST_ROWS, probe
from flows.forecast.sampling import sample_chunks
from tasks.sources import Folder
from tests.flows.conftest import Run, Web
from tests.pictures import jpeg

STAGES = """\
  - {use: filter, where: original_width >= 100}
  - {use: prune, method: random, keep: 0.5}
"""


class Notes(Display):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


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
    probed = probe(spec, 160, notes)
    assert files(crawl.folder) == before
    assert (probed.rows, probed.source_rows, probed.is_whole) == (160, 640, False)
    assert [line for line in notes.messages if line.startswith("probe")] == [
        "probe, warming up, not counted: 8 of 640 rows",
        "probe, 1 of 3: 40 of 640 rows",
        "probe, 2 of 3: 160 of 640 rows",
        "probe, 3 of 3: 40 of 640 rows",
    ]
    outcome = build_here(spec)
    facts = {s["name"]: s for s in outcome.version.stages}
    shards = sum(p.stat().st_size for p in Path(crawl.catalog).glob("web/shards/*"))
    assert [forecast.stage for forecast in probed.forecast.stages] == list(facts)
    for forecast in probed.forecast.stages:
        rows = facts[forecast.stage]["rows"]
        size = facts[forecast.stage]["bytes"] + (shards if forecast.stage == "download" else 0)
        assert forecast.rows.value == pytest.approx(rows, rel=0.3), forecast
        assert forecast.rows.low <= rows <= forecast.rows.high, forecast
        assert forecast.bytes.value == pytest.approx(size, rel=0.3), forecast
        assert forecast.parts == facts[forecast.stage]["parts"]
        assert 0 < forecast.seconds.low <= forecast.seconds.value <= forecast.seconds.high
        assert forecast.cost is not None


def test_rows_that_failed_are_counted(crawl: Web) -> None:
    probed = probe(spec_of(crawl, "  - {use: deduplicate}\n"), 160, Display())
    assert probed.notes[0] == "32 of 160 rows failed: not_found 32"
    assert probed.notes[1].startswith("deduplicate: a sample holds fewer copies than the whole")
    assert probed.forecast.total.received.value > 0


def test_the_time_of_training_grows_with_its_steps(crawl: Web) -> None:
    """The probe runs as large a share of the steps as of the rows: a quarter, and a sixteenth."""
    training = "  - {{use: train_clip, steps: {steps}, batch_size: 4}}\n"
    seconds = {}
    for steps in (40, 400):
        found = probe(spec_of(crawl, training.format(steps=steps)), 160, Display()).forecast
        (trained,) = (f for f in found.stages if f.stage == "train_clip")
        assert (trained.law, trained.rows.value, trained.parts) == ("steps", 1, 1)
        seconds[steps] = trained.seconds.value
    assert 3 < seconds[400] / seconds[40] < 30


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(80):
        (tmp_path / "pictures" / f"{i:03}.jpg").write_bytes(jpeg(64, 64, i))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"dataset: p\nsource: {{use: folder, path: {tmp_path}/pictures, rows_per_part: 20}}\n"
        "stages: [{use: download, image_size: 64}]\n"
    )
    probed = probe(BuildSpec.read(recipe, catalog=str(tmp_path / "catalog"), executor="inline"), 40, Display())
    download = next(f for f in probed.forecast.stages if f.stage == "download")
    assert download.rows.value == pytest.approx(80, rel=0.05)
    pieces = sample_chunks(Folder(path=str(tmp_path / "pictures")), [], [2, 5], 4, lambda uri: uri)
    assert [[c.rows for c in piece] for piece in pieces] == [[2] * 4, [5] * 4]


def test_a_source_smaller_than_the_probe_runs_whole_and_says_so(crawl: Web) -> None:
    notes = Notes()
    probed = probe(spec_of(crawl), 1000, notes)
    assert "the source has 640 rows, hardly more than the probe: all are built" in notes.messages
    assert probed.is_whole
    rows = {f.stage: (f.rows.low, f.rows.value, f.rows.high) for f in probed.forecast.stages}
    assert rows["download"] == (640, 640, 640)
    assert rows["samples"] == (192, 192, 192)
    assert not list(Path(crawl.catalog).glob("_probe*"))


@pytest.mark.parametrize("rows", [-1, 0, LEAST_ROWS - 1])
def test_too_few_rows_are_refused(crawl: Web, rows: int) -> None:
    with pytest.raises(UserError, match=f"--probe {rows}: too few rows"):
        probe(spec_of(crawl), rows, Display())


def test_a_stage_that_cannot_work_on_so_few_rows_says_so(crawl: Web) -> None:
    stages = "  - {use: filter, where: width > 9000}\n  - {use: train_clip, steps: 1}\n"
    with pytest.raises(UserError, match=r"in the probe's build of \d+ rows: .*give --probe more rows"):
        probe(spec_of(crawl, stages), 160, Display())
    assert not list(Path(crawl.catalog).glob("_probe*"))


def test_a_catalog_in_an_object_store(crawl: Web, s3: Callable[[], str]) -> None:
    bucket = s3()
    spec = replace(spec_of(crawl), catalog=f"{bucket}/catalog")
    probed = probe(spec, 160, Display())
    assert probed.forecast.total.rows.value > 0
    assert probed.forecast.total.received.value > 0
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
    probed = json.loads(out)
    assert (code, probed["probe_rows"], probed["source_rows"]) == (0, 64, 640)
    assert probed["total"]["rows"]["low"] <= probed["total"]["rows"]["value"]
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
    assert err == f"espalier: --probe 3: too few rows for a forecast; give at least {LEAST_ROWS}\n"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_time_of_the_demo_comes_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_started: None) -> None:
    """Every stage, every hazard, on Ray: the forecast from 1,000 rows of the demo, against the build."""

    def spec_at(base_url: str) -> BuildSpec:
        planted = plant(tmp_path, 3000, base_url=base_url)
        monkeypatch.setenv("ESPALIER_DEMO_URLS", str(planted.urls))
        monkeypatch.setenv("ESPALIER_DEMO_HOST", base_url.removeprefix("http://"))
        return BuildSpec.read(RECIPE, catalog=str(tmp_path / "catalog"))

    with serve(tmp_path, port=0) as base_url:
        probed = probe(spec_at(base_url), 1000, Display())
    with serve(tmp_path, port=0) as base_url:  # a fresh one: what the probe made heal is broken again
        spec = spec_at(base_url)
        build_here(spec)
    runs = spec.dataset().runs().to_pylist()
    seconds = {run["stage"]: run["seconds"] for run in runs}
    found = {f.stage: (round(f.seconds.value, 1), round(seconds[f.stage], 1)) for f in probed.forecast.stages}
    total, truth = probed.forecast.total.seconds, sum(seconds.values())
    assert total.value == pytest.approx(truth, rel=0.3), (total, truth, found)
    assert total.low <= truth <= total.high, (total, truth, found)
    assert total.high - total.low < 1.5 * truth, (total, truth, found)  # else it says nothing
    rows = {run["stage"]: run["rows"] for run in runs}
    for forecast in probed.forecast.stages:
        assert forecast.rows.value == pytest.approx(rows[forecast.stage], rel=0.3), forecast
