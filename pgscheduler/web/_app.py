"""The parts of the API, put together."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from pgscheduler._version import __version__
from pgscheduler.config import SchedulerConfig
from pgscheduler.errors import PgSchedulerError
from pgscheduler.scheduler import Scheduler

from ._audit import operation
from ._definitions import definitions
from ._errors import error_answer, of_framework, of_scheduler, of_validation
from ._guard import Guard
from ._health import Probe
from ._jobs import jobs
from ._limits import Limits
from ._runs import runs
from ._system import health, system
from ._templates import templates
from ._tokens import Tokens
from ._waiting import Waiting

__all__ = ["build"]

_ABOUT = """
Jobs on PostgreSQL: see them, steer them, store them.

A bearer token with the scope `read` may use GET, and ask what a plan or a template's validation says; one with
`write` may do everything. Without any token configured only programs of the server's own machine are answered.

Bodies are JSON; their fields may be written in snake_case or camelCase. Unknown fields and parameters are refused.
Durations end in `_seconds`; times are RFC 3339 with an offset. Whatever goes wrong is one shape, `Error`.
"""
#: Checked by `Guard` before anything is read; here only so that the description says it.
_BEARER = HTTPBearer(
    auto_error=False, scheme_name="bearer", description="A token with the scope `read` or `write`."
)


class _Api(FastAPI):
    """With a description that knows what a query or a header is: it is left out, and never null."""

    def openapi(self) -> dict[str, Any]:
        found = super().openapi()
        for methods in found["paths"].values():
            for parameter in (one for each in methods.values() for one in each.get("parameters", ())):
                schema = parameter["schema"]
                if parameter["in"] in ("query", "header") and {"type": "null"} in schema.get("anyOf", ()):
                    (kind,) = (one for one in schema.pop("anyOf") if one != {"type": "null"})
                    parameter["schema"] = {**kind, **schema}
        return found


def build(source: Scheduler | SchedulerConfig, tokens: Tokens, limits: Limits) -> FastAPI:
    """See `create_app`."""
    own = Scheduler(source) if isinstance(source, SchedulerConfig) else None
    scheduler = own if own is not None else source
    assert isinstance(scheduler, Scheduler)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        if own is not None:
            await run_in_threadpool(own.init)
        try:
            yield
        finally:
            if own is not None:
                await run_in_threadpool(own.shutdown)

    app = _Api(
        title="pgscheduler",
        version=__version__,
        description=_ABOUT,
        lifespan=life,
        # The pages that come with FastAPI load their scripts from elsewhere. The description has a path of its own.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation,
        separate_input_output_schemas=False,
    )
    app.state.scheduler = scheduler
    app.state.tokens = tokens
    app.state.limits = limits
    app.state.probe = Probe(lambda: scheduler)
    app.state.turn = threading.Lock()
    app.state.waiting = Waiting(limits)
    app.add_exception_handler(PgSchedulerError, _scheduler_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_middleware(Guard, tokens=tokens, limits=limits, log=lambda: scheduler.log)
    app.include_router(health)
    guarded = (system, jobs, runs, templates, definitions)
    for part in guarded:
        app.include_router(part, dependencies=[Depends(_BEARER)])
    parts = (health, *guarded)
    app.state.endpoints = [route for part in parts for route in part.routes if isinstance(route, APIRoute)]
    return app


def _scheduler_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PgSchedulerError)
    answer = of_scheduler(error)
    if answer.status_code >= 500:
        log: Any = request.app.state.scheduler.log
        log.warning(
            "request failed", path=request.scope["path"], error=f"{type(error).__name__}: {error}"[:500]
        )
    return error_answer(answer)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return error_answer(of_framework(request, error))


def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_answer(of_validation(error))
