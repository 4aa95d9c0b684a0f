"""A build on a cluster of two nodes that ask for a token, set up as `docs/operations.md` describes."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from catalog.dataset import Catalog
from tests.flows.conftest import Web
from tests.flows.conftest import web as web  # the fixture

pytestmark = pytest.mark.slow
RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = "0123456789abcdef" * 4


class Cluster:
    """Two nodes on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        (folder / "token").write_text(TOKEN)
        self.environment = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")}
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
        self.environment |= {"RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0"}

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        self._node("--head", f"--port={port}", "--include-dashboard=false")
        self._node(f"--address={self.address}")

    def _node(self, *words: str) -> None:
        more = ["--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={self.folder}"]
        env = {n: v for n, v in self.environment.items() if n != "RAY_ADDRESS"}
        started = subprocess.run([RAY, "start", *words, *more], env=env, capture_output=True, text=True, check=False)
        assert started.returncode == 0, started.stdout + started.stderr

    def stop(self) -> None:
        """End the processes of this cluster, which name its folder, and no others of the machine."""
        mine = [p for p in psutil.process_iter(["cmdline"]) if str(self.folder) in " ".join(p.info["cmdline"] or [])]
        for process in mine:
            process.kill()
        psutil.wait_procs(mine, 30)

    def build(self, web: Web, **environment: str) -> "subprocess.CompletedProcess[str]":
        recipe = web.recipe("  - {use: prune, method: random, keep_rows: 3}\n")
        command = [sys.executable, "-m", "flows.cli", "build", str(recipe), "--catalog", web.catalog]
        env = self.environment | environment
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: it holds sockets
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_build_joins_a_cluster_with_its_token_only(cluster: Cluster, web: Web, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("f" * 64)
    refused = cluster.build(web, RAY_AUTH_TOKEN_PATH=str(tmp_path / "wrong"))
    assert refused.returncode == 2, refused.stderr
    assert f"cannot join the Ray cluster RAY_ADDRESS={cluster.address!r}" in refused.stderr
    assert "the cluster's token?" in refused.stderr.splitlines()[-1]
    built = cluster.build(web)
    assert built.returncode == 0, built.stderr
    version = Catalog(web.catalog).dataset("web").version()
    assert version.tables["samples"].rows == 3
    assert version.tables["source"].rows == 8
