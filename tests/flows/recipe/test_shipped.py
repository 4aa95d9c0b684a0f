"""The folder of the shipped recipes, from a checkout and from an installed wheel."""

import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from flows.recipe.shipped import SHIPPED
from tests.stages import write_source

ROOT = Path(__file__).parents[3]
RECIPE = """\
dataset: laion
source: {use: parquet, path: urls, url: URL, caption: TEXT}
stages:
  - use: download
  - use: image_issues
  - include: filters/image_issues.yaml
"""


def test_a_checkout_ships_its_own_recipes() -> None:
    assert SHIPPED == ROOT / "configs"
    assert (SHIPPED / "filters" / "image_issues.yaml").is_file()


class Installation:
    """An installed wheel: its environment has our dependencies, and the checkout is not on its path."""

    def __init__(self, folder: Path) -> None:
        built = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(built, cwd=ROOT, check=True, capture_output=True, timeout=120)
        (wheel,) = folder.glob("*.whl")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True, timeout=120)
        self.bin = folder / "venv" / "bin"
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "-q", "--no-compile"]
        subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True, timeout=120)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        # A folder that a .pth names is added to the path as it is: the .pth of our editable install is not read.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, command: str, *arguments: str, cwd: Path) -> str:
        """Return what a command of the installation prints."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(
            [str(self.bin / command), *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("wheel"))


def test_an_installed_wheel_ships_the_same_recipes(installed: Installation, tmp_path: Path) -> None:
    code = "from flows.recipe.shipped import SHIPPED; print(SHIPPED)"
    folder = Path(installed.run("python", "-c", code, cwd=tmp_path).strip())
    assert folder.is_relative_to(installed.bin.parent)
    ours = {p.relative_to(SHIPPED): p.read_bytes() for p in SHIPPED.rglob("*") if p.is_file()}
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == ours


def test_an_installed_wheel_answers_from_any_folder(installed: Installation, tmp_path: Path) -> None:
    write_source(tmp_path / "urls", files=1)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert installed.run("espalier", "--version", cwd=tmp_path).strip() == f"espalier {version('espalier')}"
    assert installed.run("espalier", "schema", cwd=tmp_path) == (SHIPPED / "recipe.schema.json").read_text()
    plan = json.loads(installed.run("espalier", "plan", "recipe.yaml", "--json", cwd=tmp_path))
    assert "image_issues_filter" in [stage["stage"] for stage in plan]
