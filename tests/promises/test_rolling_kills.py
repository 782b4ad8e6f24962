"""Everything at once: four nodes, one of them killed every two seconds and replaced, and every promise kept."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import Every, JobConfig, Scheduler
from tests.promises.node_scripts import (
    Work,
    accounted,
    create_ledger,
    overlaps,
    quiet_config,
    start_node,
)
from tests.support.processes import NodeProcess

SECOND = Every(timedelta(seconds=1))
NAMES = ["tick", "work"]
KILLS = 6
TIMEOUT = 6.0  # seconds; longer than a busy machine keeps a living node from its work


@pytest.mark.slow
def test_kills_lose_double_and_hasten_nothing(
    dsn: str, db: psycopg.Connection[Any], nodes: Callable[..., NodeProcess], eventually: Callable[..., Any]
) -> None:
    """Each occurrence has one end on record, no job starts early, is lost, runs beside itself or is recorded twice."""
    chance = random.Random(4)
    create_ledger(dsn)
    killed: dict[int, datetime] = {}
    with Scheduler(quiet_config(dsn)) as client:
        alive = [start_node(nodes, dsn, names=NAMES, beat=1, timeout=TIMEOUT, ready=False) for _ in range(4)]
        for node in alive:
            node.wait_for("ready", timeout=60)
        tick = client.schedule(
            Work(JobConfig.recurring("tick", SECOND, parameters={"seconds": 0.4}, max_stalls=50), dsn)
        )
        jobs = [
            client.enqueue(
                "work", {"seconds": chance.choice([0, 0.05, 0.3])}, delay=chance.random() * 12, max_stalls=50
            )
            for _ in range(200)
        ]
        for _ in range(KILLS):
            time.sleep(2)  # the rhythm of the test, nothing is awaited
            victim = alive.pop(chance.randrange(len(alive)))
            victim.kill()
            (at,) = db.execute("select clock_timestamp()").fetchone()  # type: ignore[misc]
            killed[victim.pid] = at
            alive.append(start_node(nodes, dsn, names=NAMES, beat=1, timeout=TIMEOUT, ready=False))
        open_jobs = "select count(*) = 0 from pgscheduler_jobs where name = 'work'"
        eventually(lambda: db.execute(open_jobs).fetchone() == (True,), timeout=60, describe="all jobs end")
        # Kills that all meet the node with the recurring job leave it little time: it goes on until it has been seen.
        ticked = "select count(*) > %s from pgscheduler_runs where job_id = %s and outcome <> 'stalled'"
        eventually(lambda: db.execute(ticked, [KILLS, tick.id]).fetchone() == (True,), timeout=60)
        client.pause(tick)
        resting = "select state = 'paused' from pgscheduler_jobs where id = %s"
        eventually(lambda: db.execute(resting, [tick.id]).fetchone() == (True,), timeout=60)

    # Nothing lost, nothing recorded twice.
    done = db.execute(
        "select job_id, count(*) from pgscheduler_runs where name = 'work' and outcome <> 'stalled' group by job_id"
    ).fetchall()
    assert {job.id: 1 for job in jobs} == dict(done)
    assert db.execute(
        "select distinct outcome from pgscheduler_runs where name = 'work' and outcome <> 'stalled'"
    ).fetchall() == [("completed",)]
    ran = {row[0] for row in db.execute("select distinct job from ledger where name = 'work'").fetchall()}
    assert {job.id for job in jobs} == ran

    # Each occurrence of the recurring job, from its first to the next one to come, has exactly one end.
    (following,) = db.execute("select scheduled_at from pgscheduler_jobs where id = %s", [tick.id]).fetchone()  # type: ignore[misc]
    expected, occurrence = {}, tick.scheduled_at
    while occurrence < following.astimezone(UTC):
        expected[occurrence] = 1
        occurrence = SECOND.next_after(occurrence)
    assert expected == accounted(db, tick.id, SECOND)
    assert len(expected) > KILLS

    # None early, by the record and by the jobs' own word.
    assert db.execute("select * from pgscheduler_runs where started_at < scheduled_at").fetchall() == []
    assert db.execute("select * from ledger where started < occurrence").fetchall() == []

    # None beside itself; and every run that began has its line, under its own token.
    assert overlaps(db, killed) == []
    unrecorded = db.execute(
        "select l.* from ledger l left join pgscheduler_runs r on (r.job_id, r.token) = (l.job, l.token)"
        " where r.job_id is null"
    ).fetchall()
    assert unrecorded == []
