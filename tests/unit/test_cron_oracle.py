"""The cron layer against an independent oracle: a walk over every real minute around a clock change.

The oracle has its own parser and the main loop of Debian's cron with its "virtual time". It is slow
and simple; what it shares with the code under test are the time zone data alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pgscheduler.errors import InvalidCronError
from pgscheduler.schedule import next_occurrence, zone

MINUTE = timedelta(minutes=1)
REACH = timedelta(days=2)

# Half hours, whole days, two and three hours, at midnight, a minute past it, and both ways.
YEARS = [
    ("America/New_York", 2025),
    ("Europe/Berlin", 2026),
    ("Europe/London", 2025),
    ("Europe/Dublin", 2024),
    ("Australia/Lord_Howe", 2026),
    ("Pacific/Apia", 2011),
    ("Pacific/Chatham", 2025),
    ("Pacific/Kwajalein", 1993),
    ("Antarctica/Troll", 2025),
    ("Antarctica/Casey", 2009),
    ("Antarctica/Casey", 2010),
    ("Antarctica/Vostok", 2023),
    ("America/St_Johns", 1999),
    ("America/Caracas", 2016),
    ("America/Havana", 2025),
    ("Asia/Pyongyang", 2018),
    ("Asia/Kathmandu", 1986),
    ("Asia/Tehran", 2005),
    ("Africa/Casablanca", 2025),
]


# --- the oracle's parser ---


def expand(text: str, low: int, high: int) -> set[int]:
    """The numbers that one field names."""
    numbers: set[int] = set()
    for item in text.split(","):
        span, _, step = item.partition("/")
        first, _, last = span.partition("-")
        if span == "*":
            first, last = str(low), str(high)
        elif not last:
            last = str(high) if step else first
        numbers.update(range(int(first), int(last) + 1, int(step or 1)))
    return numbers


@dataclass(frozen=True)
class Oracle:
    """One parsed expression."""

    seconds: list[int]
    minutes: set[int]
    hours: set[int]
    days: set[int]
    months: set[int]
    weekdays: set[int]
    either: bool
    wildcard: bool

    @classmethod
    def read(cls, expression: str) -> Oracle:
        *second, minute, hour, day, month, weekday = expression.split()
        return cls(
            seconds=sorted(expand(second[0], 0, 59)) if second else [0],
            minutes=expand(minute, 0, 59),
            hours=expand(hour, 0, 23),
            days=expand(day, 1, 31),
            months=expand(month, 1, 12),
            weekdays={number % 7 for number in expand(weekday, 0, 6)},
            either=day != "*" and weekday != "*",
            wildcard=any(text.startswith("*") for text in (*second, minute, hour)),
        )

    def matches(self, wall: datetime) -> bool:
        """Whether the minute ``wall`` has a slot."""
        if wall.minute not in self.minutes or wall.hour not in self.hours or wall.month not in self.months:
            return False
        by_day, by_week = wall.day in self.days, wall.isoweekday() % 7 in self.weekdays
        return (by_day or by_week) if self.either else (by_day and by_week)

    def occurrences(self, minutes: list[Waking], *, literal: bool) -> Iterator[datetime]:
        """All occurrences in the order of time."""
        for waking in minutes:
            found = set()
            fixed = not (self.wildcard or literal)
            if (waking.fixed or not fixed) and self.matches(waking.wall):
                found |= {waking.instant + timedelta(seconds=s) for s in self.seconds}
            if fixed and any(self.matches(wall) for wall in waking.skipped):
                found.add(waking.instant)
            yield from sorted(found)


# --- Debian's main loop ---


@dataclass(frozen=True)
class Waking:
    """One real minute: whether fixed jobs are looked up, and the minutes that are made up for."""

    instant: datetime
    wall: datetime
    fixed: bool
    skipped: tuple[datetime, ...] = ()


@lru_cache(maxsize=64)
def walk(key: str, change: datetime) -> list[Waking]:
    """Cron's wakings from two days before a clock change to two days after it."""
    tz = zone(key)
    instant = change.replace(second=0) - REACH
    virtual = instant.astimezone(tz).replace(tzinfo=None) - MINUTE
    wakings = []
    while instant < change + REACH:
        wall = instant.astimezone(tz).replace(tzinfo=None, fold=0)
        ahead = (wall - virtual) // MINUTE
        if ahead == 1 or ahead > 180 or ahead <= -180:  # as usual, or the clock was corrected
            wakings.append(Waking(instant, wall, fixed=True))
            virtual = wall
        elif ahead > 1:  # forward: make up for fixed jobs
            skipped = tuple(virtual + i * MINUTE for i in range(1, ahead))
            wakings.append(Waking(instant, wall, fixed=True, skipped=skipped))
            virtual = wall
        else:  # back: fixed jobs wait until the clock has caught up
            wakings.append(Waking(instant, wall, fixed=False))
        instant += MINUTE
    return wakings


@lru_cache(maxsize=1)
def changes() -> list[tuple[str, datetime]]:
    """Every clock change of the zones and years above."""
    found = []
    for key, year in YEARS:
        tz, hour = zone(key), datetime(year - 1, 12, 30, tzinfo=UTC)
        while hour.year <= year:
            later = hour + timedelta(hours=1)
            if hour.astimezone(tz).utcoffset() != later.astimezone(tz).utcoffset():
                minute = hour
                while minute.astimezone(tz).utcoffset() != later.astimezone(tz).utcoffset():
                    minute += MINUTE
                found.append((key, minute))
            hour = later
    return found


# --- what hypothesis tries ---


def items(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    pair = st.tuples(number, number).map(sorted)
    step = st.integers(1, high)
    return st.one_of(
        number.map(str),
        pair.map(lambda p: f"{p[0]}-{p[1]}"),
        st.tuples(pair, step).map(lambda t: f"{t[0][0]}-{t[0][1]}/{t[1]}"),
        st.tuples(number, step).map(lambda t: f"{t[0]}/{t[1]}"),
        step.map(lambda s: f"*/{s}"),
    )


def columns(low: int, high: int, *usual: str) -> st.SearchStrategy[str]:
    lists = st.lists(items(low, high), min_size=1, max_size=3).map(",".join)
    return st.one_of(st.sampled_from(usual), st.sampled_from(usual), lists)


SECONDS = columns(0, 59, "0", "0", "30", "*", "*/20", "5,50")
DATES = st.one_of(
    st.just("* * *"),
    st.just("* * *"),
    st.tuples(columns(1, 31, "*"), columns(1, 12, "*"), columns(0, 6, "*")).map(" ".join),
)
FIVE = st.tuples(
    columns(0, 59, "0", "30", "*/15", "*", "59", "0-59", "0,30"),
    columns(0, 23, "*", "0", "1", "2", "3", "23", "0-23", "*/2", "1-3", "0,1", "0-2"),
    DATES,
).map(" ".join)
SIX = st.tuples(SECONDS, FIVE).map(" ".join)
# As seconds from a clock change: a day either way, and thickly right around it.
NEAR = st.one_of(st.integers(-100_000, 100_000), st.integers(-8_000, 8_000), st.integers(-2, 2))


def since(wakings: list[Waking], after: datetime) -> list[Waking]:
    """The wakings from the minute of ``after``, which may have seconds yet to come."""
    return wakings[max(0, bisect_right(wakings, after, key=lambda waking: waking.instant) - 1) :]


def unambiguous(expression: str) -> bool:
    """Whether the day rule is beyond dispute: lists of all days count as ``*`` only sometimes."""
    *_, day, _month, weekday = expression.split()
    full_days = len(expand(day, 1, 31)) == 31 and day != "*"
    return not full_days and not (len(expand(weekday, 0, 6)) == 7 and weekday != "*")


def possible(expression: str) -> bool:
    """Whether any chosen month has any chosen day; a leap year counts."""
    *_, day, month, weekday = expression.split()
    longest = max(
        29 if number == 2 else 30 + (number in (1, 3, 5, 7, 8, 10, 12)) for number in expand(month, 1, 12)
    )
    return min(expand(day, 1, 31)) <= longest or (day != "*" and weekday != "*")


def compare(expression: str, where: int, offset: int, *, literal: bool) -> None:
    """The next five occurrences, as far as the walk reaches."""
    assume(unambiguous(expression))
    key, change = changes()[where % len(changes())]
    after = change + timedelta(seconds=offset)
    wakings = walk(key, change)
    coming = Oracle.read(expression).occurrences(since(wakings, after), literal=literal)
    expected = (instant for instant in coming if instant > after)
    for _ in range(5):
        want = next(expected, None)
        if want is None and not possible(expression):
            with pytest.raises(InvalidCronError, match="never"):
                next_occurrence(expression, after, key, literal_dst=literal)
            return
        have = next_occurrence(expression, after, key, literal_dst=literal)
        if want is None:
            assert have is None or have >= change + REACH
            return
        assert want == have, (expression, key, after, want, have)
        after = want


def stable(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


WHERE = st.integers(0, 10_000)


@stable(800)
@given(FIVE, WHERE, NEAR)
def test_five_fields(expression: str, where: int, offset: int) -> None:
    """Five fields fire exactly when Debian's cron would, also around clock changes."""
    compare(expression, where, offset, literal=False)


@stable(500)
@given(SIX, WHERE, NEAR)
def test_six_fields(expression: str, where: int, offset: int) -> None:
    """Six fields follow the same rules to the second."""
    compare(expression, where, offset, literal=False)


@stable(250)
@given(FIVE, WHERE, NEAR)
def test_literal(expression: str, where: int, offset: int) -> None:
    """With literal_dst nothing is made up for and nothing is held back."""
    compare(expression, where, offset, literal=True)


@stable(250)
@given(FIVE, WHERE, NEAR)
def test_twins(expression: str, where: int, offset: int) -> None:
    """A leading second 0 changes nothing."""
    key, change = changes()[where % len(changes())]
    after = change + timedelta(seconds=offset)
    assume(possible(expression))

    assert next_occurrence(expression, after, key) == next_occurrence(f"0 {expression}", after, key)


@pytest.mark.parametrize(("key", "change"), changes(), ids=lambda value: str(value))
def test_each_change(key: str, change: datetime) -> None:
    """Around every change, a few usual jobs agree with the oracle from each quarter of an hour."""
    wakings = walk(key, change)
    for expression in ("30 * * * *", "*/20 2 * * *", "30 0 * * *", "15 1,2,3 * * *", "5 0-23 * * *"):
        for quarter in range(-16, 17):
            after = change + quarter * timedelta(minutes=15)
            coming = Oracle.read(expression).occurrences(since(wakings, after), literal=False)
            want = next(instant for instant in coming if instant > after)

            assert want == next_occurrence(expression, after, key), (expression, after)


def test_reach() -> None:
    """The oracle covers at least nine zones, and changes in both directions."""
    shifts = {}
    for key, change in changes():
        tz = zone(key)
        before, later = (t.astimezone(tz).utcoffset() for t in (change - MINUTE, change))
        assert before is not None
        assert later is not None
        shifts[key, later > before] = abs(later - before)

    assert len({key for key, _ in shifts}) >= 9
    assert {True, False} == {forward for _, forward in shifts}
    assert min(shifts.values()) < timedelta(hours=1)
    assert max(shifts.values()) >= timedelta(hours=3)
