"""The commands that do one thing to one JOB: `cancel`, `pause`, `resume`, `trigger`, `delete`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from pgscheduler.records import JobRecord
from pgscheduler.scheduler import Scheduler

from ._group import cli
from ._options import (
    client,
    confirm,
    database_options,
    debug_option,
    find_job,
    job_argument,
    json_option,
    yes_option,
)
from ._output import job_document, job_facts, one_line, say_facts, say_json

__all__ = ["cancel", "delete", "pause", "resume", "trigger"]


def _job_command(name: str, text: str) -> Callable[[Callable[[Scheduler, JobRecord], Any]], click.Command]:
    """A command that does one thing to one JOB."""

    def make(verb: Callable[[Scheduler, JobRecord], Any]) -> click.Command:
        @cli.command(name, help=text)
        @job_argument
        @database_options
        @json_option
        @debug_option
        def command(job: str, where: dict[str, Any], as_json: bool) -> None:
            with client(where) as scheduler:
                found = find_job(scheduler, job)
                answer = verb(scheduler, found)
            if isinstance(answer, JobRecord):
                say_json(job_document(answer)) if as_json else say_facts(job_facts(answer))
            elif as_json:
                say_json({"id": found.id, "name": found.name, "key": found.key, "result": answer})
            else:
                print(_ANSWERS[answer].format(id=found.id, name=one_line(found.name)))

        return command

    return make


_ANSWERS = {
    "cancelled": "job {id} ({name}) is cancelled",
    "requested": "job {id} ({name}) is running; it was asked to stop",
    "deleted": "job {id} ({name}) is deleted; its history stays",
}


@_job_command("cancel", "Cancel a JOB. One that waits ends at once; one that runs is asked to stop.")
def cancel(scheduler: Scheduler, job: JobRecord) -> Any:
    return scheduler.cancel(job)


@_job_command("pause", "Pause a JOB. It is not started any more until it is resumed.")
def pause(scheduler: Scheduler, job: JobRecord) -> Any:
    return scheduler.pause(job)


@_job_command("resume", "Resume a paused JOB. A recurring one goes on with its next occurrence.")
def resume(scheduler: Scheduler, job: JobRecord) -> Any:
    return scheduler.resume(job)


@_job_command("trigger", "Make a JOB due now. A recurring one keeps its schedule.")
def trigger(scheduler: Scheduler, job: JobRecord) -> Any:
    return scheduler.trigger(job)


@cli.command()
@job_argument
@click.option("--history", is_flag=True, help="Its runs and their logs too, unless it runs.")
@yes_option
@database_options
@json_option
@debug_option
def delete(job: str, history: bool, yes: bool, where: dict[str, Any], as_json: bool) -> None:
    """Delete a JOB for good; its history stays without --history. Asks first."""
    with client(where) as scheduler:
        found = find_job(scheduler, job)
        label = f"{found.name}/{found.key}" if found.key and found.key != found.name else found.name
        if not yes:
            too = " with its history" if history else ""
            confirm(f"Delete job {found.id} ({one_line(label)}){too}?", "nothing was deleted")
        answer = scheduler.delete(found, history=history)
    if as_json:
        say_json({"id": found.id, "name": found.name, "key": found.key, "result": answer})
    elif history and answer == "deleted":
        print(f"job {found.id} ({one_line(found.name)}) is deleted with its history")
    else:
        print(_ANSWERS[answer].format(id=found.id, name=one_line(found.name)))
