"""The closed list of reasons why a row has no image, with descriptions, and whether a retry may help.

For reasons about the body and the image, bytes arrived but were unusable (img2dataset's `failed_to_resize`); for all
others no usable bytes arrived (`failed_to_download`).
"""

from typing import Final, Literal, NamedTuple

Retry = Literal["now", "later", "never"]
"""now: retried within the build, after a pause; later: worth a later build; never: the result will not change."""


class Reason(NamedTuple):
    """One reason, as reports show it."""

    about: str
    retry: Retry


REASONS: Final[dict[str, Reason]] = {
    # the source (column row_fault of table `source`)
    "bad_row": Reason("a line of the source that is not a record", "never"),
    "no_image_member": Reason("a sample of a tar without an image", "never"),
    "sparse_member": Reason("a file of a tar that is stored sparsely (with holes)", "never"),
    # the URL
    "bad_url": Reason("there is no URL, or it cannot be parsed", "never"),
    "bad_scheme": Reason("neither http nor https", "never"),
    "private_address": Reason(
        "refers to an address that is not public, and the recipe does not allow that host", "never"
    ),
    # what the host allows
    "robots_disallowed": Reason("the host's robots.txt forbids it", "never"),
    "robots_unreachable": Reason("the host's robots.txt could not be fetched, so everything is forbidden", "later"),
    # the connection
    "dns_failed": Reason("the host's name has no address", "later"),
    "connection_failed": Reason("refused, reset or unreachable", "now"),
    "tls_failed": Reason("the certificate or the handshake is not acceptable", "later"),
    "timeout": Reason("the whole request took longer than the limit", "now"),
    "host_down": Reason("the host gave no response many times in a row, so no more requests were sent", "later"),
    "host_busy": Reason("the host refused many times in a row (429, 503), so no more requests were sent", "later"),
    # the response
    "redirect_limit": Reason("more redirects than allowed, or a loop of them", "never"),
    "bad_redirect": Reason("a redirect without a usable target", "never"),
    "not_found": Reason("404 or 410", "never"),
    "forbidden": Reason("401, 402, 403 or 451", "never"),
    "rate_limited": Reason("429, or a Crawl-delay, and the pause that it asks for is too long, or did not help", "now"),
    "client_error": Reason("any other 4xx", "never"),
    "server_error": Reason("5xx", "now"),
    "unexpected_status": Reason("a status that is neither success with a body, a redirect nor an error", "never"),
    "bad_response": Reason("not HTTP, or headers or chunks that are malformed or over a limit", "later"),
    "opted_out": Reason("a response header asks not to be used", "never"),
    "tdm_reserved": Reason("text and data mining is reserved, by a response header or by the host's file", "never"),
    "taken_down": Reason("taken down on request", "never"),
    # the body
    "body_too_large": Reason("more bytes than the limit, as sent or when decompressed", "never"),
    "bad_encoding": Reason("a content encoding that is damaged or not supported", "never"),
    "incomplete_body": Reason("the body ended before its announced length, or is a part of one", "now"),
    "empty_body": Reason("no bytes", "later"),
    "hash_mismatch": Reason("the bytes do not have the digest in the source", "later"),
    "unreadable_file": Reason("a local file that cannot be read", "later"),
    # the image (tasks.images.ImageError)
    "not_an_image": Reason("the bytes are not an image", "never"),
    "unsupported_format": Reason("an image in a format that is not supported; the detail names it", "never"),
    "truncated": Reason("the image ends early", "later"),
    "undecodable": Reason("an image that is damaged or of an unsupported variant", "never"),
    "unencodable": Reason("the picture does not fit the stored format", "never"),
    "too_many_pixels": Reason("more pixels than the limit, by its header or after resizing", "never"),
    "too_long_side": Reason("a side is longer than the limit", "never"),
    "too_complex": Reason("decoding would take more work or memory than the limit, by its header and markers", "never"),
    "decode_timeout": Reason("decoding took more CPU time than the limit", "never"),
    "too_small": Reason("the shorter side is below the recipe's minimum", "never"),
    "too_narrow": Reason("the ratio of longer to shorter side is above the recipe's maximum", "never"),
    # the engine
    "not_attempted": Reason("the engine was stopped before this row", "later"),
    "unforeseen": Reason("an unexpected error; the detail names it", "later"),
}


NETWORK: Final = frozenset(
    (
        "robots_unreachable",
        "dns_failed",
        "connection_failed",
        "tls_failed",
        "timeout",
        "host_down",
        "host_busy",
        "server_error",
    )
)
"""Reasons that every row gets if the network or a proxy is down."""
