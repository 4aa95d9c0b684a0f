"""Engine `img2dataset`: img2dataset 1.47.0, run as a subprocess in a separate environment.

The environment is separate because img2dataset installs a top-level module `dataclasses` that breaks other programs.
The table and the reasons are those of engine `http`. Its limitations remain:

- URLs are checked against the address rule before it starts, but it resolves names again and follows redirects
  unchecked: use it only in a network without private services.
- `timeout_s` limits each read and not the request; there is no limit on bytes, and no pause between retries. Rows that
  hang are stopped by `engine_limit_s`, with all others of their shard (reason not_attempted).
- Pictures are not rotated by EXIF, and are measured after resizing, including borders; so `pixels_sha256` is that of
  the stored picture, and depends on how it was resized and encoded.
"""

import fcntl
import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from yarl import URL

from catalog.errors import BuildError
from catalog.schema import SUCCESS
from tasks.download._addresses import AllowedHosts, check_url, is_public
from tasks.download._base import Outcome, Request, Settings
from tasks.download._picture import PictureMaker, read_local
from tasks.download._reasons import FetchError, of_status
from tasks.files.cache import cache_folder

RELEASE: Final = "1.47.0"
SHARD_ROWS: Final = 250
_INSTALL_LIMIT_S: Final = 1800.0
_START_S: Final = 120.0
_RESOLVER_THREADS: Final = 32
_MAIN: Final = "import json, sys; from img2dataset import download; download(**json.load(sys.stdin))"
_QUIET: Final = {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}

_log = logging.getLogger(__name__)


class Img2datasetEngine:
    """Runs img2dataset once for each call, over all its requests. `limit_s` is its time limit.

    Rows of a shard of `shard_rows` that was not finished by then count as not attempted.
    """

    def __init__(
        self, settings: Settings, cpus: int = 1, limit_s: float | None = None, shard_rows: int = SHARD_ROWS
    ) -> None:
        self._settings = settings
        self._cpus = cpus
        self._limit_s = limit_s
        self._shard_rows = shard_rows
        self._pictures = PictureMaker(settings)

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """See `Engine.outcomes`. Raises BuildError if img2dataset cannot be installed or started."""
        wanted = list(requests)
        refused = _refused(wanted, AllowedHosts(self._settings.allow_hosts))
        asked = [i for i, request in enumerate(wanted) if not request.file and i not in refused]
        with tempfile.TemporaryDirectory(prefix="espalier-img2dataset-") as folder:
            why = self._run(Path(folder), wanted, asked) if asked else ""
            fetched = self._fetched(Path(folder) / "out", wanted)
            row, outcome = next(fetched, (len(wanted), Outcome()))
            for i, request in enumerate(wanted):
                if i == row:
                    yield outcome
                    row, outcome = next(fetched, (len(wanted), Outcome()))
                elif request.file:
                    yield self._local(request)
                else:
                    yield refused.get(i) or Outcome().failed("not_attempted", why)

    def _local(self, request: Request) -> Outcome:
        assert request.file is not None
        try:
            body = read_local(request.file, self._settings.max_bytes)
        except FetchError as error:
            return Outcome().failed(error.reason, error.detail)
        return self._pictures.fill(Outcome(), body, request.digest)

    def _run(self, folder: Path, requests: list[Request], asked: list[int]) -> str:
        """Run img2dataset; return why rows may be missing."""
        table = pa.table({"url": [requests[i].url for i in asked], "row": pa.array(asked, pa.int64())})
        pq.write_table(table, folder / "urls.parquet")
        log = folder / "log.txt"
        with log.open("wb") as sink:
            limit_s = self._limit_s or self._patience_s(len(asked))
            ended = _run_limited(fetch_python(), self._arguments(folder), sink, limit_s)
        if ended and not any((folder / "out").glob("*_stats.json")) and ended != "limit":
            lines = log.read_text(errors="replace").strip().splitlines()
            raise BuildError(f"img2dataset {RELEASE} did not run: {lines[-1] if lines else ended}")
        return "img2dataset was stopped at its time limit" if ended == "limit" else f"img2dataset ended early {ended}"

    def _arguments(self, folder: Path) -> dict[str, Any]:
        s = self._settings
        return {
            "url_list": str(folder / "urls.parquet"),
            "input_format": "parquet",
            "output_folder": str(folder / "out"),
            "output_format": "webdataset",
            "save_additional_columns": ["row"],
            "number_sample_per_shard": self._shard_rows,
            "processes_count": self._cpus,
            "thread_count": s.concurrency,
            "image_size": s.image_size,
            "resize_mode": s.resize_mode,
            "resize_only_if_bigger": s.resize_only_if_bigger,
            "skip_reencode": not s.reencode,
            "encode_format": s.encode_format,
            "encode_quality": s.quality,
            "min_image_size": s.min_size_px,
            "max_image_area": s.max_pixels,
            "max_aspect_ratio": s.max_aspect_ratio or math.inf,
            "timeout": math.ceil(s.timeout_s),
            "retries": s.retries,
            "user_agent_token": s.user_agent_token,
            "disallowed_header_directives": list(s.disallowed_header_directives),
            "extract_exif": False,
            "compute_hash": "sha256",
            "enable_wandb": False,
        }

    def _patience_s(self, rows: int) -> float:
        """Return the time limit if every row uses its timeouts, in whole rounds of threads."""
        rounds = math.ceil(rows / (self._settings.concurrency * self._cpus))
        return _START_S + 2 * rounds * self._settings.timeout_s * (self._settings.retries + 1)

    def _fetched(self, folder: Path, requests: list[Request]) -> Iterator[tuple[int, Outcome]]:
        """Yield (row, outcome) from the shards that were finished, in order."""
        for stats in sorted(folder.glob("*_stats.json")):
            stem = folder / stats.name.removesuffix("_stats.json")
            rows = pq.read_table(stem.with_suffix(".parquet")).sort_by("row").to_pylist()
            with tarfile.open(stem.with_suffix(".tar")) as tar:
                members = {member.name: member for member in tar}
                for row in rows:
                    member = members.get(f"{row['key']}.{self._settings.encode_format}")
                    stored = tar.extractfile(member) if member else None
                    image = stored.read() if stored else None
                    yield row["row"], self._outcome(row, image, requests[row["row"]].digest)

    def _outcome(self, row: dict[str, Any], image: bytes | None, digest: str | None) -> Outcome:
        outcome = Outcome(
            sha256=row["sha256"], original_width=row["original_width"], original_height=row["original_height"]
        )
        if row["status"] != SUCCESS or image is None:
            text = row["error_message"] or row["status"] or ""
            status = re.match(r"HTTP Error (\d{3})", text)
            outcome.http_status = int(status.group(1)) if status else None
            return outcome.failed(reason_of(text, row["status"] == "failed_to_resize"), text)
        if self._settings.verify_hash and digest is not None and digest.strip().lower() != row["sha256"]:
            return outcome.failed("hash_mismatch", f"sha256 is {row['sha256']}, expected {digest}")
        return self._pictures.measure(outcome, image)


_REASONS: Final = (
    ("disallowed by X-Robots-Tag", "opted_out"),
    ("redirect error that would lead to an infinite loop", "redirect_limit"),
    ("timed out", "timeout"),
    ("Name or service not known", "dns_failed"),
    ("name resolution", "dns_failed"),
    ("No address associated", "dns_failed"),
    ("unknown url type", "bad_scheme"),
    ("CERTIFICATE_VERIFY_FAILED", "tls_failed"),
    ("SSL", "tls_failed"),
    ("IncompleteRead", "incomplete_body"),
    ("BadStatusLine", "bad_response"),
    ("Remote end closed", "connection_failed"),
    ("Connection re", "connection_failed"),
    ("unreachable", "connection_failed"),
    ("buf.empty()", "empty_body"),
    ("image too small", "too_small"),
    ("image area too large", "too_many_pixels"),
    ("aspect ratio too large", "too_narrow"),
)


def reason_of(text: str, resizing: bool) -> str:
    """Return our reason for img2dataset's error text; `resizing`: the error came after the download."""
    found = next((reason for sign, reason in _REASONS if sign in text), None)
    if found:
        return found
    status = re.match(r"HTTP Error (\d{3})", text)
    if status:
        return of_status(int(status.group(1)))
    return "undecodable" if resizing else "unforeseen"


def _refused(requests: list[Request], allowed: AllowedHosts) -> dict[int, Outcome]:
    """Return the outcomes of rows that `check_url` or the addresses of their host forbid."""
    refused: dict[int, Outcome] = {}
    urls: dict[int, URL] = {}
    for i, request in enumerate(requests):
        if request.file:
            continue
        if request.fault:
            refused[i] = Outcome().failed(*request.fault)
            continue
        try:
            urls[i] = check_url(request.url or "", allowed)
        except FetchError as error:
            refused[i] = Outcome().failed(error.reason, error.detail)
    places = {(url.raw_host or "", url.port or 0) for url in urls.values()}
    names = sorted(place for place in places if not allowed.names(*place))
    with ThreadPoolExecutor(_RESOLVER_THREADS) as pool:
        verdicts = dict(zip(names, pool.map(_verdict, names), strict=True))
    for i, url in urls.items():
        verdict = verdicts.get((url.raw_host or "", url.port or 0))
        if verdict:
            refused[i] = Outcome().failed(*verdict)
    return refused


def _verdict(place: tuple[str, int]) -> tuple[str, str] | None:
    host, port = place
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        return "dns_failed", str(error)
    private = sorted(address for address in addresses if not is_public(address))
    return ("private_address", f"{host} is {private[0]}") if private else None


# ---- the subprocess


def _run_limited(python: Path, arguments: dict[str, Any], sink: Any, limit_s: float) -> str:
    """Run img2dataset; return "" for success, "limit", or its exit status. No child process is left running."""
    process = subprocess.Popen(  # noqa: S603  (our own interpreter, no shell)
        [str(python), "-I", "-W", "ignore", "-c", _MAIN],
        stdin=subprocess.PIPE,
        stdout=sink,
        stderr=subprocess.STDOUT,
        env=os.environ | _QUIET,
        start_new_session=True,
    )
    try:
        process.communicate(json.dumps(arguments).encode(), timeout=limit_s)
        return "" if process.returncode == 0 else f"with status {process.returncode}"
    except subprocess.TimeoutExpired:
        return "limit"
    finally:
        # its workers and its logger are in its session, and may outlive it
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fetch_python(release: str = RELEASE) -> Path:
    """Return the Python of the environment of a release of img2dataset, which is created if it is missing.

    It is `.venv-fetch` next to the current environment, or in the user's cache folder if that is read-only;
    `ESPALIER_FETCH_ENV` overrides it. Raises BuildError.
    """
    folder = _environment_folder()
    ready = folder / f"img2dataset-{release}"
    if not ready.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(folder.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several actors may be here at once
            if not ready.exists():
                _make_environment(folder, release)
                ready.touch()
    return folder / "bin" / "python"


def _environment_folder() -> Path:
    named = os.environ.get("ESPALIER_FETCH_ENV")
    if named:
        return Path(named)
    prefix = Path(sys.prefix)
    if sys.prefix != sys.base_prefix and os.access(prefix.parent, os.W_OK):
        return prefix.parent / ".venv-fetch"
    return cache_folder("venv-fetch")


def _make_environment(folder: Path, release: str) -> None:
    _log.warning("creating the environment of img2dataset %s in %s: once, a few minutes", release, folder)
    python = folder / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", f"img2dataset=={release}"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S, check=False)  # noqa: S603
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"img2dataset {release} was not installed within {_INSTALL_LIMIT_S:.0f} s") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BuildError(f"img2dataset {release} cannot be installed: {last}")
