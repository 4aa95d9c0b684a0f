"""Fingerprints name parts that users have already: a change of one makes all their parts again.

The golden values change only together with the `version`, the fields or the defaults of a stage, which is then named
in CHANGELOG.md. What a stage declares about itself (its work, its thresholds) is in no fingerprint.
"""

import json
from pathlib import Path

from catalog.dataset import Catalog
from flows.build.plan import make_plan
from flows.recipe.recipe import parse
from tests.pictures import jpeg
from tests.tree_copy import copy_tree, run

RECIPE = """
dataset: golden
seed: 7
source: {{use: csv, path: "{folder}/*.csv", rows_per_part: 2}}
stages:
  - use: download
  - {{use: train_clip, steps: 20}}
  - {{use: embed, encoders: [{{name: clip, trained: small-clip}}]}}
  - use: score
    scorers:
      - {{use: violence, texts: [a park, a fight]}}
      - {{use: image_issues}}
      - {{use: language}}
  - {{use: filter, where: width >= 200}}
  - {{use: deduplicate, semantic: {{epsilon: 0.05}}}}
  - {{use: cluster, levels: [40, 4]}}
  - {{use: concepts}}
  - {{use: prune, name: balanced, method: hierarchical, keep_rows: 100}}
  - {{use: prune, name: dense, method: density, keep: 0.9}}
  - use: prune
    name: both
    method: union
    of: [{{method: random, keep: 0.5}}, {{method: prototypes, keep: 0.5}}]
  - use: report
"""

GOLDEN = {
    "csv": ["6df5e0645d67", "d05b7ef55639"],
    "download": ["9fa060be9607", "06d426ef1366"],
    "train_clip": ["f985b4ee9fe4"],
    "embed": ["aad1293e5531", "04e9eaf57b6e"],
    "image_issues-sizes": ["3e98dc2bdb73"],
    "image_issues": ["ed3d782f6bb2", "eb43cfb1e6fd"],
    "language": ["737efcbbcc4b", "895f1dc23aa7"],
    "score-prompts": ["5953d9311471"],
    "score": ["d107adf695cd", "94fe0444cf64"],
    "filter": ["2093e4014c0b", "65e6fb2e9f60"],
    "deduplicate": ["448b11d90cbf"],
    "cluster-centroids": ["36bf8c4d7054"],
    "cluster-hierarchy": ["4391eb8c6447"],
    "cluster": ["651ab97ae649", "ff19eef87339"],
    "concepts": ["d6870ec5aaa2"],
    "balanced": ["2ab67c5aa30f"],
    "dense": ["5b20d7ae8bdc"],
    "both": ["6474521bc423"],
    "report": ["900a72313866"],
    "samples": ["917dcf2a42ae", "5c455a5d56a4"],
}


def test_a_plan_has_the_fingerprints_that_it_always_had(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://h/1.jpg,one\nhttp://h/2.jpg,two\nhttp://h/3.jpg,three\n")
    recipe = parse(RECIPE.format(folder=tmp_path))
    plan = make_plan(recipe, Catalog(tmp_path / "catalog", create=None).dataset("golden"))
    assert {s.stage.name: [p.fingerprint[:12] for p in s.parts] for s in plan.stages} == GOLDEN


SMALL = """
dataset: small
source: {use: folder, path: pictures}
stages:
  - {use: download}
  - {use: deduplicate, perceptual: {radius: 2}}
"""
ADDED = {
    "tasks/stage.py": (
        "    resources: Resources = Resources()\n",
        "    batch_rows: int = Field(1024, gt=0",  # of Resources
    ),
    "tasks/sources/_base.py": ("    rows_per_part: int = Field(",),
    "tasks/download/_base.py": ("    max_pixels: int",),
    "tasks/deduplicate/_perceptual.py": ("    radius: int = Field",),
}
"""Files, and the fields before which one is added: to all stages, and to configurations in them at each depth."""


def test_an_optional_field_that_is_added_makes_nothing_again(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    (tree / "pictures").mkdir()
    for number in range(3):
        (tree / "pictures" / f"{number}.jpg").write_bytes(jpeg(40, 40, number))
    (tree / "recipe.yaml").write_text(SMALL)
    command = ["-m", "flows.cli"]
    where = ["recipe.yaml", "--catalog", "datasets"]
    run(tree, *command, "build", *where, "--executor", "inline")

    for name, fields in ADDED.items():
        text = (tree / name).read_text()
        for before in fields:
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, f"    added_later: bool = False\n{before}")
        (tree / name).write_text(text)
    plan = json.loads(run(tree, *command, "plan", *where, "--json"))
    assert {stage["status"] for stage in plan} == {"cached"}

    for place in ("download.added_later", "deduplicate.added_later", "deduplicate.perceptual.added_later"):
        plan = json.loads(run(tree, *command, "plan", *where, "--json", "--set", f"{place}=true"))
        status = {stage["stage"]: stage["status"] for stage in plan}
        assert status[place.partition(".")[0]] == "to run"
