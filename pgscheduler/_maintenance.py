"""Housekeeping without a leader: every node tries every chore, a transaction's advisory lock lets one in.

To add a chore: write its function, add a row to `CHORES`, or to `LONG` if it may take more than a second.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
from psycopg import sql

from ._observer import Observer
from ._store import Store, tuples
from .clock import monotonic, uniform

__all__ = ["CHORES", "LONG", "Chore", "Maintenance", "ensure_partitions"]

# A node that freezes or is cut off in a chore must not keep its locks: they would stop this chore, and perhaps all
# completions, on every other node until the network gives it up.
ENTER = "select pg_try_advisory_xact_lock(%s), set_config('idle_in_transaction_session_timeout', %s, true)"
BATCH = 1000  # rows per transaction, so that no chore holds locks for long
TRIM_BATCH = 50_000  # lines of history per transaction: nobody waits for them, and each pass reads all of it
DAYS_AHEAD = 3  # partitions are made this far ahead; the default partition catches the rest
PARTITIONED = ("runs", "run_logs")
# A partition is made or dropped under a lock that waits for whoever reads history, a dump say, and while it waits every
# outcome queues behind it. There are days to do it in, so it waits for a moment, and tries again later.
LOCK_PATIENCE = "100ms"
LOCK_PAUSE = 60.0  # seconds


@dataclass(frozen=True)
class Settings:
    """What the chores need to know, in seconds."""

    no_heartbeat_timeout: float
    orphaned_job_timeout: float
    history_retention: float
    remember_finished: float = 3600.0
    history_keep_completed: int | None = None
    history_keep_failed: int | None = None

    @property
    def trims(self) -> bool:
        return self.history_keep_completed is not None or self.history_keep_failed is not None


@dataclass(frozen=True)
class Chore:
    """A name, how often, its advisory lock, and what it does: returns how many rows it touched."""

    name: str
    period: Callable[[Settings], float]
    lock: int
    do: Callable[[psycopg.Connection[Any], Store, Settings], list[Any]]
    #: As many touched rows mean that there is more to do.
    batch: float = BATCH


def reset_stalled(connection: psycopg.Connection[Any], store: Store, settings: Settings) -> list[Any]:
    """Jobs whose node is silent are due again."""
    return (
        tuples(connection)
        .execute(store.sql["stalled"], {"timeout": settings.no_heartbeat_timeout, "batch": BATCH})
        .fetchall()
    )


def retire_orphans(connection: psycopg.Connection[Any], store: Store, settings: Settings) -> list[Any]:
    """Jobs whose name nobody knows become records; nodes that nobody can wait for any more are forgotten."""
    connection.execute(store.sql["old_nodes"], {"timeout": settings.orphaned_job_timeout + 86400})
    return (
        tuples(connection)
        .execute(store.sql["orphans"], {"timeout": settings.orphaned_job_timeout, "batch": BATCH})
        .fetchall()
    )


def keep_partitions(connection: psycopg.Connection[Any], store: Store, settings: Settings) -> list[Any]:
    """Make the coming days' partitions, drop those older than the retention.

    A role that may create nothing keeps its history in the default partition, and deletes what is old.
    """
    connection.execute("select set_config('lock_timeout', %s, true)", [LOCK_PATIENCE])
    ((now,),) = tuples(connection).execute(store.sql["now"]).fetchall()
    today = now.astimezone(UTC).date()
    # The partition of a day may go when its last instant is older than the retention.
    oldest = today - timedelta(days=int(settings.history_retention // 86400) + 1)
    touched: list[str] = []
    with contextlib.suppress(psycopg.errors.InsufficientPrivilege), connection.transaction():
        touched += ensure_partitions(connection, store, today)
        touched += _drop_old(connection, store, oldest)
    _delete_old(connection, store, oldest)
    return touched


def trim_history(connection: psycopg.Connection[Any], store: Store, settings: Settings) -> list[Any]:
    """Delete the runs beyond the newest so many of each job, where there is a limit.

    No index leads to the runs of a name, and one more would cost every run that ends. A pass counts the whole history
    instead (half a second per million lines) and sorts the part that may go; where limits are set, that is little.
    """
    if not settings.trims:
        return []
    connection.execute("set local enable_mergejoin = off")  # it would sort all of it, by name
    limits = {"completed": settings.history_keep_completed, "failed": settings.history_keep_failed}
    window = {"window": settings.remember_finished, "batch": TRIM_BATCH}
    ((count,),) = tuples(connection).execute(store.sql["trim_runs"], {**limits, **window}).fetchall()
    # Not the lines themselves: while they are read the transaction stands still, which it must not do for long.
    return [None] * count


CHORES = (
    # A fifth of the timeout, so that a death is found within a quarter of it even when a round is missed a little.
    Chore("stalled", lambda s: s.no_heartbeat_timeout / 5, 1, reset_stalled),
    Chore("orphans", lambda s: min(s.orphaned_job_timeout / 4, 3600.0), 2, retire_orphans),
    Chore("partitions", lambda _: 3600.0, 3, keep_partitions, math.inf),
)
#: What may take long is done by a loop of its own: the search for dead nodes does not wait for it.
LONG = (Chore("history", lambda _: 600.0, 4, trim_history, TRIM_BATCH),)


class Maintenance:
    """The step of a maintenance loop: do what is due, return the seconds until the next chore."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        log: Any,
        on_reset: Callable[[list[Any]], None],
        chores: tuple[Chore, ...] = CHORES,
    ) -> None:
        self._store = store
        self._settings = settings
        self._log = log
        self._on_reset = on_reset
        self.observer: Observer | None = None
        # Everything once at the start: what happened while no node was there is found at once.
        self._due = {chore.name: 0.0 for chore in chores}
        self._chores = chores

    def step(self) -> float:
        now = monotonic()
        for chore in self._chores:
            if self._due[chore.name] <= now:
                period = chore.period(self._settings)
                try:
                    again = self.do(chore)
                except psycopg.errors.LockNotAvailable:
                    if period <= LOCK_PAUSE:
                        raise  # the loop tries again soon
                    self._log.info("maintenance waits for a lock", chore=chore.name)
                    again, period = False, LOCK_PAUSE
                # Jitter only shortens: nodes spread out, and the promise keeps its bound.
                self._due[chore.name] = now if again else monotonic() + period * uniform(0.8, 1.0)
        return max(min(self._due.values()) - monotonic(), 0.0)

    def _patience(self) -> str:
        """How long a chore's transaction may stand still: little against the timeout that a death is found in."""
        return f"{int(min(max(self._settings.no_heartbeat_timeout / 10, 0.2), 5.0) * 1000)}ms"

    def do(self, chore: Chore) -> bool:
        """Run one chore if no other node is at it; True when there is more to do."""

        def locked(connection: psycopg.Connection[Any]) -> list[Any] | psycopg.errors.LockNotAvailable:
            try:
                with connection.transaction():
                    key = self._store.names.lock_key(chore.lock)
                    entered = tuples(connection).execute(ENTER, [key, self._patience()]).fetchone()
                    if entered is not None and entered[0]:
                        return chore.do(connection, self._store, self._settings)
            except psycopg.errors.LockNotAvailable as busy:
                return busy  # to be told from a server that refuses work
            return []

        touched = self._store.using(locked)
        if isinstance(touched, psycopg.errors.LockNotAvailable):
            raise touched
        if touched:
            self._log.info("maintenance", chore=chore.name, count=len(touched))
            if self.observer is not None:
                self.observer.kept(chore.name, touched)
        if touched and chore.name == "stalled":
            self._on_reset(touched)
        return len(touched) >= chore.batch


def ensure_partitions(connection: psycopg.Connection[Any], store: Store, today: date) -> list[str]:
    """Create missing daily partitions from yesterday to DAYS_AHEAD; days that the default holds stay there."""
    existing = _partitions(connection, store)
    made = []
    for parent in PARTITIONED:
        for offset in range(-1, DAYS_AHEAD + 1):
            day = today + timedelta(days=offset)
            name = f"{parent}_p{day:%Y%m%d}"
            if name in existing or _default_holds(connection, store, parent, day):
                continue
            connection.execute(
                sql.SQL("create table if not exists {} partition of {} for values from ({}) to ({})").format(
                    store.names.identifier(name),
                    store.names.identifier(parent),
                    sql.Literal(_midnight(day)),
                    sql.Literal(_midnight(day + timedelta(days=1))),
                )
            )
            made.append(name)
    return made


def _drop_old(connection: psycopg.Connection[Any], store: Store, oldest: date) -> list[str]:
    dropped = []
    for name in _partitions(connection, store):
        parent, _, suffix = name.rpartition("_p")
        if parent in PARTITIONED and suffix.isdigit() and datetime.strptime(suffix, "%Y%m%d").date() < oldest:  # noqa: DTZ007
            connection.execute(sql.SQL("drop table {}").format(store.names.identifier(name)))
            dropped.append(name)
    return dropped


def _delete_old(connection: psycopg.Connection[Any], store: Store, oldest: date) -> None:
    for parent, column in (("runs", "finished_at"), ("run_logs", "at")):
        connection.execute(
            sql.SQL("delete from {} where {} < {}").format(
                store.names.identifier(f"{parent}_default"),
                sql.Identifier(column),
                sql.Literal(_midnight(oldest)),
            )
        )


def _partitions(connection: psycopg.Connection[Any], store: Store) -> set[str]:
    """The daily partitions that exist, without the prefix."""
    prefix = store.names.prefix
    parents = [prefix + parent for parent in PARTITIONED]
    rows = (
        tuples(connection)
        .execute(store.sql["partitions"], {"schema": store.names.schema, "parents": parents})
        .fetchall()
    )
    return {child.removeprefix(prefix) for _, child, is_default in rows if not is_default}


def _default_holds(connection: psycopg.Connection[Any], store: Store, parent: str, day: date) -> bool:
    column = "finished_at" if parent == "runs" else "at"
    found = (
        tuples(connection)
        .execute(
            sql.SQL("select exists (select from {} where {} >= {} and {} < {})").format(
                store.names.identifier(f"{parent}_default"),
                sql.Identifier(column),
                sql.Literal(_midnight(day)),
                sql.Identifier(column),
                sql.Literal(_midnight(day + timedelta(days=1))),
            )
        )
        .fetchone()
    )
    return bool(found and found[0])


def _midnight(day: date) -> str:
    return f"{day.isoformat()} 00:00:00+00"
