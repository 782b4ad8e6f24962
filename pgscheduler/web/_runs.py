"""`/api/v1/runs`: history, logs, and another attempt."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Annotated
from uuid import UUID

from fastapi import Path, Request, Response
from fastapi import Query as InQuery
from pydantic import Field

from pgscheduler import errors as e
from pgscheduler.states import Outcome

from ._audit import about
from ._bodies import HTTP_JOB
from ._common import LINKS, NoQuery, Open, Page, page, router
from ._errors import answers, or_missing
from ._fields import Id, Limit, Moment, Name, Offset, Query
from ._show import JobAnswer, LogAnswer, RunAnswer

__all__ = ["runs"]

runs = router("runs", "/api/v1/runs")

RunId = Annotated[
    str,
    Path(description="A run's id.", pattern="^[1-9][0-9]{0,18}-[0-9a-f]{16}$", min_length=18, max_length=40),
]


class RunFilter(Query):
    """Each counts only if it is given."""

    jobId: Id | None = Field(default=None, description="Only this job's.")  # noqa: N815 - as in `/jobs`
    job_id: Id | None = Field(default=None, description="The same as `jobId`.")
    name: Name | None = Field(default=None, description="The registered name.")
    key: Name | None = None
    outcome: Outcome | None = None
    since: Moment | None = Field(default=None, description="Ended at this time or later.")
    until: Moment | None = Field(default=None, description="Ended before this time.")
    node: UUID | None = Field(default=None, description="On the node with this id.")
    limit: Limit = 50
    offset: Offset = 0


@runs.get("", responses={200: LINKS}, summary="List runs")
def list_runs(
    query: Annotated[RunFilter, InQuery()], request: Request, response: Response, scheduler: Open
) -> list[RunAnswer]:
    """History, newest first, a page at a time."""
    filters = query.model_dump(include={"name", "key", "outcome", "since", "until"})
    filters["node"] = None if query.node is None else str(query.node)
    return page(
        Page(request, response, query.limit, query.offset),
        lambda limit, offset: scheduler.runs(
            query.jobId or query.job_id, **filters, limit=limit, offset=offset
        ),
        RunAnswer.of,
    )


def _or_missing(run_id: str) -> AbstractContextManager[None]:
    return or_missing(e.JobNotFoundError, f"Run {run_id} not found.")


@runs.get("/{run_id}", responses=answers(404), summary="Read a run")
def read(run_id: RunId, scheduler: Open, _: NoQuery) -> RunAnswer:
    """One line of history."""
    with _or_missing(run_id):
        return RunAnswer.of(scheduler.get_run(run_id))


@runs.get("/{run_id}/logs", responses=answers(404), summary="What a run logged")
def logs(run_id: RunId, scheduler: Open, _: NoQuery) -> list[LogAnswer]:
    """In order. The number of lines that a run can keep is bounded."""
    with _or_missing(run_id):
        return [LogAnswer.of(line) for line in scheduler.logs(run_id)]


@runs.post("/{run_id}/retry", status_code=201, responses=answers(404, 409), summary="Run it again")
def retry(run_id: RunId, scheduler: Open, _: NoQuery) -> JobAnswer:
    """The job of that run is due now; as a new job with the same parameters if its own is gone."""
    with _or_missing(run_id):
        return JobAnswer.of(about(scheduler.retry(run_id)), HTTP_JOB)
