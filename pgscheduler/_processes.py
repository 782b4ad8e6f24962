"""Runs in processes of their own: the only ones that can be killed.

A child is started by `spawn` (a fork would copy locks and connections in whatever state they are), kept for the
next run, and dies with its parent: its pipe's end is its order to exit. It leads a process group, so that what
the job started is killed with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from ._context import RunContext, Services
from ._decide import Plan, ProcessDiedError, RemoteError, Verdict, error_text
from ._json import clean_text
from ._registry import Registered
from ._runner import call_hooks, call_hooks_async
from ._sql import Names
from ._store import Store
from ._transaction import RunTransaction, assert_owner
from .clock import monotonic
from .errors import JobCancelled
from .job import Job
from .signals import Cancel, Fail, Retry, Signal, Snooze
from .states import Claim

__all__ = ["Processes"]

GRACE = {"timeout": 1.0, "cancelled": 5.0, "lost": 0.0}  # seconds from the request to SIGKILL
SIGNALS: dict[str, type[Signal]] = {"Retry": Retry, "Snooze": Snooze, "Cancel": Cancel, "Fail": Fail}


@dataclass(frozen=True)
class Home:
    """What a child needs to know of its node to reach the database by itself."""

    node: str
    conninfo: str = field(repr=False)  # holds the password
    schema: str
    prefix: str
    prepared: bool


class _Child:
    """A process and the pipe to it. Used by one slot at a time; only `send` may come from other threads."""

    def __init__(self, home: Home) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._lock = threading.RLock()
        self.running: RunContext | None = None  # whose stops may reach it; guarded by _lock
        # daemon: multiprocessing then ends it at exit instead of waiting for it.
        self.process: BaseProcess = context.Process(
            target=_child_main, args=(theirs, home), daemon=True, name="pgscheduler-job"
        )
        self.process.start()
        theirs.close()

    def send(self, message: Any) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send(message)

    def receive(self, seconds: float | None) -> Any:
        """The next message; None after `seconds`, EOFError when the process is gone."""
        if not self._pipe.poll(seconds):
            return None
        try:
            return self._pipe.recv()
        except OSError as error:
            raise EOFError from error

    def stop(self, context: RunContext, reason: str) -> None:
        """Ask `context`'s run to stop; from any thread. A lost one is killed: another node may take its job now."""
        with self._lock:
            if self.running is not context:
                return  # it has ended, and the process may be at another run
            if reason == "lost":
                self.strike()
            else:
                self.send(("stop", reason))

    def attend(self, context: RunContext | None) -> None:
        """From now on stops are for this run."""
        with self._lock:
            self.running = context

    def strike(self) -> None:
        """SIGKILL for the process and all that it started; the pipe's end tells the slot."""
        pid = self.process.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        self.strike()
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.close()
        self.process.join(5)
        with contextlib.suppress(ValueError):
            self.process.close()


class Processes:
    """The children of one node. Made when first needed."""

    def __init__(self, home: Callable[[], Home]) -> None:
        self._home = home  # asked for each child: only a connection tells whether a pooler is in between
        self._lock = threading.Lock()
        self._idle: list[_Child] = []  # guarded by _lock
        self._closing = False
        self._cut = threading.Event()

    def run(self, plan: Plan, context: RunContext) -> Verdict:
        """Run the hooks in a child and wait; kill it when it is told to stop and does not."""
        try:
            order = pickle.dumps(_Order.of(plan, context))
        except BaseException as error:  # noqa: BLE001 - whatever a user's object raises when copied or pickled, SystemExit too
            said = f"{type(error).__name__}: {error}"
            return Verdict(error=TypeError(f"a process job must be importable and picklable: {said}"))
        child = self._take()
        child.attend(context)
        context._on_stop = functools.partial(child.stop, context)
        try:
            child.send(("run", order))
            if context._reason is not None:
                child.stop(context, context._reason)
            verdict = self._attend(child, context)
        except EOFError:
            child.attend(None)
            child.process.join(5)
            code = child.process.exitcode
            child.close()
            return Verdict(error=ProcessDiedError(f"the job's process died (exit code {code})"))
        except BaseException:
            child.attend(None)
            child.kill()
            raise
        child.attend(None)
        if verdict is None:
            child.kill()
            return Verdict(error=ProcessDiedError("the job's process was killed"))
        self._give_back(child)
        return verdict

    def _attend(self, child: _Child, context: RunContext) -> Verdict | None:
        """Read until the verdict; None: its time is up, kill it."""
        kill_at: float | None = None
        while True:
            reason = context.cancel_reason  # also notices the deadline
            if reason in GRACE and kill_at is None:
                kill_at = monotonic() + GRACE[reason]
            if self._cut.is_set() or (kill_at is not None and monotonic() >= kill_at):
                return None
            message = child.receive(_pause(context, kill_at))
            if message is None:
                continue
            kind, *rest = message
            if kind == "note":
                _note(context, *rest)
            elif kind == "verdict":
                value, said, text, stopped, context._completed = rest
                return _decode(value, said, text, stopped)

    def cut(self) -> None:
        """The shutdown's deadline: kill what still runs."""
        self._cut.set()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.kill()

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()
                if child.process.is_alive():
                    return child
                child.close()
        return _Child(self._home())

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            if not self._closing:
                self._idle.append(child)
                return
        child.kill()


def _pause(context: RunContext, kill_at: float | None) -> float:
    """Seconds until something may have to be done; stops arrive as a flag, so at most a fifth of a second."""
    now, pause = monotonic(), 0.2
    if kill_at is not None:
        pause = min(pause, kill_at - now)
    elif context._timeout is not None:
        pause = min(pause, context._started + context._timeout - now)
    return max(pause, 0.0)


def _note(context: RunContext, progress: Any, lines: list[dict[str, Any]]) -> None:
    if progress is not None:
        context._progress = progress
    if lines:
        if context._lines is None:
            context._lines = deque()
        context._lines.extend(lines)
        for line in lines:
            with contextlib.suppress(Exception):
                facts = {
                    "job": context.name,
                    "key": context.key,
                    "attempt": context.attempt,
                    "run_id": context.run_id,
                }
                getattr(context._services.log, line["level"])(
                    line["event"], **{**facts, **(line["fields"] or {})}
                )
    context._services.noted(context)


def _decode(value: str | None, said: Any, text: str | None, stopped: str | None) -> Verdict:
    if said is not None:
        name, after, reason = said
        made: Signal = SIGNALS[name](after, reason) if name in ("Retry", "Snooze") else SIGNALS[name](reason)  # type: ignore[call-arg]
        return Verdict(error=made)
    if stopped is not None:
        return Verdict(error=JobCancelled(stopped))
    if text is not None:
        return Verdict(error=RemoteError(text))
    return Verdict(None if value is None else json.loads(value))


# --- in the child -------------------------------------------------------------------------------------


@dataclass
class _Order:
    """One run, as it crosses the pipe."""

    job: Job
    facts: dict[str, Any]
    token: int
    timeout: float | None
    elapsed: float  # seconds since the claim

    @classmethod
    def of(cls, plan: Plan, context: RunContext) -> _Order:
        claim = plan.claim
        row = {name: getattr(claim, name) for name in _ROW}
        return cls(
            plan.entry.make(),
            row,
            claim.token,
            context._timeout,
            monotonic() - claim.received,
        )


_ROW = (
    "id", "name", "key", "priority", "run_at_micros", "scheduled_at_micros", "failures", "stalls", "schedule", "options",
    "parameters", "cancel_requested", "done_already", "claimed_at_micros",
)  # fmt: skip


def _child_main(pipe: Connection, home: Home) -> None:
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    # The node decides when a run ends; a terminal's Ctrl-C goes to the whole foreground group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = _ChildSide(pipe, home)
    threading.Thread(target=child.listen, daemon=True, name="pgscheduler-pipe").start()
    child.work()


class _ChildSide:
    """Receives runs and stops, and answers."""

    def __init__(self, pipe: Connection, home: Home) -> None:
        self._pipe = pipe
        self._home = home
        self._lock = threading.Lock()
        self._orders: list[bytes] = []
        self._wake = threading.Semaphore(0)
        self._context: RunContext | None = None
        self._early_stop: str | None = None
        self._store: Store | None = None
        parent = multiprocessing.parent_process()
        self._node_pid = None if parent is None else parent.pid

    def listen(self) -> None:
        while True:
            try:
                kind, value = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(1)  # the node is gone; so is whoever would want the answer
            if kind == "run":
                self._early_stop = None
                self._orders.append(value)
                self._wake.release()
            elif kind == "stop":
                context = self._context
                if context is not None:
                    context._stop(value)
                else:
                    self._early_stop = value

    def work(self) -> None:
        while True:
            self._wake.acquire()
            self._run(self._orders.pop(0))

    def _run(self, order_bytes: bytes) -> None:
        try:
            order: _Order = pickle.loads(order_bytes)  # noqa: S301 - from our own parent, over a private pipe
        except BaseException as error:  # noqa: BLE001
            self._send(
                (
                    "verdict",
                    None,
                    None,
                    f"the job could not be loaded in its process: {error_text(error)}",
                    None,
                    False,
                )
            )
            return
        if os.getppid() != self._node_pid:
            os._exit(1)  # the node died while this process was starting: nothing may begin in its name
        now = monotonic()
        claim = Claim(tuple(order.facts[name] for name in _ROW), order.token, 0.0, now - order.elapsed)
        services = Services(self._home.node, _Silent(), self._noted, self._transaction, self._assert_owner)
        context = RunContext(claim, services, now, order.timeout)
        self._context = context
        if self._early_stop is not None:
            context._stop(self._early_stop)
        entry = Registered(claim.name, order.job)
        verdict = asyncio.run(_async(entry, context)) if entry.is_async else call_hooks(entry, context)
        self._context = None
        self._send_notes(*context._take_notes(final=True))
        self._send(("verdict", *_encode(verdict), context._completed))

    def _send(self, message: Any) -> None:
        with self._lock:
            self._pipe.send(message)

    def _noted(self, context: RunContext) -> None:
        self._send_notes(*context._take_notes())

    def _send_notes(self, progress: Any, lines: list[dict[str, Any]]) -> None:
        if progress is not None or lines:
            self._send(("note", progress, lines))

    def _own_store(self) -> Store:
        if self._store is None:
            home = self._home
            self._store = Store(home.conninfo, Names(home.schema, home.prefix), prepared=home.prepared)
        return self._store

    def _transaction(self, context: RunContext, result: Any) -> RunTransaction:
        return RunTransaction(self._own_store(), context, result)

    def _assert_owner(self, context: RunContext, connection: Any) -> None:
        assert_owner(self._own_store(), context, connection)


async def _async(entry: Registered, context: RunContext) -> Verdict:
    """Run async hooks; a stop cancels them."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(call_hooks_async(entry, context))
    context._on_stop = lambda reason: None if reason == "shutdown" else _quietly(loop, task)
    if context._reason not in (None, "shutdown"):
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        return Verdict(error=JobCancelled(context._reason or "cancelled"))


def _quietly(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Verdict]) -> None:
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(task.cancel)


def _encode(verdict: Verdict) -> tuple[str | None, Any, str | None, str | None]:
    """(value as JSON, signal, error text, why it stopped), all plain."""
    said = verdict.signal
    if said is not None:
        name = next(
            (n for n, kind in SIGNALS.items() if isinstance(said, kind)), None
        )  # or a user's subclass
        if name is None:
            return None, None, error_text(said), None
        return None, (name, getattr(said, "after", None), clean_text(said.reason)), None, None
    if isinstance(verdict.error, JobCancelled | asyncio.CancelledError):
        return None, None, None, getattr(verdict.error, "reason", "cancelled")
    if verdict.error is not None:
        return None, None, error_text(verdict.error), None
    try:
        return (None if verdict.value is None else json.dumps(verdict.value)), None, None, None
    except (TypeError, ValueError, RecursionError):
        return None, None, None, None  # not JSON: the node cannot store it either


class _Silent:
    """The child's log lines are printed by the node, which knows the configured logger."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None
