"""The benchmark for users: it measures, compares with pgbench, refuses what it would disturb, and leaves nothing."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from pgscheduler import InvalidValueError, Scheduler, SchedulerConfig, bench
from pgscheduler._sql import Names
from pgscheduler._store import Store
from pgscheduler.cli import main

ALL = "select relname from pg_class where relnamespace = 'public'::regnamespace"
FUNCTIONS = "select proname from pg_proc where pronamespace = 'public'::regnamespace"


def test_every_figure_is_measured_and_nothing_stays(direct_empty_dsn: str) -> None:
    """Each line has a value, those with SQL of their own also pgbench's; afterwards the database is as before."""
    heard: list[str] = []
    config = SchedulerConfig(dsn=direct_empty_dsn, table_prefix=bench.PREFIX)
    report = bench.measure(config, jobs=1_000, pickups=10, say=heard.append)
    assert len(heard) >= 4
    assert all(one.value > 0 for one in report.measured)
    compared = {one.what.split(",")[0] for one in report.measured if one.pgbench}
    assert compared == {"enqueue", "drain"}
    for one in report.measured:
        assert one.ratio is None or one.ratio == pytest.approx(one.value / (one.pgbench or 0))
    with psycopg.connect(direct_empty_dsn) as connection:
        assert connection.execute(ALL).fetchall() == []
        assert connection.execute(FUNCTIONS).fetchall() == []


def test_a_prefix_with_jobs_is_refused(dsn: str, db: psycopg.Connection[Any]) -> None:
    """Jobs of a user under the prefix: a clear error that names the prefix, and the jobs are untouched."""
    with Scheduler(SchedulerConfig(dsn=dsn)) as scheduler:
        job = scheduler.enqueue("work", {"n": 1})
    with pytest.raises(InvalidValueError, match=r"table_prefix.*no jobs.*pgscheduler_"):
        bench.measure(SchedulerConfig(dsn=dsn), jobs=1_000, pickups=10)
    assert db.execute("select id, name from pgscheduler_jobs").fetchall() == [(job.id, "work")]


def test_a_prefix_with_history_is_refused(dsn: str, db: psycopg.Connection[Any]) -> None:
    """History counts as in use, too: what the benchmark removes at its end must never be a user's."""
    db.execute(
        "insert into pgscheduler_runs (job_id, scheduled_at, finished_at, attempt, outcome, name)"
        " values (1, now(), now(), 1, 'completed', 'work')"
    )
    with pytest.raises(InvalidValueError, match="table_prefix"):
        bench.measure(SchedulerConfig(dsn=dsn), jobs=1_000, pickups=10)
    assert db.execute("select count(*) from pgscheduler_runs").fetchone() == (1,)


def test_empty_tables_are_used_and_left_empty(direct_dsn: str, db: psycopg.Connection[Any]) -> None:
    """Tables that were there before the benchmark are there after it, without its jobs and history."""
    bench.measure(SchedulerConfig(dsn=direct_dsn), jobs=1_000, pickups=10)
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (0,)
    assert db.execute("select count(*) from pgscheduler_runs").fetchone() == (0,)


def test_pgbench_runs_every_job_once(direct_dsn: str, db: psycopg.Connection[Any]) -> None:
    """What pgbench is timed with is the real work: each job leaves the live table and has one line of history."""
    program = bench._pgbench_program()
    assert program is not None
    store = Store(direct_dsn, Names("public", "pgscheduler_"))
    assert bench.pgbench_drain(program, store, 3_000, clients=2) > 0
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (0,)
    found = db.execute(
        "select count(*), count(distinct job_id), min(outcome) from pgscheduler_runs"
    ).fetchone()
    assert found == (3_000, 3_000, "completed")


@pytest.mark.parametrize(("field", "jobs", "pickups"), [("jobs", 10, 10), ("pickups", 1_000, 0)])
def test_too_small_is_refused(dsn: str, field: str, jobs: int, pickups: int) -> None:
    """So few jobs would measure nothing; the error names the field."""
    with pytest.raises(InvalidValueError, match=field):
        bench.measure(SchedulerConfig(dsn=dsn), jobs=jobs, pickups=pickups)


def test_the_command(direct_empty_dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one document with the facts and figures; without it, a table with both columns."""
    options = ["--dsn", direct_empty_dsn, "--jobs", "1000", "--pickups", "10"]
    assert main(["bench", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["what"].split(",")[0] for one in found["measured"]} == {
        "enqueue", "enqueue in bulk", "drain", "enqueue to start",
    }  # fmt: skip
    assert found["facts"]["postgresql"]
    assert main(["bench", *options]) == 0
    shown = capsys.readouterr().out
    assert "the same SQL in pgbench" in shown
    assert "fsync" in shown
