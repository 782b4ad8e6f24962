"""When a recurring job runs: ``Cron``, ``Every``, or anything with a ``next_after`` method.

A schedule is a pure function of time: it has no clock, keeps no state, and may be shared by
threads. What may surprise: time zones come from the ``tzdata`` package alone, never from the
operating system, so that every node of a fleet computes the same times.
"""

from __future__ import annotations

import importlib
import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol, runtime_checkable
from zoneinfo import ZoneInfo

from ._cron import SECOND, WallClock, cut, read
from .errors import InvalidCronError, InvalidTypeError, InvalidValueError

__all__ = ["TZDATA_VERSION", "Cron", "Every", "Missed", "Schedule", "missed", "next_occurrence", "zone"]

TZDATA_VERSION: str = importlib.import_module("tzdata").IANA_VERSION
"""The time zone rules in use, such as ``2025b``: store it beside computed times."""

_TICK = timedelta.resolution
_BEGINNING = datetime.min.replace(tzinfo=UTC)
_END = datetime.max.replace(tzinfo=UTC)
# Debian's limit: a larger jump is somebody correcting the clock, and no time is made up for it.
_CORRECTION = timedelta(hours=3)
_WALK = 256  # steps before a schedule of unknown kind is bisected: exact for any short outage

_Next = Callable[[datetime], datetime | None]


@runtime_checkable
class Schedule(Protocol):
    """Anything that knows its next time.

    ``next_after`` must be deterministic and must not go backwards: a later ``instant`` never has
    an earlier answer.
    """

    def next_after(self, instant: datetime) -> datetime | None:
        """The first time strictly later than ``instant`` (both aware), or None if there is none."""


# --- time zones ---


@lru_cache(maxsize=1)
def _zone_keys() -> frozenset[str]:
    listed = importlib.resources.files("tzdata").joinpath("zones").read_text(encoding="ascii")
    return frozenset(listed.split())


@lru_cache(maxsize=1024)
def _load_zone(key: str) -> ZoneInfo:
    # Only listed keys get here, so none can climb out of the package's directory.
    data = importlib.resources.files("tzdata").joinpath("zoneinfo", *key.split("/"))
    with data.open("rb") as file:
        return ZoneInfo.from_file(file, key=key)


def zone(key: str) -> ZoneInfo:
    """The time zone with this IANA key, such as ``Europe/Berlin`` (upper and lower case matter).

    Raises InvalidCronError with ``field`` ``timezone`` and ``code`` ``bad_zone``, or ``type`` for
    anything but a str.
    """
    if not isinstance(key, str):
        rule = f"the time zone must be a str, got {type(key).__name__[:20]}"
        raise InvalidCronError("type", "timezone", rule, key)
    if key not in _zone_keys():
        raise InvalidCronError("bad_zone", "timezone", f"the time zone {cut(key)} is unknown", key)
    return _load_zone(key)


# --- the daylight-saving rules ---


def _utc(instant: datetime, field: str) -> datetime:
    """``instant`` in UTC. Raises if it is naive or no datetime at all."""
    if not isinstance(instant, datetime):
        raise InvalidTypeError(field, instant, "must be a datetime")
    if instant.tzinfo is UTC:
        return instant
    if instant.utcoffset() is None:
        raise InvalidValueError(field, instant, "must be an aware datetime")
    try:
        return instant.astimezone(UTC)
    except OverflowError:  # within hours of either end of the calendar
        return _END if instant.year > 1 else _BEGINNING


def _at(wall: datetime, offset: timedelta) -> datetime:
    """The instant at which a clock that is ``offset`` from UTC shows ``wall``."""
    return (wall - offset).replace(tzinfo=UTC)


def _naive(instant: datetime, offset: timedelta) -> datetime:
    """What a clock that is ``offset`` from UTC shows at ``instant``."""
    return instant.replace(tzinfo=None) + offset


class _ZonedClock:
    """An expression in a zone. Its one piece of state is the last answer, which is exact.

    Jobs at fixed times of day run once: those in a gap right after it, those in a repeated stretch
    in its first pass. Jobs with a ``*`` in second, minute or hour follow the clock on the wall.
    """

    __slots__ = ("_fixed", "_memo", "_wall", "_zone")

    def __init__(self, wall: WallClock, tz: ZoneInfo, *, literal_dst: bool) -> None:
        self._wall = wall.next
        self._fixed = wall.fixed and not literal_dst
        self._zone = tz
        # (after, next): next is the answer for every instant in [after, next). One tuple, replaced
        # as a whole, so that a reader in another thread never sees halves of two answers.
        self._memo: tuple[datetime, datetime] | None = None

    def next_after(self, instant: datetime) -> datetime | None:
        """The first occurrence strictly later than ``instant``, which must be in UTC."""
        memo = self._memo
        if memo is not None and memo[0] <= instant < memo[1]:
            return memo[1]
        try:
            found = self._search(instant)
        except OverflowError:  # the zone's calendar begins later than ours, or ends with the year 9999
            return self.next_after(instant + timedelta(days=2)) if instant.year == 1 else None
        if found is not None:
            self._memo = (instant, found)
        return found

    def _search(self, after: datetime) -> datetime | None:
        wall, found = self._start(after)
        while found is None:
            slot = self._wall(wall)
            if slot is None:
                return None
            wall, found = self._instant(slot, after)
        return found

    def _instant(self, slot: datetime, after: datetime) -> tuple[datetime, datetime | None]:
        """When the wall clock shows ``slot`` later than ``after``; else where to search on."""
        before, later = self._offsets(slot)
        if later > before:  # the clock skips this time
            change = self._change(_at(slot, later), _at(slot, before))
            # Go on behind the gap in one move: stepping through it could take a minute.
            runs = self._fixed and later - before < _CORRECTION
            return _naive(change, later) - SECOND, change if runs else None
        if (found := _at(slot, before)) > after:
            return slot, found
        if not self._once(before - later) and (found := _at(slot, later)) > after:
            return slot, found
        return slot, None

    def _start(self, after: datetime) -> tuple[datetime, datetime | None]:
        """The wall-clock time to search from, and the answer if that is known already.

        Only in a repeated stretch is this more than what the clock shows.
        """
        here = after.astimezone(self._zone)
        wall = here.replace(tzinfo=None, fold=0)
        before, later = self._offsets(wall)
        if later >= before:
            return wall, None
        change = self._change(_at(wall, before), _at(wall, later))
        if self._once(before - later):
            # All of it ran in the first pass; the second is over when the first pass's clock ends.
            return (_naive(change, before) - SECOND if here.fold else wall), None
        if here.fold:
            return wall, None
        candidate = self._wall(wall)
        if candidate is not None and (found := _at(candidate, before)) < change:
            return wall, found
        return _naive(change, later) - SECOND, None  # the second pass begins

    def _once(self, repeated: timedelta) -> bool:
        """Whether a stretch that the clock shows twice counts once."""
        return self._fixed and repeated <= _CORRECTION

    def _offsets(self, wall: datetime) -> tuple[timedelta, timedelta]:
        """The zone's offsets before and after a change near ``wall``; equal where there is none."""
        local = wall.replace(tzinfo=self._zone)
        before, later = local.utcoffset(), local.replace(fold=1).utcoffset()
        assert before is not None
        assert later is not None
        return before, later

    def _change(self, low: datetime, high: datetime) -> datetime:
        """The instant in (low, high] from which the zone has the offset that it has at ``high``."""
        low = low.replace(microsecond=0)
        target = high.astimezone(self._zone).utcoffset()
        start, end = 0, -((low - high) // SECOND)
        while end - start > 1:
            middle = (start + end) // 2
            if (low + middle * SECOND).astimezone(self._zone).utcoffset() == target:
                end = middle
            else:
                start = middle
        return low + end * SECOND


# --- schedules ---


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed interval of elapsed time: whole seconds, at least one.

    Pass the previous scheduled time, not the time at which the job ran, and it never drifts.
    Raises InvalidTypeError or InvalidValueError naming ``interval``.
    """

    interval: timedelta

    def __post_init__(self) -> None:
        if not isinstance(self.interval, timedelta):
            raise InvalidTypeError("interval", self.interval, "must be a timedelta")
        if self.interval < SECOND or self.interval % SECOND:
            raise InvalidValueError("interval", self.interval, "must be whole seconds, at least one")

    def next_after(self, instant: datetime) -> datetime | None:
        """``instant``, cut to the second, plus the interval, in UTC; None beyond the year 9999."""
        try:
            return _utc(instant, "instant").replace(microsecond=0) + self.interval
        except OverflowError:
            return None


@lru_cache(maxsize=8192)  # 3 kB an entry
def _compiled(expression: str, timezone: str, day_or: bool, literal_dst: bool) -> _ZonedClock | Every:
    """The parsed expression. Shared by all equal ``Cron`` objects, and with it the last answer."""
    text, default = read(expression), zone(timezone)
    tz = default if text.zone is None else zone(text.zone)
    if text.every is not None:
        return Every(text.every)
    return _ZonedClock(WallClock(text.fields, day_or=day_or), tz, literal_dst=literal_dst)


def _rule(expression: str, timezone: str, day_or: bool, literal_dst: bool = False) -> _ZonedClock | Every:
    """``_compiled``, for values that may be anything: the cache needs hashable ones."""
    if not isinstance(expression, str):
        read(expression)
    if not isinstance(timezone, str):
        zone(timezone)
    if not isinstance(day_or, bool):
        rule = f"day_or must be a bool, got {type(day_or).__name__[:20]}"
        raise InvalidCronError("type", "day_or", rule, day_or)
    return _compiled(expression, timezone, day_or, literal_dst)


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone: ``Cron("30 3 * * 1-5", timezone="Europe/Berlin")``.

    ``expression`` has 5 fields, or 6 with the seconds first; or is ``@daily`` and its like, or
    ``@every 1h30m``; a prefix ``CRON_TZ=Zone`` overrides ``timezone`` (an IANA key, UTC by default).
    If both day of month and day of week are restricted, either will do; with ``day_or=False`` both
    must match. Raises InvalidCronError, also for an expression that would never fire.

    When the clock is put forward, a job at a fixed time of day that was skipped runs right after
    the gap; when it is put back, such a job runs once. Jobs with a ``*`` in second, minute or hour
    follow the clock on the wall.
    """

    expression: str
    timezone: str = "UTC"
    day_or: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.expression, str):
            object.__setattr__(self, "expression", self.expression.strip())
        _rule(self.expression, self.timezone, self.day_or)

    def next_after(self, instant: datetime) -> datetime | None:
        """The first occurrence strictly later than ``instant``: UTC, a whole second.

        None when there is none before the year 10000. Raises InvalidValueError if ``instant`` is
        naive. Asking again before that occurrence costs well under a microsecond.
        """
        return _compiled(self.expression, self.timezone, self.day_or, False).next_after(
            _utc(instant, "instant")
        )

    def latest(self, instant: datetime, after: datetime) -> datetime | None:
        """The latest occurrence in (after, instant], or None. A year of seconds costs a millisecond.

        ``@every`` counts from ``after``.
        """
        until, first = _utc(instant, "instant"), self.next_after(_utc(after, "after"))
        return None if first is None or first > until else missed(self, first, until, 0).latest


def next_occurrence(
    expression: str, after: datetime, tz: str = "UTC", *, day_or: bool = True, literal_dst: bool = False
) -> datetime | None:
    """The first occurrence of ``expression`` in the zone ``tz`` strictly later than ``after``.

    As ``Cron(expression, tz, day_or).next_after(after)``. With ``literal_dst=True`` no job counts as
    one at a fixed time of day: what a gap skips is dropped, what the clock shows twice runs twice.
    Raises InvalidCronError, and InvalidValueError if ``after`` is naive.
    """
    rule = _rule(expression, tz, day_or, bool(literal_dst))
    return rule.next_after(_utc(after, "after"))


# --- what was missed ---


@dataclass(frozen=True, slots=True)
class Missed:
    """The occurrences of a stretch of time, as far as a misfire policy needs them.

    ``recent`` are those right before ``latest``, oldest first; ``earlier`` is the first of those
    that are older still, or None if ``recent`` has all of them.
    """

    latest: datetime
    recent: tuple[datetime, ...]
    earlier: datetime | None


def missed(schedule: Schedule, first: datetime, until: datetime, keep: int) -> Missed:
    """What ``schedule`` had from ``first``, a known occurrence, up to and including ``until``.

    At most ``keep`` occurrences are listed besides the latest. The price depends on ``keep`` and
    hardly on the length of the stretch: a year of seconds and ``keep=100`` take some milliseconds.
    A schedule of your own whose times depend on the last one is followed for 256 occurrences;
    beyond that it must be a function of time, as ``Cron`` is.

    Raises InvalidValueError if ``first`` is later than ``until``, or if the schedule breaks its
    promise to move on.
    """
    first, until = _utc(first, "first"), _utc(until, "until")
    if first > until:
        raise InvalidValueError("first", first, "must not be later than until")
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise InvalidTypeError("keep", keep, "must be an int")
    if keep < 0:
        raise InvalidValueError("keep", keep, "must not be negative")
    # By exact type: a subclass may well have a next_after of its own.
    rule: Schedule = schedule
    if type(schedule) is Cron:
        rule = _compiled(schedule.expression, schedule.timezone, schedule.day_or, False)
    if type(rule) is Every:
        return _missed_intervals(rule.interval, first, until, keep)
    if isinstance(rule, _ZonedClock):
        return _missed_bisected(rule.next_after, first, until, keep)
    ask = _asking(rule)
    return _missed_walked(ask, first, until, keep) or _missed_bisected(ask, first, until, keep)


def _asking(schedule: Schedule) -> _Next:
    """``schedule.next_after`` with its promise checked: somebody else wrote it."""

    def ask(instant: datetime) -> datetime | None:
        answer = schedule.next_after(instant)
        if answer is None:
            return None
        answer = _utc(answer, "next_after()")
        if answer <= instant:
            raise InvalidValueError("next_after()", answer, f"must be later than {instant.isoformat()}")
        return answer

    return ask


def _missed_intervals(interval: timedelta, first: datetime, until: datetime, keep: int) -> Missed:
    """By arithmetic. The first step also cuts ``first`` to the second, as ``next_after`` does."""
    base = first.replace(microsecond=0)
    count = (until - base) // interval  # occurrences after the first

    def at(index: int) -> datetime:
        return base + index * interval if index else first

    start = max(0, count - keep)
    return Missed(at(count), tuple(at(i) for i in range(start, count)), first if start else None)


def _missed_walked(ask: _Next, first: datetime, until: datetime, keep: int) -> Missed | None:
    """One by one: right for any schedule, even one that counts from its last time. None if too many."""
    found = [first]
    for _ in range(_WALK):
        answer = ask(found[-1])
        if answer is None or answer > until:
            older = len(found) - 1 - keep
            return Missed(found[-1], tuple(found[max(0, older) : -1]), first if older > 0 else None)
        found.append(answer)
    return None


def _missed_bisected(ask: _Next, first: datetime, until: datetime, keep: int) -> Missed:
    """By halving time: whether anything lies between an instant and ``until`` is one question."""
    latest = _bisect_latest(ask, first, until)
    second = ask(first)
    if latest == first or second is None:
        return Missed(first, (), None)
    found = [] if second >= latest or not keep else _last(ask, second, latest, keep)
    if len(found) < keep:  # that was all of them
        return Missed(latest, (first, *found), None)
    return Missed(latest, tuple(found), first)


def _bisect_latest(ask: _Next, known: datetime, until: datetime) -> datetime:
    """The latest occurrence up to ``until``, given one that is."""
    end = until  # nothing happens in (end, until]
    for _ in range(128):  # each round halves the rest; 60 do for 9999 years of microseconds
        answer = ask(known)
        if answer is None or answer > until:
            break
        known = answer
        middle = known + max(end - known, timedelta(0)) // 2
        answer = ask(middle)
        if answer is None or answer > until:
            end = middle
        else:
            known = answer
    return known


def _last(ask: _Next, first: datetime, end: datetime, count: int) -> list[datetime]:
    """The last ``count`` occurrences before ``end``, oldest first; ``first`` is the earliest of all.

    Takes the later half of the time, and of the earlier half what is still wanting: about three
    questions for each occurrence, wherever they are and however many there are before them.
    """
    second = ask(first)
    if second is None or second >= end:
        return [first]
    middle = first + (end - first - _TICK) // 2
    answer = ask(middle)
    found = [] if answer is None or answer >= end else _last(ask, answer, end, count)
    if len(found) < count:
        found = _last(ask, first, middle + _TICK, count - len(found)) + found
    return found
