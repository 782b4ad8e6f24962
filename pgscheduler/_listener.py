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

__all__ = ["Listener", "Notifier"]

PROBE_PATIENCE = 5.0  # seconds until a listener that does not hear itself says so
WATCH_FIRST, WATCH_LIMIT = 0.005, 1.0  # seconds between looks at callers' open transactions


class Listener:
    """The step of the listener loop. Holds one connection that LISTENs, and sleeps on its socket."""

    def __init__(self, store: Store, on_hint: Callable[[str], None], log: Any) -> None:
        self._store = store
        self._on_hint = on_hint
        self._log = log
        self._connection: psycopg.Connection[Any] | None = None
        self._probed_at: float | None = None
        self._heard: set[str] = set()
        self._connected_before = False
        self.ready = threading.Event()  # set once LISTEN is in force for the first time
        self.hears: bool | None = None  # None until the probe has come back, or has not
        self._wake_read, self._wake_write = os.pipe()

    def step(self) -> float:
        try:
            connection = self._connection
            if connection is None:
                self._connect()
                return 0.0  # a success on record: the sleep that follows may be long
            ready, _, _ = select.select([connection.fileno(), self._wake_read], [], [], self._patience())
            if connection.fileno() in ready:
                self._hear(connection)
            elif self._probed_at is not None and monotonic() - self._probed_at > PROBE_PATIENCE:
                self._probed_at, self.hears = None, False
                self._log.warning(
                    "notifications do not arrive (a pooler in transaction mode?); polling instead"
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
        connection = self._store.connect()
        self._connection = connection
        # Notifications that arrive during a statement come to the handler, the others to `_hear`.
        connection.add_notify_handler(lambda notice: self._heard.add(notice.payload))
        connection.execute(
            f"listen {self._store.names.channel}"
        )  # our own digest: letters, digits, underscore
        self._store.notify(connection, "probe")
        self._probed_at = monotonic()
        if self._connected_before:
            # What was announced while we were deaf is unknown, so look.
            self._on_hint("due")
            self._on_hint("cancel")
        self._connected_before = True
        self.ready.set()
        self._hear(connection)
        return connection

    def _patience(self) -> float | None:
        return (
            None
            if self._probed_at is None
            else max(self._probed_at + PROBE_PATIENCE - monotonic(), 0.0) + 0.05
        )

    def _hear(self, connection: psycopg.Connection[Any]) -> None:
        raw = connection.pgconn
        raw.consume_input()
        hints, self._heard = self._heard, set()
        while (notice := raw.notifies()) is not None:
            hints.add(notice.extra.decode("utf-8", "replace"))
        if "probe" in hints:
            self._probed_at, self.hears = None, True
        for hint in hints & {"due", "cancel"}:
            self._on_hint(hint)


class Notifier:
    """Sends hints for everything that this process schedules, at most one per interval.

    Never inside a caller's transaction: NOTIFY takes a lock that makes all committers queue (16 writers went
    from 6,700 to 900 commits a second). Instead this remembers the transaction's id and looks, on its own
    connection, whether it has committed.
    """

    def __init__(self, store: Store, interval: float, log: Any, name: str) -> None:
        self._store = store
        self._interval = interval
        self._lock = threading.Lock()
        self._hints: set[str] = set()  # guarded by _lock
        self._watched: set[int] = set()  # transaction ids; guarded by _lock
        self._watch_pause = WATCH_FIRST
        self._sent_at = -interval
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

    def watch(self, transaction: int) -> None:
        """Send `due` once this transaction has committed."""
        with self._lock:
            if self._closed:
                return
            self._watched.add(transaction)
            self._watch_pause = WATCH_FIRST
        self._wake()

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
            self._look(connection)
            wait = self._sent_at + self._interval - monotonic()
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
        except BaseException:
            self._disconnect()
            raise
        with self._lock:
            if self._watched:
                self._watch_pause = min(self._watch_pause * 1.5, WATCH_LIMIT)
                return self._watch_pause
        return None

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        """Which of the watched transactions have ended; a committed one becomes a hint."""
        with self._lock:
            watched = list(self._watched)
        if not watched:
            return
        found = connection.execute(self._store.sql["settled"], {"transactions": bigints(watched)}).fetchall()
        with self._lock:
            self._watched -= {id_ for id_, committed in found if committed is not None}
            if any(committed for _, committed in found):
                self._hints.add("due")

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
