import gzip
import zlib
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.download import _headers as headers
from tasks.download._headers import cut_short, decompressed, encodings, opted_out, retry_after_s
from tasks.download._reasons import FetchError

NOW_S = 1_700_000_000.0


@pytest.fixture
def fixed_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "time", SimpleNamespace(time=lambda: NOW_S))


def never(_: bytes) -> bool:
    return False


DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")


@pytest.mark.parametrize(
    ("tags", "token", "evidence"),
    [
        ([], "espalier", None),
        (["noai"], "espalier", "noai"),
        (["all", "NoArchive, NOINDEX "], "espalier", "NoArchive, NOINDEX "),
        (["nosnippet"], "espalier", None),
        (["none"], "espalier", "none"),
        (["otherbot: noai"], "espalier", None),
        (["otherbot: nofollow, noai"], "espalier", None),
        (["Espalier: noai"], "espalier", "Espalier: noai"),
        (["espalier: noai"], "gardener", None),
        (["gardener/2.0: noai"], "Gardener/1.0", "gardener/2.0: noai"),
        (["*: noai"], "espalier", "*: noai"),
        (["otherbot: nofollow, espalier: noai"], "espalier", "otherbot: nofollow, espalier: noai"),
        (["espalier: nofollow, otherbot: noai"], "espalier", None),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], "espalier", None),
        (
            ["unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai"],
            "espalier",
            "unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai",
        ),
        (["noindex, max-image-preview:large"], "espalier", "noindex, max-image-preview:large"),
        (["max-snippet: -1, noai"], "espalier", "max-snippet: -1, noai"),
        (["otherbot: max-snippet: 5, noai"], "espalier", None),
        (["", ",,:", ": noai"], "espalier", None),
    ],
)
def test_which_tags_forbid_use(tags: list[str], token: str, evidence: str | None) -> None:
    assert opted_out(tags, token, DIRECTIVES) == evidence


def test_retry_after_as_a_unix_time_or_out_of_bounds(fixed_clock: None) -> None:
    assert retry_after_s(str(int(NOW_S) + 30)) == 30
    assert retry_after_s(str(int(NOW_S * 1000) + 30_000)) == 30
    assert retry_after_s(str(int(NOW_S) - 30)) == 0
    assert retry_after_s("120.5") == 120.5
    assert retry_after_s("9" * 400) is None
    assert retry_after_s(formatdate(NOW_S + 1e9, usegmt=True)) == 1e9
    for nonsense in ("inf", "-inf", "nan", "1e999", "0x10", "Fri, 31 Dec 99999 23:59:59 GMT", "\udcff", "5 s", "--5"):
        assert retry_after_s(nonsense) is None, nonsense


def test_partial_content_ranges() -> None:
    assert cut_short("bytes 0-9/100") == "bytes 0-9/100"
    assert cut_short("bytes 5-99/100") == "bytes 5-99/100"
    for whole in (
        None,
        "",
        "bytes 0-99/100",
        " Bytes  0-99/*",
        "bytes */100",
        "nonsense",
        "bytes 0-" + "9" * 999 + "/9",
    ):
        assert cut_short(whole) is None


@pytest.mark.parametrize(
    "name", ["utf-8", "aws-chunked", "binary", "none", "image/jpeg", "8bit", "base64", "\udcff", ""]
)
def test_unknown_codings_are_ignored(name: str) -> None:
    assert encodings([name]) == encodings([f" {name} , identity"]) == ()
    assert encodings([f"{name}, GZIP", name]) == ("gzip",)


@pytest.mark.parametrize("declared", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "deflate, gzip, br"])
def test_a_coding_that_the_bytes_do_not_have_is_skipped(declared: str) -> None:
    def plain(body: bytes) -> bool:
        return body.startswith(b"\xff\xd8\xff")

    body = b"\xff\xd8\xff" + bytes(range(256))
    assert decompressed(body, encodings([declared]), 1000, plain) == body
    with pytest.raises(FetchError, match="bad_encoding"):
        decompressed(body[1:], encodings([declared]), 1000, plain)
    assert (
        decompressed(gzip.compress(body, mtime=0), ("gzip", "gzip"), 1000, plain) == body
    )  # packed once, declared twice


def test_retry_after_in_seconds_as_a_date_or_malformed(fixed_clock: None) -> None:
    assert retry_after_s("7") == 7
    assert retry_after_s("-3") == 0
    assert retry_after_s(formatdate(NOW_S + 30, usegmt=True)) == 30
    assert retry_after_s(formatdate(0, usegmt=True)) == 0
    for nonsense in (None, "", "soon", "Wed, 99 Foo 2020"):
        assert retry_after_s(nonsense) is None


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("identity", b"abc"),
        ("gzip", gzip.compress(b"abc", mtime=0)),
        ("gzip", gzip.compress(b"a", mtime=0) + gzip.compress(b"bc", mtime=0)),
        ("x-gzip", gzip.compress(b"abc", mtime=0)),
        ("deflate", zlib.compress(b"abc")),
        ("deflate", zlib.compress(b"abc", wbits=-15)),
        ("gzip, deflate", zlib.compress(gzip.compress(b"abc", mtime=0))),
    ],
)
def test_supported_encodings(encoding: str, body: Any) -> None:
    assert decompressed(body, encodings([encoding]), 1000, never) == b"abc"


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        ("br", b"abc", "bad_encoding"),
        ("gzip", b"abc", "bad_encoding"),
        ("gzip", gzip.compress(b"abc" * 99, mtime=0)[:-9], "bad_encoding"),
        ("deflate", b"", "bad_encoding"),
        ("gzip", gzip.compress(bytes(1_000_001), mtime=0), "body_too_large"),
        ("gzip", gzip.compress(b"", mtime=0) * 100_000, "bad_encoding"),  # each of them a copy of what follows: an hour
        (", ".join(["gzip"] * 500), b"abc", "bad_encoding"),
    ],
)
def test_unsupported_encodings(encoding: Any, body: Any, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        decompressed(body, encodings([encoding]), 1_000_000, never)
    assert caught.value.reason == reason
