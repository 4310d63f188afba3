"""What an IP address stands for: the public internet, or something that a reward call has no business with.

Sources: the special-purpose registries of IANA (RFC 6890), RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC
5214 (ISATAP), and the metadata services' own pages.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

__all__ = ["AddressKind", "IPAddress", "address_kind", "embedded_ipv4"]

IPAddress = IPv4Address | IPv6Address
AddressKind = Literal["public", "loopback", "private", "link-local", "metadata", "reserved"]

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",  # most clouds
            "169.254.170.2",  # credentials of AWS containers
            "169.254.170.23",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",  # Google, IPv6
            "100.100.100.200",  # Alibaba
            "192.0.0.192",  # Oracle
            "168.63.129.16",  # Azure's host: a public address that leads to the local machine
        ),
    )
)


def _networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(map(ipaddress.ip_network, texts))


_KINDS: tuple[tuple[AddressKind, tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]], ...] = (
    ("loopback", _networks("127.0.0.0/8", "::1/128")),
    ("link-local", _networks("169.254.0.0/16", "fe80::/10")),
    (
        "private",
        _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10"),
    ),
    (
        "reserved",
        _networks(
            "0.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24",
            "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "::/128", "100::/64", "2001::/23", "2001:db8::/32",
            "3fff::/20", "5f00::/16", "ff00::/8",
        ),
    ),
)  # fmt: skip
_PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LAST_32_BITS = tuple(map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "64:ff9b::/96")))
_TEREDO = ipaddress.IPv6Network("2001::/32")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_ISATAP_MARKS = (0x00005EFE, 0x02005EFE)


def address_kind(address: IPAddress) -> AddressKind:
    """What ``address`` stands for; an IPv6 address that carries an IPv4 address is what the IPv4 address is."""
    if isinstance(address, IPv6Address):
        address = IPv6Address(int(address))  # Without a zone (``%eth0``), which would hide it from the table.
    if address in _METADATA:
        return "metadata"
    for inner in embedded_ipv4(address):
        kind = address_kind(inner)
        if kind != "public":
            return kind
    for kind, networks in _KINDS:
        if any(address in network for network in networks if network.version == address.version):
            return kind
    if isinstance(address, IPv6Address) and address not in _PUBLIC_IPV6:
        carries_public = address in _NAT64 or address.ipv4_mapped is not None
        return "public" if carries_public else "reserved"
    return "public"


def embedded_ipv4(address: IPAddress) -> list[IPv4Address]:
    """The IPv4 addresses to which packets for an IPv6 ``address`` may be carried on; empty for an IPv4 address."""
    if isinstance(address, IPv4Address):
        return []
    number = int(address)
    low = number & 0xFFFFFFFF
    found = []
    if number > 1 and any(address in network for network in _LAST_32_BITS):
        found.append(low)
    if address in _SIX_TO_FOUR:
        found.append(number >> 80 & 0xFFFFFFFF)
    if address in _TEREDO:
        found += [number >> 64 & 0xFFFFFFFF, low ^ 0xFFFFFFFF]
    if number >> 32 & 0xFFFFFFFF in _ISATAP_MARKS:
        found.append(low)
    return [IPv4Address(value) for value in found]
