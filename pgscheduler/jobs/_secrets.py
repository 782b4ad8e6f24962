"""What must not be shown of a request: the values of all headers but those that are known to be harmless."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pgscheduler._marks import HIDDEN, MARK, SHORTEST, mask, told_apart

__all__ = ["HIDDEN", "mask", "redacted", "secrets_of", "shown", "shown_change"]

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


def shown(value: Any, telling: bool = False) -> Any:
    """Stored data as a listing may show it: what is marked as secret, headers, wherever they are, and what has a telling
    name in `params`, `data` or the query of a `url`, hidden. `telling`: names tell here already."""
    if isinstance(value, Mapping):
        if MARK in value:
            return {MARK: HIDDEN}
        found = {
            name: HIDDEN if telling and _tells(name) else shown(one, telling or name in ("params", "data"))
            for name, one in value.items()
        }
        if isinstance(value.get("headers"), Mapping):
            found["headers"] = redacted(value["headers"])
        if isinstance(value.get("url"), str):
            found["url"] = _redacted_url(value["url"])
        return found
    return [shown(one, telling) for one in value] if isinstance(value, list) else value


def shown_change(before: Any, after: Any) -> tuple[Any, Any]:
    """Both sides of a change as a listing may show them; where all that differs is hidden, the second says so."""
    left, right = shown(before), shown(after)
    found = told_apart(left, right)
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        # A schedule is whole on both sides, so that some of it may be the same.
        same = {name: right[name] for name in before.keys() & after.keys() if before[name] == after[name]}
        return found[0], {**found[1], **same}
    return found


def _tells(name: object) -> bool:
    return _SECRET_NAME.search(str(name)) is not None


def _redacted_url(text: str) -> str:
    try:
        url = urlsplit(text)
        pairs = parse_qsl(url.query, keep_blank_values=True)
    except ValueError:
        return HIDDEN
    user, _, place = url.netloc.rpartition("@")
    safe = [(name, HIDDEN if _tells(name) else value) for name, value in pairs]
    if not user and safe == pairs:
        return text
    netloc = f"{HIDDEN}@{place}" if user else place
    return url._replace(netloc=netloc, query=urlencode(safe, safe="*")).geturl()


def secrets_of(
    headers: Mapping[str, Any], params: Mapping[str, Any] | None = None, data: Any = None
) -> set[str]:
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
    found |= _told({} if params is None else params) | _told(data)
    found |= {json.dumps(text)[1:-1] for text in found}
    return {
        text for text in found if len(text) >= SHORTEST and text.lower() not in ("basic", "bearer", "digest")
    }


def _told(value: Any, inside: bool = False) -> set[str]:
    """The texts, and numbers as text, under telling names."""
    if isinstance(value, Mapping):
        return set().union(*(_told(one, inside or _tells(name)) for name, one in value.items()))
    if isinstance(value, list):
        return set().union(*(_told(one, inside) for one in value))
    return {str(value)} if inside and not isinstance(value, bool | None) else set()


def _basic(text: str) -> set[str]:
    try:
        pair = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return set()
    return {pair, pair.partition(":")[2]}
