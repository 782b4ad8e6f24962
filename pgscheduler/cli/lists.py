"""The commands that list: `jobs`, `runs`, `nodes`."""

from __future__ import annotations

from typing import Any

import click

from pgscheduler.errors import JobNotFoundError
from pgscheduler.schedule import zone
from pgscheduler.states import JobState, Outcome

from ._group import cli
from ._options import (
    client,
    complete_job,
    database_options,
    debug_option,
    find_job,
    json_option,
    listing_options,
    parse_time,
)
from ._output import job_document, job_row, node_row, run_document, run_row, say_json, say_table

__all__ = ["jobs", "nodes", "runs"]

count_option = click.option("--count", is_flag=True, help="Only how many there are.")


@cli.command()
@click.option("--name", help="Only jobs of this name.")
@click.option("--key", help="Only jobs with this key.")
@click.option("--state", type=click.Choice([s.value for s in JobState if not s.final]))
@click.option("--recurring/--one-time", default=None, help="Only one of the two kinds.")
@click.option("--due/--not-due", default=None, help="Only those whose time has come, or has not.")
@click.option("--search", metavar="TEXT", help="Only those with this in their name or key.")
@click.option("--template", metavar="CODE", help="Only jobs made from this template.")
@count_option
@listing_options(100)
@database_options
@json_option
@debug_option
def jobs(where: dict[str, Any], as_json: bool, count: bool, limit: int, offset: int, **filters: Any) -> None:
    """List live jobs, newest first. Those that have ended are in `runs`."""
    with client(where) as scheduler:
        if count:
            return _say_count(scheduler.count_jobs(**filters), as_json)
        found = scheduler.jobs(**filters, limit=limit, offset=offset)
    if as_json:
        return say_json([job_document(job) for job in found])
    columns = ("id", "name", "key", "state", "due (UTC)", "schedule", "attempt", "last error")
    return say_table("Jobs", columns, map(job_row, found), "no jobs")


@cli.command()
@click.argument("job", required=False, shell_complete=complete_job)
@click.option("--name", help="Only runs of this name.")
@click.option("--key", help="Only runs with this key.")
@click.option("--outcome", type=click.Choice([o.value for o in Outcome]))
@click.option("--since", metavar="ISO", help="Only runs that ended at this time or later.")
@click.option("--until", metavar="ISO", help="Only runs that ended before this time.")
@click.option("--node", metavar="ID", help="Only runs of this node.")
@click.option("--template", metavar="CODE", help="Only runs of jobs made from this template.")
@count_option
@listing_options(50)
@database_options
@json_option
@debug_option
def runs(
    where: dict[str, Any],
    as_json: bool,
    job: str | None,
    since: str | None,
    until: str | None,
    count: bool,
    limit: int,
    offset: int,
    **filters: Any,
) -> None:
    """List the history, of one JOB or of all, newest first. `runs` and `history` are the same."""
    after = None if since is None else parse_time("--since", since, zone("UTC"))
    before = None if until is None else parse_time("--until", until, zone("UTC"))
    with client(where) as scheduler:
        reference = None
        if job is not None:
            try:
                reference = find_job(scheduler, job).id
            except (JobNotFoundError, click.ClickException):
                if not scheduler.runs(name=job, limit=1):  # a name that several jobs had
                    raise
                filters["name"] = job
        if count:
            return _say_count(scheduler.count_runs(reference, since=after, until=before, **filters), as_json)
        found = scheduler.runs(reference, since=after, until=before, **filters, limit=limit, offset=offset)
    if as_json:
        return say_json([run_document(one) for one in found])
    columns = ("id", "name", "key", "outcome", "attempt", "ended (UTC)", "took", "node", "why")
    return say_table("Runs", columns, map(run_row, found), "no runs")


cli.add_command(runs, "history")


def _say_count(count: int, as_json: bool) -> None:
    say_json({"count": count}) if as_json else print(count)


@cli.command()
@click.option("--alive", is_flag=True, help="Only those that live.")
@listing_options(100)
@database_options
@json_option
@debug_option
def nodes(where: dict[str, Any], as_json: bool, alive: bool, limit: int, offset: int) -> None:
    """List the nodes, living or gone, newest first."""
    with client(where) as scheduler:
        found = [node for node in scheduler.nodes() if node.alive or not alive][offset : offset + limit]
    if as_json:
        return say_json([node.to_dict() for node in found])
    columns = ("id", "host", "pid", "state", "running", "slots", "heartbeat (UTC)", "jobs that it knows")
    return say_table("Nodes", columns, map(node_row, found), "no nodes")
