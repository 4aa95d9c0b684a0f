"""The stage as the engine uses it: batches in, pieces out, every row once."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from catalog.schema import IMAGES, LOCAL, SOURCE, role
from tasks import images
from tasks.download.download import SCHEMA, Download
from tests.hostile_server import HostileServer
from tests.pictures import encoded, jpeg, picture

JPEG = jpeg()
CAPTIONS = [
    "plain",
    "",
    None,
    "NUL \0 inside",
    "\u202eright to left",
    "emoji \U0001f980",
    "combining a\u0301",
    "x" * 20_000,
]


def source(urls: Sequence[str | None], captions: Sequence[str | None] | None = None, first: int = 7 << 24) -> pa.Table:
    ids = pa.array(range(first, first + len(urls)), pa.int64())
    return pa.table(
        {
            "sample_id": ids,
            "url": pa.array(urls, pa.string()),
            "caption": pa.array(captions or ["c"] * len(urls), pa.string()),
        }
    )


def run(stage: Download, table: pa.Table, rows: int = 1024) -> pa.Table:
    batches = (table.slice(i, rows) for i in range(0, table.num_rows, rows))
    return pa.concat_tables(stage.open("cpu", {})(batches))


@pytest.fixture(scope="module")
def stage(server: HostileServer) -> Download:
    return Download(allow_hosts=server.hosts, timeout_s=20, retries=0)


def test_schema_is_the_images_table_with_bytes_and_sidecars() -> None:
    stage = Download()
    assert stage.output({"source": SOURCE}) == SCHEMA
    assert {f.name for f in IMAGES} - set(SCHEMA.names) == {"shard", "byte_offset", "byte_size"}
    assert [(f.name, role(f)) for f in SCHEMA if role(f)] == [
        ("image", "image"),
        ("url", "sidecar"),
        ("caption", "sidecar"),
    ]
    assert (stage.table, stage.alive_only, stage.name) == ("images", False, "download")


def test_every_row_comes_out_once_in_order_for_any_batches(server: HostileServer, stage: Download) -> None:
    urls = [server.body(JPEG) if i % 3 else server.body(b"", status=404) for i in range(40)]
    table = source(urls)
    whole, cut = run(stage, table), run(stage, table, rows=7)
    assert whole.schema.equals(SCHEMA, check_metadata=True)
    assert whole.equals(cut)
    assert whole.column("sample_id").to_pylist() == table.column("sample_id").to_pylist()
    assert whole.column("status").to_pylist() == ["success" if i % 3 else "failed" for i in range(40)]
    assert whole.column("reason").to_pylist() == [None if i % 3 else "not_found" for i in range(40)]
    again = run(stage.model_copy(update={"concurrency": 1, "per_host": 1}), table)
    assert whole.equals(again)


def test_captions_pass_unchanged(server: HostileServer, stage: Download) -> None:
    table = source([server.body(JPEG)] * len(CAPTIONS), CAPTIONS)
    assert run(stage, table).column("caption").to_pylist() == CAPTIONS


def test_text_that_is_not_utf8_passes_unchanged(server: HostileServer, stage: Download) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9 \xff"], pa.binary()).buffers())
    table = source([server.body(JPEG)]).set_column(2, "caption", bad)
    out = run(stage, table)
    assert out.column("caption").cast(pa.binary()).to_pylist() == [b"caf\xe9 \xff"]
    assert run(stage, table.set_column(1, "url", bad)).column("reason").to_pylist() == ["bad_url"]


def test_no_rows(stage: Download) -> None:
    assert list(stage.open("cpu", {})(iter([]))) == []
    assert list(stage.open("cpu", {})(iter([source([])]))) == []


def test_pieces_are_bounded(server: HostileServer, stage: Download) -> None:
    table = source([server.body(JPEG)] * 60)
    pieces = list(stage.open("cpu", {}, piece_bytes=100_000)(iter([table])))
    assert len(pieces) > 2
    assert sum(piece.num_rows for piece in pieces) == 60
    assert max(piece.column("image").nbytes for piece in pieces) < 200_000


def test_local_rows_are_read_from_disk(server: HostileServer, stage: Download, tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"
    tar.write_bytes(b"." * 512 + JPEG)
    table = source([None, server.body(JPEG)])
    place = {"local_path": [str(tar), None], "local_offset": [512, None], "local_size": [len(JPEG), None]}
    for field in LOCAL:
        table = table.append_column(field, pa.array(place[field.name], field.type))
    assert set(place) < set(stage.inputs({"source": table.schema})["source"])
    digests = run(stage, table).column("sha256").to_pylist()
    assert digests == [hashlib.sha256(JPEG).hexdigest()] * 2


def test_statistics_are_exact_on_request_and_without_reduction(server: HostileServer) -> None:
    bodies = [jpeg(1100, 700, 1), jpeg(400, 300, 2), encoded(picture(1100, 700, 3), "PNG")]
    table = source([server.body(body) for body in bodies])
    columns = ["brightness", "brightness_p5", "brightness_p99", "blur", "histogram_std", "entropy"]
    found = {mode: run(Download(allow_hosts=server.hosts, statistics=mode), table) for mode in ("fast", "exact")}
    for row, body in enumerate(bodies):
        truth = images.statistics(images.decode(body))._asdict()
        exact, fast = ({c: found[mode].column(c)[row].as_py() for c in columns} for mode in ("exact", "fast"))
        assert exact == pytest.approx({c: truth[c] for c in columns}, rel=1e-6)
        assert (fast == exact) == (row > 0)
    assert found["fast"].column("pixels_sha256").equals(found["exact"].column("pixels_sha256"))


def test_the_digest_of_pixels_depends_on_no_option_and_no_metadata(server: HostileServer) -> None:
    pixels = picture(500, 300, 4)
    bodies = [encoded(pixels, "PNG"), encoded(pixels, "BMP"), jpeg(900, 700, 5), jpeg(900, 700, 5, comment=b"hello")]
    table = source([server.body(body) for body in bodies])
    one = run(Download(allow_hosts=server.hosts, image_size=64), table).column("pixels_sha256").to_pylist()
    other = run(
        Download(allow_hosts=server.hosts, image_size=700, resize_mode="center_crop", encode_format="webp"), table
    )
    assert one == other.column("pixels_sha256").to_pylist()
    assert one[0] == one[1] != one[2] == one[3]


def test_hashes_of_the_source_are_verified(server: HostileServer) -> None:
    schema = pa.schema([*SOURCE, pa.field("SHA", pa.string())])
    stage = Download(allow_hosts=server.hosts, verify_hash={"column": "SHA"})
    assert stage.inputs({"source": schema}) == {"source": ("url", "caption", "SHA")}
    right = hashlib.sha256(JPEG).hexdigest()
    table = source([server.body(JPEG)] * 3).append_column("SHA", pa.array([right, "00", None]))
    assert run(stage, table).column("reason").to_pylist() == [None, "hash_mismatch", None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize_mode": "bordr"}, "border"),
        ({"reencode": False}, "resize_mode must be no"),
        ({"encode_format": "png", "encode_quality": 95}, "0..9"),
        ({"timeout": 3}, "timeout"),
        ({"engine": "img2dataset", "verify_hash": {"column": "m", "type": "md5"}}, "sha256 only"),
        ({"engine": "img2dataset", "respect_robots": True}, "respect_robots requires engine http"),
        ({"engine": "img2dataset", "respect_tdm": True}, "respect_tdm requires engine http"),
        ({"max_pixels": 10**12}, "max_pixels"),
    ],
)
def test_wrong_recipes_have_clear_errors(options: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Download(**options)


def test_a_missing_hash_column_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no column 'captoin'; did you mean 'caption'\?"):
        Download(verify_hash={"column": "captoin"}).inputs({"source": SOURCE})


def test_fields_that_change_no_result_are_in_no_fingerprint() -> None:
    assert Download().parameters() == Download(concurrency=3, per_host=1, resources={"cpus": 2}).parameters()
    assert Download().parameters() != Download(image_size=224).parameters()
    assert Download().parameters() == Download(respect_robots=True, respect_tdm=True).parameters()
    assert Download().parameters() != Download(respect_robots=False).parameters()
    theirs = Download(engine="img2dataset")
    assert theirs.parameters() == Download(engine="img2dataset", respect_robots=False).parameters()


def test_import_is_cheap() -> None:
    code = "import sys, tasks.download; print(sorted({'aiohttp', 'cv2', 'PIL', 'torch', 'asyncio'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
