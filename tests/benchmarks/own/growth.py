"""Does a job cost the same when the tables are full, busy, or cannot be vacuumed? Only of pgscheduler itself."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from tests.benchmarks.arena import START, Entry, Results, _until_drained
from tests.benchmarks.measure import Meter
from tests.benchmarks.server import Server

JOBS = """
insert into pgscheduler_jobs (name, priority, run_at, scheduled_at, created_at, parameters)
select {name}, {priority}, {at}, {at}, now(), '{{"n": 1, "sleep_ms": 0, "at": 0}}'
from generate_series(1, {count}) as n
"""
HISTORY = """
insert into pgscheduler_runs (job_id, token, scheduled_at, started_at, finished_at, attempt, outcome, name, parameters)
select -n, n, at, at, at, 1, 'completed', 'bench', '{"n": 1}'
from (select n, now() - n * interval '100 microseconds' as at from generate_series(1, {count}) as n) past
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is in the tables besides the jobs to drain. `{count}` is filled in."""

    name: str
    seed: str = ""
    count: int = 0
    priorities: int = 1
    before_each: bool = False  # the seed is used up or spoilt by a drain


def cases(scale: float) -> list[Case]:
    """The cases at full size for scale 1; a trial run takes a hundredth."""
    return [
        Case("history of 10 M runs", HISTORY, int(10_000_000 * scale)),
        Case(
            "1 M future jobs",
            _jobs("'bench'", "5", "now() + interval '1 day' + n * interval '1 ms'"),
            int(1_000_000 * scale),
        ),
        Case(
            "100,000 due jobs of an unknown name",
            _jobs("'elsewhere'", "5", "now() - interval '1 hour'"),
            int(100_000 * scale),
        ),
        Case("ten priorities mixed", priorities=10),
    ]


def _jobs(name: str, priority: str, at: str) -> str:
    return JOBS.format(name=name, priority=priority, at=at, count="{count}")


def growth(server: Server, results: Results, entry: Entry, pairs: int, jobs: int, scale: float) -> None:
    """Each case against the empty table, in turn."""
    for case in cases(scale):
        with server.database() as empty, server.database() as full:
            for dsn in (empty, full):
                entry.run(dsn, "prepare")
            if case.seed:
                with psycopg.connect(full, autocommit=True) as connection:
                    connection.execute(case.seed.replace("{count}", str(case.count)))
                    connection.execute("vacuum analyze")
            # Once for nothing: what the filling left to be written is no cost of a job.
            for dsn in (empty, full):
                _drain(server, entry, dsn, jobs, case.priorities)
            found = []
            for pair in range(pairs):
                base = _drain(server, entry, empty, jobs, 1)
                results.add("growth", case="empty", label=entry.label, pair=pair, **base)
                grown = _drain(server, entry, full, jobs, case.priorities)
                results.add("growth", case=case.name, label=entry.label, pair=pair, **grown)
                found.append((base, grown))
            _ratios(results, case.name, found)


def held_snapshot(server: Server, results: Results, entry: Entry, jobs: int, seconds: float) -> None:
    """A drain while another session has held its snapshot for ten minutes, in which jobs came and went."""
    with server.database() as empty, server.database() as held:
        for dsn in (empty, held):
            entry.run(dsn, "prepare")
        with psycopg.connect(held) as other:
            other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            # From now on it sees, and so keeps, what is there.
            other.execute("select count(*) from pgscheduler_nodes")
            passed = 0
            until = time.monotonic() + seconds
            with entry.program(held, "work") as worker, entry.program(held, "produce") as producer:
                worker.wait_for("ready", START)
                producer.wait_for("ready", START)
                while time.monotonic() < until:
                    told = len(producer.said)
                    producer.tell(100)
                    producer.wait_for("committed", 60, told)
                    passed += 100
                    time.sleep(0.1)
                _until_drained(held, entry, [worker], passed, 60)
            found = []
            for pair in range(3):
                base = _drain(server, entry, empty, jobs, 1)
                results.add("growth", case="empty", label=entry.label, pair=pair, **base)
                grown = _drain(server, entry, held, jobs, 1)
                results.add(
                    "growth", case="held snapshot", label=entry.label, pair=pair, passed=passed, **grown
                )
                found.append((base, grown))
            _ratios(results, f"snapshot held for {seconds:.0f} s, {passed} jobs meanwhile", found)


def endurance(server: Server, results: Results, entry: Entry, jobs: int) -> None:
    """A million jobs in one go: how fast are the first and the last tenth?"""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        seed(dsn, jobs, 1)
        server.checkpoint()
        with _worker(server, entry, dsn) as (worker, meter):
            _until_drained(dsn, entry, [worker], jobs, 600)
            cost = meter.stop(jobs)
            marks = [(line["ran"], line["heard"]) for line in worker.said if "ran" in line]
    first = next(line["first"] for line in worker.said if "first" in line) / 1e9
    tenths = []
    begin = (0, first)
    for tenth in range(1, 11):
        end = next(mark for mark in marks if mark[0] >= jobs * tenth // 10)
        tenths.append(round((end[0] - begin[0]) / (end[1] - begin[1])))
        begin = end
    results.add(
        "endurance",
        label=entry.label,
        jobs=jobs,
        per_s=round(jobs / (marks[-1][1] - first)),
        tenths=tenths,
        last_to_first=round(tenths[-1] / tenths[0], 3),
        cost=cost.as_dict(),
    )


@contextlib.contextmanager
def _worker(server: Server, entry: Entry, dsn: str) -> Iterator[tuple[Any, Meter]]:
    with entry.program(dsn, "work") as worker:
        worker.wait_for("ready", START)
        yield worker, Meter(dsn, server.pid, [worker.pid])


def seed(dsn: str, jobs: int, priorities: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        priority = "5" if priorities == 1 else f"n % {priorities}"
        connection.execute(
            JOBS.format(
                name="'bench'", priority=priority, at="now() - n * interval '1 microsecond'", count=jobs
            )
        )


def _drain(server: Server, entry: Entry, dsn: str, jobs: int, priorities: int) -> dict[str, Any]:
    seed(dsn, jobs, priorities)
    server.checkpoint()
    begun = time.monotonic()
    with _worker(server, entry, dsn) as (worker, meter):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            said = worker.latest("ran")
            if said is not None and said["ran"] >= jobs:
                break
            time.sleep(0.005)
        ended = said["heard"] if said else begun
        cost = meter.stop(jobs)
        first = next(line["first"] for line in worker.said if "first" in line) / 1e9
    return {
        "per_s": round(jobs / (ended - first)),
        "jobs": jobs,
        "cpu_us": round(cost.server_cpu_us + cost.client_cpu_us, 1),
        "cost": cost.as_dict(),
    }


def _ratios(results: Results, case: str, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Cost as processor time per job, and as time per job: grown / empty."""
    cpu = [grown["cpu_us"] / base["cpu_us"] for base, grown in found]
    wall = [base["per_s"] / grown["per_s"] for base, grown in found]
    results.add(
        "growth ratio",
        case=case,
        cpu=[round(r, 3) for r in cpu],
        cpu_median=round(statistics.median(cpu), 3),
        time=[round(r, 3) for r in wall],
        time_median=round(statistics.median(wall), 3),
    )
