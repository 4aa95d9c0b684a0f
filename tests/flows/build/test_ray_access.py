"""Who can reach Ray: loopback and a token for a local one, a clear and quick refusal for a cluster."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from catalog.errors import UserError
from flows.build.ray_access import REACH_S, check_reachable, private_folder, require_token


def test_a_local_ray_listens_on_loopback_alone(ray_started: None) -> None:
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    assert any("raylet" in p.name() for p in processes)
    of_ray = [p for p in processes if p.pid == me.pid or "ray" in " ".join(p.cmdline())]
    listening = {c.laddr.ip for p in of_ray for c in p.net_connections("inet") if c.status == "LISTEN"}
    assert listening
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_its_sockets_are_in_a_folder_that_only_this_user_can_enter(ray_started: None) -> None:
    folder = private_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert any(folder.glob("session_*/sockets"))


_JOIN = """
import sys, ray
try:
    ray.init(sys.argv[1], log_to_driver=False)
except BaseException as error:
    print("refused", type(error).__name__, error)
else:
    print("joined", ray.cluster_resources().get("CPU"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("token", ["0" * 64, None])
def test_a_local_ray_refuses_a_client_without_its_token(ray_started: None, tmp_path: Path, token: str | None) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # as in `on_loopback`: else Ray asks the machine's address
    env = {n: v for n, v in os.environ.items() if not n.startswith("RAY_")} | {"HOME": str(tmp_path)}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    env |= loopback
    asked = subprocess.run(
        [sys.executable, "-c", _JOIN, address], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert asked.stdout.startswith("refused"), asked.stdout + asked.stderr
    assert "InvalidAuthToken" in asked.stderr
    mine = os.environ | {"RAY_AUTH_MODE": "token"} | loopback
    asked = subprocess.run(
        [sys.executable, "-c", _JOIN, address], env=mine, capture_output=True, text=True, timeout=300, check=False
    )
    assert asked.stdout.startswith("joined"), asked.stdout + asked.stderr


def test_a_ray_without_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match="RAY_AUTH_MODE=disabled: without a token"):
        require_token()


def test_a_token_is_made_unless_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    require_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    require_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_folder_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    folder = tmp_path / f"espalier-ray-{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    assert stat.S_IMODE(private_folder().stat().st_mode) == 0o700
    if os.getuid() == 0:
        os.chown(folder, 1234, 1234)
        with pytest.raises(UserError, match="belongs to another user"):
            private_folder()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match="belongs to another user"):
        private_folder()


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on: it is bound, but accepts nothing."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_refused_connection_is_named_at_once(closed_port: int, scheme: str) -> None:
    with pytest.raises(UserError, match=rf"RAY_ADDRESS='{scheme}127.0.0.1:{closed_port}': connection refused"):
        check_reachable(f"{scheme}127.0.0.1:{closed_port}")


@pytest.mark.parametrize(("address", "words"), [("no-such-host.invalid:6379", "RAY_ADDRESS"), ("[::1:99", "HOST:PORT")])
def test_an_address_that_is_none(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_reachable(address)


@pytest.mark.parametrize("address", ["auto", "local"])
def test_names_without_a_port_are_left_to_ray(address: str) -> None:
    check_reachable(address)


_BUILD = """
import sys, ray
from flows.build.build import build_here
from flows.build.spec import BuildSpec
ray.init = lambda *_, **__: print("Ray, which alone would try for minutes, was asked")
build_here(BuildSpec.read(sys.argv[1], catalog=sys.argv[2]))
"""


def test_the_command_names_a_refused_connection(closed_port: int, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://h.example/a.jpg,a cat\n")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"dataset: d\nsource: {{use: csv, path: {tmp_path}/a.csv}}\n")
    env = os.environ | {"RAY_ADDRESS": f"127.0.0.1:{closed_port}"}
    failed = subprocess.run(
        [sys.executable, "-c", _BUILD, recipe, tmp_path / "c"], env=env, capture_output=True, text=True, check=False
    )
    assert "cannot reach the Ray cluster" in failed.stderr.splitlines()[-1]
    assert failed.stdout == ""
    assert REACH_S < 10
