"""What must not be shown of a request: the values of all headers but those that are known to be harmless."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pgscheduler._marks import HIDDEN, MARK, SHORTEST, mask

__all__ = ["HIDDEN", "mask", "redacted", "secrets_of", "shown"]

#: A header that nobody has heard of may well be a key, so this names those that are not.
HARMLESS = frozenset(
    {
        "accept", "accept-charset", "accept-encoding", "accept-language", "cache-control", "content-encoding",
        "content-language", "content-length", "content-type", "date", "etag", "from", "host", "if-match",
        "if-modified-since", "if-none-match", "if-unmodified-since", "last-modified", "location", "origin", "pragma",
        "range", "referer", "user-agent", "vary",
    }
)  # fmt: skip
_SECRET_NAME = re.compile(r"pass|token|secret|key|auth|signature|credential|session", re.IGNORECASE)


def harmless(header: str) -> bool:
    return header.lower() in HARMLESS


def redacted(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers as they may be shown."""
    return {name: value if harmless(name) else HIDDEN for name, value in headers.items()}


def shown(value: Any) -> Any:
    """Stored data as a listing may show it: what is marked as secret, headers, wherever they are, and `params` with
    telling names, also those in a `url`, hidden."""
    if isinstance(value, Mapping):
        if MARK in value:
            return {MARK: HIDDEN}
        found = {name: shown(one) for name, one in value.items()}
        for name in ("headers", "params"):
            inner = value.get(name)
            if isinstance(inner, Mapping):
                found[name] = redacted(inner) if name == "headers" else _redacted_params(inner)
        if isinstance(value.get("url"), str):
            found["url"] = _redacted_url(value["url"])
        return found
    return [shown(one) for one in value] if isinstance(value, list) else value


def _redacted_params(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: HIDDEN if _SECRET_NAME.search(str(name)) else shown(one) for name, one in params.items()}


def _redacted_url(text: str) -> str:
    try:
        url = urlsplit(text)
        pairs = parse_qsl(url.query, keep_blank_values=True)
    except ValueError:
        return HIDDEN
    user, _, place = url.netloc.rpartition("@")
    safe = [(name, HIDDEN if _SECRET_NAME.search(name) else value) for name, value in pairs]
    if not user and safe == pairs:
        return text
    netloc = f"{HIDDEN}@{place}" if user else place
    return url._replace(netloc=netloc, query=urlencode(safe, safe="*")).geturl()


def secrets_of(headers: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> set[str]:
    """Every text that a server might send back to us and that must not be kept."""
    found: set[str] = set()
    for name, value in headers.items():
        if harmless(name):
            continue
        text = str(value)
        found.add(text)
        # `Bearer x`, `a=x; b=y`: a server may repeat only the part that matters.
        for part in re.split(r"[\s;,]+", text):
            found |= {part, part.partition("=")[2]}
            if text.lower().startswith("basic "):
                found |= _basic(part)
    for name, value in (params or {}).items():
        if _SECRET_NAME.search(str(name)):
            found |= {str(one) for one in (value if isinstance(value, list) else [value])}
    found |= {json.dumps(text)[1:-1] for text in found}
    return {
        text for text in found if len(text) >= SHORTEST and text.lower() not in ("basic", "bearer", "digest")
    }


def _basic(text: str) -> set[str]:
    try:
        pair = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return set()
    return {pair, pair.partition(":")[2]}
