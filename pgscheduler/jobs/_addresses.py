"""Which addresses a request may go to: public ones, and those that the node's owner allowed.

Every address of a name is looked at, and the connection is then made to one of those looked at, so that a name
whose address changes in between gains nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pgscheduler import _check as check
from pgscheduler.errors import InvalidTypeError, InvalidValueError, PgSchedulerError, show

__all__ = ["Guard", "HttpBlockedError", "is_public"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: All that IPv6 has for the open internet. What is outside is local, reserved, or made to reach an IPv4 address
#: (mapped, compatible, NAT64), whatever a Python version's `is_global` knows of it.
_OPEN = ipaddress.IPv6Network("2000::/3")
#: Not public although `is_global` says so, in some or all Python versions.
_DOUBTFUL: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "168.63.129.16/32",  # Azure answers its virtual machines there, secrets included
        "192.0.0.0/24",  # protocols' own; Oracle's cloud answers its machines there
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocols' own, Teredo among them
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_.])?\Z")


class HttpBlockedError(PgSchedulerError, PermissionError):
    """A request would have gone where this node does not allow it. Nothing was sent."""

    plain = True


def is_public(address: Address) -> bool:
    """Is it an address of the open internet?"""
    address = _plain(address)
    if isinstance(address, ipaddress.IPv6Address) and address not in _OPEN:
        return False
    if any(address in network for network in _DOUBTFUL if network.version == address.version):
        return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    )


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@dataclass(frozen=True)
class _Rule:
    """One entry of an allow-list: a network or a name, and perhaps one port."""

    host: str | None
    network: Network | None
    port: int | None

    def permits(self, host: str, address: Address, port: int) -> bool:
        if self.port not in (None, port):
            return False
        if self.network is None:
            return host == self.host
        return address.version == self.network.version and address in self.network

    @classmethod
    def of(cls, entry: Any) -> _Rule:
        """From `10.0.0.0/8`, `10.1.2.3`, `10.1.2.3:8080`, `[::1]:8080`, `name`, `name:8080`."""
        if not isinstance(entry, str):
            raise InvalidTypeError("allow", entry, "must hold only str")
        text, port = entry.strip(), None
        found = re.fullmatch(r"(\[[^\]]*\]|[^:]*):(\d{1,5})", text)
        if found:
            text, port = found[1], check.integer("allow", int(found[2]), 1, 65535)
        text = text.removeprefix("[").removesuffix("]")
        try:
            return cls(None, ipaddress.ip_network(text), port)
        except ValueError:
            pass
        # What looks like numbers and is no network is a slip of the pen, and must not become a name.
        if not _NAME.match(text) or re.fullmatch(r"[0-9.]+", text):
            raise InvalidValueError(
                "allow", entry, "must hold networks, addresses or names, each perhaps with :port"
            )
        return cls(text.lower().removesuffix("."), None, port)


class Guard:
    """A node's rules."""

    def __init__(self, allow: Iterable[str], ports: Iterable[int]) -> None:
        if isinstance(allow, str) or not isinstance(allow, Iterable):
            raise InvalidTypeError("allow", allow, "must be a list of str")
        if not isinstance(ports, Iterable):
            raise InvalidTypeError("ports", ports, "must be a list of int")
        self._rules = tuple(_Rule.of(entry) for entry in allow)
        self._ports = frozenset(check.integer("ports", port, 1, 65535) for port in ports)

    def check_host(self, host: str, port: int) -> None:
        """What can be said without asking for the host's addresses. Raises HttpBlockedError."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            # A name: at least one rule, or the ports for all, must know the port.
            if port not in self._ports and not any(rule.port in (None, port) for rule in self._rules):
                raise _blocked(f"port {port} of host {show(host)} is not allowed", "ports") from None
            return
        self.check(host, [address], port)

    def check(self, host: str, addresses: Iterable[Address], port: int) -> list[Address]:
        """The addresses, if each of them is allowed; else HttpBlockedError."""
        host = host.lower().removesuffix(".")
        plain = [_plain(address) for address in addresses]
        for address in plain:
            if any(rule.permits(host, address, port) for rule in self._rules):
                continue
            if not is_public(address):
                text = f"host {show(host)} has the address {address}, which is not public"
                raise _blocked(f"{text}: address not allowed", "allow")
            if port not in self._ports:
                raise _blocked(f"port {port} of host {show(host)} is not allowed", "ports")
        return plain


def _blocked(text: str, argument: str) -> HttpBlockedError:
    return HttpBlockedError(f"blocked: {text}; HttpJob({argument}=[…]) opens it")
