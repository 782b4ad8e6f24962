"""The commands about one thing: `show` a job or a run in full, `wait` for a job's end."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import click

from pgscheduler.errors import JobNotFoundError
from pgscheduler.states import JobState

from ._group import cli
from ._options import client, database_options, debug_option, find_job, finite, job_argument, json_option
from ._output import job_document, job_facts, run_document, run_facts, say_facts, say_json

__all__ = ["show", "wait"]

_RUN = re.compile(r"[0-9]+-[0-9a-f]{16}\Z")


@cli.command()
@job_argument
@database_options
@json_option
@debug_option
def show(job: str, where: dict[str, Any], as_json: bool) -> None:
    """Show a JOB in full, or, by its id, a run: with its result, or its traceback.

    Of a one-time job that waits also its place in the order in which jobs are claimed.
    """
    with client(where) as scheduler:
        if _RUN.match(job):
            with suppress(JobNotFoundError):
                run = scheduler.get_run(job)
                return say_json(run_document(run)) if as_json else say_facts(run_facts(run))
        found = find_job(scheduler, job)
        place = None if found.recurring else scheduler.queue_position(found)
    if as_json:
        return say_json({**job_document(found), "queue_position": place})
    return say_facts({**job_facts(found), "place in queue": place})


@cli.command()
@job_argument
@click.option("--timeout", type=float, metavar="SECONDS", help="How long at most. [default: for ever]")
@database_options
@json_option
@debug_option
def wait(job: str, timeout: float | None, where: dict[str, Any], as_json: bool) -> int:
    """Wait until a one-time JOB has ended, on whichever node. Ends with 1 unless it is completed."""
    limit = None if timeout is None else finite(timeout)
    with client(where) as scheduler:
        ended = scheduler.wait(find_job(scheduler, job), limit)
    say_json(job_document(ended)) if as_json else say_facts(job_facts(ended))
    return 0 if ended.state is JobState.COMPLETED else 1
