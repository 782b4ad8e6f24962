"""P14: everything carries schema and prefix, so that two of them in one database never meet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import structlog

from pgscheduler import Job, JobConfig, JobNotFoundError, JobState, Scheduler, SchedulerConfig
from pgscheduler._maintenance import CHORES
from pgscheduler._sql import Names

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
HOMES = {
    "one prefix inside the other": (("public", "a_"), ("public", "a_b_")),
    "two schemas": (("one", "a_"), ("two", "a_")),
    "swapped": (("a", "b_"), ("a_b", "")),
    "wildcard": (("public", "a_b_"), ("public", "axb_")),
}


class Who(Job):
    """Says whose it is."""

    def __init__(self, config: JobConfig, whose: str) -> None:
        super().__init__(config)
        self.whose = whose

    def run(self, ctx: Any) -> str:
        return self.whose


@pytest.fixture(params=sorted(HOMES))
def pair(request: Any, empty_dsn: str) -> Iterator[tuple[Scheduler, Scheduler]]:
    """Two schedulers in this process, on one database, that must not see each other."""
    with ExitStack() as stack:
        made = []
        for schema, prefix in HOMES[request.param]:
            with psycopg.connect(empty_dsn, autocommit=True) as connection:
                connection.execute(f"create schema if not exists {schema}")
            config = SchedulerConfig(
                dsn=empty_dsn,
                schema=schema,
                table_prefix=prefix,
                create_schema=True,
                logger=SILENT,
                run_immediately=True,
                heartbeat_interval=0.3,
                no_heartbeat_timeout=20,  # a tenth of it is what a chore may stand still on a busy machine
                shutdown_timeout=5,
            )
            made.append(stack.enter_context(Scheduler(config)))
        yield made[0], made[1]


def test_jobs_keys_and_history_do_not_cross(pair: tuple[Scheduler, Scheduler]) -> None:
    """The same name and key on both sides is two jobs; each side runs, lists and finds only its own."""
    left, right = pair
    first = left.schedule(Who(JobConfig(name="who", key="k"), "left"))
    right.register(Who(JobConfig(name="who"), "right"))
    assert right.run_pending().claimed == 0
    assert right.jobs() == []
    with pytest.raises(JobNotFoundError):
        right.cancel(("who", "k"))
    second = right.enqueue("who", key="k")

    assert (left.run_pending().completed, right.run_pending().completed) == (1, 1)
    assert left.get_job(("who", "k")).result == "left"
    assert right.get_job(("who", "k")).result == "right"
    assert [run.job_id for run in left.runs()] == [first.id]
    assert [run.job_id for run in right.runs()] == [second.id]
    assert (len(left.nodes()), len(right.nodes())) == (1, 1)


def test_cleanup_of_one_leaves_the_other_alone(pair: tuple[Scheduler, Scheduler], empty_dsn: str) -> None:
    """Stalled reset, orphan cleanup and retention of one side, with time travel on that side only, change no row
    and no partition of the other."""
    left, right = pair
    for side in pair:
        side.enqueue("nobodys")
        side.enqueue("stalled", priority=1)
        with psycopg.connect(empty_dsn, autocommit=True) as db:
            jobs = side._store.names.table("jobs")
            db.execute(
                f"update {jobs} set state = 'running', token = 5, claimed_at = clock_timestamp() where name = 'stalled'"
            )
        side._node.maintenance.do(CHORES[2])

    def state(side: Scheduler) -> tuple[Any, ...]:
        names = side._store.names
        with psycopg.connect(empty_dsn, autocommit=True) as db:
            partitions = db.execute(
                "select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid"
                " where i.inhparent = %s::regclass order by 1",
                [names.table("runs")],
            ).fetchall()
            jobs = db.execute(f"select * from {names.table('jobs')} order by id").fetchall()
            runs = db.execute(f"select * from {names.table('runs')}").fetchall()
        return partitions, jobs, runs

    before = state(right)
    with psycopg.connect(empty_dsn, autocommit=True) as db:
        db.execute(
            f"create or replace function {left._store.names.table('now')}() returns timestamptz"
            " language plpgsql stable as $$ begin return clock_timestamp() + interval '400 days'; end $$"
        )
    for chore in CHORES:
        left._node.maintenance.do(chore)

    assert state(right) == before
    assert {run.name for run in left.runs()} == {"nobodys", "stalled"}  # it was at work on its own side


def test_advisory_locks_and_channels_do_not_cross(pair: tuple[Scheduler, Scheduler], empty_dsn: str) -> None:
    """While one side holds all its maintenance locks, the other side's chores run."""
    left, right = pair
    with psycopg.connect(empty_dsn) as db:
        for number in range(16):
            db.execute("select pg_advisory_xact_lock(%s)", [left._store.names.lock_key(number)])
        right.enqueue("stalled")
        with psycopg.connect(empty_dsn, autocommit=True) as other:
            jobs = right._store.names.table("jobs")
            other.execute(
                f"update {jobs} set state = 'running', token = 5, claimed_at = clock_timestamp() - interval '1 day'"
            )
        for side in pair:
            side._node.maintenance.do(CHORES[0])

        assert right.jobs()[0].state is JobState.PENDING
    assert left._store.names.channel != right._store.names.channel


def test_shutting_one_down_leaves_the_other_running(pair: tuple[Scheduler, Scheduler]) -> None:
    """Two running schedulers in one process: one ends, with a job of its own, the other goes on with its run and
    with new ones; hints of one never wake the other."""
    left, right = pair
    held, release = threading.Event(), threading.Event()

    class Held(Job):
        def run(self, ctx: Any) -> str:
            held.set()
            release.wait(30)
            return str(ctx.cancel_reason)

    long = right.schedule(Held())
    for side, whose in zip(pair, ("left", "right"), strict=True):
        side.register(Who(JobConfig(name="who"), whose))
        side.start()
    assert held.wait(10)
    hints: list[str] = []
    right._node.listener._on_hint = hints.append  # type: ignore[union-attr]
    done = [left.enqueue("who") for _ in range(5)]
    assert {left.wait(job, timeout=20).result for job in done} == {"left"}

    assert left.shutdown() is True

    assert hints == []
    assert {right.wait(right.enqueue("who"), timeout=20).result} == {"right"}
    assert right.get_job(long).state is JobState.RUNNING
    release.set()
    assert right.wait(long, timeout=20).result == "None"


def test_no_two_homes_share_a_channel_or_a_lock() -> None:
    """Channels and lock keys are distinct for neighbouring schemas and prefixes, whose plain joins are equal."""
    homes = [home for pair in HOMES.values() for home in pair] + [("a", "_b_"), ("a_", "b_"), ("ab", "_")]
    names = [Names(schema, prefix) for schema, prefix in dict.fromkeys(homes)]

    assert len({name.channel for name in names}) == len(names)
    keys = [name.lock_key(number) for name in names for number in range(256)]
    assert len(set(keys)) == len(keys)
    assert max(keys) < 2**63


def test_every_object_carries_schema_and_prefix(empty_dsn: str) -> None:
    """What a scheduler creates lies in its schema and begins with its prefix: tables, indexes, functions, types."""
    with psycopg.connect(empty_dsn, autocommit=True) as db:
        db.execute("create schema home")
        found = """
            select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
            where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
            union all
            select n.nspname, p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
            where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
        """
        before = set(db.execute(found).fetchall())
        config = SchedulerConfig(
            dsn=empty_dsn, schema="home", table_prefix="we_ird1_", create_schema=True, logger=SILENT
        )
        with Scheduler(config) as node:
            node._node.maintenance.do(CHORES[2])
            node.register(Who(JobConfig(name="who"), "mine"))
            node.enqueue("who", delay=timedelta(0))
            assert node.run_pending().completed == 1
        made = set(db.execute(found).fetchall()) - before

    assert len(made) > 20
    assert [name for name in made if name[0] != "home" or not name[1].startswith("we_ird1_")] == []
