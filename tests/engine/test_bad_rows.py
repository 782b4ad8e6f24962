"""Rows that somebody wrote by hand, or another program: none stops the others, hides them, or runs something else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgscheduler import (
    Job,
    JobConfig,
    JobNotFoundError,
    JobNotRunningError,
    JobState,
    RunContext,
    Scheduler,
    SchedulerConfig,
)
from tests.engine.conftest import Quiet
from tests.support import eventually

DIGITS = "1" + "0" * 5000  # more than Python reads as an integer


class Plain(Job):
    def run(self, ctx: RunContext) -> Any:
        return "ran"


@pytest.fixture(scope="module")
def world(server: Any, template: str) -> Iterator[tuple[Scheduler, psycopg.Connection[Any]]]:
    """One node for all of them: what an earlier row broke, a later test would see."""
    with server.database(template) as dsn:
        config = SchedulerConfig(
            dsn=dsn,
            logger=Quiet(),
            run_immediately=True,
            heartbeat_interval=1,
            no_heartbeat_timeout=60,
            job_check_interval=0.2,
        )
        with psycopg.connect(dsn, autocommit=True) as db, Scheduler(config) as node:
            node.register(Plain(JobConfig(name="bad")))
            node.register(Plain(JobConfig(name="good")))
            node.start()
            yield node, db


BAD = [
    ("parameters", f'{{"a": {DIGITS}}}'),
    ("parameters", "null"),
    ("parameters", "[[[]]]"),
    ("options", "not json"),
    ("options", "[1]"),
    ("options", "5"),
    ("options", "null"),
    ("options", "[" * 100_000),
    ("options", '{"retries": "x", "timeout": [], "backoff": 7, "isolation": 5}'),
    ("options", '{"isolation": "greenlet", "nonsense": 1}'),
    ("options", '{"retries": -5, "timeout": -3}'),
    ("options", '{"retries": 1e400, "timeout": 1e300}'),
    ("options", '{"misfire": "never", "catchup": -1, "jitter": "x", "max_stalls": 0}'),
    ("options", '{"backoff": {"initial": -1, "factor": 0}}'),
    ("schedule", "not json"),
    ("schedule", "[1]"),
    ("schedule", "null"),
    ("schedule", "{}"),
    ("schedule", '{"cron": "61 * * * *"}'),
    ("schedule", '{"cron": 5, "timezone": "UTC"}'),
    ("schedule", '{"cron": "* * * * *", "timezone": "Nope/Nope"}'),
    ("schedule", '{"cron": "* * * * *", "timezone": "../../etc/passwd"}'),
    ("schedule", '{"every": -5}'),
    ("schedule", '{"every": 0}'),
    ("schedule", '{"every": 1e400}'),
    ("schedule", '{"custom": "os.system", "value": "true"}'),
    ("after_run", "explode"),
    ("priority", "-32768"),
    ("failures", "-3"),
    ("result", f'{{"a": {DIGITS}}}'),
    ("progress", f"[{DIGITS}]"),
    ("last_error", "\x1b[2J\u202e"),
    ("cancel_requested", "true"),
]


@pytest.mark.parametrize(("column", "value"), BAD, ids=[f"{column}-{value[:30]}" for column, value in BAD])
def test_a_bad_row_harms_nobody_else(
    world: tuple[Scheduler, psycopg.Connection[Any]], column: str, value: str
) -> None:
    """Others run beside it, every listing shows it with the others, it can be deleted, and no loop fails."""
    node, db = world
    # Before the good one in the claim's order, and due.
    insert = sql.SQL(
        "insert into pgscheduler_jobs (name, key, run_at, scheduled_at, created_at, {})"
        " values ('bad', 'bad', now() - interval '1 minute', now() - interval '1 minute', now(), %s) returning id"
    ).format(sql.Identifier(column))
    ((bad,),) = db.execute(insert, [value]).fetchall()

    good = node.enqueue("good")
    assert node.wait(good, 20).state is JobState.COMPLETED
    assert good.id in {run.job_id for run in node.runs(limit=1000)}
    node.jobs(limit=1000)
    node.stats()
    seen = node.get_job(bad)
    assert seen.id == bad
    [found.to_dict() for found in (*node.jobs(limit=1000), *node.runs(limit=1000), seen)]
    with contextlib.suppress(JobNotFoundError, JobNotRunningError):  # it has ended
        node.delete(bad)

    left = "select count(*) from pgscheduler_jobs"
    eventually(lambda: db.execute(left).fetchone() == (0,), describe="the bad row to be gone")
    assert {name for name, loop in node.node_stats()["loops"].items() if loop["failures"]} == set()
    assert "os.system" not in str(node.runs(bad))
