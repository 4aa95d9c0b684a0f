"""PNG: other data cannot make a picture fail, and every depth and kind of transparency is decoded correctly."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from tasks import images
from tasks.images._base import orientation_of
from tests.pictures import encoded, orientation_exif, picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PLAIN = encoded(picture(60, 40), "PNG")
SHOWN = np.asarray(Image.open(io.BytesIO(PLAIN)))
ANCILLARY = [
    *("cHRM", "gAMA", "iCCP", "sBIT", "sRGB", "bKGD", "hIST", "tRNS", "pHYs", "sPLT", "tIME", "iTXt", "tEXt", "zTXt"),
    *("eXIf", "acTL", "fcTL", "fdAT", "cICP", "mDCV", "cLLI", "oFFs", "pCAL", "sCAL", "gIFg", "sTER", "dSIG", "vpAg"),
]


def chunk(kind: bytes, body: bytes = b"", wrong: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)


def with_chunks(*chunks: bytes, at: int = 33, png: bytes = PLAIN) -> bytes:
    return png[:at] + b"".join(chunks) + png[at:]


def reason(data: bytes) -> str:
    with pytest.raises(images.ImageError) as caught:
        images.decode(data)
    return caught.value.reason


@pytest.mark.parametrize("kind", ANCILLARY)
@pytest.mark.parametrize("body", [b"", b"\0", b"hi", b"Comment\0\0" + b"\xff" * 30, bytes(64), b"\xff" * 70_000])
def test_ancillary_chunks_never_make_a_picture_fail(kind: str, body: bytes) -> None:
    before_end = len(PLAIN) - 12
    for wrong in (0, 1):
        if kind == "tRNS" and not wrong and len(body) >= 6:
            continue  # that is a transparent colour
        bad = chunk(kind.encode(), body, wrong)
        assert np.array_equal(images.decode(with_chunks(bad)), SHOWN)
        assert np.array_equal(images.decode(with_chunks(bad, bad)), SHOWN)
        assert np.array_equal(images.decode(with_chunks(bad, at=before_end)), SHOWN)


def test_opencv_accepts_chunks_with_wrong_checksums() -> None:
    for kind in (b"tEXt", b"pHYs", b"gAMA"):
        data = with_chunks(chunk(kind, b"Comment\0hi"[:9], wrong=1))
        peer = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))
        assert np.array_equal(images.decode(data), peer)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_text_and_profiles_of_any_size_are_skipped(decoder_bytes: list[Any], kind: bytes) -> None:
    bomb = zlib.compress(bytes(100 << 20))
    head = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0en\0\0", b"iCCP": b"profile\0\0"}[kind]
    data = with_chunks(*[chunk(kind, head + bomb)] * 3)
    assert np.array_equal(images.decode(data), SHOWN)
    assert decoder_bytes == [len(PLAIN)]


def test_megabytes_of_text_are_skipped() -> None:
    text = chunk(b"tEXt", b"Comment\0" + b"x" * (2 << 20))
    assert np.array_equal(images.decode(with_chunks(*[text] * 8)), SHOWN)


class CountedBytes(bytes):
    """Bytes that count how many of them slices copy."""

    copied = 0

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        self.copied += len(part) if isinstance(key, slice) else 1
        return part


def test_values_of_huge_exif_blocks_are_not_read(no_exif_reader: Callable[..., Any]) -> None:
    """65,535 entries that each refer to the whole block: reading all values would copy 300 GB."""
    entry = struct.pack("<HHII", 0x9286, 7, 5 << 20, 8)
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + entry * 65_535 + bytes(5 << 20)
    no_exif_reader()
    assert images.inspect(with_chunks(chunk(b"eXIf", block))).orientation == 1
    counted = CountedBytes(block)
    assert orientation_of(counted) == 1
    assert counted.copied < 65_535 * len(entry) + 100


def test_the_orientation_requires_a_correct_checksum() -> None:
    block = orientation_exif(6).removeprefix(b"Exif\0\0")
    assert images.inspect(with_chunks(chunk(b"eXIf", block))).orientation == 6
    assert images.inspect(with_chunks(chunk(b"eXIf", block, wrong=1))).orientation == 1


def test_too_many_chunks_are_too_complex() -> None:
    assert reason(with_chunks(*[chunk(b"tEXt")] * (images.MAX_PIECES + 1))) == "too_complex"


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_critical_chunk_with_a_wrong_checksum_is_an_error(kind: bytes) -> None:
    data = encoded(Image.fromarray(picture(60, 40)).quantize(16), "PNG")
    at = data.index(kind) + 4 + struct.unpack(">I", data[data.index(kind) - 4 :][:4])[0]
    assert reason(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) == "undecodable"


def test_pixels_are_valid_by_either_of_their_checksums() -> None:
    start, end = PLAIN.index(b"IDAT") + 4, len(PLAIN) - 16
    assert PLAIN[end + 4 : end + 12] == b"\0\0\0\0IEND"
    wrong_crc = PLAIN[:end] + b"1234" + PLAIN[end + 4 :]
    assert np.array_equal(images.decode(wrong_crc), SHOWN)
    raw = bytearray(zlib.decompress(PLAIN[start:end]))
    raw[700] ^= 8
    stored = zlib.compress(bytes(raw))[:-4] + PLAIN[end - 4 : end]  # other pixels, the checksum of the right ones
    assert reason(PLAIN[: start - 8] + chunk(b"IDAT", stored, wrong=1) + chunk(b"IEND")) == "undecodable"
    assert reason(PLAIN[: start - 8] + chunk(b"IDAT", stored[:-40], wrong=1) + chunk(b"IEND")) in (
        "undecodable",
        "truncated",
    )


def test_pixels_may_be_in_many_chunks_with_others_between() -> None:
    start, end = PLAIN.index(b"IDAT") + 4, len(PLAIN) - 16
    parts = [chunk(b"IDAT", PLAIN[at : min(at + 50, end)]) for at in range(start, end, 50)]
    data = PLAIN[: start - 8] + chunk(b"tEXt", b"a\0b").join(parts) + chunk(b"IEND")
    assert np.array_equal(images.decode(data), SHOWN)
    assert np.array_equal(images.decode(data[:-12]), SHOWN)  # without IEND
    assert np.array_equal(images.decode(data + b"<script>" * 99), SHOWN)
    assert reason(data[: len(data) // 2]) == "truncated"


# ---- every depth and colour type, against a computation of its own

ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def packed(samples: np.ndarray, depth: int) -> bytes:
    """Return the rows of samples (height, width, channels) in PNG's layout, filter 0."""
    rows = samples.reshape(len(samples), -1)
    if depth == 16:
        stored = rows.astype(">u2").view(np.uint8).reshape(len(rows), -1)
    elif depth == 8:
        stored = rows.astype(np.uint8)
    else:
        bits = (rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1
        stored = np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in stored)


def png(
    samples: np.ndarray,
    depth: int,
    colour: int,
    interlaced: bool = False,
    palette: np.ndarray | None = None,
    transparency: bytes | None = None,
) -> bytes:
    height, width = samples.shape[:2]
    if interlaced:
        passes = (samples[y::down, x::right] for x, y, right, down in ADAM7)
        raw = b"".join(packed(part, depth) for part in passes if part.size)
    else:
        raw = packed(samples, depth)
    parts = [SIGNATURE, chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))]
    if palette is not None:
        parts.append(chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparency is not None:
        parts.append(chunk(b"tRNS", transparency))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND")])


def eight_bits(samples: np.ndarray, depth: int) -> np.ndarray:
    return samples >> 8 if depth == 16 else samples * 255 // ((1 << depth) - 1)


def blended(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return colours composited on white, alpha 0..1."""
    return np.rint(colours * alpha + 255 * (1 - alpha)).astype(int)


def close(found: np.ndarray, expected: np.ndarray) -> np.bool:
    return np.abs(found.astype(int) - expected).max() <= 1


DEPTHS = [(0, d) for d in (1, 2, 4, 8, 16)] + [(2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), DEPTHS)
def test_every_depth_and_colour_type(colour: int, depth: int, interlaced: bool) -> None:
    samples = np.random.default_rng(depth).integers(0, 1 << depth, (19, 23, CHANNELS[colour]))
    grey = colour in (0, 4)
    colours = eight_bits(samples[..., :1].repeat(3, 2) if grey else samples[..., :3], depth)
    expected = colours
    if colour in (4, 6):
        expected = blended(colours, eight_bits(samples[..., -1:], depth) / 255)
    data = png(samples, depth, colour, interlaced)
    found = images.decode(data)
    assert close(found, expected)
    if colour in (0, 2):
        assert np.array_equal(found, expected)
    peer = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))
    if colour in (0, 2) and depth < 16:
        assert np.array_equal(found, peer)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("colour", "depth"), [case for case in DEPTHS if case[0] in (0, 2)])
def test_only_the_transparent_colour_is_white(colour: int, depth: int, interlaced: bool) -> None:
    samples = np.random.default_rng(depth).integers(0, 1 << depth, (19, 23, CHANNELS[colour]))
    if depth == 16:
        samples[3:9] = samples[3, 3]  # many that are the key, and beside them many that only begin like it
        samples[9:12] = samples[3, 3] ^ 1
    key = samples[3, 3]
    transparency = b"".join(struct.pack(">H", int(value)) for value in key)
    shown = eight_bits(samples, depth)
    expected = np.where((samples == key).all(axis=2, keepdims=True), 255, shown)
    found = images.decode(png(samples, depth, colour, interlaced, transparency=transparency))
    assert np.array_equal(found, expected.repeat(3, 2) if colour == 0 else expected)
    high = b"".join(struct.pack(">H", (int(value) | (0xFF << depth)) & 0xFFFF) for value in key)  # libpng masks these
    assert np.array_equal(images.decode(png(samples, depth, colour, interlaced, transparency=high)), found)
    assert np.array_equal(
        images.decode(png(samples, depth, colour, interlaced, transparency=transparency[:-1])),
        shown.repeat(3, 2) if colour == 0 else shown,
    )


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["none", "one", "some", "too many"])
def test_palettes(depth: int, interlaced: bool, kind: str) -> None:
    generator = np.random.default_rng(depth)
    count = 1 << depth
    samples = generator.integers(0, count, (19, 23, 1))
    palette = generator.integers(0, 256, (count, 3))
    alpha = np.full(count, 255)
    given = {"none": 0, "one": 1, "some": max(1, count // 2), "too many": count}[kind]
    alpha[:given] = 0 if kind == "one" else generator.integers(0, 256, given)
    transparency = None if kind == "none" else bytes(alpha[:given].tolist()) + b"\1" * (9 if kind == "too many" else 0)
    found = images.decode(png(samples, depth, 3, interlaced, palette, transparency))
    assert close(found, blended(palette[samples[..., 0]], alpha[samples] / 255))


def test_a_palette_that_is_short_or_missing() -> None:
    samples = np.tile(np.arange(16), (16, 1))[..., None]
    palette = np.full((4, 3), 200)
    found = images.decode(png(samples, 4, 3, palette=palette))
    assert (found[:, :4] == 200).all()
    assert (found[:, 4:] == 0).all()
    assert reason(png(samples, 4, 3)) == "undecodable"
    assert images.decode(png(samples, 4, 3, palette=np.full((256, 3), 7))).max() == 7


def test_an_alpha_of_zero_everywhere_is_ignored_if_colours_differ() -> None:
    shown = picture(60, 40)
    for alpha, expected in ((0, shown), (255, shown)):
        data = encoded(np.dstack([shown, np.full((40, 60), alpha, np.uint8)]), "PNG")
        assert np.array_equal(images.decode(data), expected)
    blank = np.zeros((40, 60, 4), np.uint8)
    assert images.decode(encoded(blank, "PNG")).min() == 255  # nothing is to be seen, whatever its colour
    blank[..., :3] = shown
    blank[7, 7, 3] = 1
    assert images.decode(encoded(blank, "PNG"))[0, 0].tolist() == [255] * 3
    indices = np.random.default_rng(0).integers(0, 3, (9, 9, 1))
    palette = np.array([[9, 0, 0], [0, 99, 0], [0, 0, 255], [1, 1, 1]])
    for unused in (b"\0\0\0\0", b"\0\0\0\xff"):  # the last colour is in the palette, and not in the picture
        assert np.array_equal(images.decode(png(indices, 2, 3, False, palette, unused)), palette[indices[..., 0]])


@pytest.mark.parametrize(
    "ihdr",
    [(0, 5, 8, 2), (5, 0, 8, 2), (5, 5, 3, 0), (5, 5, 16, 3), (5, 5, 8, 5), (1 << 31, 1, 8, 0), (5, 5, 0, 0)],
)
def test_impossible_headers(ihdr: tuple[int, int, int, int]) -> None:
    data = SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *ihdr, 0, 0, 0)) + PLAIN[33:]
    assert reason(data) == "undecodable"
