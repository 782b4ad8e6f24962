"""What one node owes to the others: hints for what it cannot do itself, no locks that they wait for, a clean start."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import Backoff, DatabaseUnavailableError, JobConfig, _node
from pgscheduler.clock import monotonic
from tests.engine.conftest import Call, Gate, Quiet
from tests.support import eventually
from tests.support.pooler import needs_notifications
from tests.support.postgres import execute

SECOND = timedelta(seconds=1)


class Where:
    """A run that says on which node it is, and stays until it is told to stop."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.seen: list[str] = []

    def __call__(self, ctx: Any) -> None:
        with self._changed:
            self.seen.append(ctx.node)
            self._changed.notify_all()
        ctx.wait(60)
        ctx.check()

    def wait_for(self, runs: int, timeout: float = 20.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= runs, timeout), self.seen


def rests(node: Any) -> None:
    """It has looked, and means to sleep for long."""
    eventually(lambda: (node._node.dispatcher._look_at or 0.0) > monotonic() + 60)


@needs_notifications
def test_what_a_shutdown_gives_back_is_taken_by_an_idle_node(
    dsn: str, scheduler_on: Callable[..., Any]
) -> None:
    """Not at its next look, which may be a minute away."""
    where = Where()
    job = Call(JobConfig(name="where"), where)
    first = scheduler_on(dsn, start=True, register=(job,), job_check_interval=120, no_heartbeat_timeout=120)
    first.enqueue("where")
    where.wait_for(1)
    second = scheduler_on(dsn, start=True, register=(job,), job_check_interval=120, no_heartbeat_timeout=120)

    rests(second)

    first.shutdown()

    where.wait_for(2)
    assert where.seen == [first.id, second.id]


@needs_notifications
def test_a_retry_for_which_a_node_has_no_slot_is_taken_by_an_idle_one(
    dsn: str, scheduler_on: Callable[..., Any], gate: Gate
) -> None:
    """The node that failed it is full when it falls due, and nobody else has heard of it: it says so."""
    attempts = Where()
    begun = threading.Event()

    def flaky(ctx: Any) -> None:
        if ctx.attempt > 1:
            attempts(ctx)
        begun.set()
        gate(ctx)
        raise ValueError("once")

    policies: dict[str, Any] = {"retries": 1, "backoff": Backoff(initial=SECOND, jitter=0)}
    job = Call(JobConfig(name="flaky", **policies), flaky)
    long = Where()
    settings = {
        "start": True,
        "max_concurrent_jobs": 1,
        "job_check_interval": 120,
        "no_heartbeat_timeout": 120,
    }
    busy = scheduler_on(dsn, register=(job, Call(JobConfig(name="long"), long)), **settings)
    busy.enqueue("flaky", **policies)
    assert begun.wait(20)
    idle = scheduler_on(dsn, register=(job,), **settings)
    rests(idle)
    busy.enqueue("long")

    gate.open()  # the first attempt fails, and `long` takes its slot

    long.wait_for(1)
    attempts.wait_for(1)
    assert (long.seen, attempts.seen) == ([busy.id], [idle.id])


def test_a_reader_of_history_is_not_waited_for(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Callable[..., Any]
) -> None:
    """Partitions can wait, outcomes cannot: while a dump reads history, the chore looks again later, and says so."""
    quiet = Quiet()
    node = scheduler_on(dsn, logger=quiet)
    maintenance = node._node.maintenance
    maintenance.step()
    newest = (
        "select max(c.oid::regclass::text) from pg_class c where c.relname ~ '^pgscheduler_runs_p[0-9]+$'"
    )
    (table,) = db.execute(newest).fetchone()  # type: ignore[misc]
    db.execute(f"drop table {table}")
    with psycopg.connect(dsn) as reader:
        reader.execute("select count(*) from pgscheduler_runs")
        maintenance._due["partitions"] = 0.0

        maintenance.step()

        assert "maintenance waits for a lock" in quiet.events()
        assert monotonic() < maintenance._due["partitions"] <= monotonic() + 60
        assert db.execute(newest).fetchone() != (table,)
    maintenance._due["partitions"] = 0.0
    maintenance.step()
    assert db.execute(newest).fetchone() == (table,)


def test_a_start_that_failed_can_be_tried_again(
    dsn: str, proxy_to: Callable[[str], Any], scheduler_on: Callable[..., Any]
) -> None:
    """A database that is away when a node starts leaves the scheduler as it was."""
    proxy = proxy_to(dsn)
    done = threading.Event()
    node = scheduler_on(
        proxy.dsn, register=(Call(JobConfig(name="mail"), lambda _: done.set()),), connect_timeout=2
    )
    proxy.refuse()
    proxy.reset()
    with pytest.raises(DatabaseUnavailableError):
        node.start()
    proxy.heal()

    node.start()

    node.enqueue("mail")
    assert done.wait(20)
    assert node.shutdown()


def test_a_start_that_failed_leaves_nothing_to_stop(
    dsn: str, proxy_to: Callable[[str], Any], scheduler_on: Callable[..., Any]
) -> None:
    """Nor does the shutdown that follows it fail."""
    proxy = proxy_to(dsn)
    node = scheduler_on(proxy.dsn, connect_timeout=2)
    proxy.refuse()
    proxy.reset()
    with pytest.raises(DatabaseUnavailableError):
        node.start()

    assert node.shutdown()


def test_a_listener_that_comes_late_looks_for_what_it_missed(
    direct_dsn: str,
    proxy_to: Callable[[str], Any],
    scheduler_on: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A start does not wait for ever to be heard: what is stored before the node listens starts once it does."""
    monkeypatch.setattr(_node, "LISTEN_PATIENCE", 0.0)
    proxy = proxy_to(direct_dsn)
    proxy.stall()
    done = threading.Event()
    node = scheduler_on(
        direct_dsn,
        register=(Call(JobConfig(name="mail"), lambda _: done.set()),),
        listen=True,
        listen_dsn=proxy.dsn,
        job_check_interval=120,
        no_heartbeat_timeout=120,
        connect_timeout=20,
    )
    node.start()
    rests(node)
    execute(direct_dsn, "select pgscheduler_enqueue('mail')")
    assert not done.is_set()

    proxy.heal()

    assert done.wait(20)
