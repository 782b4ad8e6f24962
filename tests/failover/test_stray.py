"""The old primary comes back and knows of nothing: what nodes that find it do, and that none of it is believed later."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig
from tests.failover.cluster import Cluster, why_not
from tests.failover.trial import prepare
from tests.support.postgres import execute

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

_JOBS = 30
_SLOTS = 4
_COMPLETED = "select count(*) from pgscheduler_runs where outcome = 'completed'"


class Count(Job):
    """Takes half a second, and counts its runs in this process."""

    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.ran: list[int] = []
        self.lock = threading.Lock()

    def run(self, ctx: RunContext) -> None:
        with self.lock:
            self.ran.append(ctx.job_id)
        ctx.wait(0.5)


@pytest.fixture
def cluster(eventually: Any) -> Iterator[Cluster]:
    """With the scheduler's tables, and the partitions that nodes make."""
    partitions = "select count(*) from pg_inherits where inhparent = 'pgscheduler_runs'::regclass"
    with Cluster({"near": False}) as cluster:
        prepare(cluster.dsn)
        with Scheduler(SchedulerConfig(dsn=cluster.dsn)) as scheduler:
            scheduler.start()
            eventually(lambda: execute(cluster.dsn, partitions) > [(1,)], 30)
        eventually(lambda: cluster.caught_up("near"), 15)
        yield cluster


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Callable[[], tuple[Scheduler, Count]]]:
    """Starts a node that may go to either server, and takes the first that accepts writes."""
    made: list[Scheduler] = []

    def start() -> tuple[Scheduler, Count]:
        config = SchedulerConfig(
            dsn=cluster.dsn,
            heartbeat_interval=timedelta(seconds=0.3),
            no_heartbeat_timeout=timedelta(seconds=30),
            job_check_interval=timedelta(seconds=0.3),
            max_concurrent_jobs=_SLOTS,
            shutdown_timeout=timedelta(seconds=5),
            run_immediately=True,
        )
        scheduler = Scheduler(config)
        made.append(scheduler)
        scheduler.init()
        job = Count(JobConfig(name="count"))
        scheduler.register(job)
        scheduler.start()
        return scheduler, job

    yield start
    for scheduler in made:
        scheduler.shutdown()


@pytest.mark.parametrize("synchronous", [True, False], ids=["synchronous", "asynchronous"])
def test_a_stray_primary(
    cluster: Cluster, node: Callable[[], tuple[Scheduler, Count]], eventually: Any, synchronous: bool
) -> None:
    """A new node that finds the stray runs there what was done elsewhere: all of it, or, where commits wait for a
    standby, what it begins until it notices. When the stray is gone, nothing of that is accepted, and all goes on."""
    near = cluster.standbys["near"]
    if synchronous:
        cluster.wait_for("near")
    with Scheduler(SchedulerConfig(dsn=cluster.dsn)) as client:
        for _ in range(_JOBS):
            client.enqueue("count")
    eventually(lambda: cluster.caught_up("near"), 15)
    cluster.kill()
    cluster.promote("near")
    first, job = node()
    eventually(lambda: execute(near.dsn, _COMPLETED) == [(_JOBS,)], 30)
    stray = cluster.come_back()

    second, again = node()
    if synchronous:
        # Their outcomes wait for a standby that will never come, and so does everything else of this node.
        waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"
        eventually(lambda: execute(stray.dsn, waiting) > [(0,)], 30)
        # It claims on until it notices that the outcomes of the first ones stay unanswered.
        eventually(
            lambda: (
                second._node.recorder.stuck
                and second.node_stats()["held"] == second.node_stats()["unwritten"] > 0
            ),
            30,
        )
        began = len(again.ran)
        time.sleep(2)  # four times what a run takes
        assert _SLOTS <= len(again.ran) == began <= 3 * _SLOTS
        assert execute(stray.dsn, _COMPLETED) == [(0,)]
    else:
        eventually(lambda: execute(stray.dsn, _COMPLETED) == [(_JOBS,)], 30)
        assert len(again.ran) == _JOBS
    assert len(job.ran) == _JOBS, "the node that is on the new primary stays there"

    stray.down("immediate")
    query = "select count(*) from pgscheduler_nodes where id = %s"
    eventually(
        lambda: execute(near.dsn, query, [second.id]) == [(1,)], 30, "the node to find the new primary"
    )
    # Of these two nodes now one or the other runs what comes, once.
    record = first.enqueue("count")
    eventually(lambda: execute(near.dsn, _COMPLETED) == [(_JOBS + 1,)], 30)
    assert first.runs(record)[0].outcome == "completed"
    if synchronous:
        eventually(lambda: second.node_stats()["lost"] == began, 30, lambda: (began, second.node_stats()))
    assert execute(near.dsn, "select count(*) from pgscheduler_runs") == [(_JOBS + 1,)]


def test_a_stray_that_starts_as_a_standby_is_left_alone(
    cluster: Cluster, node: Callable[[], tuple[Scheduler, Count]], eventually: Any
) -> None:
    """With `standby.signal` in its data directory the old primary accepts no writes, so nobody takes it for one."""
    near = cluster.standbys["near"]
    cluster.kill()
    cluster.promote("near")
    (cluster.primary.data / "standby.signal").touch()
    cluster.come_back()
    scheduler, job = node()
    scheduler.enqueue("count")
    eventually(lambda: execute(near.dsn, _COMPLETED) == [(1,)], 30)
    assert len(job.ran) == 1
