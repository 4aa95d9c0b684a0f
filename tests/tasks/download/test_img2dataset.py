"""Engine `img2dataset`, in a separate environment (marked slow: the first run installs it)."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import psutil
import pytest

from catalog.errors import BuildError
from tasks import images
from tasks.download import Download
from tasks.download import _img2dataset as engine
from tasks.download._base import LocalFile, Outcome, Request
from tests.helpers import wait_for
from tests.hostile_server import HostileServer
from tests.pictures import encoded, jpeg, picture
from tests.tasks.download import test_wire

JPEG = jpeg(300, 200)


def fetch(
    server: HostileServer,
    requests: Iterable[Request],
    limit_s: float | None = None,
    shard_rows: int = engine.SHARD_ROWS,
    **options: Any,
) -> list[Outcome]:
    settings = Download(allow_hosts=server.hosts, **({"timeout_s": 2, "retries": 0, "concurrency": 8} | options))
    return list(engine.Img2datasetEngine(settings, limit_s=limit_s, shard_rows=shard_rows).outcomes(requests))


@pytest.mark.parametrize(
    ("text", "resizing", "reason"),
    [
        ("HTTP Error 404: Not Found", False, "not_found"),
        ("HTTP Error 503: Service Unavailable", False, "server_error"),
        ("<urlopen error timed out>", False, "timeout"),
        ("<urlopen error [Errno -2] Name or service not known>", False, "dns_failed"),
        ("<urlopen error [Errno 111] Connection refused>", False, "connection_failed"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", False, "tls_failed"),
        ("IncompleteRead(10 bytes read, 90 more expected)", False, "incomplete_body"),
        ("Use of image disallowed by X-Robots-Tag directive", False, "opted_out"),
        ("HTTP Error 302: a redirect error that would lead to an infinite loop.", False, "redirect_limit"),
        ("Image decoding error", True, "undecodable"),
        ("OpenCV(4.11.0) error: (-215:Assertion failed) !buf.empty() in function 'imdecode_'", True, "empty_body"),
        ("image too small", True, "too_small"),
        ("never seen before", False, "unforeseen"),
    ],
)  # fmt: skip
def test_error_texts_map_to_reasons(text: str, resizing: bool, reason: str) -> None:
    assert engine.reason_of(text, resizing) == reason


def test_a_python_that_cannot_run_it_is_one_clear_error(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    (tmp_path / "env" / f"img2dataset-{engine.RELEASE}").touch()
    monkeypatch.setenv("ESPALIER_FETCH_ENV", str(tmp_path / "env"))
    with pytest.raises(BuildError, match="No module named 'img2dataset'"):
        fetch(server, [Request(server.body(JPEG))])


@pytest.mark.slow
def test_an_environment_that_cannot_be_made_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ESPALIER_FETCH_ENV", str(tmp_path / "env"))
    with caplog.at_level(logging.WARNING), pytest.raises(BuildError, match="cannot be installed"):
        engine.fetch_python("0.0.0.nothing")
    assert "creating the environment of img2dataset 0.0.0.nothing" in caplog.text


def test_a_process_that_hangs_is_killed_with_all_its_children(tmp_path: Path) -> None:
    """A substitute for the interpreter that starts a child and then sleeps, both for longer than this test."""
    marker = tmp_path / "child"
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\nsleep 9999 &\necho $! > {marker}\nsleep 9999\n")
    stand_in.chmod(0o755)
    with (tmp_path / "log").open("wb") as log:
        assert engine._run_limited(stand_in, {}, log, 1.0) == "limit"
    child = int(marker.read_text())
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.slow
def test_the_same_table_as_engine_http(server: HostileServer, tmp_path: Path) -> None:
    local = tmp_path / "local.jpg"
    local.write_bytes(JPEG)
    good = server.body(JPEG)
    right, wrong = hashlib.sha256(JPEG).hexdigest(), "0" * 64
    requests, reasons = zip(
        (Request(good, right), None),
        (Request(good, wrong), "hash_mismatch"),
        (Request(None), "bad_url"),
        (Request("file:///etc/passwd"), "bad_scheme"),
        (Request("http://10.0.0.1/x.jpg"), "private_address"),
        (Request(f"http://localhost:{server.port}/x.jpg"), "private_address"),
        (Request("http://no-such-host.invalid/x.jpg"), "dns_failed"),
        (Request(None, file=LocalFile(str(local), 0, None)), None),
        (Request(server.body(b"", status=404)), "not_found"),
        (Request(server.body(b"", status=503)), "server_error"),
        (Request(server.body(JPEG, headers={"X-Robots-Tag": "noai"})), "opted_out"),
        (Request(server.body(JPEG[:2000])), "undecodable"),
        (Request(server.body(b"")), "empty_body"),
        (Request(server.loop()), "redirect_limit"),
        (Request(server.silent()), "timeout"),
        (Request(good), None),
        strict=True,
    )
    outcomes = fetch(server, requests, verify_hash={"column": "sha"})
    assert [outcome.reason for outcome in outcomes] == list(reasons)
    ours = Download(allow_hosts=server.hosts)._engine()
    (same,) = ours.outcomes([Request(good)])
    theirs = outcomes[0]
    for name in ("sha256", "width", "height", "original_width", "original_height", "format", "status"):
        assert getattr(theirs, name) == getattr(same, name), name
    assert theirs.image
    assert same.image
    difference = images.decode(theirs.image).astype(int) - images.decode(same.image)
    assert np.abs(difference).mean() < 1
    assert theirs.brightness is not None
    assert outcomes[8].http_status == 404


@pytest.mark.slow
def test_engine_http_stores_every_picture_that_img2dataset_stores(server: HostileServer) -> None:
    """Every head, body, coding and redirect of the tests of engine http, fetched by both."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n" % len(test_wire.JPEG)
    answers = dict(test_wire.TAKEN) | {name: case[0] for name, case in test_wire.REFUSED.items()}
    for coding in ("utf-8", "aws-chunked", "none", "image/jpeg", "base64", "gzip", "br", "deflate", "\xff"):
        answers[f"coding {coding}"] = head + b"Content-Encoding: %b\r\n\r\n" % coding.encode("latin-1") + test_wire.JPEG
    for name in (b"\xe9", b"\xc3\xa9", b"a b", b'a"b<c>|d', b"%e9%zz", b"x;y=z,w"):
        server.raw_at(b"odd/" + unquote_to_bytes(name), head + b"\r\n" + test_wire.JPEG)
        answers[f"Location {name!r}"] = b"HTTP/1.1 302 Found\r\nLocation: /odd/%b\r\nContent-Length: 0\r\n\r\n" % name
    del answers["a part"]  # it stores the first bytes of a larger file as if they were all
    names = list(answers)
    requests = [Request(server.raw(answers[name])) for name in names]
    theirs = fetch(server, requests, timeout_s=5)
    settings = Download(allow_hosts=server.hosts, retries=0, respect_robots=False, respect_tdm=False)
    ours = list(settings._engine().outcomes(requests))
    right = hashlib.sha256(test_wire.JPEG).hexdigest()
    stored = [name for name, outcome in zip(names, theirs, strict=True) if outcome.image and outcome.sha256 == right]
    assert len(stored) > 40
    lost = [(n, o.reason, o.detail) for n, o in zip(names, ours, strict=True) if n in stored and o.sha256 != right]
    assert lost == []


@pytest.mark.slow
def test_slow_loris_ends_at_the_limit_and_finished_shards_count(server: HostileServer) -> None:
    good = [Request(server.body(JPEG)) for _ in range(20)]
    stuck = [Request(server.drips(JPEG, step=1, pause_s=0.5)) for _ in range(10)]
    outcomes = fetch(server, good + stuck, limit_s=60, shard_rows=10)
    reasons = [outcome.reason for outcome in outcomes]
    assert reasons == [None] * 20 + ["not_attempted"] * 10
    assert "time limit" in (outcomes[-1].detail or "")


@pytest.mark.slow
def test_a_killed_subprocess_does_not_hang_the_build(server: HostileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = subprocess.Popen

    def spy(*args: Any, **options: Any) -> subprocess.Popen[Any]:
        started.append(popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", spy)
    import threading

    threading.Timer(5, lambda: os.kill(started[0].pid, signal.SIGKILL)).start()
    with pytest.raises(BuildError, match="did not run"):
        fetch(server, [Request(server.silent()) for _ in range(5)], timeout_s=60)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["border", "keep_ratio", "keep_ratio_largest", "center_crop", "no"])
def test_resizing_is_identical_to_img2dataset(mode: Any, tmp_path: Path) -> None:
    """Lossless in, lossless out, through img2dataset's Resizer, in its environment."""
    rng = np.random.default_rng(0)
    sizes = [(int(w), int(h)) for w, h in rng.integers(20, 700, (25, 2))] + [
        (256, 100),
        (100, 256),
        (256, 256),
        (900, 20),
    ]
    for i, (width, height) in enumerate(sizes):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture(width, height, i), "PNG"))
    code = (
        "import io, sys, pathlib; from img2dataset.resizer import Resizer\n"
        "folder, mode, bigger = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == '1'\n"
        "resize = Resizer(256, mode, bigger, encode_format='png', encode_quality=1)\n"
        "for path in sorted(folder.glob('*.png')):\n"
        "    data, *_, error = resize(io.BytesIO(path.read_bytes())); assert not error, error\n"
        "    path.with_suffix('.out' + sys.argv[3]).write_bytes(data)\n"
    )
    for bigger in (False, True):
        command = [str(engine.fetch_python()), "-I", "-W", "ignore", "-c", code, str(tmp_path), mode, str(int(bigger))]
        subprocess.run(command, check=True, env=os.environ | engine._QUIET)
        for i in range(len(sizes)):
            theirs = images.decode(Path(tmp_path / f"{i}.out{int(bigger)}").read_bytes())
            pixels = images.decode((tmp_path / f"{i}.png").read_bytes())
            ours = images.resize(pixels, 256, mode, bigger)
            assert ours.shape == theirs.shape, sizes[i]
            assert np.abs(ours.astype(int) - theirs).max() <= 1, sizes[i]
