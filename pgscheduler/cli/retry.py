"""`pgscheduler retry`: what failed, once more: some runs by their ids, or many by what they have in common."""

from __future__ import annotations

import itertools
from typing import Any

import click

from pgscheduler.client import JobRef
from pgscheduler.errors import JobNotFoundError
from pgscheduler.records import RunRecord
from pgscheduler.schedule import zone
from pgscheduler.scheduler import Scheduler
from pgscheduler.states import JobState, Outcome

from ._group import cli
from ._options import client, confirm, database_options, debug_option, json_option, parse_time, yes_option
from ._output import job_document, job_row, one_line, say_json, say_table

__all__ = ["retry"]

BAD = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.STALLED, Outcome.ORPHANED)
COLUMNS = ("id", "name", "key", "state", "due (UTC)", "schedule", "attempt", "last error")


@cli.command()
@click.argument("run_ids", metavar="[RUN]...", nargs=-1)
@click.option("--name", help="Jobs of this name whose last run went wrong.")
@click.option("--key", help="Only those with this key.")
@click.option(
    "--outcome",
    type=click.Choice(list(map(str, BAD))),
    multiple=True,
    help="Only those that ended so. [default: any of them]",
)
@click.option("--since", metavar="ISO", help="Only those that ended at this time or later.")
@click.option("--until", metavar="ISO", help="Only those that ended before this time.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="At most so many."
)
@yes_option
@database_options
@json_option
@debug_option
def retry(
    run_ids: tuple[str, ...],
    outcome: tuple[str, ...],
    since: str | None,
    until: str | None,
    limit: int,
    yes: bool,
    where: dict[str, Any],
    as_json: bool,
    **named: str | None,
) -> None:
    """Run the jobs of finished RUNs again.

    A job that is gone is stored anew, with the same parameters; one that waits becomes due now. With --name,
    --outcome, --since … the same for all jobs whose last run went wrong and that nobody will repeat by itself;
    of those with the same name and key the last. Asks first if it is more than one. All of them or none.

    What is stored anew is another job: one without a key that failed, was retried, and failed again is found twice.
    Say --since.
    """
    filters = {name: value for name, value in named.items() if value is not None}
    for name, text in (("since", since), ("until", until)):
        if text is not None:
            filters[name] = parse_time(f"--{name}", text, zone("UTC"))  # type: ignore[assignment]
    if bool(run_ids) == bool(filters or outcome):
        raise click.UsageError(
            "give RUNs, or --name, --key, --outcome, --since or --until", click.get_current_context()
        )
    with client(where) as scheduler:
        chosen: list[Any] = list(dict.fromkeys(run_ids))
        if not run_ids:
            chosen = _last_and_bad(scheduler, [Outcome(o) for o in outcome] or list(BAD), filters, limit)
        if len(chosen) > 1 and not yes:
            confirm(f"Run {len(chosen)} jobs again{_of(chosen)}?", "nothing was retried")
        jobs = scheduler.retry_many(chosen) if chosen else []
    if as_json:
        return say_json([job_document(job) for job in jobs])
    return say_table("Jobs", COLUMNS, map(job_row, jobs), "nothing to retry")


def _last_and_bad(
    scheduler: Scheduler, outcomes: list[Outcome], filters: dict[str, Any], limit: int
) -> list[RunRecord]:
    """Of each job its last run, newest first, if it is one of these and the job will not go on by itself."""
    found: list[RunRecord] = []
    seen: set[JobRef] = set()
    every = [scheduler.runs(outcome=outcome, limit=10_000, **filters) for outcome in outcomes]
    for run in sorted(itertools.chain(*every), key=lambda run: run.finished_at, reverse=True):
        job: JobRef = run.job_id if run.key is None else (run.name, run.key)
        if job in seen:
            continue
        seen.add(job)
        if scheduler.runs(job, limit=1)[0].id == run.id and _ended(scheduler, run, job):
            found.append(run)
            if len(found) == limit:
                break
    return found


def _ended(scheduler: Scheduler, run: RunRecord, job: JobRef) -> bool:
    """It waits for nothing: a one-time job that is gone, or a recurring one between two occurrences."""
    try:
        record = scheduler.get_job(job)
    except JobNotFoundError:
        return not run.recurring  # so long ago that only its history is left
    if record.state.final:
        return not run.recurring  # a recurring one was deleted
    return record.recurring and record.state is JobState.PENDING and record.attempt == 1


def _of(runs: list[Any]) -> str:
    """How many of which name."""
    names = [run.name for run in runs if isinstance(run, RunRecord)]
    counts = [f"{names.count(name)} {one_line(name)}" for name in dict.fromkeys(names)]
    more = f", and {len(counts) - 5} more names" if len(counts) > 5 else ""
    return f" ({', '.join(counts[:5])}{more})" if counts else ""
