"""Edges: rows that rows come from, stored or implied by the recipe of a saved search, and users of a version."""

from collections.abc import Callable

import numpy as np
import pytest

from catalog.dataset import Catalog
from catalog.edges import COPY, copies, edges_of, saved_from, users
from catalog.parts import PartFile
from catalog.schema import EDGES, SOURCE
from catalog.version import TableState, Version, VersionFacts

WritePart = Callable[..., PartFile]
SAVED = "dataset: few\nsaved_search: {from: web@3, text: fox}\n"


@pytest.fixture
def local_catalog(tmp_path: object) -> Catalog:
    return Catalog(f"{tmp_path}/catalog", create=True)


@pytest.fixture
def publish(local_catalog: Catalog, write_part: WritePart) -> Callable[..., Version]:
    """Return a function that publishes a version of a dataset with two rows of `source`."""

    def published(name: str, recipe: str = "", *inputs: dict[str, object]) -> Version:
        dataset = local_catalog.dataset(name)
        part = write_part(dataset, "source", 0, [{"sample_id": 4}, {"sample_id": 7}])
        digest = f"{len(dataset.versions()):064x}"
        return dataset.publish({"source": TableState(SOURCE, [part])}, VersionFacts(recipe, digest, "", list(inputs)))

    return published


def test_copied_rows_keep_their_sample_id(publish: Callable[..., Version]) -> None:
    version = publish("web")
    assert copies(np.array([9, 2]), version).to_pylist() == [
        {"child": i, "parent_dataset": "web", "parent_version": 1, "parent": i, "role": COPY, "weight": None}
        for i in (9, 2)
    ]
    nothing = copies(np.empty(0, np.int64), version)
    assert (nothing.num_rows, nothing.schema) == (0, EDGES)


def test_each_edge_is_returned_once(
    local_catalog: Catalog, publish: Callable[..., Version], write_part: WritePart
) -> None:
    """Parts of several versions, published or not, may repeat it."""
    version = publish("web")
    few = local_catalog.dataset("few")
    assert edges_of(few).equals(EDGES.empty_table())
    other = {"child": 2, "parent_dataset": "web", "parent": 1, "role": "mix", "weight": 0.25}
    write_part(few, "edges", 0, copies(np.array([1, 2]), version).to_pylist(), EDGES)
    write_part(few, "edges", 1, [*copies(np.array([2, 3]), version).to_pylist(), other], EDGES)
    found = edges_of(few)
    assert found.schema == EDGES
    assert sorted((row["child"], row["parent"], row["role"]) for row in found.to_pylist()) == [
        (1, 1, COPY), (2, 1, "mix"), (2, 2, COPY), (3, 3, COPY),
    ]  # fmt: skip


def test_the_recipe_of_a_saved_search_without_edges_implies_them(
    local_catalog: Catalog, publish: Callable[..., Version]
) -> None:
    publish("few", SAVED)
    found = edges_of(local_catalog.dataset("few")).sort_by("child").to_pylist()
    assert [(row["child"], row["parent_dataset"], row["parent_version"], row["parent"]) for row in found] == [
        (4, "web", 3, 4), (7, "web", 3, 7),
    ]  # fmt: skip
    publish("plain", "dataset: plain\n")
    assert edges_of(local_catalog.dataset("plain")).num_rows == 0


def test_users_of_a_version_have_its_rows_or_were_built_from_it(
    local_catalog: Catalog, publish: Callable[..., Version], write_part: WritePart
) -> None:
    version = publish("web")
    assert users(local_catalog, "web") == {}
    publish("few", SAVED)
    publish("grown", "", {"dataset": "web", "version": 1}, {"path": "x.csv"})
    for name in ("grown", "mixed"):
        publish(name)
        write_part(local_catalog.dataset(name), "edges", 0, copies(np.array([4]), version).to_pylist(), EDGES)
    own = {"child": 4, "parent_dataset": "web", "parent_version": 1, "parent": 7, "role": "crop_of"}
    write_part(local_catalog.dataset("web"), "edges", 0, [own], EDGES)
    assert users(local_catalog, "web") == {1: ["grown", "mixed"], 3: ["few"]}
    assert users(local_catalog, "few") == {}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (SAVED, "web@3"),
        ("", None),
        ("dataset: web\nstages: []\n", None),
        ("dataset: web\ndescription: not a saved_search\n", None),
        ("saved_search: {text: fox}\n", None),
        ("saved_search: web@3\n", None),
        ("saved_search: [unclosed\n", None),
        ("- saved_search\n", None),
    ],
)
def test_only_the_recipe_of_a_saved_search_names_a_version(recipe: str, expected: str | None) -> None:
    assert saved_from(recipe) == expected
