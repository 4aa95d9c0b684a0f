"""500 generated hostile URLs, responses, images and captions: all end as rows with reasons, in bounded memory."""

import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from PIL import Image

from tasks import images
from tasks.reasons import REASONS
from tests.hostile_server import HostileServer
from tests.pictures import encoded, jpeg, picture, png_bomb

CASES = 500
CHILD = """
import sys
import pyarrow as pa, pyarrow.feather as feather
from tasks.download import Download
source, result, *hosts = sys.argv[1:]
stage = Download(allow_hosts=hosts, timeout_s=5, retries=1, backoff_s=0.05, per_host=64)
table = feather.read_table(source)
step = stage.open("cpu", {})
feather.write_feather(pa.concat_tables(step(table.slice(i, 250) for i in range(0, table.num_rows, 250))), result)
# Not ru_maxrss: across exec it keeps the peak of the process that started this one.
print(next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
WORDS = [
    *(
        "http://",
        "https://",
        "ftp://",
        "//",
        "\\\\",
        "127.0.0.1",
        "[::1]",
        "0x7f000001",
        "@",
        ":",
        "99999",
        "%00",
        "%zz",
    ),
    *("\0", "\n", " ", "..", "/", "?", "#", "é", "\u202e", "xn--", "a" * 300, "localhost", ".invalid", "\ufeff"),
]


@pytest.fixture(scope="module")
def huge() -> list[bytes]:
    """The most expensive pictures within the limits, 49 million pixels each."""
    flat = Image.new("RGBA", (7000, 7000), (200, 10, 10, 128))
    return [encoded(flat, "PNG", compress_level=1), encoded(flat.convert("RGB"), progressive=True, quality=30)]


def hostile_url(server: HostileServer, rng: random.Random, wholes: list[bytes]) -> str:
    """Return the URL of one behaviour, drawn at random."""
    kind = rng.randrange(14)
    whole = rng.choice(wholes)
    if kind <= 3:  # a broken image
        data = np.frombuffer(whole, np.uint8).copy()
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return server.body(data[: rng.randrange(len(data) + 1)].tobytes())
    if kind == 4:  # an image of one kind that begins like another
        return server.body(rng.choice([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0"]) + whole)
    if kind == 5:  # a header that lies
        most = rng.choice([60_000, 1 << 31])
        return server.body(png_bomb(rng.randrange(1, most), rng.randrange(1, most), rows=0))
    if kind == 6:  # raw noise for a response
        head = rng.choice([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
                           b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n"])  # fmt: skip
        return server.raw(head + rng.randbytes(rng.randrange(3000)))
    if kind == 7:  # headers that cannot be
        name = rng.choice(["Content-Encoding", "X-Robots-Tag", "Content-Type", "Set-Cookie", "Content-Range"])
        return server.body(whole, headers={name: "".join(chr(rng.randrange(33, 255)) for _ in range(200))})
    if kind == 8:
        return server.redirect("".join(rng.choices(WORDS, k=4)).replace("\n", "").replace("\0", ""))
    if kind == 9:
        return "".join(rng.choices(WORDS, k=rng.randrange(1, 6)))
    if kind == 10:
        return server.body(b"", status=rng.choice([204, 301, 304, 400, 404, 416, 429, 500, 503, 599]))
    if kind == 11:
        return server.body(rng.randbytes(rng.randrange(2000)))
    if kind == 12:
        return server.body(whole + rng.randbytes(5000), content_type="text/html")
    behaviours: list[Callable[[], str]] = [server.loop, server.silent, server.endless, partial(server.drips, whole)]
    return rng.choice(behaviours)()


def hostile_caption(rng: random.Random) -> str | None:
    points = [*range(0x20), *range(0x7F, 0xA1), 0x202E, 0x200D, 0xFEFF, 0xFFFF, 0x1F980, 0x10FFFF, 0x41, 0x3C, 0x22]
    return None if rng.random() < 0.1 else "".join(chr(rng.choice(points)) for _ in range(rng.randrange(60)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_500_hostile_cases_end_as_rows_with_reasons_under_1_gb(
    server: HostileServer, tmp_path: Path, huge: list[bytes]
) -> None:
    rng = random.Random(0)
    wholes = [jpeg(200, 100), *(encoded(picture(200, 100), f) for f in ("PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"))]
    worst = [server.gzip_bomb(), server.endless(), server.endless(), *(server.body(data) for data in huge)]
    urls = worst + [hostile_url(server, rng, wholes) for _ in range(CASES - len(worst))]
    rng.shuffle(urls)
    captions = [hostile_caption(rng) for _ in urls]
    source = pa.table({"sample_id": pa.array(range(CASES), pa.int64()), "url": urls, "caption": captions})
    feather.write_feather(source, tmp_path / "source")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, tmp_path / "source", tmp_path / "result", *server.hosts],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-2000:]
    result = feather.read_table(tmp_path / "result")
    assert result.column("sample_id").to_pylist() == list(range(CASES))
    assert result.column("caption").to_pylist() == captions
    assert result.column("url").to_pylist() == urls
    rows = result.select(["status", "reason", "detail", "image", "url"]).to_pylist()
    for row in rows:
        if row["status"] == "success":
            assert row["reason"] is None
            assert images.decode(row["image"]).shape == (256, 256, 3)
        else:
            assert row["image"] is None
            assert row["reason"] in REASONS
            assert row["reason"] != "unforeseen", row
    assert len({row["reason"] for row in rows}) >= 18
    peak_mb = int(child.stdout)
    assert peak_mb < 1024
