"""The verb that changes what a stored job says: `update`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from pgscheduler._declared import MARK
from pgscheduler._json import dump_json, load_json
from pgscheduler._marks import check_marks, doubtful, revealed
from pgscheduler._registry import plain_parameters
from pgscheduler._schema import check_parameters
from pgscheduler.errors import (
    InvalidTypeError,
    InvalidValueError,
    JobKindError,
    JobNotFoundError,
    JobRunningError,
)
from pgscheduler.job import JobConfig, policy_of
from pgscheduler.records import TEMPLATE, JobRecord
from pgscheduler.schedule import Cron, Schedule

from ._changing import Changing
from ._core import JobRef, refuse_own_schedule, shown

__all__ = ["Updating"]

#: The policies that a row carries in `options`.
POLICIES = frozenset(
    ("backoff", "catchup", "expires_in", "isolation", "jitter", "max_stalls", "metadata", "misfire",
     "misfire_grace", "retries", "timeout")
)  # fmt: skip


class Updating(Changing):
    """Changes what is given, and nothing else."""

    def update(
        self,
        job: JobRef,
        *,
        schedule: str | Schedule | None = None,
        parameters: Any = ...,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        **policies: Any,
    ) -> JobRecord:
        """See `Scheduler.update`."""
        _refuse_unknown(policies)
        wanted = _checked(schedule, priority, run_at, delay, policies)
        if not policies and parameters is ... and (schedule, priority, run_at, delay) == (None,) * 4:
            raise InvalidValueError("changes", {}, "must hold at least one")
        text = (
            None if parameters is ... else dump_json("parameters", plain_parameters(parameters), self._limit)
        )
        while True:
            live = self._find(job)
            if live is None:
                raise JobNotFoundError(shown(job))
            _refuse_kind(live, wanted)
            if text is not None:
                if doubtful(text):
                    check_marks("parameters", load_json(text))
                self._validate(live, load_json(text))
            options = self._merged(live, wanted, policies)
            values = {
                "id": live["id"],
                "priority": priority,
                "parametrized": text is not None,
                "parameters": None if text == "{}" else text,
                "known": live["options"],
                "options": options,
                "schedule": None,
                "scheduled_at": None,
                "run_at": wanted.run_at,
                "delay": None if wanted.delay is None else wanted.delay.total_seconds(),
            }
            if wanted.schedule is not None:
                values |= self._moved(live, wanted, options)
            row = self.store.row("update", values, retry=True)  # saying it twice changes nothing
            if row is not None:
                self.hint("due")
                return JobRecord.from_row(row)
            # Nobody runs it: then somebody changed its policies between our look and our write. That change stays,
            # and ours goes on top of it.
            live = self._find(live["id"])
            if live is not None and _busy(live):
                raise JobRunningError(shown(job))

    def _merged(self, live: Mapping[str, Any], wanted: JobConfig, policies: Mapping[str, Any]) -> str | None:
        """The job's policies with those that are given, as text in the one order that `JobConfig` writes."""
        if not policies:
            return live["options"]  # type: ignore[no-any-return]
        text = live["options"]
        if text is None:
            # Until now they were those of whatever class runs it. As far as this process knows it, they stay so.
            entry = self.registry.find(live["name"], live["key"])
            text = "{}" if entry is None else entry.config.options_json()
        found, given = json.loads(text), json.loads(wanted.options_json())
        kept = {k: v for k, v in found.get("metadata", {}).items() if k in (MARK, TEMPLATE)}
        for name in policies:
            found.pop(name, None)
            if name in given:
                found[name] = given[name]
        if kept:  # who declared the job still owns it; what it was made from stays known
            found["metadata"] = {**found.get("metadata", {}), **kept}
        return json.dumps(found, allow_nan=False, separators=(",", ":"), sort_keys=True)

    def _moved(self, live: Mapping[str, Any], wanted: JobConfig, options: str | None) -> dict[str, Any]:
        """The first occurrence of another schedule."""
        assert wanted.schedule is not None
        first = wanted.schedule.next_after(self.store.now())
        if first is None:
            raise InvalidValueError("schedule", wanted.schedule, "has no occurrence left")
        offset = self._jitter({**live, "options": options}, first)
        return {"schedule": wanted.schedule_json(), "scheduled_at": first, "run_at": first + offset}

    def _validate(self, live: Mapping[str, Any], parameters: Any) -> None:
        """By the schema that is stored with the job, and by what this process knows of its name."""
        schema = None if live["options"] is None else policy_of(live["options"]).parameters_schema
        if schema is not None:
            check_parameters(schema, revealed(parameters))
        self.check_fit(live["name"], live["key"], parameters)


def _refuse_unknown(policies: Mapping[str, Any]) -> None:
    for name, value in policies.items():
        if name in ("name", "key"):
            raise InvalidValueError(name, value, "cannot be changed: it says which job it is")
        if name == "parameters_schema":
            raise InvalidValueError(name, value, "cannot be changed: it comes with the class")
        if name not in POLICIES:
            raise InvalidTypeError(name, value, "is not something that a job has")


def _checked(
    schedule: str | Schedule | None,
    priority: int | None,
    run_at: datetime | None,
    delay: timedelta | None,
    policies: Mapping[str, Any],
) -> JobConfig:
    """What is given, checked as for a new job."""
    given: dict[str, Any] = {"priority": priority, "run_at": run_at, "delay": delay}
    given["schedule"] = Cron(schedule) if isinstance(schedule, str) else schedule
    config = JobConfig(**{name: value for name, value in given.items() if value is not None}, **policies)
    if schedule is not None:
        refuse_own_schedule(config)
    return config


def _refuse_kind(live: Mapping[str, Any], wanted: JobConfig) -> None:
    if live["schedule"] is None and wanted.schedule is not None:
        raise JobKindError(f"job {live['name']!r} is one-time; give run_at or delay", live["name"])
    for once in ("run_at", "delay", "expires_in"):
        value = getattr(wanted, once)
        if live["schedule"] is not None and value is not None:
            raise InvalidValueError(once, value, "is for one-time jobs; this one has a schedule")


def _busy(live: Mapping[str, Any]) -> bool:
    """As `update.sql` sees it."""
    return live["state"] == "running" or live["after_run"] == "delete" or live["completed_at"] is not None
