"""Which machine a host means, and whether a connection to another one knows whom it speaks to."""

from __future__ import annotations

import ipaddress
from typing import Any

import psycopg

__all__ = ["is_loopback", "unchecked"]

#: Modes in which libpq checks the server's certificate. `require` encrypts for whoever answers.
CHECKED = ("verify-ca", "verify-full")


def is_loopback(host: str) -> bool:
    """Does this name or address, perhaps in brackets, mean this machine itself?"""
    host = host.removeprefix("[").removesuffix("]")
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def unchecked(connection: psycopg.Connection[Any]) -> tuple[str, str] | None:
    """The host and sslmode of a connection that leaves this machine and checks nobody's certificate; None: all is well.

    Asked of the connection, not of the DSN: either may come from a variable or a service file.
    """
    info = connection.info
    address = info.hostaddr or info.host
    if (
        not address or address.startswith(("/", "@")) or is_loopback(address)
    ):  # a socket, in a directory or without
        return None
    mode = info.get_parameters().get("sslmode", "prefer")  # libpq's default is left out
    return None if mode in CHECKED else (info.host or address, mode)
