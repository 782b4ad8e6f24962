"""`/api/v1/jobs`: what can be said about jobs."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal

from fastapi import Body, Depends, Request, Response
from fastapi import Query as InQuery
from pydantic import BeforeValidator, Field

from pgscheduler import errors as e
from pgscheduler.records import JobRecord
from pgscheduler.retry import Backoff
from pgscheduler.scheduler import Scheduler

from ._audit import about, note
from ._bodies import (
    HTTP_JOB,
    ChangeBody,
    CronLine,
    CronServiceJob,
    Interval,
    JobBody,
    JobChange,
    NewJob,
    NewJobs,
    payload_of,
    schedule_of,
)
from ._common import LINKS, Count, JobId, NoQuery, Open, Page, router
from ._errors import ApiError, answers, or_missing, renaming
from ._fields import Answer, Flag, Id, Limit, Name, Offset, Query, WholeSeconds, camel_to_snake
from ._once import Once, refuse_once
from ._show import JobAnswer
from ._waiting import Patience, Waiting

__all__ = ["AGAIN", "JobMade", "jobs"]

jobs = router("jobs", "/api/v1/jobs")

ATTEMPTS = 3  # of a Cron Service job; each again twice as long after the one before
BACKOFF = Backoff(initial=Backoff().initial * 5)


class JobWishes(Query):
    """Each counts only if it is given."""

    name: Name | None = Field(default=None, description="The registered name: `job` in the answer.")
    key: Name | None = None
    state: Literal["pending", "running", "paused"] | None = None
    recurring: Flag | None = None
    due: Flag | None = Field(default=None, description="Waiting, and its time has come.")
    search: Name | None = Field(
        default=None, description="A part of the name or key, in any case of letters."
    )
    template: Name | None = Field(default=None, description="Made from the template with this code.")

    def wishes(self) -> dict[str, Any]:
        """As the verbs take them."""
        return self.model_dump(include=set(JobWishes.model_fields))


class JobFilter(JobWishes):
    """The same, one job by its id, and a page."""

    jobId: Id | None = Field(  # noqa: N815 - Cron Service's
        default=None, description="Only this one; 404 if there is none."
    )
    job_id: Id | None = Field(default=None, description="The same as `jobId`.")
    limit: Limit = 100
    offset: Offset = 0


class DeleteWishes(Query):
    history: Flag = Field(default=True, description="False: its runs and their logs stay.")


class WaitWishes(Query):
    timeout_seconds: WholeSeconds = Field(
        default=20, description="How long at most, as far as a request may take so long."
    )


class JobsMade(Answer):
    """Jobs were stored."""

    stored: int


class JobMade(Answer):
    """A job was stored."""

    message: str
    job: JobAnswer


#: What is answered to a request that is sent again.
AGAIN: dict[int | str, dict[str, Any]] = {
    200: {"model": JobMade, "description": "This `Idempotency-Key` has come before: the job that it made."}
}


class Said(Answer):
    """What was done."""

    message: str
    id: int
    result: Literal["cancelled", "requested", "deleted"]


class Place(Answer):
    """Which place a job has among those that wait."""

    id: int
    position: int | None = Field(description="From 1; null if it runs, is paused or has ended.")


def found(scheduler: Scheduler, job_id: int) -> JobRecord:
    """The job, or the answer that there is none, in Cron Service's words."""
    with _or_missing(job_id):
        return scheduler.get_job(job_id)


def _or_missing(job_id: int) -> AbstractContextManager[None]:
    return or_missing(e.JobNotFoundError, f"Job with ID {job_id} not found.")


def _show(job: JobRecord) -> JobAnswer:
    return JobAnswer.of(about(job), HTTP_JOB)


@jobs.post("", status_code=201, responses={**AGAIN, **answers(409)}, summary="Store a job")
def create(body: Annotated[JobBody, Body()], scheduler: Open, once: Once, _: NoQuery) -> JobMade:
    """Recurring or one-time, in this package's words or in Cron Service's; see the two bodies.

    With a `key` it may be sent twice: the second time is answered with 409 or, as `if_exists` says, with the job
    that is there. With an `Idempotency-Key` a one-time job may be too, and that is no error.
    """
    if isinstance(body, CronServiceJob):
        record = _create_request(scheduler, body)
    elif body.schedule is not None:
        record = _create_recurring(scheduler, body, body.schedule)
    else:
        record = _create(scheduler, body, once)
    return JobMade(message=once.message, job=_show(record))


def _create_request(scheduler: Scheduler, body: CronServiceJob) -> JobRecord:
    policies = {"retries": ATTEMPTS - 1, "backoff": BACKOFF, **body.policies()}
    schedule = schedule_of(body.cron_expression, body.timezone)
    try:
        with renaming({"key": "name", "parameters": "task_payload"}.get):
            return scheduler.schedule_by_name(
                HTTP_JOB,
                schedule,
                payload_of(body.task_payload),
                key=body.name,
                paused=not body.is_active,
                if_exists="error",
                **policies,
            )
    except e.DuplicateJobError:
        text = f"Job with name '{body.name}' already exists."
        raise ApiError(409, "duplicate_job", text, field="name") from None


def _create_recurring(scheduler: Scheduler, body: NewJob, schedule: CronLine | Interval) -> JobRecord:
    for once in ("run_at", "delay_seconds", "expires_in_seconds"):
        _apart(body, "schedule", once)
    return scheduler.schedule_by_name(
        body.name,
        schedule_of(schedule),
        {} if body.parameters is None else body.parameters,
        key=body.key,
        paused=not body.is_active,
        if_exists=body.if_exists,
        **body.policies(),
    )


def _create(scheduler: Scheduler, body: NewJob, once: Once) -> JobRecord:
    given = {**once.identity(body.key, body.if_exists), **body.when(), **body.policies()}
    if body.expires_in_seconds is not None:
        given["expires_in"] = body.expires_in_seconds
    _apart(body, "run_at", "delay_seconds")
    if not body.is_active:
        raise e.InvalidValueError(
            "is_active", False, "is for recurring jobs; disable a one-time job when it is stored"
        )
    if body.parameters is not None:
        given["parameters"] = body.parameters
    return once.stored(scheduler, lambda: scheduler.enqueue(body.name, **given))


@jobs.post(
    "/bulk",
    status_code=201,
    responses=answers(409),
    dependencies=[Depends(refuse_once)],
    summary="Store many jobs",
)
def create_many(
    body: Annotated[NewJobs, BeforeValidator(camel_to_snake), Body()], scheduler: Open, _: NoQuery
) -> JobsMade:
    """One-time jobs of one name without keys, one for each of the `parameters`. All of them or none."""
    _apart(body, "run_at", "delay_seconds")
    with renaming(lambda field: re.sub(r"\Aparameters\[(\d+)\]\Z", r"parameters.\1", field)):
        stored = scheduler.enqueue_many(body.name, body.parameters, priority=body.priority, **body.when())
    note(job=body.name, jobs=stored)
    return JobsMade(stored=stored)


@jobs.get("", responses={200: LINKS, **answers(404)}, summary="List jobs")
def list_jobs(
    query: Annotated[JobFilter, InQuery()], request: Request, response: Response, scheduler: Open
) -> list[JobAnswer]:
    """Live jobs by their id, a page at a time. What has ended is in `/api/v1/runs`."""
    if query.jobId is not None or query.job_id is not None:
        return [_show(found(scheduler, query.jobId or query.job_id or 0))]
    at = Page(request, response, query.limit, query.offset)
    rows, more = _oldest_first(scheduler, query.wishes(), query.limit, query.offset)
    at.link(more)
    return [_show(row) for row in rows]


def _oldest_first(
    scheduler: Scheduler, filters: dict[str, Any], limit: int, offset: int
) -> tuple[list[JobRecord], bool]:
    """A page in the order of ids, and whether there is another.

    The verb lists the newest first. What fits on the first page is just turned round; else the jobs are counted, and
    a page is not the exact neighbour of the one before if jobs come and go meanwhile.
    """
    if offset == 0:
        rows = scheduler.jobs(**filters, limit=limit + 1)
        if len(rows) <= limit:
            return rows[::-1], False
    end = scheduler.count_jobs(**filters) - offset
    if end <= 0:
        return [], False
    start = max(end - limit, 0)
    return scheduler.jobs(**filters, limit=end - start, offset=start)[::-1], start > 0


@jobs.get("/count", summary="Count jobs")
def count(query: Annotated[JobWishes, InQuery()], scheduler: Open) -> Count:
    """All live jobs that these filters leave. It reads them all; `/api/v1/stats` counts by name and state."""
    return Count(count=scheduler.count_jobs(**query.wishes()))


@jobs.get("/{job_id:pgscheduler_id}", responses=answers(404), summary="Read a job")
def read(job_id: JobId, scheduler: Open, _: NoQuery) -> JobAnswer:
    """Live, or a one-time job that ended lately."""
    return _show(found(scheduler, job_id))


@jobs.patch("/{job_id:pgscheduler_id}", responses=answers(404, 409), summary="Change a job")
def change(job_id: JobId, body: Annotated[ChangeBody, Body()], scheduler: Open, _: NoQuery) -> JobAnswer:
    """Only what is given. Not while it runs. A changed schedule counts from now."""
    with _or_missing(job_id):
        record = found(scheduler, job_id)
        changes = _changes(record, body)
        if changes:
            words = {} if body.task_payload is None else {"parameters": "task_payload"}
            with renaming(words.get):
                record = scheduler.update(job_id, **changes)
        if body.is_active is not None:
            record = scheduler.resume(job_id) if body.is_active else scheduler.pause(job_id)
    return _show(record)


def _changes(job: JobRecord, body: JobChange) -> dict[str, Any]:
    """What the verb shall change."""
    given = body.model_fields_set
    if not given:
        raise ApiError(422, "missing_field", "Nothing is to be changed: give at least one field.")
    _apart(body, "run_at", "delay_seconds")
    _apart(body, "schedule", "cron_expression")
    changes: dict[str, Any] = {**body.policies(), **body.when()}
    if body.expires_in_seconds is not None:
        changes["expires_in"] = body.expires_in_seconds
    for once in ("run_at", "delay_seconds", "expires_in_seconds"):
        for line in ("schedule", "cron_expression"):
            _apart(body, line, once)
        if job.recurring and getattr(body, once) is not None:
            raise e.JobKindError(f"job {job.name!r} is recurring: {once} is for one-time jobs", job.name)
    if body.schedule is not None or body.cron_expression is not None:
        changes["schedule"] = schedule_of(body.schedule or body.cron_expression or "")
    if body.task_payload is not None:
        if job.name != HTTP_JOB:
            raise e.JobKindError(f"job {job.name!r} is not {HTTP_JOB}: give parameters", job.name)
        if "parameters" in given:
            raise e.InvalidValueError("task_payload", "both", "must not be given together with parameters")
        changes["parameters"] = payload_of(body.task_payload)
    elif "parameters" in given:
        changes["parameters"] = {} if body.parameters is None else body.parameters
    return changes


def _apart(body: Any, one: str, other: str) -> None:
    if getattr(body, one) is not None and getattr(body, other) is not None:
        raise e.InvalidValueError(other, getattr(body, other), f"must not be given together with {one}")


@jobs.delete(
    "/{job_id:pgscheduler_id}",
    responses={202: {"model": Said}, **answers(404, 409)},
    summary="Delete a job",
)
def delete(
    job_id: JobId, query: Annotated[DeleteWishes, InQuery()], scheduler: Open, response: Response
) -> Said:
    """With its history, as Cron Service does, unless `history=false`.

    One that runs is asked to stop, and goes when it has: 202. Its history stays then.
    """
    with _or_missing(job_id):
        result = scheduler.delete(job_id, history=query.history)
    if result == "requested":
        response.status_code = 202
        text = f"Job ID {job_id} is running; it was asked to stop and is deleted when it has."
    elif query.history:
        text = f"Job ID {job_id} and all its execution history deleted successfully."
    else:
        text = f"Job ID {job_id} deleted successfully; its execution history stays."
    return Said(message=text, id=job_id, result=result)


@jobs.post("/{job_id}/enable", responses=answers(404, 409), summary="Resume a job")
def enable(job_id: JobId, scheduler: Open, _: NoQuery) -> JobAnswer:
    """A recurring job goes on with its next occurrence from now."""
    with _or_missing(job_id):
        return _show(scheduler.resume(job_id))


@jobs.post("/{job_id}/disable", responses=answers(404, 409), summary="Pause a job")
def disable(job_id: JobId, scheduler: Open, _: NoQuery) -> JobAnswer:
    """It is started no more until it is enabled. A run in progress goes on to its end."""
    with _or_missing(job_id):
        return _show(scheduler.pause(job_id))


@jobs.post("/{job_id}/trigger", responses=answers(404, 409), summary="Make a job due now")
def trigger(job_id: JobId, scheduler: Open, _: NoQuery) -> JobAnswer:
    """A recurring one keeps its schedule; a paused one runs once."""
    with _or_missing(job_id):
        return _show(scheduler.trigger(job_id))


@jobs.post("/{job_id}/cancel", responses={202: {"model": Said}, **answers(404, 409)}, summary="Cancel a job")
def cancel(job_id: JobId, scheduler: Open, response: Response, _: NoQuery) -> Said:
    """At once if it waits; one that runs is asked to stop: 202. A recurring job keeps its schedule."""
    with _or_missing(job_id):
        result = scheduler.cancel(job_id)
    if result == "requested":
        response.status_code = 202
        return Said(message=f"Job ID {job_id} was asked to stop.", id=job_id, result=result)
    return Said(message=f"Job ID {job_id} cancelled.", id=job_id, result=result)


@jobs.get("/{job_id}/position", responses=answers(404), summary="The place in the queue")
def position(job_id: JobId, scheduler: Open, _: NoQuery) -> Place:
    """In the order of claims: due jobs by priority, then time; then the one-time jobs of the future."""
    found(scheduler, job_id)
    return Place(id=job_id, position=scheduler.queue_position(job_id))


@jobs.get(
    "/{job_id}/wait",
    responses={202: {"model": JobAnswer, "description": "It has not ended yet: ask again."}, **answers(404)},
    summary="Wait for a job's end",
)
async def wait(
    job_id: JobId,
    query: Annotated[WaitWishes, InQuery()],
    request: Request,
    response: Response,
    scheduler: Open,
) -> JobAnswer:
    """Answered when a one-time job has ended, on whichever node; with 202 and the job as it is when the time is over.

    Its `state` and `result` say how it ended. A recurring job ends only when it is deleted; see its runs.
    """
    waiting: Waiting = request.app.state.waiting
    with Patience(waiting, request, query.timeout_seconds) as patience:
        job = await waiting.ask(lambda: found(scheduler, job_id))
        while not job.state.final and await patience.pause():
            job = await waiting.ask(lambda: found(scheduler, job_id))
    if not job.state.final:
        response.status_code = 202
    return _show(job)
