"""The jobs of a fault test. Each says what it does in its process's own file, so that no outage hides anything.

What a job does is in its parameters, so that a run of the test is decided by its seed and not by the nodes:
`seconds` it takes, `fails` attempts of it raise, and what else its class reads.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg

from pgscheduler import Cancel, Fail, Job, JobCancelled, JobConfig, Retry, RunContext, RunLostError, Snooze
from tests.chaos.history import Began, Ended, Record, Told, append, boottime, epoch

__all__ = ["EFFECTS", "KINDS", "RECURRING", "Journal", "Traced"]

EFFECTS = """
create table if not exists chaos_effects (
    sequence bigserial primary key,
    at timestamptz not null default clock_timestamp(),
    kind text not null,
    job_id bigint not null,
    run_id text not null,
    token bigint not null,
    scheduled_at timestamptz not null
)"""

_INSERT = "insert into chaos_effects (kind, job_id, run_id, token, scheduled_at) values (%s, %s, %s, %s, %s)"
_LOOK = 0.02  # seconds between two looks at whether to stop
_SIGNALS: dict[type[BaseException], str] = {
    Retry: "retry",
    Snooze: "snooze",
    Cancel: "cancel",
    Fail: "fail",
    JobCancelled: "stopped",
    asyncio.CancelledError: "stopped",
    RunLostError: "lost",
}


@dataclass(frozen=True)
class Journal:
    """Where a process writes what happens in it; crosses to the processes of isolated jobs."""

    path: str
    process: str
    dsn: str  # the node's way to the database, for the effects of its jobs

    def write(self, record: Record) -> None:
        descriptor = _descriptors.get(self.path)
        if descriptor is None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            descriptor = _descriptors.setdefault(self.path, os.open(self.path, flags, 0o644))
        append(descriptor, record)


_descriptors: dict[str, int] = {}


class Trace:
    """One run, as its own code sees it."""

    def __init__(self, journal: Journal, ctx: RunContext, isolation: str, looks: bool) -> None:
        self.journal = journal
        self.ctx = ctx
        self.transaction: str | None = None
        self._told: str | None = None  # the reason that was written last: `lost` overrides the others
        self._lock = threading.Lock()
        self._write(
            Began,
            node=ctx.node,
            name=ctx.name,
            key=ctx.key,
            attempt=ctx.attempt,
            scheduled_at=epoch(ctx.scheduled_at),
            parameters=ctx.parameters,
            isolation=isolation,
            pid=os.getpid(),
            looks=looks,
        )
        _watch.add(self)

    def look(self) -> None:
        """Write down that the run should stop, when it first should and when it should for another reason."""
        with self._lock:
            reason = self.ctx.cancel_reason
            if reason is not None and reason != self._told:
                self._told = reason
                self._write(Told, reason=reason)

    def wait(self, seconds: float) -> None:
        """Work that looks up; raises when it is to stop."""
        self.ctx.wait(seconds)
        self.ctx.check()

    def ended(self, how: str, detail: str | None = None) -> None:
        _watch.discard(self)
        self.look()
        self._write(Ended, how=how, transaction=self.transaction, detail=detail)

    def effect(self, connection: psycopg.Connection[Any], kind: str) -> None:
        ctx = self.ctx
        connection.execute(_INSERT, [kind, ctx.job_id, ctx.run_id, ctx.token, ctx.scheduled_at])

    def _write(self, kind: type[Record], **facts: Any) -> None:
        ctx = self.ctx
        record: Any = kind
        self.journal.write(
            record(
                at=boottime(),
                process=self.journal.process,
                job_id=ctx.job_id,
                run_id=ctx.run_id,
                token=ctx.token,
                **facts,
            )
        )


class _Watch:
    """Looks for every run of this process, so that what a job is busy with does not delay what it was told."""

    def __init__(self) -> None:
        self._traces: set[Trace] = set()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, trace: Trace) -> None:
        with self._lock:
            self._traces.add(trace)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="chaos-watch", daemon=True)
                self._thread.start()

    def discard(self, trace: Trace) -> None:
        with self._lock:
            self._traces.discard(trace)

    def _look(self) -> None:
        while True:
            time.sleep(_LOOK)
            with self._lock:
                traces = list(self._traces)
            for trace in traces:
                trace.look()


_watch = _Watch()


def _how(error: BaseException | None) -> tuple[str, str | None]:
    if error is None:
        return "returned", None
    for kind, word in _SIGNALS.items():
        if isinstance(error, kind):
            return word, None
    return "raised", f"{type(error).__name__}: {error}"[:200]


class Traced(Job):
    """Writes when it begins and how it ends; `work` does the rest."""

    isolation: ClassVar[str] = "thread"
    looks: ClassVar[bool] = True  # somebody looks every few milliseconds whether it should stop

    def __init__(self, config: JobConfig, journal: Journal | None = None) -> None:
        super().__init__(config)
        self.journal = journal  # None: only to be scheduled, by a client

    def run(self, ctx: RunContext) -> Any:
        with self.traced(ctx) as trace:
            self.fail_if_asked(ctx)
            return self.work(ctx, trace)

    @contextmanager
    def traced(self, ctx: RunContext) -> Iterator[Trace]:
        assert self.journal is not None
        trace = Trace(self.journal, ctx, self.isolation, self.looks)
        try:
            yield trace
        except BaseException as error:
            trace.ended(*_how(error))
            raise
        trace.ended("returned")

    def fail_if_asked(self, ctx: RunContext) -> None:
        if ctx.attempt <= ctx.parameters.get("fails", 0):
            raise ValueError(f"attempt {ctx.attempt} was to fail")

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        trace.wait(ctx.parameters.get("seconds", 0.0))
        return ctx.parameters.get("result")

    @contextmanager
    def database(self) -> Iterator[psycopg.Connection[Any]]:
        """A connection of the job's own, with a transaction open."""
        assert self.journal is not None
        with psycopg.connect(
            self.journal.dsn, connect_timeout=3, tcp_user_timeout=3000, application_name="chaos-job"
        ) as connection:
            yield connection


class Work(Traced):
    """Takes its time, stops when told, and now and then says how far it is."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        if ctx.parameters.get("talks"):
            ctx.progress(0, 1, "begun")
            ctx.log.info("a line of the run")
        return super().work(ctx, trace)


class Free(Traced):
    """Writes a row of its own, unguarded: at least once."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        with self.database() as connection:
            trace.effect(connection, "free")
        return super().work(ctx, trace)


class Transactional(Traced):
    """Its row and its completion are one commit. Works before it, and lingers after it."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        trace.wait(ctx.parameters.get("seconds", 0.0))
        inside = False
        try:
            with ctx.transaction({"by": ctx.run_id}) as connection:
                trace.effect(connection, "transaction")
                inside = True
            trace.transaction = "committed"
        except RunLostError:
            trace.transaction = "lost"
            raise
        except psycopg.Error:
            # Before the last statement of the block nothing can have been committed.
            trace.transaction = "unknown" if inside else None
            raise
        ctx.wait(ctx.parameters.get("lingers", 0.0))
        return None


class Fenced(Traced):
    """Writes rows during its run, each behind `assert_owner`."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        for _ in range(ctx.parameters.get("rows", 3)):
            with self.database() as connection:
                ctx.assert_owner(connection)
                trace.effect(connection, "fenced")
            trace.wait(ctx.parameters.get("seconds", 0.3))


class Stubborn(Traced):
    """Sees that it should stop, and goes on to its end; then tries to have effects that it may not have any more."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        time.sleep(ctx.parameters.get("seconds", 2.0))
        with self.database() as connection:
            ctx.assert_owner(connection)
            trace.effect(connection, "fenced")
        return {"by": ctx.run_id}


class Swallow(Traced):
    """Is told to stop, and says that all is well."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        with suppress(JobCancelled):
            trace.wait(ctx.parameters.get("seconds", 2.0))


class Decides(Traced):
    """Ends by a signal: `says` snooze, retry, cancel or fail, while `until` has not passed."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        said = ctx.parameters["says"]
        if said == "cancel":
            raise Cancel("not wanted any more")
        if said == "fail":
            raise Fail("no use")
        if said == "retry":
            raise Retry(0.3)
        if boottime() < ctx.parameters["until"]:
            raise Snooze(ctx.parameters.get("after", 0.5))
        return None


class Grips(Traced):
    """Holds the GIL: nothing else of this process runs, its heartbeat neither."""

    looks = False

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        end = boottime() + ctx.parameters["seconds"]
        count, started = 10**6, boottime()
        sum(itertools.repeat(1, count))
        count = int(count * ctx.parameters["seconds"] / max(boottime() - started, 1e-4))
        # One call into C, about as long as asked for; a busy machine makes it longer.
        sum(itertools.repeat(1, count))
        while boottime() < end:
            sum(itertools.repeat(1, 10**7))


class Exits(Traced):
    """Ends its whole process in its first `exits` attempts."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        if ctx.attempt <= ctx.parameters.get("exits", 1):
            os._exit(7)


class Hogs(Traced):
    """Takes memory until the kernel ends its process, where that has a limit; else it just ends."""

    def work(self, ctx: RunContext, trace: Trace) -> Any:
        if ctx.attempt > ctx.parameters.get("exits", 1):
            return
        taken = [b"x" * (16 << 20) for _ in range(ctx.parameters["chunks"])]
        taken.clear()


class Caged(Traced):
    """In a process of its own."""

    isolation = "process"


class Coroutine(Traced):
    """On the event loop, with a sleep that a cancel interrupts."""

    isolation = "async"

    async def run(self, ctx: RunContext) -> Any:
        with self.traced(ctx):
            self.fail_if_asked(ctx)
            await ctx.sleep(ctx.parameters.get("seconds", 0.0))
            ctx.check()


#: One-time jobs by name.
KINDS: dict[str, type[Traced]] = {
    "work": Work,
    "free": Free,
    "transactional": Transactional,
    "fenced": Fenced,
    "stubborn": Stubborn,
    "swallow": Swallow,
    "decides": Decides,
    "grips": Grips,
    "exits": Exits,
    "hogs": Hogs,
    "caged": Caged,
    "coroutine": Coroutine,
}

#: Recurring jobs by name: class, schedule (seconds or a cron line), policies.
RECURRING: dict[str, tuple[type[Traced], float | str, dict[str, Any]]] = {
    "second": (Work, 1.0, {"parameters": {"seconds": 0.2}}),
    "pair": (Transactional, 2.0, {"parameters": {"seconds": 0.1}, "retries": 1}),
    "overlong": (Free, 2.0, {"parameters": {"seconds": 2.6}, "misfire": "skip", "misfire_grace": 1.0}),
    "each": (Work, 3.0, {"parameters": {"seconds": 0.1}, "misfire": "run_all", "catchup": 5}),
    "spread": (Work, 5.0, {"parameters": {"seconds": 0.3, "talks": True}, "jitter": 2.0}),
    "failing": (Work, 5.0, {"parameters": {"fails": 1}, "retries": 2}),
    "minute": (Fenced, "* * * * *", {"parameters": {"rows": 4, "seconds": 0.5}, "retries": 1}),
    "gone": (Work, 4.0, {"parameters": {"seconds": 0.2}}),
}
