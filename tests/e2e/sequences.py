"""Sequences of edits, growths, retries, take-downs, crashes and collections, and the builds after them.

After each step the dataset is built, and compared with one that is built from nothing, in an empty catalog, from the
same recipe and source, with the same part numbers, retries and take-downs. A sequence is a list of plain lists, so a
failing one can be written down and run again:

    python -m tests.e2e.sequences '[["start", "web", 3], ["set", "prune", "keep", 0.2], ["retry"]]'
"""

import csv
import io
import json
import random
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from aiohttp import web

from catalog import gc
from catalog.database import sql
from catalog.dataset import Catalog, Dataset
from catalog.errors import EspalierError, RecipeError, UserError
from catalog.pieces import read_parquet
from catalog.published import PublishedVersion
from catalog.schema import TAKEN_URL
from catalog.shards import ShardReader
from catalog.takedown.ledger import STATE as TAKEDOWNS
from catalog.takedown.reach import CHOICES, Names
from catalog.version import Version
from flows.build.build import build_here, run_stage
from flows.build.context import BuildContext
from flows.build.engine import InlineEngine
from flows.build.plan import NUMBERS, RETRIES, make_plan
from flows.build.spec import BuildSpec
from flows.explore.failures import begin_retry, failures
from flows.govern.takedown import take_down
from tests.hostile_server import HostileServer
from tests.pictures import jpeg

Step = list[Any]
"""The name of a step and its arguments, all of them JSON."""
Captioned = list[tuple[list[Any], str]]
"""Rows, each with its caption."""
Rows = list[list[Any]]
"""Rows of a source file: (kind, picture, salt). Rows of one picture have the same bytes; with one salt, one URL too.

Kinds: `ok`; `gone` (404, or a sample of a tar without a picture); `broken` (503 until a retry, or no picture);
`torn` (a row that is not whole: no URL, a record of too few fields, a sample that has a text twice).
"""

UNBUILT: Final = ("order", "crash")
"""Steps after which nothing is built: what comes next must cope with what they left."""

ENDINGS: Final = {"web": ".parquet", "csv": ".csv", "folder": "", "webdataset": ".tar"}
"""Kinds of source -> how the names of their files end."""
SOURCE_FIELDS: Final[Mapping[str, tuple[tuple[str, Any], ...]]] = {
    "csv": (("label", "NOTE"), ("label", None), ("types", {"note": "string"}), ("types", {})),
    "folder": (("label", "none"), ("label", "folder")),
}
"""Values that a field of the source is set to."""
TINY_CLIP: Final = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1, "mlp_ratio": 2.0},
}
"""The open_clip configuration that the model `tiny` of a sequence stands for."""
CLIP: Final[Mapping[str, Any]] = {"name": "clip", "model": "tiny", "pretrained": "random", "dtype": "float32"}

VARIANTS: Final[tuple[Mapping[str, Any], ...]] = (
    {"name": "download", "image_size": 64, "user_agent_token": "va", "rows_per_part": 4},
    {"name": "fetch", "image_size": 64, "user_agent_token": "vb", "rows_per_part": 4},
    {"name": "download", "image_size": 32, "user_agent_token": "vc", "rows_per_part": 3},
)
"""Ways to download, each with a name of its own for the server: what a retry healed is healed for that one alone, as
parts that were made in another way before are not tried again."""

MENU: Final[tuple[Mapping[str, Any], ...]] = (
    {"use": "filter", "name": "wide", "where": "original_width >= 60"},
    {"use": "filter", "name": "worded", "where": "length(caption) >= 5"},
    {"use": "deduplicate", "name": "deduplicate"},
    {"use": "deduplicate", "name": "looks", "exact": False, "perceptual": {"radius": 6}, "keep": "random"},
    {"use": "prune", "name": "prune", "method": "random", "keep": 0.7},
    {"use": "prune", "name": "bright", "method": "score", "column": "brightness", "keep": 0.8},
    {"use": "prune", "name": "some", "method": "score", "column": "entropy", "keep_rows": 9, "of": "all"},
    {"use": "report", "name": "report", "samples": 3, "pairs": 2},
    {"use": "language", "name": "language"},
)
"""Stages that a recipe is drawn from."""

VECTORS: Final[tuple[Mapping[str, Any], ...]] = (
    {"use": "embed", "name": "embed", "batch_size": 1, "encoders": [CLIP]},
    {"use": "cluster", "name": "cluster", "k": 2, "niter": 5},
    {"use": "concepts", "name": "concepts", "terms": 2},
    {"use": "deduplicate", "name": "meaning", "exact": False, "semantic": {"epsilon": 0.02}},
    {"use": "prune", "name": "density", "method": "density", "keep": 0.6},
    {"use": "filter", "name": "fitting", "where": "clip_score > -0.2"},
)
"""Stages over vectors, in an order in which they can be built.

Forward batches of one row: a vector's last bits hang on the rows beside it, and a take-down leaves the vectors of other
rows as they are, where a build from nothing has other batches.
"""

EXAM: Final[Mapping[str, Any]] = {
    "use": "decontaminate",
    "name": "exam",
    "sets": [{"name": "exam", "version": "exam"}],
    "radius": 2,
}
"""A stage that reads a version of another dataset, `exam`."""

FIELDS: Final[Mapping[str, tuple[tuple[str, Any], ...]]] = {
    "exam": (("radius", None), ("radius", 2), ("exact", False), ("pixels", True)),
    "wide": (("where", "original_width >= 40"), ("where", "original_width >= 60"), ("where", "original_width >= 75")),
    "worded": (("where", "length(caption) >= 5"), ("where", "length(caption) >= 7")),
    "deduplicate": (("keep", "largest"), ("keep", "random"), ("keep", None), ("pixels", True)),
    "looks": (("perceptual", {"radius": 2}), ("keep", "first"), ("keep", "largest")),
    "prune": (("keep", 0.2), ("keep", 0.5), ("keep", 0.7)),
    "bright": (("keep", 0.8), ("keep", 0.4), ("lowest", True), ("lowest", False)),
    "some": (("keep_rows", 5), ("keep_rows", 9), ("of", "alive"), ("of", "all")),
    "report": (("samples", 2), ("title", "A card")),
    "embed": (("decode_threads", 2), ("encoders", [CLIP]), ("encoders", [{**CLIP, "text": False}])),
    "cluster": (("k", 2), ("k", 3), ("niter", 1), ("train", 4), ("train", "all")),
    "concepts": (("terms", 1), ("neighbours", 1), ("labels", ["a dog", "a cat"]), ("labels", None)),
    "meaning": (("semantic", {"epsilon": 0.1}), ("semantic", {"rule": "components"}), ("keep", "largest")),
    "density": (("keep", 0.3), ("keep", 0.6), ("which", "random"), ("temperature", 0.01)),
    "fitting": (("where", "clip_score > -0.2"), ("where", "clip_score > 0")),
}
"""Values that a field of a stage is set to, by the stage's first name."""


@dataclass
class World:
    """A source, a server, a recipe, and the catalog that all steps go to."""

    folder: Path
    server: HostileServer
    kind: str = "web"
    """`web`: Parquet files of URLs; `csv`: CSV files of them; `folder`: image files; `webdataset`: tars of them."""
    seed: int = 0
    variant: int = 0
    stages: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Rows] = field(default_factory=dict)
    source_fields: dict[str, Any] = field(default_factory=dict)
    _urls: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _broken: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    refused: str = ""
    """Why the last build refused: too few rows for so many clusters, say."""
    exams: int = 0
    """How many versions of the dataset `exam` were built."""
    healed: set[tuple[str, str]] = field(default_factory=set)
    """(URL, way to download): the server answers from now on."""

    # ---- what is built

    @property
    def token(self) -> str:
        """How the server knows the way to download."""
        return str(VARIANTS[self.variant]["user_agent_token"])

    def recipe(self) -> str:
        """Return the recipe's text."""
        way = dict(VARIANTS[self.variant])
        rows = way.pop("rows_per_part")
        use = "parquet" if self.kind == "web" else self.kind
        download = {"use": "download", "retries": 0, "timeout_s": 20, "allow_hosts": list(self.server.hosts), **way}
        download |= {"respect_robots": False, "respect_tdm": False}
        source = {"use": use, "path": str(self.source), "rows_per_part": rows, **self.source_fields}
        stages = [download, *map(self._with_model, self.stages)]
        said = {"dataset": "tiny", "seed": self.seed, "source": source, "stages": stages}
        said |= {"guards": {"no_samples": False, "outage": False}}
        said |= {"from": {"exam": "exam"}} if self.exams else {}
        return str(yaml.safe_dump(said, sort_keys=False))

    def _with_model(self, stage: dict[str, Any]) -> dict[str, Any]:
        """Return a stage with the path of the encoder's configuration, where it has an encoder."""
        if stage["use"] != "embed":
            return stage
        path = self.folder / "tiny-clip.json"
        path.write_text(json.dumps(TINY_CLIP))
        return stage | {"encoders": [encoder | {"model": str(path)} for encoder in stage["encoders"]]}

    @property
    def source(self) -> Path:
        """The folder of the source."""
        return self.folder / "source"

    def spec_for(self, catalog: Path) -> BuildSpec:
        """Return the spec that builds what the recipe and the source are now."""
        return BuildSpec(self.recipe(), "recipe.yaml", str(catalog), (), "inline")

    def dataset(self) -> Dataset:
        """Return the dataset that all steps go to."""
        return Catalog(self.folder / "catalog", create=True).dataset("tiny")

    def can_be_planned(self) -> bool:
        """Say whether the recipe is one."""
        try:
            spec = self.spec_for(self.folder / "nowhere")
            recipe, catalog = spec.checked, Catalog(self.folder / "catalog", create=True)
            versions = {n: PublishedVersion.resolve(catalog, n, label) for n, label in recipe.versions.items()}
            make_plan(recipe, spec.dataset(create=None), versions=versions)
        except RecipeError:
            return False
        return True

    # ---- the source

    def write(self, name: str, rows: Rows | None) -> None:
        """Write a file of the source, or remove it."""
        place = self.source / f"{name}{ENDINGS[self.kind]}"
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        if rows is None:
            self.files.pop(name, None)
            return
        self.files[name] = rows
        captions = [f"{'word ' * (picture % 3)}{kind} {picture}" for kind, picture, _ in rows]
        place.parent.mkdir(parents=True, exist_ok=True)
        getattr(self, f"_write_{self.kind}")(place, list(zip(rows, captions, strict=True)))

    def _write_web(self, place: Path, rows: Captioned) -> None:
        urls = [None if row[0] == "torn" else self.url(row) for row, _ in rows]
        pq.write_table(pa.table({"URL": urls, "TEXT": [caption for _, caption in rows]}), place)

    def _write_csv(self, place: Path, rows: Captioned) -> None:
        """Write a column NOTE too, of numbers or text, in files whose first row has an even picture."""
        more = rows[0][0][1] % 2 == 0
        with place.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["URL", "TEXT", *(["NOTE"] if more else [])])
            for row, caption in rows:
                note = [f"n{row[1]}" if row[2] == 1 else row[1]] if more else []
                out.writerow([caption] if row[0] == "torn" else [self.url(row), caption, *note])

    def _write_folder(self, place: Path, rows: Captioned) -> None:
        place.mkdir()
        for at, ((kind, picture, _), caption) in enumerate(rows):
            (place / f"{at:03d}.jpg").write_bytes(_bytes(picture) if kind == "ok" else b"no picture")
            if picture % 2:
                (place / f"{at:03d}.txt").write_text(caption)

    def _write_webdataset(self, place: Path, rows: Captioned) -> None:
        """Write a text, or a JSON object with a text, of each sample."""
        with tarfile.open(place, "w") as archive:

            def add(name: str, data: bytes) -> None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))

            for at, ((kind, picture, salt), caption) in enumerate(rows):
                if kind != "gone":
                    add(f"{at:03d}.jpg", b"no picture" if kind == "broken" else _bytes(picture))
                if salt == 1:
                    add(f"{at:03d}.json", json.dumps({"caption": caption, "note": picture}).encode())
                for text in (caption, f"not {caption}")[: 2 if kind == "torn" else picture % 2]:
                    add(f"{at:03d}.txt", text.encode())

    def url(self, row: Sequence[Any]) -> str:
        """Return the URL of a row of a web source."""
        key = tuple(row)
        if key not in self._urls:
            kind, picture, _ = row
            if kind == "gone":
                self._urls[key] = self.server.body(b"gone", status=404)
            else:
                self._urls[key] = self.server.add(self._answer(kind, picture, key))
            if kind == "broken":
                self._broken[self._urls[key]] = key
        return self._urls[key]

    def _answer(self, kind: str, picture: int, key: tuple[Any, ...]) -> Callable[[web.Request], Any]:
        async def handler(request: web.Request) -> web.Response:
            agent = request.headers.get("User-Agent", "")
            if kind == "broken" and not any(u == self._urls[key] and t in agent for u, t in self.healed):
                return web.Response(status=503)
            return web.Response(body=_bytes(picture), content_type="image/jpeg")

        return handler

    # ---- steps

    def step(self, step: Step) -> bool:
        """Do one step, and build but for UNBUILT; say whether it was possible. Else it changes nothing."""
        name, *arguments = step
        if getattr(self, f"do_{name}")(*arguments) is False:
            return False
        if name not in UNBUILT:
            self.refused = refusal(self.spec_for(self.folder / "catalog"))
        return True

    def _edit(self, stages: list[dict[str, Any]]) -> bool:
        before, self.stages = self.stages, stages
        if stages == before or not self.can_be_planned():
            self.stages = before
            return False
        return True

    def _at(self, name: str) -> int:
        return next((at for at, stage in enumerate(self.stages) if stage["name"] == name), -1)

    def do_start(self, kind: str, stages: list[dict[str, Any]], files: dict[str, Rows]) -> None:
        """Begin with a recipe and a source."""
        self.kind = kind
        self.stages = stages
        for name, rows in files.items():
            self.write(name, rows)

    def do_set(self, stage: str, field_: str, value: Any) -> bool:
        """Change a field."""
        return self._edit([s | {field_: value} if s["name"] == stage else s for s in self.stages])

    def do_add(self, at: int, stage: dict[str, Any]) -> bool:
        """Add a stage."""
        return self._edit([*self.stages[:at], stage, *self.stages[at:]])

    def do_remove(self, stage: str) -> bool:
        """Remove a stage."""
        return self._edit([s for s in self.stages if s["name"] != stage])

    def do_move(self, stage: str, at: int) -> bool:
        """Move a stage."""
        others = [s for s in self.stages if s["name"] != stage]
        moved = [s for s in self.stages if s["name"] == stage]
        return self._edit([*others[:at], *moved, *others[at:]])

    def do_rename(self, stage: str, name: str) -> bool:
        """Call a stage otherwise."""
        return self._at(name) < 0 and self._edit([s | {"name": name} if s["name"] == stage else s for s in self.stages])

    def do_seed(self, seed: int) -> None:
        """Change the recipe's seed."""
        self.seed = seed

    def do_download(self, variant: int) -> None:
        """Download in another way: other sizes, parts, names."""
        self.variant = variant

    def do_file(self, name: str, rows: Rows) -> None:
        """Add a file of the source, or change it."""
        self.write(name, rows)

    def do_unfile(self, name: str) -> bool:
        """Remove a file of the source."""
        if name not in self.files or len(self.files) == 1:
            return False
        self.write(name, None)
        return True

    def do_refile(self, name: str, new: str) -> bool:
        """Rename a file of the source."""
        if name not in self.files or new in self.files:
            return False
        rows = self.files[name]
        self.write(name, None)
        self.write(new, rows)
        return True

    def do_grow(self, name: str, rows: Rows) -> bool:
        """Append rows to a file of the source."""
        if name not in self.files:
            return False
        self.write(name, [*self.files[name], *rows])
        return True

    def do_source(self, field_: str, value: Any) -> bool:
        """Change a field of the source."""
        before, self.source_fields = self.source_fields, self.source_fields | {field_: value}
        if self.source_fields == before or not self.can_be_planned():
            self.source_fields = before
            return False
        return True

    def do_retry(self, reason: str = "server_error") -> bool:
        """Try failed rows again, of which the server now answers those that were broken."""
        dataset = self.dataset()
        there = failures(dataset) if dataset.last() else []
        if reason not in {f["reason"] for f in there}:
            return False
        failed = f"select url from tiny.verdicts where reason = '{reason}'"
        rows = sql(Catalog(self.folder / "catalog"), failed).to_pylist()
        self.healed |= {(row["url"], self.token) for row in rows if row["url"] in self._broken}
        begin_retry(dataset, [reason], str(self.folder / "catalog"), "inline")
        return True

    def do_order(self, reason: str) -> bool:
        """Order a retry that dies before it begins, and of which the server answers nothing more."""
        if self.dataset().last() is None or reason not in {f["reason"] for f in failures(self.dataset())}:
            return False
        begin_retry(self.dataset(), [reason], str(self.folder / "catalog"), "inline")
        return True

    def do_take(self, at: int, copies: str = "bytes") -> bool:
        """Take down a row of the last version, the one at a place among those that are not taken down yet."""
        dataset = self.dataset()
        if dataset.last() is None:
            return False
        listed = f"select sample_id from tiny.source where url is distinct from '{TAKEN_URL}' order by 1"
        ids = sql(Catalog(self.folder / "catalog"), listed)["sample_id"].to_pylist()
        if len(ids) < 6:
            return False
        take_down(dataset, Names(sample_ids=frozenset([ids[at % len(ids)]])), copies="bytes" if copies else "none")
        check_version(self.folder / "catalog", dataset.version())
        return True

    def do_exam(self, rows: Rows, keep_rows: int) -> None:
        """Build the next version of the dataset `exam`, of pictures in a folder."""
        place = self.folder / "exam" / f"{self.exams}"
        place.mkdir(parents=True)
        for at, (_, picture, _) in enumerate(rows):
            (place / f"{at:03d}.jpg").write_bytes(_bytes(picture))
        stages = [{"use": "download"}, {"use": "prune", "method": "random", "keep_rows": keep_rows}]
        recipe = {"dataset": "exam", "source": {"use": "folder", "path": str(place)}, "stages": stages}
        build_here(BuildSpec(yaml.safe_dump(recipe), "exam.yaml", str(self.folder / "catalog"), (), "inline"))
        self.exams += 1

    def do_erase(self, at: int) -> bool:
        """Take down a sample of the last version of `exam`."""
        if not self.exams:
            return False
        catalog = Catalog(self.folder / "catalog")
        ids = sql(catalog, "select sample_id from exam.samples order by 1")["sample_id"].to_pylist()
        if len(ids) < 2:
            return False
        take_down(catalog.dataset("exam"), Names(sample_ids=frozenset([ids[at % len(ids)]])))
        return True

    def do_crash(self, stages: int) -> None:
        """Begin a build that dies after some stages."""
        spec = self.spec_for(self.folder / "catalog")
        recipe = spec.checked
        plan = make_plan(recipe, spec.dataset())
        plan.dataset.set_state(NUMBERS, plan.numbers)
        with suppress(UserError):  # what refuses has made some parts before
            for planned in plan.stages[:stages]:
                run_stage(plan, planned, InlineEngine(), BuildContext(run_id="crashed"))

    def do_collect(self) -> bool:
        """Remove every file that the last version does not need."""
        if self.dataset().last() is None:
            return False
        gc.collect(gc.plan(self.dataset(), older_than_s=-60, keep_versions=1))
        return True

    # ---- what it is compared with

    def compare(self) -> None:
        """Build the same from nothing, with the same part numbers, retries and take-downs; raise where it differs."""
        dataset = self.dataset()
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        other = Catalog(fresh, create=True).dataset("tiny")
        if self.exams:
            shutil.copytree(self.folder / "catalog" / "exam", fresh / "exam")
        for state in (NUMBERS, RETRIES, TAKEDOWNS):
            if kept := dataset.state(state):
                other.set_state(state, kept)
        found = refusal(self.spec_for(fresh))
        assert found == self.refused, f"built step by step, {self.refused!r}; from nothing, {found!r}"
        if found:
            return
        check_version(self.folder / "catalog", dataset.version())
        differences(shown(dataset, self.folder / "catalog"), shown(other, fresh))


def refusal(spec: BuildSpec) -> str:
    """Build; return what a build says that cannot be done, empty where it was done."""
    try:
        build_here(spec)
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _bytes(picture: int) -> bytes:
    return jpeg(40 + 8 * (picture % 6), 48, picture // 2)


def check_version(catalog: Path, version: Version) -> None:
    """Raise where the published rows are not those that the verdicts keep."""
    at = {version.dataset: version.number}
    kept = sql(Catalog(catalog), f"select sample_id from {version.dataset}.verdicts where keep order by 1", at)
    published = sql(Catalog(catalog), f"select sample_id from {version.dataset}.samples order by 1", at)
    assert published["sample_id"].to_pylist() == kept["sample_id"].to_pylist(), f"samples of {version.label}"


def shown(dataset: Dataset, catalog: Path) -> dict[str, list[str]]:
    """Return all that a version says, but for times, places and numbers of versions: table -> rows, sorted."""
    version = dataset.version()
    found: dict[str, list[str]] = {}
    for table in version.tables:
        rows = [_row for file in dataset.files(version, table) for _row in _rows(dataset, file.path)]
        found[table] = sorted(rows)
        assert version.tables[table].rows == len(rows)
    found["verdicts"] = sorted(repr(row) for row in sql(Catalog(catalog), "select * from tiny.verdicts").to_pylist())
    found["failures"] = [repr(row) for row in failures(dataset)]
    facts = ("name", "use", "table", "version", "parameters", "parts", "rows", "notes")
    found["stages"] = [repr({name: stage[name] for name in facts}) for stage in version.stages]
    found["inputs"] = sorted(repr((one["sha256"], one["rows"])) for one in version.inputs)
    return found


def _rows(dataset: Dataset, path: str) -> Iterator[str]:
    rows = read_parquet(dataset.storage, path)
    if "shard" in rows.column_names:
        data = pa.array(ShardReader(dataset.storage).read(rows), pa.large_binary())
        rows = rows.drop_columns(["shard", "byte_offset"]).append_column("bytes", data)
    for row in rows.to_pylist():
        yield repr(sorted(row.items()))


def differences(one: Mapping[str, list[str]], other: Mapping[str, list[str]]) -> None:
    """Raise AssertionError that shows the first differing rows of each table."""
    said = []
    for name in sorted({*one, *other}):
        left, right = one.get(name, []), other.get(name, [])
        if left != right:
            more, less = [r for r in left if r not in right], [r for r in right if r not in left]
            said.append(f"{name}: {len(left)} rows, from nothing {len(right)}\n  + {more[:2]}\n  - {less[:2]}"[:1500])
    assert not said, "built step by step, it is not what it is from nothing:\n" + "\n".join(said)


# ---- drawing and running


def draw_start(rng: random.Random) -> Step:
    """Return a first step: a recipe and a source."""
    kind = rng.choice(["web", "web", "csv", "folder", "webdataset"])
    stages = [dict(stage) for stage in rng.sample(MENU, rng.randint(2, 4))]
    if rng.random() < 0.5:
        stages = draw_vectors(rng, stages[:2])
    files = {name: draw_rows(rng, name, 0) for name in ("a", "b")[: rng.randint(1, 2)]}
    return ["start", kind, stages, files]


def draw_vectors(rng: random.Random, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return stages with some of those over vectors among them, in an order in which they can be built."""
    embed, cluster, *others = VECTORS
    chosen = [dict(stage) for stage in (embed, cluster, *rng.sample(others, rng.randint(1, 3)))]
    for stage in stages:
        chosen.insert(rng.randint(0, len(chosen)), stage)
    return chosen


def draw_rows(rng: random.Random, name: str, revision: int) -> Rows:
    """Return rows of a file: pictures that others have too, some that do not exist, some broken ones of its own."""
    rows: Rows = []
    for at in range(rng.randint(5, 9)):
        kind = rng.choices(["ok", "gone", "broken", "torn"], [12, 1, 2, 1])[0]
        picture, salt = rng.randint(0, 19), rng.randint(0, 1)
        rows.append([kind, picture, f"{name}{revision}.{at}" if kind == "broken" else salt])
    return rows


def draw_step(rng: random.Random, world: World, number: int) -> Step:
    """Return a step that may be possible."""
    names = [stage["name"] for stage in world.stages]
    firsts = {stage["name"]: _first(stage) for stage in world.stages}
    files = sorted(world.files)
    fields = [(name, *f) for name in names for f in FIELDS.get(firsts[name], ())]
    menu = (*MENU, *VECTORS, *([EXAM] if world.exams else []))
    absent = [stage for stage in menu if _first(stage) not in firsts.values()]
    source = SOURCE_FIELDS.get(world.kind, ())
    chances: list[tuple[int, Callable[[], Step]]] = [
        (6, lambda: ["set", *rng.choice(fields)]),
        (3, lambda: ["add", rng.randint(0, len(names)), dict(rng.choice(absent))]),
        (2, lambda: ["remove", rng.choice(names)]),
        (3, lambda: ["move", rng.choice(names), rng.randint(0, len(names))]),
        (1, lambda: ["rename", rng.choice(names), f"other{number}"]),
        (1, lambda: ["seed", rng.randint(0, 2)]),
        (1, lambda: ["download", rng.randrange(len(VARIANTS))]),
        (2, lambda: ["file", rng.choice("0abc"), draw_rows(rng, "f", number)]),
        (2, lambda: ["grow", rng.choice(files), draw_rows(rng, "g", number)]),
        (1, lambda: ["source", *rng.choice(source)]),
        (1, lambda: ["unfile", rng.choice(files)]),
        (1, lambda: ["refile", rng.choice(files), rng.choice("0abcd")]),
        (4, lambda: ["retry", rng.choice(["server_error", "server_error", "not_found"])]),
        (3, lambda: ["take", rng.randint(0, 30), rng.choice(CHOICES)]),
        (1, lambda: ["order", rng.choice(["server_error", "not_found"])]),
        (2, lambda: ["crash", rng.randint(1, 4)]),
        (1, lambda: ["collect"]),
        (2, lambda: ["exam", draw_rows(rng, "e", number), rng.randint(1, 5)]),
        (1, lambda: ["erase", rng.randint(0, 30)]),
    ]
    while True:
        draw = rng.choices([d for _, d in chances], [c for c, _ in chances])[0]
        try:
            return draw()
        except IndexError:  # nothing to choose from
            continue


def _first(stage: Mapping[str, Any]) -> str:
    """Return what the menu calls a stage, whatever it is called now."""

    def kind(one: Mapping[str, Any]) -> list[Any]:
        near = "perceptual" in one, "semantic" in one
        return [one["use"], *near, one.get("method"), one.get("column"), str(one.get("where"))[:6]]

    return next(str(one["name"]) for one in (*MENU, *VECTORS, EXAM) if kind(one) == kind(stage))


@contextmanager
def world_in(folder: Path) -> Iterator[World]:
    """Give a world in a folder, with its server."""
    with HostileServer() as server:
        yield World(folder, server)


def run_random(folder: Path, seed: int, steps: int) -> list[Step]:
    """Draw and run a sequence; return it. Raises AssertionError that ends with how to run it again."""
    rng = random.Random(seed)
    with world_in(folder) as world:
        done = [draw_start(rng)]
        _checked(world, done, done[-1])
        while len(done) <= steps:
            step = draw_step(rng, world, len(done))
            _checked(world, done, step)
    return done


def _checked(world: World, done: list[Step], step: Step) -> None:
    try:
        if not world.step(step):
            return
        if step is not done[-1]:
            done.append(step)
        if step[0] not in UNBUILT:
            world.compare()
    except (AssertionError, EspalierError) as error:
        sequence = done if step is done[-1] else [*done, step]
        raise AssertionError(
            f"{type(error).__name__}: {error}\n\nrun it again:\npython -m tests.e2e.sequences '{json.dumps(sequence)}'"
        ) from error


def run(sequence: Sequence[Step]) -> None:
    """Run a sequence in a folder of its own. Steps that are not possible are passed over."""
    with tempfile.TemporaryDirectory() as folder, world_in(Path(folder)) as world:
        for step in sequence:
            if world.step(step) and step[0] not in UNBUILT:
                world.compare()


def shortest(sequence: Sequence[Step]) -> list[Step]:
    """Return what is left of a failing sequence when steps are left out for as long as it fails."""
    kept = list(sequence)
    for at in range(len(kept) - 2, 0, -1):
        fewer = kept[:at] + kept[at + 1 :]
        try:
            run(fewer)
        except (AssertionError, EspalierError):
            kept = fewer
    return kept


if __name__ == "__main__":
    given = json.loads(sys.argv[-1])
    if "--shorten" in sys.argv:
        given = shortest(given)
        print(json.dumps(given))
    run(given)
    print(f"{len(given)} steps: equal to a build from nothing after each")
