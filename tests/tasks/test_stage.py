"""What stages declare about themselves: how their work grows, how a probe reduces them, which rows they keep."""

import importlib
import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import Field

from flows.recipe.recipe import stage_models
from tasks.cluster import Cluster
from tasks.deduplicate import Deduplicate
from tasks.first_fields import FIRST_FIELDS
from tasks.prune import Random, Union
from tasks.stage import Config, Size, Stage
from tasks.train import TrainClip
from tests.tasks.test_contracts import AVAILABLE, minimal, targets

__all__ = ["targets"]  # a fixture of its own module: it writes the files that some stages name

DECLARATIONS = {
    name
    for name in vars(Stage)
    if not name.startswith("_") and name not in ("use", "name", "resources", "model_fields")
}
STAGES = [model for model in stage_models() if "path" not in model.model_fields]


def declared(model: type[Stage]) -> list[Stage]:
    """Return the stages that run for a stage of a recipe."""
    return [*minimal(model).expand(), minimal(model)]


@pytest.mark.parametrize("model", stage_models(), ids=lambda model: model.__name__)
def test_declarations_are_in_no_fingerprint(model: type[Stage]) -> None:
    assert {"work", "verdict", "thresholds", "grows_with", "rows_per_sample"} <= DECLARATIONS
    for stage in declared(model):
        assert not DECLARATIONS & set(type(stage).model_fields)
        assert not DECLARATIONS & set(stage.parameters())


@pytest.mark.parametrize("model", STAGES, ids=lambda model: model.__name__)
def test_declarations_agree_with_the_table(model: type[Stage]) -> None:
    for stage in declared(model):
        names = stage.output(AVAILABLE).names
        assert (stage.rows_per_sample == "none") == ("sample_id" not in names), stage
        assert stage.verdict in ("", *names)
        assert (stage.verdict == "keep") == (stage.table == "decisions")
        assert (stage.verdict == "status") == stage.fails_rows == (stage.table == "images")
        assert stage.shares_table == (stage.table == "decisions")
        assert set(stage.thresholds) <= set(type(stage).model_fields)
        if stage.verdict == "keep":
            assert stage.thresholds


@pytest.mark.parametrize("model", stage_models(), ids=lambda model: model.__name__)
def test_work_never_falls_with_the_rows_or_clusters(model: type[Stage]) -> None:
    for stage in declared(model):
        work = [stage.work(Size(rows, k)) for rows, k in ((100, 5), (10_000, 5), (10_000, 500))]
        assert 0 < work[0] <= work[1]
        assert type(stage) is Deduplicate or work[1] <= work[2]
        assert (work[0] == work[1] == work[2]) == (stage.grows_with == "nothing")


@pytest.mark.parametrize("model", stage_models(), ids=lambda model: model.__name__)
def test_a_probe_reduces_no_stage_that_it_builds_whole(model: type[Stage]) -> None:
    if model is Cluster:
        pytest.skip("its clusters have 16 rows at least, whatever the share")
    assert minimal(model).reduced(10_000, 10_000).parameters() == minimal(model).parameters()


def test_the_default_law_is_proportional_to_rows() -> None:
    exact = Deduplicate(exact=True, perceptual=None)
    assert exact.work(Size(10)) * 2 == exact.work(Size(20))
    assert Random(keep=0.5).work(Size(10)) * 2 == Random(keep=0.5).work(Size(20))


def test_semantic_copies_are_compared_within_clusters() -> None:
    semantic = Deduplicate.model_validate({"semantic": {"epsilon": 0.05, "clusters": 100}})
    assert semantic.work(Size(10**6)) == 10**6 * 100 + 10**12 / 100


def test_clusters_cost_the_stages_that_compare_with_them() -> None:
    centroids, assign = Cluster(k=500).expand()[:2]
    assert assign.work(Size(1000, 500)) / assign.work(Size(1000, 50)) == 4
    few, many, more = (centroids.work(Size(n, 500)) for n in (10_000, 1_000_000, 10_000_000))
    assert many / few > 10
    assert more / many < 3  # the sample is full: only reading grows


def test_training_grows_with_its_steps() -> None:
    size = Size(100_000)
    few, many = (TrainClip(steps=steps).work(size) for steps in (6000, 60_000))
    assert many / few == pytest.approx(10, rel=0.05)
    assert TrainClip(steps=100).work(Size(10)) < TrainClip(steps=100).work(Size(20))  # a batch is never above the rows


def test_a_size_has_the_clusters_of_its_stages() -> None:
    assert Size.of(10, [Random(keep=0.5)]) == Size(10, 1)
    assert Size.of(10, [Cluster(k=30), Random(keep=0.5)]) == Size(10, 30)
    assert Size.of(10, [Cluster(levels=(1000, 100))]) == Size(10, 1000)


def test_settings_for_many_rows_shrink_with_them() -> None:
    assert Cluster(k=500).reduced(160, 10**6).k == 10
    assert Cluster(k=4).reduced(160, 10**6).k == 4
    assert Cluster(levels=(1000, 100, 10)).reduced(1600, 10**6).levels == (100, 10, 1)
    grid = Cluster(k="auto").reduced(16 * 20, 10**6).grid
    assert grid is not None
    assert (grid.min, grid.max) == (8, 20)
    few = Cluster(k="auto").reduced(12, 10**6).grid
    assert few is not None
    assert few.max == 2
    assert Random(keep_rows=5000).reduced(100, 10_000).keep_rows == 50
    assert Random(keep=0.5).reduced(100, 10_000) == Random(keep=0.5)
    members = Union(of=(Random(keep_rows=5000), Random(name="other", keep=0.5))).reduced(100, 10_000).of
    assert members == (Random(keep_rows=50), Random(name="other", keep=0.5))
    assert [TrainClip(steps=6000).reduced(rows, 10_000).steps for rows in (1, 100, 5000)] == [1, 60, 3000]


class Left(Config):
    """One of two configurations that have the same fields."""

    method: Literal["left"] = "left"
    size: int = 1


class Right(Config):
    """The other one."""

    method: Literal["right"] = "right"
    size: int = 1


class Holder(Config):
    """A configuration that is younger than the first parts."""

    use: Literal["holder"] = "holder"
    wide: bool = False
    listed: tuple[Left | Right, ...] = ()
    named: dict[str, Left | Right] = Field({})
    one: Left | Right = Left()


def test_settings_omit_defaults_but_never_what_kind_a_configuration_is() -> None:
    assert Holder().settings() == {"use": "holder"}
    found = Holder(wide=True, listed=(Left(), Right(size=2)), named={"a": Right()}, one=Right()).settings()
    assert found == {
        "use": "holder",
        "wide": True,
        "listed": [{"method": "left"}, {"method": "right", "size": 2}],
        "named": {"a": {"method": "right"}},
        "one": {"method": "right"},
    }


def test_configurations_that_differ_have_different_settings() -> None:
    kinds = [Left(), Right(), Left(size=2), Right(size=2)]
    all_of_them = [Holder(listed=(a, b), one=c) for a in kinds for b in kinds for c in kinds]
    assert len({json.dumps(holder.settings()) for holder in all_of_them}) == len(all_of_them)


def configurations(value: Any, dumped: Any, settings: Any) -> Iterator[tuple[Config, Any, Any]]:
    """Yield every configuration in a value, with its fields as JSON, and its settings."""
    if isinstance(value, Config):
        yield value, dumped, settings
        names = [name for name in type(value).model_fields if name in settings]
        for name in names:
            yield from configurations(getattr(value, name), dumped[name], settings[name])
    elif isinstance(value, tuple):
        for one, its, found in zip(value, dumped, settings, strict=True):
            yield from configurations(one, its, found)


@pytest.mark.parametrize("model", stage_models(), ids=lambda model: model.__name__)
def test_first_fields_are_in_settings_even_at_their_default(model: type[Stage]) -> None:
    """So parts that were made when settings were all fields keep their names."""
    for stage in declared(model):
        found = list(configurations(stage, stage.model_dump(mode="json"), stage.settings()))
        assert found[0][0] is stage
        for value, dumped, settings in found:
            places = [f"{base.__module__.removeprefix('tasks.')}.{base.__name__}" for base in type(value).__mro__]
            first = {name for place in places for name in FIRST_FIELDS.get(place, "").split()}
            assert first <= set(settings)
            plain = {n for n in first if not list(configurations(getattr(value, n), dumped[n], settings[n]))}
            assert {n: json.dumps(settings[n]) for n in plain} == {n: json.dumps(dumped[n]) for n in plain}


def test_first_fields_name_classes_and_fields_that_exist() -> None:
    for place, fields in FIRST_FIELDS.items():
        module, _, name = place.rpartition(".")
        model = getattr(importlib.import_module(f"tasks.{module}"), name)
        assert set(fields.split()) <= set(model.model_fields), place
