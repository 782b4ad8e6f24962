"""What one job costs from `schedule_many` to its line of history. Only of pgscheduler itself."""

from __future__ import annotations

import os
from typing import Any

import psycopg

from pgscheduler import Job, JobConfig, Scheduler, SchedulerConfig
from tests.benchmarks.arena import START, Entry, Results, _until_drained
from tests.benchmarks.measure import Meter
from tests.benchmarks.server import Server


class Stored(Job):
    """Only stored here; the contestant's program runs it."""

    def run(self, ctx: Any) -> None:
        raise NotImplementedError


def cost(server: Server, results: Results, entry: Entry, jobs: int, pair: int) -> None:
    """Bytes of write-ahead log, commits and dead tuples, with the parameters `{"sleep_ms": 0}`."""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        server.checkpoint()
        with Scheduler(SchedulerConfig(dsn=dsn)) as scheduler:
            meter = Meter(dsn, server.pid, [os.getpid()])
            scheduler.schedule_many(
                [Stored(JobConfig.one_time("bench", {"sleep_ms": 0})) for _ in range(jobs)]
            )
            stored = meter.stop(jobs)
        with entry.program(dsn, "work") as worker:
            worker.wait_for("ready", START)
            meter = Meter(dsn, server.pid, [worker.pid])
            _until_drained(dsn, entry, [worker], jobs, 120)
            run = meter.stop(jobs)
        with psycopg.connect(dsn) as connection:
            row = connection.execute(
                "select count(*) from pgscheduler_runs where outcome = 'completed'"
            ).fetchone()
    assert row == (jobs,), row
    results.add(
        "cost of a job",
        label=entry.label,
        pair=pair,
        wal_enqueue=round(stored.wal_bytes),
        wal_run=round(run.wal_bytes),
        wal=round(stored.wal_bytes + run.wal_bytes),
        dead=round(stored.dead_tuples + run.dead_tuples, 2),
        commits=round(stored.commits + run.commits, 4),
        server_us=round(stored.server_cpu_us + run.server_cpu_us, 1),
        client_us=round(stored.client_cpu_us + run.client_cpu_us, 1),
    )
