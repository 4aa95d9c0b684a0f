import gzip
import time
import zlib
from email.utils import formatdate

import pytest

from tasks.download.headers import decompressed, opted_out, retry_after_s
from tasks.download.reasons import FetchError

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
def test_which_tags_forbid_use(tags, token, evidence):
    assert opted_out(tags, token, DIRECTIVES) == evidence


def test_retry_after_in_seconds_as_a_date_or_as_nonsense():
    assert retry_after_s("7") == 7
    assert retry_after_s("-3") == 0
    assert retry_after_s(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert retry_after_s(formatdate(0, usegmt=True)) == 0
    for nonsense in (None, "", "soon", "Wed, 99 Foo 2020"):
        assert retry_after_s(nonsense) is None


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("identity", b"abc"),
        ("gzip", gzip.compress(b"abc")),
        ("gzip", gzip.compress(b"a") + gzip.compress(b"bc")),
        ("x-gzip", gzip.compress(b"abc")),
        ("deflate", zlib.compress(b"abc")),
        ("deflate", zlib.compress(b"abc", wbits=-15)),
        ("gzip, deflate", zlib.compress(gzip.compress(b"abc"))),
    ],
)
def test_encodings_that_are_understood(encoding, body):
    assert decompressed(body, encoding, 1000) == b"abc"


@pytest.mark.parametrize(
    ("encoding", "body", "reason"),
    [
        ("br", b"abc", "bad_encoding"),
        ("gzip", b"abc", "bad_encoding"),
        ("gzip", gzip.compress(b"abc" * 99)[:-9], "bad_encoding"),
        ("deflate", b"", "bad_encoding"),
        ("gzip", gzip.compress(bytes(1_000_001)), "body_too_large"),
        ("gzip", gzip.compress(b"") * 100_000, "bad_encoding"),  # each of them a copy of what follows: an hour
        (", ".join(["gzip"] * 500), b"abc", "bad_encoding"),
    ],
)
def test_encodings_that_are_not(encoding, body, reason):
    with pytest.raises(FetchError) as caught:
        decompressed(body, encoding, 1_000_000)
    assert caught.value.reason == reason
