"""A scorer, a selector and a filter are each one file, one name in the family's `__init__`, and one test.

Each is added to a copy of the tree; the copy's own tests must pass, and a recipe that names all of them must build.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pictures import jpeg
from tests.tree_copy import copy_tree, run

SCHEMA = "configs/recipe.schema.json"
"""Generated from the models by `espalier schema`: nobody edits it."""


@dataclass(frozen=True)
class Addition:
    """A method to add: its file, its name in the family's union, and its test."""

    family: str
    module: str
    name: str
    union: str
    code: str
    test: str

    @property
    def files(self) -> set[str]:
        """The files that are added or changed."""
        return {
            f"tasks/{self.family}/{self.module}.py",
            f"tasks/{self.family}/__init__.py",
            f"tests/tasks/{self.family}/test_{self.module}.py",
        }

    def add(self, tree: Path) -> None:
        """Write the method and its test, and register it."""
        (tree / f"tasks/{self.family}/{self.module}.py").write_text(self.code)
        (tree / f"tests/tasks/{self.family}/test_{self.module}.py").write_text(self.test)
        registry = tree / f"tasks/{self.family}/__init__.py"
        before = registry.read_text()
        union = f"\n{self.union} = Annotated["
        assert before.count(union) == 1
        head, tail = before.split(union)
        statement = f"from tasks.{self.family}.{self.module} import {self.name}\n"
        head = head.replace(f"\nfrom tasks.{self.family}.", f"\n{statement}from tasks.{self.family}.", 1)
        registry.write_text(f"{head}{union}{self.name} | {tail.lstrip()}")


SCORER = Addition(
    family="score",
    module="leaning",
    name="Leaning",
    union="AnyVectorScorer",
    code='''"""`use: leaning`: the first coordinate of a vector of length 1."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from tasks.score._base import VectorScorer
from tasks.score._heads import Affine, Head, single


class Leaning(VectorScorer):
    """Measures how far a vector leans along the first axis: its first coordinate."""

    about: ClassVar[str] = "first coordinate: -1 to 1"

    use: Literal["leaning"] = "leaning"
    length: int = Field(32, gt=0, description="numbers in a vector")

    @property
    def dim(self) -> int:
        return self.length

    def head(self, vectors: Mapping[str, np.ndarray]) -> Head:
        return Head((Affine(np.eye(1, self.length), np.zeros(1)),), single)
''',
    test='''"""The score is the first coordinate of the row, scaled to length 1."""

import numpy as np
import pytest

from tasks.score._heads import Stacked
from tasks.score.leaning import Leaning


def test_the_score_is_the_first_coordinate() -> None:
    rows = np.array([[3, 4], [-1, 0], [0, 2]], np.float16)
    ((score,),), usable = Stacked([Leaning(length=2).head({})], "cpu")(rows)
    assert score.tolist() == pytest.approx([0.6, -1, 0])
    assert usable.all()
''',
)
SELECTOR = Addition(
    family="prune",
    module="every_other",
    name="EveryOther",
    union="AnyPrune",
    code='''"""`method: every_other`: keep every second row first."""

from typing import Literal

import numpy as np

from catalog.inputs import Inputs
from tasks.prune._base import ClusterSelector, Rows, Selection, sentences
from tasks.stage import Run


class EveryOther(ClusterSelector):
    """Keeps the rows at even places before those at odd places."""

    method: Literal["every_other"] = "every_other"

    def select(self, rows: Rows, total: int, inputs: Inputs, run: Run) -> Selection:
        places = np.arange(len(rows))
        keep = np.zeros(len(rows), bool)
        keep[np.lexsort((places, places % 2))[:total]] = True
        return Selection(keep, sentences("place ", places))
''',
    test='''"""Rows at even places are kept first."""

from pathlib import Path

from tests.tasks.prune.worlds import decide, make, world


def test_rows_at_even_places_are_kept(tmp_path: Path) -> None:
    found = decide(make(method="every_other", keep=0.5), world(10), tmp_path)
    assert found["keep"].to_pylist() == [True, False] * 5
''',
)
FILTER = Addition(
    family="filter",
    module="wide",
    name="Wide",
    union="AnyFilter",
    code='''"""`use: wide`: keep images of some width."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from catalog.schema import DECISIONS
from tasks.stage import Batches, Columns, MapStage, Step, Tables


class Wide(MapStage):
    """Keeps a row if its image has at least `pixels` columns of pixels."""

    table: ClassVar[str] = "decisions"
    shares_table = True
    verdict = "keep"
    thresholds = ("pixels",)

    use: Literal["wide"] = "wide"
    pixels: int = Field(64, gt=0, description="the smallest width that is kept")

    def inputs(self, available: Tables) -> Columns:
        return {"images": ("width",)}

    def output(self, available: Tables) -> pa.Schema:
        return DECISIONS

    def open(self, device: str, sides: Mapping[str, pa.Table]) -> Step:
        def step(batches: Iterator[pa.Table]) -> Batches:
            for batch in batches:
                keep = pc.fill_null(pc.greater_equal(batch.column("width"), self.pixels), False)
                columns = {
                    "sample_id": batch.column("sample_id"),
                    "stage": pa.repeat(self.name, batch.num_rows),
                    "keep": keep,
                    "reason": pc.if_else(keep, pa.scalar(None, pa.string()), "narrow"),
                }
                filled = [columns.get(f.name, pa.nulls(batch.num_rows, f.type)) for f in DECISIONS]
                yield pa.table(filled, schema=DECISIONS)

        return step
''',
    test='''"""Narrow images are rejected, and so are rows without a width."""

import pyarrow as pa

from tasks.filter.wide import Wide


def test_narrow_images_are_rejected() -> None:
    batch = pa.table({"sample_id": [1, 2, 3], "width": [63, 64, None]})
    (found,) = Wide(pixels=64).open("cpu", {})(iter([batch]))
    assert found["keep"].to_pylist() == [False, True, False]
    assert found["reason"].to_pylist() == ["narrow", None, "narrow"]
''',
)
ADDITIONS = (SCORER, SELECTOR, FILTER)

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1, "mlp_ratio": 2.0},
}
RECIPE = """
dataset: made
source: {use: folder, path: pictures}
stages:
  - use: download
    resize_mode: "no"
  - use: wide
    pixels: 48
  - use: embed
    encoders: [{name: clip, model: tiny.json, pretrained: random, text: false}]
  - use: score
    scorers: [{use: leaning}]
  - use: cluster
    k: 2
  - use: prune
    method: every_other
    keep: 0.5
"""
BUILD = """
import sys
from pathlib import Path
from catalog.database import sql
from catalog.dataset import Catalog
from flows.build.build import build_here
from flows.build.spec import BuildSpec

version = build_here(BuildSpec(Path("recipe.yaml").read_text(), "recipe.yaml", "datasets", (), "inline")).version
catalog = Catalog("datasets")
scored = sql(catalog, "select count(*) from made.scores where leaning between -1 and 1").to_pylist()
judged = sql(catalog, "select stage, keep, count(*) as rows from made.decisions group by all order by all").to_pylist()
print([list(row.values()) for row in scored + judged])
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tree with all of the methods added, and the schema generated again."""
    copy = copy_tree(tmp_path_factory.mktemp("tree"))
    for addition in ADDITIONS:
        before = contents(copy)
        addition.add(copy)
        assert {path for path, text in contents(copy).items() if before.get(path) != text} == addition.files
    (copy / SCHEMA).write_text(run(copy, "-m", "flows.cli", "schema"))
    return copy


def contents(tree: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of every file of Python and data in a tree."""
    files = (path for path in tree.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(tree)): path.read_bytes() for path in files}


def test_their_tests_and_the_tests_of_all_methods_pass(tree: Path) -> None:
    tests = [next(p for p in sorted(addition.files) if p.startswith("tests/")) for addition in ADDITIONS]
    names = [word for addition in ADDITIONS for word in (addition.module, addition.name)]
    chosen = ["-k", " or ".join([*names, "member", "committed_schema", "file_of_its_name"])]
    plain = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider"]
    printed = run(
        tree, "-m", "pytest", *plain, *chosen, *tests, "tests/tasks/test_contracts.py", "tests/test_layout.py"
    )
    assert "failed" not in printed
    assert " passed" in printed


def test_a_recipe_that_names_them_plans_and_builds(tree: Path) -> None:
    (tree / "pictures").mkdir()
    for number in range(8):
        (tree / "pictures" / f"{number}.jpg").write_bytes(jpeg(32 if number < 2 else 64, 64, number))
    (tree / "tiny.json").write_text(json.dumps(TINY))
    (tree / "recipe.yaml").write_text(RECIPE)
    plan = run(tree, "-m", "flows.cli", "plan", "recipe.yaml", "--catalog", "datasets")
    assert all(name in plan for name in ("wide", "score", "prune"))
    printed = run(tree, "-c", BUILD).splitlines()[-1]
    assert printed == str([[6], ["prune", False, 3], ["prune", True, 3], ["wide", False, 2], ["wide", True, 6]])
