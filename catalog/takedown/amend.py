"""Correct Delta logs after files were replaced in place.

Only a take-down (`catalog.takedown.erase`) rewrites parts in place, because it has to reach every version. The sizes
and row counts of these files in the log, on which readers rely, are then wrong, also in the commits of old versions.
They are corrected line by line; which file belongs to which commit does not change.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from catalog.delta import statistics_of
from catalog.parts import PartFile, describe_part
from catalog.storage import Storage

_LOG: Final = "_delta_log"


def amend(storage: Storage, table: str, paths: Collection[str]) -> list[str]:
    """Correct the entries of files (paths relative to the dataset) in a table's log; return the changed log files.

    The caller must hold the lease. Each log file is replaced atomically, so repeating it after a kill is safe.
    """
    parts = [describe_part(storage, path) for path in paths if storage.exists(path)]
    facts = {part.path.removeprefix(f"{table}/"): part for part in parts}
    if not facts:
        return []
    changed = []
    for path in storage.list(f"{table}/{_LOG}"):
        if path.endswith(".json"):
            before = storage.read(path)
            after = b"\n".join(_amended(line, facts) for line in before.splitlines())
            if after != before.rstrip(b"\n"):
                storage.put(path, after + b"\n")
                changed.append(path)
    # They repeat the log; readers do not need them, because our logs are never cleaned.
    storage.delete(p for p in storage.list(f"{table}/{_LOG}") if ".checkpoint" in p or p.endswith("_last_checkpoint"))
    return changed


def _amended(line: bytes, facts: Mapping[str, PartFile]) -> bytes:
    if not line.strip():
        return line
    action: dict[str, Any] = json.loads(line)
    for kind in ("add", "remove"):
        entry = action.get(kind)
        fact = facts.get(entry["path"]) if entry else None
        if entry is None or fact is None:
            continue
        stats = statistics_of(fact)  # minimum and maximum values may contain the content of rows
        if entry.get("size") in (None, fact.bytes) and entry.get("stats") in (None, stats):
            continue
        entry["size"] = fact.bytes
        if entry.get("stats") is not None:
            entry["stats"] = stats
        return json.dumps(action, separators=(",", ":")).encode()
    return line
