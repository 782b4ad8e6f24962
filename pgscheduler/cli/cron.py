"""`pgscheduler cron`: when an expression comes next, and what the clock does on those days."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import click

from pgscheduler._cron import read
from pgscheduler.schedule import Cron, zone

from ._group import cli
from ._options import debug_option, json_option, parse_time
from ._output import say_json, say_table, span

__all__ = ["cron"]


@cli.command()
@click.argument("expression", metavar="EXPR")
@click.option("--timezone", default="UTC", show_default=True, help="An IANA zone such as Europe/Berlin.")
@click.option("--count", type=click.IntRange(1, 1000), default=10, show_default=True)
@click.option(
    "--from", "start", metavar="ISO", help="After this time (without an offset: of the zone). Default: now."
)
@json_option
@debug_option
def cron(expression: str, timezone: str, count: int, start: str | None, as_json: bool) -> None:
    """Show when a cron EXPR comes next.

    It has 5 fields, or 6 with the seconds first. Needs no database.

    A day on which the zone's offset changes is marked: there, what the clock skips runs right after the gap,
    and what it shows twice runs once, unless second, minute or hour is a star.
    """
    schedule = Cron(expression, timezone)
    tz = zone(read(schedule.expression).zone or timezone)
    instant = datetime.now(UTC) if start is None else parse_time("--from", start, tz)
    found: list[datetime] = []
    while (
        len(found) < count and (following := schedule.next_after(found[-1] if found else instant)) is not None
    ):
        found.append(following)
    now = datetime.now(UTC)
    rows = [_occurrence(at, tz) for at in found]
    if as_json:
        return say_json({"expression": schedule.expression, "timezone": tz.key, "occurrences": rows})
    if not rows:
        print("never again")
    else:
        columns = ["", tz.key, "offset", "", "UTC", "from now", "the clock that day"]
        kept = [0, 4, 5] if tz.key == "UTC" else [0, 1, 2, 3, 4, 5]
        if any(row["note"] for row in rows):
            kept.append(6)
        shown = [
            [
                *(row[n] for n in ("weekday", "local", "offset", "abbreviation", "utc")),
                _ahead(at - now),
                row["note"],
            ]
            for row, at in zip(rows, found, strict=True)
        ]
        columns, shown = [columns[i] for i in kept], [[row[i] for i in kept] for row in shown]
        say_table(schedule.expression, columns, shown, "")
    if len(rows) < count:
        print("and never after that, within the calendar")
    return None


def _ahead(length: timedelta) -> str:
    return f"in {span(length)}" if length >= timedelta(0) else f"{span(-length)} ago"


def _occurrence(at: datetime, tz: ZoneInfo) -> dict[str, Any]:
    local = at.astimezone(tz)
    change = offset_change(local)
    return {
        "local": local.strftime("%Y-%m-%dT%H:%M:%S"),
        "weekday": local.strftime("%a"),
        "offset": local.strftime("%z")[:3] + ":" + local.strftime("%z")[3:5],
        "abbreviation": local.tzname(),
        "utc": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "note": change,
    }


def offset_change(local: datetime) -> str | None:
    """What the zone does on this local day: `02:00 → 03:00, 1 h skipped`; None on most days."""
    tz = local.tzinfo
    assert tz is not None
    try:
        midnight = datetime(local.year, local.month, local.day, tzinfo=tz)
        low = midnight.astimezone(UTC)
        high = (midnight + timedelta(days=1)).astimezone(UTC)  # a day by the clock on the wall
    except OverflowError:  # the last day of the calendar
        return None
    # A change at the very end of midnight belongs to the day that it begins.
    low -= timedelta(seconds=1)
    high -= timedelta(seconds=1)
    before, after = low.astimezone(tz).utcoffset(), high.astimezone(tz).utcoffset()
    if before is None or after is None or before == after:
        return None
    while high - low > timedelta(seconds=1):
        middle = (low + (high - low) / 2).replace(microsecond=0)
        low, high = (middle, high) if middle.astimezone(tz).utcoffset() == before else (low, middle)
    shown = (high + before).strftime("%H:%M"), (high + after).strftime("%H:%M")
    moved = abs(after - before)
    word = "skipped" if after > before else "shown twice"
    return f"{shown[0]} → {shown[1]}, {span(moved) if moved < timedelta(hours=1) else f'{moved / timedelta(hours=1):g} h'} {word}"
