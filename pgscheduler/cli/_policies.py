"""What the commands that store or change a job take: when it runs, and its policies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast, get_args

import click

from pgscheduler.client import IfExists
from pgscheduler.job import ISOLATIONS, MISFIRES
from pgscheduler.retry import Backoff
from pgscheduler.schedule import Cron, Every, Schedule

from ._options import finite, parse_parameters, parse_time

__all__ = ["if_exists_option", "moment_options", "policy_options", "schedule_options"]

F = TypeVar("F", bound=Callable[..., Any])


def if_exists_option(default: str, more: str = "") -> Callable[[F], F]:
    """What happens if there is a live job of this name and key."""
    return click.option(
        "--if-exists", type=click.Choice(get_args(IfExists)), default=default, show_default=True,
        help=f"What happens if there is a live job of this name and key{more}.",
    )  # fmt: skip


DURATIONS = ("timeout", "expires_in", "misfire_grace", "jitter")

_MOMENT = (
    click.option("--at", metavar="ISO", help="One-time: when, such as 2027-01-31T09:00:00+01:00."),
    click.option("--delay", type=float, metavar="SECONDS", help="One-time: how long from now."),
)
_SCHEDULE = (
    click.option("--cron", metavar="EXPR", help="Recurring: a cron line."),
    click.option("--every", type=float, metavar="SECONDS", help="Recurring: a fixed interval."),
    click.option("--timezone", help="The time zone of --cron. [default: UTC]"),
    click.option(
        "--day-and", is_flag=True, help="Day of month and day of week of --cron must both fit, not either."
    ),
)
_POLICIES = (
    click.option(
        "--params", "--parameters", "params", metavar="JSON|@FILE", help="Its parameters; @- reads stdin."
    ),
    click.option("--priority", type=int, help="Smaller first. [default: 5]"),
    click.option("--retries", type=int, help="Attempts after the first."),
    click.option(
        "--backoff",
        metavar="SECONDS[:FACTOR[:MAX[:JITTER]]]",
        help="Delays before retries, such as 1:2:3600:0.1.",
    ),
    click.option("--timeout", type=float, metavar="SECONDS", help="For one attempt."),
    click.option("--no-timeout", is_flag=True, help="An attempt may take as long as it likes."),
    click.option("--expires-in", type=float, metavar="SECONDS", help="One-time: after this it is too late."),
    click.option(
        "--misfire", type=click.Choice(MISFIRES), help="Recurring: what happens to missed occurrences."
    ),
    click.option("--misfire-grace", type=float, metavar="SECONDS", help="Recurring: how late is not missed."),
    click.option("--catchup", type=int, help="Recurring: the most that run_all makes up for."),
    click.option("--jitter", type=float, metavar="SECONDS", help="Spread starts over this long."),
    click.option("--isolation", type=click.Choice(ISOLATIONS), help="Where it runs."),
    click.option("--max-stalls", type=int, help="How often its node or process may die."),
    click.option("--metadata", metavar="JSON|@FILE", help="Free data of yours, an object."),
)


def moment_options(function: F) -> F:
    """--at and --delay; handed on as one argument, `when`."""
    return _gather(function, _MOMENT, ("at", "delay"), "when", _moment)


def schedule_options(function: F) -> F:
    """--cron and what goes with it, or --every; handed on as one argument, `how_often`."""
    return _gather(function, _SCHEDULE, ("cron", "every", "timezone", "day_and"), "how_often", _schedule)


def policy_options(function: F) -> F:
    """Parameters and policies, those that were given; handed on as one argument, `policies`."""
    names = (
        "params",
        "backoff",
        "no_timeout",
        "metadata",
        "priority",
        "retries",
        "misfire",
        "catchup",
        "isolation",
    )
    return _gather(function, _POLICIES, (*names, "max_stalls", *DURATIONS), "policies", _policies)


def _gather(
    function: F,
    options: tuple[Any, ...],
    names: tuple[str, ...],
    word: str,
    read: Callable[..., dict[str, Any]],
) -> F:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{word: read(**{name: kwargs.pop(name) for name in names})}, **kwargs)

    found: Any = wrapped
    for option in reversed(options):
        found = option(found)
    return cast(F, found)


def _moment(at: str | None, delay: float | None) -> dict[str, Any]:
    _only_one({"--at": at, "--delay": delay})
    if at is not None:
        return {"run_at": parse_time("--at", at)}
    return {} if delay is None else {"delay": timedelta(seconds=finite(delay))}


def _schedule(cron: str | None, every: float | None, timezone: str | None, day_and: bool) -> dict[str, Any]:
    _only_one({"--cron": cron, "--every": every})
    for option, said in (("--timezone", timezone is not None), ("--day-and", day_and)):
        if said and cron is None:
            raise click.UsageError(f"{option} goes with --cron", click.get_current_context())
    found: Schedule | None = None
    if cron is not None:
        found = Cron(cron, timezone or "UTC", not day_and)
    elif every is not None:
        found = Every(timedelta(seconds=finite(every)))
    return {} if found is None else {"schedule": found}


def _policies(
    params: str | None, backoff: str | None, no_timeout: bool, metadata: str | None, **plain: Any
) -> dict[str, Any]:
    found = {name: value for name, value in plain.items() if value is not None}
    for name in DURATIONS:
        if name in found:
            found[name] = timedelta(seconds=finite(found[name]))
    if no_timeout:
        _only_one({"--timeout": found.get("timeout"), "--no-timeout": True})
        found["timeout"] = None
    if params is not None:
        found["parameters"] = parse_parameters(params)
    if metadata is not None:
        found["metadata"] = parse_parameters(metadata, "metadata")
    if backoff is not None:
        found["backoff"] = _backoff(backoff)
    return found


def _backoff(text: str) -> Backoff:
    try:
        given = [finite(float(part)) for part in text.split(":")]
        initial, factor, maximum, jitter = given + [2.0, 3600.0, 0.1][len(given) - 1 :]
    except ValueError:
        rule = "--backoff must be SECONDS[:FACTOR[:MAX[:JITTER]]] such as 1:2:3600:0.1"
        raise click.BadParameter(f"{rule}, got {text[:80]!r}") from None
    return Backoff(timedelta(seconds=initial), factor, timedelta(seconds=max(maximum, initial)), jitter)


def _only_one(given: dict[str, Any]) -> None:
    said = [name for name, value in given.items() if value is not None]
    if len(said) > 1:
        raise click.UsageError(f"{' and '.join(said)} exclude each other", click.get_current_context())
