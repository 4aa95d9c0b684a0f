"""`guards:` of a recipe: what keeps a version from being the latest before somebody has looked at it.

    guards:
      no_samples: true         # it keeps no row at all
      outage: true             # every row that it tried failed, for reasons of the network
      min_rows: 1_000_000      # it keeps fewer rows than that
      max_failed: 0.5          # a larger share of its rows failed; or by reason: {timeout: 0.1, any: 0.5}
      max_change: 0.3          # more rows came in or were removed, as a share of the rows of the last version

The first two are on unless a recipe turns them off (`outage: false`). Guards are checked when a version is published,
over the parts that it would consist of. A version that trips one is published as held (`Version.held`): readable by
its number, and not the latest until `espalier approve DATASET@N`. Guards are in no fingerprint: they make nothing anew.
"""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from catalog.errors import nearest
from tasks.download.reasons import REASONS
from tasks.stage import Config

ANY: Final = "any"
"""What `max_failed` calls all reasons together."""


def _by_reason(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {ANY: value}
    if value is None or isinstance(value, dict):
        return value
    raise ValueError("expected a share from 0 to 1, or a mapping of reasons to shares")


def _known(reason: str) -> str:
    if reason not in (*REASONS, ANY):
        raise ValueError(f"unknown reason{nearest(reason, (*REASONS, ANY))}")
    return reason


Share = Annotated[float, Field(ge=0, le=1, strict=True)]
_SHARE_SCHEMA: Final = {"type": "number", "minimum": 0, "maximum": 1}
MaxFailed = Annotated[
    dict[Annotated[str, AfterValidator(_known)], Share],
    BeforeValidator(_by_reason),
    WithJsonSchema(
        {"anyOf": [_SHARE_SCHEMA, {"type": "object", "propertyNames": {"enum": [*REASONS, ANY]},
                                   "additionalProperties": _SHARE_SCHEMA}]}
    ),
]  # fmt: skip


class Guards(Config):
    """What a version must be like to become the latest without being approved."""

    no_samples: bool = Field(True, description="hold a version that keeps no row at all")
    outage: bool = Field(
        True,
        description="hold a version if every row that it tried, and that did not fail before, failed for reasons of "
        "the network",
    )
    min_rows: int | None = Field(None, ge=1, strict=True, description="hold a version that keeps fewer rows")
    max_failed: MaxFailed | None = Field(
        None, description="hold a version if a larger share of its rows failed: of all rows, or a share for a reason"
    )
    max_change: float | None = Field(
        None,
        ge=0,
        strict=True,
        allow_inf_nan=False,
        description="hold a version if more rows are kept in it or in the last version but not in both, as a share of "
        "those of the last version",
    )
