"""P9 Detection is bounded: a dead node's jobs are due again within the timeout and a quarter, by themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from pgscheduler import DatabaseUnavailableError, Scheduler
from pgscheduler._maintenance import Chore, Maintenance, Settings
from tests.promises.node_scripts import Quiet, create_ledger, quiet_config, start_node
from tests.support.processes import NodeProcess

Connection = psycopg.Connection[Any]
TIMEOUT = 4.0
SLACK = 3.0  # seconds that a busy machine may add


def silences(db: Connection) -> list[float]:
    """Of each stalled run: seconds from its last sign of life to its reset, by the database's clock."""
    rows = db.execute(
        "select extract(epoch from r.finished_at - b.at)::float8 from pgscheduler_runs r"
        " join beats b on (b.id, b.token) = (r.job_id, r.token) where r.outcome = 'stalled'"
    ).fetchall()
    return [row[0] for row in rows]


def remember_beats(db: Connection) -> None:
    """From now on the last sign of life of each claim that is taken away is kept, in the moment that it is."""
    db.execute("create table beats (id bigint, token bigint, at timestamptz)")
    db.execute(
        "create function remember() returns trigger language plpgsql as $$ begin"
        " insert into public.beats values (old.id, old.token, coalesce(old.heartbeat_at, old.claimed_at));"
        " return null; end $$"
    )
    db.execute(
        "create trigger remember after update on pgscheduler_jobs for each row"
        " when (old.state = 'running' and new.state = 'pending') execute function remember()"
    )


@pytest.mark.parametrize("end", ["killed", "frozen"])
def test_the_jobs_of_a_dead_node_are_due_again_in_time(
    dsn: str, db: Connection, nodes: Callable[..., NodeProcess], end: str
) -> None:
    """The jobs of a node that was killed, or stands still, start elsewhere after the timeout, and not much later."""
    create_ledger(dsn)
    remember_beats(db)
    with Scheduler(quiet_config(dsn)) as client:
        doomed = start_node(nodes, dsn, beat=0.5, timeout=TIMEOUT)
        jobs = [client.enqueue("work", {"seconds": 60}) for _ in range(5)]
        for job in jobs:
            doomed.wait_for("started", job=job.id)
        # It is there before; nothing that happens afterwards tells it of the death.
        other = start_node(nodes, dsn, beat=0.5, timeout=TIMEOUT)
        if end == "killed":
            doomed.kill()
        else:
            doomed.pause()
        for job in jobs:
            other.wait_for("started", timeout=30, job=job.id, attempt=2)

    found = silences(db)
    assert len(found) == 5
    assert min(found) >= TIMEOUT
    assert max(found) <= TIMEOUT * 1.25 + SLACK


def test_a_node_frozen_in_its_housekeeping_stops_no_other(
    dsn: str, db: Connection, nodes: Callable[..., NodeProcess], eventually: Callable[..., Any]
) -> None:
    """Detection is in time although a node stands still in the middle of a chore, with its locks held."""
    create_ledger(dsn)
    remember_beats(db)
    entered, thaw = threading.Event(), threading.Event()

    def freeze(connection: Connection, store: Any, settings: Settings) -> list[Any]:
        if not entered.is_set():
            connection.execute("lock table pgscheduler_runs in access exclusive mode")
            entered.set()
            thaw.wait(60)
            with suppress(psycopg.Error):  # it was thrown out meanwhile
                connection.execute("select 1")
        return []

    with Scheduler(quiet_config(dsn)) as client:
        doomed = start_node(nodes, dsn, beat=0.5, timeout=TIMEOUT)
        job = client.enqueue("work", {"seconds": 60})
        doomed.wait_for("started", job=job.id)
        other = start_node(nodes, dsn, beat=0.5, timeout=TIMEOUT)
        doomed.kill()
        settings = Settings(TIMEOUT, 86400, 86400)
        frozen = Maintenance(client._store, settings, Quiet(), lambda rows: None)
        chore = Chore("frozen", lambda s: 1.0, 1, freeze)

        def run() -> None:
            with suppress(psycopg.Error, DatabaseUnavailableError):
                while not entered.is_set():  # the other node may just be at it
                    frozen.do(chore)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert entered.wait(10)
            other.wait_for("started", timeout=30, job=job.id, attempt=2)
            standing = thread.is_alive()
        finally:
            thaw.set()
            thread.join(30)

    assert standing
    assert max(silences(db)) <= TIMEOUT * 1.25 + TIMEOUT / 10 + SLACK


def test_another_nodes_longer_timeout_does_not_delay_detection(
    dsn: str, db: Connection, nodes: Callable[..., NodeProcess]
) -> None:
    """Each claim is judged by the timeout of the node that holds it, not by that of the node that looks."""
    create_ledger(dsn)
    remember_beats(db)
    with Scheduler(quiet_config(dsn)) as client:
        doomed = start_node(nodes, dsn, beat=0.5, timeout=TIMEOUT)
        patient = start_node(nodes, dsn, names=["other"], beat=1, timeout=8)
        slow = client.enqueue("other", {"seconds": 60})
        job = client.enqueue("work", {"seconds": 60})
        doomed.wait_for("started", job=job.id)
        patient.wait_for("started", job=slow.id)
        doomed.kill()
        heir = start_node(nodes, dsn, beat=1, timeout=8)
        heir.wait_for("started", timeout=30, job=job.id, attempt=2)
        stalled = db.execute("select job_id from pgscheduler_runs where outcome = 'stalled'").fetchall()

    assert [(job.id,)] == stalled
    # The heirs look every fifth of their own timeout.
    assert max(silences(db)) <= TIMEOUT + 8 / 4 + SLACK
