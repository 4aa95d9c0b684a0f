"""`guards:` of a recipe: conditions under which a new version is held until somebody approves it.

    guards:
      no_samples: true         # hold a version without rows
      outage: true             # hold a version if all rows that it tried failed for network reasons
      min_rows: 1_000_000      # hold a version with fewer rows
      max_failed: 0.5          # hold a version if a larger share failed; or by reason: {timeout: 0.1, any: 0.5}
      max_change: 0.3          # hold a version if more rows were added or removed, as a share of the last version's

The first two are on by default and can be turned off (`outage: false`). Guards are checked when a version is published,
over the parts that it would consist of. A version that trips one is published as held (`Version.held`): it can be read
by its number, and it does not become the latest until `espalier approve DATASET@N`. Guards enter no fingerprint, so
changing them makes no part again.
"""

from typing import Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from catalog.errors import nearest
from tasks.reasons import REASONS
from tasks.stage import Config

ANY: Final = "any"
"""The key of `max_failed` for all reasons together."""


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
    """Conditions that a version has to meet to become the latest without approval."""

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
