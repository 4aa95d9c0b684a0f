"""Every member of every family, run: on all rows, on none, on one, on null columns, in small batches, renumbered.

Members are found from the unions of the families, so a new one is run without a change here; where it cannot do
without a field that is not in `FIELDS`, the test names it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pydantic.fields import FieldInfo

from catalog.errors import EspalierError
from flows.recipe.recipe import stage_models
from tasks.publish import Samples
from tasks.score import AnyScorer
from tasks.score.aesthetic_v2 import WIDTHS as V2
from tasks.score.nsfw import WIDTHS as NSFW
from tasks.score.watermark import network
from tasks.sources import Source
from tasks.stage import MapStage, Stage
from tests.tasks.members import KEY, LARGE, World, make_world, name_of
from tests.tasks.score.embeddings import linear_layers, saved
from tests.tasks.test_contracts import MINIMAL, fields_of

Fields = dict[str, dict[str, Any]]

FOUND: tuple[type[Stage], ...] = (*stage_models(), Samples)
STAGES = [model for model in FOUND if not issubclass(model, Source)]


def uses(union: Any) -> set[str]:
    """Return the names of the members of a union, of unions in it too."""
    if hasattr(union, "model_fields"):
        return {str(union.model_fields["use"].default)}
    return {use for member in get_args(union) if not isinstance(member, FieldInfo) for use in uses(member)}


SCORERS = sorted(uses(AnyScorer))


MEMBERS = [*map(name_of, STAGES), *(f"score: {use}" for use in SCORERS)]
MODELS: Mapping[str, type[Stage]] = {name_of(model): model for model in STAGES}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_clip: tuple[Path, Path]) -> World:
    return make_world(tmp_path_factory.mktemp("world"), *tiny_clip)


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory, tiny_clip: tuple[Path, Path]) -> Fields:
    """Return the fields that a member cannot do without, or that make it small."""
    folder = tmp_path_factory.mktemp("fields")
    config, weights = map(str, tiny_clip)
    targets = folder / "targets.parquet"
    pq.write_table(pa.table({"clip": pa.array([[1.0] * 32], pa.list_(pa.float32(), 32))}), targets)
    encoder = {"name": "clip", "model": config, "pretrained": weights, "dtype": "float32"}
    watermark = {"use": "watermark", "weights": saved(network().state_dict(), folder / "watermark.safetensors")}
    selectors = [{"method": "score", "column": "brightness", "keep": 0.5}, {"method": "random", "keep": 0.5}]
    heads = _heads(folder)
    texts = {"texts": ["a park", "a fight"], "encoder": "clip"}
    return {
        **MINIMAL,
        "download": {"image_size": 32},
        "embed": {"encoders": [encoder]},
        "filter": {"where": "width >= 2 and length(caption) >= 18"},
        "near_targets": {"targets": str(targets)},
        "decontaminate": {"sets": [{"name": "exam", "path": str(targets), "vector": "clip"}], "epsilon": 0.1},
        "deduplicate": {"perceptual": {"radius": 3}, "semantic": {"epsilon": 0.05, "encoder": "clip"}},
        "cluster": {"k": 3, "encoder": "clip"},
        "hierarchy": {"levels": [2]},
        "centroids": {"k": 3, "encoder": "clip"},
        "train_clip": {"steps": 2, "batch_size": 4, "config": config, "vocabulary": 20},
        "report": {"samples": 3, "pairs": 2},
        **{f"prune/{method}": {"of": selectors} for method in ("union", "intersection", "then")},
        "prune/score": {"column": "brightness", "keep": 0.5},
        "score_vectors": {"scorers": [{"use": "aesthetic_v1", **heads["score: aesthetic_v1"]}]},
        "score_images": {"scorers": [watermark]},
        "score": {"scorers": [{"use": "violence", **texts}]},
        "score: violence": texts,
        "score: watermark": watermark,
        "score: zero_shot": {"labels": ["cat", "dog"], "encoder": "clip"},
        **heads,
    }


def _heads(folder: Path) -> Fields:
    """Return scorers of the column `l14`, with random weights of the shapes of the published ones."""
    import torch

    widths = NSFW["l14"]
    norm = {"norm.mean": torch.zeros(LARGE), "norm.variance": torch.full((LARGE,), 1 / LARGE)}
    nsfw = linear_layers(widths, [f"linear_{i + 1}." for i in range(len(widths) - 1)]) | norm
    v2 = linear_layers(V2, [f"layers.{n}." for n in (0, 2, 4, 6, 7)])
    states = {"aesthetic_v1": linear_layers((LARGE, 1), [""]), "aesthetic_v2": v2, "nsfw": nsfw}
    return {f"score: {u}": {"encoder": "l14", "weights": saved(s, folder / f"{u}.pt")} for u, s in states.items()}


def members_of(name: str, fields: Fields) -> tuple[Stage, ...]:
    """Return the stages that an entry of a recipe with this member stands for."""
    scorer = name.partition(": ")[2]
    if scorer:
        return MODELS["score"].model_validate({"scorers": [{"use": scorer, **fields.get(name, {})}]}).expand()
    return MODELS[name].model_validate(fields_of(name, fields)).expand()


Case = Callable[[World], World]
CASES: Mapping[str, Case] = {
    "all rows": lambda world: world,
    "no row": lambda world: world.only(np.empty(0, np.int64)),
    "one row": lambda world: world.only(world.tables["clusters"].column(KEY).to_numpy()[:1]),
    "null columns": lambda world: world.without_values(),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MEMBERS)
def test_it_writes_what_it_declares(name: str, case: str, world: World, fields: Fields, tmp_path: Path) -> None:
    """Its schema, one row a sample in the order of ids, and a reason for every row that fails or is rejected.

    A stage over whole tables may refuse too few rows, with one line that says so.
    """
    for stage in members_of(name, fields):
        given = CASES[case](_with_tables_of(world, name, stage, fields, tmp_path))
        refused = ""
        try:
            made, ids = given.run(stage, tmp_path / stage.use)
        except EspalierError as error:
            refused = str(error)
        if refused:
            assert not isinstance(stage, MapStage)
            assert case != "all rows", refused
            assert "\n" not in refused
            return
        assert made.schema.equals(stage.output(given.schemas))
        if stage.rows_per_sample == "one":
            assert made.column(KEY).to_pylist() == ids.tolist()
            assert (np.diff(ids) > 0).all()
        if stage.verdict:
            column = made.column(stage.verdict)
            bad = pc.equal(column, "failed") if stage.verdict == "status" else pc.invert(column)
            assert pc.is_valid(made.column("reason")).to_pylist() == bad.to_pylist()


def _with_tables_of(world: World, name: str, stage: Stage, fields: Fields, folder: Path) -> World:
    """Return the world with the tables that earlier stages of the same entry write for this one."""
    tables = dict(world.tables)
    for earlier in members_of(name, fields):
        if earlier == stage:
            break
        tables[earlier.table] = World(tables, world.storage).run(earlier, folder / "before" / earlier.use)[0]
    return World(tables, world.storage)


MAPS = [name for name in MEMBERS if issubclass(MODELS[name.partition(": ")[0]], MapStage) or ": " in name]


@pytest.mark.parametrize("name", MAPS)
def test_a_row_has_the_same_values_in_any_batch_and_under_any_id(
    name: str, world: World, fields: Fields, tmp_path: Path
) -> None:
    stage = members_of(name, fields)[-1]
    if not isinstance(stage, MapStage):
        pytest.skip("sees whole tables")
    few = world.tables["source"].column(KEY).to_numpy()[:8]
    world = _with_tables_of(world.only(few), name, stage, fields, tmp_path)
    whole, _ = world.run(stage, tmp_path)
    alike(world.run(stage, tmp_path, batch_rows=1)[0], whole)
    ids = world.tables["source"].column(KEY).to_pylist()
    new = dict(zip(ids, np.random.default_rng(1).permutation(ids).tolist(), strict=True))
    moved, _ = world.renumbered(new).run(stage, tmp_path)
    back = {value: key for key, value in new.items()}
    restored = moved.set_column(0, moved.schema.field(0), pa.array([back[i] for i in moved.column(KEY).to_pylist()]))
    alike(restored.sort_by(KEY), whole)


def alike(found: pa.Table, expected: pa.Table) -> None:
    """Compare two tables: numbers of models within the rounding of another batch, all else exactly."""
    assert found.column_names == expected.column_names
    for column in expected.column_names:
        one, other = found.column(column), expected.column(column)
        type_ = one.type
        if pa.types.is_fixed_size_list(type_) or pa.types.is_floating(type_):
            assert one.is_null().to_pylist() == other.is_null().to_pylist(), column
            got, wanted = (np.array(c.drop_null().to_pylist(), np.float64) for c in (one, other))
            np.testing.assert_allclose(got, wanted, atol=2e-3, err_msg=column)
        else:
            assert one.to_pylist() == other.to_pylist(), column


def test_the_members_are_those_of_the_unions() -> None:
    """So that none of the tests above runs on nothing."""
    assert len(MEMBERS) == len(set(MEMBERS)) > 25
    assert {"download", "embed", "filter", "deduplicate", "prune/density", "score: watermark"} <= {*MEMBERS}
