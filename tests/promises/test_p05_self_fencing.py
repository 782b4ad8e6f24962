"""P5 Self-fencing: a node that cannot renew its heartbeats gives its runs up before anyone else may take them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import Job, JobConfig, Scheduler
from tests.promises.node_scripts import create_ledger, history, live, quiet_config, start_node, travel
from tests.support.processes import NodeProcess
from tests.support.proxy import Proxy

Connection = psycopg.Connection[Any]


@pytest.mark.parametrize("cut", ["stall", "refuse"])
def test_a_node_that_is_cut_off_gives_up_before_another_takes_over(
    dsn: str,
    db: Connection,
    nodes: Callable[..., NodeProcess],
    proxy_to: Callable[[str], Proxy],
    eventually: Callable[..., Any],
    cut: str,
) -> None:
    """Cut off, a node tells its runs that they are lost and kills its processes before another starts the jobs."""
    create_ledger(dsn)
    proxy = proxy_to(dsn)
    with Scheduler(quiet_config(dsn)) as client:
        # Between the two moments is a heartbeat interval: as long as a busy machine may keep a thread waiting.
        lonely = start_node(nodes, proxy.dsn, names=["work", "caged", "only"], ledger=dsn, beat=2, timeout=7)
        thread = client.enqueue("work", {"seconds": 60})
        caged = client.enqueue("caged")
        lonely.wait_for("started", job=thread.id)
        process = lonely.wait_for("alive", timeout=30, job=caged.id)["pid"]
        other = start_node(nodes, dsn, names=["work", "caged"], beat=2, timeout=10)

        getattr(proxy, cut)()
        told = lonely.wait_for("told", timeout=30, job=thread.id)
        taken = [other.wait_for("started", timeout=30, job=job.id) for job in (thread, caged)]
        beaten = db.execute("select finished_at from pgscheduler_runs where outcome = 'stalled'").fetchall()
        last_sign = max(event["time"] for event in lonely.seen("alive", pid=process))

        lonely.send({"do": "stats"})
        fenced = lonely.wait_for("stats")["fenced"]
        kept_out = client.enqueue("only")
        proxy.heal()
        client.wait(kept_out, 30)
        client.cancel(thread)
        client.wait(thread, 30)
        client.wait(caged, 30)

    assert told["reason"] == "lost"
    assert len(beaten) == 2
    # The clocks are those of one machine.
    assert all(told["time"] < at.timestamp() for (at,) in beaten), (
        "nobody else had a job when the run was told"
    )
    for event in taken:
        assert told["time"] < event["time"]
        assert last_sign < event["time"]
    assert fenced
    assert [outcome for outcome, _ in history(db, thread.id)] == ["stalled", "cancelled"]
    assert [outcome for outcome, _ in history(db, caged.id)] == ["stalled", "completed"]


class Patient(Job):
    """Runs until it is told to stop, and remembers when that was."""

    def __init__(self) -> None:
        super().__init__(JobConfig(name="patient"))
        self.contexts: list[Any] = []
        self.told: list[datetime] = []

    def run(self, ctx: Any) -> None:
        self.contexts.append(ctx)
        if not ctx.wait(60):
            self.told.append(datetime.now(UTC))
        ctx.check()


class Brief(Job):
    """Done at once."""

    def run(self, ctx: Any) -> None: ...


@contextmanager
def no_heartbeats(dsn: str) -> Iterator[None]:
    """Nobody can write a heartbeat, while everything else works: the hardest case, as claims would go on."""
    with psycopg.connect(dsn) as connection:
        connection.execute("lock table pgscheduler_nodes in exclusive mode")
        yield


@pytest.fixture
def node(dsn: str) -> Iterator[Scheduler]:
    config = quiet_config(dsn, heartbeat_interval=0.4, no_heartbeat_timeout=4)
    with Scheduler(config) as scheduler:
        scheduler.register(Brief)
        yield scheduler


def test_the_run_is_told_within_the_promised_time(
    dsn: str, db: Connection, eventually: Callable[..., Any]
) -> None:
    """The run is told before its last written heartbeat is older than no_heartbeat_timeout."""
    patient = Patient()
    # It is told a heartbeat interval before: so long may a busy machine keep its thread waiting.
    with Scheduler(quiet_config(dsn, heartbeat_interval=2, no_heartbeat_timeout=6)) as node:
        node.register(patient)
        node.start()
        job = node.enqueue("patient")
        query = "select heartbeat_at from pgscheduler_jobs where id = %s and heartbeat_at is not null"
        eventually(lambda: db.execute(query, [job.id]).fetchone(), describe="the first heartbeat")
        with no_heartbeats(dsn):
            eventually(lambda: patient.told, timeout=20, describe="the run is told")
            reason = patient.contexts[0].cancel_reason
            row = live(db, job.id)

    assert row is not None
    # The node's clock is the database's here, so the two may be compared.
    assert reason == "lost"
    beaten = db.execute("select %s::timestamptz", [row["heartbeat_at"] or row["claimed_at"]]).fetchone()
    if row["token"] == patient.contexts[0].token:  # else it has given the job back already
        assert beaten is not None
        assert (patient.told[0] - beaten[0]).total_seconds() < 6


def test_a_fenced_node_claims_nothing_until_it_beats_again(
    node: Scheduler, dsn: str, eventually: Callable[..., Any]
) -> None:
    """After its runs were lost the node takes no job, though it could; with the next heartbeat it goes on."""
    patient = Patient()
    node.register(patient)
    node.start()
    node.enqueue("patient")
    eventually(lambda: patient.contexts)
    with no_heartbeats(dsn):
        eventually(lambda: patient.told, timeout=20)
        claimed = node.node_stats()["claimed"]
        job = node.enqueue("brief")
        time.sleep(0.5)  # a claim takes milliseconds
        during = (node.node_stats()["claimed"], node.get_job(job).state)
    record = node.wait(job, 30)

    assert (claimed, "pending") == during
    assert record.state == "completed"


def test_an_idle_node_that_cannot_beat_claims_nothing(
    node: Scheduler, dsn: str, eventually: Callable[..., Any]
) -> None:
    """The same for a node that held nothing: without heartbeats for the promised time, it takes nothing new."""
    node.start()
    node.wait(node.enqueue("brief"), 30)
    with no_heartbeats(dsn):
        eventually(lambda: node.node_stats()["fenced"], timeout=20, describe="the node fences itself")
        claimed = node.node_stats()["claimed"]
        job = node.enqueue("brief")
        time.sleep(0.5)
        during = (node.node_stats()["claimed"], node.get_job(job).state)
    record = node.wait(job, 30)

    assert (claimed, "pending") == during
    assert record.state == "completed"
    eventually(lambda: not node.node_stats()["fenced"])


def test_a_healthy_node_is_never_fenced_by_its_own_jobs(
    node: Scheduler, eventually: Callable[..., Any], db: Connection
) -> None:
    """A run of longer than the timeout, beside busy Python code and an exhausted pool, keeps its claim."""
    patient = Patient()
    node.register(patient)
    node.start()
    job = node.enqueue("patient")
    eventually(lambda: patient.contexts)
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=burn)
    thread.start()
    borrowed = [node._store.pool.getconn() for _ in range(node.config.pool_size)]
    try:
        begun = time.monotonic()
        eventually(lambda: patient.told or time.monotonic() - begun > 5, timeout=20)
        told = patient.told.copy()
        row = live(db, job.id)
    finally:
        stop.set()
        thread.join()
        for connection in borrowed:
            node._store.pool.putconn(connection)
    node.cancel(job)
    node.wait(job, 30)

    assert told == []
    assert row is not None
    assert patient.contexts[0].token == row["token"]


def test_a_run_that_is_lost_while_its_occurrence_is_written_is_not_begun(
    node: Scheduler, dsn: str, db: Connection, eventually: Callable[..., Any]
) -> None:
    """To write which of the missed occurrences runs can take longer than a claim lasts: nothing begins on that claim."""
    begun: list[tuple[str | None, datetime]] = []

    class Hourly(Job):
        def run(self, ctx: Any) -> None:
            begun.append((ctx.cancel_reason, ctx.scheduled_at))

    record = node.schedule(Hourly(JobConfig.recurring("hourly", "0 * * * *")))
    travel(db, record.scheduled_at - datetime.now(UTC) + timedelta(hours=10))
    db.execute(
        "create function dawdle() returns trigger language plpgsql as"
        " $$ begin perform pg_advisory_xact_lock(5); return new; end $$"
    )
    db.execute(
        "create trigger dawdle before insert on pgscheduler_runs for each row"
        " when (new.outcome = 'skipped') execute function dawdle()"
    )
    with psycopg.connect(dsn) as connection:
        connection.execute("select pg_advisory_xact_lock(5)")
        node.start()
        eventually(lambda: node.node_stats()["lost"], timeout=20, describe="the claim is lost")
    reason, occurrence = eventually(lambda: begun)[0]

    assert reason is None
    assert occurrence > record.scheduled_at
