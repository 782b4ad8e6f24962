"""The verbs that steer a job which is stored: cancel, delete, pause, resume, trigger, reschedule."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import psycopg
from psycopg.rows import dict_row

from pgscheduler import _check as check
from pgscheduler.errors import InvalidValueError, JobKindError, JobNotRunningError, JobRunningError
from pgscheduler.job import JobConfig
from pgscheduler.records import JobRecord
from pgscheduler.schedule import Cron, Schedule

from ._core import JobRef, reference, refuse_own_schedule, shown
from ._reading import Reading

__all__ = ["Changing"]


class Changing(Reading):
    """Everything that changes a live job."""

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

    def delete(self, job: JobRef, *, history: bool = False) -> Literal["deleted", "requested"]:
        """See `Scheduler.delete`."""
        live = self._find(job)
        if check.boolean("history", history):
            row = self.store.using(lambda c: self._delete_all(c, job), retry=False)
        else:
            row = self._change("delete", job)
        if row is None:
            raise self._absent(job)
        if live is not None:
            self.registry.forget(live["name"], live["key"])
        if row["state"] == "running":
            self.hint("cancel")
            return "requested"
        return "deleted"

    def _delete_all(self, connection: psycopg.Connection[Any], job: JobRef) -> Mapping[str, Any] | None:
        """Both in one transaction; of a job that runs, the history is left to what its run becomes."""
        with connection.transaction(), connection.cursor(row_factory=dict_row) as cursor:
            row = cursor.execute(self.store.sql["delete"], reference(job)).fetchone()
            if row is not None and row["state"] != "running":
                cursor.execute(self.store.sql["delete_history"], {"id": row["id"]})
            return row

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
                raise JobRunningError(shown(job))
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
            refuse_own_schedule(config)
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
            raise JobRunningError(shown(job))
        self.hint("due")
        return JobRecord.from_row(row)
