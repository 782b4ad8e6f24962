"""`/api/v1/runs`: history, logs, and another attempt."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Annotated, Any
from uuid import UUID

from fastapi import Body, Depends, Path, Request, Response
from fastapi import Query as InQuery
from pydantic import BeforeValidator, Field
from pydantic.json_schema import WithJsonSchema

from pgscheduler import errors as e
from pgscheduler.states import Outcome

from ._audit import about, note
from ._bodies import HTTP_JOB
from ._common import LINKS, Count, NoQuery, Open, Page, page, router
from ._errors import ApiError, answers, or_missing
from ._fields import Given, Id, Limit, Moment, Name, Offset, Query, camel_to_snake
from ._limits import MAX_PAGE
from ._once import refuse_once
from ._show import JobAnswer, LogAnswer, RunAnswer

__all__ = ["runs"]

runs = router("runs", "/api/v1/runs")

_ID: dict[str, Any] = {"pattern": "^[1-9][0-9]{0,18}-[0-9a-f]{16}$", "min_length": 18, "max_length": 40}
RunId = Annotated[str, Path(description="A run's id.", **_ID)]
_OUTCOME: dict[str, Any] = {"type": "string", "enum": [str(outcome) for outcome in Outcome]}
OneRunId = Annotated[str, Field(**_ID)]


class RunWishes(Query):
    """Each counts only if it is given."""

    jobId: Id | None = Field(default=None, description="Only this job's.")  # noqa: N815 - as in `/jobs`
    job_id: Id | None = Field(default=None, description="The same as `jobId`.")
    name: Name | None = Field(default=None, description="The registered name.")
    key: Name | None = None
    outcome: Annotated[Outcome | None, WithJsonSchema(_OUTCOME)] = None
    since: Moment | None = Field(default=None, description="Ended at this time or later.")
    until: Moment | None = Field(default=None, description="Ended before this time.")
    node: UUID | None = Field(default=None, description="On the node with this id.")
    template: Name | None = Field(default=None, description="Of jobs made from the template with this code.")

    def wishes(self) -> dict[str, Any]:
        """As the verbs take them."""
        named = self.model_dump(include={"name", "key", "outcome", "since", "until", "template"})
        return {
            **named,
            "job": self.jobId or self.job_id,
            "node": None if self.node is None else str(self.node),
        }


class RunFilter(RunWishes):
    """The same, and a page."""

    limit: Limit = 50
    offset: Offset = 0


class LogPage(Query):
    limit: Limit = MAX_PAGE
    offset: Offset = 0


class Retried(Given):
    """Which runs."""

    runs: Annotated[list[OneRunId], Field(min_length=1, max_length=MAX_PAGE)] = Field(
        description="Their ids. Of several runs of one job, that job runs once."
    )


@runs.get("", responses={200: LINKS}, summary="List runs")
def list_runs(
    query: Annotated[RunFilter, InQuery()], request: Request, response: Response, scheduler: Open
) -> list[RunAnswer]:
    """History, newest first, a page at a time."""
    return page(
        Page(request, response, query.limit, query.offset),
        lambda limit, offset: scheduler.runs(**query.wishes(), limit=limit, offset=offset),
        RunAnswer.of,
    )


@runs.get("/count", summary="Count runs")
def count(query: Annotated[RunWishes, InQuery()], scheduler: Open) -> Count:
    """All that these filters leave. It reads them, so give it a `since` if history is long."""
    return Count(count=scheduler.count_runs(**query.wishes()))


@runs.post(
    "/retry",
    status_code=201,
    responses=answers(404, 409),
    dependencies=[Depends(refuse_once)],
    summary="Run many again",
)
def retry_many(
    body: Annotated[Retried, BeforeValidator(camel_to_snake), Body()], scheduler: Open, _: NoQuery
) -> list[JobAnswer]:
    """The jobs of these runs are due now: all of them, or none if one cannot be. The answer has the jobs."""
    try:
        jobs = scheduler.retry_many(body.runs)
    except e.JobNotFoundError as error:
        raise ApiError(404, "not_found", f"Run {error.job} not found.", field="runs") from None
    note(jobs=len(jobs))
    return [JobAnswer.of(job, HTTP_JOB) for job in jobs]


def _or_missing(run_id: str) -> AbstractContextManager[None]:
    return or_missing(e.JobNotFoundError, f"Run {run_id} not found.")


@runs.get("/{run_id:pgscheduler_id}", responses=answers(404), summary="Read a run")
def read(run_id: RunId, scheduler: Open, _: NoQuery) -> RunAnswer:
    """One line of history."""
    with _or_missing(run_id):
        return RunAnswer.of(scheduler.get_run(run_id))


@runs.get("/{run_id}/logs", responses={200: LINKS, **answers(404)}, summary="What a run logged")
def logs(
    run_id: RunId,
    query: Annotated[LogPage, InQuery()],
    request: Request,
    response: Response,
    scheduler: Open,
) -> list[LogAnswer]:
    """In order, a page at a time. The number of lines that a run can keep is bounded."""
    with _or_missing(run_id):
        lines = scheduler.logs(run_id)
    return page(
        Page(request, response, query.limit, query.offset),
        lambda limit, offset: lines[offset : offset + limit],
        LogAnswer.of,
    )


@runs.post(
    "/{run_id}/retry",
    status_code=201,
    responses=answers(404, 409),
    dependencies=[Depends(refuse_once)],
    summary="Run it again",
)
def retry(run_id: RunId, scheduler: Open, _: NoQuery) -> JobAnswer:
    """The job of that run is due now; as a new job with the same parameters if its own is gone."""
    with _or_missing(run_id):
        return JobAnswer.of(about(scheduler.retry(run_id)), HTTP_JOB)
