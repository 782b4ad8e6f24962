"""Checks of what users hand in: each names the field, shows the value, and says the rule."""

from __future__ import annotations

import math
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

from .errors import InvalidTypeError, InvalidValueError

__all__ = ["boolean", "duration", "instant", "integer", "name", "one_of"]

MAX_NAME = 255  # characters
MAX_DURATION = timedelta(days=3650)  # ten years; threading's waits overflow far beyond
EARLIEST, LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def name(field: str, value: Any) -> str:
    """1 to 255 printable characters. Returned in Unicode's normal form C, so two spellings are one name."""
    if not isinstance(value, str):
        raise InvalidTypeError(field, value, "must be a str")
    if not value.strip():
        raise InvalidValueError(field, value, "cannot be empty")
    if len(value) > MAX_NAME:
        raise InvalidValueError(field, value, f"must not be longer than {MAX_NAME} characters (too long)")
    if "\x00" in value:
        raise InvalidValueError(field, value, "must not hold NUL")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValueError(field, value, "must be valid unicode (it holds a lone surrogate)") from None
    if not value.isprintable():
        raise InvalidValueError(field, value, "must be printable (it holds a control character)")
    return unicodedata.normalize("NFC", value)


def integer(field: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(field, value, "must be an int")
    if value < low:
        raise InvalidValueError(
            field, value, "must be non-negative (>= 0)" if low == 0 else f"must be >= {low}"
        )
    if value > high:
        raise InvalidValueError(field, value, f"must be <= {high}")
    return value


def boolean(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidTypeError(field, value, "must be a bool")
    return value


def duration(field: str, value: Any, *, zero: bool = False, maximum: timedelta = MAX_DURATION) -> timedelta:
    """A timedelta, or seconds as a number; greater than zero unless `zero` is allowed."""
    if isinstance(value, timedelta):
        length = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidValueError(field, value, "must be finite")
        if abs(value) > maximum.total_seconds():
            raise InvalidValueError(
                field, value, f"must be <= {maximum.days} days" if value > 0 else "must be > 0"
            )
        length = timedelta(seconds=value)
    else:
        raise InvalidTypeError(field, value, "must be a timedelta or a number of seconds")
    if length > maximum:
        raise InvalidValueError(field, value, f"must be <= {maximum.days} days")
    if zero and length < timedelta(0):
        raise InvalidValueError(field, value, "must be >= 0")
    if not zero and length <= timedelta(0):
        raise InvalidValueError(field, value, "must be > 0")
    return length


def instant(field: str, value: Any) -> datetime:
    """An aware datetime between 1970 and 2200, as UTC."""
    if not isinstance(value, datetime):
        raise InvalidTypeError(field, value, "must be a datetime with a time zone")
    if value.tzinfo is None or value.utcoffset() is None:
        raise InvalidValueError(field, value, "must have a time zone (it is naive)")
    try:
        moment = value.astimezone(UTC)
    except OverflowError:
        moment = None
    if moment is None or not EARLIEST <= moment <= LATEST:
        raise InvalidValueError(field, value, "must be between the years 1970 and 2200")
    return moment


def one_of(field: str, value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(field, value, f"must be a str, one of {', '.join(allowed)}")
    if value not in allowed:
        raise InvalidValueError(field, value, f"must be one of {', '.join(allowed)}")
    return value
