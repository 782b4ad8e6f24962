"""JSON as PostgreSQL's jsonb can hold it: strict where users hand it in, forgiving where it must not fail.

jsonb refuses what Python's json writes without a word: NaN, infinities, NUL characters, lone surrogates. And
json itself changes values silently: ``{1: "x"}`` becomes ``{"1": "x"}``, a tuple a list. What is stored must be
what was given, so both are refused, naming the place.
"""

from __future__ import annotations

import json
import math
from typing import Any

from .errors import InvalidTypeError, InvalidValueError

__all__ = ["clean_json", "clean_text", "dump_json", "load_json", "printable", "read_json"]

MAX_DEPTH = 100  # levels; jsonb's own limit is stack-dependent (about 6,000)
MAX_TEXT = 8192  # characters of an error, a reason or a log line that are kept
FLAT_SIZE = 4000  # bytes; a longer text may hold an integer with more digits than Python reads (4300)

_TEXT = frozenset((str,))
_PLAIN = frozenset((str, int, float, bool, type(None)))


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().raw_decode


def load_json(text: str | None) -> Any:
    """What a jsonb column holds, which has no white space around it; the rest of `json.loads` is half of its price."""
    if text is None:
        return None
    try:
        value, end = _decode(text)
    except json.JSONDecodeError:
        end = -1
    return value if end == len(text) else json.loads(text)


def read_json(text: str | bytes) -> Any:
    """What somebody stored, for a listing, which one bad row must not keep from everybody.

    What is no JSON, or what Python cannot read (an integer of 5,000 digits), comes as `{"unreadable": its text}`.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        shown = text if isinstance(text, str) else text.decode(errors="replace")
        return {"unreadable": clean_text(shown, 200)}


def dump_json(field: str, value: Any, limit: int) -> str:
    """`value` as JSON text of at most `limit` bytes; InvalidTypeError or InvalidValueError names the place."""
    try:
        text = _encode(value)
        size = len(text.encode())
        # Reading it back costs less than walking it in Python, and tells whether anything was changed.
        faithful = (_is_flat(value, size) or json.loads(text) == value) and "\\u0000" not in text
        # Brackets bound the depth. What is deeper than a reader's stack could be stored, and never be read.
        faithful = faithful and text.count("[") + text.count("{") <= MAX_DEPTH
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError):
        faithful, size, text = False, 0, ""
    if not faithful:
        _explain(field, value, "$", 0, set())
        text = _encode(value)
        size = len(text.encode())
    if size > limit:
        raise InvalidValueError(
            field, f"{size} bytes", f"must have a size of at most {limit} bytes (the limit)"
        )
    return text


def _is_flat(value: Any, size: int) -> bool:
    """An object of plain values, as most parameters are: JSON holds it as it is, and need not be read back."""
    return (
        type(value) is dict
        and size <= FLAT_SIZE
        and _TEXT.issuperset(map(type, value))
        and _PLAIN.issuperset(map(type, value.values()))
    )


def _explain(field: str, value: Any, path: str, depth: int, above: set[int]) -> None:
    """Find the first place that JSON, or jsonb, cannot hold, and raise. Returns if there is none."""
    if depth > MAX_DEPTH:
        raise InvalidValueError(
            field, f"{path[:60]}…", f"must not be circular or deeper than {MAX_DEPTH} levels"
        )
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _explain_text(field, value, path)
    elif isinstance(value, int):
        if value.bit_length() > 4096:
            raise InvalidValueError(
                field,
                f"{_cut(path)}: {value.bit_length()} bits",
                "must hold each integer in a range of 4096 bits",
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidValueError(
                field, f"{_cut(path)}: {value}", "must not hold NaN or infinity (numbers are finite)"
            )
    elif isinstance(value, list | dict):
        if id(value) in above:
            raise InvalidValueError(field, path, "must not be circular or too deep")
        above.add(id(value))
        items = enumerate(value) if isinstance(value, list) else value.items()
        for key, item in items:
            if isinstance(value, list):
                place = f"{path}[{key}]"
            elif isinstance(key, str):
                _explain_text(field, key, f"{path} key")
                place = f"{path}.{key}"
            else:
                raise InvalidTypeError(
                    field, key, f"must have only str as key (str keys); at {_cut(path)} it"
                )
            _explain(field, item, place, depth + 1, above)
        above.discard(id(value))
    else:
        raise InvalidTypeError(
            field,
            value,
            f"is not JSON: path {_cut(path)} holds a value that is not dict, list, str, int, float, bool or None",
        )


def _cut(path: str) -> str:
    """A place in someone's data, as an error text may repeat it."""
    return ascii(path)[1:-1][:80]


def _explain_text(field: str, text: str, path: str) -> None:
    if "\x00" in text:
        raise InvalidValueError(field, path, "must not hold a NUL character (PostgreSQL cannot store it)")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidValueError(
            field, path, "must not hold a lone surrogate (it is not unicode text)"
        ) from None


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor, or turn round its line: what is not printable is escaped, line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def clean_text(value: object, limit: int = MAX_TEXT) -> str:
    """Any text as PostgreSQL can store it; the middle is cut out of what is longer than `limit`."""
    try:
        text = value if isinstance(value, str) else str(value)
    except Exception:  # noqa: BLE001 - an exception whose __str__ raises
        text = f"<{type(value).__name__} whose text cannot be had>"
    if len(text) > limit:
        half = limit // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters cut …\n{text[-half:]}"
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def clean_json(value: Any, depth: int = 0) -> Any:
    """The nearest thing to `value` that jsonb can hold; for logs and progress, which must never fail a run."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() <= 4096:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, str):
        return clean_text(value)
    if depth < 20 and isinstance(value, dict):
        return {clean_text(k, 256): clean_json(v, depth + 1) for k, v in list(value.items())[:1000]}
    if depth < 20 and isinstance(value, list | tuple | set | frozenset):
        return [clean_json(v, depth + 1) for v in list(value)[:1000]]
    try:
        return clean_text(repr(value))
    except Exception:  # noqa: BLE001 - a hostile __repr__
        return f"<{type(value).__name__}>"
