"""From pictures on a web to a search, and from its result to a dataset that reads like any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

from catalog.database import sql
from catalog.dataset import Catalog
from catalog.errors import BalanceError, DamagedError, UserError
from catalog.parts import PartWriter
from catalog.pieces import read_parquet
from catalog.storage import Storage
from flows.build.build import build_here
from flows.build.spec import BuildSpec
from flows.explore.save import save
from flows.explore.search import Query, search
from tests.flows.conftest import Run, Web
from tests.hostile_server import HostileServer

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 2.0},
}


class Built:
    """A catalog with the dataset `web`."""

    def __init__(self, catalog: Path) -> None:
        self.catalog = str(catalog)


@pytest.fixture(scope="module")
def web_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a catalog: pictures, some of them rejected, with vectors of a tiny encoder and of one that is trained."""
    folder = tmp_path_factory.mktemp("web")
    config = folder / "tiny.json"
    config.write_text(json.dumps(TINY))
    with HostileServer() as server:
        web = Web(folder, server)
        urls = web.pictures(range(6))
        web.add_file("a", [*urls, urls[0], server.body(b"gone", status=404)])
        web.add_file("b", web.pictures(range(10, 22)))
        encoders = f"[{{name: clip, model: {config}, pretrained: random}}, {{name: own, trained: small}}]"
        stages = f"""\
  - {{use: train_clip, model_name: small, config: {config}, steps: 2, batch_size: 4}}
  - {{use: embed, encoders: {encoders}}}
  - {{use: deduplicate}}
  - {{use: cluster, k: 2}}
  - {{use: prune, method: random, keep_rows: 15}}
  - {{use: report}}
"""
        build_here(BuildSpec.read(web.recipe(stages), catalog=web.catalog, executor="inline"))
        return Path(web.catalog)


@pytest.fixture
def built(web_once: Path, tmp_path: Path) -> Built:
    """A copy of it, to write into."""
    shutil.copytree(web_once, tmp_path / "catalog")
    return Built(tmp_path / "catalog")


def rows(web: Built, query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sql(Catalog(web.catalog), query).to_pylist()
    return found


def test_words_and_pictures_are_encoded_as_the_column_was(built: Built, tmp_path: Path) -> None:
    catalog = Catalog(built.catalog)
    stored = {r["sample_id"]: r for r in rows(built, "select * from web.embeddings where clip is not null")}
    kept = {r["sample_id"] for r in rows(built, "select sample_id from web.samples")}
    caption = rows(built, "select sample_id, caption from web.samples order by 1")[3]
    found = search(catalog, "web", Query(text=caption["caption"], top=100))
    assert {hit.sample_id for hit in found.hits} == kept
    query = np.array(stored[caption["sample_id"]]["clip_text"])
    cosines = {i: float(np.dot(query, stored[i]["clip"])) for i in kept}
    for hit in found.hits:
        assert hit.score == pytest.approx(cosines[hit.sample_id], abs=5e-3)
    place = rows(built, "select sample_id, shard, byte_offset, byte_size from web.samples order by 1")[5]
    picture = tmp_path / "one.jpg"
    data = Storage.open(f"{built.catalog}/web").read_range(place["shard"], place["byte_offset"], place["byte_size"])
    picture.write_bytes(data)
    best = search(catalog, "web", Query(image=str(picture))).hits[0]
    assert (best.sample_id, round(best.score, 2)) == (place["sample_id"], 1.0)
    assert search(catalog, "web", Query(text="a bird", column="clip_text")).column == "clip_text"
    picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match="does not decode"):
        search(catalog, "web", Query(image=str(picture)))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_result_becomes_a_dataset(built: Built) -> None:
    import webdataset

    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="picture 3 of a", top=6, where="width >= 10"))
    version = save(catalog, found, "few", shard_rows=4)
    ids = sorted(hit.sample_id for hit in found.hits)
    assert version.label == "few@1"
    original = {table: state.rows for table, state in catalog.resolve("web").tables.items()}
    assert version.tables.keys() == original.keys() | {"edges"}
    for table in ("source", "images", "embeddings", "clusters", "samples"):
        assert [r["sample_id"] for r in rows(built, f"select sample_id from few.{table} order by 1")] == ids
    assert version.tables["centroids"].rows == original["centroids"]
    for table in ("source", "embeddings", "clusters"):
        listed = ", ".join(map(str, ids))
        assert rows(built, f"select * from few.{table} order by sample_id") == rows(
            built, f"select * from web.{table} where sample_id in ({listed}) order by sample_id"
        )
    of = "select shard, byte_offset, byte_size from {}.samples where sample_id = {}"
    storage = Storage.open(built.catalog)
    for sample_id in ids:
        (one,), (other,) = (rows(built, of.format(name, sample_id)) for name in ("web", "few"))
        places = [
            (f"{name}/{r['shard']}", r["byte_offset"], r["byte_size"]) for name, r in (("web", one), ("few", other))
        ]
        was, now = (storage.read_range(*place) for place in places)
        assert was == now
        assert was[:2] == b"\xff\xd8"
    tars = sorted(str(p) for p in (Path(built.catalog) / "few/shards").glob("*.tar"))
    assert len(tars) == 2
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode("rgb8"))
    assert sorted(s["json"]["sample_id"] for s in samples) == ids
    assert {s["txt"] for s in samples} == {r["caption"] for r in rows(built, "select caption from few.source")}
    for said in ("from: web@1", "text: picture 3 of a", "column: clip", "where: width >= 10", "code_version: "):
        assert said in version.recipe
    again = search(catalog, "few", Query(text="picture 3 of a", top=6))
    assert [h.sample_id for h in again.hits] == [h.sample_id for h in found.hits]


def test_a_trained_encoder_comes_from_its_table(built: Built) -> None:
    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="picture 3 of a", column="own", top=100))
    row = rows(built, "select sample_id from web.source where caption = 'picture 3 of a'")[0]
    query = np.array(
        rows(built, f"select own_text from web.embeddings where sample_id = {row['sample_id']}")[0]["own_text"]
    )
    stored = {r["sample_id"]: np.array(r["own"]) for r in rows(built, "select sample_id, own from web.embeddings")}
    cosines = [float(query @ stored[hit.sample_id]) for hit in found.hits]
    assert len(cosines) == len(rows(built, "select sample_id from web.samples"))
    assert [hit.score for hit in found.hits] == pytest.approx(cosines, abs=5e-3)
    save(catalog, found, "few")
    again = search(catalog, "few", Query(text="picture 3 of a", column="own", top=100))
    assert [hit.sample_id for hit in again.hits] == [hit.sample_id for hit in found.hits]


def test_saving_again(built: Built) -> None:
    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="a bird", top=5))
    first = save(catalog, found, "few")
    assert save(catalog, found, "few").number == 1
    second = save(catalog, search(catalog, "web", Query(text="a bird", top=3)), "few")
    assert (first.number, second.number) == (1, 2)
    assert rows(built, "select count(*) as n from few.samples") == [{"n": 3}]
    assert sql(catalog, "select count(*) as n from few.samples", {"few": 1}).to_pylist() == [{"n": 5}]
    nested = save(catalog, search(catalog, "few", Query(text="a bird", top=2)), "fewer")
    assert nested.tables["samples"].rows == 2


def test_what_cannot_be_saved(built: Built) -> None:
    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="a bird"))
    with pytest.raises(UserError, match="'web' is a dataset that was built"):
        save(catalog, found, "web")
    with pytest.raises(UserError, match="cannot name a dataset"):
        save(catalog, found, "Few Birds")
    with pytest.raises(UserError, match="the search has no results"):
        save(catalog, search(catalog, "web", Query(text="a", where="false")), "few")
    with pytest.raises(UserError, match="leave out --all"):
        save(catalog, search(catalog, "web", Query(text="a", all=True)), "few")
    assert catalog.datasets() == ("web",)


def test_damage_is_not_copied_on(built: Built) -> None:
    """One byte of a picture that was found; nothing of the dataset is left."""
    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="a bird", top=5))
    listed = ", ".join(str(hit.sample_id) for hit in found.hits)
    place = rows(built, f"select shard, byte_offset from web.samples where sample_id in ({listed})")[0]
    shard = Path(built.catalog, "web", place["shard"])
    data = bytearray(shard.read_bytes())
    data[place["byte_offset"] + 200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedError, match=f"{shard.name} is damaged: .* `espalier verify web --repair`"):
        save(catalog, found, "few")
    assert catalog.dataset("few").versions() == []
    assert [p.suffix for p in Path(built.catalog, "few").rglob("*") if p.suffix in (".tar", ".parquet")] == []


@pytest.mark.parametrize("harm", ["missing", "rejected"])
def test_what_is_not_in_balance_is_not_saved(built: Built, harm: str) -> None:
    """A stage that has no verdict on a row that was found, or rejects it."""
    catalog = Catalog(built.catalog)
    found = search(catalog, "web", Query(text="a bird", top=5))
    dataset, sample_id = catalog.dataset("web"), found.hits[0].sample_id
    for part in dataset.files(catalog.resolve("web"), "decisions"):
        before = read_parquet(dataset.storage, part.path)
        mine = pc.and_(pc.equal(before["sample_id"], sample_id), pc.equal(before["stage"], "deduplicate"))
        if harm == "missing":
            after = before.filter(pc.invert(mine))
        else:
            at = before.column_names.index("keep")
            after = before.set_column(at, before.field("keep"), pc.if_else(mine, False, before["keep"]))
        with PartWriter(dataset.storage, "decisions", Path(part.path).stem, before.schema) as writer:
            writer.write(after)
    with pytest.raises(BalanceError, match=rf"stage 'deduplicate': 1 .*sample {sample_id} is one.*nothing was saved"):
        save(catalog, found, "few")
    assert catalog.dataset("few").versions() == []


def test_the_command_line(built: Built, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = ["--catalog", built.catalog]
    code, out, err = run("index", "web", "--json", *at)
    assert (code, json.loads(out)["factory"]) == (0, "Flat")
    code, out, err = run("index", "web", *at)
    assert "recall@10 of text queries: 1.000" in out
    assert "up to date" in err
    page = tmp_path / "page.html"
    words = ["search", "web", "--text", "a bird", "--top", "3", "--html", str(page), "--save", "few", *at]
    code, out, err = run(*words)
    assert code == 0, err
    assert "(3 rows)" in out
    assert "saved 3 samples as few@1" in err
    assert "web@1, clip: " in err
    assert page.read_text().count("data:image/webp") == 3
    code, out, err = run("search", "web", "--text", "a bird", "--top", "3", "--json", *at)
    facts = json.loads(out)
    assert (facts["how"], len(facts["hits"]), facts["query"]["text"]) == (
        "exact, 15 rows: so few need no index", 3, "a bird",
    )  # fmt: skip
    for command in ("versions", "show", "errors", "report"):
        code, out, err = run(command, "few", *at)
        assert code == 0, err
    for wrong, expected in (
        (["search", "web"], "give one of"),
        (["search", "web", "--like", "x"], "--like"),
        (["search", "web", "--text", "a", "--where", "nonsense = 1"], "no column 'nonsense'"),
        (["search", "few@7", "--text", "a"], "no version 7"),
        (["search", "web", "--text", "a", "--html", "/no/such/folder/x.html"], "cannot write"),
        (["index", "web", "--kind", "flt"], "did you mean 'flat'?"),
        (["retry", "few", "--reason", "dns"], "espalier: "),
    ):
        code, out, err = run(*wrong, *at)
        assert code == 2, (wrong, err)
        assert expected in err
        assert len(err.splitlines()) <= 2


def test_a_dataset_without_vectors(web: Web) -> None:
    build_here(BuildSpec.read(web.recipe(), catalog=web.catalog, executor="inline"))
    with pytest.raises(UserError, match="web@1 has no embeddings: its recipe has no stage `use: embed`"):
        search(Catalog(web.catalog), "web", Query(text="a bird"))
