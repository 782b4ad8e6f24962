"""The Scheduler: the life of one node from `init()` to `shutdown()`. What it says about jobs is in `_verbs`."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import uuid
import weakref
from collections.abc import Callable
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, Literal, Self

import structlog

from . import _check as check
from . import _migrate
from ._hosts import unchecked
from ._node import MARGIN, Node, PassSummary
from ._registry import Registry
from ._sql import Names
from ._store import Store
from ._subscribers import Subscribers
from ._verbs import Verbs, initialized
from .client import Client
from .clock import monotonic
from .config import SchedulerConfig
from .errors import InvalidTypeError, SchedulerStateError
from .events import Subscriber
from .job import Job

__all__ = ["PassSummary", "Scheduler"]


class Scheduler(Verbs):
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
            listen_conninfo=config.listen_dsn,
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
                if self._store.prepared:  # else a pooler may hand the setting to somebody else
                    connection.execute(
                        "select set_config('lock_timeout', '0', false)"
                    )  # eight nodes may queue
                if self.config.create_schema:
                    done = _migrate.migrate(connection, self._store.names)
                    if done:
                        self.log.info("schema migrated", migrations=done)
                _migrate.check(connection, self._store.names)
                exposed = unchecked(connection)
            finally:
                connection.close()
            if exposed is not None:
                host, sslmode = exposed
                self.log.warning(
                    "the database server's certificate is not checked: whoever is on the way can read and change "
                    "everything; set sslmode=verify-full",
                    host=host,
                    sslmode=sslmode,
                )
            self._store.open()
            self._state = "ready"

    def start(self) -> None:
        """Start to run jobs. Raises `SchedulerStateError` before `init()`, twice, or after `shutdown()`."""
        with self._state_lock:
            self._require_open("start")
            if self._state != "ready":
                raise SchedulerStateError("scheduler is already started")
            self._node.start()
            self._state = "started"
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
                self._close(monotonic() + seconds + MARGIN)
                self._state = "stopped"
                return True
        clean = self._node.stop(seconds)
        self._subscribers.close()
        self._state = "stopped"
        return clean

    def _farewell(self, deadline: float) -> None:
        """Every run has ended and is recorded."""
        self._close(deadline)
        _at_exit.discard(self)

    def _close(self, deadline: float) -> None:
        """The last words to the database, which may be gone or hang: on a thread that nobody has to wait for."""

        def close() -> None:
            if self._node.known:
                with contextlib.suppress(Exception):
                    self._store.row("node_stop", {"id": self.id})
            self._client.notifier.close()
            self._store.close()

        closing = threading.Thread(target=close, name=f"{self._name}-closing", daemon=True)
        closing.start()
        if self._node.observer is not None:
            self._node.observer.close()
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

    # --- what it runs -------------------------------------------------------------------------------

    @initialized
    def register(self, job: type[Job] | Job) -> str:
        """Make this node able to run a job; returns its name. A class is instantiated once, here.

        May be called before and after `start()`. Raises `DuplicateJobError` if another class or instance has
        the name.
        """
        name = self._registry.register(job)
        self._learned()
        return name

    @initialized
    def stats(self) -> dict[str, Any]:
        """Live jobs by name and state, and this node's own figures."""
        return {**self._client.stats(), "node": self.node_stats()}

    def node_stats(self) -> dict[str, Any]:
        """This node's counters and the health of its loops; asks no database."""
        return {"id": self.id, "state": self._state, **self._node.stats()}

    @initialized
    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback(StatusChange)` after each change that this process commits, in order, on a thread of
        its own; returns a function that ends it. A callback that raises is logged."""
        if not callable(callback):
            raise InvalidTypeError("callback", callback, "must be callable")
        self._node.recorder.on_moved = self._subscribers.moved
        return self._subscribers.add(callback)

    @initialized
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

    def _learned(self) -> None:
        if self._state == "started":
            self._node.learned()

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
