"""REST over the scheduler's verbs: `create_app` makes an ASGI app, `Server` runs it, `pgscheduler api` does both.

What may surprise: without a token the app answers only programs on its own machine, however it is served.
Needs FastAPI and uvicorn, from the extra `server`; nothing here imports them before they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgscheduler.config import SchedulerConfig
from pgscheduler.errors import InvalidTypeError, InvalidValueError
from pgscheduler.scheduler import Scheduler

from ._limits import Limits
from ._server import DEFAULT_HOST, DEFAULT_PORT, Server
from ._tokens import Tokens

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["DEFAULT_HOST", "DEFAULT_PORT", "Limits", "Server", "Tokens", "create_app", "serve_api"]


def create_app(
    scheduler: Scheduler | SchedulerConfig, *, tokens: Tokens | None = None, limits: Limits | None = None
) -> FastAPI:
    """The REST API as a FastAPI app, to be served by any ASGI server or mounted into an app of yours.

    ::

        app.mount("/scheduler", create_app(scheduler))  # an initialized Scheduler, started or not

    With a `SchedulerConfig` the app makes a scheduler of its own when it starts up, and shuts it down with itself;
    a mounted app is not told of either, so mount one that was given a Scheduler. The scheduler stays yours.

    `tokens` default to those of the environment (`Tokens.from_env()`). Without any, requests are refused unless
    they come from the loopback interface and name it in their Host header, so that neither another machine nor
    a page in somebody's browser can speak to it. Raises InvalidTypeError and InvalidValueError.
    """
    for field, value, kind in (
        ("scheduler", scheduler, Scheduler | SchedulerConfig),
        ("tokens", tokens, Tokens | None),
        ("limits", limits, Limits | None),
    ):
        if not isinstance(value, kind):
            # Only its type: what was handed in instead may be a DSN or a token.
            raise InvalidTypeError(field, type(value), f"must be a {kind}")
    try:
        from ._app import build
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "starlette", "pydantic"):
            raise
        raise InvalidValueError(
            "create_app", "no FastAPI", 'needs FastAPI: pip install "pgscheduler[server]"'
        ) from error
    return build(scheduler, Tokens.from_env() if tokens is None else tokens, limits or Limits())


def serve_api(
    scheduler: Scheduler,
    *,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    tokens: Tokens | None = None,
    limits: Limits | None = None,
) -> Server:
    """Answer from now on, on a thread of its own, until `close()`: `create_app` and `Server` in one.

    The scheduler must be initialized; it may be started or not. `port` 0 takes any free one; `Server.port` says
    which. Without a token only an address of this machine is taken. Raises what both raise.
    """
    return Server(create_app(scheduler, tokens=tokens, limits=limits), host=host, port=port)
