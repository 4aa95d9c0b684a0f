"""The Prefect server of our own: nobody but this user gets an answer, and a dead one is not believed."""

import base64
import http.client
import json
import os
import socket
import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from flows.schedule.prefect_server import _is_held, _running, state_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def status(url: str, method: str = "GET", host: str | None = None, **headers: str) -> int:
    """Ask the server; return the status of its answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port or 0, timeout=60)
    connection.putrequest(method, parts.path, skip_host=True)
    connection.putheader("Host", host or parts.netloc)
    body = b"{}" if method == "POST" else b""
    for name, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def secret() -> str:
    return "Basic " + base64.b64encode(os.environ["PREFECT_API_AUTH_STRING"].encode()).decode()


@pytest.mark.parametrize("path", ["/flow_runs/filter", "/variables/"])
def test_the_secret_is_required(prefect_server: str, path: str) -> None:
    wrong = "Basic " + base64.b64encode(b"espalier:guess").decode()
    assert status(prefect_server + path, "POST") == 401
    assert status(prefect_server + path, "POST", Authorization=wrong) == 401
    assert status(prefect_server + "/flow_runs/filter", "POST", Authorization=secret()) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "127.0.0.1.evil.example:{port}"]
)
def test_a_foreign_host_is_refused_even_with_the_secret(prefect_server: str, host: str) -> None:
    """A name that an attacker's DNS resolves to 127.0.0.1 makes the server part of his origin."""
    named = host.format(port=urlsplit(prefect_server).port)
    assert status(f"{prefect_server}/flow_runs/filter", "POST", named, Authorization=secret()) == 400
    assert status(f"{prefect_server}/health", host=named) == 400


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "null", "http://localhost"])
def test_a_foreign_origin_is_refused_even_with_the_secret(prefect_server: str, origin: str) -> None:
    asked = f"{prefect_server}/flow_runs/filter"
    assert status(asked, "POST", Origin=origin, Authorization=secret()) == 400
    assert status(asked, "OPTIONS", Origin=origin) == 400
    own = f"http://{urlsplit(prefect_server).netloc}"
    assert status(asked, "POST", Origin=own, Authorization=secret()) == 200


@pytest.mark.parametrize(("origin", "expected"), [("https://evil.example", b" 403 "), (None, b" 101 ")])
def test_a_web_socket_of_a_foreign_page_is_refused(prefect_server: str, origin: str | None, expected: bytes) -> None:
    parts = urlsplit(prefect_server)
    lines = [
        "GET /api/events/out HTTP/1.1",
        f"Host: {parts.netloc}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Protocol: prefect",
        *([f"Origin: {origin}"] if origin else []),
    ]
    with socket.create_connection(("127.0.0.1", parts.port or 0), 60) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        assert expected in connection.recv(100)


def test_the_secret_is_in_a_file_that_only_this_user_can_read(prefect_server: str) -> None:
    folder = state_folder()
    assert json.loads((folder / "server.json").read_text())["url"] == prefect_server
    assert stat.S_IMODE((folder / "server.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_it_listens_on_loopback_alone(prefect_server: str) -> None:
    import psutil

    port = urlsplit(prefect_server).port
    listening = {c.laddr.ip for c in psutil.net_connections("inet") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening == {"127.0.0.1"}


def test_a_server_that_died_is_not_believed(tmp_path: Path) -> None:
    """Its port may belong to somebody else by now, who must not be asked, let alone be given the secret."""
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        facts = {"url": f"http://127.0.0.1:{somebody.getsockname()[1]}/api", "pid": 1, "secret": "espalier:old"}
        (tmp_path / "server.json").write_text(json.dumps(facts))
        somebody.settimeout(0.2)
        assert _running(tmp_path) is None
        with pytest.raises(TimeoutError):
            somebody.accept()


def test_a_server_holds_its_lock_for_as_long_as_it_lives(prefect_server: str) -> None:
    assert _is_held(state_folder() / "serving.lock")
