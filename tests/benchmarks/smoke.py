"""A quick look at speed: enqueue, drain, idle pick-up; with WAL, commits and CPU per job. Nothing is asserted.

    python tests/benchmarks/smoke.py [--dsn DSN] [--jobs 100000] [--slots 10] [--pairs 3]

Without a DSN it starts PostgreSQL from the wheel, with fsync and synchronous_commit on. Quote medians, and only
beside the calibration of the same run (`insert`: bare one-row INSERTs on one connection): machines differ.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import threading
import time
from typing import Any, Self

import psycopg
import structlog

from pgscheduler import Job, JobConfig, Scheduler, SchedulerConfig, embedded

NAMES = "bench_"


class Noop(Job):
    """Does nothing; counts, so that the end is seen without asking the database."""

    started = 0
    target = 0
    first = 0.0
    done = threading.Event()

    def run(self, ctx: Any) -> None:
        kind = Noop
        if kind.started == 0:
            kind.first = time.perf_counter()
        kind.started += 1
        if kind.started >= kind.target:
            kind.done.set()

    @classmethod
    def expect(cls, jobs: int) -> None:
        cls.started, cls.target, cls.first = 0, jobs, 0.0
        cls.done.clear()


class Stamp(Job):
    """Notes when it started, by the machine's monotonic clock."""

    at: float = 0.0
    ran = threading.Event()

    def run(self, ctx: Any) -> None:
        Stamp.at = time.monotonic()
        Stamp.ran.set()


class Figures:
    """The server's counters around a piece of work."""

    def __init__(self, dsn: str, jobs: int) -> None:
        self._dsn, self._jobs = dsn, jobs

    def __enter__(self) -> Self:
        self._before = self._read()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._wall
        cpu = time.process_time() - self._cpu
        time.sleep(1.1)  # the statistics collector reports once a second
        wal, commits, dead = (b - a for a, b in zip(self._before, self._read(), strict=True))
        self.per_job = {
            "wal_bytes": round(wal / self._jobs),
            "commits": round(commits / self._jobs, 4),
            "dead_tuples": round(dead / self._jobs, 2),
            "client_cpu_us": round(cpu / self._jobs * 1e6, 1),
        }

    def _read(self) -> tuple[float, float, float]:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            row = connection.execute(
                f"""select pg_current_wal_lsn() - '0/0'::pg_lsn,
                      (select xact_commit from pg_stat_database where datname = current_database()),
                      (select coalesce(sum(n_tup_del + n_tup_upd), 0) from pg_stat_user_tables
                       where relname like '{NAMES}%')"""
            ).fetchone()
        assert row is not None
        return float(row[0]), float(row[1]), float(row[2])


def config(dsn: str, slots: int) -> SchedulerConfig:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    return SchedulerConfig(
        dsn=dsn, create_schema=True, table_prefix=NAMES, max_concurrent_jobs=slots, run_immediately=True
    )


def fresh(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute(
            "select relname from pg_class where relkind in ('r', 'p') and not relispartition and relname like %s",
            [NAMES + "%"],
        ).fetchall()
        for (table,) in rows:
            connection.execute(f'drop table if exists "{table}" cascade')
        connection.execute(f"drop function if exists {NAMES}now cascade")
        connection.execute(f"drop function if exists {NAMES}enqueue cascade")
        connection.execute("checkpoint")


def calibrate(dsn: str, seconds: float = 1.0) -> float:
    """Bare one-row INSERTs a second on one autocommit connection."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("drop table if exists bench_calibration")
        connection.execute(
            "create table bench_calibration (id bigint generated always as identity primary key,"
            " name text, at timestamptz, data jsonb)"
        )
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.execute(
                "insert into bench_calibration (name, at, data) values (%s, now(), %s::jsonb) returning id",
                ["x", '{"n": 1}'],
            )
            count += 1
        connection.execute("drop table bench_calibration")
    return count / seconds


def bench_enqueue_one(dsn: str, slots: int, seconds: float = 1.0) -> float:
    with Scheduler(config(dsn, slots)) as scheduler:
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            scheduler.enqueue("nobody", {"n": count})
            count += 1
    return count / seconds


def bench_bulk_and_drain(dsn: str, jobs: int, slots: int) -> dict[str, Any]:
    fresh(dsn)
    with Scheduler(config(dsn, slots)) as scheduler:
        batch = [Noop(JobConfig.one_time("noop", {"n": n})) for n in range(jobs)]
        with Figures(dsn, jobs) as enqueue:
            scheduler.schedule_many(batch)
        del batch
        Noop.expect(jobs)
        scheduler.register(Noop)
        with Figures(dsn, jobs) as drain:
            scheduler.start()
            Noop.done.wait(600)
            while scheduler.node_stats()["held"]:
                time.sleep(0.001)
        elapsed = time.perf_counter() - Noop.first
        with psycopg.connect(dsn) as connection:
            row = connection.execute(
                f"select count(*) from {NAMES}runs where outcome = 'completed'"
            ).fetchone()
            assert row == (jobs,), row
        counters = scheduler.node_stats()
    return {
        "bulk_per_s": round(jobs / enqueue.seconds),
        "bulk": enqueue.per_job,
        "drain_per_s": round(jobs / drain.seconds),
        "drain": drain.per_job,
        "cycles": counters["cycles"],
        "full_looks": counters["full_looks"],
        "with_stats_wait_s": round(elapsed, 2),
    }


def bench_pickup(dsn: str, slots: int, count: int = 200) -> dict[str, float]:
    """Milliseconds from the commit of a job in another connection to the first line of its run, on an idle node."""
    fresh(dsn)
    with Scheduler(config(dsn, slots)) as scheduler:
        scheduler.register(Stamp)
        scheduler.start()
        with psycopg.connect(dsn, autocommit=True) as other:
            delays = []
            for _ in range(count):
                Stamp.ran.clear()
                other.execute(f"select {NAMES}enqueue('stamp')")
                committed = time.monotonic()
                Stamp.ran.wait(10)
                delays.append((Stamp.at - committed) * 1000)
                time.sleep(0.01)
    delays.sort()
    return {
        f"p{p}_ms": round(delays[min(int(len(delays) * p / 100), len(delays) - 1)], 2) for p in (50, 95, 99)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dsn", default=os.environ.get("PGSCHEDULER_DSN"))
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--slots", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        dsn = options.dsn
        if dsn is None:
            dsn = stack.enter_context(embedded.start(settings={"shared_buffers": "512MB"})).dsn
        drains, bulks = [], []
        for number in range(options.rounds):
            bare = calibrate(dsn)
            one = bench_enqueue_one(dsn, options.slots)
            result = bench_bulk_and_drain(dsn, options.jobs, options.slots)
            drains.append(result["drain_per_s"])
            bulks.append(result["bulk_per_s"])
            result |= {"round": number, "bare_insert_per_s": round(bare), "enqueue_one_per_s": round(one)}
            result["enqueue_one_ratio"] = round(one / bare, 2)
            print(json.dumps(result), flush=True)
        print(json.dumps({"pickup": bench_pickup(dsn, options.slots)}))
        print(
            json.dumps(
                {
                    "median_drain_per_s": statistics.median(drains),
                    "median_bulk_per_s": statistics.median(bulks),
                }
            )
        )


if __name__ == "__main__":
    main()
