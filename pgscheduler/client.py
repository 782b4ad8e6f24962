"""The verbs: schedule, enqueue, trigger, cancel, pause, … One service layer for Python, the command and REST.

A client needs no running scheduler: a web process schedules jobs that worker processes run.
"""

from __future__ import annotations

import select
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

import psycopg
from psycopg.rows import dict_row

from . import _check as check
from . import _foreign
from ._json import dump_json, load_json
from ._listener import Notifier
from ._registry import Registry, instantiate, plain_parameters, validate_parameters
from ._runner import jitter_of
from ._sql import Names
from ._store import Store, dump
from .clock import monotonic, uniform
from .errors import (
    DatabaseUnavailableError,
    DuplicateJobError,
    InvalidTypeError,
    InvalidValueError,
    JobKindError,
    JobNotFoundError,
    JobNotRunningError,
    JobRunningError,
    ScheduleUnknownError,
    WaitTimeoutError,
)
from .events import StatusChange
from .job import Job, JobConfig, policy_of, schedule_of
from .records import JobRecord, LogLine, NodeRecord, RunRecord
from .schedule import Cron, Schedule
from .states import JobState, Outcome

__all__ = ["Client", "JobRef"]

#: A job, by id, by record, by name (recurring: its key is its name), or by (name, key).
JobRef = int | str | tuple[str, str] | JobRecord

T = TypeVar("T")
MAX_LIST = 10_000
CHUNK = 5_000  # jobs per statement of the bulk path for jobs with keys


class Client:
    """Everything that can be said about jobs, over one (database, schema, prefix)."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        log: Any,
        *,
        name: str = "pgscheduler",
        debounce: float = 0.02,
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

    # --- storing jobs ---------------------------------------------------------------------------------

    def schedule(self, job: Job, connection: Any = None) -> Any:
        """See `Scheduler.schedule`."""
        job = instantiate(job)
        self.registry.admit(job)
        config = job.config
        statement, parameters = self._statement(job.name, config)
        if connection is not None and _foreign.is_async(connection):
            return self._schedule_async(connection, job, statement, parameters)
        if connection is not None:
            row = _foreign.execute(connection, self.store.sql[statement], parameters)
            return self._stored_elsewhere(job, row, parameters)
        row = self._write(lambda c: _one(c, self.store.sql[statement], parameters))
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
        **policies: Any,
    ) -> Any:
        """See `Scheduler.enqueue`."""
        given = {"parameters": parameters} if parameters is not ... else {}
        config = JobConfig(
            name=check.name("name", name),
            key=key,
            run_at=run_at,
            delay=delay,
            priority=priority,
            **given,
            **policies,
        )
        if config.schedule is not None:
            raise InvalidValueError(
                "schedule", config.schedule, "is for schedule(job); enqueue stores one-time jobs"
            )
        statement, values = self._statement(config.name or "", config)
        if not policies:
            values["options"] = None  # those of the class that runs it
        if connection is not None and _foreign.is_async(connection):
            return self._enqueue_async(connection, statement, values)
        if connection is not None:
            row = _foreign.execute(connection, self.store.sql[statement], values)
            return self._stored_elsewhere(None, row, values)
        row = self._write(lambda c: _one(c, self.store.sql[statement], values))
        if row is None:
            raise self._refusal(values)
        return self._stored(row, values)

    def schedule_many(self, jobs: Iterable[Job], connection: psycopg.Connection[Any] | None = None) -> int:
        """See `Scheduler.schedule_many`."""
        plain: list[tuple[Any, ...]] = []
        keyed: list[dict[str, Any]] = []
        admitted: list[Job] = []
        names: set[str] = set()
        seen: dict[str, type[Job]] = {}
        kinds: dict[str, bool] = {}  # name -> is it recurring?
        keys: set[tuple[str, str]] = set()
        now: datetime | None = None
        for item in jobs:
            job = instantiate(item)
            name = job.name
            recurring = job.config.schedule is not None
            if kinds.setdefault(name, recurring) != recurring:
                text = f"job {name!r} is given as recurring and as one-time in one schedule_many"
                raise JobKindError(text, name)
            if seen.get(name, type(job)) is not type(job):
                text = (
                    f"job implementation does not match registered job: {name!r} is {seen[name].__qualname__}"
                )
                raise DuplicateJobError(text, name)
            if name not in seen or recurring:
                self.registry.admit(job)
                seen[name] = type(job)
                admitted.append(job)
            config = job.config
            if config.schedule is not None or config.key is not None:
                if now is None and config.schedule is not None:
                    now = self.store.now()  # one moment for all of them
                values = self._values(name, config, now)
                if (name, values["key"]) in keys:
                    text = f"job {name!r} with key {values['key']!r} is given twice in one schedule_many"
                    raise DuplicateJobError(text, name)
                keys.add((name, values["key"]))
                keyed.append(values)
                if config.schedule is None:
                    names.add(name)
            else:
                names.add(name)
                plain.append((name, config))
        if connection is not None and not isinstance(connection, psycopg.Connection):
            raise InvalidTypeError("connection", connection, "must be a psycopg Connection for schedule_many")
        rows = [
            self._values(name, config) for name, config in plain
        ]  # everything is checked before anything is written
        work = self._bulk(rows, keyed, names)
        if connection is not None:
            self._in_transaction(connection, work)
        else:
            self._write(lambda c: self._in_transaction(c, work))
            self.hint("due")
        for job in admitted:
            self.registry.adopt(job)
        return len(rows) + len(keyed)

    def _bulk(
        self, plain: list[dict[str, Any]], keyed: list[dict[str, Any]], names: set[str]
    ) -> Callable[[psycopg.Connection[Any]], None]:
        def write(connection: psycopg.Connection[Any]) -> None:
            if names:
                found = connection.execute(
                    self.store.sql["recurring_names"], {"names": sorted(names)}
                ).fetchone()
                if found is not None:
                    raise JobKindError(
                        f"job {found[0]!r} is recurring; a one-time job may not share its name", found[0]
                    )
            if plain:
                self._copy(connection, plain)
            for start in range(0, len(keyed), CHUNK):
                chunk = keyed[start : start + CHUNK]
                values = {"jobs": dump([_json_values(v) for v in chunk]), "table": self.names.table("jobs")}
                stored = {
                    (r[1], r[2]) for r in connection.execute(self.store.sql["upsert_many"], values).fetchall()
                }
                for value in chunk:
                    if (value["name"], value["key"]) not in stored:
                        raise JobRunningError((value["name"], value["key"]))

        return write

    def _copy(self, connection: psycopg.Connection[Any], rows: list[dict[str, Any]]) -> None:
        found = connection.execute(self.store.sql["now"]).fetchone()
        assert found is not None
        now = found[0].astimezone(UTC)
        lines: list[str] = []
        stamp = now.isoformat()
        with connection.cursor() as cursor, cursor.copy(self.store.sql["copy_jobs"]) as copy:
            for row in rows:
                due = stamp
                if row["run_at"] is not None:
                    due = row["run_at"].isoformat()
                elif row["delay"] is not None:
                    due = (now + timedelta(seconds=row["delay"])).isoformat()
                lines.append(
                    f"{_copied(row['name'])}\t{row['priority']}\t{due}\t{due}\t{stamp}\t{_copied(row['parameters'])}\t{_copied(row['options'])}\n"
                )
                if len(lines) >= 1000:
                    copy.write("".join(lines))
                    lines.clear()
            copy.write("".join(lines))

    @staticmethod
    def _in_transaction(
        connection: psycopg.Connection[Any], work: Callable[[psycopg.Connection[Any]], None]
    ) -> None:
        with connection.transaction():
            work(connection)

    async def _schedule_async(
        self, connection: Any, job: Job, statement: str, values: dict[str, Any]
    ) -> JobRecord:
        row = await _foreign.execute_async(connection, self.store.sql[statement], values)
        return self._stored_elsewhere(job, row, values)

    async def _enqueue_async(self, connection: Any, statement: str, values: dict[str, Any]) -> JobRecord:
        row = await _foreign.execute_async(connection, self.store.sql[statement], values)
        return self._stored_elsewhere(None, row, values)

    def _statement(self, name: str, config: JobConfig) -> tuple[str, dict[str, Any]]:
        """Which statement stores it, and its parameters; everything is checked here."""
        values = self._values(name, config)
        return ("insert" if values["key"] is None else "upsert"), values

    def _values(self, name: str, config: JobConfig, now: datetime | None = None) -> dict[str, Any]:
        parameters = plain_parameters(config.parameters)
        text = None
        if parameters != {}:
            text = dump_json("parameters", parameters, self._limit)
        if config.parameters_schema is not None:
            validate_parameters(config.parameters_schema, parameters)
        values: dict[str, Any] = {
            "name": name,
            "key": config.key,
            "priority": config.priority,
            "run_at": config.run_at,
            "delay": None if config.delay is None else config.delay.total_seconds(),
            "parameters": text,
            "options": config.options_json(),
            "scheduled_at": None,
            "schedule": None,
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

    def _stored(self, row: Mapping[str, Any], values: Mapping[str, Any]) -> JobRecord:
        record = _record(row, values)
        self.hint("due")
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
            self.registry.adopt(job)
        self.notifier.watch(row["transaction"])
        return _record(row, values)

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
        name, key = values.get("name", ""), values.get("key")
        if key is not None and existing is None:
            existing = self._live(name=name, key=key)
        if existing is not None and (existing["schedule"] is None) == (values.get("schedule") is None):
            return JobRunningError((name, key))
        if values.get("schedule") is None:
            return JobKindError(f"job {name!r} is recurring; a one-time job may not share its name", name)
        return JobKindError(
            f"job {name!r} with key {key!r} is one-time; a recurring job may not share its name and key", name
        )

    def hint(self, hint: str) -> None:
        """Wake this process's node at once and the others soon."""
        self.on_hint(hint)
        self.notifier.poke(hint)

    # --- changing jobs ----------------------------------------------------------------------------------

    def cancel(self, job: JobRef, reason: str = "cancelled") -> Literal["cancelled", "requested"]:
        """See `Scheduler.cancel`."""
        row = self._change("cancel", job, reason=reason)
        if row is None:
            raise self._absent(job)
        if row["state"] == "running":
            self.hint("cancel")
            return "requested"
        if row["recurring"]:
            raise JobNotRunningError(job, "job is recurring and not running; use pause or delete")
        return "cancelled"

    def delete(self, job: JobRef) -> Literal["deleted", "requested"]:
        """See `Scheduler.delete`."""
        live = self._find(job)
        row = self._change("delete", job)
        if row is None:
            raise self._absent(job)
        if live is not None:
            self.registry.forget(live["name"], live["key"])
        if row["state"] == "running":
            self.hint("cancel")
            return "requested"
        return "deleted"

    def pause(self, job: JobRef) -> JobRecord:
        """See `Scheduler.pause`."""
        row = self._change("pause", job)
        if row is None:
            raise self._absent(job)
        return JobRecord.from_row(row)

    def resume(self, job: JobRef) -> JobRecord:
        """See `Scheduler.resume`."""
        for _ in range(5):
            live = self._find(job)
            if live is None:
                raise self._absent(job)
            run_at = scheduled_at = None
            if live["schedule"] is not None:
                schedule = self._schedule_of(live)
                scheduled_at = schedule.next_after(self.store.now()) if schedule is not None else None
                run_at = None if scheduled_at is None else scheduled_at + self._jitter(live, scheduled_at)
            values = {
                "id": live["id"],
                "schedule": live["schedule"],
                "run_at": run_at,
                "scheduled_at": scheduled_at,
            }
            row = self.store.row("resume", values)
            if row is not None:  # else the schedule was changed meanwhile: compute again
                self.hint("due")
                return JobRecord.from_row(row)
        raise self._absent(job)

    def trigger(self, job: JobRef) -> JobRecord:
        """See `Scheduler.trigger`."""
        row = self._change("trigger", job)
        if row is None:
            if self._find(job) is not None:
                raise JobRunningError(_shown(job))
            raise self._absent(job)
        self.hint("due")
        return JobRecord.from_row(row)

    def reschedule(
        self,
        job: JobRef,
        *,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        schedule: str | Schedule | None = None,
    ) -> JobRecord:
        """See `Scheduler.reschedule`."""
        live = self._find(job)
        if live is None:
            raise self._absent(job)
        values: dict[str, Any] = {
            "id": live["id"],
            "run_at": None,
            "delay": None,
            "scheduled_at": None,
            "schedule": None,
        }
        if schedule is not None:
            if live["schedule"] is None:
                raise JobKindError(f"job {live['name']!r} is one-time; give run_at or delay", live["name"])
            config = JobConfig(schedule=Cron(schedule) if isinstance(schedule, str) else schedule)
            assert config.schedule is not None
            first = config.schedule.next_after(self.store.now())
            if first is None:
                raise InvalidValueError("schedule", schedule, "has no occurrence left")
            run_at = first + self._jitter(live, first)
            values |= {"schedule": config.schedule_json(), "run_at": run_at, "scheduled_at": first}
        elif live["schedule"] is not None:
            raise JobKindError(
                f"job {live['name']!r} is recurring; give another schedule, or trigger it", live["name"]
            )
        elif (run_at is None) == (delay is None):
            raise InvalidValueError("run_at", run_at, "or delay must be given, one of the two")
        else:
            values["run_at"] = None if run_at is None else check.instant("run_at", run_at)
            values["delay"] = (
                None if delay is None else check.duration("delay", delay, zero=True).total_seconds()
            )
        row = self.store.row("reschedule", values)
        if row is None:
            raise JobRunningError(_shown(job))
        self.hint("due")
        return JobRecord.from_row(row)

    def retry(self, run: RunRecord | str) -> JobRecord:
        """See `Scheduler.retry`."""
        found = run if isinstance(run, RunRecord) else self.get_run(run)
        live = self._find(found.job_id)
        if live is not None:
            return self.trigger(found.job_id)
        rows = self.store.rows("list_runs", _run_filter(job=found.job_id, token=found.token, limit=1))
        if not rows:
            raise JobNotFoundError(found.id)
        last = rows[0]
        if last["schedule"] is not None:
            raise JobNotFoundError(found.id)  # a recurring job that was deleted
        values = {
            "name": last["name"], "key": last["key"], "priority": 5, "run_at": None, "delay": None, "options": last["options"],
            "parameters": None if last["parameters"] is None else dump(last["parameters"]), "scheduled_at": None, "schedule": None,
        }  # fmt: skip
        row = self._write(
            lambda c: _one(c, self.store.sql["insert" if last["key"] is None else "upsert"], values)
        )
        if row is None:
            raise self._refusal(values)
        return self._stored(row, values)

    # --- reading ----------------------------------------------------------------------------------------

    def get_job(self, job: JobRef) -> JobRecord:
        """See `Scheduler.get_job`."""
        live = self._find(job)
        if live is not None:
            return JobRecord.from_row(live)
        values = _reference(job)
        row = self.store.row("get_ended", {**values, "window": self._remember}, retry=True)
        if row is None:
            raise JobNotFoundError(_shown(job))
        return JobRecord.from_last_run(row)

    def jobs(
        self,
        *,
        name: str | None = None,
        key: str | None = None,
        state: JobState | str | None = None,
        recurring: bool | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[JobRecord]:
        """See `Scheduler.jobs`."""
        values = {
            "name": None if name is None else check.name("name", name),
            "key": None if key is None else check.name("key", key),
            "state": None if state is None else check.one_of("state", state, tuple(JobState)),
            "recurring": None if recurring is None else check.boolean("recurring", recurring),
        }
        return [
            JobRecord.from_row(row)
            for row in self.store.rows("list_jobs", {**values, **_page(limit, offset)})
        ]

    def runs(
        self,
        job: JobRef | None = None,
        *,
        name: str | None = None,
        key: str | None = None,
        outcome: Outcome | str | None = None,
        since: datetime | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> list[RunRecord]:
        """See `Scheduler.runs`."""
        job_id = None
        if job is not None:
            reference = _reference(job)
            job_id, name, key = reference["id"], reference["name"] or name, reference["key"] or key
        values = _run_filter(
            job=job_id,
            name=None if name is None else check.name("name", name),
            key=None if key is None else check.name("key", key),
            outcome=None if outcome is None else check.one_of("outcome", outcome, tuple(Outcome)),
            since=None if since is None else check.instant("since", since),
        )
        return [
            RunRecord.from_row(row)
            for row in self.store.rows("list_runs", {**values, **_page(limit, offset)})
        ]

    def get_run(self, run_id: str) -> RunRecord:
        """One run by its id; JobNotFoundError if there is none (any more)."""
        job, _, token = run_id.partition("-") if isinstance(run_id, str) else ("", "", "")
        try:
            values = _run_filter(job=int(job), token=int(token, 16), limit=1)
        except ValueError:
            raise InvalidValueError("run", run_id, "must be a run's id, as in `job-token`") from None
        if not (0 < values["job"] < 2**63 and 0 <= values["token"] < 2**63):
            raise JobNotFoundError(run_id)
        rows = self.store.rows("list_runs", values)
        if not rows:
            raise JobNotFoundError(run_id)
        return RunRecord.from_row(rows[0])

    def logs(self, run: RunRecord | str) -> list[LogLine]:
        """What the run logged with `ctx.log`, in order."""
        found = run if isinstance(run, RunRecord) else self.get_run(run)
        rows = self.store.rows("run_logs", {"job": found.job_id, "token": found.token})
        return [
            LogLine(row["at"].astimezone(UTC), row["level"], row["event"], row["fields"] or {})
            for row in rows
        ]

    def nodes(self) -> list[NodeRecord]:
        """All nodes that are remembered, newest first."""
        return [NodeRecord.from_row(row) for row in self.store.rows("list_nodes")]

    def stats(self) -> dict[str, Any]:
        """Live jobs by name and state, how many are due, and the age of the oldest due one in seconds."""
        found: dict[str, Any] = {"names": {}, "states": {}, "due": 0, "oldest_due_seconds": None}
        for row in self.store.rows("stats"):
            found["names"].setdefault(row["name"], {})[row["state"]] = row["count"]
            found["states"][row["state"]] = found["states"].get(row["state"], 0) + row["count"]
            found["due"] += row["due"]
            if row["oldest"] is not None:
                found["oldest_due_seconds"] = max(found["oldest_due_seconds"] or 0.0, row["oldest"])
        return found

    def wait(self, job: JobRef, timeout: timedelta | float | None = None) -> JobRecord:
        """See `Scheduler.wait`."""
        deadline = (
            None
            if timeout is None
            else monotonic() + check.duration("timeout", timeout, zero=True).total_seconds()
        )
        pause = 0.005
        while True:
            record = self.get_job(job)
            if record.state.final:
                return record
            if deadline is not None and monotonic() >= deadline:
                raise WaitTimeoutError(f"job {_shown(job)!r} is still {record.state} after {timeout}")
            time.sleep(pause * uniform(0.8, 1.2))
            pause = min(pause * 1.5, 0.25)

    # --- helpers ----------------------------------------------------------------------------------------

    def _change(self, statement: str, job: JobRef, **more: Any) -> Mapping[str, Any] | None:
        return self.store.row(statement, {**_reference(job), **more})

    def _find(self, job: JobRef) -> Mapping[str, Any] | None:
        return self.store.row("get_job", _reference(job), retry=True)

    def _live(self, *, name: str, key: str) -> Mapping[str, Any] | None:
        return self.store.row("get_job", {"id": None, "name": name, "key": key}, retry=True)

    def _absent(self, job: JobRef) -> Exception:
        """Why a live job was not found: it has ended, or never was."""
        try:
            record = self.get_job(job)
        except JobNotFoundError as error:
            return error
        return JobNotRunningError(_shown(job), f"job already {record.state}")

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


def _reference(job: JobRef) -> dict[str, Any]:
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


def _record(row: Mapping[str, Any], values: Mapping[str, Any]) -> JobRecord:
    """`insert` answers only what the server decided, `upsert` the whole row: it may keep what was there."""
    return JobRecord.fresh(row, values) if values["key"] is None else JobRecord.from_row(row)


def _shown(job: JobRef) -> Any:
    return job.id if isinstance(job, JobRecord) else job


def _run_filter(**given: Any) -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(("job", "name", "key", "outcome", "token", "since"))
    return {**values, "limit": 50, "offset": 0, **given}


def _page(limit: int, offset: int) -> dict[str, int]:
    return {
        "limit": check.integer("limit", limit, 1, MAX_LIST),
        "offset": check.integer("offset", offset, 0, 10**9),
    }


def _one(
    connection: psycopg.Connection[Any], statement: str, values: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement, values).fetchone()


def _definite(error: BaseException | None) -> bool:
    """Did the server itself refuse the statement? Then nothing was stored, and everybody knows."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    return state is not None and state[:2] not in ("08", "57")


def _looks_dead(connection: psycopg.Connection[Any]) -> bool:
    """An idle connection whose socket has something to read was closed, or told to close, by the server."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _json_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """For json_to_recordset: parameters travel as JSON inside JSON."""
    found = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in values.items()}
    found["parameters"] = None if values["parameters"] is None else load_json(values["parameters"])
    return found


def _copied(text: str | None) -> str:
    """A value in COPY's text format."""
    if text is None:
        return "\\N"
    if "\\" in text or "\t" in text or "\n" in text or "\r" in text:
        return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return text
