"""Downloading: ours against the real img2dataset 1.47.0, from the same loopback server, alternated.

    python tests/benchmarks/bench_download.py --json out.json

JPEGs of about 70 kB and 300 to 900 px, resized to 256 with a white border, written as tar shards with their sidecars.
Over http, and over https with the system's certificates and one more (most of the web is https, where img2dataset loads
all certificates again for each image on Python 3.11).
CPU is that of the process and all its children, net of start-up: the difference between a long and a short run, per
image. The limit is a bare loop of decode, resize, encode on bytes in memory. Peak memory is summed over the processes.
"""

import argparse
import asyncio
import io
import json
import os
import platform
import resource
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import web
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
PICTURES = 60
CPUS = 2
ENVIRONMENT = {"NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def jpegs() -> list[bytes]:
    """Return the images that the server serves."""
    rng, out = np.random.default_rng(0), []
    for _ in range(PICTURES):
        width, height = (int(x) for x in rng.integers(300, 900, 2))
        cells = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=88)
        out.append(file.getvalue())
    return out


def make_certificate(folder: Path) -> Path:
    """Write key.pem and cert.pem for 127.0.0.1; return the system's certificates with this one added."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    paths = ssl.get_default_verify_paths()
    system = Path(paths.cafile or paths.openssl_cafile)
    bundle = folder / "bundle.pem"
    bundle.write_text(system.read_text() + (folder / "cert.pem").read_text())
    return bundle


def serve(folder: Path) -> None:
    """Serve /<i>.jpg over http and https on free ports, printed first."""
    bodies = jpegs()

    async def image(request: web.Request) -> web.Response:
        return web.Response(body=bodies[int(request.match_info["i"]) % PICTURES], content_type="image/jpeg")

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{i}.jpg", image)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        for context in (None, tls):
            await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024, ssl_context=context).start()
        print(*(address[1] for address in runner.addresses), flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


def run_ours(urls: Path, out: Path) -> None:
    """Run the stage and the part writer over the URLs of a Parquet file."""
    from catalog.parts import PartWriter
    from catalog.storage import Storage
    from tasks.download.download import SCHEMA, Download

    table = pq.read_table(urls)
    host = table.column("url")[0].as_py().split("/")[2]
    stage = Download(allow_hosts=(host,), resources={"cpus": CPUS})
    source = table.add_column(0, "sample_id", pa.array(range(table.num_rows), pa.int64()))
    batches = (source.slice(i, 1024) for i in range(0, source.num_rows, 1024))
    with PartWriter(Storage.open(out, create=True), "images", "0" * 32, SCHEMA) as writer:
        for piece in stage.open("cpu", {})(batches):
            assert piece.column("reason").null_count == piece.num_rows, piece.column("reason").unique()
            writer.write(piece)


def their_command(urls: Path, out: Path) -> tuple[list[str], bytes]:
    """Return img2dataset's command line and what it reads: two processes of 16 threads, its fastest here."""
    from tasks.download._img2dataset import _MAIN, fetch_python

    arguments = {
        "url_list": str(urls),
        "input_format": "parquet",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": str(out),
        "output_format": "webdataset",
        "number_sample_per_shard": 500,
        "processes_count": CPUS,
        "thread_count": 16,
        "extract_exif": False,
        "enable_wandb": False,
    }
    return [str(fetch_python()), "-I", "-W", "ignore", "-c", _MAIN], json.dumps(arguments).encode()


def measure(who: str, base: str, count: int, bundle: Path) -> dict[str, float]:
    """Run one downloader on `count` URLs; return its CPU seconds, wall seconds and peak memory (MB)."""
    with tempfile.TemporaryDirectory() as folder:
        urls, out = Path(folder) / "urls.parquet", Path(folder) / "out"
        names = [f"{base}/{i}.jpg" for i in range(count)]
        pq.write_table(pa.table({"url": names, "caption": [f"caption {i}" for i in range(count)]}), urls)
        if who == "ours":
            command, facts = [sys.executable, __file__, "--run-ours", str(urls), str(out)], b""
        else:
            command, facts = their_command(urls, out)
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | ENVIRONMENT | {"SSL_CERT_FILE": str(bundle)},
            )
            peak = watch(process.pid)
            process.communicate(facts)
        wall_s = time.perf_counter() - began
        assert process.returncode == 0, (Path(folder) / "log").read_text()[-2000:]
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        stored = sum(pq.read_table(p).column("status").to_pylist().count("success") for p in out.rglob("0*.parquet")
                     if "images" not in p.parts)  # fmt: skip
        assert stored == count, f"{who} stored {stored} of {count}"
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu_s, "wall_s": wall_s, "peak_mb": peak[0] / 2**20}


def watch(pid: int) -> list[float]:
    """Keep the largest sum of resident memory over a process and its children in the returned list."""
    peak = [0.0]

    def look() -> None:
        try:
            root = psutil.Process(pid)
            while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
                total = 0
                for process in [root, *root.children(recursive=True)]:
                    try:
                        total += process.memory_info().rss
                    except psutil.Error:
                        continue
                peak[0] = max(peak[0], total)
                time.sleep(0.2)
        except psutil.Error:
            return

    threading.Thread(target=look, daemon=True).start()
    return peak


def bare_loop_ms() -> float:
    """Return the CPU of decode, resize and encode alone, ms an image: what no downloader can do without."""
    from tasks import images

    bodies, times = jpegs(), []
    for _ in range(3):
        began = time.process_time()
        for body in bodies:
            images.encode(images.resize(images.decode(body), 256, "border"), "jpg", 95)
        times.append(1000 * (time.process_time() - began) / len(bodies))
    return statistics.median(times)


def benchmark(count: int, short: int, rounds: int) -> list[dict[str, Any]]:
    """Return the figures: CPU and rate, net of start-up, and peak memory, over http and https."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_certificate(Path(folder))
        server = subprocess.Popen([sys.executable, __file__, "--serve", folder], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            plain, secure = server.stdout.readline().split()
            figures = compare("http", f"http://127.0.0.1:{plain}", bundle, count, short, rounds)
            return figures + compare("https", f"https://127.0.0.1:{secure}", bundle, count, short, rounds)
        finally:
            server.kill()
            server.wait()


def compare(scheme: str, base: str, bundle: Path, count: int, short: int, rounds: int) -> list[dict[str, Any]]:
    """Run both downloaders, alternated; return the medians and their ratios (above 1: ours is better)."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for who, rows in found.items():
            start, whole = measure(who, base, short, bundle), measure(who, base, count, bundle)
            rows.append(
                {
                    "cpu_ms": 1000 * (whole["cpu_s"] - start["cpu_s"]) / (count - short),
                    "rate": (count - short) / max(1e-9, whole["wall_s"] - start["wall_s"]),
                    "peak_mb": whole["peak_mb"],
                    "start_cpu_s": start["cpu_s"],
                }
            )
    ours, peer = ({name: statistics.median(row[name] for row in rows) for name in rows[0]} for rows in found.values())

    def entry(name: str, key: str, ratio: float, limit: float | None = None) -> dict[str, Any]:
        return {
            "name": f"download {scheme}: {name}",
            "ours": ours[key],
            "peer": peer[key],
            "ratio": ratio,
            "limit": limit,
        }

    return [
        entry("CPU ms an image, net of start-up", "cpu_ms", peer["cpu_ms"] / ours["cpu_ms"], bare_loop_ms()),
        entry("images/s, net of start-up", "rate", ours["rate"] / peer["rate"]),
        entry("peak memory, MB", "peak_mb", peer["peak_mb"] / ours["peak_mb"]),
        entry("start-up, CPU s", "start_cpu_s", peer["start_cpu_s"] / ours["start_cpu_s"]),
    ]


def main() -> None:
    """Run the benchmark, or one of the processes that it starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--run-ours", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.run_ours:
        run_ours(*arguments.run_ours)
    else:
        figures = benchmark(arguments.images, 60, arguments.rounds)
        text = json.dumps({"machine": platform.processor() or platform.machine(), "figures": figures}, indent=1)
        print(text)
        if arguments.json:
            arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
