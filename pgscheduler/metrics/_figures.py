"""What the table of jobs holds: asked for by a scrape, read on a thread of its own, at most once per interval.

A reading is three statements that walk an index or read a sample, each with a limit on rows and on time. It takes some
milliseconds with a thousand jobs, about 50 with 50,000 and with millions. Without a scrape nothing is read.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from pgscheduler._loops import Loop
from pgscheduler._store import Store
from pgscheduler.clock import monotonic
from pgscheduler.errors import PgSchedulerError

__all__ = ["Figures", "Reading", "read"]

MOST_JOBS = 50_000  # rows that are counted one by one; more than that are estimated
SAMPLE_PAGES = 1024  # 8 MiB of a bigger table; about 80,000 rows, and an error of some percent
MOST_DUE = 10_000  # due jobs that are counted one by one
LEVELS = 100  # priorities that are looked at
BOUND = 1000  # milliseconds per statement; a database that takes longer has other worries than figures
PATIENCE = 1.0  # seconds that a scrape waits for a reading before it does without
STALE = 10.0  # seconds beyond the interval after which a reading is no longer shown, if no newer one came


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the table."""

    jobs: dict[tuple[str, str], int]  # by name and state
    estimated: bool
    due: int
    oldest_due: float  # seconds; 0 when nothing is due
    seconds: float  # that the reading took


def read(store: Store, most: int = MOST_JOBS) -> Reading:
    """Read now. Raises `DatabaseUnavailableError` when it cannot, or takes too long."""
    began = monotonic()

    def ask(connection: psycopg.Connection[Any]) -> tuple[list[dict[str, Any]], bool, dict[str, Any]]:
        with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(store.sql["metrics_bound"], {"milliseconds": str(BOUND)})
            rows = cursor.execute(store.sql["metrics_jobs"], {"most": most + 1}).fetchall()
            estimated = sum(row["jobs"] for row in rows) > most
            if estimated:
                where = {"jobs": store.names.table("jobs"), "pages": SAMPLE_PAGES, "most": most}
                rows = cursor.execute(store.sql["metrics_sample"], where).fetchall()
            cursor.execute(store.sql["metrics_due"], {"most": MOST_DUE, "levels": LEVELS})
            waiting = cursor.fetchone()
            assert waiting is not None
            return rows, estimated, waiting

    rows, estimated, waiting = store.using(ask)
    due = waiting["due"]
    if due >= MOST_DUE:
        due = max(due, sum(row["due"] for row in rows))
    return Reading(
        {(row["name"], row["state"]): row["jobs"] for row in rows},
        estimated,
        due,
        max(waiting["oldest"] or 0.0, 0.0),
        monotonic() - began,
    )


class Figures:
    """The newest reading, for scrapes that come as they like."""

    def __init__(self, store: Store, interval: float, name: str, log: Any) -> None:
        self._store = store
        self._interval = interval
        self._log = log
        self._loop = Loop(f"{name}-metrics", self._step, log)
        self._lock = threading.Lock()
        self._started = self._closed = False
        self._asked: threading.Event | None = None  # set when the reading that is under way has ended
        self._reading: Reading | None = None
        self._ended_at: float | None = None  # monotonic, of the last try
        self._read_at = 0.0  # monotonic, of the last one that went well

    def get(self) -> Reading | None:
        """The newest reading, a new one if it is older than the interval; None while the database is away."""
        with self._lock:
            fresh = self._ended_at is not None and monotonic() - self._ended_at < self._interval
            if not fresh and not self._closed and self._asked is None:
                self._asked = threading.Event()
                if not self._started:
                    self._started = True
                    self._loop.start()
                self._loop.wake()
            asked = None if fresh else self._asked
        if asked is not None:
            asked.wait(PATIENCE)
        reading = self._reading
        if reading is not None and monotonic() - self._read_at > self._interval + STALE:
            return None
        return reading

    def close(self) -> None:
        """Read no more. Does not wait for a reading that hangs: its thread is a daemon, and ends with it."""
        with self._lock:
            self._closed = True
            if self._started:
                self._loop.stop()
        self._loop.join(0.2)

    def _step(self) -> None:
        asked = self._asked
        if asked is None:
            return
        try:
            self._reading, self._read_at = read(self._store), monotonic()
        except (PgSchedulerError, psycopg.Error) as error:
            # Figures that are no longer true are worse than none.
            self._reading = None
            self._log.warning("metrics could not read the table of jobs", error=str(error)[:300])
        finally:
            with self._lock:
                self._ended_at, self._asked = monotonic(), None
            asked.set()
