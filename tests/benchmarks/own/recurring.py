"""Schedules that fall due together, and claims that are held for long. Only of pgscheduler itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psycopg

from tests.benchmarks.arena import START, Entry, Results
from tests.benchmarks.measure import cpu_us
from tests.benchmarks.programs import Program
from tests.benchmarks.server import Server

PROGRAM = Path(__file__).with_name("recurring_program.py")
# One schedule is stored by the package itself; the others are copies of its row, under other keys.
COPIES = """
insert into pgscheduler_jobs (name, key, priority, run_at, scheduled_at, created_at, parameters, options, schedule)
select name, 'copy ' || n, priority, run_at, scheduled_at, created_at, parameters, options, schedule
from pgscheduler_jobs, generate_series(2, %(each)s) as n
where schedule is not null
"""


def recurring(
    server: Server, results: Results, entry: Entry, title: str, lines: list[str], count: int, seconds: float
) -> None:
    """`count` schedules, spread evenly over the cron lines; lateness of the starts within `seconds`."""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        each = count // len(lines)
        names = [f"tick{number}" for number in range(len(lines))]
        with _program(entry, dsn, "store", *lines) as storing:
            storing.finish()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(COPIES, {"each": each})
            connection.execute("analyze")
            connection.execute("checkpoint")
            while time.time() % 60 > 50:  # an early moment of a minute: nobody is asked to start in a rush
                time.sleep(0.5)
            # What fell due while the rows were copied is not this workload's subject.
            connection.execute(
                "update pgscheduler_jobs set run_at = late.at, scheduled_at = late.at"
                " from (select id, scheduled_at + ceil(extract(epoch from now() + interval '3 s' - scheduled_at) / 60)"
                " * interval '1 minute' as at from pgscheduler_jobs) late"
                " where late.id = pgscheduler_jobs.id and pgscheduler_jobs.scheduled_at < now() + interval '3 s'"
                if len(lines) > 1 or lines[0].startswith("0 ")
                else "update pgscheduler_jobs set run_at = due.at, scheduled_at = due.at"
                " from (select date_trunc('second', now()) + interval '5 s' as at) due"
            )
        with _program(entry, dsn, "run", seconds, *names) as node:
            node.wait_for("ready", START)
            server_before, client_before, began = cpu_us([server.pid]), cpu_us([node.pid]), time.monotonic()
            said = node.wait_for("started", seconds + 120)
            passed = time.monotonic() - began
            client, on_server = cpu_us([node.pid]) - client_before, cpu_us([server.pid]) - server_before
            skipped, behind = _left_behind(dsn)
    results.add(
        "recurring",
        title=title,
        label=entry.label,
        schedules=count,
        started=said["started"],
        skipped=skipped,
        behind=behind,
        per_s=round(said["started"] / seconds, 1),
        p50_ms=said["p50_ms"],
        p99_ms=said["p99_ms"],
        last_ms=said["last_ms"],
        client_cores=round(client / passed / 1e6, 3),
        server_cores=round(on_server / passed / 1e6, 3),
    )


def _left_behind(dsn: str) -> tuple[int, int]:
    """Occurrences on record as not started, and schedules whose time came more than a second ago."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select (select count(*) from pgscheduler_runs where outcome <> 'completed'),"
            " (select count(*) from pgscheduler_jobs where state = 'pending' and run_at < now() - interval '1 s')"
        ).fetchone()
    assert row is not None
    return row[0], row[1]


def backlog(server: Server, results: Results, entry: Entry, count: int, seconds: float) -> None:
    """A million schedules, all overdue: occurrences a second that one node gets through."""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        with _program(entry, dsn, "store", "0 0 * * * *") as storing:
            storing.finish()
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(COPIES, {"each": count})
            connection.execute(
                "update pgscheduler_jobs set run_at = due.at, scheduled_at = due.at"
                " from (select date_trunc('hour', now()) as at) due"
            )
            connection.execute("vacuum analyze")
            connection.execute("checkpoint")
        with _program(entry, dsn, "run", seconds, "tick0") as node:
            said = node.wait_for("started", seconds + 120)
    results.add(
        "schedules stored",
        label=entry.label,
        schedules=count,
        started=said["started"],
        per_s=round(said["started"] / said["spent"]),
    )


def held_claims(server: Server, results: Results, entry: Entry, count: int, seconds: float) -> None:
    """So many jobs that run at once and only wait: what the heartbeats cost."""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        with _program(entry, dsn, "hold", count) as node:
            node.wait_for("holding", 300)
            time.sleep(5)
            server_before, client_before = cpu_us([server.pid]), cpu_us([node.pid])
            time.sleep(seconds)
            client, on_server = cpu_us([node.pid]) - client_before, cpu_us([server.pid]) - server_before
    results.add(
        "held claims",
        label=entry.label,
        claims=count,
        seconds=seconds,
        client_percent=round(client / seconds / 1e4, 3),
        server_percent=round(on_server / seconds / 1e4, 3),
    )


def _program(entry: Entry, dsn: str, *verb: Any) -> Program:
    return Program([entry.argv[0], str(PROGRAM)], *verb, dsn=dsn, setting=entry.setting)
