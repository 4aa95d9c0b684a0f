"""Run every benchmark, one after the other, and write tests/benchmarks/results.json.

    python tests/benchmarks/run.py [NAME ...]

Each is a program of its own, which measures ours and its peer on the same work in the same run.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"


def main(names: list[str]) -> None:
    """Run the named benchmarks (default: all) and merge what they found into the results."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for path in sorted(HERE.glob("bench_*.py")):
        name = path.stem.removeprefix("bench_")
        if names and name not in names:
            continue
        print(f"== {name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out.json")
            environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
            done = subprocess.run([sys.executable, str(path), "--json", str(out)], env=environment, check=False)
            if done.returncode == 0 and out.exists():
                results[name] = {"measured": datetime.now(UTC).date().isoformat(), "found": json.loads(out.read_text())}
    results["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
