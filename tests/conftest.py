"""Fixtures for every test. `dsn` is the usual one: a fresh database with the schema, on the shared server.

Without PGSCHEDULER_TEST_DSN (an administrator's connection string) the session starts a server of its own.
With PGSCHEDULER_TEST_POOLER=pgbouncer, `dsn` leads through a PgBouncer in transaction mode, and `direct_dsn` past it;
with `pgbouncer+listen` the schedulers of the engine's tests listen past it too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest

from pgscheduler import embedded
from tests import support
from tests.support import pooler as poolers
from tests.support.clockskew import SkewedClock, build_preload, why_not
from tests.support.pooler import PgBouncer
from tests.support.postgres import SHARED_SETTINGS, PrivateServer, Server, apply_schema, shared_directory
from tests.support.processes import NodeProcess, spawn_node
from tests.support.proxy import Proxy


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server that tests share: databases come and go in it, it is never stopped."""
    given = os.environ.get("PGSCHEDULER_TEST_DSN")
    if given:
        yield Server(given)
    else:
        with embedded.start(shared_directory(), settings=SHARED_SETTINGS) as own:
            yield Server(own.dsn)


@pytest.fixture(scope="session")
def template(server: Server) -> Iterator[str]:
    """The name of a database with the schema in it, to be cloned."""
    with server.template(apply_schema) as name:
        yield name


@pytest.fixture(scope="session")
def pgbouncer(server: Server) -> Iterator[PgBouncer | None]:
    """The pooler that PGSCHEDULER_TEST_POOLER asks for; None: nothing is between us and the server."""
    if poolers.wanted() is None:
        yield None
        return
    with PgBouncer(server.dsn) as pgbouncer:
        yield pgbouncer


@pytest.fixture
def direct_dsn(server: Server, template: str) -> Iterator[str]:
    """A fresh database with the schema, gone after the test whoever is still connected."""
    with server.database(template) as dsn:
        yield dsn


@pytest.fixture
def dsn(direct_dsn: str, pgbouncer: PgBouncer | None) -> str:
    """The same database, the way that the tests' programs go: directly, or through the pooler."""
    return direct_dsn if pgbouncer is None else pgbouncer.through(direct_dsn)


@pytest.fixture
def empty_dsn(server: Server, pgbouncer: PgBouncer | None) -> Iterator[str]:
    """A fresh database without anything of ours in it."""
    with server.database() as dsn:
        yield dsn if pgbouncer is None else pgbouncer.through(dsn)


@pytest.fixture
def direct_empty_dsn(server: Server) -> Iterator[str]:
    """The same for programs that must not go through a pooler."""
    with server.database() as dsn:
        yield dsn


@pytest.fixture
def db(direct_dsn: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """An autocommit connection to the test's database, for looking and for meddling."""
    with psycopg.connect(direct_dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def own_server() -> Iterator[Callable[..., PrivateServer]]:
    """Starts servers that this test alone may crash, stop and start; fsync is on, as in real life."""
    with ExitStack() as stack:

        def start(settings: Mapping[str, str] | None = None, **options: Any) -> PrivateServer:
            return stack.enter_context(PrivateServer(settings=settings, **options))

        yield start


@pytest.fixture
def nodes() -> Iterator[Callable[..., NodeProcess]]:
    """Starts node processes (see tests/support/processes.py); none outlives the test."""
    with ExitStack() as stack:

        def spawn(script: str | Path, *args: object, env: Mapping[str, str] | None = None) -> NodeProcess:
            return stack.enter_context(spawn_node(script, *args, env=env))

        yield spawn


@pytest.fixture
def proxy_to() -> Iterator[Callable[[str], Proxy]]:
    """Puts a bad network before a server: `proxy = proxy_to(dsn)`."""
    with ExitStack() as stack:
        yield lambda dsn: stack.enter_context(Proxy(dsn))


@pytest.fixture(scope="session")
def _preload() -> Iterator[Path]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    # Not pytest's temporary directory, into which other users cannot go.
    with TemporaryDirectory(prefix="pgscheduler-skew-") as directory:
        yield build_preload(Path(directory))


@pytest.fixture
def skewed_clock(_preload: Path) -> Iterator[Callable[..., SkewedClock]]:
    """Makes wrong wall clocks for other processes: `nodes(SCRIPT, env=skewed_clock(3600).env)`."""
    with ExitStack() as stack:

        def make(seconds: float = 0.0) -> SkewedClock:
            clock = SkewedClock(_preload, seconds)
            stack.callback(clock.close)
            return clock

        yield make


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """`eventually(lambda: …, timeout=10, describe="…")`: wait until truthy, return the value."""
    return support.eventually
