"""The verbs that only ask: jobs, runs, logs, nodes, figures; and `wait`."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from pgscheduler import _check as check
from pgscheduler.clock import elapsed, monotonic, uniform
from pgscheduler.errors import InvalidValueError, JobNotFoundError, JobNotRunningError, WaitTimeoutError
from pgscheduler.records import JobRecord, LogLine, NodeRecord, RunRecord, run_of
from pgscheduler.states import JobState, Outcome

from ._core import Core, JobRef, reference, shown

__all__ = ["Reading", "run_filter"]

MAX_LIST = 10_000


class Reading(Core):
    """Everything that changes nothing."""

    def get_job(self, job: JobRef) -> JobRecord:
        """See `Scheduler.get_job`."""
        live = self._find(job)
        if live is not None:
            return JobRecord.from_row(live)
        values = reference(job)
        row = self.store.row("get_ended", {**values, "window": self._remember}, retry=True)
        if row is None:
            raise JobNotFoundError(shown(job))
        return JobRecord.from_last_run(row)

    def jobs(
        self,
        *,
        name: str | None = None,
        key: str | None = None,
        state: JobState | str | None = None,
        recurring: bool | None = None,
        due: bool | None = None,
        search: str | None = None,
        template: str | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[JobRecord]:
        """See `Scheduler.jobs`."""
        values = _job_filter(name, key, state, recurring, due, search, template)
        rows = self.store.rows("list_jobs", {**values, **_page(limit, offset)})
        return [JobRecord.from_row(row) for row in rows]

    def count_jobs(
        self,
        *,
        name: str | None = None,
        key: str | None = None,
        state: JobState | str | None = None,
        recurring: bool | None = None,
        due: bool | None = None,
        search: str | None = None,
        template: str | None = None,
    ) -> int:
        """See `Scheduler.count_jobs`."""
        return self._count("count_jobs", _job_filter(name, key, state, recurring, due, search, template))

    def queue_position(self, job: JobRef) -> int | None:
        """See `Scheduler.queue_position`."""
        row = self.store.row("queue_position", reference(job), retry=True)
        return None if row is None else int(row["place"])

    def runs(
        self,
        job: JobRef | None = None,
        *,
        name: str | None = None,
        key: str | None = None,
        outcome: Outcome | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        node: str | None = None,
        template: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> list[RunRecord]:
        """See `Scheduler.runs`."""
        values = _run_filter(job, name, key, outcome, since, until, node, template)
        rows = self.store.rows("list_runs", {**values, **_page(limit, offset)})
        return [RunRecord.from_row(row) for row in rows]

    def count_runs(
        self,
        job: JobRef | None = None,
        *,
        name: str | None = None,
        key: str | None = None,
        outcome: Outcome | str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        node: str | None = None,
        template: str | None = None,
    ) -> int:
        """See `Scheduler.count_runs`."""
        return self._count("count_runs", _run_filter(job, name, key, outcome, since, until, node, template))

    def get_run(self, run_id: str) -> RunRecord:
        """One run by its id; JobNotFoundError if there is none (any more)."""
        try:
            job, token, occurrence = run_of(run_id if isinstance(run_id, str) else "")
        except ValueError:
            raise InvalidValueError("run", run_id, "must be a run's id, as in `job-token`") from None
        except OverflowError:
            raise JobNotFoundError(run_id) from None
        rows = self.store.rows("list_runs", run_filter(job=job, token=token, occurrence=occurrence, limit=1))
        if not rows:
            raise JobNotFoundError(run_id)
        return RunRecord.from_row(rows[0])

    def logs(self, run: RunRecord | str) -> list[LogLine]:
        """What the run logged with `ctx.log`, in order."""
        found = run if isinstance(run, RunRecord) else self.get_run(run)
        rows = self.store.rows("run_logs", {"job": found.job_id, "token": found.token})
        return [
            LogLine(
                row["at"].astimezone(UTC),
                row["level"],
                row["event"],
                row["fields"] if isinstance(row["fields"], dict) else {},
            )
            for row in rows
        ]

    def nodes(self) -> list[NodeRecord]:
        """All nodes that are remembered, newest first."""
        return [NodeRecord.from_row(row) for row in self.store.rows("list_nodes")]

    def ping(self) -> timedelta:
        """See `Scheduler.ping`."""

        def ask(connection: psycopg.Connection[Any]) -> float:
            sent = elapsed()
            connection.execute(self.store.sql["now"])
            return elapsed() - sent

        return timedelta(seconds=self.store.using(ask))

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
                raise WaitTimeoutError(f"job {shown(job)!r} is still {record.state} after {timeout}")
            time.sleep(pause * uniform(0.8, 1.2))
            pause = min(pause * 1.5, 0.25)

    def _count(self, statement: str, values: dict[str, Any]) -> int:
        row = self.store.row(statement, values, retry=True)
        assert row is not None
        return int(row["count"])

    def _absent(self, job: JobRef) -> Exception:
        """Why a live job was not found: it has ended, or never was."""
        try:
            record = self.get_job(job)
        except JobNotFoundError as error:
            return error
        return JobNotRunningError(shown(job), f"job already {record.state}")


def run_filter(**given: Any) -> dict[str, Any]:
    names = ("job", "name", "key", "outcome", "token", "occurrence", "since", "until", "node", "template")
    return {**dict.fromkeys(names), "limit": 50, "offset": 0, **given}


def _job_filter(
    name: str | None,
    key: str | None,
    state: JobState | str | None,
    recurring: bool | None,
    due: bool | None,
    search: str | None,
    template: str | None,
) -> dict[str, Any]:
    return {
        "name": None if name is None else check.name("name", name),
        "key": None if key is None else check.name("key", key),
        "state": None if state is None else check.one_of("state", state, tuple(JobState)),
        "recurring": None if recurring is None else check.boolean("recurring", recurring),
        "due": None if due is None else check.boolean("due", due),
        "search": None if search is None else check.name("search", search),
        "template": None if template is None else check.name("template", template),
    }


def _run_filter(
    job: JobRef | None,
    name: str | None,
    key: str | None,
    outcome: Outcome | str | None,
    since: datetime | None,
    until: datetime | None,
    node: str | None,
    template: str | None,
) -> dict[str, Any]:
    given = {"id": None, "name": None, "key": None} if job is None else reference(job)
    name, key = given["name"] or name, given["key"] or key
    return run_filter(
        job=given["id"],
        name=None if name is None else check.name("name", name),
        key=None if key is None else check.name("key", key),
        outcome=None if outcome is None else check.one_of("outcome", outcome, tuple(Outcome)),
        since=None if since is None else check.instant("since", since),
        until=None if until is None else check.instant("until", until),
        node=None if node is None else _node_id(node),
        template=None if template is None else check.name("template", template),
    )


def _node_id(given: Any) -> str:
    try:
        return str(uuid.UUID(given))
    except (ValueError, TypeError, AttributeError):
        raise InvalidValueError("node", given, "must be a node's id (a UUID)") from None


def _page(limit: int, offset: int) -> dict[str, int]:
    return {
        "limit": check.integer("limit", limit, 1, MAX_LIST),
        "offset": check.integer("offset", offset, 0, 10**9),
    }
