"""What the doctor looks at: bounded statements in one read-only transaction, the clocks, and a notification.

A statement that fails (no right to read, too slow) costs its own checks and no others.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgscheduler._cron import read
from pgscheduler._hosts import unchecked
from pgscheduler._sql import migrations
from pgscheduler._store import Store, unavailable
from pgscheduler.clock import monotonic
from pgscheduler.job import schedule_of
from pgscheduler.states import Outcome

__all__ = ["LATE", "SAMPLE", "Facts", "NothingThereError", "Row", "gather", "stored_tzdata", "zone_of"]

Row = Mapping[str, Any]

LATE = 120.0  # seconds; a node looks at least every minute by default, so twice that is no accident
SAMPLE = 500  # jobs of one priority or one list: enough to name the culprits, read in milliseconds
KEYS = 100  # jobs with a key of one name
LEVELS = 100  # priorities; programs use a handful
NAMES = 1000  # names of jobs with a key
ZONES = 100  # time zones that are compared
AHEAD = timedelta(days=400)  # how far: a year of clock changes, and a little
STEP = timedelta(days=10)  # shorter than any stretch of another time; the shortest today is a month (Ramadan)
HEARING = 5.0  # seconds; a notification takes milliseconds, and a node's listener gives up after as many

CONSTRAINTS = ("jobs_state", "jobs_times", "jobs_claimed")
INDEXES = ("jobs_pending", "jobs_running", "jobs_key", "runs_job", "runs_finished", "run_logs_job")


class NothingThereError(LookupError):
    """A table that the catalog does not know, though the schema has its version."""


@dataclass(frozen=True)
class Facts:
    """Everything that was seen. What could not be asked is in `failed`, with the reason."""

    rows: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    #: The schema's version that this pgscheduler needs.
    needed: int = 0
    #: Seconds without a heartbeat after which a job of an unknown node is given to another.
    timeout: float = 300.0
    listen: bool = True
    #: Seconds that this machine's clock is ahead of the database's, and how far that may be wrong.
    ahead: float = 0.0
    doubt: float = 0.0
    #: Seconds until a notification was heard; None: not at all.
    heard: float | None = None
    #: The host and sslmode of a connection to another machine that checks no certificate; None: it does, or is local.
    unchecked: tuple[str, str] | None = None

    def one(self, statement: str) -> Row:
        """The single row of a statement. Raises `NothingThereError` if what it asked about is not there."""
        for row in self.rows[statement]:
            return row
        raise NothingThereError


def gather(store: Store, *, timeout: float = 300.0, listen: bool = True) -> Facts:
    """Look at everything. Raises `DatabaseUnavailableError` when the database cannot be reached."""
    needed = migrations()[-1][0]
    with store.connect() as connection:
        connection.read_only = True
        eye = _Eye(store, connection)
        way = unchecked(connection)
        try:
            with connection.transaction():
                connection.execute(store.sql["doctor_session"])
                eye.look("doctor_server")
                eye.look("doctor_schema")
                # A schema of another version has other columns.
                if eye.rows.get("doctor_schema") == [{"version": needed}]:
                    _look_at_tables(eye, timeout)
            ahead, doubt = _compare_clocks(eye) if "now" in eye.rows else (0.0, 0.0)
            heard = _hear(eye) if listen else None
        except psycopg.OperationalError as error:
            raise unavailable(error) from error
    return Facts(eye.rows, eye.failed, needed, timeout, listen, ahead, doubt, heard, way)


class _Eye:
    """Asks one statement after the other, and keeps the answers."""

    def __init__(self, store: Store, connection: psycopg.Connection[Any]) -> None:
        self.store = store
        self.connection = connection
        self.rows: dict[str, Sequence[Row]] = {}
        self.failed: dict[str, str] = {}

    def look(self, statement: str, **parameters: Any) -> None:
        try:
            with self.connection.transaction(), self.connection.cursor(row_factory=dict_row) as cursor:
                self.rows[statement] = cursor.execute(self.store.sql[statement], parameters).fetchall()
        except psycopg.Error as error:
            if self.connection.closed:
                raise
            self.failed[statement] = " ".join(str(error).split("\n")[0].split())


def _look_at_tables(eye: _Eye, timeout: float) -> None:
    names = eye.store.names
    jobs = names.table("jobs")
    bounds = {"sample": SAMPLE, "levels": LEVELS}
    eye.look("doctor_nodes")
    eye.look("doctor_claims", sample=SAMPLE, timeout=timeout)
    eye.look("doctor_overdue", late=LATE, **bounds)
    eye.look("doctor_names", names=NAMES, sample=KEYS, levels=LEVELS)
    eye.look("doctor_rows", outcomes=[outcome.value for outcome in Outcome], **bounds)
    eye.look(
        "doctor_guards",
        jobs=jobs,
        schema=names.schema,
        constraints=[names.prefix + name for name in CONSTRAINTS],
        indexes=[names.prefix + name for name in INDEXES],
    )
    eye.look("doctor_partitions", schema=names.schema, prefix=names.prefix)
    eye.look("doctor_hot_table", jobs=jobs)
    eye.look("doctor_horizon")
    eye.look("doctor_schedules", names=NAMES, sample=KEYS)
    eye.look("now")
    if "now" in eye.rows and "doctor_schedules" in eye.rows:
        (now,) = eye.rows["now"][0].values()
        zones = {_zone_or_none(row["schedule"]) for row in eye.rows["doctor_schedules"]} - {None}
        instants = [now.astimezone(UTC) + n * STEP for n in range(AHEAD // STEP)]
        eye.look("doctor_offsets", zones=sorted(zones)[:ZONES], instants=instants)  # type: ignore[type-var]


def zone_of(text: str) -> str | None:
    """The zone in which a stored schedule is computed; None if it needs none. Raises if it cannot be read."""
    schedule_of(text)  # refuses what a node would refuse
    found = json.loads(text)
    return (read(found["cron"]).zone or found["timezone"]) if "cron" in found else None


def stored_tzdata(text: str) -> str | None:
    """The version of the time zone rules with which a schedule was stored, if it says."""
    try:
        found = json.loads(text).get("tzdata")
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _zone_or_none(text: str) -> str | None:
    try:
        return zone_of(text)
    except Exception:  # noqa: BLE001 - a check of its own says so
        return None


def _compare_clocks(eye: _Eye) -> tuple[float, float]:
    """How far this machine's clock is ahead, and the error of that: half the quickest of three round trips."""
    found = []
    for _ in range(3):
        before, start = datetime.now(UTC), monotonic()
        row = eye.connection.execute(eye.store.sql["now"]).fetchone()
        took = monotonic() - start
        assert row is not None
        theirs = row[0]
        found.append((took / 2, (before - theirs).total_seconds() + took / 2))
    doubt, ahead = min(found)
    return ahead, doubt


def _hear(eye: _Eye) -> float | None:
    """Seconds from sending a notification to hearing it on another connection; None if it does not come.

    On the same connection it would be heard through a pooler too, which is not how nodes hear of each other.
    """
    channel = f"pgscheduler_doctor_{secrets.token_hex(8)}"
    try:
        with eye.store.connect(eye.store.listen_conninfo) as ear:
            ear.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
            start = monotonic()
            eye.connection.execute(eye.store.sql["doctor_notify"], {"channel": channel})
            for _ in ear.notifies(timeout=HEARING, stop_after=1):
                return monotonic() - start
    except (psycopg.Error, ConnectionError) as error:
        if eye.connection.closed:
            raise
        eye.failed["doctor_notify"] = " ".join(str(error).split("\n")[0].split())
    return None
