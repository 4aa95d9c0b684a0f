"""The format of an image file, from its first bytes. Imports nothing heavy: sources and commands may use it freely.

File name extensions and Content-Type headers are not used: both are often wrong.
"""

import re
from collections.abc import Iterator
from typing import Final

HEAD_BYTES: Final = 4096
"""Most bytes that `sniff` reads."""

DECODED: Final = frozenset(["jpg", "png", "webp", "gif", "bmp", "tiff", "avif"])
"""The formats that `tasks.images` decodes. `sniff` recognises more, so that other formats get an accurate reason."""

_BY_SIGNATURE: Final[tuple[tuple[str, tuple[bytes, ...]], ...]] = (
    ("jpg", (b"\xff\xd8\xff",)),
    ("png", (b"\x89PNG\r\n\x1a\n",)),
    ("gif", (b"GIF87a", b"GIF89a")),
    ("tiff", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("jxl", (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    ("jp2", (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")),
    ("jxr", (b"II\xbc\x01",)),
    ("psd", (b"8BPS\0",)),
    ("pdf", (b"%PDF-",)),
    ("eps", (b"%!PS", b"\xc5\xd0\xd3\xc6")),
    ("exr", (b"\x76\x2f\x31\x01",)),
    ("hdr", (b"#?RADIANCE", b"#?RGBE")),
    ("qoi", (b"qoif",)),
    ("dds", (b"DDS ",)),
    ("djvu", (b"AT&TFORM",)),
    ("icns", (b"icns",)),
    ("mng", (b"\x8aMNG\r\n\x1a\n", b"\x8bJNG\r\n\x1a\n")),
    ("xcf", (b"gimp xcf ",)),
    ("wmf", (b"\xd7\xcd\xc6\x9a",)),
    ("fits", (b"SIMPLE  =",)),
)
_AVIF_BRANDS: Final = frozenset([b"avif", b"avis"])
_HEIF_BRANDS: Final = frozenset(
    [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1", b"miaf"]
)
_BMP_HEADER_BYTES: Final = frozenset([12, 16, 40, 52, 56, 64, 108, 124])
_PNM: Final = re.compile(rb"P[1-7][\s#]")
_SVG: Final = re.compile(
    rb"""(?:\xef\xbb\xbf)?+\s*+
    (?:<\?xml[^>]*+>\s*+)?+
    (?>(?><!--.*?-->|<!DOCTYPE\s+svg[^>\[]*+(?:\[[^\]]*+\]\s*+)?+>)\s*+)*+
    <(?:\w+:)?svg[\s>/]""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
"""Uses atomic groups, which never backtrack, so that hostile text costs one pass."""


def sniff(head: bytes) -> str | None:
    """Return the format that a file's first bytes announce, or None if it is not an image.

    A member of DECODED (`jpg`, `png`, `webp`, `gif`, `bmp`, `tiff`, `avif`), or the name of a format that is known but
    not decoded: `heic` (any HEIF without AV1), `jxl`, `jp2`, `svg`, `ico`, `psd`, `pdf`, ... Pass HEAD_BYTES bytes,
    or the whole file if it is shorter; more bytes are ignored.
    """
    head = bytes(head[:HEAD_BYTES])
    for name, signatures in _BY_SIGNATURE:
        if head.startswith(signatures):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _by_brand(frozenset(_brands(head)))
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES:
        return "bmp"
    if head[:4] in (b"\0\0\1\0", b"\0\0\2\0") and 0 < int.from_bytes(head[4:6], "little") < 256 and head[9:10] == b"\0":
        return "ico"
    if _PNM.match(head):
        return "pnm"
    return "svg" if _SVG.match(head) else None


def _brands(head: bytes) -> Iterator[bytes]:
    """Yield the major brand of an ISO base media file, then the compatible ones (ISO/IEC 14496-12, section 4.3)."""
    size = int.from_bytes(head[:4], "big")
    yield head[8:12]
    for at in range(16, min(size or len(head), len(head)) - 3, 4):
        yield head[at : at + 4]


def _by_brand(brands: frozenset[bytes]) -> str | None:
    """Return avif or heic, or None for videos. `mif1`, `miaf` and `msf1` mean HEIF with any codec."""
    if brands & _AVIF_BRANDS:
        return "avif"
    return "heic" if brands & _HEIF_BRANDS else None
