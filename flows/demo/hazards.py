"""The hazards of a crawl that the demo plants: URL, caption, and the expected outcome.

The URL of a hazard describes the server's behaviour (`/status/404/…`), so it explains itself in the report. `{file}` is
replaced by the file of an image, `{n}` by a number that makes the URL unique, `{base}` by the server's address.
"""

from dataclasses import dataclass
from typing import Final, Literal

Stage = Literal["download", "filter", ""]


@dataclass(frozen=True)
class Hazard:
    """One kind of hazard."""

    name: str
    url: str | None
    reason: str | None = None
    """The expected reason of the row: one of `tasks.download._reasons`, or a rule of the demo's filter."""
    stage: Stage = "download"
    """The stage that must reject the row; empty if the row must be kept."""
    rows: int = 5
    """Number of rows among 3,000; at least one in a corpus of any size."""
    file: str = "picture"
    """The content of the URL: an image, plain or in one of `pictures.ODD_ENCODINGS`, or one of `pictures.assets`."""
    caption: str | None = None
    """Template of the caption; `{caption}` is the correct one. None: the correct caption."""

    @property
    def survives(self) -> bool:
        """Whether the row must be downloaded and pass the filter."""
        return not self.stage


def _ok(
    name: str, url: str = "{base}/{file}", rows: int = 5, file: str = "picture", caption: str | None = None
) -> Hazard:
    return Hazard(name, url, None, "", rows, file, caption)


UNREACHABLE_PORT: Final = 1
"""Port of an obsolete service (tcpmux): the recipe allows it, and no server listens on it."""

HAZARDS: Final = (
    # answers without a picture
    Hazard("not found", "{base}/status/404/{n}.jpg", "not_found", rows=30, file=""),
    Hazard("gone", "{base}/status/410/{n}.jpg", "not_found", file=""),
    Hazard("forbidden", "{base}/status/403/{n}.jpg", "forbidden", rows=12, file=""),
    Hazard("server error", "{base}/status/500/{n}.jpg", "server_error", file=""),
    Hazard("overloaded for ever", "{base}/status/429/{n}.jpg", "rate_limited", rows=2, file=""),
    Hazard("no content", "{base}/status/204/{n}.jpg", "unexpected_status", rows=3, file=""),
    Hazard("empty body", "{base}/empty/{n}.jpg", "empty_body", file=""),
    # errors that disappear after retries
    _ok("heals after 503", "{base}/heals/503/1/{file}", rows=12),
    _ok("heals after 500 twice", "{base}/heals/500/2/{file}"),
    _ok("heals after 429", "{base}/heals/429/1/{file}", rows=3),
    _ok("heals after a reset", "{base}/heals/reset/2/{file}"),
    # incomplete or endless bodies
    Hazard("slow body", "{base}/slow-body/{file}", "timeout", rows=4),
    Hazard("slow headers", "{base}/slow-headers/{file}", "timeout", rows=3),
    Hazard("endless body", "{base}/endless/{n}.jpg", "body_too_large", rows=4, file=""),
    Hazard("declared huge", "{base}/huge/{n}.jpg", "body_too_large", rows=3, file=""),
    Hazard("gzip bomb", "{base}/gzip-bomb/{n}.jpg", "body_too_large", rows=3, file=""),
    Hazard("broken gzip", "{base}/gzip-broken/{file}", "bad_encoding", rows=3),
    Hazard("cut connection", "{base}/cut/{file}", "incomplete_body", rows=4),
    _ok("gzip", "{base}/gzip/{file}", rows=4),
    _ok("trickle", "{base}/trickle/{file}", rows=4),
    # redirects
    _ok("redirect", "{base}/redirect/1/{file}", rows=15),
    _ok("three redirects", "{base}/redirect/3/{file}"),
    Hazard("redirect loop", "{base}/redirect-loop/{n}.jpg", "redirect_limit", file=""),
    Hazard("redirect to 10.0.0.1", "{base}/redirect-to/private/{n}.jpg", "private_address", rows=3, file=""),
    Hazard("redirect to metadata", "{base}/redirect-to/metadata/{n}.jpg", "private_address", rows=3, file=""),
    Hazard("redirect to loopback", "{base}/redirect-to/loopback/{n}.jpg", "private_address", rows=3, file=""),
    Hazard("redirect to file:", "{base}/redirect-to/file/{n}.jpg", "bad_scheme", rows=3, file=""),
    # wrong content types
    _ok("picture called text/html", "{base}/typed/text/html/{file}"),
    _ok("picture called a byte stream", "{base}/typed/application/octet-stream/{file}", rows=3),
    Hazard("page called image/jpeg", "{base}/page/{n}.jpg", "not_an_image", rows=10, file=""),
    # opt-outs
    Hazard("closed by robots.txt", "{base}/closed/{file}", "robots_disallowed", rows=6),
    Hazard("tdm-reservation", "{base}/reserved/{file}", "tdm_reserved", rows=4),
    Hazard("noai", "{base}/robots/noai/{file}", "opted_out", rows=8),
    Hazard("noimageai", "{base}/robots/noimageai/{file}", "opted_out"),
    Hazard("noindex", "{base}/robots/noindex/{file}", "opted_out", rows=3),
    _ok("nofollow", "{base}/robots/nofollow/{file}", rows=3),
    # files
    Hazard("truncated jpeg", "{base}/truncated/{file}", "truncated", rows=8),
    Hazard("truncated png", "{base}/truncated/{file}", "truncated", file="png", rows=4),
    Hazard("bomb by header", "{base}/{file}", "too_many_pixels", file="bomb-header", rows=3),
    Hazard("bomb that decodes", "{base}/{file}", "too_many_pixels", file="bomb-flat", rows=3),
    Hazard("one pixel", "{base}/{file}", "too_small", file="pixel", rows=10),
    Hazard("icon", "{base}/{file}", "too_small", file="icon", rows=4),
    Hazard("hairline", "{base}/{file}", "too_small", file="hairline", rows=3),
    Hazard("drawing", "{base}/{file}", "unsupported_format", file="svg", rows=4),
    Hazard("garbled", "{base}/{file}", "undecodable", file="garbled", rows=4),
    Hazard("blank", "{base}/{file}", "blank", "filter", rows=12, file="blank"),
    _ok("greyscale jpeg", file="grey"),
    _ok("CMYK jpeg", file="cmyk"),
    _ok("progressive jpeg", file="progressive"),
    _ok("rotated by EXIF", file="exif"),
    _ok("16-bit png", file="png16"),
    _ok("png with a palette", file="palette"),
    _ok("png with alpha", file="alpha"),
    _ok("jpeg with a zip behind it", file="polyglot"),
    # addresses
    Hazard("loopback by name", "{localhost}/{file}", "private_address", rows=3),
    Hazard("loopback as a number", "http://2130706433/{n}.jpg", "private_address", rows=2, file=""),
    Hazard("private address", "http://192.168.1.1/{n}.jpg", "private_address", rows=3, file=""),
    Hazard("metadata service", "http://169.254.169.254/latest/meta-data/{n}.jpg", "private_address", rows=3, file=""),
    Hazard("loopback, IPv6", "http://[::1]/{n}.jpg", "private_address", rows=2, file=""),
    Hazard("loopback, mapped", "http://[::ffff:127.0.0.1]/{n}.jpg", "private_address", rows=2, file=""),
    Hazard("refused port", f"http://127.0.0.1:{UNREACHABLE_PORT}/{{n}}.jpg", "connection_failed", rows=3, file=""),
    Hazard("unknown host", "http://no-such-host-{n}.invalid/a.jpg", "dns_failed", rows=4, file=""),
    Hazard("file:", "file:///etc/hostname?{n}", "bad_scheme", rows=3, file=""),
    Hazard("ftp:", "ftp://127.0.0.1/{n}.jpg", "bad_scheme", rows=3, file=""),
    Hazard(
        "data:",
        "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///ywAAAAAAQABAAACAUwAOw==#{n}",
        "bad_scheme",
        rows=2,
        file="",
    ),
    Hazard("not a URL", "img {n} from the blog.jpg", "bad_url", rows=3, file=""),
    Hazard("no host", "http:///{n}.jpg", "bad_url", rows=2, file=""),
    Hazard("empty URL", "", "bad_url", rows=1, file=""),
    Hazard("no URL", None, "bad_url", rows=1, file=""),
    # captions that must not be changed
    _ok("caption with NUL", rows=4, caption="{caption}\0 and more"),
    _ok("caption with emoji", rows=6, caption="🐈‍⬛✨ {caption} 👩🏽‍🚀"),
    _ok("caption right to left", rows=4, caption="\u202eصورة جميلة\u202c {caption}"),
    _ok("caption in mojibake", rows=6, caption="{caption} â€“ cafÃ©"),
    _ok("caption with a script", rows=4, caption="<script>alert(1)</script><img src=x onerror=alert(2)> {caption}"),
    _ok("caption of 20,000 letters", rows=3, caption="{caption} {long}"),
    _ok("caption with SQL", rows=3, caption="'); DROP TABLE images; -- {caption}"),
    _ok("empty caption", rows=3, caption=""),
)

BY_NAME: Final = {hazard.name: hazard for hazard in HAZARDS}
