"""Restrict requests to public addresses and to the hosts in the recipe's `allow_hosts`.

A URL from the web may point into the network of the build: to a cloud's metadata service, a router, a database. The
rule is checked three times, each time on the value that is used next, so that neither a redirect nor a change of DNS
can bypass it:

1. `check_url`, for every hop: the scheme, and hosts that are written as addresses;
2. `PublicResolver`, for every name: all of its addresses, before the connector receives any of them;
3. `public_socket`, for every connection: the address that it connects to.
"""

import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any, Final
from urllib.parse import quote

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from tasks.download._reasons import FetchError

_IN_LAST_32: Final = tuple(map(IPv6Network, ("64:ff9b::/96", "::/96", "::ffff:0:0/96", "::ffff:0:0:0/96")))
"""NAT64's well-known prefix (RFC 6052), and addresses compatible with, mapped from and translated from IPv4."""
_LOCAL_NAT64: Final = IPv6Network("64:ff9b:1::/48")
"""NAT64 within a network (RFC 8215), which chooses the position of the IPv4 address in it."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
_SCHEMES: Final = ("http", "https")
_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")  # international names are punycode by now
_IPV6: Final = re.compile(r"[0-9A-Fa-f:.]+(%[!-~]+)?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_AS_IT_IS: Final = re.compile(r"[!#-;=?-\[\]_a-z~]+")
"""URLs that need no quoting are sent unchanged: some servers sign the exact spelling."""
_SAFE: Final = "".join(char for char in map(chr, range(33, 127)) if _AS_IT_IS.fullmatch(char))
_UP_TO_PATH: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?(?://[^/?#\\]*)?")


def is_public(address: str) -> bool:
    """Return whether an IP address, as text, is public.

    An address that embeds an IPv4 address is public if that is, as connections reach the latter: IPv4-mapped,
    -compatible and -translated ones, NAT64 (64:ff9b::/96, and 64:ff9b:1::/48 in each position that RFC 6052 allows),
    6to4, Teredo (server and client), ISATAP. A network-specific NAT64 prefix cannot be recognised by the address: such
    a NAT64 must refuse private addresses itself. Site-local addresses (fec0::/10), which Python calls global, are not
    public: networks that still use them are private.
    """
    try:
        ip = ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return _is_open(ip)
    inside = _inside(ip)
    if inside is not None:
        return bool(inside) and all(map(_is_open, inside))
    return _is_open(ip) and not ip.is_site_local


def _is_open(ip: IPv4Address | IPv6Address) -> bool:
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _inside(ip: IPv6Address) -> list[IPv4Address] | None:
    """Return the IPv4 addresses that an address may embed, or None if it embeds none."""
    if any(ip in network for network in _IN_LAST_32):
        return [IPv4Address(ip.packed[12:])]
    if ip in _LOCAL_NAT64:
        data = ip.packed  # byte 8 is never part of it; unused bytes are zero
        places = (data[6:8] + data[9:11], data[7:8] + data[9:12], data[9:13], data[12:16])
        return [IPv4Address(place) for place in places if place[0]]
    if ip.sixtofour:
        return [ip.sixtofour]
    if ip.teredo:
        return list(ip.teredo)
    if int(ip) >> 32 & 0xFFFFFFFF in _ISATAP:
        return [IPv4Address(ip.packed[12:])] if _is_open(ip) else []
    return None


class AllowedHosts:
    """The hosts that a recipe allows although they are not public: exactly `host` (any port) or `host:port`."""

    def __init__(self, hosts: Iterable[str] = ()) -> None:
        self._hosts = {host.strip().lower() for host in hosts}
        self._places: set[tuple[str, int]] = set()

    def names(self, host: str, port: int) -> bool:
        """Return whether the recipe names this host."""
        host = host.lower()
        return host in self._hosts or (f"[{host}]:{port}" if ":" in host else f"{host}:{port}") in self._hosts

    def resolved(self, address: str, port: int) -> None:
        """Record an address of a named host, for `leads_to`."""
        self._places.add((address, port))

    def leads_to(self, address: str, port: int) -> bool:
        """Return whether a named host is at this address."""
        return (address, port) in self._places or self.names(address, port)


def check_url(text: str, allowed: AllowedHosts, base: URL | None = None) -> URL:
    """Return the URL to request. `base` is the URL that redirects to it.

    Raises FetchError: bad_url, bad_scheme, private_address.
    """
    text = text.strip()
    try:
        url = URL(text, encoded=_AS_IT_IS.fullmatch(text) is not None)
        url = base.join(url) if base else url
        host, port = url.raw_host or "", url.port
    except (ValueError, TypeError) as error:
        raise FetchError("bad_url", str(error)) from error
    if url.scheme and url.scheme not in _SCHEMES:
        raise FetchError("bad_scheme", url.scheme)
    bracketed = "[" in url.raw_authority.rpartition("@")[2]
    if not url.scheme or not port or bracketed != (":" in host):  # in brackets there is an IPv6 address
        raise FetchError("bad_url", text)
    address = _written_address(host)
    if address and not is_public(address) and not allowed.names(host, port):
        raise FetchError("private_address", f"{host}:{port}")
    if not _possible(host):
        raise FetchError("bad_url", text)
    return url


def check_target(location: str, allowed: AllowedHosts, base: URL) -> URL:
    """Return the URL that a Location header, as aiohttp decodes it, redirects to. Raises FetchError as `check_url`.

    Bytes of any encoding are percent-encoded unchanged, as by browsers, curl and urllib. Only the host is decoded as
    text, which must be UTF-8.
    """
    location = location.strip()
    host = _UP_TO_PATH.match(location)
    rest = location[host.end() :] if host else location
    quoted = quote(rest.encode("utf-8", "surrogateescape"), safe=_SAFE)
    return check_url((host[0] if host else "") + quoted, allowed, base)


def _possible(host: str) -> bool:
    """Return whether a host is valid. DNS has no empty label, no label over 63 bytes, no name over 253; a label that
    begins as punycode must be valid punycode.

    A host that ends in a number is an IPv4 address, as in the WHATWG's URL standard, and must be four decimal numbers:
    the short, octal and hexadecimal forms (`1.1` is 1.0.0.1) are refused, as resolvers and aiohttp disagree on them.
    """
    if ":" in host:
        return _IPV6.fullmatch(host) is not None and _is_address(host)
    name = host.removesuffix(".").lower()
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _is_address(host)
    return (
        _NAME.fullmatch(name) is not None
        and len(name) <= 253
        and all(0 < len(label) <= 63 for label in labels)
        and all(_is_punycode(label[4:]) for label in labels if label.startswith("xn--"))
    )


def _is_punycode(text: str) -> bool:
    try:
        return bool(text.encode("ascii").decode("punycode"))
    except (UnicodeError, ValueError, OverflowError):
        return False


def _is_address(host: str) -> bool:
    """Return whether a host is an IPv4 address of four decimal numbers, or an IPv6 address."""
    try:
        ip_address(host.split("%", 1)[0])
    except ValueError:
        return False
    return True


def _written_address(host: str) -> str | None:
    """Return the address that a host denotes, also in the old forms (2130706433, 0x7f.1), or None for a name."""
    if _is_address(host):
        return str(ip_address(host.split("%", 1)[0]))
    try:
        return socket.inet_ntoa(socket.inet_aton(host.rstrip(".")))
    except (OSError, ValueError):  # a NUL, a lone surrogate
        return None


class PrivateAddressError(OSError):
    """A name or a connection refers to an address that is not public."""


class PublicResolver(AbstractResolver):
    """Resolves names, and refuses those with any address that is not public, unless the recipe names the host."""

    def __init__(self, allowed: AllowedHosts, resolver: AbstractResolver | None = None) -> None:
        self._allowed = allowed
        self._resolver = resolver or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of `host`. Raises PrivateAddressError, or OSError if it has none."""
        found = await self._resolver.resolve(host, port, family)
        if self._allowed.names(host, port):
            for place in found:
                self._allowed.resolved(place["host"], port)
            return found
        for place in found:
            if not is_public(place["host"]):
                raise PrivateAddressError(f"{host} is {place['host']}")
        return found

    async def close(self) -> None:
        """Close the wrapped resolver."""
        await self._resolver.close()


def public_socket(allowed: AllowedHosts) -> Any:
    """Return a socket factory for aiohttp's connector that refuses addresses that are not public."""

    def make(info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        host, port = str(address[0]), int(address[1])
        if not is_public(host) and not allowed.leads_to(host, port):
            raise PrivateAddressError(f"{host}:{port}")
        return socket.socket(family=family, type=kind, proto=protocol)

    return make
