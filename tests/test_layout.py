"""The layout of the tree: one name, three paths; families register their members; small files; cheap imports."""

import ast
import importlib
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.dataset import Catalog
from flows.build.plan import make_plan
from flows.recipe.recipe import stage_models
from tests.helpers import recipe_in
from tests.pictures import jpeg
from tests.stages import write_source

ROOT = Path(__file__).parents[1]
OURS = ("flows", "tasks", "catalog")
LAZY = ("torch", "ray", "prefect", "diffusers", "open_clip", "faiss", "cv2", "sklearn", "scipy", "duckdb")
MAX_LINES = 500
METHODS = sorted(path.relative_to(ROOT) for path in ROOT.glob("tasks/*/*.py") if not path.name.startswith("_"))


def _families() -> list[str]:
    """Return the families, as import-linter knows them: the first layer of `tasks`."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract.get("containers") == ["tasks"])
    return [name.strip() for name in layers[0].split("|")]


FAMILIES = _families()


@pytest.mark.parametrize("package", OURS)
def test_our_packages_are_ours(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin == str(ROOT / package / "__init__.py"), f"{spec.origin} shadows our package {package!r}"


def test_a_stage_is_in_the_file_of_its_name() -> None:
    for model in stage_models():
        names = {str(model.model_fields[f].default) for f in ("use", "method", "name") if f in model.model_fields}
        module = model.__module__.split(".")
        assert module[-1] in names, model


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_has_a_test_of_its_name(method: Path) -> None:
    assert (ROOT / "tests" / method.parent / f"test_{method.name}").exists(), f"no test for {method}"


def test_every_public_module_has_a_test_file() -> None:
    """The test file mirrors the module's path. Modules without public functions and classes need none."""
    modules = [path.relative_to(ROOT) for package in OURS for path in (ROOT / package).rglob("*.py")]
    public = [path for path in modules if not path.name.startswith("_") and _defines_public_names(path)]
    assert public
    missing = {str(path) for path in public if not (ROOT / "tests" / path.parent / f"test_{path.name}").exists()}
    assert missing == set()


def _defines_public_names(module: Path) -> bool:
    """Return whether a module defines a function or class whose name does not begin with `_`."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    body = ast.parse((ROOT / module).read_text()).body
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in body)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_modules_of_a_family_are_its_members(family: str) -> None:
    """What is no member begins with `_`; what is one is in a union of the family's `__init__`."""
    package = importlib.import_module(f"tasks.{family}")
    unions = [value for name, value in vars(package).items() if name.startswith("Any")]
    homes = [member.__module__ for union in unions for member in _members(union)]
    assert homes, f"tasks/{family}/__init__.py has no union"
    modules = {path.stem for path in (ROOT / "tasks" / family).glob("*.py") if not path.name.startswith("_")}
    assert modules == {home.rpartition(".")[2] for home in homes if home.startswith(f"tasks.{family}.")}


def _members(union: Any) -> list[type]:
    """Return the classes in a union, which may have other unions and annotations in it."""
    if isinstance(union, type):
        return [union]
    return [member for one in get_args(union) for member in _members(one)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_init_of_a_family_with_its_members_defines_nothing(family: str) -> None:
    body = ast.parse((ROOT / "tasks" / family / "__init__.py").read_text()).body
    assert not [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


def test_flows_and_the_catalog_use_only_what_is_public_in_tasks() -> None:
    """A module or name of `tasks` that begins with `_` belongs to its folder."""
    files = sorted([*(ROOT / "flows").rglob("*.py"), *(ROOT / "catalog").rglob("*.py")])
    used = {(str(path.relative_to(ROOT)), name) for path in files for name in _imported(path) if "tasks." in name}
    assert len(used) > 20
    assert {(path, name) for path, name in used if "._" in name} == set()


def _imported(module: Path) -> Iterator[str]:
    """Yield the dotted names that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_file_is_long() -> None:
    files = [path for package in OURS for path in (ROOT / package).rglob("*.py")]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_no_grab_bags() -> None:
    bad = {"utils", "common", "helpers", "misc", "util"}
    assert [p for package in OURS for p in (ROOT / package).rglob("*") if p.stem in bad] == []


@pytest.mark.parametrize("module", ["flows.cli", "flows.recipe.recipe", "catalog.dataset", "catalog.inputs"])
def test_imports_are_cheap(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {LAZY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert out.strip() == "[]"


def test_every_recipe_in_configs_plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So every stage finds its tables and columns, with the files that the recipes' comments ask for."""
    write_source(tmp_path / "urls", files=1)
    pq.write_table(pa.table({"image": [jpeg(64, 64, 0)]}), tmp_path / "coco_val.parquet")
    (tmp_path / "watermark_model_v1.pt").write_bytes(b"weights")
    for name in ("ESPALIER_DEMO_URLS", "LAION_URLS"):
        monkeypatch.setenv(name, str(tmp_path / "urls"))
    monkeypatch.setenv("ESPALIER_DEMO_HOST", "somewhere")
    monkeypatch.setenv("ESPALIER_WEIGHTS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    recipes = sorted((ROOT / "configs").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        plan = make_plan(recipe_in(recipe), Catalog(tmp_path / "catalog", create=None).dataset("any"))
        assert all(stage.missing for stage in plan.stages), recipe


def test_the_committed_schema_is_the_recipe() -> None:
    from flows.recipe.recipe import json_schema

    committed = (ROOT / "configs" / "recipe.schema.json").read_text()
    assert committed.strip() == json_schema().strip(), "run `make schema`"
