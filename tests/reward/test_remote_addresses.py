"""Where remote rewards may go: spellings of hosts, kinds of addresses, redirects, names that change their address.

The parts on attacks show first that an unguarded client is led astray, then that the guard is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from faulty_server import FakeResolver, bare_post, faulty, serving, started
from hypothesis import given
from hypothesis import strategies as st

from areal_x.api.errors import ConfigError
from areal_x.api.reward_api import AsyncRewardWrapper
from areal_x.api.reward_records import RewardError
from areal_x.reward.remote import RemoteReward, RemoteRewardError
from areal_x.reward.remote.addresses import address_kind
from areal_x.reward.remote.servers import ServerSet
from areal_x.reward.remote.urls import HostPolicy, TargetError, check_address, parse_host, parse_url

KINDS = {
    "public": ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"],
    "loopback": [
        "127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "2001:db9::5efe:7f00:1", "2001:db9::200:5efe:7f00:1",
    ],
    "private": [
        "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255", "fc00::1",
        "fd12::1", "fec0::1", "::ffff:10.0.0.1", "64:ff9b::10.1.2.3", "2002:c0a8:101::1",
    ],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.1.1"],
    "metadata": [
        "169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fd20:ce::254", "169.254.170.2",
    ],
    "reserved": [
        "0.0.0.0", "0.1.2.3", "192.0.2.1", "198.18.0.1", "203.0.113.9", "224.0.0.1", "255.255.255.255", "240.0.0.1",
        "::", "ff02::1", "2001:db8::1", "100::1", "::ffff:0.0.0.0", "64:ff9b:1::1", "4000::1", "2001::1",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in KINDS.items() for text in texts])
def test_kinds_of_addresses(kind: str, text: str) -> None:
    assert address_kind(ipaddress.ip_address(text)) == kind


@given(st.ip_addresses(v=4))
def test_what_the_standard_library_calls_private_is_never_public(address: ipaddress.IPv4Address) -> None:
    forms = [
        address,
        ipaddress.IPv6Address(f"::ffff:{address}"),
        ipaddress.IPv6Address(f"64:ff9b::{address}"),
        ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80)),
        ipaddress.IPv6Address(f"2600::5efe:{address}"),
    ]
    kinds = {address_kind(form) for form in forms}
    if not address.is_global or address.is_multicast:
        assert "public" not in kinds
    else:
        assert len(kinds) == 1


@given(st.ip_addresses(v=6))
def test_ipv6_that_is_not_global_is_never_public(address: ipaddress.IPv6Address) -> None:
    if address_kind(address) == "public":
        inner = address.ipv4_mapped
        assert inner.is_global if inner else address.is_global and not address.is_multicast


HOSTS: list[tuple[str, str]] = [
    ("example.com", "example.com"),
    ("Rewards.EXAMPLE.com.", "rewards.example.com"),
    ("reward_server-1", "reward_server-1"),
    ("xn--bcher-kva.de", "xn--bcher-kva.de"),
    ("127.0.0.1", "127.0.0.1"),
    ("[0:0::1]", "::1"),
    ("[FE80::1]", "fe80::1"),
    ("0x7f.example", "0x7f.example"),
]
SPELLINGS = [
    "2130706433", "0x7f000001", "0X7F000001", "017700000001", "0x7f.1", "0177.0.0.1", "127.1", "127.0.1", "0",
    "127.0.0.1.", "127.0.0.01", "0127.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]",
]  # fmt: skip
NO_HOSTS = [
    "", ".", "a..b", "-a.com", "a-.com", "1.2.3.4.5", "256.256.256.256", "4294967296", "08.1.1.1", "0x",
    "example.1", "example.0x7f", "a b", "a%2eb", "%31%32%37.0.0.1", "１２７.０.０.１", "ⓛocalhost", "bücher.de", "a。b",
    "[::1%25eth0]", "[fe80::1%eth0]", "[1.2.3.4]", "[v1.a]", "[]", "[::1", "::1", "a" * 64 + ".com", "a." * 127 + "com",
    "a,b", "a\x00b", "a\tb", "127.0.0.1\n",
]  # fmt: skip


@pytest.mark.parametrize(("text", "host"), HOSTS)
def test_hosts_have_one_spelling(text: str, host: str) -> None:
    assert parse_host(text)[0] == host


@pytest.mark.parametrize("text", SPELLINGS)
def test_other_spellings_of_addresses_are_refused_with_the_plain_one(text: str) -> None:
    plain = "0.0.0.0" if text == "0" else "87.0.0.1" if text == "0127.0.0.1" else "127.0.0.1"
    with pytest.raises(TargetError, match=f"another spelling of {plain}; write that"):
        parse_url(f"http://{text}/")


@pytest.mark.parametrize("text", NO_HOSTS)
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(TargetError):
        parse_url(f"http://{text}/score")


def number_forms(value: int) -> list[str]:
    return [str(value), hex(value), hex(value).upper(), f"0{value:o}", f"00{value:o}", f"0x000{value:x}"]


@given(st.ip_addresses(v=4), st.data())
def test_every_spelling_that_resolvers_take_is_seen_through(
    address: ipaddress.IPv4Address, data: st.DataObject
) -> None:
    """One to four parts, each decimal, octal or hexadecimal, as ``inet_aton`` reads them."""
    octets = list(address.packed)
    count = data.draw(st.integers(1, 4))
    rest = int.from_bytes(bytes(octets[count - 1 :]), "big")
    parts = [data.draw(st.sampled_from(number_forms(value))) for value in [*octets[: count - 1], rest]]
    text = ".".join(parts)
    assert socket.inet_aton(text) == address.packed
    if text == str(address):
        assert parse_host(text) == (text, address)
    else:
        with pytest.raises(TargetError, match=f"another spelling of {address};"):
            parse_host(text)


@given(st.text(st.sampled_from("0123456789abcdefx.:[]%-_@/\\# ?１。"), max_size=24))
def test_what_passes_as_a_name_is_no_address_to_the_resolver(text: str) -> None:
    try:
        target = parse_url(f"http://{text}")
    except TargetError:
        return
    if target.address is None:
        with pytest.raises(OSError):
            socket.inet_aton(target.host)
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo(target.host, 80, flags=socket.AI_NUMERICHOST)
    else:
        assert ipaddress.ip_address(target.host) == target.address
    assert parse_url(target.url) == target


URLS = [
    ("HTTP://Example.com", "http://example.com:80/"),
    ("https://example.com?a=1#part", "https://example.com:443/?a=1"),
    ("http://example.com./a/../b%20c", "http://example.com:80/a/../b%20c"),
    ("http://[::1]:8000/score", "http://[::1]:8000/score"),
]
BAD_URLS = [
    ("http://user:pw-5ecret@example.com/", "a user name or password before 'example.com'"),
    ("http://rewards.example.com@evil.example/", "a user name or password before 'evil.example'"),
    ("http://example.com\\@evil.example/", "without spaces and backslashes"),
    ("http://exam\tple.com/", "printable ASCII"),
    (" http://example.com/", "printable ASCII"),
    ("http://bücher.de/", "its xn-- form"),
    ("file:///etc/passwd", "not an http:// or https:// URL"),
    ("user:pw-5ecret@example.com", "not an http:// or https:// URL"),
    ("http//user:pw-5ecret@example.com", "not an http:// or https:// URL"),
    ("http://user:pw-5ecret/x@example.com/", "an '@' in a URL that cannot be read"),
    ("http://pw-5ecret-/x@example.com/", "an '@' in a URL that cannot be read"),
    ("gopher://127.0.0.1/", "not an http:// or https:// URL"),
    ("//example.com/", "not an http"),
    ("http:example.com", "not an http"),
    ("http:/example.com", "not an http"),
    ("http://example.com:0/", "port 0"),
    ("http://example.com:65536/", "port 65536"),
    ("http://example.com:8a/", "cannot be read"),
    ("http://a:1:2/", "cannot be read"),
    ("http://[::1]x/", "cannot be read"),
]


@pytest.mark.parametrize(("text", "url"), URLS)
def test_urls_are_made_anew_from_their_parts(text: str, url: str) -> None:
    assert parse_url(text).url == url


@pytest.mark.parametrize(("text", "message"), BAD_URLS)
def test_bad_urls_are_refused_without_showing_secrets(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        parse_url(text)
    assert "pw-5ecret" not in str(caught.value)


PASSES: list[tuple[list[str] | None, bool, str, bool]] = [
    # allowed_hosts, allow_private, address that rewards.example.com resolves to, passes
    (None, False, "93.184.216.34", True),
    (None, False, "10.0.0.5", False),
    (None, False, "127.0.0.1", False),
    (None, True, "10.0.0.5", True),
    (None, True, "127.0.0.1", True),
    (None, True, "::1", True),
    (None, True, "169.254.169.254", False),
    (None, True, "::ffff:169.254.169.254", False),
    (None, True, "fe80::1", False),
    (None, True, "0.0.0.0", False),
    (["rewards.example.com"], False, "10.0.0.5", False),
    (["rewards.example.com", "10.0.0.0/8"], False, "10.0.0.5", True),
    (["rewards.example.com", "10.0.0.0/8"], False, "192.168.0.1", False),
    (["rewards.example.com:80", "10.0.0.5"], False, "10.0.0.5", True),
    (["rewards.example.com", "10.0.0.5"], False, "10.0.0.6", False),
    (["rewards.example.com", "fd00::/8"], False, "fd12::1", True),
    (["rewards.example.com", "169.254.169.254"], False, "169.254.169.254", True),
]


@pytest.mark.parametrize(("allowed", "private", "address", "passes"), PASSES)
def test_addresses_that_names_may_have(allowed: list[str] | None, private: bool, address: str, passes: bool) -> None:
    policy = HostPolicy.of([parse_url("http://rewards.example.com/")], allowed, private)
    outcome = contextlib.nullcontext() if passes else pytest.raises(TargetError, match="resolves to the")
    with outcome:
        check_address(policy, "rewards.example.com", ipaddress.ip_address(address))


def test_localhost_may_be_a_loopback_address_and_nothing_else_private() -> None:
    policy = HostPolicy.of([parse_url("http://localhost:8000/")], None, False)
    check_address(policy, "localhost", ipaddress.ip_address("::1"))
    for host, address in (("localhost", "10.0.0.1"), ("localhost.example", "127.0.0.1")):
        with pytest.raises(TargetError):
            check_address(policy, host, ipaddress.ip_address(address))


def test_a_configured_address_is_that_address_and_port_alone() -> None:
    policy = HostPolicy.of([parse_url("http://10.0.0.5:8000/score")], None, False)
    policy.check_target(parse_url("http://10.0.0.5:8000/other"))
    for other in ("http://10.0.0.5/", "http://10.0.0.6:8000/", "http://169.254.169.254/latest"):
        with pytest.raises(TargetError, match=r"is not in allowed_hosts \(10\.0\.0\.5:8000\); add"):
            policy.check_target(parse_url(other))


# ---- Attacks. A "public" server listens on 127.0.0.2, which is allowed by name; 127.0.0.1 stands for the inside. ----

PUBLIC = "127.0.0.2"
HOST = "rewards.example.com"
SECRET = "a-very-secret-token-5431"


class Inside:
    """A service that only this machine may reach, and what got through to it."""

    port = 0

    def __init__(self) -> None:
        self.reached: list[tuple[str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.reached.append((request.method, dict(request.headers)))
        return web.json_response({"reward": 1.0, "inside": True})


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    service = Inside()
    async with serving(service.handle, "127.0.0.1") as service.port:
        yield service


@contextlib.asynccontextmanager
async def public_server(location: str, status: int = 307) -> AsyncIterator[int]:
    async def handle(request: web.Request) -> web.Response:
        if request.path == "/final":
            headers = dict(request.headers)
            has_secrets = (headers.get("Authorization"), headers.get("X-Key")) == (f"Bearer {SECRET}", SECRET)
            return web.json_response({"reward": 0.5, "has_secrets": has_secrets, "headers": headers})
        return web.Response(status=status, headers={"Location": location})

    async with serving(handle, PUBLIC) as port:
        yield port


def resolver() -> FakeResolver:
    return FakeResolver(rewards_example_com=[PUBLIC], inside_example=["127.0.0.1"])


LISTED = {"allowed_hosts": [HOST, PUBLIC], "max_attempts": 2}
WAYS_INSIDE = [
    "http://127.0.0.1:{port}/admin",
    "http://localhost:{port}/admin",
    "http://0x7f.1:{port}/admin",
    "http://0x7f000001:{port}/admin",
    "http://0177.0.0.0x1:{port}/admin",
    "http://[::ffff:127.0.0.1]:{port}/admin",
    "http://[::ffff:7f00:1]:{port}/admin",
    "http://user@127.0.0.1:{port}/admin",
    "http://rewards.example.com@127.0.0.1:{port}/admin",
    "http://１２７.０.０.１:{port}/admin",
    "http://127。0。0。1:{port}/admin",
    "http://ⓛocalhost:{port}/admin",
    "http://inside.example:{port}/admin",
    "http://localtest.me:{port}/admin",
    "http://127.0.0.1.nip.io:{port}/admin",
    "//127.0.0.1:{port}/admin",
]


class WithLocalhost(FakeResolver):
    """Also answers what the system's resolver answers: ``localhost`` and numbers."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        with contextlib.suppress(OSError):
            self.names.setdefault(
                host, ["127.0.0.1" if host == "localhost" else socket.inet_ntoa(socket.inet_aton(host))]
            )
        return await super().resolve(host, port, family)


@pytest.mark.parametrize("way", WAYS_INSIDE)
async def test_a_redirect_does_not_lead_inside(way: str, inside: Inside) -> None:
    location = way.format(port=inside.port)
    leading_inside = {name: ["127.0.0.1"] for name in ("inside.example", "localtest.me", "127.0.0.1.nip.io")}
    names = WithLocalhost(rewards_example_com=[PUBLIC], **leading_inside)
    async with public_server(location) as port:
        assert '"inside": true' in await bare_post(f"http://{HOST}:{port}/score", names)
        assert len(inside.reached) == 1
        for max_redirects in (0, 3):
            options: dict[str, Any] = LISTED | {"max_redirects": max_redirects, "resolver": names}
            async with started(f"http://{HOST}:{port}/score", **options) as reward:
                with pytest.raises(RemoteRewardError, match="HTTP 307, a redirect"):
                    await reward(prompt="p", completions="c", answer=1)
                assert reward.metrics()["fault/redirect"] == 1
    assert len(inside.reached) == 1


async def test_a_redirect_to_an_allowed_name_that_leads_inside_is_refused_at_the_connection(inside: Inside) -> None:
    location = f"http://inside.example:{inside.port}/admin"
    async with public_server(location) as port:
        assert '"inside": true' in await bare_post(f"http://{HOST}:{port}/score", resolver())
        options: dict[str, Any] = {"allowed_hosts": [HOST, PUBLIC, "inside.example"], "max_redirects": 1}
        async with started(f"http://{HOST}:{port}/score", resolver=resolver(), **options) as reward:
            with pytest.raises(
                RemoteRewardError, match=r"inside\.example resolves to the loopback address 127\.0\.0\.1"
            ):
                await reward(prompt="p", completions="c", answer=1)
    assert len(inside.reached) == 1


async def test_the_metadata_service_is_out_of_reach() -> None:
    """Nothing is sent there in a test: the unguarded client is stopped when it makes its socket."""
    names, wanted = FakeResolver(rewards_example_com=["169.254.169.254"]), []

    def no_socket(address: Any) -> socket.socket:
        wanted.append(address[4])
        raise OSError("stopped")

    connector = aiohttp.TCPConnector(resolver=names, socket_factory=no_socket)
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.post(f"http://{HOST}:80/latest/meta-data")
    assert wanted == [("169.254.169.254", 80)]
    async with started(f"http://{HOST}:80/x", resolver=names, allow_private=True) as reward:
        with pytest.raises(RemoteRewardError, match=r"resolves to the metadata address 169\.254\.169\.254; add '169"):
            await reward(prompt="p", completions="c", answer=1)
        assert reward.metrics()["fault/refused"] == 1 and reward.metrics()["fault/connect"] == 0


async def test_a_name_that_changes_its_address_is_checked_at_each_connection(inside: Inside) -> None:
    """Rebinding: the first answer is the public server, the next one is the inside."""

    async def close_after_reply(request: web.Request) -> web.Response:
        return web.json_response({"reward": 0.5}, headers={"Connection": "close"})

    async with serving(close_after_reply, PUBLIC, inside.port):
        url = f"http://{HOST}:{inside.port}/score"
        names = FakeResolver(rewards_example_com=[PUBLIC, "127.0.0.1"])
        assert "inside" not in await bare_post(url, names)
        assert "inside" in await bare_post(url, names)
        names = FakeResolver(rewards_example_com=[PUBLIC, "127.0.0.1"])
        async with started(url, resolver=names, **LISTED) as reward:
            assert await reward(prompt="p", completions="c", answer=1) == {"reward": 0.5}
            with pytest.raises(RemoteRewardError, match="resolves to the loopback address"):
                await reward(prompt="p", completions="c", answer=1)
            assert names.asked[HOST] == 2
    assert len(inside.reached) == 1


async def test_a_check_before_the_connection_is_beaten_and_the_guard_is_not(inside: Inside) -> None:
    """The usual guard asks for the address, checks it, and lets the client ask again. Ours asks once for both."""

    async def checks_first(url: str, names: FakeResolver) -> str:
        answer = await names.resolve(HOST)
        assert answer[0]["host"] == PUBLIC
        return await bare_post(url, names)

    url = f"http://{HOST}:{inside.port}/score"
    assert "inside" in await checks_first(url, FakeResolver(rewards_example_com=[PUBLIC, "127.0.0.1"]))
    names = FakeResolver(rewards_example_com=[PUBLIC, "127.0.0.1"])
    async with started(url, resolver=names, max_attempts=1, allowed_hosts=[HOST, PUBLIC]) as reward:
        # Nobody listens at the public address: the connection goes there and nowhere else.
        with pytest.raises(RemoteRewardError, match="cannot connect"):
            await reward(prompt="p", completions="c", answer=1)
    assert names.asked[HOST] == 1 and len(inside.reached) == 1


async def test_one_bad_address_among_good_ones_refuses_the_name(inside: Inside) -> None:
    url = f"http://{HOST}:{inside.port}/score"
    names = FakeResolver(rewards_example_com=[["192.0.2.1", "127.0.0.1"]])
    assert "inside" in await bare_post(url, names)
    async with started(url, resolver=names, allowed_hosts=[HOST, "192.0.2.0/24"]) as reward:
        with pytest.raises(RemoteRewardError, match="loopback"):
            await reward(prompt="p", completions="c", answer=1)
    assert len(inside.reached) == 1


@pytest.mark.parametrize("spelling", ["2130706433", "017700000001", "127.1", "0x7f.1"])
def test_a_configured_url_in_another_spelling_is_refused(spelling: str) -> None:
    """A client that asks the system takes them all for 127.0.0.1, past a list of forbidden texts."""
    assert socket.getaddrinfo(spelling, 80)[0][4][0] == "127.0.0.1"
    with pytest.raises(ConfigError, match=r"another spelling of 127\.0\.0\.1; write that"):
        RemoteReward(urls=f"http://{spelling}/", allowed_hosts=["rewards.example.com"])


async def test_decimal_form_reaches_the_inside_without_the_guard(inside: Inside) -> None:
    def request() -> bytes:
        connection = http.client.HTTPConnection("2130706433", inside.port, timeout=5)
        connection.request("POST", "/", b"{}", {"Content-Type": "application/json"})
        body = connection.getresponse().read()
        connection.close()
        return body

    assert b"inside" in await asyncio.to_thread(request)
    with pytest.raises(ConfigError, match="another spelling"):
        RemoteReward(urls=f"http://2130706433:{inside.port}/")


async def test_redirects_are_followed_to_allowed_hosts_and_secrets_stay_at_home(
    inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", SECRET)
    secret = {"headers_env": {"Authorization": "Bearer {REWARD_TOKEN}", "X-Key": "REWARD_TOKEN"}}
    inside_url = f"http://127.0.0.1:{inside.port}/score"
    url = f"http://{PUBLIC}:{{}}/a"
    async with public_server("/final") as port, started(url.format(port), max_redirects=1, **secret) as reward:
        result = await reward(prompt="p", completions="c", answer=1)
        assert result["has_secrets"]
        assert result["headers"]["Authorization"] == result["headers"]["X-Key"] == "<secret>"
    async with public_server(inside_url) as port:
        # An unguarded client drops Authorization there, and hands over any other secret header.
        await bare_post(f"http://{PUBLIC}:{port}/a", headers={"X-Key": SECRET})
        assert inside.reached.pop()[1]["X-Key"] == SECRET
        hosts = [PUBLIC, "127.0.0.1"]
        async with started(f"http://{PUBLIC}:{port}/a", max_redirects=1, allowed_hosts=hosts, **secret) as reward:
            assert (await reward(prompt="p", completions="c", answer=1))["inside"]
    assert SECRET not in json.dumps(inside.reached.pop())


@pytest.mark.parametrize("status", [301, 302, 303])
async def test_redirects_that_drop_the_request_are_errors(status: int, inside: Inside) -> None:
    url, message = f"http://{PUBLIC}:{{}}/a", f"HTTP {status}, a redirect to .* that drops the request's body"
    async with public_server("/final", status) as port, started(url.format(port), max_redirects=2) as reward:
        with pytest.raises(RemoteRewardError, match=message):
            await reward(prompt="p", completions="c", answer=1)


async def test_circles_of_redirects_end() -> None:
    async with public_server("/again") as port, started(f"http://{PUBLIC}:{port}/a", max_redirects=3) as reward:
        with pytest.raises(RemoteRewardError, match="more than max_redirects=3 redirects"):
            await reward(prompt="p", completions="c", answer=1)


async def test_a_proxy_of_the_environment_is_not_used(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
    async with faulty() as server, started(server.url) as reward:
        assert (await reward(prompt="p", completions="abc", answer=1))["reward"] == 3.0
    assert inside.reached == []


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_secrets_appear_in_no_error_and_no_repr(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even when the server sends them back."""
    monkeypatch.setenv("REWARD_TOKEN", SECRET)

    async def echo(request: web.Request) -> web.Response:
        return web.Response(status=status, text=f"no Bearer? denied: {request.headers['Authorization']}")

    async with serving(echo) as port:
        url = f"http://127.0.0.1:{port}/score?api_key={SECRET}"
        options: dict[str, Any] = {"headers_env": {"Authorization": "Bearer {REWARD_TOKEN}"}, "max_attempts": 2}
        async with started(url, **options) as reward:
            outcome = await AsyncRewardWrapper(reward).outcome("p", "c", answer=1)
            assert outcome.status == "error" and "no Bearer? denied: <secret>" in str(outcome.error)
            shown = [
                str(outcome),
                repr(reward),
                repr(reward._secrets),
                repr(reward._client),
                json.dumps(reward.metrics()),
            ]
            assert not [text for text in shown if SECRET in text]


REPEATS: dict[str, Callable[[str], web.Response]] = {
    # what the server does with the secret -> its response
    "a string": lambda key: web.json_response(f"denied: {key}"),
    "a string in JSON of its own": lambda key: web.Response(body=json.dumps(key).encode().replace(b"v", b"\\u0076")),
    "a list": lambda key: web.json_response(["x" * 60, key]),
    "the name of a key": lambda key: web.json_response({key: 1, "reward": 2}),
    "capitals": lambda key: web.Response(status=400, text=key.upper()),
    "percent signs": lambda key: web.Response(status=400, text=quote(key)),
    "JSON in an error": lambda key: web.json_response({"error": key}, status=400),
    "the encoding": lambda key: web.Response(headers={"Content-Encoding": key}, body=b"1"),
    "a long encoding": lambda key: web.Response(headers={"Content-Encoding": "x" * 30 + key}, body=b"1"),
    "a host": lambda key: web.Response(status=307, headers={"Location": f"http://{key}.example.com/"}),
    "a host in pieces": lambda key: web.Response(status=307, headers={"Location": f"http://{key[:9]}\t{key[9:]}.a.com/"}),
    "no host": lambda key: web.Response(status=307, headers={"Location": f"http://{'x' * 70}{key}?/"}),
    "no URL": lambda key: web.Response(status=307, headers={"Location": f"gopher:{'x' * 25}{key}"}),
    "over and over": lambda key: web.Response(status=500, text=key * 100),
    "over and over with accents": lambda key: web.Response(status=500, text=("é" * 7 + key) * 100),
}  # fmt: skip


@pytest.mark.parametrize(
    "key", ["tOkEn-val9x.Q7_zW", 'to"k\\en-val9x/Q7+zW', "tOkEnval" * 400], ids=["word", "escaped", "long"]
)
@pytest.mark.parametrize("way", REPEATS)
async def test_no_way_of_repeating_a_secret_shows_a_part_of_it(
    way: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if len(key) > 100 and "host" in way:
        key = key[:100]
    monkeypatch.setenv("REWARD_TOKEN", key)

    async def repeat(request: web.Request) -> web.Response:
        return REPEATS[way](request.headers["X-Key"])

    async with serving(repeat) as port:
        options: dict[str, Any] = {"headers_env": {"X-Key": "REWARD_TOKEN"}, "max_attempts": 2, "max_redirects": 1}
        options["shape"] = "openrlhf" if "name" in way else "slime"
        async with started(f"http://127.0.0.1:{port}/", **options) as reward:
            with pytest.raises(RewardError) as caught:
                await reward(prompt="p", completions="c", answer=1)
    assert_holds_no_part(str(caught.value), key)


def assert_holds_no_part(shown: str, key: str) -> None:
    parts = {part.lower() for form in (key, quote(key)) for part in (form[i : i + 5] for i in range(len(form) - 4))}
    assert not [part for part in parts if part in shown.replace("<secret>", "").lower()], shown


@pytest.mark.parametrize("offset", range(260, 301, 4))
async def test_a_secret_across_the_cut_of_an_error_is_hidden_whole(
    offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_TOKEN", SECRET)

    async def late(request: web.Request) -> web.Response:
        return web.Response(status=400, text="." * offset + request.headers["X-Key"] + "." * 5000)

    options = {"headers_env": {"X-Key": "REWARD_TOKEN"}}
    async with serving(late) as port, started(f"http://127.0.0.1:{port}/", **options) as reward:
        with pytest.raises(RemoteRewardError, match="[.]" * 260) as caught:
            await reward(prompt="p", completions="c", answer=1)
    assert_holds_no_part(str(caught.value), SECRET)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("shape", ["slime", "openrlhf"])
async def test_a_secret_in_a_reward_does_not_reach_the_records(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_TOKEN", SECRET)

    async def debug(request: web.Request) -> web.Response:
        seen = {"headers": [f"got {request.headers['Authorization']}"], SECRET: 1, "length": 3}
        return web.json_response(
            {"reward": 0.5, "debug": seen} if shape == "slime" else {"rewards": [0.5], "extra_logs": {"debug": seen}}
        )

    async with serving(debug) as port:
        options: dict[str, Any] = {"headers_env": {"Authorization": "Bearer {REWARD_TOKEN}"}, "shape": shape}
        async with started(f"http://127.0.0.1:{port}/", **options) as reward:
            result = await reward(prompt="p", completions="c", answer=1)
            assert result["reward"] == 0.5
            assert result["debug"] == {"headers": ["got <secret>"], "<secret>": 1, "length": 3}


# ---- The pure parts of trying again ----


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["ok", "fault", "gone", "cancel"])), max_size=60))
def test_servers_are_never_lost(events: list[tuple[int, str]]) -> None:
    """Whatever happens, at most one probe per server is out, counts fit, and every server can be asked again."""
    servers = ServerSet([parse_url(f"http://s{number}/") for number in range(2)], cooldown_seconds=1.0)
    now, open_attempts = 0.0, []
    for step, ending in events:
        now += step
        attempt = servers.choose(now, {})
        if attempt is not None:
            open_attempts.append(attempt)
        elif not servers.any_probed():
            assert servers.next_time({}) > now
        probes = [attempt.server for attempt in open_attempts if attempt.is_probe]
        assert len(probes) == len(set(probes)) == sum(server.is_probed for server in servers.servers)
        if open_attempts and step % 2:
            attempt = open_attempts.pop(0)
            if ending == "ok":
                servers.succeeded(attempt)
                assert attempt.server.out_until is None
            elif ending != "cancel":
                servers.failed(attempt, "no", now, at_once=ending == "gone")
            servers.release(attempt)
        assert sum(server.in_flight for server in servers.servers) == len(open_attempts)
    for attempt in open_attempts:
        servers.release(attempt)
    assert servers.next_time({}) < math.inf
    assert servers.choose(now + 1.0 * 16 + 1, {}) is not None


def test_one_fault_takes_out_no_server_and_absence_does() -> None:
    servers = ServerSet([parse_url("http://a/"), parse_url("http://b/")], cooldown_seconds=2.0)
    a, b = servers.servers

    def fail(number: int, now: float, *, at_once: bool) -> None:
        attempt = servers.choose(now, {servers.servers[1 - number]: math.inf})
        assert attempt is not None and attempt.server is servers.servers[number]
        servers.failed(attempt, "no", now, at_once=at_once)
        servers.release(attempt)

    fail(0, 0.0, at_once=False)
    fail(0, 0.0, at_once=False)
    assert a.out_until is None
    fail(0, 0.0, at_once=False)
    fail(1, 1.0, at_once=True)
    assert (a.out_until, b.out_until) == (2.0, 3.0)
    assert servers.choose(1.9, {}) is None and servers.next_time({}) == 2.0
    # Each failed probe doubles the cool-down, up to 16 times the first.
    for pause in (4.0, 8.0, 16.0, 32.0, 32.0):
        now = a.out_until or 0.0
        fail(0, now, at_once=True)
        assert a.out_until == now + pause
