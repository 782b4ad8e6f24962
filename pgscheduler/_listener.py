"""Notifications: hearing them wakes the dispatcher, sending them is coalesced.

A notification is only a hint. Without any (behind a pooler in transaction mode) everything still runs, found at
the next due time or `job_check_interval`.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from typing import Any

import psycopg

from ._loops import Loop
from ._store import Store, bigints
from .clock import monotonic
from .errors import DatabaseUnavailableError

__all__ = ["Listener", "Notifier"]

PROBE_PATIENCE = 5.0  # seconds until a listener that does not hear itself says so
IDLE = 2  # intervals in which this process has stored nothing, after which a job's own transaction may carry a hint
BUSY = 4  # intervals between hints of a process that stores jobs faster than one per interval
#: A look at callers' transactions, and the hint that follows, is followed by so many times that without one.
SHARE = 30
WATCH_LIMIT = 1.0  # seconds between looks at callers' open transactions, at most
#: Anybody in the database may notify, and each hint that is heard costs a claim. So many may follow each other at once;
#: then it is one per interval, as from a process of ours.
BURST = 20


class Listener:
    """The step of the listener loop. Holds one connection that LISTENs, and sleeps on its socket."""

    def __init__(self, store: Store, on_hint: Callable[[str], None], log: Any, interval: float = 0.0) -> None:
        self._store = store
        self._on_hint = on_hint
        self._interval = interval  # seconds between hints that are passed on, in the long run
        self._owed_until = 0.0  # as if each hint took an interval; BURST of them may be owed
        self._log = log
        self._connection: psycopg.Connection[Any] | None = None
        self._probed_at: float | None = None
        self._heard: set[str] = set()
        self.deaf_before = False  # something may have been announced before it listens: when it does, look
        self.ready = threading.Event()  # set once LISTEN is in force for the first time
        self.hears: bool | None = None  # None until the probe has come back, or has not
        self._wake_read, self._wake_write = os.pipe()

    def step(self) -> float:
        try:
            connection = self._connection
            if connection is None:
                self._connect()
                return 0.0  # a success on record: the sleep that follows may be long
            rest = self._owed_until - BURST * self._interval - monotonic()
            if rest > 0:
                self._rest(rest)  # what arrives meanwhile becomes one hint
            elif self._sleep(connection):
                self._hear(connection)
            elif self._probed_at is not None and monotonic() - self._probed_at > PROBE_PATIENCE:
                self._probed_at, self.hears = None, False
                self._log.warning(
                    "notifications do not arrive: LISTEN through a pooler such as PgBouncer? polling instead; see listen_dsn"
                )
        except BaseException:
            self.close_connection()
            raise
        return 0.0

    def interrupt(self) -> None:
        """End a step that is sleeping; used to stop the loop."""
        os.write(self._wake_write, b"x")

    def close_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        self.close_connection()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _connect(self) -> psycopg.Connection[Any]:
        connection = self._store.connect(self._store.listen_conninfo)
        self._connection = connection
        # Notifications that arrive during a statement come to the handler, the others to `_hear`.
        connection.add_notify_handler(lambda notice: self._heard.add(notice.payload))
        connection.execute(
            f"listen {self._store.names.channel}"
        )  # our own digest: letters, digits, underscore
        self._probed_at = None
        # From another connection: on this one, a pooler in transaction mode lets us hear ourselves and nobody else.
        with contextlib.suppress(DatabaseUnavailableError), self._store.connect() as other:
            self._store.notify(other, "probe")
            self._probed_at = monotonic()
        self.ready.set()
        if self.deaf_before:
            # What was announced while we were deaf is unknown, so look.
            self._on_hint("due")
            self._on_hint("cancel")
        self.deaf_before = True
        self._hear(connection)
        return connection

    def _sleep(self, connection: psycopg.Connection[Any]) -> bool:
        """Until the server says something (True), the probe's time is over, or somebody interrupts."""
        patience = None  # milliseconds
        if self._probed_at is not None:
            patience = (max(self._probed_at + PROBE_PATIENCE - monotonic(), 0.0) + 0.05) * 1000
        # select() takes no descriptor beyond 1023, and a process may have more files open than that.
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        return any(ready == connection.fileno() for ready, _ in poll.poll(patience))

    def _rest(self, seconds: float) -> None:
        """Hear nothing for a moment, unless somebody interrupts."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.poll(seconds * 1000)

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        raw = connection.pgconn
        raw.consume_input()
        hints, self._heard = self._heard, set()
        while (notice := raw.notifies()) is not None:
            hints.add(notice.extra.decode("utf-8", "replace"))
        if "probe" in hints:
            self._probed_at, self.hears = None, True
        known = hints & {"due", "cancel"}
        for hint in known:
            self._on_hint(hint)
        if known:
            self._owed_until = max(self._owed_until, monotonic()) + self._interval


class Notifier:
    """Sends hints for everything that this process schedules, at most one per interval.

    Never inside a caller's transaction, and never in every one of ours: NOTIFY takes a lock that makes all
    committers queue (16 writers went from 6,700 to 900 commits a second). For a caller's transaction this remembers
    its id and looks, on its own connection, whether it has committed.
    """

    def __init__(self, store: Store, interval: float, log: Any, name: str) -> None:
        self._store = store
        self._interval = interval
        self._lock = threading.Lock()
        self._hints: set[str] = set()  # guarded by _lock
        self._watched: set[int] = set()  # transaction ids; guarded by _lock
        self._watch_pause = interval
        # Seconds that must pass between two looks, on a machine that has better things to do.
        self._rest = 0.0
        self._look_at: float | None = None  # when to look at the watched transactions; guarded by _lock
        self._pause = interval  # between two hints; longer while jobs are stored one after the other
        self._sent_at = self._stored_at = -interval * BUSY
        self._connection: psycopg.Connection[Any] | None = None
        self._loop: Loop | None = None
        self._log = log
        self._name = name
        self._closed = False

    def poke(self, hint: str) -> None:
        """Send a hint soon."""
        with self._lock:
            if hint in self._hints or self._closed:
                return
            self._hints.add(hint)
        self._wake()

    def turn(self) -> bool:
        """Whether a hint may go out now, in the transaction that it belongs to; the caller then sends it.

        So an idle system hears of a job the moment that it is committed. A busy one is not slowed: such a transaction
        holds the lock until it is on the disk. When it is not the caller's turn, `poke` does it a moment later, from a
        connection whose commits do not wait for the disk.
        """
        with self._lock:
            now = monotonic()
            idle = self._note_stored(now) >= self._interval * IDLE
            if self._closed or self._hints or not idle:
                return False
            self._sent_at = now
            return True

    def watch(self, transaction: int) -> None:
        """Send `due` once this transaction has committed."""
        with self._lock:
            if self._closed:
                return
            self._watched.add(transaction)
            now = monotonic()
            self._note_stored(now)
            if self._look_at is not None and self._look_at <= now + self._pause:
                return  # it will be looked at soon; a look for each would cost more than the job
            self._watch_pause = self._pause
            self._look_at = now + self._pause
        self._wake()

    def _note_stored(self, now: float) -> float:
        """A job is being stored: how long after the last one? The busier this process, the rarer its hints."""
        gap, self._stored_at = now - self._stored_at, now
        calm = gap >= max(self._interval, self._rest)
        self._pause = self._interval if calm else max(self._interval * BUSY, self._rest)
        return gap

    def close(self) -> None:
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.stop()
            loop.join(2.0)

    def _wake(self) -> None:
        with self._lock:
            if self._loop is None:
                self._loop = Loop(f"{self._name}-notifier", self.step, self._log, self._finish)
                self._loop.start()
            loop = self._loop
        loop.wake()

    def step(self) -> float | None:
        try:
            connection = self._connection
            if connection is None or connection.closed:
                connection = self._connection = self._store.connect()
            began = monotonic()
            looked = self._look_at is not None and began >= self._look_at
            if looked:
                self._look(connection)
            wait = self._send(connection)
            if looked:
                self._rest = min((monotonic() - began) * SHARE, WATCH_LIMIT)
        except BaseException:
            self._disconnect()
            raise
        if wait > 0:
            return wait
        with self._lock:
            return None if self._look_at is None else max(self._look_at - monotonic(), 0.0)

    def _send(self, connection: psycopg.Connection[Any]) -> float:
        """Send the hints that there are, if their time has come; the seconds until then, else 0."""
        wait = self._sent_at + self._pause - monotonic()
        with self._lock:
            if self._hints and wait > 0:
                return wait
            hints, self._hints = self._hints, set()
        try:
            for hint in hints:
                self._store.notify(connection, hint)
        except BaseException:
            with self._lock:
                self._hints |= hints
            raise
        if hints:
            self._sent_at = monotonic()
        return 0.0

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        """Which of the watched transactions have ended; a committed one becomes a hint."""
        with self._lock:
            watched = list(self._watched)
        found = connection.execute(self._store.sql["settled"], {"transactions": bigints(watched)}).fetchall()
        with self._lock:
            self._watched -= {id_ for id_, committed in found if committed is not None}
            if any(committed for _, committed in found):
                self._hints.add("due")
                self._watch_pause = self._pause
            else:
                self._watch_pause = min(self._watch_pause * 1.5, WATCH_LIMIT)
            self._look_at = monotonic() + self._watch_pause if self._watched else None

    def _finish(self) -> None:
        """The last hint of a process that ends at once, as a command does, would else never be sent."""
        with contextlib.suppress(Exception):
            if self._hints:
                connection = self._connection or self._store.connect()
                self._connection = connection
                for hint in self._hints:
                    self._store.notify(connection, hint)
        self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
