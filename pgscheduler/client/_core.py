"""What all verbs share: the store, the names this process knows, how a job is found, and how a write is made certain."""

from __future__ import annotations

import select
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, TypeVar

import psycopg

from pgscheduler import _check as check
from pgscheduler._decide import jitter_of
from pgscheduler._listener import Notifier
from pgscheduler._registry import Registry
from pgscheduler._sql import SHARED_NAMES, Names
from pgscheduler._store import Store
from pgscheduler.errors import (
    DatabaseUnavailableError,
    InvalidTypeError,
    InvalidValueError,
    JobNotFoundError,
    ScheduleUnknownError,
)
from pgscheduler.events import StatusChange
from pgscheduler.job import JobConfig, policy_of, schedule_of
from pgscheduler.records import JobRecord
from pgscheduler.schedule import Schedule

__all__ = ["Core", "JobRef", "reference", "refuse_own_schedule", "shown"]

#: A job, by id, by record, by name (recurring: its key is its name), or by (name, key).
JobRef = int | str | tuple[str, str] | JobRecord

T = TypeVar("T")


class Core:
    """One (database, schema, prefix), as the caller of the verbs sees it."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        log: Any,
        *,
        name: str = "pgscheduler",
        debounce: float = 0.005,
        max_parameters_bytes: int = 64 * 1024,
        remember_finished: float = 3600.0,
    ) -> None:
        self.store = store
        self.registry = registry
        self._log = log
        self._limit = max_parameters_bytes
        self._remember = remember_finished
        self.notifier = Notifier(store, debounce, log, name)
        #: Called with "due" or "cancel" after each committed change, in this process; set by the scheduler.
        self.on_hint: Callable[[str], None] = lambda _: None
        #: Called with each status change made here; set by the scheduler.
        self.on_change: Callable[[StatusChange], None] = lambda _: None

    @property
    def names(self) -> Names:
        return self.store.names

    def hint(self, hint: str) -> None:
        """Wake this process's node at once and the others soon."""
        self.on_hint(hint)
        self.notifier.poke(hint)

    def asks(self, name: str) -> bool:
        """Whether `check_fit` has anything to ask for jobs of this name without a key."""
        return name in SHARED_NAMES or self.registry.asks(name)

    def check_fit(self, name: str, key: str | None, parameters: Any) -> None:
        """Raise InvalidValueError for parameters with which a job of this name would fail, as far as is known here.

        Known are the classes that are registered in this process, and the shipped kinds. The run asks again.
        """
        if name in SHARED_NAMES and self.registry.find(name, key) is None:
            # Not at the top: few programs need the kinds.
            from pgscheduler.jobs._shapes import check_shape

            check_shape(name, parameters)
        else:
            self.registry.check_parameters(name, key, parameters)

    def _write(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Run a storing statement. It returned: stored. A definite error: not stored. Else ScheduleUnknownError."""
        warned: list[str] = []
        stale: list[bool] = []
        sent = False

        def watched(connection: psycopg.Connection[Any]) -> T:
            nonlocal sent

            def notice(diagnostic: Any) -> None:
                if diagnostic.sqlstate == "01000":
                    warned.append(diagnostic.message_primary or "")

            connection.add_notice_handler(notice)
            try:
                # An idle connection may be dead since the server restarted. Finding that out before the write
                # keeps "unknown" for what really is.
                if _looks_dead(connection):
                    stale.append(True)
                    connection.close()
                    raise psycopg.OperationalError("the connection was closed while idle")
                sent = True
                return work(connection)
            finally:
                connection.remove_notice_handler(notice)

        for attempt in (1, 2, 3):
            stale.clear()
            try:
                result = self.store.using(watched, retry=False)
                break
            except DatabaseUnavailableError as error:
                if stale and attempt < 3:
                    self.store.pool.check()
                    continue
                if sent and not _definite(error.__cause__):
                    raise ScheduleUnknownError(
                        "the connection was lost while the job was being stored: it may or may not exist. Schedule it "
                        "again under the same key; there will be one"
                    ) from error
                raise
        if warned:
            raise ScheduleUnknownError(f"stored here, but perhaps not on a standby: {warned[0]}")
        return result

    def _change(self, statement: str, job: JobRef, **more: Any) -> Mapping[str, Any] | None:
        return self.store.row(statement, {**reference(job), **more})

    def _find(self, job: JobRef) -> Mapping[str, Any] | None:
        return self.store.row("get_job", reference(job), retry=True)

    def _live(self, *, name: str, key: str) -> Mapping[str, Any] | None:
        return self.store.row("get_job", {"id": None, "name": name, "key": key}, retry=True)

    def _jitter(self, row: Mapping[str, Any], occurrence: datetime) -> timedelta:
        """This occurrence's own offset, by the row's policies."""
        if row["options"] is not None:
            return jitter_of(row["id"], occurrence, policy_of(row["options"]).jitter)
        entry = self.registry.find(row["name"], row["key"])
        return timedelta(0) if entry is None else jitter_of(row["id"], occurrence, entry.policy.jitter)

    def _schedule_of(self, row: Mapping[str, Any]) -> Schedule | None:
        schedule = schedule_of(row["schedule"])
        if schedule is None:
            entry = self.registry.find(row["name"], row["key"])
            schedule = None if entry is None else entry.schedule
        return schedule


def reference(job: JobRef) -> dict[str, Any]:
    if isinstance(job, JobRecord):
        return {"id": job.id, "name": None, "key": None}
    if isinstance(job, bool):
        raise InvalidTypeError("job", job, "must be an id, a name, (name, key) or a JobRecord")
    if isinstance(job, int):
        if not 0 < job < 2**63:
            raise JobNotFoundError(job)
        return {"id": job, "name": None, "key": None}
    if isinstance(job, str):
        name = check.name("job", job)
        return {"id": None, "name": name, "key": name}
    if isinstance(job, tuple) and len(job) == 2:
        return {"id": None, "name": check.name("name", job[0]), "key": check.name("key", job[1])}
    raise InvalidTypeError("job", job, "must be an id, a name, (name, key) or a JobRecord")


def shown(job: JobRef) -> Any:
    return job.id if isinstance(job, JobRecord) else job


def _definite(error: BaseException | None) -> bool:
    """Did the server itself refuse the statement? Then nothing was stored, and everybody knows."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and state[:2] not in ("08", "57")


def _looks_dead(connection: psycopg.Connection[Any]) -> bool:
    """An idle connection whose socket has something to read was closed, or told to close, by the server."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def refuse_own_schedule(config: JobConfig) -> None:
    """Raise for a schedule of the caller's own class: nodes would go by the class that they have registered."""
    text = config.schedule_json()
    if text is None or schedule_of(text) is None:
        rule = "must be a cron line, Cron or Every: one of your own comes with its class, by schedule(job)"
        raise InvalidValueError("schedule", config.schedule, rule)
