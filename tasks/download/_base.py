"""The interface of the engines of `download`: settings, requests, outcomes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self

from pydantic import Field, field_validator, model_validator

from catalog.errors import RecipeError
from catalog.schema import FAILED, SUCCESS
from tasks.reasons import REASONS
from tasks.stage import Config

_DETAIL_CHARACTERS = 200


class VerifyHash(Config):
    """Compare the received bytes with a digest in the source. Rows whose digest is null are not compared."""

    column: str = Field(description="column of the source that holds the hex digest")
    type: Literal["md5", "sha1", "sha256", "sha512"] = "sha256"


class Settings(Config):
    """Settings for fetching and storing images, with img2dataset's names and defaults where it has them."""

    image_size: int = Field(256, gt=0, le=8192, description="pixels of the side that resize_mode refers to")
    resize_mode: Literal["border", "keep_ratio", "keep_ratio_largest", "center_crop", "no"] = Field(
        "border", description="border: fit, then pad with white; keep_ratio: shorter side; no: unchanged"
    )
    resize_only_if_bigger: bool = Field(False, description="do not resize pictures that are small enough")
    reencode: bool = Field(True, description="false: store jpg, png and webp files as received, unresized")
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: int | None = Field(
        None, ge=0, le=101, description="jpg 0..100 (95), webp 0..101 (95; 101 is lossless), png compression 0..9 (6)"
    )

    timeout_s: float = Field(10, gt=0, description="of one whole request, redirects and body included")
    retries: int = Field(2, ge=0, le=10, description="further attempts after a failure that may be temporary")
    backoff_s: float = Field(0.5, gt=0, description="pause before the first further attempt; doubles each time")
    max_redirects: int = Field(5, ge=0, le=20)
    max_bytes: int = Field(20_000_000, gt=0, description="of a body, as sent and when decompressed")
    max_pixels: int = Field(50_000_000, gt=0, le=1 << 27, description="of a picture, by its header")
    max_side_px: int = Field(32_768, gt=0, le=65_500)
    decode_cpu_s: float = Field(
        10, gt=0, description="CPU time of decoding one picture, in formats whose header does not bound it (AVIF, TIFF)"
    )
    min_size_px: int = Field(0, ge=0, description="reject pictures whose shorter side is below this")
    max_aspect_ratio: float | None = Field(None, ge=1, description="reject pictures with a longer ratio of sides")
    statistics: Literal["fast", "exact"] = Field(
        "fast",
        description="of JPEGs twice as large as needed. fast: as decoded, at 1/2 to 1/8 of their size; "
        "exact: at full size, cleanvision's numbers to 1e-6, for 3 to 5 times the CPU of decoding and measuring",
    )

    concurrency: int = Field(128, gt=0, le=1024, description="requests in flight in one actor")
    per_host: int = Field(16, gt=0, description="of these, to one host")
    user_agent_token: str | None = Field(None, description="our name in requests and opt-out headers")
    disallowed_header_directives: tuple[str, ...] = Field(
        ("noai", "noimageai", "noindex", "noimageindex"), description="X-Robots-Tag directives that forbid use"
    )
    respect_robots: bool | None = Field(
        None, description="fetch each host's robots.txt once a day, and obey it; default: true (engine http only)"
    )
    respect_tdm: bool | None = Field(
        None,
        description="reject what tdm-reservation headers or tdmrep.json reserve; default: true (engine http only)",
    )
    crawl_wait_s: float = Field(
        60, ge=0, description="longest wait for a turn where robots.txt has a Crawl-delay; later ones are rate_limited"
    )
    host_wait_s: float = Field(
        60,
        ge=0,
        description="longest total wait of a part for a host that answers 429, or 503 with Retry-After; "
        "after that the host gets no more requests: its later rows are host_busy",
    )
    allow_hosts: tuple[str, ...] = Field((), description="`host` or `host:port` allowed though not public")
    verify_hash: VerifyHash | None = None

    @field_validator("disallowed_header_directives")
    @classmethod
    def _lower(cls, directives: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(directive.strip().lower() for directive in directives)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.reencode and self.resize_mode != "no":
            raise RecipeError(f"reencode: false keeps the bytes, so resize_mode must be no; it is {self.resize_mode}")
        if self.encode_format == "png" and (self.encode_quality or 0) > 9:
            raise RecipeError(f"encode_quality of png is a compression, 0..9; it is {self.encode_quality}")
        return self

    @property
    def obeys_robots(self) -> bool:
        """Whether robots.txt is fetched and obeyed: by default, unless the recipe disables it."""
        return self.respect_robots is not False

    @property
    def obeys_tdm(self) -> bool:
        """Whether reservations of text and data mining are obeyed: by default, unless the recipe disables it."""
        return self.respect_tdm is not False

    @property
    def quality(self) -> int:
        """`encode_quality`, or the format's default."""
        return self.encode_quality if self.encode_quality is not None else 6 if self.encode_format == "png" else 95


class LocalFile(NamedTuple):
    """A byte range of a local file, for sources that are not on the web. `size` None: to the end of the file."""

    path: str
    offset: int
    size: int | None


class Request(NamedTuple):
    """One row's image to fetch or read."""

    url: str | None
    digest: str | None = None
    file: LocalFile | None = None
    fault: tuple[str, str] | None = None
    """Reason and detail if the source could not read the row: there is nothing to fetch."""


@dataclass(slots=True)
class Outcome:
    """The result of one row: the image, or the reason why there is none. Fields are columns of the images table."""

    image: bytes | None = None
    reason: str | None = None
    detail: str | None = None
    format: str | None = None
    sha256: str | None = None
    pixels_sha256: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    phash: int | None = None
    brightness: float | None = None
    brightness_p5: float | None = None
    brightness_p99: float | None = None
    blur: float | None = None
    histogram_std: float | None = None
    entropy: float | None = None
    greyscale: bool | None = None
    http_status: int | None = None
    final_url: str | None = None
    received_bytes: int | None = None

    @property
    def status(self) -> str:
        """`success` or `failed`."""
        return SUCCESS if self.image is not None else FAILED

    def failed(self, reason: str, detail: str) -> Self:
        """Record why there is no image; return self."""
        assert reason in REASONS, reason
        self.image = None
        self.reason = reason
        self.detail = printable(detail)[:_DETAIL_CHARACTERS] or None
        return self


def printable(text: str) -> str:
    """Return text that is valid in Arrow, Parquet and a terminal: no lone surrogates, no control characters."""
    text = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in text)


class Engine(Protocol):
    """Fetches images. Yields one outcome for each request, in their order; bad data never raises."""

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Yield the outcome of each request. `requests` is read ahead as far as memory allows."""
