"""Run a build of a local command as a run of a Prefect flow."""

from flows.build.build import Outcome
from flows.build.context import BuildContext
from flows.build.spec import BuildSpec
from flows.schedule.prefect_server import prefect_api


def build_under_prefect(spec: BuildSpec, context: BuildContext) -> Outcome:
    """Build as a flow at the configured Prefect API, or, if none is configured, at a quiet server that is started."""
    with prefect_api(context.display.message):
        from flows.schedule.prefect_flow import build_flow  # Prefect reads its settings when it is imported

        return build_flow(spec, context)
