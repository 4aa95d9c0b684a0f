"""Weights from files and from a real web server: fetched once, always verified, and no other content is loaded."""

import hashlib
import io
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from catalog.errors import RecipeError, UserError
from tasks.files.cache import cache_folder
from tasks.files.weights import Weights, parse, read_bytes


class Server:
    """A web server on loopback: `files` by path; `asked` records the requests."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                if self.path == "/moved":
                    self.send_response(302)
                    self.send_header("Location", "/head.npy")
                    self.end_headers()
                    return
                data = server.files.get(self.path.removeprefix("/short").removeprefix("/endless"))
                self.send_response(200 if data is not None else 404)
                if data is not None and not self.path.startswith("/endless"):
                    self.send_header("Content-Length", str(len(data) + (5 if self.path.startswith("/short") else 0)))
                self.end_headers()
                self.wfile.write(data or b"")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}{path}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    running = Server()
    running.files["/head.npy"] = array_file(np.arange(6.0))
    yield running
    running.http.shutdown()
    running.http.server_close()


def array_file(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


def torch_file(content: Any, **options: Any) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(content, out, **options)
    return out.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_url_is_fetched_once_and_cached_by_digest(server: Server) -> None:
    data = server.files["/head.npy"]
    weights = Weights(weights=server.url("/head.npy"), sha256=sha256(data))
    np.testing.assert_array_equal(weights.read()["array"].numpy(), np.arange(6.0))
    server.http.shutdown()
    weights.read()
    assert server.asked == ["/head.npy"]
    assert [path.name for path in cache_folder("weights").iterdir()] == [sha256(data)]


def test_a_redirect_is_followed_and_many_readers_agree(server: Server) -> None:
    data = server.files["/head.npy"]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: read_bytes(server.url("/moved"), sha256(data)), range(8)))
    assert found == [data] * 8
    assert [path.name for path in cache_folder("weights").iterdir()] == [sha256(data)]


def test_a_wrong_digest_is_a_one_line_error_and_caches_nothing(server: Server) -> None:
    weights = Weights(weights=server.url("/head.npy"), sha256="0" * 64)
    with pytest.raises(UserError, match=rf"found sha256 {sha256(server.files['/head.npy'])}, expected 0{{64}}$"):
        weights.read()
    assert list(cache_folder("weights").iterdir()) == []


def test_a_cached_file_that_changed_is_fetched_again(server: Server) -> None:
    data = server.files["/head.npy"]
    weights = Weights(weights=server.url("/head.npy"), sha256=sha256(data))
    weights.read()
    cached = cache_folder("weights") / sha256(data)
    cached.write_bytes(data[:-1] + b"\1")
    np.testing.assert_array_equal(weights.read()["array"].numpy(), np.arange(6.0))
    assert cached.read_bytes() == data
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("path", "limit", "message"),
    [
        ("/head.npy", 100, "more than the 100 bytes that are fetched"),
        ("/endless/head.npy", 100, "more than the 100 bytes that are fetched"),
        ("/short/head.npy", 10_000, "the answer ended after 176 of 181 bytes"),
        ("/nowhere", 10_000, "cannot be fetched: HTTP Error 404"),
    ],
)
def test_responses_that_are_not_weights(server: Server, path: str, limit: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_bytes(server.url(path), sha256(server.files["/head.npy"]), limit)
    assert list(cache_folder("weights").iterdir()) == []


def test_an_unreachable_server(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(UserError, match=r"weights http://127.0.0.1:\d+/head.npy: cannot be fetched: .*refused"):
        Weights(weights=server.url("/head.npy"), sha256="0" * 64).read()


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"head\.npy: cannot write .*/cache/espalier/weights: Not a directory"):
        read_bytes(server.url("/head.npy"), "0" * 64)


def test_every_published_layout_is_supported(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save

    state = {"layers.0.weight": torch.arange(6.0).reshape(2, 3), "layers.0.bias": torch.ones(2)}
    old = {"_use_new_zipfile_serialization": False}
    files = [save(state), torch_file(state), torch_file(state, **old), torch_file({"state_dict": state, "epoch": 3})]
    for data in files:
        found = parse(data, "head")
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    "data",
    [
        torch_file({"weight": Code()}),
        torch_file([1, 2]),
        array_file(np.array([Code()], object)),
        b"",
        b"<html>not found</html>",
        b"\x10\0\0\0\0\0\0\0{" + b" " * 40,
        torch_file({})[:100],
    ],
    ids=["code", "no state dict", "objects", "empty", "html", "broken safetensors", "short zip"],
)
def test_files_with_other_content_are_refused(data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^weights head\.pt: ") as raised:
        parse(data, "head.pt")
    assert "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


def array_header(shape: str) -> bytes:
    said = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(said).to_bytes(2, "little") + said.encode()


@pytest.mark.parametrize("shape", ["(1000000000000000,)", "(9223372036854775808,)", "(", "(-1,)"])
def test_an_invalid_array_is_a_one_line_error(shape: str) -> None:
    with pytest.raises(UserError, match=r"^weights head\.npy: expected safetensors, .*"):
        parse(array_header(shape), "head.npy")


def test_tensors_without_plain_numbers_are_refused() -> None:
    import torch

    for odd in (torch.eye(2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(UserError, match="torch state dict of plain tensors"):
            parse(torch_file({"weight": odd}), "head.pt")
    with pytest.raises(UserError, match=r"found 0, torch\.float32"):
        parse(torch_file({0: torch.ones(2)}), "head.pt")


def test_damaged_files_are_a_one_line_error() -> None:
    """With this seed the readers raise IndexError, TokenError, struct.error and AssertionError, among others."""
    import torch
    from safetensors.torch import save

    state = {"layers.0.weight": torch.ones(3, 4)}
    sound = [torch_file(state), torch_file(state, _use_new_zipfile_serialization=False), save(state)]
    sound.append(array_file(np.ones((2, 3), np.float32)))
    rng = random.Random(1)
    refused = 0
    for number in range(600):
        data = bytearray(sound[number % len(sound)])
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(min(len(data), 900))
            data[at : at + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        try:
            found = parse(bytes(data), "head")
        except UserError as error:
            refused += 1
            message = str(error)
            assert message.startswith("weights head: ")
            assert len(message.splitlines()) == 1
        else:  # damage in a name or a number leaves a state
            assert all(torch.is_tensor(value) for value in found.values())
    assert 300 < refused < 600


def test_local_files_are_verified_and_identified_by_content(tmp_path: Path) -> None:
    data = array_file(np.ones(3))
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    for path in (one, two):
        path.write_bytes(data)
    assert Weights(weights=str(one)).digest() == Weights(weights=str(two)).digest() == f"sha256:{sha256(data)}"
    assert Weights(weights=str(two), sha256=sha256(data)).read().keys() == {"array"}
    two.write_bytes(array_file(np.zeros(3)))
    assert Weights(weights=str(one)).digest() != Weights(weights=str(two)).digest()
    with pytest.raises(UserError, match=f"found sha256 {sha256(two.read_bytes())}, expected {sha256(data)}"):
        Weights(weights=str(two), sha256=sha256(data)).read()
    with pytest.raises(UserError, match=r"152 bytes, more than the 9 that are read"):
        Weights(weights=str(one)).read(max_bytes=9)


def test_mistakes_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "aesthetic.npy").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"no such file; did you mean '.*/aesthetic\.npy'\?"):
        Weights(weights=str(tmp_path / "asthetic.npy")).check_weights()
    with pytest.raises(RecipeError, match=r"expected a local file or an http.* URL, found s3://"):
        Weights(weights="s3://bucket/head.pt").check_weights()
    with pytest.raises(ValidationError, match=r"weights from a URL need `sha256`: https://example\.org/head\.pt"):
        Weights(weights="https://example.org/head.pt")
    with pytest.raises(ValidationError, match="64 lower-case hex digits, not 'abc'"):
        Weights(weights="https://example.org/head.pt", sha256="abc")
