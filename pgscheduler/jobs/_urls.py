"""Whether a text is a URL that can be requested, as httpx sees it and without httpx: whoever stores a job may lack it."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Any

from pgscheduler.errors import InvalidTypeError, InvalidValueError

from ._secrets import HIDDEN

__all__ = ["check_url", "not_a_url"]

MAX_URL = 8192  # bytes; what servers take at most
_URL = re.compile(r"(?:([a-zA-Z][a-zA-Z0-9+.-]*)?:)?(?://([^/?#]*))?")
_AUTHORITY = re.compile(r"(?:(.*)@)?(\[.*\]|[^:@]*):?(.*)")
_NUMBERS = re.compile(r"[0-9]+(\.[0-9]+){3}")


def check_url(text: Any) -> None:
    """Raise unless it is one; errors do not repeat it, for its query may hold a key."""
    if not isinstance(text, str):
        raise InvalidTypeError("url", type(text), "must be a str")
    if not text.isprintable() or " " in text:
        raise InvalidValueError("url", HIDDEN, "must not hold spaces or control characters")
    if (size := len(text.encode())) > MAX_URL:
        raise InvalidValueError("url", f"{size} bytes", f"must not be longer than {MAX_URL}")
    found = _URL.match(text)
    assert found is not None  # all of it is optional
    scheme = (found[1] or "").lower()
    parts = _AUTHORITY.match(found[2] or "")
    assert parts is not None
    user, host, port = parts.groups()
    if not _is_host(host) or not (port == "" or (port.isascii() and port.isdigit() and len(port) < 20)):
        raise not_a_url()
    if scheme not in ("http", "https"):
        raise InvalidValueError("url", scheme, "must have the scheme http or https")
    if not host:
        raise InvalidValueError("url", HIDDEN, "must name a host")
    if user:
        raise InvalidValueError("url", host, "must not hold a user name or password; use headers")
    if port and not 1 <= int(port) <= 65535:
        raise InvalidValueError("url", int(port), "must have a port from 1 to 65535")


def not_a_url() -> InvalidValueError:
    return InvalidValueError("url", HIDDEN, "must be a valid URL (scheme, host, path)")


def _is_host(host: str) -> bool:
    """A name, or an address as it must be written; or nothing."""
    try:
        if _NUMBERS.fullmatch(host):
            ipaddress.IPv4Address(host)
        elif host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
        elif not host.isascii() or host.lower().startswith("xn--"):
            _check_international(host.lower())
    except ValueError:  # each of them raises one of its kind
        return False
    return True


def _check_international(host: str) -> None:
    """Raise ValueError unless it is a name in other letters, or their encoding. httpx brings what knows the rules."""
    try:
        import idna
    except ImportError:
        # Python's own rules are older: they take symbols, and other spellings of letters and digits.
        plain = host.encode().decode("idna") if host.isascii() else host
        plain = plain.replace("ß", "ss").replace("ς", "σ")  # which the older rules write so
        odd = [c for c in plain if not (c.isalnum() or c in ".-" or unicodedata.category(c)[0] == "M")]
        if odd or plain.encode("idna").decode("idna") != plain:
            raise ValueError("not a name") from None
        return
    if host.isascii():
        idna.decode(host)
    else:
        idna.encode(host)
