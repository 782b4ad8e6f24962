"""Looks at the database about once a second: what is running, and what its clock says. Tolerates that it is away."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from tests.chaos.history import Clock, Effect, Held, Record, Row, Run, Snapshot, append, boottime, epoch
from tests.chaos.nemesis.ground import KEEP

__all__ = ["Observer", "read_rows"]

_RUNNING = """
    select id, token, node_id, claimed_at, heartbeat_at, failures, stalls from pgscheduler_jobs where state = 'running'
"""
_SURE = 0.02  # seconds that a pair of clocks may have taken to be read


class Observer:
    """A thread with a connection of its own."""

    def __init__(self, dsn: str, journal: Path, interval: float = 1.0) -> None:
        self._dsn = dsn
        self._journal = journal
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-observer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._stopping.wait(self._interval):
            try:
                if connection is None:
                    connection = psycopg.connect(
                        self._dsn, autocommit=True, application_name=KEEP, connect_timeout=2
                    )
                    connection.execute("set lock_timeout = '1s'")
                self._look(connection)
            except psycopg.errors.LockNotAvailable:
                continue
            except psycopg.Error:
                if connection is not None:
                    with suppress(psycopg.Error):
                        connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        sample(connection, self._journal)
        began = boottime()
        rows = connection.execute(_RUNNING).fetchall()
        ended = boottime()
        held = tuple(
            Held(
                job_id=job_id,
                token=token,
                node=_text(node),
                claimed_at=epoch(claimed_at),
                heartbeat_at=_time(heartbeat_at),
                failures=failures,
                stalls=stalls,
            )
            for job_id, token, node, claimed_at, heartbeat_at, failures, stalls in rows
        )
        append(self._journal, Snapshot(began=began, ended=ended, held=held))


def sample(connection: psycopg.Connection[Any], journal: Path) -> None:
    """One pair of clocks, if it could be read quickly."""
    began = boottime()
    row = connection.execute("select clock_timestamp()").fetchone()
    ended = boottime()
    if row is not None and ended - began < _SURE:
        append(journal, Clock(database=epoch(row[0]), boottime=(began + ended) / 2))


def read_rows(dsn: str) -> list[Record]:
    """All runs, rows and effects, in one snapshot."""
    found: list[Record] = []
    with _connection(dsn) as connection:
        connection.execute("set transaction isolation level repeatable read")
        query = """
            select job_id, name, key, token, node_id, attempt, outcome, scheduled_at, started_at, finished_at,
                   parameters, schedule, reason, left(error, 300), result from pgscheduler_runs
        """
        found += [_run(row) for row in connection.execute(query)]
        query = """
            select id, name, key, state, run_at, scheduled_at, created_at, token, node_id, claimed_at, heartbeat_at,
                   failures, stalls, cancel_requested, after_run, completed_at, schedule, parameters
            from pgscheduler_jobs
        """
        found += [_row(row) for row in connection.execute(query)]
        query = "select kind, sequence, at, job_id, run_id, token, scheduled_at from chaos_effects"
        for kind, sequence, at, job_id, run_id, token, scheduled_at in connection.execute(query):
            found.append(
                Effect(
                    kind=kind,
                    sequence=sequence,
                    at=epoch(at),
                    job_id=job_id,
                    run_id=run_id,
                    token=token,
                    scheduled_at=epoch(scheduled_at),
                )
            )
    return found


def _connection(dsn: str) -> psycopg.Connection[Any]:
    """What a fault did in its last moment may still be mended: the server starts again, a process is replaced."""
    deadline = boottime() + 30
    while True:
        try:
            return psycopg.connect(dsn, application_name=KEEP)
        except psycopg.OperationalError:
            if boottime() > deadline:
                raise
            time.sleep(0.2)


def _run(row: tuple[Any, ...]) -> Run:
    (
        job_id,
        name,
        key,
        token,
        node,
        attempt,
        outcome,
        scheduled,
        started,
        finished,
        given,
        schedule,
        reason,
        error,
        result,
    ) = row
    return Run(
        job_id=job_id,
        name=name,
        key=key,
        token=token,
        node=_text(node),
        attempt=attempt,
        outcome=outcome,
        scheduled_at=epoch(scheduled),
        started_at=_time(started),
        finished_at=epoch(finished),
        parameters=given,
        schedule=_json(schedule),
        reason=reason,
        error=error,
        result=result,
    )


def _row(row: tuple[Any, ...]) -> Row:
    (
        job_id, name, key, state, run_at, scheduled_at, created_at, token, node, claimed_at, heartbeat_at,
        failures, stalls, cancel_requested, after_run, completed_at, schedule, parameters,
    ) = row  # fmt: skip
    return Row(
        job_id=job_id,
        name=name,
        key=key,
        state=state,
        run_at=epoch(run_at),
        scheduled_at=epoch(scheduled_at),
        created_at=epoch(created_at),
        token=token,
        node=_text(node),
        claimed_at=_time(claimed_at),
        heartbeat_at=_time(heartbeat_at),
        failures=failures,
        stalls=stalls,
        cancel_requested=cancel_requested,
        after_run=after_run,
        completed_at=_time(completed_at),
        schedule=_json(schedule),
        parameters=parameters,
    )


def _time(value: datetime | None) -> float | None:
    return None if value is None else epoch(value)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)
