"""The commands that store a job by its name: `enqueue` a one-time one, `schedule` a recurring one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
from click.core import ParameterSource

from pgscheduler.errors import InvalidTypeError, InvalidValueError

from ._group import cli
from ._options import client, database_options, debug_option, json_option, parse_json, read_lines
from ._output import job_document, job_facts, say_facts, say_json
from ._policies import if_exists_option, moment_options, policy_options, schedule_options

__all__ = ["enqueue", "schedule"]

#: What may be said beside --lines; the rest is for one job.
WITH_LINES = {
    "name", "lines", "at", "delay", "priority", "dsn", "table_prefix", "schema", "settings", "as_json",
}  # fmt: skip


@cli.command()
@click.argument("name")
@click.option("--key", help="At most one waiting job per name and key: a second one replaces it.")
@if_exists_option("update", "; with error, also if it has just ended")
@click.option(
    "--lines",
    metavar="FILE",
    help="Many jobs: the parameters of each as a line of JSON; - reads stdin. All of them or none.",
)
@moment_options
@policy_options
@database_options
@json_option
@debug_option
def enqueue(
    name: str,
    key: str | None,
    lines: str | None,
    if_exists: Any,
    when: dict[str, Any],
    policies: dict[str, Any],
    where: dict[str, Any],
    as_json: bool,
) -> None:
    """Store a one-time job. A node that knows its NAME runs it.

    Without policies (--retries, --timeout, …) those of the class that runs it apply.
    """
    if lines is not None:
        return _enqueue_many(name, lines, {**when, **policies}, where, as_json)
    with client(where) as scheduler:
        job = scheduler.enqueue(name, key=key, if_exists=if_exists, **when, **policies)
    return say_json(job_document(job)) if as_json else say_facts(job_facts(job))


def _enqueue_many(name: str, lines: str, given: dict[str, Any], where: dict[str, Any], as_json: bool) -> None:
    """`--lines`: what all of the jobs share, and the parameters of each."""
    context = click.get_current_context()
    said = {n for n in context.params if context.get_parameter_source(n) is ParameterSource.COMMANDLINE}
    strange = [f"--{n.replace('_', '-')}" for n in context.params if n in said - WITH_LINES]
    if strange:
        raise click.UsageError(f"--lines and {', '.join(strange)} exclude each other", context)
    numbers: list[int] = []
    with client(where) as scheduler:
        try:
            stored = scheduler.enqueue_many(name, _parameters(lines, numbers), **given)
        except (InvalidValueError, InvalidTypeError) as error:
            place = re.fullmatch(r"parameters\[(\d+)\]", error.field)
            if place is None:
                raise
            told = type(error)("parameters", error.value, error.rule)
            raise click.BadParameter(f"lines: line {numbers[int(place[1])]}: {told}") from None
    if as_json:
        say_json({"name": name, "stored": stored})
    else:
        print(f"stored {stored} {'job' if stored == 1 else 'jobs'}")


def _parameters(file: str, numbers: list[int]) -> Iterator[Any]:
    """The parameters of each line; the number of each goes to `numbers`. Blank lines are none."""
    for number, text in enumerate(read_lines(file, "lines"), 1):
        if text.strip():
            numbers.append(number)
            yield parse_json(text, f"lines: line {number}")


@cli.command()
@click.argument("name")
@click.option("--key", help="Which of the jobs of this name. [default: the name]")
@click.option("--paused", is_flag=True, help="It waits for `resume`.")
@if_exists_option("error")
@schedule_options
@policy_options
@database_options
@json_option
@debug_option
def schedule(
    name: str,
    key: str | None,
    paused: bool,
    if_exists: Any,
    how_often: dict[str, Any],
    policies: dict[str, Any],
    where: dict[str, Any],
    as_json: bool,
) -> None:
    """Store a recurring job. Nodes that know its NAME run it.

    Without policies those of the class that runs it apply. Many jobs are better kept in a file: see `apply`.
    """
    if not how_often:
        raise click.UsageError("give --cron or --every", click.get_current_context())
    with client(where) as scheduler:
        job = scheduler.schedule_by_name(
            name, how_often["schedule"], key=key, paused=paused, if_exists=if_exists, **policies
        )
    say_json(job_document(job)) if as_json else say_facts(job_facts(job))
