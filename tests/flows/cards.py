"""Builds that make a data card."""

from catalog.version import Version
from flows.build.build import build_here
from flows.build.context import BuildContext
from flows.build.progress import Display
from flows.build.spec import BuildSpec
from tests.flows.conftest import Web

STAGES = """\
  - {use: filter, where: width >= 10}
  - {use: prune, method: random, keep_rows: KEPT}
  - use: report
"""


def build(web: Web, kept: int = 4, display: Display | None = None) -> Version:
    spec = BuildSpec.read(web.recipe(STAGES.replace("KEPT", str(kept))), catalog=web.catalog, executor="inline")
    return build_here(spec, BuildContext(display or Display())).version
