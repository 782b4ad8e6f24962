"""Arithmetic of intervals: what lay in a time, and when so much of other time had passed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Span", "complement", "length", "merged", "passed", "widened"]

Span = tuple[float, float]


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same time in ascending spans that do not touch."""
    found: list[Span] = []
    for began, ended in sorted(spans):
        if found and began <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], ended))
        elif ended > began:
            found.append((began, ended))
    return found


def widened(spans: Iterable[Span], after: float) -> list[Span]:
    """Each span goes on for `after` seconds: what was down needs so long to be back."""
    return merged((began, ended + after) for began, ended in spans)


def complement(spans: Sequence[Span], began: float, ended: float) -> list[Span]:
    """What of `began` to `ended` lies in none of these merged spans."""
    found, at = [], began
    for low, high in spans:
        if low > at:
            found.append((at, min(low, ended)))
        at = max(at, high)
        if at >= ended:
            break
    if at < ended:
        found.append((at, ended))
    return [(low, high) for low, high in found if high > low]


def length(spans: Sequence[Span], began: float, ended: float) -> float:
    """How much of `began` to `ended` these merged spans cover."""
    return sum(max(min(high, ended) - max(low, began), 0.0) for low, high in spans)


def passed(began: float, seconds: float, out: Sequence[Span]) -> float:
    """The instant at which `seconds` have passed since `began`, not counting the merged spans `out`."""
    at = began
    for low, high in out:
        if high <= at:
            continue
        if low - at >= seconds:
            break
        seconds -= max(low - at, 0.0)
        at = high
    return at + seconds
