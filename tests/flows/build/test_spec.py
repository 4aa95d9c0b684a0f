"""A build spec: which recipe, in which catalog, read once."""

from pathlib import Path

import pytest

from flows.build.spec import BuildSpec

RECIPE = "dataset: d\nsource: {use: csv, path: a.csv}\n"


def test_the_catalog_is_that_of_the_spec_the_recipe_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESPALIER_CATALOG", raising=False)
    assert BuildSpec(RECIPE).catalog_uri == "datasets"
    monkeypatch.setenv("ESPALIER_CATALOG", "of_the_environment")
    assert BuildSpec(RECIPE).catalog_uri == "of_the_environment"
    named = RECIPE + "catalog: of_the_recipe\n"
    assert BuildSpec(named).catalog_uri == "of_the_recipe"
    assert BuildSpec(named, catalog="of_the_spec").catalog_uri == "of_the_spec"


def test_a_dataset_for_a_plan_creates_nothing(tmp_path: Path) -> None:
    spec = BuildSpec(RECIPE, catalog=str(tmp_path / "catalog"))
    assert spec.dataset(create=None).name == "d"
    assert list(tmp_path.iterdir()) == []
    spec.dataset()
    assert (tmp_path / "catalog").is_dir()


def test_the_recipe_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    spec = BuildSpec.read(path)
    path.write_text("no recipe any more")
    assert (spec.checked.dataset, spec.resolved) == ("d", RECIPE)
    assert BuildSpec(**spec.parameters() | {"overrides": ()}).checked == spec.checked
