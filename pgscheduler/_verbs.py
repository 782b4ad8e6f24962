"""The verbs with their promises: what a `Scheduler` says about jobs. Each is done by the client, which users never see.

To add a verb: write it in `client/`, and its signature with its docstring here.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar, cast

import psycopg

from ._declared import Definitions, Plan
from .client import Client, IfExists, JobRef
from .job import Job
from .records import JobRecord, LogLine, NodeRecord, RunRecord
from .schedule import Schedule
from .states import JobState, Outcome
from .templates import Templates

__all__ = ["Verbs", "initialized"]

F = TypeVar("F", bound=Callable[..., Any])


def initialized(method: F) -> F:
    """The verb needs `init()`, this process, and a scheduler that is not shut down."""

    @functools.wraps(method)
    def wrapped(self: Verbs, *args: Any, **kwargs: Any) -> Any:
        self._require_open(method.__name__)
        return method(self, *args, **kwargs)

    return cast(F, wrapped)


class Verbs(ABC):
    """Everything that can be said about jobs; the half of `Scheduler` that runs nothing."""

    _client: Client

    @abstractmethod
    def _require_open(self, verb: str) -> None:
        """Raise `SchedulerStateError` unless this is the moment for it."""

    @abstractmethod
    def _learned(self) -> None:
        """A name became known that was not."""

    @property
    def templates(self) -> Templates:
        """The job templates, and jobs made from them."""
        return Templates(self._client, self._require_open)

    @initialized
    def schedule(self, job: Job, connection: Any = None, *, if_exists: IfExists = "update") -> Any:
        """Store a job and register its class; returns its `JobRecord`.

        A recurring job is stored once per (name, key): again with an unchanged definition changes nothing, so
        a redeploy postpones nothing; a changed one takes effect at once. A one-time job with a key replaces
        the pending one of that key. `if_exists="keep"` leaves a job that exists as it is, whatever somebody made
        of it with `update` or `pause`, and returns it; `"error"` raises `DuplicateJobError`. See `enqueue`.

        A name is of one kind: `JobKindError` if jobs with a key say that it is of the other. One-time jobs without
        a key that already wait under a name that becomes recurring are not looked for; they run. The shipped kinds
        (`http_job`, `call_job`, `shell_job`) are of both: there only a name and a key are of one.

        With `connection` (psycopg `Connection` or `AsyncConnection`, SQLAlchemy `Connection` or `Session` and
        their async kin, Django's) the job is part of the caller's transaction. With an async one the answer
        must be awaited.

        It returned: stored. It raised: not stored. Except `ScheduleUnknownError`: try again with a key.
        Raises `JobRunningError`, `JobKindError`, `DuplicateJobError`, `DatabaseUnavailableError`.
        """
        known = len(self._client.registry)
        record = self._client.schedule(job, connection, if_exists=if_exists)
        if len(self._client.registry) != known:
            self._learned()
        return record

    @initialized
    def schedule_many(self, jobs: Iterable[Job], connection: psycopg.Connection[Any] | None = None) -> int:
        """Store many jobs in one transaction, by COPY where they have no key; returns how many. All or none."""
        return self._client.schedule_many(jobs, connection)

    @initialized
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
        """Store a one-time job for each of the `parameters`, in one transaction by COPY; returns how many. All or none.

        For jobs of one name without keys, the fastest way in: no `Job` and no `JobConfig` is made for each. Policies are
        those of the class that runs them. See `enqueue`.
        """
        return self._client.enqueue_many(
            name, parameters, run_at=run_at, delay=delay, priority=priority, connection=connection
        )

    @initialized
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
        """Store a one-time job by name, from a process that need not have its class.

        Without `policies` (retries, timeout, …) those of the class that runs it apply. Its `parameters_schema` is asked
        here too if this process has registered the class, so that wrong parameters are not stored. See `schedule`.

        `if_exists` says what happens when there is a live job of that name and `key`. `"update"`: it becomes this
        one, if it waits; `JobRunningError` if it runs. `"keep"`: it stays as it is, also if it runs, and is returned:
        at most one at a time. `"error"`: `DuplicateJobError`, also if such a one-time job has ended within
        `failed_and_completed_one_time_job_interval` (1 h), so that the key makes a request that is sent twice
        harmless; it looks through the history of that time. None of them can be outrun by another process.
        """
        return self._client.enqueue(
            name,
            parameters,
            key=key,
            run_at=run_at,
            delay=delay,
            priority=priority,
            connection=connection,
            if_exists=if_exists,
            **policies,
        )

    @initialized
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
        """Store a recurring job by name, from a process that need not have its class: what `enqueue` is for others.

        `schedule` is a cron line in UTC, `Cron` or `Every`. `paused`: it waits for `resume`. If there is a job of
        this name and key, `error` raises `DuplicateJobError`, `keep` returns it as it is, `update` changes what is
        given, as the verb of that name. Without `policies` those of the class that runs it apply.

        Raises `JobKindError`, `InvalidValueError`, `InvalidTypeError`, `DatabaseUnavailableError`: not stored.
        """
        return self._client.schedule_by_name(
            name,
            schedule,
            parameters,
            key=key,
            priority=priority,
            paused=paused,
            if_exists=if_exists,
            **policies,
        )

    @initialized
    def trigger(self, job: JobRef) -> JobRecord:
        """Make a job due now. A recurring one keeps its schedule; a paused one runs once."""
        return self._client.trigger(job)

    @initialized
    def cancel(self, job: JobRef) -> Literal["cancelled", "requested"]:
        """Cancel: `"cancelled"` if the one-time job had not started, `"requested"` if it runs.

        A running job is asked to stop and ends as cancelled, without retry; a recurring one comes back at its
        next occurrence. Raises `JobNotFoundError`; `JobNotRunningError` if it has ended, or is a recurring
        job between two runs (pause or delete that).
        """
        return self._client.cancel(job)

    @initialized
    def pause(self, job: JobRef) -> JobRecord:
        """Claim it no more until `resume`. A run in progress goes on to its end."""
        return self._client.pause(job)

    @initialized
    def resume(self, job: JobRef) -> JobRecord:
        """Go on. A recurring job continues with its next occurrence from now."""
        return self._client.resume(job)

    @initialized
    def delete(self, job: JobRef, *, history: bool = False) -> Literal["deleted", "requested"]:
        """Remove a job for good; its history stays. A running one is asked to stop and goes when it has.

        With `history=True` its runs and their logs go too, unless it runs.
        """
        return self._client.delete(job, history=history)

    @initialized
    def reschedule(
        self,
        job: JobRef,
        *,
        run_at: datetime | None = None,
        delay: timedelta | None = None,
        schedule: str | Schedule | None = None,
    ) -> JobRecord:
        """Another time for a one-time job, another schedule for a recurring one. Not while it runs."""
        return self._client.reschedule(job, run_at=run_at, delay=delay, schedule=schedule)

    @initialized
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
        """Change a job that waits or is paused; what is not given stays as it is.

        `schedule` (a cron line in UTC, `Cron` or `Every`) is for recurring jobs: the next occurrence is computed
        anew, from now; an unchanged one keeps it. `run_at` and `delay` are for one-time jobs. Either also forgets
        failures that were counted. `policies` are those of `JobConfig`: `retries`, `timeout`, `metadata` (as a
        whole), … Of a job that has none of its own, because it was enqueued without, the others become those of
        the class if this process knows it, else the defaults.

        A program that says `schedule(job)` when it starts brings back what it says; see `if_exists` there.

        Raises `JobNotFoundError` if it does not live (any more), `JobRunningError`, `JobKindError`,
        `InvalidValueError`, `InvalidTypeError`, `DatabaseUnavailableError`: nothing was changed.
        """
        return self._client.update(
            job,
            schedule=schedule,
            parameters=parameters,
            priority=priority,
            run_at=run_at,
            delay=delay,
            **policies,
        )

    @initialized
    def retry(self, run: RunRecord | str) -> JobRecord:
        """Run the job of a finished run again: as a new job with the same parameters if its own is gone."""
        return self._client.retry(run)

    @initialized
    def retry_many(self, runs: Iterable[RunRecord | str]) -> list[JobRecord]:
        """`retry` for many, in one transaction: all or none. A job of which several runs are given runs once.

        Returns the jobs, in the order in which they are given first. Raises what `retry` raises, for the first that
        cannot be: `JobRunningError`, `JobNotFoundError`.
        """
        return self._client.retry_many(runs)

    @initialized
    def plan(self, definitions: Definitions) -> Plan:
        """What `apply` would do; changes nothing. See `pgscheduler.definitions` for how to get definitions."""
        return self._client.plan(definitions)

    @initialized
    def apply(
        self,
        definitions: Definitions,
        *,
        retire: bool | Collection[int] = True,
        wait: timedelta | float = 10.0,
    ) -> Plan:
        """Make the recurring jobs of a source what it declares, in one transaction; returns what was done.

        Missing jobs are created, others changed; an unchanged schedule keeps its next occurrence, so applying
        twice changes nothing and postpones nothing. What the source no longer declares is retired: deleted, as
        `delete` does, its history stays. `retire=False` leaves it, a collection of ids allows only those. Jobs
        that no earlier apply of this source created are never touched.

        A job that must change and runs is waited for, for `wait` (10 s: enough for jobs of each second, which
        are rarely between two runs at the right moment). Raises `JobRunningError` after that,
        `DuplicateJobError` if a declared job exists and is not this source's, `JobKindError`,
        `InvalidValueError`, `DatabaseUnavailableError`: nothing was changed. After `ScheduleUnknownError`
        apply again.
        """
        return self._client.apply(definitions, retire=retire, wait=wait)

    @initialized
    def get_job(self, job: JobRef) -> JobRecord:
        """One job, live or finished; `JobNotFoundError`.

        `job` is an id, a `JobRecord`, a `(name, key)`, or the name of a recurring job.
        """
        return self._client.get_job(job)

    @initialized
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
        """Live jobs, newest first. Finished one-time jobs are in `runs`.

        `due`: True for those that wait and whose time has come, False for all others. `search`: a part of the name
        or the key, in any case of letters. `template`: made from the one with this code. At most 10,000 at once.
        """
        return self._client.jobs(
            name=name,
            key=key,
            state=state,
            recurring=recurring,
            due=due,
            search=search,
            template=template,
            limit=limit,
            offset=offset,
        )

    @initialized
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
        """How many live jobs `jobs` with these filters would list. It reads them all: not for each request."""
        return self._client.count_jobs(
            name=name, key=key, state=state, recurring=recurring, due=due, search=search, template=template
        )

    @initialized
    def queue_position(self, job: JobRef) -> int | None:
        """Which place a pending job has among those that wait, from 1; None if it is unknown, runs, is paused or ended.

        In the order of claims: due jobs by priority, then time; behind them the one-time jobs of the future, by
        time. It counts jobs of all names, also of those that no node here runs.
        """
        return self._client.queue_position(job)

    @initialized
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
        """History, newest first: what ended at `since` or later, and before `until`; `node`: on that one, by its id.

        `template`: of jobs made from the one with this code. At most 10,000 at once.
        """
        return self._client.runs(
            job,
            name=name,
            key=key,
            outcome=outcome,
            since=since,
            until=until,
            node=node,
            template=template,
            limit=limit,
            offset=offset,
        )

    @initialized
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
        """How many lines of history `runs` with these filters would list. It reads them all: give it a `since`."""
        return self._client.count_runs(
            job, name=name, key=key, outcome=outcome, since=since, until=until, node=node, template=template
        )

    @initialized
    def get_run(self, run: str) -> RunRecord:
        """One line of history, by its id; `JobNotFoundError` if there is none (any more)."""
        return self._client.get_run(run)

    @initialized
    def logs(self, run: RunRecord | str) -> list[LogLine]:
        """What a run said with `ctx.log`."""
        return self._client.logs(run)

    @initialized
    def nodes(self) -> list[NodeRecord]:
        """All nodes that are remembered, living or gone, newest first."""
        return self._client.nodes()

    @initialized
    def ping(self) -> timedelta:
        """Ask the database for the time: how long one round trip took. For health checks; it opens no transaction.

        Raises `DatabaseUnavailableError` if it is away, `SchemaError` if our tables are. A server that is cut off
        is given up after `connect_timeout` (5 s), a connection that it already had after 10 s at most.
        """
        return self._client.ping()

    @initialized
    def wait(self, job: JobRef, timeout: timedelta | float | None = None) -> JobRecord:
        """Wait until a one-time job has ended, on whichever node; `WaitTimeoutError` after `timeout`."""
        return self._client.wait(job, timeout)
