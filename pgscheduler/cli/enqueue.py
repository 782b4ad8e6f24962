"""The commands that store a job by its name: `enqueue` a one-time one, `schedule` a recurring one."""

from __future__ import annotations

from typing import Any

import click

from ._group import cli
from ._options import client, database_options, debug_option, json_option
from ._output import job_document, job_facts, say_facts, say_json
from ._policies import if_exists_option, moment_options, policy_options, schedule_options

__all__ = ["enqueue", "schedule"]


@cli.command()
@click.argument("name")
@click.option("--key", help="At most one waiting job per name and key: a second one replaces it.")
@if_exists_option("update", "; with error, also if it has just ended")
@moment_options
@policy_options
@database_options
@json_option
@debug_option
def enqueue(
    name: str,
    key: str | None,
    if_exists: Any,
    when: dict[str, Any],
    policies: dict[str, Any],
    where: dict[str, Any],
    as_json: bool,
) -> None:
    """Store a one-time job. A node that knows its NAME runs it.

    Without policies (--retries, --timeout, …) those of the class that runs it apply.
    """
    with client(where) as scheduler:
        job = scheduler.enqueue(name, key=key, if_exists=if_exists, **when, **policies)
    say_json(job_document(job)) if as_json else say_facts(job_facts(job))


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
