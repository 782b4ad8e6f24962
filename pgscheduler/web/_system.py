"""What is said about the system as a whole: health, nodes, figures, and Bildad's engine."""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal

from fastapi import Query as InQuery
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from psycopg.conninfo import conninfo_to_dict
from pydantic import Field

from pgscheduler._version import __version__
from pgscheduler.errors import SchedulerStateError

from ._common import LINKS, NoQuery, Open, Page, router
from ._errors import ApiError, answers
from ._fields import Answer, Flag, Limit, Offset, Query
from ._show import NodeAnswer

__all__ = ["health", "system"]

system = router("system")
health = router("system")

BATCH = 10  # jobs of one pass; Bildad's
TURN = 20.0  # seconds that a pass waits for the one before it, in the same process


class Service(Answer):
    """Who answers. The first four fields are Cron Service's."""

    service: str
    status: Literal["Running"]
    db_host: str | None = Field(alias="dbHost", description="Without user and password.")
    queue_name: str = Field(alias="queueName", description="The schema and prefix of the tables.")
    version: str


class Alive(Answer):
    """The process answers."""

    status: Literal["ok"]


class Readiness(Answer):
    """Whether it can work."""

    status: Literal["ready", "not ready"]
    reasons: list[str]


class Stats(Answer):
    """Live jobs, and the figures of the process that answers."""

    names: dict[str, dict[str, int]] = Field(description="Live jobs by name and state.")
    states: dict[str, int] = Field(description="Live jobs by state.")
    due: int
    oldest_due_seconds: float | None
    node: dict[str, Any] = Field(description="This process: counters, and the health of its loops.")


class Counts(Answer):
    """How many went well, and how many did not."""

    ok_count: int
    error_count: int


class EnginePass(Answer):
    """What one pass did."""

    start: Counts = Field(description="Jobs that ran, and those of them that failed.")
    expire: Counts = Field(description="Runs of nodes that died, whose jobs were given back.")


class NodeFilter(Query):
    alive: Flag | None = None
    limit: Limit = 100
    offset: Offset = 0


@system.get("/", summary="Who answers")
def root(scheduler: Open, _: NoQuery) -> Service:
    """Cron Service's greeting."""
    config = scheduler.config
    host = conninfo_to_dict(config.conninfo).get("host")
    return Service(
        service="pgscheduler API",
        status="Running",
        dbHost=None if host is None else str(host),
        queueName=f"{config.schema}.{config.table_prefix}",
        version=__version__,
    )


@health.get("/healthz", summary="The process is alive")
async def healthz(_: NoQuery) -> Alive:
    """Asks nobody: if this is not answered, the process is to be restarted."""
    return Alive(status="ok")


@health.get("/readyz", responses={503: {"model": Readiness}}, summary="The process can work")
async def readyz(request: Request, response: Response, _: NoQuery) -> Readiness:
    """The database answers, and so does every loop of the node, if there is one in this process."""
    reasons = await request.app.state.probe.reasons()
    if reasons:
        response.status_code = 503
    return Readiness(status="not ready" if reasons else "ready", reasons=reasons)


@system.get("/api/v1/nodes", responses={200: LINKS}, summary="List nodes")
def nodes(
    query: Annotated[NodeFilter, InQuery()], request: Request, response: Response, scheduler: Open
) -> list[NodeAnswer]:
    """Living or gone, newest first."""
    found = [node for node in scheduler.nodes() if query.alive in (None, node.alive)]
    rows = found[query.offset : query.offset + query.limit]
    Page(request, response, query.limit, query.offset).link(len(found) > query.offset + query.limit)
    return [NodeAnswer.of(node) for node in rows]


@system.get("/api/v1/stats", summary="Count live jobs")
def stats(scheduler: Open, _: NoQuery) -> Stats:
    """By name and state; how many are due, and for how long the oldest has been."""
    return Stats(**scheduler.stats())


@system.post("/jobs/engine/run", responses=answers(409), summary="One pass of the engine")
def run_engine(request: Request, scheduler: Open, _: NoQuery) -> EnginePass:
    """Bildad's: give back the jobs of dead nodes, run up to ten due jobs that this process knows, and say how it went.

    For an external clock that calls; the answer comes when the jobs have ended. Any number of processes may be
    called at once. 409 from a node that is started: it needs no call.
    """
    turn: threading.Lock = request.app.state.turn
    if not turn.acquire(timeout=TURN):
        text = "Another pass of this process has not ended yet."
        raise ApiError(503, "busy", text, headers={"Retry-After": "5"})
    try:
        done = scheduler.run_pending(BATCH)
    except SchedulerStateError as error:
        if scheduler.node_stats()["state"] != "started":
            raise
        raise ApiError(409, "node_runs_by_itself", str(error)) from None
    finally:
        turn.release()
    return EnginePass(
        start=Counts(ok_count=done.claimed - done.failed, error_count=done.failed),
        expire=Counts(ok_count=done.reset, error_count=0),
    )


@system.get("/api/v1/openapi.json", summary="This description", response_class=JSONResponse)
def description(request: Request, _: NoQuery) -> dict[str, Any]:
    """Of all endpoints, as OpenAPI."""
    found: dict[str, Any] = request.app.openapi()
    return found
