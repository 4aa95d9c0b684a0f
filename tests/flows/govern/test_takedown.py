"""A takedown: nothing is left of the rows in any file, nothing else changes, and nothing brings them back."""

import base64
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog import work
from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.errors import BuildError, BusyError, UserError
from catalog.lease import hold
from catalog.parts import PartWriter
from catalog.schema import CLUSTERS, TAKEN_URL
from catalog.shards import ERASED, ShardReader
from catalog.takedown.ledger import REASON, Ledger
from catalog.takedown.reach import Names
from flows.build.build import build_here, up_to_date
from flows.build.spec import BuildSpec
from flows.build.worker import _folders
from flows.explore.failures import begin_retry, failures
from flows.explore.why import stories
from flows.govern.takedown import records, take_down
from tasks.cluster.concepts import CONCEPTS
from tasks.images.thumbnail import thumbnail
from tasks.report._thumbnails import SIDE_PX
from tests.flows.conftest import Web
from tests.hostile_server import HostileServer
from tests.pictures import jpeg
from tests.stages import content

STAGES = """  - use: filter
    where: original_width >= 50
  - use: deduplicate
  - {use: prune, method: random, keep_rows: KEEP}
  - use: report
"""
KILLED = """
import os, signal, sys
import catalog.shards
from catalog.dataset import Catalog
from catalog.takedown.reach import Names
from catalog.storage import Storage
from flows.govern.takedown import take_down
place, url, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
count = 0
def step(call):
    def counted(*arguments, **named):
        global count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **named)
    return counted
Storage.writer, Storage.delete = step(Storage.writer), step(Storage.delete)
catalog.shards._erased = step(catalog.shards._erased)
take_down(Catalog(place).dataset("web"), Names(frozenset([url])))
print(count)
"""


TWICE = 1 << 24 | 2
TWIN = 2 << 24


def spec_of(web: Web, keep: int = 4, catalog: str | None = None, **changed: str) -> BuildSpec:
    text = STAGES.replace("KEEP", str(keep))
    recipe = web.recipe(text)
    for old, new in changed.items():
        recipe.write_text(recipe.read_text().replace(old, new))
    return BuildSpec.read(recipe, catalog=catalog or web.catalog, executor="inline")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Two versions. `a` has a URL twice (samples 0 and TWICE), `b` a picture of `a` under another URL (TWIN)."""
    with HostileServer() as server:
        web = Web(tmp_path_factory.mktemp("web"), server)
        urls = web.pictures(range(6))
        web.add_file("a", [*urls, urls[0], server.body(b"gone", status=404)])
        web.add_file("b", [server.body(jpeg(96, 80, 1)), *web.pictures(range(20, 23))])
        for keep in (4, 6):
            build_here(spec_of(web, keep))
        yield web


@pytest.fixture
def built(original: Web, tmp_path: Path) -> Web:
    """A copy of it that may be changed."""
    shutil.copytree(original.folder, tmp_path / "web")
    web = copy.copy(original)
    web.folder, web.catalog = tmp_path / "web", str(tmp_path / "web" / "catalog")
    return web


def dataset_of(web: Web) -> Dataset:
    return Catalog(web.catalog).dataset("web")


def url_of(web: Web, sample_id: int) -> str:
    found = sql(Catalog(web.catalog), f"select url from web.source where sample_id = {sample_id}").to_pylist()
    return str(found[0]["url"])


def needles_of(dataset: Dataset, *sample_ids: int) -> dict[str, bytes]:
    """Return what must be found before and not after: URL, caption, stored bytes, thumbnails, hashes."""
    found: dict[str, bytes] = {}
    for i in sample_ids:
        row = sql(
            Catalog(str(Path(dataset.storage.uri).parent)),
            f"select url, caption, shard, byte_offset, byte_size, sha256 from web.source join web.images "
            f"using (sample_id) where sample_id = {i}",
        )
        (data,) = ShardReader(dataset.storage).read(row)
        assert data is not None
        small = thumbnail(data, SIDE_PX)
        assert small is not None
        facts = row.to_pylist()[0]
        found |= {
            f"url {i}": facts["url"].encode(),
            f"caption {i}": facts["caption"].encode(),
            f"sha256 {i}": facts["sha256"].encode(),
            f"bytes {i}": data[len(data) // 2 :],
            f"thumbnail {i}": small,
            f"thumbnail {i} in HTML": base64.b64encode(small),
        }
    return found


def traces(folder: Path, needles: dict[str, bytes]) -> dict[str, set[str]]:
    """Return needle -> folders that hold it, in the bytes of a file or, for Parquet, in what it says, notes and all."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        texts = [path.read_bytes(), *(said(path) if path.suffix == ".parquet" else ())]
        for name, needle in needles.items():
            pattern = re.compile(re.escape(needle) + rb"(?![0-9])")  # /1 is not /12
            if any(pattern.search(text) for text in texts):
                found.setdefault(name, set()).add(path.relative_to(folder).parts[0])
    return found


def said(path: Path) -> Iterator[bytes]:
    file = pq.ParquetFile(path)
    yield str(file.metadata.metadata).encode()
    for column in file.read().columns:
        for value in column.to_pylist():
            yield value if isinstance(value, bytes) else str(value).encode()


def names(*urls: str) -> Names:
    return Names(frozenset(urls))


def test_nothing_is_left_and_nothing_else_changes(built: Web) -> None:
    dataset = dataset_of(built)
    folder = Path(dataset.storage.uri)
    needles = needles_of(dataset, 0, 1)
    before = {v.number: content(dataset, v) for v in dataset.versions()}
    shown = traces(folder, needles)
    assert {name.partition(" ")[0] for name in shown} == {"url", "caption", "sha256", "bytes", "thumbnail"}
    assert {"source", "shards", "report", "_reports"} <= set.union(*shown.values())

    described = take_down(dataset, names(url_of(built, 0), url_of(built, 1)), "a letter of the author")
    gone = {0, 1, TWICE, TWIN}
    assert (described["samples"], described["copies"], described["published"]) == (4, 1, "web@3")
    assert described["rows"]["source"] == described["rows"]["images"] == 4
    assert traces(folder, needles) == {}

    for version in dataset.versions():
        now = content(dataset, version)
        was = before[min(version.number, 2)]
        for table, rows in was.items():
            if rows and "sample_id" in rows[0]:
                others = [row for row in rows if row["sample_id"] not in gone]
                assert [row for row in now[table] if row["sample_id"] not in gone] == others, table
        for table, rows in now.items():
            assert version.tables[table].rows == len(rows)
            assert version.tables[table].bytes == sum(f.bytes for f in dataset.files(version, table))
            left = [row for row in rows if row.get("sample_id") in gone]
            assert len(left) == (4 if table in {"source", "images"} else 0), table
            values = {v for row in left for k, v in row.items() if k != "sample_id"}
            assert values <= {TAKEN_URL, "failed", REASON, None}
            log = deltalake.DeltaTable(str(folder / table), version=version.tables[table].delta_version)
            assert log.to_pyarrow_table().num_rows == len(rows)
            sizes = [(folder / table / a["path"]).stat().st_size for a in pa.table(log.get_add_actions()).to_pylist()]
            assert sizes == [a["size_bytes"] for a in pa.table(log.get_add_actions()).to_pylist()]


def test_the_shards_stay_whole(built: Web) -> None:
    dataset = dataset_of(built)
    rows = sql(Catalog(built.catalog), "select * from web.images where shard is not null order by sample_id")
    before = dict(zip(rows["sample_id"].to_pylist(), ShardReader(dataset.storage).read(rows), strict=True))
    take_down(dataset, names(url_of(built, 2), url_of(built, 1 << 24)))
    left = sql(Catalog(built.catalog), "select * from web.images where shard is not null order by sample_id")
    after = dict(zip(left["sample_id"].to_pylist(), ShardReader(dataset.storage).read(left), strict=True))
    assert after == {i: data for i, data in before.items() if i not in {2, 1 << 24}}
    listed, erased = [], 0
    for path in sorted(Path(dataset.storage.uri, "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                if member.name == ERASED:
                    assert not any(data)
                elif member.name.endswith(".jpg"):
                    listed.append(data)
        beside = pq.read_table(path.with_suffix(".parquet")).to_pylist()
        stats = json.loads(path.with_name(f"{path.stem}_stats.json").read_bytes())
        assert stats["successes"] == sum(row["status"] == "success" for row in beside)
        assert stats["count"] == len(beside)
        for row in beside:
            if row["error_message"] == REASON:
                erased += 1
                assert {v for k, v in row.items() if k != "key"} == {TAKEN_URL, "failed_to_download", REASON, None}
    assert sorted(listed) == sorted(after.values())
    assert erased == len(before) - len(after)


def made_by(web: Web, runs_before: int) -> dict[str, int]:
    """Return stage -> parts that were made since."""
    runs = dataset_of(web).runs().to_pylist()[runs_before:]
    return {run["stage"]: run["parts_made"] for run in runs}


def test_the_next_build_chooses_again_and_fetches_nothing(built: Web) -> None:
    """Rows that a card showed, a pruning chose or others stood for are gone: what sees all rows is made again."""
    take_down(dataset_of(built), names(url_of(built, 0)))
    urls = sql(Catalog(built.catalog), "select distinct url from web.source")["url"].to_pylist()
    asked = {url: built.server.hits[url] for url in urls}
    before = dataset_of(built).runs().num_rows
    again = build_here(spec_of(built, 6))
    assert again.version.number == 4
    assert made_by(built, before) == {"deduplicate": 1, "prune": 1, "report": 1, "samples": 3}
    assert up_to_date(spec_of(built, 6)) is not None
    again = build_here(spec_of(built, 6))
    assert (again.made, again.version.number) == (0, 4)
    built.add_file("c", built.pictures(range(30, 32)))
    grown = build_here(spec_of(built, 6))
    assert grown.version.number == 5
    assert not [url for url in asked if built.server.hits[url] != asked[url]]
    taken = sql(Catalog(built.catalog), "select distinct stage, reason from web.verdicts where reason = 'taken_down'")
    assert taken.to_pylist() == [{"stage": "download", "reason": REASON}]


@pytest.mark.parametrize("emptied", [False, True])
def test_no_build_brings_them_back(built: Web, emptied: bool) -> None:
    dataset = dataset_of(built)
    folder = Path(dataset.storage.uri)
    needles = needles_of(dataset, 0, 1)
    url = url_of(built, 0)
    take_down(dataset, names(url, url_of(built, 1)))
    if emptied:  # everything but the dataset's state
        for child in folder.iterdir():
            if child.name not in {"_state", "_lease"}:
                shutil.rmtree(child)
    asked = built.server.hits[url]
    built.add_file("c", [built.server.body(jpeg(96, 80, 0)), *built.pictures(range(30, 32))])  # the bytes, elsewhere
    changed = {"image_size: 64": "image_size: 48", "rows_per_part: 4": "rows_per_part: 3"}
    build_here(spec_of(built, 6, None, **changed))
    assert traces(folder, needles) == {}
    assert built.server.hits[url] == asked, "a URL that was taken down is not asked for"
    why = "select count(*) as n from web.verdicts where reason = 'taken_down' and not keep"
    assert sql(Catalog(built.catalog), why).to_pylist() == [{"n": 5}]
    with pytest.raises(UserError, match="never downloaded again"):
        begin_retry(dataset, [REASON], built.catalog, "inline")


def test_copies_may_stay(built: Web) -> None:
    dataset = dataset_of(built)
    described = take_down(dataset, Names(sample_ids=frozenset([1])), copies="none")
    assert (described["samples"], described["copies"]) == (1, 0)
    twin = sql(Catalog(built.catalog), f"select status from web.images where sample_id = {TWIN}").to_pylist()
    assert twin == [{"status": "success"}]
    build_here(spec_of(built, 6, None, **{"image_size: 64": "image_size: 48"}))
    twin = sql(Catalog(built.catalog), f"select status from web.images where sample_id = {TWIN}").to_pylist()
    assert twin == [{"status": "success"}]


@pytest.mark.parametrize(("step", "file"), [("erase_shards", "shards/"), ("erase_parts", "decisions/")])
def test_what_is_left_is_noticed(built: Web, monkeypatch: pytest.MonkeyPatch, step: str, file: str) -> None:
    dataset = dataset_of(built)
    with monkeypatch.context() as patch:
        patch.setattr(f"catalog.takedown.erase.{step}", lambda *given: None)
        with pytest.raises(BuildError, match=f"rows remain in {file}"):
            take_down(dataset, names(url_of(built, 1)))
    assert records(dataset)[0]["state"] == "interrupted"
    assert take_down(dataset, None)["samples"] == 2
    assert [described["state"] for described in records(dataset)] == ["done"]


def test_concepts_lose_the_names_that_may_be_of_its_caption(built: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dataset_of(built)
    clusters: dict[str, list[Any]] = {
        "sample_id": [0, 1, 2, TWICE, TWIN],
        "cluster": [3, 3, 4, 5, None],
        "distance": [0.1] * 5,
    }
    names_of = ["picture, ada lovelace", "harbour", "jane doe", None]
    concepts: dict[str, list[Any]] = {"cluster": [3, 4, 5, 6], "name_caption": names_of, "name_label": ["fox"] * 4}
    concepts |= {"size": [2, 1, 1, 0], "nearest": [[0, 1], [2], [TWICE], []], "farthest": [[1, 0], [2], None, []]}
    for table, schema, columns in (("clusters", CLUSTERS, clusters), ("concepts", CONCEPTS, concepts)):
        rows = len(columns["cluster"])
        filled = [pa.array(columns.get(f.name, [None] * rows), f.type) for f in schema]
        with PartWriter(dataset.storage, table, "ab" * 32, schema) as writer:
            writer.write(pa.table(filled, schema=schema))
    with monkeypatch.context() as patch:
        patch.setattr("flows.govern.takedown.scrub", lambda *given: None)
        with pytest.raises(BuildError, match="rows remain in concepts/"):
            take_down(dataset, names(url_of(built, 0)))
    take_down(dataset, None)
    found = pq.read_table(Path(dataset.storage.uri) / "concepts" / f"{'ab' * 32}.parquet").to_pydict()
    assert found["name_caption"] == [None, "harbour", None, None]
    assert found["name_label"] == ["fox"] * 4
    assert found["nearest"] == [[1], [2], [], []]
    assert found["farthest"] == [[1], [2], None, []]


def test_a_digest_names_its_rows(built: Web) -> None:
    dataset = dataset_of(built)
    digest = sql(Catalog(built.catalog), "select sha256 from web.images where sample_id = 1").to_pylist()[0]["sha256"]
    described = take_down(dataset, Names.of([digest.upper()]))
    assert (described["samples"], described["given"]) == (2, {"url": 0, "sha256": 1, "sample_id": 0})


def test_a_dry_run_changes_nothing(built: Web) -> None:
    dataset = dataset_of(built)
    before = {p: p.read_bytes() for p in Path(dataset.storage.uri).rglob("*") if p.is_file()}
    described = take_down(dataset, names(url_of(built, 0), "http://nobody/knows"), dry_run=True)
    assert (described["samples"], described["unknown"], described["versions"]) == (2, 1, [1, 2])
    assert {p: p.read_bytes() for p in Path(dataset.storage.uri).rglob("*") if p.is_file()} == before


def test_a_name_that_is_of_no_row_is_remembered(built: Web) -> None:
    dataset = dataset_of(built)
    late = built.server.body(jpeg(96, 80, 50))
    described = take_down(dataset, names(late))
    assert (described["samples"], described["unknown"], described.get("published")) == (0, 1, None)
    assert dataset.version().number == 2
    built.add_file("c", [late])
    build_here(spec_of(built, 6))
    assert built.server.hits.get(late, 0) == 0
    with pytest.raises(UserError, match="1 were taken down before"):
        take_down(dataset, names(late))


def test_the_record_says_all_but_the_content(built: Web) -> None:
    dataset = dataset_of(built)
    url = url_of(built, 0)
    take_down(dataset, names(url), f"the owner of {url} wrote")
    (record,) = Ledger.read(dataset.storage).records
    assert record["reason"] == f"the owner of {TAKEN_URL} wrote"
    assert len(record["digests"]) == 2, "of the URL and of the bytes"
    assert url not in json.dumps(record)
    assert record["files"]
    assert all((Path(dataset.storage.uri) / file).is_file() for file in record["files"])
    (shown,) = records(dataset)
    assert (shown["samples"], shown["versions"], shown["published"], shown["state"]) == (2, "1, 2", "web@3", "done")


def test_what_cannot_be(built: Web, tmp_path: Path) -> None:
    dataset = dataset_of(built)
    with pytest.raises(UserError, match="name the rows with --file"):
        take_down(dataset, None)
    with pytest.raises(UserError, match="no row of 'web' has any of these 1 name: there is no such sample_id"):
        take_down(dataset, Names(sample_ids=frozenset([99])))
    with hold(dataset), pytest.raises(BusyError, match="is being built"):
        take_down(dataset, names(url_of(built, 0)))


def killed_at(catalog: Path, url: str, at: int) -> int:
    """Take a URL down in a process of its own that is killed before its change number `at`; return how many it made."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(catalog), url, str(at)],
        env=os.environ | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return int(done.stdout or 0) if done.returncode == 0 else -1


def check_killed(web: Web, tmp_path: Path, at: int, needles: dict[str, bytes], url: str) -> None:
    target = tmp_path / f"killed-{at}"
    shutil.copytree(web.catalog, target)
    assert killed_at(target, url, at) == -1
    dataset = Catalog(target).dataset("web")
    if Ledger.read(dataset.storage).pending is not None:
        with pytest.raises(UserError, match="was interrupted; complete it first: espalier takedown web"):
            build_here(spec_of(web, 6, str(target)))
        take_down(dataset, None)
    elif not Ledger.read(dataset.storage).records:
        take_down(dataset, names(url))
    assert traces(Path(dataset.storage.uri), needles) == {}
    assert [v.number for v in dataset.versions()] == [1, 2, 3]
    assert len(Ledger.read(dataset.storage).records) == 1
    before = dataset.runs().num_rows
    assert build_here(spec_of(web, 6, str(target))).version.number == 4
    assert {run["stage"] for run in dataset.runs().to_pylist()[before:]} == {
        "deduplicate",
        "prune",
        "report",
        "samples",
    }
    for version in dataset.versions():
        assert {t: len(rows) for t, rows in content(dataset, version).items()} == {
            t: state.rows for t, state in version.tables.items()
        }


def test_killed_it_goes_on(built: Web, tmp_path: Path) -> None:
    needles = needles_of(dataset_of(built), 0)
    url = url_of(built, 0)
    shutil.copytree(built.catalog, tmp_path / "whole")
    steps = killed_at(tmp_path / "whole", url, 10**9)
    assert steps > 20
    for at in (2, steps // 2, steps - 1):
        check_killed(built, tmp_path, at, needles, url)


@pytest.mark.slow
def test_killed_anywhere_it_goes_on(built: Web, tmp_path: Path) -> None:
    needles = needles_of(dataset_of(built), 0)
    url = url_of(built, 0)
    shutil.copytree(built.catalog, tmp_path / "whole")
    for at in range(1, killed_at(tmp_path / "whole", url, 10**9) + 1):
        check_killed(built, tmp_path, at, needles, url)


@pytest.mark.slow
def test_on_an_object_store(web: Web, s3: Callable[[], str]) -> None:
    catalog = s3()
    build_here(spec_of(web, 4, catalog))
    dataset = Catalog(catalog).dataset("web")
    url = str(sql(Catalog(catalog), "select url from web.source where sample_id = 0").to_pylist()[0]["url"])
    described = take_down(dataset, names(url))
    assert (described["samples"], described["published"]) == (2, "web@2")
    for path in dataset.storage.list():
        data = dataset.storage.read(path)
        assert url.encode() not in data, path
        if path.endswith(".parquet"):
            rows = pq.read_table(pa.BufferReader(data))
            assert not any(url in str(column.to_pylist()) for column in rows.columns), path
    left = sql(Catalog(catalog), "select * from web.images where shard is not null")
    assert left.num_rows
    assert all(d is not None and d[:2] == b"\xff\xd8" for d in ShardReader(dataset.storage).read(left))
    before = dataset.runs().num_rows
    assert build_here(spec_of(web, 4, catalog)).version.number == 3
    assert "download" not in {run["stage"] for run in dataset.runs().to_pylist()[before:]}


def test_counts_agree_where_nothing_is_fetched(tmp_path: Path) -> None:
    """View, card, why, errors and samples; also when every part is made again, and of a row that has no URL."""
    lines = [f"{'' if i == 1 else f'http://h/{i}'},the caption number {i}" for i in range(6)]
    (tmp_path / "s.csv").write_text("\n".join(["url,caption", *lines, "http://h/9,x"]))
    recipe = tmp_path / "r.yaml"
    text = (
        f"dataset: words\nsource: {{use: csv, path: {tmp_path}/s.csv, rows_per_part: 4}}\nstages:\n"
        "  - {use: filter, where: length(caption) > 3}\n  - {use: prune, method: random, keep: 0.5}\n  - use: report\n"
    )
    catalog = tmp_path / "catalog"
    for rows_per_part, limit in ((4, 3), (3, 2)):
        changed = text.replace("rows_per_part: 4", f"rows_per_part: {rows_per_part}").replace("> 3", f"> {limit}")
        recipe.write_text(changed)
        build_here(BuildSpec.read(recipe, catalog=str(catalog), executor="inline"))
        dataset = Catalog(catalog).dataset("words")
        if limit == 3:
            take_down(dataset, Names(sample_ids=frozenset([1, 3])))
        verdicts = sql(Catalog(catalog), "select * from words.verdicts order by sample_id").to_pylist()
        taken = [row for row in verdicts if row["reason"] == REASON]
        assert [(row["stage"], row["keep"], row["url"]) for row in taken] == [("csv", False, TAKEN_URL)] * 2
        version = dataset.version()
        assert len(verdicts) == version.tables["source"].rows == 7
        assert version.tables["samples"].rows == sum(row["keep"] for row in verdicts)
        assert stories(Catalog(catalog), "words", str(taken[0]["sample_id"]))[0]["verdict"]["reason"] == REASON
        assert [(f["reason"], f["rows"]) for f in failures(dataset)] == [(REASON, 2)]
        card = sql(Catalog(catalog), "select section, content from words.report").to_pylist()
        summary = next(json.loads(row["content"]) for row in card if row["section"] == "summary")
        assert (summary["rows"], summary["kept"]) == (7, version.tables["samples"].rows)
        source = next(json.loads(row["content"]) for row in card if row["section"] == "funnel")
        assert (source["stage"], source["rejected"]) == ("source", 2)
    needles = {"caption": b"the caption number 1", "url": b"http://h/3", "other": b"the caption number 3"}
    assert traces(catalog, needles) == {}


def test_checkpoints_of_an_object_store_go_too(
    web: Web, s3: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in the temporary folder of this machine; those of other datasets stay."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    web.catalog = s3()
    build_here(BuildSpec.read(web.recipe(), catalog=web.catalog, executor="inline"))
    dataset = Catalog(web.catalog).dataset("web")
    other = Catalog(web.catalog).dataset("other")
    url = "http://example.org/a.jpg"
    for one in (dataset, other):  # a stage that did not end: its checkpoints stay
        with _folders(one.storage, "ab") as (_, checkpoints):
            (checkpoints / "training.pt").write_text(url)
    assert len(list(tmp_path.rglob("training.pt"))) == 2
    take_down(dataset, Names(sample_ids=frozenset([0])))
    (left,) = tmp_path.rglob("training.pt")
    assert work.folder(other.storage) in left.parents
    with _folders(dataset.storage, "cd") as (scratch, _):  # and the next run finds its place
        assert scratch.is_dir()


def test_names_of_files_are_in_no_state(tmp_path: Path) -> None:
    """A folder of pictures: what the plan keeps of its files, before and after; the files themselves are the user's."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        (pictures / f"jane_doe_{i}.jpg").write_bytes(jpeg(80, 60, i))
        (pictures / f"jane_doe_{i}.txt").write_text(f"Jane Doe at home, the {i}. time")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"dataset: web\nsource: {{use: folder, path: {pictures}}}\nstages:\n  - {{use: download, image_size: 32}}\n"
        "  - use: report\n"
    )
    catalog = tmp_path / "catalog"
    build_here(BuildSpec.read(recipe, catalog=str(catalog), executor="inline"))
    dataset = Catalog(catalog).dataset("web")
    dataset.record_run({"run_id": "1", "error": f"cannot read {pictures}/jane_doe_1.jpg: or jane_doe_1.jpg"})
    needles = {"file": b"jane_doe_1.jpg", "beside": b"jane_doe_1.txt", "caption": b"the 1. time"}
    assert set(traces(catalog, needles)) == {"file", "caption"}
    take_down(dataset, Names(sample_ids=frozenset([1])))
    assert traces(catalog, needles) == {}
    build_here(BuildSpec.read(recipe, catalog=str(catalog), executor="inline"))
    assert traces(catalog, needles) == {}, "nor after the next plan, which looks at the file again"
    assert sql(Catalog(catalog), "select count(*) as n from web.samples").to_pylist() == [{"n": 2}]
