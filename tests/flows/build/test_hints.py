"""Commands in messages name the catalog only where the command would look elsewhere without it."""

import shlex
from pathlib import Path

import pytest

from catalog.dataset import DEFAULT_CATALOG, Catalog, Dataset
from flows.build.hints import command_for


def dataset_in(place: Path) -> Dataset:
    return Catalog(str(place), create=True).dataset("birds")


def test_the_catalog_is_named_where_it_is_not_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESPALIER_CATALOG", raising=False)
    monkeypatch.chdir(tmp_path)
    dataset = dataset_in(tmp_path / "another place")
    words = shlex.split(command_for(dataset, "verify birds"))
    assert words == ["espalier", "verify", "birds", "--catalog", dataset.catalog.uri]


def test_the_default_catalog_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESPALIER_CATALOG", raising=False)
    monkeypatch.chdir(tmp_path)
    assert command_for(dataset_in(Path(DEFAULT_CATALOG)), "verify birds") == "espalier verify birds"


def test_the_catalog_of_the_environment_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_CATALOG", str(tmp_path / "mine"))
    assert command_for(dataset_in(tmp_path / "mine"), "ls") == "espalier ls"
    assert "--catalog" in command_for(dataset_in(tmp_path / "other"), "ls")
