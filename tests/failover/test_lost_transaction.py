"""A failover to a standby that lagged kept a claim, and lost the transaction that had completed its run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import Every, Job, JobConfig, RunContext, Scheduler, SchedulerConfig
from tests.failover.cluster import Cluster, why_not
from tests.failover.trial import prepare
from tests.support.postgres import execute

Forget = Callable[[RunContext], None]

_EFFECT = "insert into effects (job_id, attempt) values (%s, %s)"
_AS_BEFORE = "update pgscheduler_jobs set completed_at = null, result = null where id = %s"


class Pays(Job):
    """Its effect and its completion are one commit; what `meanwhile` does happens between that and its end."""

    def __init__(self, config: JobConfig, meanwhile: Forget) -> None:
        super().__init__(config)
        self.meanwhile = meanwhile

    def run(self, ctx: RunContext) -> None:
        with ctx.transaction() as connection:
            connection.execute(_EFFECT, [ctx.job_id, ctx.attempt])
        self.meanwhile(ctx)


class PaysAsync(Pays):
    """The same on the event loop."""

    async def run(self, ctx: RunContext) -> None:  # type: ignore[override]
        async with ctx.transaction() as connection:
            await connection.execute(_EFFECT, [ctx.job_id, ctx.attempt])
        self.meanwhile(ctx)


@pytest.fixture
def node() -> Iterator[Callable[..., Scheduler]]:
    """Starts one node with short intervals."""
    made: list[Scheduler] = []

    def start(dsn: str, *jobs: Job) -> Scheduler:
        scheduler = Scheduler(
            SchedulerConfig(
                dsn=dsn,
                heartbeat_interval=timedelta(seconds=0.3),
                no_heartbeat_timeout=timedelta(seconds=30),
                run_immediately=True,
            )
        )
        made.append(scheduler)
        scheduler.init()
        for job in jobs:
            scheduler.register(job)
        scheduler.start()
        return scheduler

    yield start
    for scheduler in made:
        scheduler.shutdown()


@pytest.mark.parametrize("kind", [Pays, PaysAsync])
@pytest.mark.parametrize("schedule", [None, Every(timedelta(days=1))])
def test_what_its_transaction_completed_must_still_be_marked(
    db: psycopg.Connection[Any],
    dsn: str,
    node: Callable[..., Scheduler],
    eventually: Any,
    kind: type[Pays],
    schedule: Every | None,
) -> None:
    """A claim that is still ours on a row that knows nothing of the transaction: the run was interrupted, and runs again."""
    db.execute("create table effects (job_id bigint, attempt int)")
    forgot = threading.Event()

    def forget(ctx: RunContext) -> None:
        if not forgot.is_set():
            forgot.set()
            db.execute("delete from effects")
            db.execute(_AS_BEFORE, [ctx.job_id])

    job = kind(JobConfig(name="pays", schedule=schedule), forget)
    scheduler = node(dsn, job)
    record = scheduler.schedule(job)
    if schedule is not None:
        scheduler.trigger(record)
    query = "select outcome, attempt from pgscheduler_runs where outcome <> 'skipped' order by started_at"
    found = eventually(lambda: len(rows := db.execute(query).fetchall()) == 2 and rows, 15)
    assert found == [("interrupted", 1), ("completed", 1)]
    assert db.execute("select count(*) from effects").fetchone() == (1,)


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_lagging_standby_loses_effect_and_completion_together(
    node: Callable[..., Scheduler], eventually: Any
) -> None:
    """The standby has the claim and not the transaction: on the new primary the job runs again, once."""
    with Cluster({"far": True}) as cluster:
        prepare(cluster.dsn)
        execute(cluster.dsn, "create table effects (job_id bigint, attempt int)")
        failing_over, failed_over = threading.Event(), threading.Event()

        def fail_over(ctx: RunContext) -> None:
            if not failing_over.is_set():
                failing_over.set()
                assert execute(cluster.primary.dsn, "select count(*) from effects") == [(1,)]
                cluster.kill()
                cluster.promote("far")
                assert execute(cluster.standbys["far"].dsn, "select count(*) from effects") == [(0,)]
                failed_over.set()

        def claimed(ctx: RunContext) -> None:
            """The claim is on the standby; from here on nothing is."""
            eventually(lambda: cluster.caught_up("far"), 15)
            cluster.lag("far")

        class Lags(Pays):
            def run(self, ctx: RunContext) -> None:
                if not failing_over.is_set():
                    claimed(ctx)
                super().run(ctx)

        job = Lags(JobConfig(name="pays"), fail_over)
        scheduler = node(cluster.dsn, job)
        scheduler.schedule(job)
        assert failed_over.wait(30)
        query = "select outcome, reason from pgscheduler_runs order by started_at"
        found = eventually(lambda: len(rows := execute(cluster.dsn, query)) == 2 and rows, 30)
        assert found == [("interrupted", "its transaction is gone: lost in a failover"), ("completed", None)]
        assert execute(cluster.dsn, "select count(*) from effects") == [(1,)]
        scheduler.shutdown()
