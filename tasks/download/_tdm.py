"""TDM reservation: whether a rightsholder reserves text and data mining, by a response header or a file of the host.

Source: TDM Reservation Protocol (TDMRep), W3C Community Group final report, 2024: in `/.well-known/tdmrep.json` the
first rule whose location matches applies; a header of the response overrides the file; without either nothing is
reserved. The policy (where rights can be obtained) is not read: it is part of the evidence.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from protego import Protego
from yarl import URL

from tasks.download._site_files import SiteFile

PATH: Final = "/.well-known/tdmrep.json"
MOST_RULES: Final = 1000
"""At most this many rules of a file are read."""
_AGENT: Final = "*"
_CHARACTERS: Final = 60


class _Rule(NamedTuple):
    location: str
    matches: Protego
    """Patterns are those of robots.txt, so its parser matches them: it disallows what the location matches."""
    reserved: bool
    policy: str


class Reservations:
    """The rules of one host's file. Anything else is skipped: a malformed file reserves nothing."""

    def __init__(self, file: SiteFile) -> None:
        self._file = file
        self._rules = _rules(file.text)

    def reservation(self, url: URL) -> str | None:
        """Return the rule that reserves a URL, as evidence, or None."""
        text = str(url.with_fragment(None))
        rule = next((r for r in self._rules if not r.matches.can_fetch(text, _AGENT)), None)
        if rule is None or not rule.reserved:
            return None
        host = self._file.origin.partition("://")[2]
        return f"tdmrep.json of {host}: location {rule.location}{_policy(rule.policy)}, fetched {self._file.when}"


def header_says(headers: Mapping[str, str]) -> bool | None:
    """Return whether a response's `tdm-reservation` reserves it; None if it is absent or malformed."""
    return {"1": True, "0": False}.get(headers.get("tdm-reservation", "").strip())


def header_evidence(headers: Mapping[str, str]) -> str:
    """Return the reservation of a response's headers, as evidence."""
    return f"tdm-reservation: 1{_policy(headers.get('tdm-policy', ''))}"


def _policy(policy: str) -> str:
    return f", tdm-policy {policy[:_CHARACTERS]}" if policy else ""


def _rules(text: str) -> list[_Rule]:
    try:
        found: Any = json.loads(text.removeprefix("\ufeff")) if text else []
    except (ValueError, RecursionError):
        return []
    rules = [_rule(item) for item in (found[:MOST_RULES] if isinstance(found, list) else [])]
    return [rule for rule in rules if rule is not None]


def _rule(item: Any) -> _Rule | None:
    location = item.get("location") if isinstance(item, dict) else None
    if not isinstance(location, str) or not location.startswith(("/", "*")) or not location.isprintable():
        return None
    matches = Protego.parse(f"User-agent: {_AGENT}\nDisallow: {location.replace('#', '%23')}")
    value = item.get("tdm-reservation")
    reserved = value == 1 or str(value).strip() == "1"  # the number is the standard's; 1.0, true and "1" occur, too
    return _Rule(location[:_CHARACTERS], matches, reserved, str(item.get("tdm-policy") or ""))
