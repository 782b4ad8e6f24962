"""The verbs that store one job: `schedule` and `enqueue`, on our own connection or in a caller's transaction."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

import psycopg
from psycopg.pq import TransactionStatus

from pgscheduler import _check as check
from pgscheduler import _foreign
from pgscheduler._decide import jitter_of
from pgscheduler._json import dump_json
from pgscheduler._marks import check_marks, doubtful
from pgscheduler._registry import instantiate, plain_parameters, validate_parameters
from pgscheduler._sql import SHARED_NAMES
from pgscheduler._store import dicts
from pgscheduler.errors import (
    DuplicateJobError,
    InvalidValueError,
    JobKindError,
    JobRunningError,
    ScheduleUnknownError,
)
from pgscheduler.events import StatusChange
from pgscheduler.job import Job, JobConfig
from pgscheduler.records import JobRecord

from ._core import Core

__all__ = ["EMPTY", "IF_EXISTS", "ROUNDS", "IfExists", "Storing", "one", "record_of", "refusal"]

Row = Mapping[str, Any]
Found = tuple[Row, bool]  # a job, and whether it is new
Steps = Generator["Ask | Found", Row | None, None]

#: What happens when a job of that name and key exists: see `Scheduler.enqueue`.
IfExists = Literal["update", "keep", "error"]
IF_EXISTS = ("update", "keep", "error")
ROUNDS = (
    5  # a key that is taken when we insert and free when we look, so often in a row, is of the other kind
)


class Ask(NamedTuple):
    """One statement of several; the next depends on its first row."""

    statement: str
    values: Mapping[str, Any]


#: What `insert` and `upsert` take, for a job of which only the name and priority are missing.
EMPTY: dict[str, Any] = {
    **dict.fromkeys(("key", "run_at", "delay", "parameters", "options", "scheduled_at", "schedule")),
    "notify": False,
}


class Storing(Core):
    """Everything that makes a job."""

    def schedule(self, job: Job, connection: Any = None, *, if_exists: IfExists = "update") -> Any:
        """See `Scheduler.schedule`."""
        job = instantiate(job)
        self.registry.admit(job)
        config = job.config
        statement, parameters = self._statement(job.name, config)
        if if_exists != "update":
            return self._store_unless(job, parameters, if_exists, connection)
        if connection is not None and _foreign.is_async(connection):
            return self._schedule_async(connection, job, statement, parameters)
        if connection is not None:
            row = _foreign.execute(connection, self.store.sql[statement], parameters)
            return self._stored_elsewhere(job, row, parameters)
        row = self._store_one(statement, parameters)
        if row is None:
            return self._refused(job, parameters)
        self.registry.adopt(job)
        return self._stored(row, parameters)

    def enqueue(
        self,
        name: str,
        parameters: Any = ...,
        *,
        key: str | None = None,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        priority: int = 5,
        connection: Any = None,
        if_exists: IfExists = "update",
        **policies: Any,
    ) -> Any:
        """See `Scheduler.enqueue`."""
        if policies or key is not None or run_at is not None or delay is not None or if_exists != "update":
            given = {"parameters": parameters} if parameters is not ... else {}
            name = check.name("name", name)
            config = JobConfig(
                name=name, key=key, run_at=run_at, delay=delay, priority=priority, **given, **policies
            )
            if config.schedule is not None:
                raise InvalidValueError(
                    "schedule", config.schedule, "is for schedule(job); enqueue stores one-time jobs"
                )
            statement, values = self._statement(name, config)
            if not policies:
                values["options"] = None  # those of the class that runs it
        else:
            # The most common job of all needs no JobConfig.
            statement, values = "insert", EMPTY.copy()
            values["name"] = name = check.name("name", name)
            values["priority"] = check.integer("priority", priority, 0, 32767)
            if parameters is not ...:
                values["parameters"] = self._text(plain_parameters(parameters))
        self.check_fit(name, values["key"], {} if parameters is ... else parameters)
        if if_exists != "update":
            return self._store_unless(None, values, if_exists, connection)
        if connection is not None and _foreign.is_async(connection):
            return self._enqueue_async(connection, statement, values)
        if connection is not None:
            row = _foreign.execute(connection, self.store.sql[statement], values)
            return self._stored_elsewhere(None, row, values)
        row = self._store_one(statement, values)
        if row is None:
            raise self._refusal(values)
        return self._stored(row, values)

    async def _schedule_async(
        self, connection: Any, job: Job, statement: str, values: dict[str, Any]
    ) -> JobRecord:
        row = await _foreign.execute_async(connection, self.store.sql[statement], values)
        return self._stored_elsewhere(job, row, values)

    async def _enqueue_async(self, connection: Any, statement: str, values: dict[str, Any]) -> JobRecord:
        row = await _foreign.execute_async(connection, self.store.sql[statement], values)
        return self._stored_elsewhere(None, row, values)

    def _store_unless(
        self, job: Job | None, values: dict[str, Any], if_exists: IfExists, connection: Any
    ) -> Any:
        """Store a job only if there is none of its name and key; else keep that one, or refuse."""
        check.one_of("if_exists", if_exists, IF_EXISTS)
        if values["key"] is None:
            raise InvalidValueError(
                "if_exists", if_exists, "needs a key: it says which job there may be already"
            )
        if connection is None:
            return self._found_or_new(job, self._write(lambda c: self._in_steps(c, values, if_exists)))
        steps = self._steps(values, if_exists)
        if _foreign.is_async(connection):
            return self._store_unless_async(job, connection, steps)
        sql = self.store.sql
        with _together(connection):
            found = _walk(steps, lambda ask: _foreign.execute(connection, sql[ask.statement], ask.values))
        return self._found_or_new(job, found, elsewhere=True)

    async def _store_unless_async(self, job: Job | None, connection: Any, steps: Steps) -> JobRecord:
        sql = self.store.sql
        async with _together(connection):
            found = await _walk_async(
                steps, lambda ask: _foreign.execute_async(connection, sql[ask.statement], ask.values)
            )
        return self._found_or_new(job, found, elsewhere=True)

    def _in_steps(
        self, connection: psycopg.Connection[Any], values: dict[str, Any], if_exists: IfExists
    ) -> Found:
        sql = self.store.sql
        with connection.transaction():
            return _walk(
                self._steps(values, if_exists), lambda ask: one(connection, sql[ask.statement], ask.values)
            )

    def _steps(self, values: dict[str, Any], if_exists: IfExists) -> Steps:
        """The statements, each of which is answered with its first row; in the end what was found."""
        name, key = values["name"], values["key"]
        for _ in range(ROUNDS):
            row = yield Ask("insert_keyed", values)
            if row is not None:
                if if_exists == "error" and values["schedule"] is None:
                    ended = yield Ask(
                        "take_back", {"id": row["id"], "name": name, "key": key, "window": self._remember}
                    )
                    if ended is not None:
                        text = f"job {name!r} with key {key!r} has ended already: {ended['outcome']}"
                        raise DuplicateJobError(text, name)
                yield row, True
            row = yield Ask("get_job", {"id": None, "name": name, "key": key})
            if row is None:
                continue  # it ended between the two, or the name is of the other kind
            if (row["schedule"] is None) != (values["schedule"] is None):
                break
            if if_exists == "error":
                raise DuplicateJobError(f"job {name!r} with key {key!r} exists already", name)
            yield row, False
        raise other_kind(values)

    def _found_or_new(self, job: Job | None, found: Found, *, elsewhere: bool = False) -> JobRecord:
        row, new = found
        if job is not None:
            self.registry.adopt(job, certain=not elsewhere)
        record = JobRecord.from_row(row)
        if new and elsewhere:  # the nodes are woken when the caller's transaction has committed
            self.notifier.watch(row["transaction"])
        elif new:
            self.hint("due")
            self.on_change(StatusChange(record.id, record.name, record.key, None, record.state))
        return record

    def _statement(self, name: str, config: JobConfig) -> tuple[str, dict[str, Any]]:
        """Which statement stores it, and its parameters; everything is checked here."""
        values = self._values(name, config)
        return ("insert" if values["key"] is None else "upsert"), values

    def _values(self, name: str, config: JobConfig, now: datetime | None = None) -> dict[str, Any]:
        text = self.check_parameters(config.parameters, config.parameters_schema)
        values: dict[str, Any] = {
            **EMPTY,
            "name": name,
            "key": config.key,
            "priority": config.priority,
            "run_at": config.run_at,
            "delay": None if config.delay is None else config.delay.total_seconds(),
            "parameters": text,
            "options": config.options_json(),
        }
        if config.schedule is not None:
            values["key"] = config.key or name
            values["schedule"] = config.schedule_json()
            first = config.schedule.next_after(now or self.store.now())
            if first is None:
                raise InvalidValueError("schedule", config.schedule, "has no occurrence left")
            values["scheduled_at"] = first
            # The job's id is not known yet; its name and key spread the first occurrence just as well.
            values["run_at"] = first + jitter_of(
                zlib.crc32(f"{name}|{values['key']}".encode()), first, config.jitter.total_seconds()
            )
        return values

    def check_parameters(self, parameters: Any, schema: Any) -> str | None:
        """Parameters as they are stored; raises unless they are JSON, small enough, and fit the schema, if any."""
        plain = plain_parameters(parameters)
        text = self._text(plain)
        if schema is not None:
            validate_parameters(schema, plain)
        return text

    def _text(self, parameters: Any) -> str | None:
        """Parameters as they are stored; none at all for an empty object."""
        text = None if parameters == {} else dump_json("parameters", parameters, self._limit)
        if doubtful(text):
            check_marks("parameters", parameters)
        return text

    def _store_one(self, statement: str, values: dict[str, Any]) -> Mapping[str, Any] | None:
        """Store one job in a transaction of its own, which also wakes the nodes if it is this process's turn."""
        values["notify"] = notified = self.notifier.turn()
        try:
            if statement == "insert":
                row = self._write(lambda c: self.store.insert(c, values))
            else:
                row = self._write(lambda c: one(c, self.store.sql[statement], values))
        except ScheduleUnknownError:
            self.notifier.poke("due")
            raise
        if not notified:
            self.notifier.poke("due")
        return row

    def _stored(self, row: Mapping[str, Any], values: Mapping[str, Any]) -> JobRecord:
        record = record_of(row, values)
        self.on_hint("due")
        self.on_change(StatusChange(record.id, record.name, record.key, None, record.state))
        return record

    def _stored_elsewhere(
        self, job: Job | None, row: Mapping[str, Any] | None, values: Mapping[str, Any]
    ) -> JobRecord:
        """Stored in a caller's transaction: the nodes are woken when it has committed."""
        if row is None:
            if job is not None:
                return self._refused(job, values)
            raise self._refusal(values)
        if job is not None:
            self.registry.adopt(job, certain=False)
        self.notifier.watch(row["transaction"])
        return record_of(row, values)

    def _refused(self, job: Job, values: Mapping[str, Any]) -> JobRecord:
        """The upsert changed nothing: the job runs, or is of the other kind. An unchanged definition is fine."""
        existing = self._live(name=values["name"], key=values["key"]) if values["key"] is not None else None
        if (
            existing is not None
            and values["schedule"] is not None
            and existing["schedule"] == values["schedule"]
        ):
            same = existing["options"] == values["options"] and existing["priority"] == values["priority"]
            if same and (existing["parameters"] or {}) == (plain_parameters(job.config.parameters) or {}):
                self.registry.adopt(job)
                return JobRecord.from_row(existing)
        raise self._refusal(values, existing)

    def _refusal(self, values: Mapping[str, Any], existing: Mapping[str, Any] | None = None) -> Exception:
        if values["key"] is not None and existing is None:
            existing = self._live(name=values["name"], key=values["key"])
        return refusal(values, existing)


def _walk(steps: Steps, execute: Callable[[Ask], Row | None]) -> Found:
    step = next(steps)
    while isinstance(step, Ask):
        step = steps.send(execute(step))
    return step


async def _walk_async(steps: Steps, execute: Callable[[Ask], Awaitable[Row | None]]) -> Found:
    step = next(steps)
    while isinstance(step, Ask):
        step = steps.send(await execute(step))
    return step


def _together(connection: Any) -> Any:
    """One transaction for the statements of one verb, where each would be one: psycopg's autocommit, with none open."""
    if (
        isinstance(connection, psycopg.Connection | psycopg.AsyncConnection)
        and connection.autocommit
        and connection.info.transaction_status == TransactionStatus.IDLE
    ):
        return connection.transaction()
    return contextlib.nullcontext()


def refusal(values: Mapping[str, Any], existing: Mapping[str, Any] | None) -> Exception:
    """Why nothing was stored where this job is."""
    if existing is not None and (existing["schedule"] is None) == (values["schedule"] is None):
        return JobRunningError((values["name"], values["key"]))
    return other_kind(values)


def other_kind(values: Mapping[str, Any]) -> JobKindError:
    name, key = values["name"], values["key"]
    if values["schedule"] is None:
        whose, what = ("", "name") if name not in SHARED_NAMES else (f" with key {key!r}", "name and key")
        return JobKindError(
            f"job {name!r}{whose} is recurring; a one-time job may not share its {what}", name
        )
    return JobKindError(
        f"job {name!r} with key {key!r} is one-time; a recurring job may not share its name and key", name
    )


def record_of(row: Mapping[str, Any], values: Mapping[str, Any]) -> JobRecord:
    """`insert` answers only what the server decided, `upsert` the whole row: it may keep what was there."""
    return JobRecord.fresh(row, values) if values["key"] is None else JobRecord.from_row(row)


def one(
    connection: psycopg.Connection[Any], statement: str, values: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    return dicts(connection).execute(statement, values).fetchone()
