"""The verb that stores a recurring job by its name: `schedule_by_name`."""

from __future__ import annotations

from typing import Any

from pgscheduler import _check as check
from pgscheduler._store import dump
from pgscheduler.errors import DuplicateJobError, InvalidValueError
from pgscheduler.events import StatusChange
from pgscheduler.job import JobConfig
from pgscheduler.records import JobRecord
from pgscheduler.schedule import Cron, Schedule

from ._core import refuse_own_schedule
from ._storing import IF_EXISTS, ROUNDS, IfExists, Storing, one
from ._updating import Updating

__all__ = ["Naming"]


class Naming(Updating, Storing):
    """Recurring jobs from a process that lacks their class."""

    def schedule_by_name(
        self,
        name: str,
        schedule: str | Schedule,
        parameters: Any = ...,
        *,
        key: str | None = None,
        priority: int | None = None,
        paused: bool = False,
        if_exists: IfExists = "error",
        **policies: Any,
    ) -> JobRecord:
        """See `Scheduler.schedule_by_name`."""
        check.boolean("paused", paused)
        check.one_of("if_exists", if_exists, IF_EXISTS)
        given: dict[str, Any] = dict(policies)
        if parameters is not ...:
            given["parameters"] = parameters
        if priority is not None:
            given["priority"] = priority
        wanted = Cron(schedule) if isinstance(schedule, str) else schedule
        name = check.name("name", name)
        config = JobConfig(name=name, key=key, schedule=wanted, **given)
        refuse_own_schedule(config)
        values = self._values(name, config)
        try:
            self.check_fit(values["name"], values["key"], config.parameters)
        except InvalidValueError:
            # What is not given changes nothing of a job that is there.
            left = parameters is ... and if_exists != "error"
            if not left or self._live(name=values["name"], key=values["key"]) is None:
                raise
        row = {
            **{column: values[column] for column in ("name", "key", "priority", "parameters", "schedule")},
            **{column: values[column].isoformat() for column in ("run_at", "scheduled_at")},
            "options": values["options"] if policies else None,  # else those of the class that runs it
            "paused": paused,
        }
        statement = self.store.sql["declare_create"]
        for _ in range(ROUNDS):
            made = self._write(lambda c: one(c, statement, {"jobs": dump([row])}))
            if made is not None:
                self.hint("due")
                record = self.get_job(made["id"])
                self.on_change(StatusChange(record.id, record.name, record.key, None, record.state))
                return record
            live = self._live(name=values["name"], key=values["key"])
            if live is None:
                continue  # deleted between the two, or the name is of one-time jobs
            if live["schedule"] is None:
                break
            if if_exists == "error":
                text = f"job {values['name']!r} with key {values['key']!r} exists already"
                raise DuplicateJobError(text, values["name"])
            if if_exists == "keep":
                return JobRecord.from_row(live)
            record = self.update(live["id"], schedule=wanted, **given)
            return self.pause(record) if paused else record
        raise self._refusal(values)
