"""The running part of a scheduler: its loops and slots, built together, started together, stopped in order."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from . import states
from ._context import RunContext, Services
from ._dispatcher import Dispatcher
from ._executors import Workers
from ._heartbeat import Fence, Heartbeat
from ._ledger import Ledger
from ._listener import Listener
from ._loops import Loop
from ._maintenance import CHORES, LONG, Maintenance, Settings
from ._observer import Observer
from ._processes import Home, Processes
from ._recorder import Recorder
from ._registry import Registry
from ._runner import Runner
from ._store import ClaimRequest, Store, dump, unavailable
from ._transaction import RunTransaction, assert_owner
from ._version import __version__
from .clock import monotonic
from .config import SchedulerConfig
from .states import Claim, Outcome

__all__ = ["MARGIN", "Node", "PassSummary"]

MARGIN = 0.8  # seconds beyond shutdown_timeout in which the last outcomes are written and loops are joined
RELEASE_TIME = 0.6  # of them, for giving back what was stopped at the deadline
LISTEN_PATIENCE = (
    2.0  # seconds that a start waits for its listener; one that comes later looks for what it missed
)


@dataclass(frozen=True)
class PassSummary:
    """What one `run_pending()` did."""

    claimed: int
    completed: int
    failed: int
    #: Runs of nodes that died, whose jobs were given back first.
    reset: int = 0


class Node:
    """Claims, runs and records jobs, from `start` to `stop`.

    `poke(hint)` tells the other nodes that something is due; `farewell` is called when everything has ended.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        id_: str,
        name: str,
        store: Store,
        registry: Registry,
        log: Any,
        poke: Callable[[str], None],
        farewell: Callable[[float], None],
    ) -> None:
        self._config = config
        self._id = id_
        self._name = name
        self._store = store
        self._registry = registry
        self._log = log
        self._farewell = farewell
        self.ledger = Ledger(
            config.no_heartbeat_timeout.total_seconds(), config.heartbeat_interval.total_seconds()
        )
        self.recorder = Recorder(store, self.ledger, id_, log, self._on_lost)
        self.dispatcher = Dispatcher(
            store,
            self.ledger,
            self.recorder,
            id_,
            registry.names,
            config.max_concurrent_jobs,
            config.job_check_interval.total_seconds(),
            self._on_lost,
        )
        services = Services(id_, log, self.recorder.noted, self._open_transaction, self._assert_owner)
        runner = Runner(registry, services, log, self.recorder.report, self.ledger.outlived, self._catch_up)
        self.processes = Processes(
            lambda: Home(id_, store.conninfo, config.schema, config.table_prefix, store.prepared)
        )
        self.workers = Workers(config.max_concurrent_jobs, runner, self.processes, name)
        self.dispatcher.workers = self.workers
        self.recorder.ready = self.workers.ready
        self.recorder.on_due = self._due_again
        self.dispatcher.on_busy = lambda: poke("due")
        self.heartbeat = Heartbeat(
            store,
            self.ledger,
            config.heartbeat_interval.total_seconds(),
            self._describe,
            self._on_lost,
            self.dispatcher.look,
        )
        settings = Settings(
            config.no_heartbeat_timeout.total_seconds(),
            config.orphaned_job_timeout.total_seconds(),
            config.history_retention.total_seconds(),
            config.failed_and_completed_one_time_job_interval.total_seconds(),
            config.history_keep_completed,
            config.history_keep_failed,
        )
        self.maintenance = Maintenance(store, settings, log, self._on_reset)
        self.history = Maintenance(store, settings, log, self._on_reset, LONG) if settings.trims else None
        self.listener: Listener | None = None
        self.loops: dict[str, Loop] = {}
        self.observer: Observer | None = None
        self._poke = poke
        self.known = False  # the database has a row for this node, which says that it lives
        self._resets = 0  # jobs of dead nodes that this one gave back

    def observe(self, observer: Observer) -> None:
        """From now on all parts tell this one what they did."""
        self.observer = observer
        self.recorder.observer = self.heartbeat.observer = self.maintenance.observer = observer
        if self.history is not None:
            self.history.observer = observer

    # --- start ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Beat once, listen, then begin to claim."""
        config = self._config
        self.dispatcher.count_from(self._store.now())
        # The node is known before it claims anything: its timeout and names are then on record.
        self.heartbeat.step()
        self.known = True
        if config.run_immediately:
            self.dispatcher.look()
        loop = functools.partial(Loop, log=self._log)
        self.loops = {
            "heartbeat": loop(f"{self._name}-heartbeat", self.heartbeat.step, on_exit=self.heartbeat.close),
            "fence": loop(f"{self._name}-fence", Fence(self.ledger, self._on_lost).step),
            "dispatcher": loop(
                f"{self._name}-dispatcher", self.dispatcher.step, on_exit=self.dispatcher.close
            ),
            "recorder": loop(f"{self._name}-recorder", self.recorder.step, on_exit=self.recorder.finish),
            "maintenance": loop(f"{self._name}-maintenance", self.maintenance.step),
        }
        self.dispatcher.wake_with(self.loops["dispatcher"].wake)
        self.recorder.on_free = self.loops["dispatcher"].wake
        self.recorder.wake_with(self.loops["recorder"].wake)
        if config.listen:
            debounce = config.notification_debounce_interval.total_seconds()
            self.listener = Listener(self._store, self.hint, self._log, debounce)
            self.loops["listener"] = loop(
                f"{self._name}-listener", self.listener.step, on_exit=self.listener.close
            )
            self.loops["listener"].start()
            # LISTEN first, then the first look: what is committed between the two would else wait.
            if not self.listener.ready.wait(LISTEN_PATIENCE):
                self.listener.deaf_before = True
                if self.listener.ready.is_set():  # just now: it may not have seen what we said
                    self.hint("due")
        else:
            self._log.info(
                "notifications are off; jobs are found at their due times and every job_check_interval"
            )
        names = ["heartbeat", "fence", "recorder", "dispatcher", "maintenance"]
        if self.history is not None:
            self.loops["history"] = loop(f"{self._name}-history", self.history.step)
            names.append("history")
        for name in names:
            self.loops[name].start()

    def hint(self, hint: str) -> None:
        """`due`: look for work. `cancel`: look at the claims."""
        if hint == "due":
            self.dispatcher.look()
        elif hint == "cancel":
            self.heartbeat.everything = True
            self.loops["heartbeat"].wake()

    def learned(self) -> None:
        """A name was registered: tell the others, and look for its jobs."""
        self.loops["heartbeat"].wake()
        self.dispatcher.look()

    # --- stop -------------------------------------------------------------------------------------------

    def stop(self, seconds: float) -> bool:
        """See `Scheduler.shutdown`; returns at most `seconds` + MARGIN later."""
        deadline = monotonic() + seconds
        # 1. Nothing new, at once. 2. Tell every run. 3. Give back what no slot has begun.
        self.dispatcher.claiming = False
        self.loops["maintenance"].stop()
        for claim in self.ledger.all():
            claim.stop("shutdown")
        self.dispatcher.release_unstarted()
        # 4. Wait for runs and for their outcomes to be written; heartbeats go on meanwhile.
        clean = self._drained(deadline)
        if not clean:
            # 5. The deadline: kill what can be killed, and give that back as well.
            self.processes.cut()
            for claim in self.ledger.all():
                context = claim.context
                if context is not None and context._on_stop is not None:
                    context._on_stop("deadline")
            clean = self._drained(deadline + RELEASE_TIME)
        end = deadline + MARGIN
        self.workers.stop()
        self.processes.close()
        if clean:
            self._log.info("all jobs completed gracefully")
            self._stop_loops(end)
        else:
            names = sorted({c.name for c in self.ledger.all()})
            self._log.error(
                "shutdown timeout exceeded, some jobs may not have completed",
                jobs=names,
                count=len(self.ledger),
            )
            threading.Thread(target=self._drain_rest, name=f"{self._name}-drain", daemon=True).start()
        return clean

    def _drained(self, deadline: float) -> bool:
        """Wait until no claim is held; False at the deadline."""
        while len(self.ledger):
            left = deadline - monotonic()
            if left <= 0:
                return False
            self.ledger.changed.wait(min(left, 0.05))
        return True

    def _drain_rest(self) -> None:
        """After a shutdown that some job outlived: beat and write until the last one is done."""
        while len(self.ledger):
            self.ledger.changed.wait(1.0)
        self._stop_loops(monotonic() + 5.0)

    def _stop_loops(self, deadline: float) -> None:
        """Claims first, heartbeats last: nobody may think us dead while something is being written."""
        for name in ("dispatcher", "recorder", "maintenance", "history", "listener", "fence", "heartbeat"):
            loop = self.loops.get(name)
            if loop is None:
                continue
            loop.stop()
            if name == "dispatcher":
                loop.join(
                    max(deadline - monotonic(), 0.01)
                )  # what its last step gives back, the recorder writes
            if name == "listener" and self.listener is not None:
                with contextlib.suppress(OSError):
                    self.listener.interrupt()
        for loop in self.loops.values():
            if not loop.join(max(deadline - monotonic(), 0.01)):
                self._log.warning("loop did not end in time (a hanging network?)", loop=loop.name)
        self.workers.join(max(deadline - monotonic(), 0.01))
        self._farewell(deadline)

    def abandon(self) -> int:
        """Give back the jobs of runs that outlived `shutdown()`; returns how many, at most MARGIN later.

        Only for a process that is about to end in the same instant: their code still runs.
        """
        # What has ended is being written as what it was; giving it back would have it run again.
        end = monotonic() + MARGIN
        deadline = end - MARGIN + RELEASE_TIME
        while any(c.settled for c in self.ledger.all()) and (left := deadline - monotonic()) > 0:
            self.ledger.changed.wait(min(left, 0.05))
        held = [c for c in self.ledger.all() if not c.lost and not c.settled]
        if not held:
            return 0
        given: list[int] = []
        # On a thread: a database that does not answer must not keep the process. The stalled scan of another node
        # finds what could not be given back.
        back = threading.Thread(
            target=lambda: given.append(self._give_back(held)), name=f"{self._name}-abandon", daemon=True
        )
        back.start()
        back.join(max(end - monotonic(), 0.0))
        return sum(given)

    def _give_back(self, held: list[Claim]) -> int:
        moves = [states.interrupted(c, None, monotonic() - c.received, 0.0, reason="shutdown") for c in held]
        for move in moves:
            move.started = 0.0
        with contextlib.suppress(Exception), self._store.connect() as connection:
            self._store.finish(connection, moves)
            self._store.notify(connection, "due")
            self.ledger.drop(held)
            return len(held)
        return 0

    # --- one pass without loops ---------------------------------------------------------------------------

    def run_pass(self, limit: int) -> PassSummary:
        """Claim, run and record what is due, here, one job after the other, `limit` at most."""
        self.heartbeat.step()
        self.known = True
        beat = Loop(f"{self._name}-heartbeat", self.heartbeat.step, self._log)
        fence = Loop(f"{self._name}-fence", Fence(self.ledger, self._on_lost).step, self._log)
        beat.start()
        fence.start()
        try:
            self.recorder.step()  # what the last pass could not write
            resets = self._resets
            self.maintenance.do(CHORES[0])
            # One at a time: what waited in this process for its turn would die with it, and count that as a stall.
            request = ClaimRequest(1, self._registry.names(), {}, True, until=self._store.now())
            outcomes: list[Outcome | None] = []
            claimed = 0
            while claimed < limit and request.names and (claim := self._claim_one(request)) is not None:
                claimed += 1
                self.workers.execute(claim)
                outcomes += self.recorder.waiting
                self._record()
            failed = [one for one in outcomes if one in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.STALLED)]
            return PassSummary(claimed, outcomes.count(Outcome.COMPLETED), len(failed), self._resets - resets)
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise unavailable(error) from error
        finally:
            self.dispatcher.close()
            self.recorder.finish()  # a row that somebody held locked for a moment is tried again; no later step may come
            for loop in (beat, fence):
                loop.stop()
                loop.join(1.0)
            self.heartbeat.close()

    def _claim_one(self, request: ClaimRequest) -> Claim | None:
        claims = self.dispatcher.claim(request)
        self.ledger.hold(claims)
        self.recorder.tell(claims, [], [])
        return claims[0] if claims else None

    def _record(self) -> None:
        """Write what ended. A connection that broke while the job ran is replaced, once; what cannot be written then
        stays for the next pass."""
        try:
            self.recorder.step()
        except (psycopg.OperationalError, psycopg.InterfaceError):
            self.dispatcher.close()  # it did not fare better
            self.recorder.step()

    def stats(self) -> dict[str, Any]:
        """This node's counters and the health of its loops; asks no database."""
        now = monotonic()
        return {
            "held": len(self.ledger),
            "fenced": self.ledger.fenced,
            "unwritten": self.recorder.unwritten,
            "recorded": self.recorder.recorded,
            **self.dispatcher.counters,
            "loops": {
                name: {
                    "alive": loop.alive,
                    "failures": loop.failures,
                    "last_success_seconds": None if loop.last_success is None else now - loop.last_success,
                }
                for name, loop in self.loops.items()
            },
        }

    # --- for the parts ----------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "host": socket.gethostname()[:255],
            "pid": os.getpid(),
            "version": __version__,
            "slots": self._config.max_concurrent_jobs,
            "names": self._registry.names(),
            "timeout": self._config.no_heartbeat_timeout.total_seconds(),
        }

    def _open_transaction(self, context: RunContext, result: Any) -> RunTransaction:
        return RunTransaction(self._store, context, result)

    def _assert_owner(self, context: RunContext, connection: Any) -> None:
        assert_owner(self._store, context, connection)

    def _catch_up(self, claim: Claim, occurrence: datetime, skipped: list[dict[str, Any]]) -> bool:
        values = {"id": claim.id, "token": claim.token, "occurrence": occurrence, "skipped": dump(skipped)}
        # Not tried again: without an answer it may have been done, and its lines would be written twice.
        noted = self._store.row("catch_up", values) is not None
        if noted and self.observer is not None:
            self.observer.skipped(claim, len(skipped))
        return noted

    def _due_again(self) -> None:
        """What was recorded may have made a job due: another attempt, the next occurrence, what was given back."""
        self.dispatcher.look()
        if not self.dispatcher.claiming:
            self._poke("due")  # it is for the other nodes now

    def _on_reset(self, touched: list[Any]) -> None:
        self._resets += len(touched)
        self._poke("due")

    def _on_lost(self, claims: list[Claim]) -> None:
        self.dispatcher.counters["lost"] += len(claims)
        for claim in claims:
            self._log.warning(
                "claim lost", job=claim.name, key=claim.key, job_id=claim.id, attempt=claim.attempt
            )
