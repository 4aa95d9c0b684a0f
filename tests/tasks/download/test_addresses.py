import asyncio
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from tasks.download._addresses import (
    AllowedHosts,
    PrivateAddressError,
    PublicResolver,
    check_target,
    check_url,
    is_public,
    public_socket,
)
from tasks.download._reasons import FetchError
from tests.hostile_server import HostileServer

PRIVATE = """
127.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 240.0.0.1 255.255.255.255
::1 :: fe80::1 fe80::1%eth0 fec0::1 fc00::1 ff02::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 2002:7f00:1:: 64:ff9b::7f00:1
2001:db8::1
64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b::0.0.0.0 64:ff9b::255.255.255.255
64:ff9b:1::10.0.0.1 64:ff9b:1:7f00:0:100:: 64:ff9b:1:a9fe:a9:fe00:: 64:ff9b:1:7f:0:1:: 64:ff9b:1:c0:a8:100::
64:ff9b:1:0:7f:0:100:0 64:ff9b:1:0:a:0:100:0 64:ff9b:1::
::10.0.0.1 ::ffff:0:127.0.0.1 ::ffff:0:10.0.0.1 ::ffff:0.0.0.0
2002:a00:1:: 2002:a9fe:a9fe::1 2002:c0a8:101::1
2001:0:4136:e378:8000:63bf:f5ff:fffe 2001:0:a00:1:8000:63bf:3fff:fdd2
2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:192.168.0.1 fe80::5efe:8.8.8.8
nonsense
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2002:808:808::", "::ffff:8.8.8.8", "::8.8.8.8"),
        *("64:ff9b::8.8.8.8", "64:ff9b:1::8.8.8.8", "64:ff9b:1:808:8:800::", "64:ff9b:1:8:8:808::"),
        *("2001:0:808:808:8000:63bf:f7f7:f7f7", "2606:4700::5efe:8.8.8.8", "::ffff:0:8.8.8.8"),
    ],
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "bad_url"),
        ("not a url", "bad_url"),
        ("UNLIKELY", "bad_url"),
        ("//host/x.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("http:///x.jpg", "bad_url"),
        ("http://h:99999/", "bad_url"),
        ("http://a b/", "bad_url"),
        ("http://a\0b/", "bad_url"),
        ("http://[::1", "bad_url"),
        ("http://a..b/", "bad_url"),
        ("http://.a/", "bad_url"),
        ("http://a../", "bad_url"),
        (f"http://{'a' * 64}.com/", "bad_url"),
        (f"http://{'ü' * 60}.com/", "bad_url"),
        (f"http://{'a.' * 127}com/", "bad_url"),
        ("http://a%20b/", "bad_url"),
        ("http://a%00.com/", "bad_url"),
        ("http://xn--/", "bad_url"),
        ("http://a.xn--\u00fc.com/", "bad_url"),
        ("http://xn--99999999999.com/", "bad_url"),
        ("http://\udcfc.com/", "bad_url"),
        ("http://*.a.com/", "bad_url"),
        ("http://h:0/", "bad_url"),
        ("http://h:-1/", "bad_url"),
        ("http://h:80a/", "bad_url"),
        ("http://h:80:80/", "bad_url"),
        ("http://:80/", "bad_url"),
        ("file:///etc/passwd", "bad_scheme"),
        ("ftp://example.com/x.jpg", "bad_scheme"),
        ("data:image/png;base64,AAAA", "bad_scheme"),
        ("javascript:alert(1)", "bad_scheme"),
        # a host that ends in a number is an IPv4 address, of four decimal numbers
        *((f"http://{host}/", "bad_url") for host in ("1.1", "8.8", "1.2.3", "134744072", "010.010.010.010", "0x8.8")),
        *((f"http://{host}/", "bad_url") for host in ("1.2.3.4.5", "1.2.3.256", "4294967296", "1.16777216", "09.1")),
        *((f"http://{host}/", "bad_url") for host in ("foo.1", "foo.0x1", "1.0x", "8.8.8.8.", "1.1.", "1。1", "①.1")),
        ("http://[:::]/", "bad_url"),
        ("http://[1:2:3:4:5:6:7:8:9]/", "bad_url"),
        ("http://[]/", "bad_url"),
        ("http://[v1.a]/", "bad_url"),
        ("http://1/", "private_address"),
        ("http://10.1/", "private_address"),
        ("http://[::1%25lo]/", "private_address"),
        ("http://127.0.0.1/", "private_address"),
        ("http://2130706433/", "private_address"),
        ("http://0x7f.1/", "private_address"),
        ("http://0177.0.0.1/", "private_address"),
        ("http://127.1/", "private_address"),
        ("http://127.0.0.1./", "private_address"),
        ("http://[::1]/", "private_address"),
        ("http://[::ffff:169.254.169.254]/latest/meta-data", "private_address"),
        ("http://user:secret@10.0.0.1/", "private_address"),
        ("http://１２７.0.0.1/", "private_address"),
    ],
)
def test_urls_that_are_refused_before_any_request(url: Any, reason: Any) -> None:
    with pytest.raises(FetchError) as caught:
        check_url(url, AllowedHosts())
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://h/a%2Fb%7e?x=%2b&y=a+b", "/a%2Fb%7e?x=%2b&y=a+b"),  # a signed spelling stays
        ("  https://h/x \n", "/x"),
        ("https://bücher.example/ü?q=ä b", "/%C3%BC?q=%C3%A4+b"),
        ("HTTP://h?x", "/?x"),
    ],
)
def test_urls_are_sent_unchanged_or_quoted(url: str, sent: str) -> None:
    assert check_url(url, AllowedHosts()).raw_path_qs == sent


@pytest.mark.parametrize(
    "url",
    [
        f"http://{'a' * 63}.com/",
        "http://a_b.-c-.com./",
        "http://xn--bcher-kva.example/",
        "http://user:pass@h/",
        "http://h:/",
        "http://-/",
        "http://-a.com/",
        "http://1.2.3.4x/",
        "http://1.com/",
        "http://a.1b./",
        "http://8.8.8.8/",
        "http://[2606:4700::1111]:81/",
    ],
)
def test_unusual_hosts_that_are_valid(url: str) -> None:
    assert check_url(url, AllowedHosts()).raw_host


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("c.jpg", "http://h/a/c.jpg"),
        ("//o/x?y#z", "http://o/x?y#z"),
        ("?x=1", "http://h/a/b?x=1"),
        ("  /x\t", "http://h/x"),
        ("/c d.jpg?e=f g", "http://h/c%20d.jpg?e=f%20g"),
        ("/\udce9.jpg", "http://h/%E9.jpg"),  # Latin-1
        ("/é.jpg", "http://h/%C3%A9.jpg"),  # UTF-8
        ("/\udc93\udcfa\udc96{.jpg", "http://h/%93%FA%96%7B.jpg"),  # Shift JIS
        ("/a\udcff?b=\udcfe", "http://h/a%FF?b=%FE"),
        ("/%E9%2f%zz%7e", "http://h/%E9%2f%zz%7e"),  # a signed spelling stays
        ("http://bücher.example/\udce9", "http://xn--bcher-kva.example/%E9"),
        ("HTTPS://o/", "https://o/"),
    ],
)
def test_targets_of_locations(location: str, target: str) -> None:
    base = check_url("http://h/a/b?q", AllowedHosts())
    assert str(check_target(location, AllowedHosts(), base)) == target


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://b\udcfccher.example/", "bad_url"),
        ("http://a b/", "bad_url"),
        ("http://h:0/", "bad_url"),
        (f"//{'a' * 64}/", "bad_url"),
        ("javascript:alert(1)", "bad_scheme"),
        ("//10.0.0.1/\udce9", "private_address"),
        ("http://[::ffff:10.0.0.1]/", "private_address"),
    ],
)
def test_locations_that_are_refused(location: str, reason: str) -> None:
    with pytest.raises(FetchError) as caught:
        check_target(location, AllowedHosts(), check_url("http://h/", AllowedHosts()))
    assert caught.value.reason == reason


def test_allowed_hosts_are_exact() -> None:
    allowed = AllowedHosts(["127.0.0.1:8000", "Intranet", "[::1]:9000"])
    for url in ("http://127.0.0.1:8000/x", "http://intranet/x", "http://INTRANET:81/x", "http://[::1]:9000/"):
        check_url(url, allowed)
    for url in ("http://127.0.0.1:8001/x", "http://127.0.0.2:8000/", "http://[::1]/", "http://2130706433:8000/"):
        with pytest.raises(FetchError):
            check_url(url, allowed)


def test_a_redirect_is_checked_like_a_url() -> None:
    base = check_url("http://example.com/a/b", AllowedHosts())
    assert str(check_url("../c.jpg", AllowedHosts(), base)) == "http://example.com/c.jpg"
    for target, reason in (("//10.0.0.1/x", "private_address"), ("file:///etc/passwd", "bad_scheme")):
        with pytest.raises(FetchError) as caught:
            check_url(target, AllowedHosts(), base)
        assert caught.value.reason == reason


class Scripted(AbstractResolver):
    """Returns its addresses in turn, then the last one always."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        return [{"hostname": host, "host": a, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
                for a in address.split()]  # fmt: skip

    async def close(self) -> None:
        pass


def test_a_name_is_refused_if_any_of_its_addresses_is_private() -> None:
    resolver = PublicResolver(AllowedHosts(), Scripted("8.8.8.8 10.0.0.1"))
    with pytest.raises(PrivateAddressError, match=r"10\.0\.0\.1"):
        asyncio.run(resolver.resolve("sly.example", 80))


def test_every_resolution_of_a_name_is_checked() -> None:
    resolver = PublicResolver(AllowedHosts(), Scripted("8.8.8.8", "127.0.0.1"))
    assert asyncio.run(resolver.resolve("rebind.example", 80))[0]["host"] == "8.8.8.8"
    with pytest.raises(PrivateAddressError):
        asyncio.run(resolver.resolve("rebind.example", 80))


def test_the_socket_refuses_private_addresses(server: HostileServer) -> None:
    """Even with a resolver that does not check, the connector opens no private connection."""

    async def ask(allowed: AllowedHosts) -> int:
        connector = aiohttp.TCPConnector(resolver=Scripted("127.0.0.1"), socket_factory=public_socket(allowed))
        url = f"http://rebind.example:{server.port}/none"
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as response:
            return response.status

    with pytest.raises(aiohttp.ClientConnectorError) as caught:
        asyncio.run(ask(AllowedHosts()))
    assert isinstance(caught.value.os_error, PrivateAddressError)
    assert asyncio.run(ask(AllowedHosts([f"127.0.0.1:{server.port}"]))) == 404


def test_an_allowed_name_may_have_any_address_for_itself_only() -> None:
    allowed = AllowedHosts(["store.internal:9000"])
    resolver = PublicResolver(allowed, Scripted("10.0.0.5"))
    assert asyncio.run(resolver.resolve("store.internal", 9000))
    with pytest.raises(PrivateAddressError):
        asyncio.run(resolver.resolve("store.internal", 22))
    with pytest.raises(PrivateAddressError):
        asyncio.run(resolver.resolve("other.example", 9000))
    public_socket(allowed)((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.5", 9000))).close()
    with pytest.raises(PrivateAddressError):
        public_socket(allowed)((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.5", 22)))
