"""How a build is shown and recorded, passed as an argument from the command through the flow to every stage."""

import uuid
from dataclasses import dataclass, field

from flows.build.progress import Display


@dataclass(frozen=True)
class BuildContext:
    """What belongs to one run of a build, in addition to its `flows.build.spec.BuildSpec`.

    Capture it in the closure of a Prefect flow or task; it is never a parameter of one: Prefect traverses and records
    parameters.
    """

    display: Display = field(default_factory=Display)
    """Shows progress and messages; by default nothing."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """The name under which the dataset's `runs` record what each stage took."""
