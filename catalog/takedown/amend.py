"""Delta logs that say again what their files hold, after files were replaced in place.

Parts are never written in place, but for one thing: a takedown (`catalog.takedown.erase`) must reach every version. The
log then
says wrong sizes and row counts of these files, which readers rely on, in the commits of old versions too. So the sizes
and counts in the log are corrected, line by line; which file belongs to which commit stays as it was.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from catalog.delta import statistics_of
from catalog.parts import PartFile, describe_part
from catalog.storage import Storage

_LOG: Final = "_delta_log"


def amend(storage: Storage, table: str, paths: Collection[str]) -> list[str]:
    """Correct what a table's log says of files (paths relative to the dataset); return the logs that were changed.

    Only for whoever holds the dataset. Each log file is replaced whole, so it is safe to repeat after a kill.
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
    # They repeat what the log says; readers do without, as no log of ours is ever cleaned.
    storage.delete(p for p in storage.list(f"{table}/{_LOG}") if ".checkpoint" in p or p.endswith("_last_checkpoint"))
    return changed


def _amended(line: bytes, facts: Mapping[str, PartFile]) -> bytes:
    if not line.strip():
        return line
    action: dict[str, Any] = json.loads(line)
    for kind in ("add", "remove"):
        said = action.get(kind)
        fact = facts.get(said["path"]) if said else None
        if said is None or fact is None:
            continue
        stats = statistics_of(fact)  # smallest and largest values may repeat what was in the rows
        if said.get("size") in (None, fact.bytes) and said.get("stats") in (None, stats):
            continue
        said["size"] = fact.bytes
        if said.get("stats") is not None:
            said["stats"] = stats
        return json.dumps(action, separators=(",", ":")).encode()
    return line
