"""The commits of a Delta log as `verify` reads them: sound, restored from a copy, or lost."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Log:
    """The commits of one table that are sound or can be restored."""

    table: str
    entries: Mapping[int, bytes]
    restored: frozenset[int]
    """Commits that are damaged and of which there is a copy."""
    lost: frozenset[int]
    """Commits that are damaged and of which there is none."""

    def adds(self, number: int) -> dict[str, dict[str, Any]]:
        """Return path (relative to the dataset) -> Delta's `add`, of the parts at a commit, as far as can be read."""
        found: dict[str, dict[str, Any]] = {}
        for at in range(number + 1):
            for action in actions_of(self.entries.get(at, b"")):
                if "add" in action:
                    found[f"{self.table}/{action['add']['path']}"] = action["add"]
                elif "remove" in action:
                    found.pop(f"{self.table}/{action['remove']['path']}", None)
        return found

    @property
    def last(self) -> int:
        """The number of the last commit; -1 where there is none."""
        return max((*self.entries, *self.lost), default=-1)


def actions_of(entry: bytes, strict: bool = False) -> list[dict[str, Any]]:
    """Return the actions of a commit; lines that cannot be read are skipped, or with `strict` raise ValueError."""
    found = []
    for line in entry.splitlines():
        try:
            action = json.loads(line) if line.strip() else {}
            if not isinstance(action, dict):
                raise ValueError("a line is not an object")
            found.append(action)
        except ValueError:
            if strict:
                raise
    if strict and not found:
        raise ValueError("it is empty")
    return found
