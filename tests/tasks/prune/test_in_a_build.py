"""Selectors as stages of a real build: over the parts of a source, one after the other, and again from the cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.database import sql
from catalog.dataset import Catalog
from flows.build.build import build_here
from flows.build.spec import BuildSpec

ROWS = 60


def spec_of(folder: Path, stages: str) -> BuildSpec:
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"dataset: ranked\nsource: {{use: parquet, path: {folder}/rows, rows_per_part: 7}}\nstages:\n{stages}"
    )
    return BuildSpec.read(recipe, catalog=str(folder / "catalog"), executor="inline")


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    return [tuple(r.values()) for r in sql(Catalog(str(folder / "catalog")), query).to_pylist()]


STAGES = """\
  - {use: prune, name: unsafe, method: score, column: punsafe, lowest: true, keep: 0.5}
  - {use: prune, name: top, method: score, column: similarity, of: all, keep: 0.5}
  - use: prune
    method: union
    of:
      - {method: score, column: similarity, keep: 0.2}
      - {method: random, keep_rows: 1}
"""


def test_scores_of_the_source_choose_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    unsafe, similarity = rng.random(ROWS), rng.permutation(ROWS) / ROWS
    (tmp_path / "rows").mkdir()
    urls = [f"https://photos.example/{i}.jpg" for i in range(ROWS)]
    table = pa.table({"URL": urls, "TEXT": urls, "punsafe": unsafe, "similarity": similarity})
    pq.write_table(table, tmp_path / "rows" / "0.parquet")
    outcome = build_here(spec_of(tmp_path, STAGES))
    safe = set(np.argsort(unsafe)[:30].tolist())
    top = safe & set(np.argsort(-similarity)[:30].tolist())
    found = rows(
        tmp_path, "select stage, count(*), sum(keep::int) from ranked.decisions group by stage order by 2 desc"
    )
    assert found[:2] == [("unsafe", ROWS, 30), ("top", 30, len(top))]
    assert found[2][:2] == ("prune", len(top))
    kept = rows(tmp_path, "select url from ranked.samples")
    best = sorted(top, key=lambda i: -similarity[i])[: len(top) // 5]
    assert {urls[i] for i in best} <= {url for (url,) in kept} <= {urls[i] for i in top}
    assert len(kept) in (len(best), len(best) + 1)
    said = rows(tmp_path, "select evidence from ranked.decisions where reason = 'pruned_union' limit 1")
    assert "score drops: similarity " in said[0][0]
    again = build_here(spec_of(tmp_path, STAGES))
    assert (again.made, again.version.label) == (0, outcome.version.label)
