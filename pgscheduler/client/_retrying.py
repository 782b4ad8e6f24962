"""The verbs that run a finished run's job again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import psycopg

from pgscheduler._store import dump
from pgscheduler.errors import InvalidTypeError, JobNotFoundError, JobRunningError
from pgscheduler.events import StatusChange
from pgscheduler.records import JobRecord, RunRecord

from ._core import reference
from ._reading import run_filter
from ._storing import EMPTY, Storing, one, record_of
from ._updating import Updating

__all__ = ["Retrying"]


class Retrying(Updating, Storing):
    """What has ended, once more."""

    def retry(self, run: RunRecord | str) -> JobRecord:
        """See `Scheduler.retry`."""
        (record,) = self.retry_many([run])
        return record

    def retry_many(self, runs: Iterable[RunRecord | str]) -> list[JobRecord]:
        """See `Scheduler.retry_many`."""
        if isinstance(runs, str | RunRecord) or not isinstance(runs, Iterable):
            raise InvalidTypeError("runs", runs, "must be an iterable of runs or their ids")
        given: dict[int, RunRecord] = {}
        for run in runs:
            found = run if isinstance(run, RunRecord) else self.get_run(run)
            given.setdefault(found.job_id, found)
        if not given:
            return []
        done: dict[int, tuple[JobRecord, bool]] = {}

        def work(connection: psycopg.Connection[Any]) -> None:
            with connection.transaction():
                for job in sorted(given):  # in one order, so that two of us do not wait for each other
                    done[job] = self._again(connection, given[job])

        try:
            self._write(work)
        except _RefusedError as error:
            raise self._refusal(error.values) from None
        self.hint("due")
        for record, new in done.values():
            if new:
                self.on_change(StatusChange(record.id, record.name, record.key, None, record.state))
        return [done[job][0] for job in given]

    def _again(self, connection: psycopg.Connection[Any], run: RunRecord) -> tuple[JobRecord, bool]:
        """The job, and whether it is a new one."""
        sql = self.store.sql
        row = one(connection, sql["trigger"], reference(run.job_id))
        if row is not None:
            return JobRecord.from_row(row), False
        if one(connection, sql["get_job"], reference(run.job_id)) is not None:
            raise JobRunningError(run.job_id)
        last = one(connection, sql["list_runs"], run_filter(job=run.job_id, token=run.token, limit=1))
        if last is None or last["schedule"] is not None:  # forgotten, or a recurring job that was deleted
            raise JobNotFoundError(run.id)
        values = {
            **EMPTY,
            "name": last["name"],
            "key": last["key"],
            "priority": 5,
            "options": last["options"],
            "parameters": None if last["parameters"] is None else dump(last["parameters"]),
        }
        row = one(connection, sql["insert" if last["key"] is None else "upsert"], values)
        if row is None:
            raise _RefusedError(values)
        return record_of(row, values), True


class _RefusedError(Exception):
    """A statement stored nothing. Why can be asked when its connection is free again: the pool may have only one."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
