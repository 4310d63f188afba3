"""URLs of reward servers, parsed strictly, and the policy that says which of them may be called.

A host has one spelling here. The others that resolvers understand (``2130706433``, ``0x7f.1``, ``[::ffff:127.0.0.1]``,
wide digits, percent signs, user names before an ``@``) are refused, since two readers may understand them differently.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from areal_x.api.errors import ConfigError
from areal_x.reward.remote.addresses import IPAddress, address_kind

__all__ = ["HostPolicy", "Target", "TargetError", "check_address", "parse_host", "parse_url"]

_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(?:#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_LOOPBACK_NAME = "localhost"


class TargetError(ValueError):
    """A URL or an address that a reward call may not go to. The text shows no user name, password or query."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL. ``host`` is a lower-case ASCII name without a last dot, or the canonical form of ``address``."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query; begins with a slash."""
    address: IPAddress | None

    @property
    def origin(self) -> str:
        """Scheme, host and port: what errors and logs show, since a path or a query may hold a secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL to call, made anew from the parts that were checked."""
        return self.origin + self.path


def parse_url(text: str) -> Target:
    """Parse ``http[s]://host[:port][/path][?query]``.

    Raises:
        TargetError: another scheme, a user name, a host in another than its plain spelling, or characters that do not
            belong into a URL.
    """
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise TargetError(
            "a URL may hold only printable ASCII without spaces and backslashes; percent-encode its path, and write an "
            "international host name in its xn-- form"
        )
    match = _URL.fullmatch(text)
    if match is None:
        shown = "" if "@" in text else f": {text.partition('?')[0][:40]!r}"  # A password stands before an @.
        raise TargetError(f"not an http:// or https:// URL{shown}")
    scheme, authority, path = match[1].lower(), match[2], match[3]
    if "@" in authority:
        is_last = authority.count("@") == text.count("@")
        shown = repr(authority.rpartition("@")[2]) if is_last else "an '@'"
        raise TargetError(f"a URL with a user name or password before {shown}; use headers_env for secrets")
    try:
        host, address, port = _parse_authority(authority, _PORTS[scheme])
    except TargetError:
        if "@" not in text:
            raise
        # What looks like the host may be a user name and part of a password that has a slash.
        raise TargetError(
            "an '@' in a URL that cannot be read; use headers_env for secrets, and write %40 for an '@' of the path"
        ) from None
    return Target(scheme, host, port, path if path.startswith("/") else f"/{path}", address)


def _parse_authority(authority: str, default_port: int) -> tuple[str, IPAddress | None, int]:
    """Host, address and port of ``host[:port]``."""
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise TargetError(f"host {authority[:80]!r} of a URL cannot be read; write host:port, IPv6 as [::1]:port")
    port = int(parts[2] or default_port)
    if not 1 <= port <= 65535:
        raise TargetError(f"port {port} of a URL is not between 1 and 65535")
    return *parse_host(parts[1]), port


def parse_host(text: str) -> tuple[str, IPAddress | None]:
    """The one spelling of a host, and its address where it is one. An IPv6 address stands in brackets.

    Raises:
        TargetError: it is neither a name nor the plain form of an address.
    """
    if text.startswith("["):
        return _parse_ipv6(text[1:-1])
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _parse_ipv4(text, host)
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise TargetError(f"{text[:80]!r} is not a host name")
    return host, None


def _parse_ipv6(text: str) -> tuple[str, IPAddress | None]:
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise TargetError(f"[{text[:80]}] is not an IPv6 address") from None
    if address.scope_id is not None:
        raise TargetError(f"[{text[:80]}] has a zone, which a URL of a reward server may not have")
    if address.ipv4_mapped is not None:
        raise TargetError(f"[{text[:80]}] is another spelling of {address.ipv4_mapped}; write that")
    return str(address), address


def _parse_ipv4(text: str, host: str) -> tuple[str, IPAddress | None]:
    """A host whose last label is a number is an address to every resolver, also as one number, octal or hexadecimal."""
    try:
        plain = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        raise TargetError(f"{text[:80]!r} is neither a host name nor an IPv4 address") from None
    if plain != text:
        raise TargetError(f"{text[:80]!r} is another spelling of {plain}; write that")
    return plain, ipaddress.IPv4Address(plain)


@dataclass(frozen=True)
class HostPolicy:
    """Where calls may go: hosts (with a port, or any: None), addresses and networks that are listed by themselves."""

    hosts: frozenset[tuple[str, int | None]]
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    allow_private: bool = False

    @classmethod
    def of(cls, targets: Sequence[Target], allowed_hosts: Iterable[str] | None, allow_private: bool) -> HostPolicy:
        """The policy for configured ``targets``; without ``allowed_hosts`` exactly their hosts and ports.

        Raises:
            ConfigError: an entry cannot be read, or a target is not allowed.
        """
        if allowed_hosts is None:
            return cls(frozenset((target.host, target.port) for target in targets), (), allow_private)
        hosts: set[tuple[str, int | None]] = set()
        networks: list[IPv4Network | IPv6Network] = []
        for entry in allowed_hosts:
            try:
                networks.append(ipaddress.ip_network(entry))
                continue
            except ValueError:
                pass
            parts = _AUTHORITY.fullmatch(str(entry))
            try:
                if "@" in str(entry):
                    raise TargetError("an entry with an '@' is none of them")
                if parts is None:
                    raise TargetError(f"{str(entry)[:80]!r} is none of them")
                hosts.add((parse_host(parts[1])[0], int(parts[2]) if parts[2] else None))
            except TargetError as error:
                raise ConfigError(
                    f"allowed_hosts holds names, host:port, addresses and networks such as 10.0.0.0/8; {error}"
                ) from None
        policy = cls(frozenset(hosts), tuple(networks), allow_private)
        for target in targets:
            try:
                policy.check_target(target)
            except TargetError as error:
                raise ConfigError(f"urls: {error}") from None
        return policy

    def check_target(self, target: Target) -> None:
        """Raise ``TargetError`` if the URL's host is not on the list."""
        is_named = bool(self.hosts & {(target.host, target.port), (target.host, None)})
        if not is_named and (target.address is None or not self.lists(target.address)):
            listed = sorted(host if port is None else f"{host}:{port}" for host, port in self.hosts)
            allowed = ", ".join([*listed, *map(str, self.networks)])
            raise TargetError(f"{target.origin} is not in allowed_hosts ({allowed}); add {target.host!r} to allow it")

    def lists(self, address: IPAddress) -> bool:
        """Whether ``allowed_hosts`` holds the address, or a network around it."""
        return any(address in network for network in self.networks if network.version == address.version)


def check_address(policy: HostPolicy, host: str, address: IPAddress) -> None:
    """Check an address to which the name ``host`` was resolved, just before a connection to it is made.

    Public addresses pass, and those that the policy lists by themselves. ``allow_private`` opens private and loopback
    addresses; link-local, metadata and reserved ones have to be listed. ``localhost`` may be a loopback address.

    Raises:
        TargetError: the address may not be called.
    """
    kind = address_kind(address)
    if kind == "public" or policy.lists(address):
        return
    if policy.allow_private and kind in ("private", "loopback"):
        return
    if kind == "loopback" and host == _LOOPBACK_NAME:
        return
    fix = f"add {str(address)!r} to allowed_hosts"
    if kind in ("private", "loopback"):
        fix += ", or set allow_private=true,"
    raise TargetError(f"{host} resolves to the {kind} address {address}; {fix} if that is meant")
