"""Schedules: the grammar of ``Cron``, its clock changes, ``Every``, time zones and ``missed``.

The arithmetic around clock changes is compared with an oracle in ``test_cron_oracle``.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
import time
import zoneinfo
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from pgscheduler import schedule as module
from pgscheduler._cron import WallClock, read
from pgscheduler.errors import InvalidCronError, InvalidTypeError, InvalidValueError
from pgscheduler.schedule import TZDATA_VERSION, Cron, Every, Missed, Schedule, missed, next_occurrence, zone

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def coming(expression: str, after: str, count: int, key: str = "UTC", **rules: Any) -> list[str]:
    """The next occurrences as texts in UTC, without the date where it is that of ``after``."""
    at, found = utc(after), []
    for _ in range(count):
        instant = next_occurrence(expression, at, key, **rules)
        assert instant is not None
        at = instant
        found.append(at.strftime("%Y-%m-%dT%H:%M:%S").removeprefix(after[:10] + "T"))
    return found


# --- what is accepted ---


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", "2023-05-01T10:01:00"),
        ("*/5 * * * *", "2023-05-01T10:05:00"),
        ("30 15 * * *", "2023-05-01T15:30:00"),
        ("30 9 * * *", "2023-05-02T09:30:00"),
    ],
)
def test_next_run(expression: str, expected: str) -> None:
    """The next run is strictly later than now."""
    assert utc(expected) == Cron(expression).next_after(utc("2023-05-01T10:00"))


def test_next_run_of_nonsense() -> None:
    """Two words are no schedule."""
    with pytest.raises(ValueError, match="invalid cron schedule: expected 5 fields"):
        Cron("invalid cron")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0/30 * * * * *", ["12:00:30", "12:01:00", "12:01:30"]),
        ("*/10 * * * * *", ["12:00:10", "12:00:20", "12:00:30"]),
        ("0 * * * * *", ["12:01:00", "12:02:00"]),
        ("0 */5 * * * *", ["12:05:00", "12:10:00"]),
        ("0 15 * * * *", ["12:15:00", "13:15:00"]),
        ("0 0 */1 * * *", ["13:00:00", "14:00:00"]),
        ("0 0 0 * * *", ["2024-05-02T00:00:00", "2024-05-03T00:00:00"]),
        ("0 0 3 * * *", ["2024-05-02T03:00:00"]),
        ("0 30 9 * * MON-FRI", ["2024-05-02T09:30:00", "2024-05-03T09:30:00", "2024-05-06T09:30:00"]),
        ("0 0 0 1 * *", ["2024-06-01T00:00:00", "2024-07-01T00:00:00"]),
    ],
)
def test_seconds_first(expression: str, expected: list[str]) -> None:
    """Of six fields the first is the seconds."""
    assert expected == coming(expression, "2024-05-01T12:00", len(expected))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        # single values, lists, ranges, steps
        ("5 * * * *", ["12:05:00", "13:05:00"]),
        ("05 012 * * *", ["12:05:00"]),
        ("10,20,20,15 * * * *", ["12:10:00", "12:15:00", "12:20:00", "13:10:00"]),
        ("10-12 * * * *", ["12:10:00", "12:11:00", "12:12:00", "13:10:00"]),
        ("10-20/5 * * * *", ["12:10:00", "12:15:00", "12:20:00", "13:10:00"]),
        ("50/5 * * * *", ["12:50:00", "12:55:00", "13:50:00"]),
        ("59/15 * * * *", ["12:59:00", "13:59:00"]),
        ("*/59 * * * *", ["12:59:00", "13:00:00"]),
        ("*/25,7 * * * *", ["12:07:00", "12:25:00", "12:50:00", "13:00:00"]),
        ("7,* * * * *", ["12:01:00", "12:02:00"]),
        # a range of one is one value, not the whole field
        ("0 9-9 * * *", ["2024-05-02T09:00:00", "2024-05-03T09:00:00"]),
        ("0 9-9/2 * * *", ["2024-05-02T09:00:00", "2024-05-03T09:00:00"]),
        # names, in any case
        ("0 0 * * mon", ["2024-05-06T00:00:00"]),
        ("0 0 * * Mon-WED", ["2024-05-06T00:00:00", "2024-05-07T00:00:00"]),
        ("0 0 1 FEB,jan *", ["2025-01-01T00:00:00", "2025-02-01T00:00:00"]),
        ("0 0 1 Oct/2 *", ["2024-10-01T00:00:00", "2024-12-01T00:00:00", "2025-10-01T00:00:00"]),
        # Sunday has two numbers
        ("0 0 * * 0", ["2024-05-05T00:00:00", "2024-05-12T00:00:00"]),
        ("0 0 * * 7", ["2024-05-05T00:00:00", "2024-05-12T00:00:00"]),
        ("0 0 * * 7/2", ["2024-05-05T00:00:00", "2024-05-12T00:00:00"]),
        ("0 0 * * 6-7", ["2024-05-04T00:00:00", "2024-05-05T00:00:00", "2024-05-11T00:00:00"]),
        ("0 0 * * FRI-7", ["2024-05-03T00:00:00", "2024-05-04T00:00:00", "2024-05-05T00:00:00"]),
        ("0 0 * * 5/1", ["2024-05-03T00:00:00", "2024-05-04T00:00:00", "2024-05-10T00:00:00"]),
        # no restriction
        ("0 0 ? * ?", ["2024-05-02T00:00:00", "2024-05-03T00:00:00"]),
        ("0 0 */1 * 1", ["2024-05-06T00:00:00", "2024-05-13T00:00:00"]),
        ("0 0 *,5 * 1", ["2024-05-06T00:00:00", "2024-05-13T00:00:00"]),
        ("0 0 ? * 1", ["2024-05-06T00:00:00", "2024-05-13T00:00:00"]),
        ("0 0 10 * *", ["2024-05-10T00:00:00", "2024-06-10T00:00:00"]),
        # last days, and n-th and last weekdays
        ("0 0 L 2 *", ["2025-02-28T00:00:00", "2026-02-28T00:00:00", "2027-02-28T00:00:00"]),
        ("0 0 l,30 * *", ["2024-05-30T00:00:00", "2024-05-31T00:00:00", "2024-06-30T00:00:00"]),
        ("0 0 * * 5#2", ["2024-05-10T00:00:00", "2024-06-14T00:00:00"]),
        ("0 0 ? * fri#2,7#1", ["2024-05-05T00:00:00", "2024-05-10T00:00:00", "2024-06-02T00:00:00"]),
        ("0 0 *,15 * 1#1", ["2024-05-06T00:00:00", "2024-06-03T00:00:00"]),
        ("0 0 * * L5", ["2024-05-31T00:00:00", "2024-06-28T00:00:00"]),
        ("0 0 * * l7,L5", ["2024-05-26T00:00:00", "2024-05-31T00:00:00"]),
        # rare, but real
        ("0 0 29 2 *", ["2028-02-29T00:00:00", "2032-02-29T00:00:00"]),
        ("0 0 * 2 1#5", ["2044-02-29T00:00:00", "2072-02-29T00:00:00", "2112-02-29T00:00:00"]),
        ("0 0 31 4,5 *", ["2024-05-31T00:00:00", "2025-05-31T00:00:00"]),
        ("0 0 31 2 1", ["2025-02-03T00:00:00"]),
        # white space
        ("  0\t12  *  *  * \r\n", ["2024-05-02T12:00:00"]),
    ],
)
def test_accepted(expression: str, expected: list[str]) -> None:
    """Every form of the grammar means what cron means by it."""
    assert expected == coming(expression, "2024-05-01T12:00", len(expected))


@pytest.mark.parametrize(
    ("alias", "twin"),
    [
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
        ("@monthly", "0 0 1 * *"),
        ("@weekly", "0 0 * * 0"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@hourly", "0 * * * *"),
    ],
)
def test_aliases(alias: str, twin: str) -> None:
    """An alias is its expression, in any case and with blanks around it."""
    expected = coming(twin, "2024-05-01T12:00", 3)

    for spelling in (alias, alias.upper(), f"  {alias} ", f"CRON_TZ=UTC {alias}"):
        assert expected == coming(spelling, "2024-05-01T12:00", 3)


@pytest.mark.parametrize(
    ("expression", "interval"),
    [
        ("@every 1h30m", timedelta(minutes=90)),
        ("@every 90m", timedelta(minutes=90)),
        ("@EVERY 1H2M3S", timedelta(seconds=3723)),
        ("@every  1s", SECOND),
        ("TZ=Asia/Tokyo @every 48h", timedelta(days=2)),
    ],
)
def test_every_in_cron(expression: str, interval: timedelta) -> None:
    """@every counts elapsed time from the instant, cut to the second."""
    assert utc("2024-05-01T12:00:07") + interval == Cron(expression).next_after(utc("2024-05-01T12:00:07.9"))


def test_day_rule() -> None:
    """Either day field will do; with day_or=False both must match."""
    assert coming("0 0 13 9 5", "2024-09-01T00:00", 3) == [
        "2024-09-06T00:00:00",
        "2024-09-13T00:00:00",
        "2024-09-20T00:00:00",
    ]
    assert coming("0 0 13 * 5", "2024-09-01T00:00", 2, day_or=False) == [
        "2024-09-13T00:00:00",
        "2024-12-13T00:00:00",
    ]


def test_rare_days_with_and() -> None:
    """A weekday on 29 February is found although it may be forty years away."""
    cron = Cron("0 0 29 2 MON", day_or=False)

    assert utc("2112-02-29T00:00") == cron.next_after(utc("2072-02-29T00:00"))


@pytest.mark.parametrize("prefix", ["CRON_TZ=", "TZ="])
def test_zone_prefix(prefix: str) -> None:
    """A zone in front of the expression overrides the argument."""
    cron = Cron(f"{prefix}Asia/Tokyo 0 9 * * *", timezone="America/New_York")

    assert utc("2024-05-02T00:00") == cron.next_after(utc("2024-05-01T12:00"))


def test_longest() -> None:
    """256 characters are allowed, blanks around them not counted."""
    text = ",".join(["1"] * 124) + " * * * *"
    text = "0" * (256 - len(text)) + text

    assert utc("2024-05-01T12:01") == Cron(f" {text} ").next_after(utc("2024-05-01T12:00"))


# --- what is rejected ---


REJECTED = [
    # expression, code, field, text
    (None, "type", "cron", "must be a str"),
    (5, "type", "cron", "str"),
    (b"* * * * *", "type", "cron", "str, got bytes"),
    (["*"] * 5, "type", "cron", "str"),
    ("", "empty", "cron", "empty"),
    (" \t\n ", "empty", "cron", "empty"),
    ("CRON_TZ=UTC", "empty", "cron", "nothing follows"),
    ("TZ=Europe/Berlin  ", "empty", "cron", "nothing follows"),
    ("*" * 257, "too_long", "cron", "257 characters are too long"),
    ("0," * 20_000 + "0 * * * *", "too_long", "cron", "long"),
    ("1" * 5000 + " * * * *", "too_long", "cron", "long"),
    ("* * * *", "field_count", "cron", "5 fields .*got 4"),
    ("*", "field_count", "cron", "5 fields .*got 1"),
    ("* * * * * * *", "field_count", "cron", "5 fields .*got 7"),
    ("0 0 0 1 1 ? 2025", "field_count", "cron", "5 fields .*got 7"),
    ("0\n0\n*\n*\n*", "bad_character", "cron", "not allowed"),
    ("0\x0b0 * * *", "bad_character", "cron", "not allowed"),
    ("0 0\x00 * * *", "bad_character", "cron", "not allowed"),
    ("0\xa00 * * *", "bad_character", "cron", "not allowed"),
    ("٣ * * * *", "bad_character", "cron", "not allowed"),
    ("* * * * *; drop table x", "bad_character", "cron", "not allowed"),
    ("60 * * * *", "out_of_range", "minute", "minute.*60"),
    ("0-60 * * * *", "out_of_range", "minute", "minute.*60"),
    ("60/5 * * * *", "out_of_range", "minute", "minute.*60"),
    ("60 * * * * *", "out_of_range", "second", "second.*60"),
    ("* 24 * * *", "out_of_range", "hour", "hour.*24"),
    ("* * 0 * *", "out_of_range", "day_of_month", "day of month.*0"),
    ("* * 32 * *", "out_of_range", "day_of_month", "day of month.*32"),
    ("* * * 0 *", "out_of_range", "month", "month.*0"),
    ("* * * 13 *", "out_of_range", "month", "month.*13"),
    ("* * * * 8", "out_of_range", "day_of_week", "day of week.*8"),
    ("0 0 * * 1#0", "out_of_range", "day_of_week", "1#0"),
    ("0 0 * * 1#6", "out_of_range", "day_of_week", "1#6"),
    ("0 0 * * 8#1", "out_of_range", "day_of_week", "8"),
    ("0 0 * * L8", "out_of_range", "day_of_week", "8"),
    ("9" * 200 + " * * * *", "out_of_range", "minute", "minute"),
    ("*/0 * * * *", "bad_step", "minute", "step.*0"),
    ("*/60 * * * *", "bad_step", "minute", "step"),
    ("*/99999 * * * *", "bad_step", "minute", "step"),
    ("5/0 * * * *", "bad_step", "minute", "step"),
    ("0 */24 * * *", "bad_step", "hour", "step"),
    ("*/x * * * *", "bad_step", "minute", "step"),
    ("5-1 * * * *", "reversed_range", "minute", "range"),
    ("0 22-2 * * *", "reversed_range", "hour", "range"),
    ("0 0 * * SAT-SUN", "reversed_range", "day_of_week", "range"),
    ("0 0 * 12-1 *", "reversed_range", "month", "range"),
    ("-1 * * * *", "syntax", "minute", "minute"),
    ("1- * * * *", "syntax", "minute", "minute"),
    ("1-2-3 * * * *", "syntax", "minute", "minute"),
    ("1,,2 * * * *", "syntax", "minute", "minute"),
    (",1 * * * *", "syntax", "minute", "minute"),
    ("*/ * * * *", "syntax", "minute", "minute"),
    ("*/5/5 * * * *", "syntax", "minute", "minute"),
    ("** * * * *", "syntax", "minute", "minute"),
    ("+5 * * * *", "syntax", "minute", "minute"),
    ("1.5 * * * *", "syntax", "minute", "minute"),
    ("? * * * *", "syntax", "minute", "minute"),
    ("* * ?/2 * *", "syntax", "day_of_month", "day of month"),
    ("* * ?,1 * *", "syntax", "day_of_month", "day of month"),
    ("0 0 5L * *", "syntax", "day_of_month", "5l"),
    ("0 0 L-3 * *", "syntax", "day_of_month", "l-3"),
    ("0 0 LW * *", "bad_value", "day_of_month", "weekdays"),
    ("0 0 15W * *", "bad_value", "day_of_month", "weekdays"),
    ("0 0 * * L", "bad_value", "day_of_week", "day of week"),
    ("0 0 * * *#2", "syntax", "day_of_week", "day of week"),
    ("a b c d e", "bad_value", "minute", "minute 'a'"),
    ("0 0 * foo *", "bad_value", "month", "foo"),
    ("0 0 * * january", "bad_value", "day_of_week", "january"),
    ("jan * * * *", "bad_value", "minute", "jan"),
    ("R R * * *", "bad_value", "minute", "random"),
    ("R/5 * * * *", "bad_value", "minute", "random"),
    ("R(0-9) * * * *", "bad_value", "minute", "random"),
    ("H H * * *", "bad_value", "minute", "hash"),
    ("H/15 * * * *", "bad_value", "minute", "hash"),
    ("0 0 * * 1,2#1", "mixed_nth", "day_of_week", "mixes"),
    ("0 0 * * *,L5", "mixed_nth", "day_of_week", "mixes"),
    ("0 0 1 * 1#2", "day_and_nth", "day_of_week", "combined"),
    ("0 0 L * L5", "day_and_nth", "day_of_week", "combined"),
    ("0 0 29 2 1#5", "day_and_nth", "day_of_week", "combined"),
    ("@reboot", "unknown_alias", "cron", "@reboot"),
    ("@foo", "unknown_alias", "cron", "@foo"),
    ("@daily x", "unknown_alias", "cron", "@daily x"),
    ("@", "unknown_alias", "cron", "@"),
    ("@everyday", "unknown_alias", "cron", "@everyday"),
    ("@every", "bad_duration", "cron", "@every"),
    ("@every 0s", "bad_duration", "cron", "@every"),
    ("@every 1", "bad_duration", "cron", "@every"),
    ("@every 500ms", "bad_duration", "cron", "@every"),
    ("@every 1.5h", "bad_duration", "cron", "@every"),
    ("@every -5m", "bad_duration", "cron", "@every"),
    ("@every 30m1h", "bad_duration", "cron", "@every"),
    ("@every " + "9" * 200 + "h", "bad_duration", "cron", "@every"),
    ("TZ=Nope/Nope * * * * *", "bad_zone", "timezone", "time zone.*Nope"),
    ("TZ= * * * * *", "bad_zone", "timezone", "time zone"),
    ("CRON_TZ=utc * * * * *", "bad_zone", "timezone", "time zone"),
    ("cron_tz=UTC * * * * *", "syntax", "second", "second"),
    ("0 0 30 2 *", "never", "day_of_month", "never"),
    ("0 0 31 4 *", "never", "day_of_month", "never"),
    ("0 0 30,31 2 *", "never", "day_of_month", "never"),
    ("59 59 23 31 2,4,6,9,11 ?", "never", "day_of_month", "never"),
]


@pytest.mark.parametrize(
    ("expression", "code", "field", "text"), REJECTED, ids=lambda value: repr(value)[:40]
)
def test_rejected(expression: Any, code: str, field: str, text: str) -> None:
    """What is no schedule is refused with a code, the field and a reason."""
    with pytest.raises(InvalidCronError, match=f"(?i)^invalid cron schedule: .*{text}") as caught:
        Cron(expression)

    assert (code, field) == (caught.value.code, caught.value.field)


@pytest.mark.parametrize(
    "expression", [e for e, *_ in REJECTED if isinstance(e, str)], ids=lambda e: repr(e)[:40]
)
def test_no_echo(expression: str) -> None:
    """An error repeats at most 20 characters of the input, on one line and in ASCII."""
    with pytest.raises(InvalidCronError) as caught:
        Cron(expression)

    text = str(caught.value)
    assert text.replace("…", "").isascii()
    assert text.isprintable()
    assert len(text) < 220
    assert not any(expression[i : i + 21] in text for i in range(len(expression) - 20))


def test_and_that_never_meets() -> None:
    """With day_or=False an impossible day is not saved by the weekday."""
    with pytest.raises(InvalidCronError, match="never"):
        Cron("0 0 31 2 1", day_or=False)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"timezone": None}, "timezone"),
        ({"timezone": ["UTC"]}, "timezone"),
        ({"timezone": zoneinfo.ZoneInfo("UTC")}, "timezone"),
        ({"day_or": None}, "day_or"),
        ({"day_or": []}, "day_or"),
    ],
)
def test_wrong_types(arguments: dict[str, Any], field: str) -> None:
    """Wrong types are errors of the schedule, not of Python."""
    with pytest.raises(InvalidCronError) as caught:
        Cron("* * * * *", **arguments)

    assert ("type", field) == (caught.value.code, caught.value.field)


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(st.one_of(st.text(max_size=300), st.text("0123456789*/,-?#@LWRH ", max_size=80)))
def test_any_text(text: str) -> None:
    """Any text is either a schedule with a next time or an InvalidCronError."""
    try:
        cron = Cron(text)
    except InvalidCronError:
        return

    assert cron.next_after(utc("2024-05-01T12:00")) is not None


# --- next_after ---


def test_strictly_later() -> None:
    """The answer is strictly later, a whole second, and in UTC."""
    cron = Cron("* * * * * *")

    for after, expected in (
        ("12:00:00", "12:00:01"),
        ("12:00:00.000001", "12:00:01"),
        ("12:00:59.999999", "12:01:00"),
    ):
        answer = cron.next_after(utc(f"2024-05-01T{after}"))
        assert utc(f"2024-05-01T{expected}") == answer
        assert answer is not None
        assert answer.tzinfo is UTC


def test_any_aware_instant() -> None:
    """The instant may come in any zone."""
    east = datetime(2024, 5, 1, 21, 0, tzinfo=timezone(timedelta(hours=9)))

    assert utc("2024-05-01T12:01") == Cron("* * * * *").next_after(east)


@pytest.mark.parametrize("ask", [Cron("* * * * *").next_after, Every(SECOND).next_after])
def test_naive_instant(ask: Callable[[Any], object]) -> None:
    """A naive instant is refused: nobody knows which instant it is."""
    with pytest.raises(InvalidValueError, match="instant must be an aware datetime"):
        ask(datetime(2024, 5, 1))
    with pytest.raises(InvalidTypeError, match="instant must be a datetime"):
        ask("2024-05-01")
    with pytest.raises(InvalidValueError, match="after must be an aware datetime"):
        next_occurrence("* * * * *", datetime(2024, 5, 1))


@pytest.mark.parametrize("key", ["UTC", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("expression", ["* * * * * *", "0 3 * * *", "0 0 29 2 *", "@every 1h"])
def test_ends_of_time(key: str, expression: str) -> None:
    """After the year 9999 there is nothing, and at its ends the calendar breaks nothing."""
    cron = Cron(expression, key)

    assert cron.next_after(datetime.max.replace(tzinfo=UTC)) is None
    assert cron.next_after(datetime.max.replace(tzinfo=timezone(-12 * HOUR))) is None
    for first in (UTC, timezone(12 * HOUR), timezone(-12 * HOUR)):
        answer = cron.next_after(datetime.min.replace(tzinfo=first))
        assert answer is not None
        assert answer.year <= 4


def test_value() -> None:
    """Equal expressions, zones and day rules make equal schedules, usable as keys and picklable."""
    cron = Cron(" 0 3 * * * ", "Europe/Berlin")

    assert cron == Cron("0 3 * * *", "Europe/Berlin", day_or=True)
    assert cron.expression == "0 3 * * *"
    assert hash(cron) == hash(Cron("0 3 * * *", "Europe/Berlin"))
    assert len({cron, Cron("0 3 * * *"), Cron("0 3 * * *", "Europe/Berlin", day_or=False)}) == 3
    assert cron == pickle.loads(pickle.dumps(cron))
    with pytest.raises(AttributeError):
        cron.expression = "* * * * *"  # type: ignore[misc]


def test_protocol() -> None:
    """Cron, Every and anything with next_after are schedules."""
    assert isinstance(Cron("@daily"), Schedule)
    assert isinstance(Every(HOUR), Schedule)
    assert isinstance(EachMinute(), Schedule)
    assert not isinstance("@daily", Schedule)


# --- clock changes ---


@pytest.mark.parametrize(
    ("key", "expression", "after", "expected"),
    [
        # forward: a fixed job that was skipped runs right after the gap, and only once
        ("America/New_York", "30 2 * * *", "2025-03-09T00:00", ["07:00:00", "2025-03-10T06:30:00"]),
        ("America/New_York", "5,10,30 2 * * *", "2025-03-09T00:00", ["07:00:00", "2025-03-10T06:05:00"]),
        ("America/New_York", "0 2,3 * * *", "2025-03-09T00:00", ["07:00:00", "2025-03-10T06:00:00"]),
        ("America/New_York", "5 0 2 * * *", "2025-03-09T00:00", ["07:00:00", "2025-03-10T06:00:05"]),
        ("Europe/Berlin", "30 2 * * *", "2026-03-29T00:00", ["01:00:00", "2026-03-30T00:30:00"]),
        ("Europe/Paris", "0 2 * * *", "2026-03-28T12:00", ["2026-03-29T01:00:00", "2026-03-30T00:00:00"]),
        ("Australia/Lord_Howe", "15 2 * * *", "2025-10-04T12:00", ["15:30:00", "2025-10-05T15:15:00"]),
        ("Antarctica/Troll", "30 1,2 * * *", "2025-03-30T00:00", ["01:00:00", "23:30:00"]),
        ("Asia/Pyongyang", "57 0-23 * * *", "2018-05-04T14:30", ["15:00:00", "15:57:00"]),
        # forward: a job that follows the clock is not made up for
        ("America/New_York", "*/15 2 * * *", "2025-03-09T00:00", ["2025-03-10T06:00:00"]),
        ("America/New_York", "30 * * * *", "2025-03-09T06:00", ["06:30:00", "07:30:00"]),
        ("America/New_York", "* 30 2 * * *", "2025-03-09T00:00", ["2025-03-10T06:30:00"]),
        ("Australia/Lord_Howe", "*/15 2 * * *", "2025-10-04T12:00", ["15:30:00", "15:45:00"]),
        # a day that never was is a correction: nothing is made up for
        ("Pacific/Apia", "0 12 * * *", "2011-12-29T00:00", ["22:00:00", "2011-12-30T22:00:00"]),
        ("Pacific/Apia", "0 12 30 12 *", "2011-01-01T00:00", ["2012-12-29T22:00:00"]),
        # back: a fixed job runs in the first pass only
        ("America/New_York", "30 1 * * *", "2025-11-02T00:00", ["05:30:00", "2025-11-03T06:30:00"]),
        ("America/New_York", "30 1 * * *", "2025-11-02T06:00", ["2025-11-03T06:30:00"]),
        ("America/New_York", "0 1,2 * * *", "2025-11-02T05:30", ["07:00:00", "2025-11-03T06:00:00"]),
        ("Europe/Berlin", "0 0 2 * * *", "2026-10-25T00:00", ["2026-10-26T01:00:00"]),
        ("Europe/Berlin", "30 2 * * *", "2026-10-25T00:00", ["00:30:00", "2026-10-26T01:30:00"]),
        ("Antarctica/Troll", "30 1,2 * * *", "2025-10-26T00:30", ["2025-10-27T01:30:00"]),
        # back: a job that follows the clock runs in both
        ("America/New_York", "30 * * * *", "2025-11-02T05:00", ["05:30:00", "06:30:00", "07:30:00"]),
        ("America/New_York", "*/30 1 * * *", "2025-11-02T05:00", ["05:30:00", "06:00:00", "06:30:00"]),
        ("Australia/Lord_Howe", "*/20 * * * *", "2026-04-04T14:29", ["14:40:00", "15:10:00", "15:30:00"]),
    ],
)
def test_clock_changes(key: str, expression: str, after: str, expected: list[str]) -> None:
    """Jobs at fixed times of day run once; jobs with a star follow the clock on the wall."""
    assert expected == coming(expression, after, len(expected), key)


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("30 2 * * *", "2025-03-09T00:00", ["2025-03-10T06:30:00"]),
        ("30 1 * * *", "2025-11-02T00:00", ["05:30:00", "06:30:00"]),
    ],
)
def test_literal(expression: str, after: str, expected: list[str]) -> None:
    """literal_dst drops what is skipped and repeats what is shown twice."""
    assert expected == coming(expression, after, len(expected), "America/New_York", literal_dst=True)


@pytest.mark.parametrize("day", ["2025-03-08T12:00", "2025-11-01T12:00", "2025-06-01T12:00"])
@pytest.mark.parametrize("five", ["30 1 * * *", "30 2 * * *", "*/7 * * * *", "0 2 * * *", "5 */2 * * 0"])
def test_twins(five: str, day: str) -> None:
    """An expression with a leading second 0 is the same schedule."""
    key = "America/New_York"

    assert coming(five, day, 60, key) == coming(f"0 {five}", day, 60, key)


# --- the stepper and croniter ---


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(
    st.sampled_from(["0", "*/7", "5-50/9", "1,2,59"]),
    st.sampled_from(["*", "0", "*/5", "1-3", "23"]),
    st.sampled_from(["*", "L", "1,L", "29", "31", "*/10", "30,31", "1-31"]),
    st.sampled_from(["*", "2", "4,6", "1-12/5"]),
    st.sampled_from(["*", "1", "6-7", "2/3", "0-6", "1#5", "L3"]),
    st.booleans(),
    st.datetimes(datetime(1971, 1, 1), datetime(2090, 1, 1)),
)
def test_steps_as_croniter(
    minute: str, hour: str, day: str, month: str, weekday: str, day_or: bool, wall: datetime
) -> None:
    """Without a time zone every step is the one that croniter would make."""
    fields = (minute, hour, day, month, weekday)
    try:
        clock = WallClock(fields, day_or=day_or)
    except InvalidCronError as error:
        assert error.code in {"never", "day_and_nth"}  # noqa: PT017 - either way is fine here
        return
    steps = croniter(" ".join(fields), wall, ret_type=datetime, day_or=day_or)

    for _ in range(3):
        step = clock.next(wall)
        assert steps.get_next() == step
        assert step is not None
        wall = step


# --- time zones ---


def test_zone() -> None:
    """A zone is loaded once, and knows its key."""
    assert zone("Europe/Berlin").key == "Europe/Berlin"
    assert zone("Europe/Berlin") is zone("Europe/Berlin")


def test_zone_from_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zones come from the tzdata package, whatever the machine has; its own path is left alone."""
    before = zoneinfo.TZPATH
    monkeypatch.setattr(zoneinfo, "TZPATH", ("/nonexistent",))
    module._load_zone.cache_clear()

    assert timedelta(hours=-10) == datetime(2024, 1, 1, tzinfo=zone("Pacific/Honolulu")).utcoffset()
    monkeypatch.undo()
    assert before == zoneinfo.TZPATH


def test_tzdata_version() -> None:
    """The version of the rules is a year and a letter."""
    assert TZDATA_VERSION[:4].isdecimal()
    assert TZDATA_VERSION[4:].isalpha()


@pytest.mark.parametrize(
    "key",
    [
        "Nope/Nope",
        "../../etc/passwd",
        "../zoneinfo/UTC",
        "/usr/share/zoneinfo/UTC",
        "Europe",
        "Europe/",
        "europe/berlin",
        "utc",
        "",
        " UTC",
        "UTC\x00",
        "zones",
        "tzdata.zi",
        "+01:00",
        "local",
    ],
)
def test_bad_zone(key: str) -> None:
    """Only the listed keys are zones: no paths, no offsets, no other spelling."""
    with pytest.raises(InvalidCronError, match="time zone") as caught:
        Cron("* * * * *", timezone=key)

    assert (caught.value.code, caught.value.field) == ("bad_zone", "timezone")


def test_every_listed_zone() -> None:
    """Every listed key can be loaded."""
    for key in module._zone_keys():
        assert key == zone(key).key


# --- Every ---


def test_every() -> None:
    """An interval is added to the instant, cut to the second, so it never drifts."""
    every = Every(timedelta(minutes=5))

    assert utc("2024-05-01T12:05:07") == every.next_after(utc("2024-05-01T12:00:07.9"))
    assert every == Every(timedelta(seconds=300))
    assert hash(every) == hash(Every(timedelta(seconds=300)))


@pytest.mark.parametrize(
    ("interval", "error"),
    [
        (60, InvalidTypeError),
        (None, InvalidTypeError),
        ("1h", InvalidTypeError),
        (timedelta(0), InvalidValueError),
        (timedelta(seconds=-5), InvalidValueError),
        (timedelta(milliseconds=999), InvalidValueError),
        (timedelta(seconds=1.5), InvalidValueError),
    ],
)
def test_bad_interval(interval: Any, error: type[InvalidTypeError | InvalidValueError]) -> None:
    """An interval is a timedelta of whole seconds, at least one."""
    with pytest.raises(error, match="interval must be") as caught:
        Every(interval)

    assert getattr(caught.value, "field", None) == "interval"


# --- missed ---


@dataclass
class EachMinute:
    """Somebody's own schedule: a function of time."""

    asked: int = 0

    def next_after(self, instant: datetime) -> datetime | None:
        self.asked += 1
        return instant.astimezone(UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)


class Own(Cron):
    """A subclass with a rule of its own."""

    def next_after(self, instant: datetime) -> datetime | None:
        return EachMinute().next_after(instant)


@dataclass
class Answers:
    """A schedule that answers whatever it is told to."""

    answer: Any

    def next_after(self, instant: datetime) -> datetime | None:
        return self.answer  # type: ignore[no-any-return]


def listed(schedule: Schedule, first: datetime, until: datetime, keep: int) -> Missed:
    """``missed`` by listing everything."""
    found = [first]
    while (answer := schedule.next_after(found[-1])) is not None and answer <= until:
        found.append(answer)
    older = len(found) - 1 - keep
    return Missed(found[-1], tuple(found[max(0, older) : -1]), first if older > 0 else None)


@pytest.mark.parametrize("keep", [0, 1, 2, 5, 100])
@pytest.mark.parametrize(
    ("schedule", "first", "until"),
    [
        (Cron("*/7 * * * *"), "2025-01-01T00:00", "2025-01-01T00:00"),
        (Cron("*/7 * * * *"), "2025-01-01T00:00", "2025-01-01T00:06:59"),
        (Cron("*/7 * * * *"), "2025-01-01T00:00", "2025-01-01T00:07"),
        (Cron("*/7 * * * *"), "2025-01-01T00:00", "2025-01-03T01:02:03.4"),
        (Cron("* * 0 * * *"), "2025-01-01T00:59:50", "2025-01-03T00:00:20"),
        (Cron("0 0 1 * *"), "2025-01-01T00:00", "2026-01-01T00:00"),
        (Cron("0 0 29 2 *"), "2024-02-29T00:00", "2040-01-01T00:00"),
        (Cron("*/20 * * * *", "America/New_York"), "2025-11-01T12:00", "2025-11-03T12:00"),
        (Cron("30 2 * * *", "America/New_York"), "2025-03-01T07:30", "2025-04-03T12:00"),
        (Cron("0 0 30 12 *"), "9990-12-30T00:00", "9999-12-31T23:59:59"),
        (Cron("@every 17m"), "2025-01-01T00:03:05", "2025-01-02T12:00"),
        (Every(timedelta(minutes=5)), "2025-01-01T00:00:00.5", "2025-01-01T00:05"),
        (Every(timedelta(minutes=5)), "2025-01-01T00:00:00.5", "2025-01-02T00:00"),
        (EachMinute(), "2025-01-01T00:00", "2025-01-01T00:02"),
        (EachMinute(), "2025-01-01T00:00", "2025-01-01T01:00:30"),
        (EachMinute(), "2025-01-01T00:00", "2025-01-02T12:00"),
        (Own("@yearly"), "2025-01-01T00:00", "2025-01-02T12:00"),
    ],
    ids=str,
)
def test_missed(schedule: Schedule, first: str, until: str, keep: int) -> None:
    """The latest occurrence and those right before it are found as if all had been listed."""
    start, end = utc(first), utc(until)

    assert listed(schedule, start, end, keep) == missed(schedule, start, end, keep)


def test_missed_first_needs_no_slot() -> None:
    """A first time that the schedule itself would not name counts all the same."""
    found = missed(Cron("0 * * * *"), utc("2025-01-01T00:30"), utc("2025-01-01T01:59"), 5)

    assert Missed(utc("2025-01-01T01:00"), (utc("2025-01-01T00:30"),), None) == found


def test_missed_asks_little() -> None:
    """A schedule of unknown kind is asked some hundred times, not once a minute for ten years."""
    schedule = EachMinute()
    found = missed(schedule, utc("2015-01-01T00:00"), utc("2025-01-01T00:00"), 3)

    assert utc("2025-01-01T00:00") == found.latest
    assert utc("2024-12-31T23:57") == found.recent[0]
    assert utc("2015-01-01T00:00") == found.earlier
    assert schedule.asked < 500


def test_missed_counts_on() -> None:
    """A schedule that counts from its last time is followed exactly for a short outage."""

    class Drifting:
        def next_after(self, instant: datetime) -> datetime | None:
            return instant + timedelta(minutes=7)

    found = missed(Drifting(), utc("2025-01-01T00:00"), utc("2025-01-01T01:00"), 1)

    assert Missed(utc("2025-01-01T00:56"), (utc("2025-01-01T00:49"),), utc("2025-01-01T00:00")) == found


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (utc("2024-01-01T00:00"), InvalidValueError),
        (utc("2025-01-01T00:00"), InvalidValueError),
        (datetime(2026, 1, 1), InvalidValueError),
        ("tomorrow", InvalidTypeError),
    ],
)
def test_missed_broken_schedule(answer: Any, error: type[Exception]) -> None:
    """A schedule that does not move on, or answers nonsense, is an error and no endless loop."""
    with pytest.raises(error, match="next_after"):
        missed(Answers(answer), utc("2025-01-01T00:00"), utc("2025-02-01T00:00"), 1)


def test_missed_exhausted() -> None:
    """A schedule that ends has missed no more than its first time."""
    first = utc("2025-01-01T00:00")

    assert Missed(first, (), None) == missed(Answers(None), first, first + HOUR, 1)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"first": utc("2026-01-01T00:00")}, InvalidValueError),
        ({"first": datetime(2025, 1, 1)}, InvalidValueError),
        ({"until": datetime(2025, 1, 1)}, InvalidValueError),
        ({"keep": -1}, InvalidValueError),
        ({"keep": True}, InvalidTypeError),
        ({"keep": 1.5}, InvalidTypeError),
    ],
)
def test_missed_bad_arguments(changed: dict[str, Any], error: type[Exception]) -> None:
    """Bad arguments are named."""
    arguments: dict[str, Any] = {
        "first": utc("2025-01-01T00:00"),
        "until": utc("2025-01-02T00:00"),
        "keep": 1,
    }
    arguments |= changed

    with pytest.raises(error, match=f"^{next(iter(changed))}"):
        missed(Cron("@daily"), **arguments)


@pytest.mark.parametrize(
    ("expression", "instant", "after", "expected"),
    [
        ("0 * * * *", "2025-01-01T12:00", "2025-01-01T00:00", "2025-01-01T12:00"),
        ("0 * * * *", "2025-01-01T12:59", "2025-01-01T00:00", "2025-01-01T12:00"),
        ("0 * * * *", "2025-01-01T12:59", "2025-01-01T12:00", None),
        ("0 * * * *", "2025-01-01T12:59", "2025-01-01T14:00", None),
        ("@every 25m", "2025-01-01T12:00", "2025-01-01T10:10", "2025-01-01T11:50"),
        ("* * * * * *", "2025-01-01T00:00", "2024-01-01T00:00", "2025-01-01T00:00"),
    ],
)
def test_latest(expression: str, instant: str, after: str, expected: str | None) -> None:
    """The latest occurrence is later than ``after`` and not later than ``instant``."""
    assert (expected and utc(expected)) == Cron(expression).latest(utc(instant), utc(after))


# --- the memo, and threads ---


def test_memo() -> None:
    """Asked in any order, the remembered answer is never wrong."""
    cron, day = Cron("*/10 3,4 * * *", "Europe/Berlin"), utc("2025-03-30T00:00")
    instants = [day + i * timedelta(minutes=3) for i in range(-500, 500)]
    fresh = {}
    for instant in instants:
        module._compiled.cache_clear()
        fresh[instant] = cron.next_after(instant)

    for order in (
        instants,
        instants[::-1],
        instants[::2] + instants[1::2],
        [t for t in instants for _ in "ab"],
    ):
        assert fresh == {instant: cron.next_after(instant) for instant in order}


def test_memo_day_or() -> None:
    """Answers are kept apart by zone, day rule and literal_dst."""
    after = utc("2025-11-02T05:45")
    for _ in range(2):
        assert utc("2025-11-03T06:30") == next_occurrence("30 1 * * *", after, "America/New_York")
        assert utc("2025-11-02T06:30") == next_occurrence(
            "30 1 * * *", after, "America/New_York", literal_dst=True
        )
        assert utc("2025-11-03T01:30") == next_occurrence("30 1 * * *", after)


def test_threads() -> None:
    """Threads that share a schedule get the answers that one thread gets."""
    cron, start = Cron("*/7 * * * * *", "America/New_York"), utc("2025-11-02T04:00")
    instants = [start + i * timedelta(seconds=1.5) for i in range(0, 12_000, 5)]
    expected = [cron.next_after(instant) for instant in instants]
    wrong = []

    def work(stride: int) -> None:
        for i in range(len(instants)):
            index = i * stride % len(instants)
            if cron.next_after(instants[index]) != expected[index]:
                wrong.append(instants[index])

    threads = [threading.Thread(target=work, args=(stride,)) for stride in (1, 7, 11, 2399)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


# --- how long it takes ---


def cost(act: Callable[[], object]) -> float:
    """The least processor time of five tries, in milliseconds."""
    best = float("inf")
    for _ in range(5):
        module._compiled.cache_clear()
        begin = time.process_time()
        act()
        best = min(best, time.process_time() - begin)
    return best * 1000


def attempt(expression: str, day_or: bool = True) -> None:
    with contextlib.suppress(InvalidCronError):
        Cron(expression, day_or=day_or)


HOSTILE = [
    "0 0 30 2 *",
    "59 59 23 31 2,4,6,9,11 *",
    "0-59 0-59 0-23 30,31 2 *",
    "59 59 23 29 2 1",
    "0 0 * 2 1#5,2#5,3#5",
    ",".join(["0"] * 124) + " * * * *",
    ",".join(["0-59"] * 49) + " * * * *",
    ",".join(["*/7"] * 61) + " * * * *",
    ",".join(map(str, range(60))) + " 0-23 1-31 1-12 0-7",
    "* * * * " + ",".join(["1#1", "L1"] * 34),
    "9" * 248 + " * * * *",
    "*" * 256,
    "@" + "a" * 255,
    "@every " + "9" * 248 + "h",
    "TZ=" + "../" * 80 + " * * * *",
    "-" * 256,
    " ".join(["*"] * 128),
]


@pytest.mark.parametrize("day_or", [True, False])
@pytest.mark.parametrize("expression", HOSTILE, ids=lambda e: e[:20])
def test_hostile_expressions(expression: str, day_or: bool) -> None:
    """No expression takes ten milliseconds to accept or to refuse."""
    assert cost(lambda: attempt(expression, day_or)) < 10


@pytest.mark.parametrize(
    ("key", "after"),
    [
        ("America/New_York", "2025-03-09T06:59:59"),
        ("America/New_York", "2025-11-02T05:00:00"),
        ("America/New_York", "2025-11-02T06:00:00"),
        ("Antarctica/Troll", "2025-03-30T00:59:59"),
        ("Antarctica/Troll", "2025-10-26T01:00:00"),
        ("Antarctica/Casey", "2010-03-04T15:00:00"),
        ("Australia/Lord_Howe", "2025-10-04T15:29:59"),
        ("Pacific/Apia", "2011-12-30T09:59:59"),
        ("Pacific/Kwajalein", "1969-09-30T13:00:00"),
    ],
)
@pytest.mark.parametrize(
    "expression",
    ["* * * * * *", "0-59 0-59 0-23 * * *", "* * * * *", "0-59 0-23 * * *", "0 0 * 2 1#5", "*/59 2 29 2 *"],
)
def test_hostile_moments(key: str, after: str, expression: str) -> None:
    """No clock change makes a step take ten milliseconds."""
    cron = Cron(expression, key)

    assert cost(lambda: cron.next_after(utc(after))) < 10


@pytest.mark.parametrize("key", ["UTC", "America/New_York"])
@pytest.mark.parametrize("schedule", ["* * * * * *", "* * 0 * * *", "*/7 3,4 * * 1", "@every 1s"])
def test_year_of_seconds(schedule: str, key: str) -> None:
    """After a year of downtime the missed occurrences are found at once."""
    cron, until = Cron(schedule, key), utc("2025-01-01T12:34:56")
    first = cron.next_after(utc("2024-01-01T00:00"))
    assert first is not None

    assert cost(lambda: cron.latest(until, utc("2024-01-01T00:00"))) < 10
    assert cost(lambda: missed(cron, first, until, 100)) < 20


def test_remembered_answer() -> None:
    """Asking again costs microseconds at most."""
    cron, instant = Cron("0 3 * * *", "America/New_York"), utc("2025-01-01T00:00")

    assert cost(lambda: [cron.next_after(instant) for _ in range(1000)]) < 10


def test_text_of_five_and_six() -> None:
    """The prefix, the interval and the fields of an expression are told apart."""
    text = read("TZ=UTC 1 2 3 4 5 6")

    assert ("UTC", None, tuple("123456")) == (text.zone, text.every, text.fields)
