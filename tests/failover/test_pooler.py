"""PgBouncer in transaction mode between the nodes and the server. `PGSCHEDULER_TEST_POOLER` runs the engine's tests so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from pgscheduler import Job, JobConfig, JobState, RunContext, Scheduler, SchedulerConfig
from tests.support.pooler import PgBouncer, why_not
from tests.support.postgres import Server

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

_LEFT = """
select (select count(*) from pg_prepared_statements), current_setting('synchronous_commit'),
       current_setting('enable_seqscan'), current_setting('lock_timeout'), (select count(*) from pg_listening_channels())
"""


class Works(Job):
    """In a transaction of its own, on the thread or in a process."""

    def run(self, ctx: RunContext) -> None:
        with ctx.transaction() as connection:
            connection.execute("select 1")


@pytest.fixture
def one_session(server: Server) -> Iterator[PgBouncer]:
    """A pooler with one session for all: whatever is left in it, the next one finds."""
    with PgBouncer(server.dsn, sessions=1) as pooler:
        yield pooler


@pytest.fixture
def node() -> Iterator[Callable[..., Scheduler]]:
    made: list[Scheduler] = []

    def start(**settings: Any) -> Scheduler:
        scheduler = Scheduler(
            SchedulerConfig(
                heartbeat_interval=timedelta(seconds=0.3),
                no_heartbeat_timeout=timedelta(seconds=30),
                **settings,
            )
        )
        made.append(scheduler)
        scheduler.init()
        scheduler.register(Works(JobConfig(name="works")))
        scheduler.register(Works(JobConfig(name="caged", isolation="process")))
        scheduler.start()
        return scheduler

    yield start
    for scheduler in made:
        scheduler.shutdown()


@pytest.mark.parametrize("own_pool", [False, True], ids=["dsn", "pool"])
def test_a_pooler_is_noticed(
    direct_dsn: str, one_session: PgBouncer, node: Callable[..., Scheduler], own_pool: bool
) -> None:
    """Nobody said that there is a pooler: all works, and nothing of ours stays in a session that others use too."""
    dsn = one_session.through(direct_dsn)
    pool = ConnectionPool(dsn, min_size=1, max_size=2, open=True) if own_pool else None
    try:
        where: dict[str, Any] = {"dsn": dsn} if pool is None else {"pool": pool}
        scheduler = node(listen=False, job_check_interval=0.2, **where)
        jobs = [scheduler.enqueue("works") for _ in range(20)] + [scheduler.enqueue("caged")]
        for job in jobs:
            assert scheduler.wait(job, 30).state is JobState.COMPLETED
        with psycopg.connect(direct_dsn) as connection:
            expected = connection.execute(_LEFT).fetchone()
        with psycopg.connect(dsn) as connection:
            assert connection.execute(_LEFT).fetchone() == expected
        scheduler.shutdown()
    finally:
        if pool is not None:
            pool.close()


def test_listening_past_the_pooler(direct_dsn: str, server: Server, node: Callable[..., Scheduler]) -> None:
    """With `listen_dsn` a job that another process stores through the pooler is heard of at once."""
    with PgBouncer(server.dsn) as pooler:
        dsn = pooler.through(direct_dsn)
        scheduler = node(dsn=dsn, listen_dsn=direct_dsn, job_check_interval=600)
        with Scheduler(SchedulerConfig(dsn=dsn)) as client:
            assert client.wait(client.enqueue("works"), 15).state is JobState.COMPLETED
        scheduler.shutdown()
