import io
import math
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from PIL.PngImagePlugin import PngInfo
from scipy.fft import dctn

from tasks import images
from tests.pictures import encoded, jpeg, orientation_exif, picture, png_bomb

FORMATS = [
    ("jpg", "JPEG"),
    ("png", "PNG"),
    ("webp", "WEBP"),
    ("gif", "GIF"),
    ("bmp", "BMP"),
    ("tiff", "TIFF"),
    ("avif", "AVIF"),
]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns about some broken files


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# ---- decoding


@pytest.mark.parametrize(
    ("data", "fault"),
    [(jpeg(), None), (jpeg()[:500], "truncated"), (b"no image", "not_an_image"), (b"", "not_an_image")],
)
def test_decode_fault_is_the_reason_or_none(data: bytes, fault: str | None) -> None:
    assert images.decode_fault(data) == fault


@pytest.mark.parametrize(("name", "pil"), FORMATS)
def test_every_format_is_recognised_and_decoded_as_by_pillow(name: str, pil: str) -> None:
    data = encoded(picture(70, 50), pil)
    header = images.inspect(data)
    assert (header.format, header.width, header.height, header.orientation) == (name, 70, 50, 1)
    pixels = images.decode(data)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - pillow(data)).max() <= (2 if name == "jpg" else 0)


@pytest.mark.parametrize("major", [b"avif", b"mif1", b"miaf", b"msf1"])
def test_avif_is_decoded_with_any_major_brand(major: bytes) -> None:
    data = encoded(picture(70, 50), "AVIF")
    assert np.array_equal(images.decode(data[:8] + major + data[12:]), pillow(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pil", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied_as_by_pillow(pil: str, orientation: int) -> None:
    data = encoded(picture(64, 40), pil, exif=orientation_exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    pixels = images.decode(data)
    header = images.inspect(data)
    assert (header.height, header.width) == pixels.shape[:2] == expected.shape[:2]
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_a_broken_exif_block_does_not_break_the_picture() -> None:
    assert images.inspect(encoded(picture(20, 20), exif=b"Exif\0\0garbage" * 9)).orientation == 1


@pytest.mark.parametrize("pil", ["PNG", "WEBP"])
def test_transparency_is_composited_on_white(pil: str) -> None:
    rgba = np.dstack([picture(90, 600, 1), picture(90, 600, 2)[..., 0]])
    data = encoded(Image.fromarray(rgba), pil, **({"lossless": True, "exact": True} if pil == "WEBP" else {}))
    white = Image.new("RGBA", (90, 600), "white")
    expected = np.asarray(Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB"))
    assert np.abs(images.decode(data).astype(int) - expected).max() <= 1


def test_palette_transparency_is_white_too() -> None:
    paletted = Image.fromarray(picture(40, 30)).quantize(16)
    data = encoded(paletted, "PNG", transparency=paletted.getpixel((0, 0)))
    assert images.decode(data)[0, 0].tolist() == [255, 255, 255]


def test_grey_16_bit_and_cmyk_become_rgb() -> None:
    ramp = np.linspace(0, 65535, 64 * 32).astype(np.uint16).reshape(32, 64)
    pixels = images.decode(encoded(Image.fromarray(ramp), "PNG"))
    assert np.array_equal(pixels[..., 0], ramp >> 8)
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    assert images.decode(encoded(Image.fromarray(picture(32, 32)).convert("CMYK"))).shape == (32, 32, 3)
    assert images.decode(encoded(Image.fromarray(picture(32, 32)).convert("L"))).shape == (32, 32, 3)


@pytest.mark.parametrize("pil", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_decoded(pil: str) -> None:
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "blue", "green")]
    data = encoded(frames[0], pil, save_all=True, append_images=frames[1:], duration=50)
    assert np.abs(images.decode(data)[10, 10].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 1), (0.51, 1), (0.5, 2), (0.26, 2), (0.2, 4), (0.01, 8)])
def test_a_large_jpeg_is_decoded_at_a_sufficient_fraction(scale: float, expected: int) -> None:
    data = jpeg(801, 640)
    pixels = images.decode(data, scale=scale)
    assert pixels.shape[:2] == (-(-640 // expected), -(-801 // expected))
    full = images.resize(images.decode(data), 128, "keep_ratio_largest")
    if expected <= 4:
        part = images.resize(pixels, 128, "keep_ratio_largest", original=(801, 640))
        assert full.shape == part.shape
        assert np.abs(full.astype(int) - part).mean() < 1.5


# ---- refusing


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_an_image"),
        (b"<html>gone</html>", "not_an_image"),
        (b"\0\0\0\x14ftypheic\0\0\0\0heic", "unsupported_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (b"\xff\xd8\xff", "truncated"),
        (b"GIF89a=1;alert(1)//", "undecodable"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "truncated"),
        (png_bomb(), "too_many_pixels"),
        (png_bomb(1_000_000, 1, 1), "too_long_side"),
        (jpeg()[:5000], "truncated"),
        (encoded(picture(), "PNG")[:9000], "truncated"),
        (encoded(picture(), "WEBP")[:900], "truncated"),
        (jpeg()[:3] + bytes(5000) + b"\xff\xd9", "undecodable"),
    ],
)
def test_invalid_files_have_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(images.ImageError) as caught:
        images.decode(data)
    assert caught.value.reason == reason
    assert caught.value.detail


def test_a_polyglot_is_decoded_and_stored_without_the_rest() -> None:
    data = jpeg() + b"<script>alert(1)</script>PK\x03\x04"
    assert b"script" not in images.encode(images.decode(data))


def test_a_decompression_bomb_takes_no_memory() -> None:
    code = (
        "import resource, sys; sys.path.insert(0, '.')\n"
        "from tasks import images; from tests.pictures import png_bomb\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for size in ((30000, 30000), (16000, 8000)):\n"
        "    try: images.decode(png_bomb(*size))\n"
        "    except images.ImageError as e: print(e.reason)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[:2] == ["too_many_pixels"] * 2
    assert int(out[2]) < 64


@pytest.mark.parametrize("pil", [pil for _, pil in FORMATS])
@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_a_picture_or_a_known_reason(pil: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    whole = np.frombuffer(encoded(picture(120, 90, seed), pil), np.uint8)
    for _ in range(15):
        data = whole.copy()
        places = generator.integers(0, len(data), generator.integers(1, 30))
        data[places] = generator.integers(0, 256, len(places))
        cut = int(generator.integers(1, len(data) + 1)) if generator.random() < 0.5 else len(data)
        reason, pixels = attempt(data[:cut].tobytes())
        if reason:
            assert reason in {"not_an_image", "truncated", "undecodable", "too_many_pixels", "too_long_side"}
        else:
            assert pixels is not None
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3


def attempt(data: bytes) -> tuple[None, np.ndarray] | tuple[str, None]:
    try:
        return None, images.decode(data, images.Limits(4_000_000, 10_000))
    except images.ImageError as error:
        return error.reason, None


# ---- measuring


def reference_phash(pixels: np.ndarray) -> int:
    """Pillow and scipy, as in the imagehash package."""
    grey = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(grey, np.float64), type=2)[:8, :8]
    return int("".join("1" if bit else "0" for bit in (low > np.median(low)).ravel()), 2)


def distance(one: int | None, other: int | None) -> int:
    assert one is not None
    assert other is not None
    return ((one ^ other) & (2**64 - 1)).bit_count()


@pytest.mark.parametrize("seed", range(12))
def test_phash_is_the_published_one(seed: int) -> None:
    small = picture(200, 150, seed)
    assert distance(images.phash(small), reference_phash(small)) <= 1  # OpenCV and Pillow round grey differently
    large = picture(900, 700, seed)
    assert distance(images.phash(large), reference_phash(large)) <= 4  # shrunk in two steps


@pytest.mark.parametrize("seed", range(6))
def test_phash_is_stable_under_reencoding_and_distinguishes_pictures(seed: int) -> None:
    original = images.phash(images.decode(jpeg(500, 400, seed)))
    again = Image.fromarray(picture(500, 400, seed)).resize((350, 280))
    assert distance(original, images.phash(images.decode(encoded(again, quality=40)))) <= 6
    assert distance(original, images.phash(picture(500, 400, seed + 100))) >= 14


@pytest.mark.parametrize("value", [0, 127, 255])
def test_a_flat_picture_has_no_phash(value: int) -> None:
    assert images.phash(np.full((300, 300, 3), value, np.uint8)) is None


def by_definition(image: Image.Image) -> dict[str, float]:
    """cleanvision 0.3.7's measurements of a Pillow image: exact, slow, with the whole picture in memory."""
    channels = np.asarray(image.convert("RGB")).astype(int)
    r, g, b = (channels[..., i] for i in range(3))
    bright = np.sqrt(0.241 * r * r + 0.691 * g * g + 0.068 * b * b) / 255
    ratio = max(image.size) / 64
    width, height = image.size
    size = (max(1, int(width // ratio)), max(1, int(height // ratio))) if ratio > 1 else image.size
    small = image.resize(size).convert("L")
    return {
        "brightness": bright.mean(),
        "brightness_p5": np.percentile(bright, 5),
        "brightness_p99": np.percentile(bright, 99),
        "blur": np.asarray(small.filter(ImageFilter.FIND_EDGES)).std(),
        "histogram_std": np.std(small.histogram()),
        "entropy": image.entropy(),
    }


@pytest.mark.parametrize("size", [(96, 90), (64, 64), (1, 1), (700, 3), (300, 511), (1300, 900)])
@pytest.mark.parametrize("kind", ["smooth", "noise", "dark", "black", "white", "half"])
def test_statistics_are_cleanvisions_definitions(size: tuple[int, int], kind: str) -> None:
    width, height = size
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    half = np.zeros((height, width, 3), np.uint8)
    half[: max(1, height // 17)] = 255  # a step at a percentile
    pixels = {
        "smooth": picture(width, height, 3),
        "noise": noise,
        "dark": noise // 9,
        "black": np.zeros_like(noise),
        "white": np.full_like(noise, 255),
        "half": half,
    }[kind]
    found = images.statistics(pixels)._asdict()
    expected = by_definition(Image.fromarray(pixels))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=3e-7)


def test_a_greyscale_file_has_the_entropy_of_one_channel() -> None:
    grey = Image.fromarray(picture(200, 150, 4)).convert("L")
    pixels = images.decode(encoded(grey, "PNG"))
    assert images.statistics(pixels, one_channel=True).entropy == pytest.approx(grey.entropy(), abs=1e-9)
    assert images.statistics(pixels).entropy == pytest.approx(grey.convert("RGB").entropy(), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_percentiles_are_exact_if_the_grid_is_not_representative(seed: int) -> None:
    """Bright only between the pixels of the 96 x 96 grid, so its estimate of the percentiles is wrong."""
    pixels = np.random.default_rng(seed).integers(0, 40, (960, 960, 3), dtype=np.uint8)
    pixels[5::10] = 250 - pixels[5::10] // 4
    bright = by_definition(Image.fromarray(pixels))
    found = images.statistics(pixels)
    assert found.brightness_p5 == pytest.approx(bright["brightness_p5"], abs=3e-7)
    assert found.brightness_p99 == pytest.approx(bright["brightness_p99"], abs=3e-7)


@pytest.mark.parametrize("kind", ["flat", "white with a stain", "noise where the grid looks aside"])
def test_statistics_take_little_memory(kind: str) -> None:
    pixels = np.full((6000, 4000, 3), 255, np.uint8)
    if kind == "white with a stain":
        pixels[:200] = np.random.default_rng(0).integers(0, 256, (200, 4000, 3), dtype=np.uint8)
    if kind == "noise where the grid looks aside":
        pixels[::2] = np.random.default_rng(0).integers(0, 99, (3000, 4000, 3), dtype=np.uint8)
    tracemalloc.start()
    images.statistics(pixels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 6000 * 4000  # a float32 for every pixel


def test_fast_statistics_are_near_the_exact_ones() -> None:
    pixels = picture(1500, 1100, 5)
    exact = images.statistics(pixels)
    found = images.statistics(images.decode(encoded(pixels, quality=95), scale=0.25), fast=True)
    assert found.brightness == pytest.approx(exact.brightness, abs=0.005)
    assert (found.brightness_p5, found.brightness_p99) == pytest.approx(
        (exact.brightness_p5, exact.brightness_p99), abs=0.01
    )
    assert found.blur == pytest.approx(exact.blur, rel=0.1)
    assert found.entropy == pytest.approx(exact.entropy, abs=0.2)


def test_statistics_of_special_pictures() -> None:
    black = images.statistics(np.zeros((50, 50, 3), np.uint8))
    assert (black.brightness, black.blur, black.greyscale) == (0, 0, True)
    assert black.entropy == pytest.approx(math.log2(3))  # three channels count as three values: cleanvision's rule
    assert images.statistics(np.zeros((50, 50, 3), np.uint8), one_channel=True).entropy == 0
    assert images.statistics(np.full((1, 1, 3), 255, np.uint8)).brightness == pytest.approx(1)
    assert images.statistics(picture(3000, 1)).entropy > 0
    almost = np.full((300, 300, 3), 9, np.uint8)
    almost[299, 298, 1] = 10
    assert not images.statistics(almost).greyscale
    blurred = np.asarray(Image.fromarray(picture(400, 300)).filter(ImageFilter.GaussianBlur(30)))
    assert images.statistics(blurred).blur < images.statistics(picture(400, 300)).blur


# ---- the digest of what a picture shows


def digest(data: bytes) -> str:
    return images.pixels_sha256(data, images.inspect(data))


@pytest.mark.parametrize("seed", range(3))
def test_lossless_files_of_a_picture_have_equal_digests(seed: int) -> None:
    pixels = picture(120, 80, seed)
    png = encoded(pixels, "PNG", compress_level=1)
    note = PngInfo()
    note.add_text("Author", "somebody")
    same = [
        encoded(pixels, "PNG", compress_level=9, pnginfo=note),
        encoded(pixels, "BMP"),
        encoded(pixels, "TIFF"),
        encoded(pixels, "WEBP", lossless=True),
        encoded(pixels[:, ::-1], "PNG", exif=orientation_exif(2)),
    ]
    assert len({png, *same}) == 6
    assert {digest(data) for data in same} == {digest(png)}
    other = pixels.copy()
    other[79, 119, 2] ^= 1
    assert digest(encoded(other, "PNG")) != digest(png)


def test_the_shape_is_in_the_digest() -> None:
    """cleanvision 0.3.7 calls these two exact duplicates."""
    for name in ("PNG", "JPEG"):
        wide, high = (encoded(np.full(shape, 90, np.uint8), name) for shape in ((10, 20, 3), (20, 10, 3)))
        assert digest(wide) != digest(high)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_digest_of_a_jpeg_ignores_metadata(progressive: bool) -> None:
    pixels = picture(300, 200, 2)
    plain = encoded(pixels, quality=90, progressive=progressive)
    dressed = encoded(
        pixels, quality=90, progressive=progressive, comment=b"\xff\xd9 hello", icc_profile=b"x" * 70_000, dpi=(72, 72)
    )
    assert digest(dressed) == digest(plain + b"appended") == digest(plain)
    assert digest(encoded(pixels, quality=90, progressive=progressive, exif=orientation_exif(1))) == digest(plain)
    turned = digest(encoded(pixels, quality=90, progressive=progressive, exif=orientation_exif(3)))
    others = [digest(encoded(pixels, quality=91)), digest(encoded(picture(300, 200, 3), quality=90))]
    assert len({turned, digest(plain), *others}) == 4


@pytest.mark.parametrize("seed", range(20))
def test_jpegs_of_equal_digest_decode_to_equal_pictures(seed: int) -> None:
    """If any single byte of a file is changed, the digest changes, or the picture does not."""
    generator = np.random.default_rng(seed)
    data = bytearray(jpeg(90, 70, seed, comment=b"a comment", exif=orientation_exif(1)))
    before = images.decode(bytes(data))
    was = digest(bytes(data))
    for _ in range(40):
        place, value = int(generator.integers(3, len(data))), int(generator.integers(0, 256))
        if seed % 2:
            place = int(generator.integers(3, 700))  # the segments before the compressed data
        changed = bytes(data[:place]) + bytes([value]) + bytes(data[place + 1 :])
        _, after = attempt(changed)
        if after is not None and digest(changed) == was:
            assert np.array_equal(before, after)


def test_the_digest_does_not_depend_on_the_decoded_size() -> None:
    data = jpeg(900, 600)
    header = images.inspect(data)
    reduced = images.decode(data, scale=0.25)
    assert images.pixels_sha256(data, header, reduced) == images.pixels_sha256(data, header)


# ---- resizing and encoding


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.integers(1, 600),
    st.sampled_from(["border", "keep_ratio", "keep_ratio_largest", "center_crop", "no"]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_sizes_follow_img2datasets_rule(width: int, height: int, size: int, mode: Any, only_if_bigger: bool) -> None:
    got = images.resized(width, height, size, mode, only_if_bigger)
    side = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
    if mode == "no" or (only_if_bigger and side <= size):
        assert got == (width, height)
    else:
        factor = size / side
        assert got == (max(1, round(width * factor)), max(1, round(height * factor)))
        assert size in got


@pytest.mark.parametrize("seed", range(3))
def test_shrinking_is_by_area(seed: int) -> None:
    pixels = picture(640, 480, seed)
    ours = images.resize(pixels, 128, "keep_ratio_largest")
    box = np.asarray(Image.fromarray(pixels).resize((128, 96), Image.Resampling.BOX))
    assert np.abs(ours.astype(int) - box).max() <= 1


def test_modes_crop_and_pad() -> None:
    pixels = picture(400, 200)
    square = images.resize(pixels, 100, "border")
    assert square.shape == (100, 100, 3)
    assert (square[:25] == 255).all()
    assert (square[75:] == 255).all()
    assert np.array_equal(square[25:75], images.resize(pixels, 100, "keep_ratio_largest"))
    wide = images.resize(pixels, 100, "keep_ratio")
    assert wide.shape == (100, 200, 3)
    assert np.array_equal(images.resize(pixels, 100, "center_crop"), wide[:, 50:150])
    assert images.resize(pixels, 500, "border", only_if_bigger=True) is pixels
    assert images.resize(pixels, 500, "keep_ratio").shape == (500, 1000, 3)


def test_a_thin_picture_cannot_exceed_the_limit_by_resizing() -> None:
    with pytest.raises(images.ImageError) as caught:
        images.resize(np.zeros((1, 30_000, 3), np.uint8), 256, "keep_ratio")
    assert caught.value.reason == "too_many_pixels"


@pytest.mark.parametrize(("format_", "quality"), [("jpg", 95), ("png", 6), ("webp", 101), ("webp", 95)])
def test_encoded_pictures_decode(format_: Any, quality: int) -> None:
    pixels = picture(100, 80)
    data = images.encode(pixels, format_, quality)
    assert images.inspect(data).format == format_
    error = np.abs(images.decode(data).astype(int) - pixels).max()
    assert error <= {"png": 0, "webp": 0 if quality > 100 else 40, "jpg": 24}[format_]


def test_a_side_over_the_limit_of_the_format() -> None:
    with pytest.raises(images.ImageError) as caught:
        images.encode(np.zeros((1, 20_000, 3), np.uint8), "webp")
    assert caught.value.reason == "unencodable"


def test_results_are_deterministic() -> None:
    data = jpeg(700, 500)
    one, other = (images.decode(data, scale=0.3) for _ in range(2))
    assert np.array_equal(one, other)
    assert images.statistics(one) == images.statistics(other)
    assert images.encode(one) == images.encode(other)
