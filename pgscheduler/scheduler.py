"""The Scheduler: the verbs, and the life of one node from `init()` to `shutdown()`."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from types import FrameType, TracebackType
from typing import Any, Literal, Self, TypeVar, cast

import psycopg
import structlog

from . import _check as check
from . import _migrate
from ._node import MARGIN, Node, PassSummary
from ._registry import Registry
from ._sql import Names
from ._store import Store
from ._subscribers import Subscribers
from .client import Client, JobRef
from .clock import monotonic
from .config import SchedulerConfig
from .errors import InvalidTypeError, SchedulerStateError
from .events import Subscriber
from .job import Job
from .records import JobRecord, LogLine, NodeRecord, RunRecord
from .schedule import Schedule
from .states import JobState, Outcome

__all__ = ["PassSummary", "Scheduler"]

F = TypeVar("F", bound=Callable[..., Any])


def _initialized(method: F) -> F:
    """The verb needs `init()`, this process, and a scheduler that is not shut down."""

    @functools.wraps(method)
    def wrapped(self: Scheduler, *args: Any, **kwargs: Any) -> Any:
        self._require_open(method.__name__)
        return method(self, *args, **kwargs)

    return cast(F, wrapped)


class Scheduler:
    """One node: it knows some jobs by name, runs those that are due, and speaks the verbs.

    ::

        with Scheduler(config) as scheduler:      # init() … shutdown()
            scheduler.schedule(DailyReport())
            scheduler.start()
            scheduler.wait_for_signal()

    Without `start()` it is a client: it schedules and asks, and runs nothing. All methods may be called from
    any thread.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        if not isinstance(config, SchedulerConfig):
            # Only its type: what was handed in instead is often a DSN.
            raise InvalidTypeError("config", type(config), "must be a SchedulerConfig")
        self.config = config
        self.id = str(uuid.uuid4())
        self._pid = os.getpid()
        self._name = f"pgscheduler-{self.id[:8]}"
        logger = config.logger if config.logger is not None else structlog.get_logger("pgscheduler")
        self.log = logger.bind(node=self.id) if hasattr(logger, "bind") else logger
        self._state: Literal["new", "ready", "started", "stopping", "stopped"] = "new"
        self._state_lock = threading.RLock()
        self._registry = Registry()
        seconds = config.heartbeat_interval.total_seconds()
        self._store = Store(
            config.conninfo,
            Names(config.schema, config.table_prefix),
            application=f"pgscheduler/{self.id[:8]}",
            pool=config.pool,
            pool_size=config.pool_size,
            prepared=config.prepared_statements,
            connect_timeout=config.connect_timeout.total_seconds(),
            # A dead network must be found well within a heartbeat.
            tcp_user_timeout=min(max(seconds / 2, 1.0), 10.0),
        )
        self._client = Client(
            self._store,
            self._registry,
            self.log,
            name=self._name,
            debounce=config.notification_debounce_interval.total_seconds(),
            max_parameters_bytes=config.max_parameters_bytes,
            remember_finished=config.failed_and_completed_one_time_job_interval.total_seconds(),
        )
        self._client.on_hint = self._on_hint
        self._subscribers = Subscribers(self._name, self.log)
        self._client.on_change = self._subscribers.emit
        self._node = Node(
            config,
            self.id,
            self._name,
            self._store,
            self._registry,
            self.log,
            self._client.hint,
            self._farewell,
        )
        _forkable.add(self)

    # --- life -------------------------------------------------------------------------------------------

    def init(self) -> None:
        """Open the database: check the schema, or create and upgrade it with `create_schema=True`.

        Raises `SchemaError`, `DatabaseUnavailableError`, or `SchedulerStateError` the second time.
        """
        with self._state_lock:
            self._require_process()
            if getattr(multiprocessing.current_process(), "_inheriting", False):
                # Else the process of an isolated job would become a node of its own instead of running it.
                raise SchedulerStateError(
                    "a process job's own process is importing this program's main module, which makes a scheduler: "
                    'put that under `if __name__ == "__main__":`'
                )
            if self._state != "new":
                raise SchedulerStateError(
                    "scheduler is already initialized"
                    if self._state != "stopped"
                    else "scheduler was shut down"
                )
            connection = self._store.connect()
            try:
                connection.prepare_threshold = None  # migrations hold many statements each
                if self.config.prepared_statements:  # else a pooler may hand the setting to somebody else
                    connection.execute(
                        "select set_config('lock_timeout', '0', false)"
                    )  # eight nodes may queue
                if self.config.create_schema:
                    done = _migrate.migrate(connection, self._store.names)
                    if done:
                        self.log.info("schema migrated", migrations=done)
                _migrate.check(connection, self._store.names)
            finally:
                connection.close()
            self._store.open()
            self._state = "ready"

    def start(self) -> None:
        """Start to run jobs. Raises `SchedulerStateError` before `init()`, twice, or after `shutdown()`."""
        with self._state_lock:
            self._require_open("start")
            if self._state != "ready":
                raise SchedulerStateError("scheduler is already started")
            self._state = "started"
            self._node.start()
            _at_exit.add(self)
            self.log.info(
                "scheduler started", slots=self.config.max_concurrent_jobs, names=len(self._registry)
            )

    def shutdown(self, timeout: timedelta | float | None = None) -> bool:
        """Stop: claim nothing more, ask running jobs to stop, wait for them, record what ends in time.

        `timeout` (default: the config's `shutdown_timeout`) bounds the wait; the call returns within a second
        after it, whatever jobs do and wherever the database is. True: everything ended and is recorded.
        False: some jobs went on, and are named in the log. Their heartbeats go on too, and their outcomes are
        still written if this process lives long enough; at its exit they are given back. A second call, or
        one before `start()`, does no harm.
        """
        seconds = self.config.shutdown_timeout.total_seconds()
        if timeout is not None:
            seconds = check.duration("timeout", timeout, zero=True).total_seconds()
        with self._state_lock:
            if self._pid != os.getpid():
                return True  # the parent's loops do not exist here; its rows are not ours to touch
            previous, self._state = self._state, "stopping"
            if previous in ("stopping", "stopped"):
                self._state = previous
                return len(self._node.ledger) == 0
            if previous != "started":
                self._subscribers.close()
                self._close(monotonic() + seconds + MARGIN, self._client.notifier.close)
                self._state = "stopped"
                return True
        clean = self._node.stop(seconds)
        self._subscribers.close()
        self._state = "stopped"
        return clean

    def _farewell(self, deadline: float) -> None:
        """Every run has ended and is recorded."""

        def last_words() -> None:
            with contextlib.suppress(Exception):
                self._store.row("node_stop", {"id": self.id})
            self._client.notifier.close()

        self._close(deadline, last_words)
        _at_exit.discard(self)

    def _close(self, deadline: float, first: Callable[[], None]) -> None:
        """The last words to the database, which may be gone or hang: on a thread that nobody has to wait for."""

        def close() -> None:
            first()
            self._store.close()

        closing = threading.Thread(target=close, name=f"{self._name}-closing", daemon=True)
        closing.start()
        closing.join(max(deadline - monotonic(), 0.01))
        self._registry.clear()

    def abandon(self) -> int:
        """Give back the jobs of runs that outlived `shutdown()`; returns how many.

        Only for a process that is about to end in the same instant: their code still runs.
        """
        return self._node.abandon() if self._pid == os.getpid() else 0

    def wait_for_signal(self) -> bool:
        """Block until SIGINT or SIGTERM, then `shutdown()`; a second signal ends the process at once.

        Call it from the main thread. The previous handlers are restored. Returns what `shutdown()` did.
        """
        received: list[int] = []
        read, write = os.pipe()

        def handler(number: int, _frame: FrameType | None) -> None:
            # No lock may be taken here: this runs between any two bytecodes of the main thread.
            received.append(number)
            if len(received) > 1:
                os.write(2, b"pgscheduler: second signal, exiting now\n")
                os._exit(130)

        # Written to by the C handler: a Python one comes too late for a read that is just about to begin, and a
        # signal that another thread receives does not interrupt it.
        os.set_blocking(write, False)
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not received:
                os.read(read, 64)
            self.log.info("signal received, shutting down", signal=signal.Signals(received[0]).name)
            return self.shutdown()
        finally:
            for number, old in previous.items():
                signal.signal(number, old)
            signal.set_wakeup_fd(wakeup)
            os.close(read)
            os.close(write)

    def __enter__(self) -> Self:
        self.init()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    # --- jobs -------------------------------------------------------------------------------------------

    @_initialized
    def register(self, job: type[Job] | Job) -> str:
        """Make this node able to run a job; returns its name. A class is instantiated once, here.

        May be called before and after `start()`. Raises `DuplicateJobError` if another class or instance has
        the name.
        """
        name = self._registry.register(job)
        if self._state == "started":
            self._node.learned()
        return name

    @_initialized
    def schedule(self, job: Job, connection: Any = None) -> Any:
        """Store a job and register its class; returns its `JobRecord`.

        A recurring job is stored once per (name, key): again with an unchanged definition changes nothing, so
        a redeploy postpones nothing; a changed one takes effect at once. A one-time job with a key replaces
        the pending one of that key.

        With `connection` (psycopg `Connection` or `AsyncConnection`, SQLAlchemy `Connection` or `Session` and
        their async kin, Django's) the job is part of the caller's transaction. With an async one the answer
        must be awaited.

        It returned: stored. It raised: not stored. Except `ScheduleUnknownError`: try again with a key.
        Raises `JobRunningError`, `JobKindError`, `DuplicateJobError`, `DatabaseUnavailableError`.
        """
        known = len(self._registry)
        record = self._client.schedule(job, connection)
        if self._state == "started" and len(self._registry) != known:
            self._node.learned()
        return record

    @_initialized
    def schedule_many(self, jobs: Iterable[Job], connection: psycopg.Connection[Any] | None = None) -> int:
        """Store many jobs in one transaction, by COPY where they have no key; returns how many. All or none."""
        return self._client.schedule_many(jobs, connection)

    @_initialized
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
        """Store a one-time job by name, from a process that need not have its class.

        Without `policies` (retries, timeout, …) those of the class that runs it apply. See `schedule`.
        """
        return self._client.enqueue(
            name,
            parameters,
            key=key,
            run_at=run_at,
            delay=delay,
            priority=priority,
            connection=connection,
            **policies,
        )

    @_initialized
    def trigger(self, job: JobRef) -> JobRecord:
        """Make a job due now. A recurring one keeps its schedule; a paused one runs once."""
        return self._client.trigger(job)

    @_initialized
    def cancel(self, job: JobRef) -> Literal["cancelled", "requested"]:
        """Cancel: `"cancelled"` if the one-time job had not started, `"requested"` if it runs.

        A running job is asked to stop and ends as cancelled, without retry; a recurring one comes back at its
        next occurrence. Raises `JobNotFoundError`; `JobNotRunningError` if it has ended, or is a recurring
        job between two runs (pause or delete that).
        """
        return self._client.cancel(job)

    @_initialized
    def pause(self, job: JobRef) -> JobRecord:
        """Claim it no more until `resume`. A run in progress goes on to its end."""
        return self._client.pause(job)

    @_initialized
    def resume(self, job: JobRef) -> JobRecord:
        """Go on. A recurring job continues with its next occurrence from now."""
        return self._client.resume(job)

    @_initialized
    def delete(self, job: JobRef) -> Literal["deleted", "requested"]:
        """Remove a job for good; its history stays. A running one is asked to stop and goes when it has."""
        return self._client.delete(job)

    @_initialized
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

    @_initialized
    def retry(self, run: RunRecord | str) -> JobRecord:
        """Run the job of a finished run again: as a new job with the same parameters if its own is gone."""
        return self._client.retry(run)

    @_initialized
    def get_job(self, job: JobRef) -> JobRecord:
        """One job, live or finished; `JobNotFoundError`.

        `job` is an id, a `JobRecord`, a `(name, key)`, or the name of a recurring job.
        """
        return self._client.get_job(job)

    @_initialized
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
        """Live jobs, newest first. Finished one-time jobs are in `runs`."""
        return self._client.jobs(
            name=name, key=key, state=state, recurring=recurring, limit=limit, offset=offset
        )

    @_initialized
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
        """History, newest first."""
        return self._client.runs(
            job, name=name, key=key, outcome=outcome, since=since, limit=limit, offset=offset
        )

    @_initialized
    def logs(self, run: RunRecord | str) -> list[LogLine]:
        """What a run said with `ctx.log`."""
        return self._client.logs(run)

    @_initialized
    def nodes(self) -> list[NodeRecord]:
        """All nodes that are remembered, living or gone, newest first."""
        return self._client.nodes()

    @_initialized
    def stats(self) -> dict[str, Any]:
        """Live jobs by name and state, and this node's own figures."""
        return {**self._client.stats(), "node": self.node_stats()}

    def node_stats(self) -> dict[str, Any]:
        """This node's counters and the health of its loops; asks no database."""
        return {"id": self.id, "state": self._state, **self._node.stats()}

    @_initialized
    def wait(self, job: JobRef, timeout: timedelta | float | None = None) -> JobRecord:
        """Wait until a one-time job has ended, on whichever node; `WaitTimeoutError` after `timeout`."""
        return self._client.wait(job, timeout)

    @_initialized
    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback(StatusChange)` after each change that this process commits, in order, on a thread of
        its own; returns a function that ends it. A callback that raises is logged."""
        if not callable(callback):
            raise InvalidTypeError("callback", callback, "must be callable")
        self._node.dispatcher.on_moved = self._subscribers.moved
        return self._subscribers.add(callback)

    @_initialized
    def run_pending(self, limit: int = 10) -> PassSummary:
        """One pass in the caller's thread: claim up to `limit` due jobs, run them one after the other, record.

        For tests, cron-like hosts and serverless functions, without `start()`. Stalled jobs are reset first.
        Heartbeats are written meanwhile.
        """
        check.integer("limit", limit, 1, 10_000)
        if self._state == "started":
            raise SchedulerStateError(
                "run_pending is for a scheduler that is not started; this one runs by itself"
            )
        return self._node.run_pass(limit)

    # --- inside -----------------------------------------------------------------------------------------

    def _require_process(self) -> None:
        if self._pid != os.getpid():
            raise SchedulerStateError(
                "this scheduler was made in another process: fork() copies neither its threads nor its connections. "
                "Make a new Scheduler after the fork"
            )

    def _require_open(self, verb: str) -> None:
        self._require_process()
        if self._state == "new":
            raise SchedulerStateError(f"scheduler was not initialized: call init() before {verb}()")
        if self._state in ("stopping", "stopped"):
            raise SchedulerStateError(f"scheduler was shut down: {verb}() cannot be called any more")

    def _on_hint(self, hint: str) -> None:
        """Something was scheduled or cancelled in this process: no need to wait for the notification."""
        if self._state == "started":
            self._node.hint(hint)


# A forked child has copies of our locks, held by threads that do not exist there, and of our sockets, on which
# a single byte would break the parent's conversation. It gets a scheduler that refuses everything.
_forkable: weakref.WeakSet[Scheduler] = weakref.WeakSet()
_at_exit: set[Scheduler] = set()


def _after_fork() -> None:
    for scheduler in list(_forkable):
        scheduler._state_lock = threading.RLock()
    _at_exit.clear()


def _give_back_at_exit() -> None:
    """The interpreter ends: what still runs on daemon threads ends with it, so its jobs go back."""
    for scheduler in list(_at_exit):
        scheduler._node.dispatcher.claiming = False
        with contextlib.suppress(Exception):
            scheduler.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_give_back_at_exit)
