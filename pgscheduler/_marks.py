"""Parameters that are marked as secret: `{"$secret": value}` in the stored JSON, the value itself for the run.

The mark is in the data, so that every door can set it, SQL too, and whoever lists jobs sees it without knowing their
classes. Stored is the value: the mark keeps it from being shown, and is no encryption.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InvalidValueError

__all__ = [
    "HIDDEN", "MARK", "SHORTEST", "check_marks", "doubtful", "hidden", "marked", "mask", "masked", "revealed", "secret", "texts_of",
    "told_apart",
]  # fmt: skip

MARK = "$secret"
HIDDEN = "***"
CHANGED = " (secret changed)"  # said after what looks the same
SHORTEST = 4  # characters: masking shorter ones would tear holes into any text

_IN_TEXT = f'"{MARK}"'
_HIDDEN_IN_URL = re.compile(rf"(=|://){re.escape(HIDDEN)}(?=[&@#]|$)")


def secret(value: Any) -> dict[str, Any]:
    """Mark a value among a job's parameters as secret: `{"token": secret("…")}`.

    The run gets the value itself. Everything else that shows parameters, records and events, listings, plans, the
    command and REST, shows `***`; and so does what the run says: its log, progress, result and error.
    """
    return {MARK: value}


def marked(text: str | None) -> bool:
    """May this JSON text hold a mark? So cheap that every job can be asked."""
    return text is not None and _IN_TEXT in text


def doubtful(text: str | None) -> bool:
    """May `check_marks` have something to say of this JSON text? As cheap."""
    return text is not None and (_IN_TEXT in text or HIDDEN in text)


def check_marks(field: str, value: Any, path: str = "$") -> None:
    """Raise InvalidValueError for a mark that would not be one, and for what is shown instead of a secret.

    The second was read in a listing and sent back: storing it would lose the secret.
    """
    if isinstance(value, Mapping):
        if MARK in value:
            if len(value) > 1:
                raise InvalidValueError(field, path, f"must hold nothing beside {MARK}")
            if value[MARK] in (HIDDEN, HIDDEN + CHANGED):
                raise InvalidValueError(
                    field, path, f"must hold the secret itself, not the {HIDDEN} that is shown"
                )
            if marked(json.dumps(value[MARK])):
                raise InvalidValueError(field, path, f"must not hold another {MARK}")
        for name, inner in value.items():
            check_marks(field, inner, f"{path}.{ascii(name)[1:-1][:40]}")
    elif isinstance(value, str) and (value == HIDDEN or _HIDDEN_IN_URL.search(value)):
        raise InvalidValueError(
            field, path, f"must hold the value itself, not the {HIDDEN} that is shown instead of it"
        )
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            check_marks(field, inner, f"{path}[{number}]")


def revealed(value: Any) -> Any:
    """With the values themselves, as the run gets them."""
    if isinstance(value, Mapping):
        if len(value) == 1 and MARK in value:
            return value[MARK]
        return {name: revealed(inner) for name, inner in value.items()}
    return [revealed(inner) for inner in value] if isinstance(value, list) else value


def hidden(value: Any) -> Any:
    """As it may be shown. What SQL stored beside a mark is hidden with it."""
    if isinstance(value, Mapping):
        return {MARK: HIDDEN} if MARK in value else {name: hidden(inner) for name, inner in value.items()}
    return [hidden(inner) for inner in value] if isinstance(value, list) else value


def told_apart(before: Any, after: Any) -> tuple[Any, Any]:
    """Two sides of a change, secrets hidden: where they look the same now, the second says that a secret differs.

    They must hold only what did differ: what has always been the same would be called changed.
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        told = {
            name: told_apart(before[name], inner)[1] if name in before else inner
            for name, inner in after.items()
        }
        return before, told
    if before == after:
        return before, f"{after if isinstance(after, str) else HIDDEN}{CHANGED}"
    return before, after


def texts_of(value: Any) -> frozenset[str]:
    """The texts, and numbers as text, that are marked in `value`, as they are and as JSON and Python write them."""
    found: set[str] = set()

    def walk(inner: Any, inside: bool) -> None:
        if isinstance(inner, Mapping):
            for name, one in inner.items():
                walk(one, inside or name == MARK)
        elif isinstance(inner, list):
            for one in inner:
                walk(one, inside)
        elif inside and inner is not None and not isinstance(inner, bool):
            text = str(inner)
            found.update(
                (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], repr(text)[1:-1])
            )

    walk(value, False)
    return frozenset(text for text in found if len(text) >= SHORTEST)


def mask(text: str, secrets: Iterable[str]) -> str:
    """`text` without the secrets; the longest first, so that no rest of one is left."""
    for one in sorted(secrets, key=len, reverse=True):
        text = text.replace(one, HIDDEN)
    return text


def masked(value: Any, secrets: Iterable[str]) -> Any:
    """JSON without the secrets, in keys and in values."""
    if isinstance(value, Mapping):
        return {mask(str(name), secrets): masked(inner, secrets) for name, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, secrets) for inner in value]
    if isinstance(value, bool | None):
        return value
    text = mask(str(value), secrets)
    return value if text == str(value) else text
