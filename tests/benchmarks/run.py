"""Run every benchmark, one after the other, and write tests/benchmarks/results.json.

    python tests/benchmarks/run.py [NAME ...]

Each is a program of its own, which measures ours and its peer on the same work in the same run. On two cores they take
45 minutes without `claims` and `real_data`, which train. What could not run (a peer or data that does not exist) leaves
its earlier result as it is.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results.json"
RUNS: Final[Mapping[str, Sequence[str]]] = {
    "kmeans": ("", "--rows 200000"),
    "scores": ("", "--stage --rows 10000000"),
}
"""What is recorded of those benchmarks that say more than their defaults do: the arguments of each run."""


def main(names: list[str]) -> None:
    """Run the named benchmarks (default: all) and merge what they found into the results."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or known():
        runs = [run(name, arguments) for arguments in RUNS.get(name, ("",))]
        if all(runs):
            today = datetime.now(UTC).date().isoformat()
            results[name] = {"measured": today, "processor": processor(), "cores": os.cpu_count(), "runs": runs}
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        else:
            print(f"== {name}: failed; its earlier result stays", flush=True)


def known() -> list[str]:
    """Return the names of all benchmarks."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def run(name: str, arguments: str) -> dict[str, Any]:
    """Run one benchmark once; return its arguments and what it found, nothing where it failed."""
    print(f"== {name} {arguments}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
        command = [sys.executable, str(HERE / f"bench_{name}.py"), *arguments.split(), "--json", str(out)]
        done = subprocess.run(command, env=environment, check=False)
        if done.returncode or not out.exists():
            return {}
        return {"arguments": arguments, "found": json.loads(out.read_text())}


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    chosen = parser.parse_args().names
    if unknown := set(chosen) - set(known()):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there is: {', '.join(known())}")
    main(chosen)
