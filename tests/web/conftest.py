"""What tests of the API share: a real server over a fresh database, called as a program of this machine would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from pgscheduler import Scheduler, SchedulerConfig
from pgscheduler.web import Limits, Server, Tokens, create_app
from tests.engine.conftest import clock, gate, scheduler_on

__all__ = ["clock", "gate", "scheduler_on"]

READ, WRITE = "read-token-0123456789", "write-token-0123456789"


@pytest.fixture
def scheduler(dsn: str, scheduler_on: Callable[..., Scheduler]) -> Scheduler:
    """The scheduler behind the API; it runs nothing by itself."""
    return scheduler_on(dsn)


@pytest.fixture
def client_of() -> Iterator[Callable[..., httpx.Client]]:
    """`client_of(scheduler, tokens=…, limits=…)`: a client of a server of its own; both end with the test."""
    with ExitStack() as stack:

        def make(
            scheduler: Scheduler | SchedulerConfig,
            *,
            tokens: Tokens | None = None,
            limits: Limits | None = None,
            token: str | None = None,
        ) -> httpx.Client:
            app = create_app(scheduler, tokens=tokens or Tokens(), limits=limits)
            server = stack.enter_context(Server(app, port=0))
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return stack.enter_context(httpx.Client(base_url=server.url, headers=headers, timeout=60))

        yield make


@pytest.fixture
def api(scheduler: Scheduler, client_of: Callable[..., httpx.Client]) -> httpx.Client:
    """A client without a token, from this machine."""
    return client_of(scheduler)
