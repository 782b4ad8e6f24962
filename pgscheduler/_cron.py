"""What a cron expression says: its grammar, and the wall-clock times that it names.

croniter reads the fields, but never the raw text: it gives random times for ``R``, wraps
``22-2`` round midnight and takes ``9-9`` for every hour. So each field first passes a strict
checker, which rejects what has no one meaning and rewrites the rest. The stepping is done here:
croniter's own can take 30 ms for a date that does not exist, and seconds in a daylight-saving gap.

Everything in this file is naive wall-clock time; time zones are the business of ``schedule``.
"""

from __future__ import annotations

import calendar
import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import MAXYEAR, datetime, timedelta
from types import MappingProxyType
from typing import Any, NoReturn

from croniter import croniter

from .errors import InvalidCronError

__all__ = ["HORIZON_YEARS", "MAX_LENGTH", "SECOND", "Text", "WallClock", "cut", "read"]

MAX_LENGTH = 256  # characters; a 60-item minute list fits, and parsing takes at most 1.5 ms
HORIZON_YEARS = 50  # the rarest real date, a weekday on 29 February, can be 40 years away
SECOND = timedelta(seconds=1)

_ECHO = 20  # characters of the input that an error text may repeat: logs are not to be flooded
_ALIASES = MappingProxyType(
    {
        "@yearly": "0 0 1 1 *",
        "@annually": "0 0 1 1 *",
        "@monthly": "0 0 1 * *",
        "@weekly": "0 0 * * 0",
        "@daily": "0 0 * * *",
        "@midnight": "0 0 * * *",
        "@hourly": "0 * * * *",
    }
)
_BLANKS = re.compile(r"[ \t]+")
_ZONE_PREFIX = re.compile(r"(?:CRON_TZ|TZ)=([^ \t]*)[ \t]*(.*)", re.DOTALL)
_FOREIGN = re.compile(r"[^0-9A-Za-z*/,\-?#@=_+.() \t]")
_EVERY = re.compile(r"@every(?![^ \t])[ \t]*(.*)")
_DURATION = re.compile(r"(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?")
_ITEM = re.compile(r"(?:\*|(?P<low>[0-9a-z]+)(?:-(?P<high>[0-9a-z]+))?)(?:/(?P<step>[0-9a-z]+))?")
_NTH = re.compile(r"([0-9a-z]+)#([0-9]+)|l([0-9]+)")


@dataclass(frozen=True)
class _Field:
    """One column of an expression: its name, its bounds and the words that stand for numbers."""

    name: str
    low: int
    high: int
    words: Mapping[str, int] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name as an error text spells it."""
        return self.name.replace("_", " ")


_DAY = _Field("day_of_month", 1, 31)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_MONTH = _Field("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)})
_WEEKDAY = _Field("day_of_week", 0, 7, {name: number for number, name in enumerate(_WEEKDAYS)})
_SIX = (_Field("second", 0, 59), _Field("minute", 0, 59), _Field("hour", 0, 23), _DAY, _MONTH, _WEEKDAY)
_FIVE = _SIX[1:]


def cut(text: str) -> str:
    """``text`` quoted for an error message: ASCII, one line, at most 20 characters of it."""
    shown = ascii(text[:_ECHO])[1:-1]
    return f"'{shown[:_ECHO]}…'" if len(text) > _ECHO or len(shown) > _ECHO else f"'{shown}'"


@dataclass(frozen=True)
class Text:
    """An expression taken apart. Exactly one of ``every`` and ``fields`` is set."""

    zone: str | None  # from a CRON_TZ= or TZ= prefix
    every: timedelta | None  # from @every
    fields: tuple[str, ...]


def read(expression: object) -> Text:
    """Take an expression apart; its fields are split, but not yet checked.

    Raises InvalidCronError: type, too_long, empty, bad_character, unknown_alias, bad_duration,
    field_count.
    """
    if not isinstance(expression, str):
        kind = type(expression).__name__[:_ECHO]
        raise InvalidCronError("type", "cron", f"the expression must be a str, got {kind}", expression)
    text, zone = expression.strip(), None
    if len(text) > MAX_LENGTH:
        size = f"{len(text)} characters are too long; at most {MAX_LENGTH} are allowed"
        raise InvalidCronError("too_long", "cron", size, expression)
    if prefix := _ZONE_PREFIX.fullmatch(text):
        zone, text = prefix[1], prefix[2]
    if not text:
        rule = "the expression is empty" if zone is None else "nothing follows the time zone"
        raise InvalidCronError("empty", "cron", rule, expression)
    if foreign := _FOREIGN.search(text):
        rule = f"the character {cut(foreign[0])} is not allowed"
        raise InvalidCronError("bad_character", "cron", rule, expression)
    return _named(zone, text) if text.startswith("@") else _columns(zone, text)


def _named(zone: str | None, text: str) -> Text:
    """``@daily`` and its like, and ``@every 1h30m``."""
    name = text.lower()
    if every := _EVERY.fullmatch(name):
        return Text(zone, _duration(every[1]), ())
    if name not in _ALIASES:
        known = ", ".join(_ALIASES)
        rule = f"the name {cut(text)} is unknown; there are {known} and @every"
        raise InvalidCronError("unknown_alias", "cron", rule, text)
    return _columns(zone, _ALIASES[name])


def _duration(text: str) -> timedelta:
    """The interval of ``@every``: hours, minutes and seconds, in this order, from 1s to 50 years."""
    parts = _DURATION.fullmatch(text)
    if not text or parts is None:
        rule = f"@every needs a duration like 1h30m or 45s, got {cut(text)}"
        raise InvalidCronError("bad_duration", "cron", rule, text)
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    total = hours * 3600 + minutes * 60 + seconds
    if not 1 <= total <= HORIZON_YEARS * 366 * 86400:
        rule = f"@every needs a duration from 1s to {HORIZON_YEARS} years, got {cut(text)}"
        raise InvalidCronError("bad_duration", "cron", rule, text)
    return timedelta(seconds=total)


def _columns(zone: str | None, text: str) -> Text:
    """Five fields, or six with the seconds first."""
    fields = tuple(_BLANKS.split(text))
    if len(fields) not in (5, 6):
        rule = f"expected 5 fields (or 6 with seconds first), got {len(fields)}"
        raise InvalidCronError("field_count", "cron", rule, text)
    return Text(zone, None, fields)


# --- the strict checker: one field in, one field that croniter reads as cron would, out ---


def _reject(code: str, where: _Field, rule: str, value: object) -> NoReturn:
    raise InvalidCronError(code, where.name, rule, value)


def _checked(where: _Field, text: str) -> str:
    """One field as croniter may see it, with everything rewritten that it would misread."""
    if text == "?" and where in (_DAY, _WEEKDAY):
        return "*"
    items = [_item(where, item) for item in text.lower().split(",")]
    ranked = [item for item in items if "#" in item or (item.startswith("l") and where is _WEEKDAY)]
    if ranked and len(ranked) < len(items):
        _reject("mixed_nth", where, f"{where.label} {cut(text)} mixes plain days with # or L days", text)
    return "*" if "*" in items else ",".join(dict.fromkeys(items))


def _item(where: _Field, item: str) -> str:
    """One item of a list: ``*``, ``N``, ``N-M``, each with an optional ``/step``, or an L or # form."""
    if where is _DAY and item == "l":
        return item
    if where is _WEEKDAY and (ranked := _NTH.fullmatch(item)):
        return _ranked(ranked)
    form = _ITEM.fullmatch(item)
    if form is None:
        _malformed(where, item)
    if form["low"] is None:
        step = _step(where, form["step"], item)
        return "*" if step == 1 else f"*/{step}"
    low = _value(where, form["low"], item)
    # A start with a step runs to the end of its field, and 7 is Sunday once more, not a longer week.
    end = max(low, 6) if where is _WEEKDAY else where.high
    high = _value(where, form["high"], item) if form["high"] else (end if form["step"] else low)
    step = _step(where, form["step"], item)
    if high < low:
        rule = f"range {cut(item)} of the {where.label} runs backwards; write it as two ranges"
        _reject("reversed_range", where, rule, item)
    return str(low) if high == low else f"{low}-{high}/{step}"  # croniter takes N-N for the whole field


def _ranked(form: re.Match[str]) -> str:
    """``d#n``, the n-th such weekday of the month, and ``Ld``, the last one."""
    day = _value(_WEEKDAY, form[1] or form[3], form[0])
    if form[2] and not 1 <= int(form[2]) <= 5:
        rule = f"day of week {cut(form[0])} asks for a week that is not within 1-5"
        _reject("out_of_range", _WEEKDAY, rule, form[0])
    return f"{day % 7}#{int(form[2])}" if form[2] else f"l{day % 7}"


def _value(where: _Field, text: str, item: str) -> int:
    """A number, or a word that stands for one, within the field's bounds."""
    if text in where.words:
        return where.words[text]
    if not text.isdecimal():
        _malformed(where, item)
    value = int(text)
    if not where.low <= value <= where.high:
        rule = f"{where.label} must be within {where.low}-{where.high}, got {cut(text)}"
        _reject("out_of_range", where, rule, item)
    return value


def _step(where: _Field, text: str | None, item: str) -> int:
    """The step after a slash, 1 without one. More than the field's maximum would be a mistake."""
    if text is None:
        return 1
    if not text.isdecimal() or not 1 <= int(text) <= where.high:
        rule = f"step of the {where.label} must be within 1-{where.high}, got {cut(text)}"
        _reject("bad_step", where, rule, item)
    return int(text)


def _malformed(where: _Field, item: str) -> NoReturn:
    """Say what is wrong with an item that is not of our grammar."""
    at = f"{where.label} {cut(item)}"
    if item.startswith("r"):
        _reject("bad_value", where, f"{at}: random values (R) differ from node to node; use a number", item)
    if item.startswith("h"):
        _reject("bad_value", where, f"{at}: hash values (H) are not supported; use a number", item)
    if where is _DAY and "w" in item:
        _reject("bad_value", where, f"{at}: nearest weekdays (W) are not supported", item)
    code = "bad_value" if item.isalpha() else "syntax"
    _reject(code, where, f"{at} is neither *, a number, a name, a range nor a step of these", item)


# --- the wall clock ---


class WallClock:
    """The wall-clock times of one expression. Immutable in effect, so threads may share it.

    ``fixed`` tells the two kinds of jobs apart that daylight saving treats differently: jobs at
    fixed times of day, and those with a ``*`` in second, minute or hour, which follow the clock.
    """

    __slots__ = (
        "_by_shape",
        "_dom",
        "_dow",
        "_either",
        "_hours",
        "_last",
        "_minutes",
        "_months",
        "_nth",
        "_seconds",
        "fixed",
    )

    def __init__(self, fields: Sequence[str], *, day_or: bool) -> None:
        """Check ``fields`` (5, or 6 with seconds first). Raises InvalidCronError, ``never`` included."""
        layout = _SIX if len(fields) == 6 else _FIVE
        checked = [_checked(where, text) for where, text in zip(layout, fields, strict=True)]
        if checked[-3] != "*" and ("#" in checked[-1] or "l" in checked[-1]):
            rule = f"day of month {cut(fields[-3])} cannot be combined with # or L in day of week"
            raise InvalidCronError("day_and_nth", "day_of_week", rule, fields[-1])
        self.fixed = not any(text.startswith("*") for text in fields[:-3])
        columns, nth = croniter.expand(" ".join(checked), second_at_beginning=True)
        self._fill(columns, nth, day_or)
        self._by_shape: dict[tuple[int, int], tuple[int, ...]] = {}
        # Every real date recurs within 40 years, so one trial from anywhere decides.
        if self.next(datetime(2000, 1, 1)) is None:  # noqa: DTZ001 - wall-clock time
            rule = "it never fires: no chosen month has the chosen day"
            raise InvalidCronError("never", "day_of_month", rule, " ".join(fields))

    def _fill(self, columns: list[list[Any]], nth: dict[int, set[Any]], day_or: bool) -> None:
        """Take over croniter's columns: minute, hour, day, month, weekday and perhaps second."""
        minutes, hours, days, months, weekdays, *rest = columns
        self._minutes = _numbers(minutes, 0, 59)
        self._hours = _numbers(hours, 0, 23)
        self._months = frozenset(_numbers(months, 1, 12))
        self._seconds = _numbers(rest[0], 0, 59) if rest else (0,)
        self._dom = None if days[0] == "*" else frozenset(d for d in days if d != "l")
        self._last = "l" in days
        self._dow = None if weekdays[0] == "*" else frozenset(weekdays)
        self._nth = nth
        self._either = day_or and self._dom is not None and self._dow is not None

    def next(self, wall: datetime) -> datetime | None:
        """The first time strictly later than ``wall``, or None within the next 50 years.

        Needs at most half a millisecond, for a day that no month has.
        """
        try:
            start = wall.replace(microsecond=0) + SECOND
        except OverflowError:
            return None
        year, month, day = start.year, start.month, start.day
        if month in self._months and day in self._days(year, month):
            clock = self._clock(start.hour, start.minute, start.second)
            if clock is not None:
                return start.replace(hour=clock[0], minute=clock[1], second=clock[2])
        return self._first_of_day(year, month, day + 1)

    def _clock(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """The first time of day at or after the given one."""
        hours, minutes, seconds = self._hours, self._minutes, self._seconds
        if hour in hours:
            if minute in minutes and second <= seconds[-1]:
                return hour, minute, seconds[bisect_left(seconds, second)]
            if minute < minutes[-1]:
                return hour, minutes[bisect_right(minutes, minute)], seconds[0]
        if hour < hours[-1]:
            return hours[bisect_right(hours, hour)], minutes[0], seconds[0]
        return None

    def _first_of_day(self, year: int, month: int, day: int) -> datetime | None:
        """The first time on the first chosen day at or after the given one (which need not exist)."""
        final = min(year + HORIZON_YEARS, MAXYEAR)
        while year <= final:
            if month in self._months:
                days = self._days(year, month)
                if days and day <= days[-1]:
                    found = days[bisect_left(days, day)]
                    clock = (self._hours[0], self._minutes[0], self._seconds[0])
                    return datetime(year, month, found, *clock)  # noqa: DTZ001 - wall-clock time
            year, month, day = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
        return None

    def _days(self, year: int, month: int) -> tuple[int, ...]:
        """The chosen days of a month. They depend on its shape alone, and there are 28 shapes."""
        shape = calendar.monthrange(year, month)
        days = self._by_shape.get(shape)
        if days is None:
            # Two threads may both compute it; they store the same tuple.
            days = tuple(d for d in range(1, shape[1] + 1) if self._chosen(d, *shape))
            self._by_shape[shape] = days
        return days

    def _chosen(self, day: int, first_weekday: int, length: int) -> bool:
        """Whether the day rule takes ``day`` of a month that begins on ``first_weekday`` (0 = Monday)."""
        weekday = (first_weekday + day) % 7  # 0 = Sunday, as in cron
        by_day = self._dom is None or day in self._dom or (self._last and day == length)
        by_week = self._dow is None or weekday in self._dow
        if by_week and self._nth:
            ranks = self._nth.get(weekday, ())
            by_week = (day + 6) // 7 in ranks or ("l" in ranks and day + 7 > length)
        return (by_day or by_week) if self._either else (by_day and by_week)


def _numbers(column: list[Any], low: int, high: int) -> tuple[int, ...]:
    """One of croniter's columns as sorted numbers; ``*`` is all of them."""
    return tuple(range(low, high + 1)) if column[0] == "*" else tuple(sorted(column))
