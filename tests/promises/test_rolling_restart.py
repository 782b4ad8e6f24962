"""A deploy under load: each of four nodes is asked to end and replaced, twice around, and nobody notices."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import Every, JobConfig, Scheduler
from tests.promises.node_scripts import (
    Work,
    accounted,
    ask_to_end,
    create_ledger,
    overlaps,
    quiet_config,
    start_node,
)
from tests.support.processes import NodeProcess

SECOND = Every(timedelta(seconds=1))
NAMES = ["tick", "work"]
NODES = 4
SHUTDOWN = 20.0  # seconds; the jobs here go when they are asked, so a node needs a fraction of one
JOBS = 400


@pytest.mark.slow
@pytest.mark.timeout(400)  # twelve processes are started, one after the other
def test_a_deploy_burns_no_attempt_and_loses_no_occurrence(
    dsn: str, db: psycopg.Connection[Any], nodes: Callable[..., NodeProcess], eventually: Callable[..., Any]
) -> None:
    """SIGTERM, wait, start the next, twice around under load: no attempt is counted, no claim stalls, each job and
    each occurrence has exactly one end, and every node ends cleanly within its bound."""
    chance = random.Random(7)
    create_ledger(dsn)

    def start() -> NodeProcess:
        # A heartbeat timeout that no restart may lean on: what a node leaves behind would wait for it.
        return start_node(
            nodes, dsn, names=NAMES, beat=1, timeout=60, slots=6, ready=False, shutdown=SHUTDOWN
        )

    took = []
    with Scheduler(quiet_config(dsn)) as client:
        alive = [start() for _ in range(NODES)]
        for node in alive:
            node.wait_for("ready", timeout=60)
        tick = client.schedule(Work(JobConfig.recurring("tick", SECOND, parameters={"seconds": 0.2}), dsn))
        # Some are longer than a node lives from now on, so that each shutdown meets runs in the middle of their work.
        jobs = [
            client.enqueue("work", {"seconds": chance.choice([0, 0.02, 0.3, 3])}, delay=chance.random() * 8)
            for _ in range(JOBS)
        ]
        for _ in range(2 * NODES):
            oldest = alive.pop(0)
            begun = time.monotonic()
            ask_to_end(oldest)
            assert oldest.wait_for("shut down", timeout=SHUTDOWN + 10)["clean"] is True
            took.append(time.monotonic() - begun)
            assert oldest.wait() == 0
            alive.append(start())
            alive[-1].wait_for("ready", timeout=60)
        open_jobs = "select count(*) = 0 from pgscheduler_jobs where name = 'work'"
        eventually(lambda: db.execute(open_jobs).fetchone() == (True,), timeout=90, describe="all jobs end")
        client.pause(tick)
        resting = "select state = 'paused' from pgscheduler_jobs where id = %s"
        eventually(lambda: db.execute(resting, [tick.id]).fetchone() == (True,), timeout=60)

    assert max(took) <= SHUTDOWN + 1
    # Attempts and stalls: none but the first, none at all.
    assert (
        db.execute("select * from pgscheduler_runs where attempt > 1 or outcome = 'stalled'").fetchall() == []
    )
    assert db.execute("select failures, stalls from pgscheduler_jobs").fetchall() == [(0, 0)]
    # A shutdown met running jobs, or this would prove nothing.
    interrupted = db.execute("select count(*) from pgscheduler_runs where outcome = 'interrupted'").fetchone()
    assert interrupted is not None
    assert interrupted[0] > 0

    # Each job has completed, once.
    done = db.execute(
        "select job_id, array_agg(outcome) from pgscheduler_runs"
        " where name = 'work' and outcome <> 'interrupted' group by job_id"
    ).fetchall()
    assert {job.id: ["completed"] for job in jobs} == dict(done)

    # Each occurrence, from the first to the next one to come, has one end.
    (following,) = db.execute("select scheduled_at from pgscheduler_jobs where id = %s", [tick.id]).fetchone()  # type: ignore[misc]
    expected, occurrence = {}, tick.scheduled_at
    while occurrence < following.astimezone(UTC):
        expected[occurrence] = 1
        occurrence = SECOND.next_after(occurrence)
    assert expected == accounted(db, tick.id, SECOND)
    assert len(expected) > 2 * NODES

    # None beside itself, and whatever began has its line in history.
    assert overlaps(db) == []
    unrecorded = db.execute(
        "select l.* from ledger l left join pgscheduler_runs r on (r.job_id, r.token) = (l.job, l.token)"
        " where r.job_id is null"
    ).fetchall()
    assert unrecorded == []
