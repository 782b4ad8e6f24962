"""The commands that change a waiting JOB: `reschedule` (only when), `update` (anything)."""

from __future__ import annotations

from typing import Any

import click

from ._group import cli
from ._options import client, database_options, debug_option, find_job, job_argument, json_option
from ._output import job_document, job_facts, say_facts, say_json
from ._policies import moment_options, policy_options, schedule_options

__all__ = ["reschedule", "update"]


@cli.command()
@job_argument
@moment_options
@schedule_options
@database_options
@json_option
@debug_option
def reschedule(
    job: str, when: dict[str, Any], how_often: dict[str, Any], where: dict[str, Any], as_json: bool
) -> None:
    """Give a waiting JOB another time, or a recurring one another schedule."""
    given = _one_of(when, how_often)
    if not given:
        raise click.UsageError("give --at or --delay, or --cron or --every", click.get_current_context())
    with client(where) as scheduler:
        changed = scheduler.reschedule(find_job(scheduler, job), **given)
    say_json(job_document(changed)) if as_json else say_facts(job_facts(changed))


@cli.command()
@job_argument
@moment_options
@schedule_options
@policy_options
@database_options
@json_option
@debug_option
def update(
    job: str,
    when: dict[str, Any],
    how_often: dict[str, Any],
    policies: dict[str, Any],
    where: dict[str, Any],
    as_json: bool,
) -> None:
    """Change a waiting JOB; what is not given stays as it is."""
    given = {**_one_of(when, how_often), **policies}
    if not given:
        raise click.UsageError("give what to change", click.get_current_context())
    with client(where) as scheduler:
        changed = scheduler.update(find_job(scheduler, job), **given)
    say_json(job_document(changed)) if as_json else say_facts(job_facts(changed))


def _one_of(when: dict[str, Any], how_often: dict[str, Any]) -> dict[str, Any]:
    if when and how_often:
        raise click.UsageError(
            "--at and --delay are for one-time jobs, --cron and --every for recurring ones: give one of them",
            click.get_current_context(),
        )
    return when or how_often
