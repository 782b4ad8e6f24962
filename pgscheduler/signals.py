"""What a job may raise or return to decide its own outcome.

Raise or return: both work, from ``init`` and ``run`` alike::

    def run(self, ctx):
        if api.busy():
            return Snooze(timedelta(minutes=5))    # not now; burns no attempt
        if api.gone():
            raise Fail("the account was closed")   # no more retries
"""

from __future__ import annotations

from datetime import timedelta

from .errors import InvalidTypeError, InvalidValueError, PgSchedulerError

__all__ = ["Cancel", "Fail", "Retry", "Signal", "Snooze"]


class Signal(PgSchedulerError):
    """The root of the four; not an error, but raised like one."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


def _delay(field: str, value: timedelta | float | None) -> timedelta | None:
    if value is None or isinstance(value, timedelta):
        delay = value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        delay = timedelta(seconds=value)
    else:
        raise InvalidTypeError(field, value, "must be a timedelta or seconds")
    if delay is not None and not timedelta(0) <= delay <= timedelta(days=3650):
        raise InvalidValueError(field, value, "must be between 0 and 3650 days")
    return delay


class Retry(Signal):
    """This attempt failed; try again after ``after`` (default: what the backoff says).

    Counts as a failure: when no retries are left, the job has failed.
    """

    def __init__(
        self, after: timedelta | float | None = None, reason: str = "the job asked for a retry"
    ) -> None:
        self.after = _delay("after", after)
        super().__init__(reason)


class Snooze(Signal):
    """Not now: run again after ``after``. Burns no attempt."""

    def __init__(self, after: timedelta | float, reason: str = "snoozed") -> None:
        delay = _delay("after", after)
        if delay is None:
            raise InvalidTypeError("after", after, "must be a timedelta or seconds")
        self.after: timedelta = delay
        super().__init__(reason)


class Cancel(Signal):
    """This run ends as cancelled: no retry. A recurring job comes back at its next occurrence."""


class Fail(Signal):
    """This run failed and no retry will help. A recurring job comes back at its next occurrence."""
