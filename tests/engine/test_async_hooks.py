"""Plain hooks of async jobs are thread jobs: nobody can stop their code, so it has its job and its slot until it ends.

And the slots themselves: each that can be had is made, and what waits is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from pgscheduler import Backoff, Job, JobConfig, JobState, Outcome, Scheduler
from pgscheduler._executors import Workers
from tests.engine.conftest import Call, Gate, Quiet
from tests.support import ROOT, eventually

AT_ONCE = Backoff(initial=timedelta(0), jitter=0.0)
SHORT = timedelta(seconds=0.2)


class Stubborn:
    """Sees that it should stop, and stops only when the test lets it go."""

    def __init__(self) -> None:
        self.entered, self.told, self.let_go = threading.Event(), threading.Event(), threading.Event()
        self.reasons: list[str | None] = []
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, ctx: Any) -> str:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.set()
        if not self.let_go.is_set():
            ctx.wait(60)
        self.reasons.append(ctx.cancel_reason)
        self.told.set()
        self.let_go.wait(60)
        with self._lock:
            self.inside -= 1
        return "done"


@pytest.fixture
def stubborn() -> Iterator[Stubborn]:
    """A `Stubborn`, let go at the end so that no run outlives its test."""
    stubborn = Stubborn()
    yield stubborn
    stubborn.let_go.set()


class PlainRun(Job):
    """A plain `run` in an async job."""

    def __init__(self, config: JobConfig, function: Callable[[Any], Any]) -> None:
        super().__init__(config)
        self.function = function

    async def init(self, ctx: Any) -> None:
        await asyncio.sleep(0)

    def run(self, ctx: Any) -> Any:
        return self.function(ctx)


class PlainInit(Job):
    """A plain `init` before a coroutine; `seen` tells what was called."""

    seen: list[str]

    def __init__(self, config: JobConfig, function: Callable[[Any], Any]) -> None:
        super().__init__(config)
        self.function = function
        self.seen = []

    def init(self, ctx: Any) -> None:
        self.function(ctx)

    async def run(self, ctx: Any) -> str:
        self.seen.append("run")
        await asyncio.sleep(60)
        return "not reached"

    async def shutdown(self, ctx: Any) -> None:
        await asyncio.sleep(0)
        self.seen.append("shutdown")


class PlainShutdown(Job):
    """A plain `shutdown` after a coroutine."""

    def __init__(self, config: JobConfig, function: Callable[[Any], Any]) -> None:
        super().__init__(config)
        self.function = function

    async def run(self, ctx: Any) -> str:
        return "done"

    def shutdown(self, ctx: Any) -> None:
        self.function(ctx)


def plain(kind: str, function: Callable[[Any], Any], **policies: Any) -> Job:
    """A one-time job with one plain hook: of the kind, or a `run` that only its isolation makes async."""
    kinds: dict[str, Callable[..., Job]] = {
        "isolated": Call,
        "run": PlainRun,
        "init": PlainInit,
        "shutdown": PlainShutdown,
    }
    if kind == "isolated":
        policies["isolation"] = "async"
    return kinds[kind](JobConfig.one_time("plain", **policies), function)


def settled(scheduler: Scheduler) -> None:
    """Whatever was reported until now is written: a job that came later is on record."""
    later = scheduler.schedule(Call(JobConfig.one_time("later")))
    assert scheduler.wait(later, timeout=30).state is JobState.COMPLETED


# --- a stop, and code that does not heed it ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["isolated", "run", "init", "shutdown"])
def test_a_plain_hook_that_outlasts_its_timeout_keeps_its_job(
    dsn: str, scheduler_on: Any, stubborn: Stubborn, kind: str
) -> None:
    """A job is given back only when its code has ended: no attempt begins beside a hook that overlooks its timeout."""
    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(plain(kind, stubborn, timeout=SHORT, retries=1, backoff=AT_ONCE))
    assert stubborn.told.wait(30)
    settled(scheduler)
    state, runs = scheduler.get_job(record).state, scheduler.runs(record)
    stubborn.let_go.set()
    scheduler.wait(record, timeout=30)

    assert (state, runs) == (JobState.RUNNING, [])
    assert stubborn.reasons[0] == "timeout"
    assert stubborn.most == 1
    assert scheduler.runs(record)[-1].outcome is Outcome.TIMED_OUT


def test_a_plain_hook_that_is_cancelled_ends_in_its_own_time(
    dsn: str, scheduler_on: Any, stubborn: Stubborn
) -> None:
    """A cancel reaches a plain hook through its context, and the job is cancelled when the hook has ended."""
    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(plain("isolated", stubborn))
    assert stubborn.entered.wait(30)
    scheduler.cancel(record)
    assert stubborn.told.wait(30)
    settled(scheduler)
    state = scheduler.get_job(record).state
    stubborn.let_go.set()

    assert state is JobState.RUNNING
    assert scheduler.wait(record, timeout=30).state is JobState.CANCELLED
    assert stubborn.reasons == ["cancelled"]


def test_a_stop_during_a_plain_init_keeps_run_from_beginning(
    dsn: str, scheduler_on: Any, stubborn: Stubborn
) -> None:
    """What `init` could not be interrupted for is not forgotten: run is left out; shutdown closes what init opened."""
    scheduler = scheduler_on(dsn, start=True)
    job = PlainInit(JobConfig.one_time("plain"), stubborn)
    record = scheduler.schedule(job)
    assert stubborn.entered.wait(30)
    scheduler.cancel(record)
    assert stubborn.told.wait(30)
    stubborn.let_go.set()

    assert scheduler.wait(record, timeout=30).state is JobState.CANCELLED
    assert job.seen == ["shutdown"]


def test_a_plain_hook_that_outlasts_the_shutdown_is_named_and_its_outcome_written(
    dsn: str, db: Any, scheduler_on: Any, stubborn: Stubborn, quiet: Quiet
) -> None:
    """shutdown() says False and whom it left; the job is kept alive by heartbeats until its late outcome is written."""
    scheduler = scheduler_on(dsn, start=True, logger=quiet, heartbeat_interval=0.1)
    record = scheduler.schedule(plain("isolated", stubborn))
    assert stubborn.entered.wait(30)
    clean = scheduler.shutdown(timeout=0.2)
    (left,) = [fields for _, event, fields in quiet.lines if event.startswith("shutdown timeout exceeded")]
    assert (clean, left["jobs"]) == (False, ["plain"])

    def beat() -> Any:
        return db.execute("select heartbeat_at from pgscheduler_jobs where state = 'running'").fetchone()

    before = beat()
    assert before is not None
    eventually(lambda: beat() != before, timeout=30, describe="a heartbeat after the shutdown")
    assert beat() is not None
    stubborn.let_go.set()
    rows = eventually(
        lambda: db.execute("select job_id, outcome, result from pgscheduler_runs").fetchall(), timeout=30
    )

    assert rows == [(record.id, "completed", "done")]
    assert stubborn.reasons == ["shutdown"]


LEAVER = """
import sys, threading
from pgscheduler import Job, JobConfig, Scheduler, SchedulerConfig

began = threading.Event()

class Endless(Job):
    config = JobConfig(name="endless", isolation="async")

    def run(self, ctx):
        began.set()
        threading.Event().wait()

scheduler = Scheduler(SchedulerConfig(dsn=sys.argv[1], run_immediately=True))
scheduler.init()
scheduler.register(Endless)
scheduler.enqueue("endless")
scheduler.start()
assert began.wait(30)
print("clean:", scheduler.shutdown(timeout=0.2))
"""


def test_a_plain_hook_that_never_ends_does_not_keep_the_process(dsn: str) -> None:
    """After shutdown() the process can end, whatever a plain hook still does."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVER, dsn],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )

    assert "clean: False" in done.stdout


def test_every_slot_can_run_a_plain_hook(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """As many plain hooks run at once as there are slots."""
    slots = 40  # asyncio's own pool has 32 threads at most
    scheduler = scheduler_on(dsn, start=True, max_concurrent_jobs=slots)
    scheduler.schedule_many(
        [Call(JobConfig.one_time("plain", isolation="async"), gate) for _ in range(slots)]
    )
    gate.wait_for(slots, timeout=30)

    assert gate.most == slots


# --- making slots -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The system gives no thread to whoever wants another slot (a container's limit)."""
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if "-worker-" in thread.name:
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        yield


def refused(quiet: Quiet) -> bool:
    return "no thread for another slot, will try again" in quiet.events()


def test_slots_that_could_not_be_made_are_made_later(
    dsn: str, scheduler_on: Any, quiet: Quiet, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that find no thread wait without losing an attempt, and all slots are there once there are threads."""
    scheduler = scheduler_on(dsn, start=True, logger=quiet, max_concurrent_jobs=3)
    with no_threads(monkeypatch):
        records = [scheduler.schedule(Call(JobConfig.one_time("job"), gate)) for _ in range(3)]
        eventually(lambda: refused(quiet), describe="the refusal to be logged")
    gate.wait_for(3, timeout=30)
    gate.open()

    for record in records:
        assert scheduler.wait(record, timeout=30).state is JobState.COMPLETED
    assert [(run.attempt, run.outcome) for run in scheduler.runs()] == [(1, Outcome.COMPLETED)] * 3
    assert scheduler.shutdown()


def test_slots_that_are_there_take_what_the_others_cannot(
    dsn: str, scheduler_on: Any, quiet: Quiet, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is no thread for another slot, those that were made run everything; shutdown is clean."""
    scheduler = scheduler_on(dsn, start=True, logger=quiet, max_concurrent_jobs=3)
    scheduler.schedule(Call(JobConfig.one_time("job"), gate))
    gate.wait_for(1)
    with no_threads(monkeypatch):
        records = [scheduler.schedule(Call(JobConfig.one_time("job"), gate)) for _ in range(5)]
        eventually(lambda: refused(quiet), describe="the refusal to be logged")
        gate.open()
        for record in records:
            assert scheduler.wait(record, timeout=30).state is JobState.COMPLETED

        assert gate.most == 1
        assert scheduler.shutdown()


def test_the_loop_of_async_jobs_that_could_not_be_started_is_started_later(
    dsn: str, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An async job that finds no thread for the loop fails and is tried again; the next ones do not wait for ever."""
    real, refusals = threading.Thread.start, [True]

    def start(thread: threading.Thread) -> None:
        if thread.name.endswith("-asyncio") and refusals:
            refusals.clear()
            raise RuntimeError("can't start new thread")
        real(thread)

    scheduler = scheduler_on(dsn, start=True)
    monkeypatch.setattr(threading.Thread, "start", start)
    first = scheduler.schedule(plain("shutdown", lambda ctx: None))
    eventually(lambda: scheduler.runs(first), describe="the first run to fail")
    second = scheduler.schedule(plain("shutdown", lambda ctx: None))

    assert scheduler.wait(second, timeout=30).state is JobState.COMPLETED


class Emptied(deque[Any]):
    """A queue whose old work is taken by slots at the moment that new work comes."""

    def extend(self, claims: Any) -> None:
        self.clear()
        super().extend(claims)


def test_every_new_claim_has_a_slot_whatever_is_taken_meanwhile(gate: Gate) -> None:
    """As many slots are made as claims come, also while others take what came before."""
    ended = threading.Semaphore(0)

    class Entering(Workers):
        def execute(self, claim: Any) -> None:
            together.wait(30)
            ended.release()

    together = threading.Barrier(2)
    nothing: Any = None
    workers = Entering(4, nothing, nothing, "test")
    workers.ready = Emptied(["old", "old"])
    new: Any = ["new", "new"]
    workers.submit(new)

    assert ended.acquire(timeout=30)
    assert ended.acquire(timeout=30)
    workers.stop()
    assert workers.join(30)
