"""How long a failed job waits before its next attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from .clock import uniform
from .errors import InvalidTypeError, InvalidValueError

__all__ = ["Backoff", "RetryPolicy"]

#: ``(failures so far, the error) -> delay``; ``None`` means: do not try again.
RetryPolicy = Callable[[int, BaseException], timedelta | None]


@dataclass(frozen=True)
class Backoff:
    """Exponential delays: ``initial * factor ** (failures - 1)``, at most ``maximum``, ± ``jitter``.

    The default waits 1 s, 2 s, 4 s, … up to one hour: quick enough for a hiccup, patient enough for an
    outage. ``jitter`` is a fraction (0.1 = ±10 %): jobs that failed together do not come back together.
    """

    initial: timedelta = timedelta(seconds=1)
    factor: float = 2.0
    maximum: timedelta = timedelta(hours=1)
    jitter: float = 0.1

    def __post_init__(self) -> None:
        for field in ("initial", "maximum"):
            value = getattr(self, field)
            if not isinstance(value, timedelta):
                raise InvalidTypeError(f"backoff.{field}", value, "must be a timedelta")
            if not timedelta(0) <= value <= timedelta(days=365):
                raise InvalidValueError(f"backoff.{field}", value, "must be between 0 and 365 days")
        for field, low, high in (("factor", 1.0, 100.0), ("jitter", 0.0, 1.0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidTypeError(f"backoff.{field}", value, "must be a number")
            if not low <= value <= high:
                raise InvalidValueError(f"backoff.{field}", value, f"must be between {low:g} and {high:g}")

    def __call__(self, failures: int, error: BaseException) -> timedelta:  # noqa: ARG002 - a RetryPolicy
        steps = min(failures - 1, 64)  # beyond that every factor has reached the maximum
        delay = min(self.initial.total_seconds() * self.factor**steps, self.maximum.total_seconds())
        return timedelta(seconds=delay * uniform(1 - self.jitter, 1 + self.jitter))
