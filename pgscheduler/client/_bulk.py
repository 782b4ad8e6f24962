"""Many jobs in one transaction: `schedule_many` and `enqueue_many`, by COPY where they have no key.

What is copied is checked and written as text while the server stores what came before, so that the two work at the
same time. An error in the last job undoes the first: nothing is stored.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from pgscheduler import _check as check
from pgscheduler._foreign import require_usable
from pgscheduler._json import load_json
from pgscheduler._registry import instantiate
from pgscheduler._sql import SHARED_NAMES
from pgscheduler._store import dump, tuples
from pgscheduler.errors import (
    DuplicateJobError,
    InvalidTypeError,
    InvalidValueError,
    JobKindError,
    JobRunningError,
)
from pgscheduler.job import Job, JobConfig

from ._storing import Storing, one, refusal

__all__ = ["Bulk"]

CHUNK = 5_000  # jobs per statement of the bulk path for jobs with keys
LINES = 1_000  # jobs per message of COPY

#: A one-time job without a key, as it is copied: name, priority, run_at, delay in seconds, parameters, options.
Plain = tuple[str, int, datetime | None, float | None, str | None, str | None]


class Bulk(Storing):
    """The same for many."""

    def schedule_many(self, jobs: Iterable[Job], connection: psycopg.Connection[Any] | None = None) -> int:
        """See `Scheduler.schedule_many`."""
        plain: list[tuple[str, JobConfig]] = []
        keyed: list[dict[str, Any]] = []
        admitted: list[Job] = []
        names: set[str] = set()
        seen: dict[str, type[Job]] = {}
        kinds: dict[str, bool] = {}  # name -> is it recurring?
        keys: set[tuple[str, str]] = set()
        now: datetime | None = None
        for item in jobs:
            job = instantiate(item)
            name, config = job.name, job.config
            recurring = config.schedule is not None
            if kinds.setdefault(name, recurring) != recurring and name not in SHARED_NAMES:
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
            if not recurring:
                names.add(name)
            if not recurring and config.key is None:
                plain.append((name, config))
                continue
            if now is None and recurring:
                now = self.store.now()  # one moment for all of them
            values = self._values(name, config, now)
            if (name, values["key"]) in keys:
                text = f"job {name!r} with key {values['key']!r} is given twice in one schedule_many"
                raise DuplicateJobError(text, name)
            keys.add((name, values["key"]))
            keyed.append(values)
        _require_psycopg(connection, "schedule_many")
        self._store_many(connection, names, keyed, lambda: map(self._plain, plain))
        for job in admitted:
            self.registry.adopt(job, certain=connection is None)
        return len(plain) + len(keyed)

    def enqueue_many(
        self,
        name: str,
        parameters: Iterable[Any],
        *,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        priority: int = 5,
        connection: psycopg.Connection[Any] | None = None,
    ) -> int:
        """See `Scheduler.enqueue_many`."""
        name = check.name("name", name)
        config = JobConfig(name=name, run_at=run_at, delay=delay, priority=priority)
        if isinstance(parameters, str | bytes | Mapping) or not isinstance(parameters, Iterable):
            raise InvalidTypeError(
                "parameters", parameters, "must be an iterable: the parameters of each job"
            )
        given = list(parameters)  # here, so that no transaction is open while a generator takes its time
        _require_psycopg(connection, "enqueue_many")
        seconds = None if config.delay is None else config.delay.total_seconds()
        ask = self.asks(name)

        def row(number: int, each: Any) -> Plain:
            try:
                text = self.check_parameters(each, None)
                if ask:
                    self.check_fit(name, None, each)
            except (InvalidTypeError, InvalidValueError) as error:
                raise type(error)(f"parameters[{number}]", error.value, error.rule) from None
            return name, config.priority, config.run_at, seconds, text, None

        if given:
            self._store_many(connection, {name}, [], lambda: itertools.starmap(row, enumerate(given)))
        return len(given)

    def _plain(self, job: tuple[str, JobConfig]) -> Plain:
        name, config = job
        text = self.check_parameters(config.parameters, config.parameters_schema)
        seconds = None if config.delay is None else config.delay.total_seconds()
        return name, config.priority, config.run_at, seconds, text, config.options_json()

    def _store_many(
        self,
        connection: psycopg.Connection[Any] | None,
        names: set[str],
        keyed: list[dict[str, Any]],
        plain: Callable[[], Iterator[Plain]],
    ) -> None:
        """All of them in one transaction; `names` are those of one-time jobs. `plain` may be asked twice, if a
        connection turns out to be dead."""

        def write(connection: psycopg.Connection[Any]) -> int:
            with connection.transaction():
                self._refuse_recurring(connection, names)
                transaction = self._copy(connection, plain())
                for start in range(0, len(keyed), CHUNK):
                    self._upsert(connection, keyed[start : start + CHUNK])
                return transaction

        if connection is not None:
            if not connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE:
                # The caller's transaction begins here. Else ours would be all of it, and would be committed.
                tuples(connection).execute("select")
            self.notifier.watch(write(connection))
        else:
            self._write(write)
            self.hint("due")

    def _refuse_recurring(self, connection: psycopg.Connection[Any], names: set[str]) -> None:
        statement = self.store.sql["recurring_names"]
        found = tuples(connection).execute(statement, {"names": sorted(names)}).fetchone() if names else None
        if found is not None:
            text = f"job {found[0]!r} is recurring; a one-time job may not share its name"
            raise JobKindError(text, found[0])

    def _upsert(self, connection: psycopg.Connection[Any], chunk: list[dict[str, Any]]) -> None:
        values = {"jobs": dump([_json_values(v) for v in chunk]), "table": self.names.table("jobs")}
        rows = tuples(connection).execute(self.store.sql["upsert_many"], values).fetchall()
        stored = {(name, key) for _, name, key in rows}
        for value in chunk:
            name, key = value["name"], value["key"]
            if (name, key) not in stored:
                # Asked here, where also a job of the caller's own transaction can be seen.
                live = one(connection, self.store.sql["get_job"], {"id": None, "name": name, "key": key})
                if live is None and value["schedule"] is None:
                    # It ran until just now: if the name were of the other kind, it would have been refused before.
                    raise JobRunningError((name, key))
                raise refusal(value, live)

    def _copy(self, connection: psycopg.Connection[Any], rows: Iterator[Plain]) -> int:
        """COPY the rows, if there are any; returns the transaction's id."""
        found = tuples(connection).execute(self.store.sql["begun"]).fetchone()
        assert found is not None
        now, transaction = found[0].astimezone(UTC), found[1]
        lines = _lines(now, rows)
        first = next(lines, None)
        if first is not None:
            with tuples(connection).copy(self.store.sql["copy_jobs"]) as copy:
                copy.write(first)
                for more in lines:
                    copy.write(more)
        return int(transaction)


def _lines(now: datetime, rows: Iterator[Plain]) -> Iterator[str]:
    """The rows in COPY's text format, `LINES` at a time."""
    stamp = now.isoformat()
    lines: list[str] = []
    for name, priority, run_at, delay, parameters, options in rows:
        due = stamp
        if run_at is not None:
            due = run_at.isoformat()
        elif delay is not None:
            due = (now + timedelta(seconds=delay)).isoformat()
        lines.append(
            f"{_copied(name)}\t{priority}\t{due}\t{due}\t{stamp}\t{_copied(parameters)}\t{_copied(options)}\n"
        )
        if len(lines) >= LINES:
            yield "".join(lines)
            lines.clear()
    if lines:
        yield "".join(lines)


def _require_psycopg(connection: Any, verb: str) -> None:
    if connection is not None and not isinstance(connection, psycopg.Connection):
        raise InvalidTypeError("connection", connection, f"must be a psycopg Connection for {verb}")
    require_usable(connection)


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
