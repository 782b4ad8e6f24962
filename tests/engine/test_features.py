"""What a job can ask for and what a scheduler can be told, one promise of behaviour per test."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgscheduler import (
    Backoff,
    Cancel,
    Cron,
    Every,
    Fail,
    InvalidValueError,
    Job,
    JobConfig,
    JobKindError,
    JobNotFoundError,
    JobNotRunningError,
    JobState,
    Outcome,
    Retry,
    SchedulerConfig,
    Snooze,
    WaitTimeoutError,
)
from tests.engine.conftest import Call, Gate, Quiet
from tests.support import eventually
from tests.support.pooler import needs_notifications

NOON = datetime(2031, 3, 1, 12, 0, 30, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
SHORT = Backoff(initial=timedelta(0), factor=1, jitter=0)

# --- hooks ------------------------------------------------------------------------------------------------


class Hooked(Job):
    """Writes down which hook was called; fails where it is told to."""

    def __init__(self, config: JobConfig, seen: list[str], fail: tuple[str, ...] = ()) -> None:
        super().__init__(config)
        self.seen, self.fail = seen, fail

    def step(self, hook: str) -> None:
        self.seen.append(hook)
        if hook in self.fail:
            raise RuntimeError(f"{hook} broke")

    def init(self, ctx: Any) -> None:
        self.step("init")

    def run(self, ctx: Any) -> str:
        self.step("run")
        return "done"

    def shutdown(self, ctx: Any) -> None:
        self.step("shutdown")


class AsyncHooked(Hooked):
    """The same with coroutines."""

    async def init(self, ctx: Any) -> None:
        await asyncio.sleep(0)
        self.step("init")

    async def run(self, ctx: Any) -> str:
        await asyncio.sleep(0)
        self.step("run")
        return "done"

    async def shutdown(self, ctx: Any) -> None:
        await asyncio.sleep(0)
        self.step("shutdown")


@pytest.mark.parametrize("kind", [Hooked, AsyncHooked])
@pytest.mark.parametrize(
    ("fail", "called", "outcome"),
    [
        ((), ["init", "run", "shutdown"], "completed"),
        (("init",), ["init"], "failed"),
        (("run",), ["init", "run", "shutdown"], "failed"),
        (("shutdown",), ["init", "run", "shutdown"], "completed"),
        (("run", "shutdown"), ["init", "run", "shutdown"], "failed"),
    ],
)
def test_hook_order(
    dsn: str, scheduler_on: Any, kind: type[Hooked], fail: Any, called: list[str], outcome: str
) -> None:
    """init, run, shutdown; no run after a failed init; shutdown after a failed run, whose error is kept."""
    scheduler = scheduler_on(dsn)
    seen: list[str] = []
    record = scheduler.schedule(kind(JobConfig.one_time("hooked"), seen, fail))
    scheduler.run_pending()
    (run,) = scheduler.runs(record)
    assert (seen, run.outcome) == (called, outcome)
    assert run.result == ("done" if outcome == "completed" else None)
    if outcome == "failed":
        assert f"{fail[0]} broke" in run.error
        assert "Traceback" in run.error


class EarlyEnd(Hooked):
    """Decides in `init` already."""

    def init(self, ctx: Any) -> Any:
        self.step("init")
        return Cancel("nothing to do")


def test_shutdown_follows_an_init_that_decided(dsn: str, scheduler_on: Any) -> None:
    """An `init` that returns a decision has opened things too: run is left out, shutdown is not."""
    scheduler = scheduler_on(dsn)
    seen: list[str] = []
    record = scheduler.schedule(EarlyEnd(JobConfig.one_time("early"), seen))
    scheduler.run_pending()
    assert seen == ["init", "shutdown"]
    assert [r.outcome for r in scheduler.runs(record)] == [Outcome.CANCELLED]


class Private(Job):
    """Keeps something on self in init."""

    shared: list[int]

    def __init__(self, config: JobConfig, shared: list[int]) -> None:
        super().__init__(config)
        self.shared = shared

    def init(self, ctx: Any) -> None:
        assert not hasattr(self, "mine")
        self.mine = ctx.parameters["n"]

    def run(self, ctx: Any) -> None:
        self.shared.append(self.mine)


def test_many_one_time_rows_of_one_name_run_with_their_own_parameters(dsn: str, scheduler_on: Any) -> None:
    """Twenty schedules of one name are twenty runs, each with its own parameters and its own instance."""
    shared: list[int] = []
    scheduler = scheduler_on(dsn, start=True)
    for n in range(20):
        scheduler.schedule(Private(JobConfig.one_time("private", {"n": n}), shared))
    eventually(lambda: len(shared) == 20)
    assert sorted(shared) == list(range(20))
    eventually(lambda: len(scheduler.runs(name="private", outcome="completed")) == 20)


# --- order, catch-up, waking ------------------------------------------------------------------------------


def test_priority_order_with_one_slot(dsn: str, scheduler_on: Any) -> None:
    """The smaller priority runs first, and within one the older due time, when there is one slot."""
    scheduler = scheduler_on(dsn, max_concurrent_jobs=1)
    order: list[str] = []
    at = datetime.now(UTC) - HOUR
    for label, priority, later in [("9", 9, 0), ("5b", 5, 2), ("1", 1, 3), ("5a", 5, 1), ("0", 0, 9)]:
        config = JobConfig.one_time(
            "ordered", {"label": label}, priority=priority, run_at=at + later * MINUTE
        )
        scheduler.schedule(Call(config, lambda ctx: order.append(ctx.parameters["label"])))
    scheduler.start()
    eventually(lambda: len(order) == 5)
    assert order == ["0", "1", "5a", "5b", "9"]


def test_catch_up_runs_once(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """After an hour without a node a job of every minute runs once, then keeps its rhythm; the rest is on record."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    seen: list[datetime] = []
    record = scheduler.schedule(
        Call(JobConfig.recurring("tick", "* * * * *"), lambda ctx: seen.append(ctx.scheduled_at))
    )
    clock(NOON + HOUR)
    scheduler.run_pending()
    scheduler.run_pending()
    assert seen == [datetime(2031, 3, 1, 13, 0, tzinfo=UTC)]
    assert scheduler.get_job(record).scheduled_at == datetime(2031, 3, 1, 13, 1, tzinfo=UTC)
    assert len(scheduler.runs(record, outcome="skipped", limit=100)) == 59


def test_run_immediately_looks_at_start(dsn: str, scheduler_on: Any) -> None:
    """With run_immediately what is due runs at once, and a recurring job is not run ahead of its time."""
    store = scheduler_on(dsn)
    due = store.enqueue("due")
    ahead = store.schedule(Call(JobConfig.recurring("yearly", "0 0 1 1 *")))
    node = scheduler_on(
        dsn, listen=False, register=(Call(JobConfig(name="due")), Call(JobConfig(name="yearly")))
    )
    node.start()
    assert node.wait(due, 10).state is JobState.COMPLETED
    assert node.runs(ahead) == []


def test_without_run_immediately_the_first_look_comes_later(dsn: str, scheduler_on: Any) -> None:
    """Without it a job that was due before start() waits for job_check_interval, and then runs."""
    store = scheduler_on(dsn)
    due = store.enqueue("due")
    node = scheduler_on(
        dsn,
        listen=False,
        run_immediately=False,
        job_check_interval=1.5,
        register=(Call(JobConfig(name="due")),),
    )
    began = time.monotonic()
    node.start()
    assert node.wait(due, 15).state is JobState.COMPLETED
    assert time.monotonic() - began > 1.4


# --- concurrency ------------------------------------------------------------------------------------------


class AsyncGate(Job):
    """Waits in a coroutine, and counts itself in and out."""

    def __init__(self, config: JobConfig, mark: Any) -> None:
        super().__init__(config)
        self.mark = mark

    async def run(self, ctx: Any) -> list[float]:
        began = time.monotonic()
        self.mark(1)
        await asyncio.sleep(0.15)
        self.mark(-1)
        return [began, time.monotonic()]


class Counted(Job):
    """The same on a thread."""

    def __init__(self, config: JobConfig, mark: Any) -> None:
        super().__init__(config)
        self.mark = mark

    def run(self, ctx: Any) -> list[float]:
        began = time.monotonic()
        self.mark(1)
        time.sleep(0.15)
        self.mark(-1)
        return [began, time.monotonic()]


class ProcessSleep(Job):
    """Runs in a process of its own."""

    def run(self, ctx: Any) -> list[float]:
        began = time.monotonic()
        time.sleep(0.15)
        return [began, time.monotonic()]


def test_max_concurrent_jobs_holds_over_time_for_all_kinds(dsn: str, scheduler_on: Any) -> None:
    """With limit 3 the runs of threads, coroutines and processes together never exceed three at a time."""
    scheduler = scheduler_on(dsn, max_concurrent_jobs=3)
    gauge = {"now": 0, "most": 0}
    lock = threading.Lock()

    def mark(change: int) -> None:
        with lock:
            gauge["now"] += change
            gauge["most"] = max(gauge["most"], gauge["now"])

    jobs: list[Job] = []
    for _ in range(8):
        jobs += [Counted(JobConfig(name="threaded"), mark), AsyncGate(JobConfig(name="coroutine"), mark)]
        jobs += [ProcessSleep(JobConfig(name="process", isolation="process"))]
    scheduler.schedule_many(jobs)
    scheduler.start()
    eventually(lambda: len(scheduler.runs(outcome="completed", limit=100)) == 24, timeout=60)
    assert gauge["now"] == 0
    assert 2 <= gauge["most"] <= 3
    # By the machine's clock, which the processes share: the record's times are as good as each claim's answer was quick.
    rows = sorted(
        (moment, change)
        for run in scheduler.runs(limit=100)
        for moment, change in zip(run.result, (1, -1), strict=True)
    )
    inside = most = 0
    for _, change in rows:
        inside += change
        most = max(most, inside)
    assert most <= 3


# --- what a row tells -------------------------------------------------------------------------------------


def test_row_fields_after_success_and_failure(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """last_run, last_success, last_failure, consecutive_failures, the error and the execution time follow each run."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    fail = [True, True, False, True]

    def run(ctx: Any) -> None:
        time.sleep(0.02)
        if fail.pop(0):
            raise ValueError("no luck")

    record = scheduler.schedule(Call(JobConfig.recurring("moody", "* * * * *"), run))
    seen = []
    for _ in range(4):
        clock(scheduler.get_job(record).run_at)
        scheduler.run_pending()
        now = scheduler.get_job(record)
        assert now.execution_time_ms is not None
        assert now.execution_time_ms >= 20
        seen.append(
            (now.consecutive_failures, now.state, now.last_success is not None, now.last_failure is not None)
        )
        assert now.last_run is not None
    assert seen == [
        (1, "pending", False, True),
        (2, "pending", False, True),
        (0, "pending", True, True),
        (1, "pending", True, True),
    ]
    assert "no luck" in scheduler.get_job(record).last_error
    assert [run.duration >= timedelta(milliseconds=20) for run in scheduler.runs(record)] == [True] * 4


@pytest.mark.parametrize(
    "error",
    [ValueError("x" * 1_000_000), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("base")],
)
def test_every_kind_of_exception_is_a_failed_attempt(
    dsn: str, scheduler_on: Any, error: BaseException
) -> None:
    """Whatever a job raises, however long its text, ends the attempt and not the node."""
    scheduler = scheduler_on(dsn, start=True)

    def run(ctx: Any) -> None:
        raise error

    bad = scheduler.schedule(Call(JobConfig.one_time("bad"), run))
    assert scheduler.wait(bad, 10).state is JobState.FAILED
    (run_record,) = scheduler.runs(bad)
    assert type(error).__name__ in run_record.error
    assert len(run_record.error) <= 8192 + 100
    good = scheduler.schedule(Call(JobConfig.one_time("good")))
    assert scheduler.wait(good, 10).state is JobState.COMPLETED


def test_log_events_name_job_and_node(dsn: str, scheduler_on: Any, quiet: Quiet) -> None:
    """What a job logs reaches the injected logger with job, key, attempt and node."""
    scheduler = scheduler_on(dsn, logger=quiet)
    scheduler.schedule(
        Call(JobConfig.one_time("talks", key="k"), lambda ctx: ctx.log.bind(a=1).info("hello", b=2))
    )
    scheduler.run_pending()
    (fields,) = [fields for _, event, fields in quiet.lines if event == "hello"]
    assert {k: fields[k] for k in ("job", "key", "attempt", "node", "a", "b")} == {
        "job": "talks", "key": "k", "attempt": 1, "node": scheduler.id, "a": 1, "b": 2,
    }  # fmt: skip


# --- verbs ------------------------------------------------------------------------------------------------


def test_pause_and_resume(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """A paused job is never claimed; resumed, it goes on with its next occurrence from now, not with an old one."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.recurring("tick", "* * * * *")))
    assert scheduler.pause("tick").state is JobState.PAUSED
    clock(NOON + HOUR)
    assert scheduler.run_pending().claimed == 0
    resumed = scheduler.resume("tick")
    assert (resumed.state, resumed.run_at) == (JobState.PENDING, datetime(2031, 3, 1, 13, 1, tzinfo=UTC))
    assert scheduler.run_pending().claimed == 0
    assert scheduler.runs(record) == []


def test_pause_of_a_running_job_lets_it_end(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """Pause while it runs: the run goes on to its end, then the job is paused."""
    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(Call(JobConfig.recurring("slow", Every(HOUR)), gate))
    scheduler.trigger(record)
    gate.wait_for(1)
    assert scheduler.pause(record).state is JobState.RUNNING
    gate.open()
    eventually(lambda: scheduler.get_job(record).state is JobState.PAUSED)
    assert [run.outcome for run in scheduler.runs(record)] == [Outcome.COMPLETED]


def test_trigger_runs_now_and_keeps_the_schedule(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """Trigger runs a recurring job now, as an occurrence of its own; a paused one runs once and stays paused."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.recurring("daily", "0 9 * * *")))
    scheduler.trigger("daily")
    assert scheduler.run_pending().completed == 1
    assert scheduler.get_job(record).run_at == datetime(2031, 3, 2, 9, tzinfo=UTC)
    scheduler.pause(record)
    scheduler.trigger(record)
    assert scheduler.run_pending().completed == 1
    assert scheduler.get_job(record).state is JobState.PAUSED
    assert [run.scheduled_at for run in scheduler.runs(record)] == [NOON, NOON]


def test_reschedule(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """A one-time job gets another time, a recurring one another schedule at once; the wrong kind is refused."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    once = scheduler.enqueue("once", delay=HOUR)
    often = scheduler.schedule(Call(JobConfig.recurring("often", "0 0 1 1 *")))
    assert scheduler.reschedule(once, run_at=NOON + MINUTE).run_at == NOON + MINUTE
    assert scheduler.reschedule(once, delay=2 * HOUR).run_at == NOON + 2 * HOUR
    assert scheduler.reschedule(often, schedule="* * * * *").run_at == datetime(2031, 3, 1, 12, 1, tzinfo=UTC)
    assert scheduler.reschedule(often, schedule=Every(HOUR)).schedule == {"every": 3600.0}
    for arguments in ({}, {"run_at": NOON, "delay": HOUR}):
        with pytest.raises(InvalidValueError):
            scheduler.reschedule(once, **arguments)
    with pytest.raises(JobKindError):
        scheduler.reschedule(once, schedule="* * * * *")
    with pytest.raises(JobKindError):
        scheduler.reschedule(often, delay=HOUR)


def test_delete(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """A deleted job is gone, with a record; a running one is asked to stop and goes when it has."""
    scheduler = scheduler_on(dsn, start=True)
    idle = scheduler.schedule(Call(JobConfig.recurring("idle", Every(HOUR))))
    assert scheduler.delete("idle") == "deleted"
    assert [(r.outcome, r.reason) for r in scheduler.runs(idle)] == [(Outcome.CANCELLED, "deleted")]
    busy = scheduler.schedule(Call(JobConfig.recurring("busy", Every(HOUR)), gate))
    scheduler.trigger(busy)
    gate.wait_for(1)
    assert scheduler.delete(busy) == "requested"
    eventually(lambda: scheduler.jobs() == [])
    assert [r.outcome for r in scheduler.runs(busy)] == [Outcome.CANCELLED]
    with pytest.raises(JobNotFoundError):
        scheduler.delete("never was")


def test_deleted_while_waiting_for_a_slot_stays_deleted(dsn: str, db: Any, scheduler_on: Any) -> None:
    """A recurring job deleted between its claim and its start is not revived when the claim is given back."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.recurring("tick", Every(HOUR))))
    scheduler.trigger(record)
    # The claim of a node that has not begun the run: release it as a shutdown does.
    from pgscheduler import states
    from pgscheduler._store import ClaimRequest, new_token

    with scheduler._store.connect() as connection:
        request = ClaimRequest(5, ["tick"], {}, True)
        (claim,) = scheduler._store.claim(connection, scheduler.id, request, new_token())
        assert scheduler.delete(record) == "requested"
        scheduler._store.finish(connection, [states.released(claim)])
    assert scheduler.run_pending().claimed == 1
    assert scheduler.jobs() == []
    assert [r.outcome for r in scheduler.runs(record)] == [Outcome.CANCELLED]


def test_retry_of_a_finished_run(dsn: str, scheduler_on: Any) -> None:
    """Retry of a failed run is a new job with the same parameters and policies."""
    scheduler = scheduler_on(dsn)
    seen: list[Any] = []

    def run(ctx: Any) -> None:
        seen.append(ctx.parameters)
        if len(seen) == 1:
            raise ValueError("first")

    record = scheduler.schedule(Call(JobConfig.one_time("again", {"a": [1]}, max_stalls=7), run))
    scheduler.run_pending()
    (failed,) = scheduler.runs(record)
    again = scheduler.retry(failed.id)
    assert again.id != record.id
    assert again.options == {"max_stalls": 7}
    assert scheduler.run_pending().completed == 1
    assert seen == [{"a": [1]}] * 2
    with pytest.raises(JobNotFoundError):
        scheduler.retry(f"{2**40}-{1:016x}")


def test_cancel_pending_running_and_wrong(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """Cancel ends a pending job, asks a running one, and refuses what has ended, never was, or only waits to recur."""
    scheduler = scheduler_on(dsn, start=True)
    pending = scheduler.enqueue("later", delay=HOUR)
    assert scheduler.cancel(pending) == "cancelled"
    assert scheduler.get_job(pending).state is JobState.CANCELLED
    running = scheduler.schedule(Call(JobConfig.one_time("slow", retries=5), gate))
    gate.wait_for(1)
    assert scheduler.cancel(running) == "requested"
    assert scheduler.wait(running, 10).state is JobState.CANCELLED
    assert len(scheduler.runs(running)) == 1  # no retry
    with pytest.raises(JobNotRunningError):
        scheduler.cancel(running)
    with pytest.raises(JobNotFoundError):
        scheduler.cancel("never was")
    scheduler.schedule(Call(JobConfig.recurring("tick", Every(HOUR))))
    with pytest.raises(JobNotRunningError):
        scheduler.cancel("tick")


@needs_notifications
def test_cancel_reaches_a_run_on_another_node(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """A cancel spoken on one node stops the run on another; a recurring job keeps its schedule."""
    node = scheduler_on(dsn, start=True, heartbeat_interval=60, no_heartbeat_timeout=300)
    other = scheduler_on(dsn)
    record = node.schedule(Call(JobConfig.recurring("tick", Every(HOUR)), gate))
    other.trigger("tick")
    gate.wait_for(1)
    assert other.cancel("tick") == "requested"
    eventually(lambda: other.get_job("tick").state is JobState.PENDING)
    assert [r.outcome for r in other.runs(record)] == [Outcome.CANCELLED]
    assert other.get_job("tick").cancel_requested is False


def test_a_cancelled_run_that_fails_is_not_retried(dsn: str, scheduler_on: Any) -> None:
    """A run that fails before it hears of its cancel is not tried again: the job ends as cancelled."""
    scheduler = scheduler_on(dsn)
    calls: list[int] = []

    def run(ctx: Any) -> None:
        calls.append(ctx.attempt)
        assert scheduler.cancel(ctx.job_id) == "requested"
        raise ValueError("just then")

    record = scheduler.schedule(Call(JobConfig.one_time("unlucky", retries=3, backoff=SHORT), run))
    scheduler.run_pending()
    scheduler.run_pending()
    assert calls == [1]
    assert [r.outcome for r in scheduler.runs(record)] == [Outcome.CANCELLED, Outcome.FAILED]


def test_wait_times_out(dsn: str, scheduler_on: Any) -> None:
    """wait() on a job that nobody runs ends with WaitTimeoutError."""
    scheduler = scheduler_on(dsn)
    with pytest.raises(WaitTimeoutError):
        scheduler.wait(scheduler.enqueue("nobody"), 0.05)


def test_history_order_limit_pages_and_filters(dsn: str, scheduler_on: Any) -> None:
    """runs() answers newest first, in pages, and filters by name, job, outcome and time."""
    scheduler = scheduler_on(dsn)

    def run(ctx: Any) -> None:
        if ctx.parameters["n"] % 3 == 0:
            raise ValueError("third")

    for n in range(60):
        scheduler.schedule(Call(JobConfig.one_time("numbered", {"n": n}, priority=n), run))
    scheduler.run_pending(100)
    everything = scheduler.runs(name="numbered", limit=100)
    assert len(everything) == 60
    times = [r.finished_at for r in everything]
    assert times == sorted(times, reverse=True)
    assert len(scheduler.runs()) == 50
    pages = [scheduler.runs(limit=25, offset=page * 25) for page in range(3)]
    assert [r.id for page in pages for r in page] == [r.id for r in everything]
    assert len(scheduler.runs(outcome="failed", limit=100)) == 20
    assert scheduler.runs(since=times[0] + MINUTE) == []
    assert scheduler.runs(everything[7].job_id) == [everything[7]]
    with pytest.raises(InvalidValueError):
        scheduler.runs(limit=0)
    with pytest.raises(ValueError):
        scheduler.runs(outcome="splendid")


def test_jobs_filters_and_stats(dsn: str, scheduler_on: Any) -> None:
    """jobs() lists live jobs newest first, by name, state and kind; stats() counts them."""
    scheduler = scheduler_on(dsn)
    ids = [scheduler.enqueue("one").id for _ in range(3)]
    scheduler.schedule(Call(JobConfig.recurring("tick", Every(HOUR))))
    scheduler.pause("tick")
    assert [job.id for job in scheduler.jobs(name="one")] == ids[::-1]
    assert [job.name for job in scheduler.jobs(recurring=True)] == ["tick"]
    assert [job.name for job in scheduler.jobs(state="paused")] == ["tick"]
    assert len(scheduler.jobs(limit=2)) == 2
    stats = scheduler.stats()
    assert stats["names"] == {"one": {"pending": 3}, "tick": {"paused": 1}}
    assert stats["due"] == 3


# --- storing ----------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats(-1e15, 1e15)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(TEXT, v, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("way", ["schedule", "keyed", "many", "many keyed", "enqueue"])
def test_parameters_round_trip(dsn: str, scheduler_on: Any, way: str) -> None:
    """Any JSON value reaches the run as it was given, whichever way it was stored; None is no parameters: {}."""
    scheduler = scheduler_on(dsn)
    received: list[Any] = []
    job = Call(JobConfig(name="echo"), lambda ctx: received.append(ctx.parameters))
    scheduler.register(job)

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(JSON, min_size=1, max_size=10))
    def check(values: list[Any]) -> None:
        received.clear()
        configs = [
            JobConfig.one_time("echo", value, priority=n, key=f"k{n}" if way.endswith("keyed") else None)
            for n, value in enumerate(values)
        ]
        if way.startswith("many"):
            scheduler.schedule_many([Call(config, job.function) for config in configs])
        elif way == "enqueue":
            for n, value in enumerate(values):
                scheduler.enqueue("echo", value, priority=n)
        else:
            for config in configs:
                scheduler.schedule(Call(config, job.function))
        assert scheduler.run_pending(100).completed == len(values)
        expected = [{} if value is None else value for value in values]
        assert [_exact(v) for v in received] == [_exact(v) for v in expected]

    check()


def _exact(value: Any) -> Any:
    """For comparing: true and 1 are equal in Python, and not the same."""
    if isinstance(value, bool):
        return f"bool {value}"
    if isinstance(value, dict):
        return {k: _exact(v) for k, v in value.items()}
    return [_exact(v) for v in value] if isinstance(value, list) else value


@needs_notifications
def test_transactional_scheduling_with_psycopg(dsn: str, scheduler_on: Any) -> None:
    """A job stored on the caller's connection runs soon after the commit, and never after a rollback."""
    node = scheduler_on(dsn, start=True, job_check_interval=60, register=(Call(JobConfig(name="mail")),))
    with psycopg.connect(dsn) as connection:
        lost = node.enqueue("mail", connection=connection)
        connection.rollback()
        kept = node.schedule(Call(JobConfig.one_time("mail2")), connection=connection)
        assert (
            node.schedule_many([Call(JobConfig.one_time("mail2")) for _ in range(2)], connection=connection)
            == 2
        )
        time.sleep(0.2)
        assert node.runs() == []
        connection.commit()
        assert node.wait(kept, 10).state is JobState.COMPLETED
    with pytest.raises(JobNotFoundError):
        node.get_job(lost)


@needs_notifications
def test_transactional_scheduling_with_async_psycopg(dsn: str, scheduler_on: Any) -> None:
    """The same on an AsyncConnection, where the answer is awaited."""
    node = scheduler_on(dsn, start=True, job_check_interval=60, register=(Call(JobConfig(name="mail")),))

    async def go() -> tuple[Any, Any]:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            lost = await node.enqueue("mail", connection=connection)
            await connection.rollback()
            kept = await node.schedule(Call(JobConfig.one_time("mail3")), connection=connection)
            await connection.commit()
            return lost, kept

    lost, kept = asyncio.run(go())
    assert node.wait(kept, 10).state is JobState.COMPLETED
    with pytest.raises(JobNotFoundError):
        node.get_job(lost)


@needs_notifications
@pytest.mark.parametrize("kind", ["connection", "session"])
def test_transactional_scheduling_with_sqlalchemy(dsn: str, scheduler_on: Any, kind: str) -> None:
    """The same in a SQLAlchemy Connection's or Session's transaction."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from sqlalchemy.orm import Session

    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
    node = scheduler_on(dsn, start=True, job_check_interval=60, register=(Call(JobConfig(name="mail")),))
    try:
        with engine.connect() if kind == "connection" else Session(engine) as connection:
            lost = node.enqueue("mail", connection=connection)
            connection.rollback()
            kept = node.enqueue("mail", {"a": "ä"}, connection=connection)
            connection.commit()
        assert node.wait(kept, 10).state is JobState.COMPLETED
        assert node.runs(kept)[0].parameters == {"a": "ä"}
        with pytest.raises(JobNotFoundError):
            node.get_job(lost)
    finally:
        engine.dispose()


def test_unchanged_recurring_in_a_callers_transaction_while_it_runs(
    dsn: str, scheduler_on: Any, gate: Gate
) -> None:
    """Scheduling an unchanged recurring job again is harmless while it runs, also on the caller's connection."""
    node = scheduler_on(dsn, start=True)
    job = Call(JobConfig.recurring("tick", Every(HOUR)), gate)
    record = node.schedule(job)
    node.trigger(record)
    gate.wait_for(1)
    assert node.schedule(job).id == record.id
    with psycopg.connect(dsn) as connection:
        assert node.schedule(job, connection=connection).id == record.id


@needs_notifications
def test_enqueue_from_sql(dsn: str, db: Any, scheduler_on: Any) -> None:
    """The SQL function stores a job that an idle node starts at commit; arguments by position or by name."""
    seen: list[Any] = []
    node = scheduler_on(
        dsn,
        start=True,
        job_check_interval=60,
        register=(Call(JobConfig(name="mail"), lambda ctx: seen.append(ctx.parameters)),),
    )
    (first,) = db.execute("""select pgscheduler_enqueue('mail', '{"n": 1}')""").fetchone()
    assert node.wait(first, 10).state is JobState.COMPLETED
    with psycopg.connect(dsn) as connection:
        connection.execute(
            """select pgscheduler_enqueue(name => 'mail', parameters => '{"n": 2}', priority => 1)"""
        )
        connection.rollback()
    (later,) = db.execute(
        "select pgscheduler_enqueue(name => 'mail', key => 'k', run_at => now() + interval '1 hour', notify => false)"
    ).fetchone()
    (updated,) = db.execute("""select pgscheduler_enqueue('mail', '[3]', 'k')""").fetchone()
    assert updated == later
    assert node.wait(updated, 10).state is JobState.COMPLETED
    assert seen == [{"n": 1}, [3]]


@pytest.mark.parametrize(
    ("call", "state"),
    [
        ("('')", "22023"),
        ("(null)", "22023"),
        ("(E'a\\nb')", "22023"),
        ("('mail', key => ' ')", "22023"),
        ("('mail', priority => -1)", "22023"),
        ("('mail', priority => 40000)", "22023"),
        ("('mail', priority => null)", "22023"),
        ("('mail', run_at => 'infinity')", "22023"),
        ("('tick')", "42710"),
        ("('busy', key => 'b')", "55006"),
    ],
)
def test_enqueue_from_sql_refuses(dsn: str, db: Any, scheduler_on: Any, call: str, state: str) -> None:
    """The SQL function refuses what schedule() would refuse, and stores nothing."""
    scheduler = scheduler_on(dsn)
    scheduler.schedule(Call(JobConfig.recurring("tick", Every(HOUR))))
    scheduler.enqueue("busy", key="b")
    db.execute(
        "update pgscheduler_jobs set state = 'running', token = 1, claimed_at = now() where name = 'busy'"
    )
    with pytest.raises(psycopg.Error) as caught:
        db.execute(f"select pgscheduler_enqueue{call}")
    assert caught.value.sqlstate == state
    assert len(scheduler.jobs()) == 2


def test_changed_schedule_takes_effect_at_once(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """A changed cron line moves the next occurrence either way at once; an unchanged one keeps it."""
    clock(NOON)
    yearly, minutely = JobConfig.recurring("tick", "0 0 1 1 *"), JobConfig.recurring("tick", "* * * * *")
    first = scheduler_on(dsn).schedule(Call(yearly))
    assert first.run_at == datetime(2032, 1, 1, tzinfo=UTC)
    assert scheduler_on(dsn).schedule(Call(minutely)).run_at == datetime(2031, 3, 1, 12, 1, tzinfo=UTC)
    clock(NOON + 10 * MINUTE)
    kept = scheduler_on(dsn).schedule(Call(minutely))
    assert (kept.id, kept.run_at) == (first.id, datetime(2031, 3, 1, 12, 1, tzinfo=UTC))
    assert scheduler_on(dsn).schedule(Call(yearly)).run_at == datetime(2032, 1, 1, tzinfo=UTC)


def test_same_name_of_the_other_kind_leaves_no_row(dsn: str, scheduler_on: Any) -> None:
    """A one-time job under a recurring name is refused, in this process and from another, and no row stays."""
    scheduler = scheduler_on(dsn)
    scheduler.schedule(Call(JobConfig.recurring("tick", Every(HOUR))))
    for node in (scheduler, scheduler_on(dsn)):
        for key in (None, "tick", "other"):
            with pytest.raises(JobKindError):
                node.schedule(Call(JobConfig.one_time("tick", key=key)))
            with pytest.raises(JobKindError):
                node.enqueue("tick", key=key)
    assert len(scheduler.jobs()) == 1


# --- subscribe --------------------------------------------------------------------------------------------


def test_subscribe_tells_every_change_in_order(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """A subscriber hears the changes of this process in order; one that raises harms nobody; one may leave."""
    scheduler = scheduler_on(dsn)
    heard: list[tuple[Any, Any]] = []
    scheduler.subscribe(lambda change: 1 / 0)
    leave = scheduler.subscribe(lambda change: heard.append((change.old, change.new)))
    tries: list[int] = []

    def run(ctx: Any) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("once")

    scheduler.schedule(Call(JobConfig.one_time("job", retries=1, backoff=SHORT), run))
    scheduler.run_pending()
    scheduler.run_pending()
    eventually(lambda: len(heard) == 5)
    assert heard == [
        (None, "pending"), ("pending", "running"), ("running", "pending"), ("pending", "running"), ("running", "completed"),
    ]  # fmt: skip
    leave()
    marker = scheduler.subscribe(lambda change: tries.append(2))
    scheduler.enqueue("nobody")
    eventually(lambda: 2 in tries)
    marker()
    assert len(heard) == 5


def test_subscriber_thread_ends_with_a_scheduler_that_never_started(dsn: str, scheduler_on: Any) -> None:
    """shutdown() of a mere client ends the thread that told its subscribers."""
    scheduler = scheduler_on(dsn)
    scheduler.subscribe(lambda change: None)
    thread = scheduler._subscribers.thread
    assert thread is not None
    assert thread.is_alive()
    scheduler.shutdown()
    thread.join(5)
    assert not thread.is_alive()


# --- typed parameters -------------------------------------------------------------------------------------


@dataclass
class Order:
    """Parameters as a dataclass."""

    number: int
    note: str = ""


def test_dataclass_parameters(dsn: str, scheduler_on: Any) -> None:
    """With a dataclass as schema, run gets an instance, and what does not fit is refused before it is stored."""
    scheduler = scheduler_on(dsn)
    seen: list[Any] = []
    config = JobConfig.one_time("order", Order(7, "x"), parameters_schema=Order)
    job = Call(config, lambda ctx: seen.append(ctx.parameters))
    assert scheduler.schedule(job).parameters == {"number": 7, "note": "x"}
    assert scheduler.run_pending().completed == 1
    assert seen == [Order(7, "x")]
    with pytest.raises(InvalidValueError, match="Order"):
        scheduler.schedule(Call(JobConfig.one_time("order", {"nomber": 7}, parameters_schema=Order)))
    # Stored by somebody who does not know the class: the attempt fails with a readable reason, run is not called.
    wrong = scheduler_on(dsn).enqueue("order", {"nomber": 7})
    scheduler.run_pending()
    assert "do not fit Order" in scheduler.runs(wrong)[0].error
    assert len(seen) == 1


def test_json_schema_parameters(dsn: str, scheduler_on: Any) -> None:
    """With a JSON Schema the same: checked when stored, and again before run."""
    pytest.importorskip("jsonschema")
    scheduler = scheduler_on(dsn)
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    seen: list[Any] = []
    scheduler.schedule(
        Call(
            JobConfig.one_time("checked", {"n": 1}, parameters_schema=schema),
            lambda ctx: seen.append(ctx.parameters),
        )
    )
    for bad in ({}, {"n": "1"}):
        with pytest.raises(InvalidValueError):
            scheduler.schedule(Call(JobConfig.one_time("checked", bad, parameters_schema=schema)))
    with pytest.raises(InvalidValueError, match="do not fit their schema"):
        scheduler.enqueue("checked", {"n": "x"})
    wrong = scheduler_on(dsn).enqueue("checked", {"n": "x"})
    scheduler.run_pending()
    assert seen == [{"n": 1}]
    assert "do not fit their schema" in scheduler.runs(wrong)[0].error


# --- deciding ---------------------------------------------------------------------------------------------

SIGNALS = {
    "Retry": lambda: Retry(0, "later"),
    "Snooze": lambda: Snooze(HOUR, "asleep"),
    "Cancel": lambda: Cancel("pointless"),
    "Fail": lambda: Fail("hopeless"),
}


class Decides(Job):
    """Raises or returns a decision, in init or run."""

    def decide(self, ctx: Any, hook: str) -> Any:
        wanted = ctx.parameters
        if wanted["hook"] != hook:
            return None
        signal = SIGNALS[wanted["signal"]]()
        if wanted["way"] == "raise":
            raise signal
        return signal

    def init(self, ctx: Any) -> Any:
        return self.decide(ctx, "init")

    def run(self, ctx: Any) -> Any:
        return self.decide(ctx, "run")


class AsyncDecides(Decides):
    """The same with coroutines."""

    async def init(self, ctx: Any) -> Any:
        return self.decide(ctx, "init")

    async def run(self, ctx: Any) -> Any:
        return self.decide(ctx, "run")


@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_signals_raised_and_returned(dsn: str, scheduler_on: Any, isolation: str) -> None:
    """Retry, Snooze, Cancel and Fail decide the outcome, raised or returned, from init or run, wherever it runs."""
    scheduler = scheduler_on(dsn)
    kind = AsyncDecides if isolation == "async" else Decides
    records: dict[tuple[str, str, str], Any] = {}
    for signal in SIGNALS:
        for way in ("raise", "return"):
            for hook in ("init", "run"):
                parameters = {"signal": signal, "way": way, "hook": hook}
                config = JobConfig.one_time("decides", parameters, retries=1, isolation=isolation)
                records[(signal, way, hook)] = scheduler.schedule(kind(config))
    assert scheduler.run_pending(100).claimed == 16
    scheduler.run_pending(100)  # the retries
    expected = {
        "Retry": ["failed", "failed"],
        "Snooze": ["interrupted"],
        "Cancel": ["cancelled"],
        "Fail": ["failed"],
    }
    reasons = {"Retry": "later", "Snooze": "asleep", "Cancel": "pointless", "Fail": "hopeless"}
    for (signal, way, hook), record in records.items():
        runs = scheduler.runs(record)
        assert [r.outcome for r in runs] == expected[signal], (signal, way, hook)
        assert {r.reason for r in runs} == {reasons[signal]}
    snoozed = scheduler.get_job(records[("Snooze", "raise", "run")])
    assert (snoozed.state, snoozed.attempt) == (JobState.PENDING, 1)


def test_retries_are_attempts_after_the_first(dsn: str, scheduler_on: Any) -> None:
    """retries=3 is four attempts, numbered, with one record each; then the job has failed."""
    scheduler = scheduler_on(dsn)
    attempts: list[int] = []

    def run(ctx: Any) -> None:
        attempts.append(ctx.attempt)
        raise ValueError(f"attempt {ctx.attempt}")

    record = scheduler.schedule(Call(JobConfig.one_time("hard", retries=3, backoff=SHORT), run))
    left = []
    for _ in range(6):
        scheduler.run_pending()
        left.append(scheduler.get_job(record).retries_left)
    assert attempts == [1, 2, 3, 4]
    assert left[:3] == [2, 1, 0]
    assert scheduler.get_job(record).state is JobState.FAILED
    assert "attempt 4" in scheduler.get_job(record).last_error
    assert [r.attempt for r in scheduler.runs(record)] == [4, 3, 2, 1]


def test_backoff_callable_and_none(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """A callable decides the delay of each retry from count and error; None ends the retries."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    asked: list[tuple[int, str]] = []

    def backoff(failures: int, error: BaseException) -> timedelta | None:
        asked.append((failures, type(error).__name__))
        return timedelta(minutes=failures) if failures < 3 else None

    def run(ctx: Any) -> None:
        raise KeyError("k")

    record = scheduler.schedule(Call(JobConfig.one_time("careful", retries=10, backoff=backoff), run))
    waits = []
    for _ in range(3):
        before = scheduler.get_job(record).run_at
        clock(before)
        scheduler.run_pending()
        waits.append(scheduler.get_job(record).run_at - before)
    assert waits[:2] == [MINUTE, 2 * MINUTE]
    assert asked == [(1, "KeyError"), (2, "KeyError"), (3, "KeyError")]
    assert scheduler.get_job(record).state is JobState.FAILED


def test_backoff_that_breaks_does_not_end_the_job(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """A backoff that raises costs a minute's wait and a word in the record, not the job."""
    clock(NOON)
    scheduler = scheduler_on(dsn)

    def run(ctx: Any) -> None:
        raise ValueError("x")

    record = scheduler.schedule(
        Call(JobConfig.one_time("odd", retries=1, backoff=lambda failures, error: 1 / 0), run)
    )
    scheduler.run_pending()
    assert scheduler.get_job(record).run_at == NOON + MINUTE
    assert "backoff failed" in scheduler.runs(record)[0].reason


# --- the context ------------------------------------------------------------------------------------------


class Talks(Job):
    """Uses what the context offers."""

    def run(self, ctx: Any) -> Any:
        ctx.progress(1, 3, "first")
        ctx.log.info("step", n=1)
        ctx.progress(2, 3, "second")
        ctx.log.bind(who="me").warning("careful")
        ctx.check()
        return {
            "waited": ctx.wait(0.01),
            "attempt": ctx.attempt,
            "id": ctx.run_id,
            "deadline": ctx.deadline is not None,
        }


class AsyncTalks(Job):
    """The same in a coroutine."""

    async def run(self, ctx: Any) -> Any:
        ctx.progress(2, 3, "second")
        ctx.log.info("step", n=1)
        ctx.log.bind(who="me").warning("careful")
        ctx.check()
        return {
            "waited": await ctx.sleep(0.01),
            "attempt": ctx.attempt,
            "id": ctx.run_id,
            "deadline": ctx.deadline is not None,
        }


@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_progress_log_and_result_are_stored(dsn: str, scheduler_on: Any, isolation: str) -> None:
    """Progress, log lines in order with their fields, and the result are stored with the run."""
    scheduler = scheduler_on(dsn, start=True)
    kind = AsyncTalks if isolation == "async" else Talks
    record = scheduler.schedule(kind(JobConfig.one_time("talks", isolation=isolation, timeout=60)))
    scheduler.wait(record, 30)
    (run,) = scheduler.runs(record)
    assert run.progress == {"done": 2, "total": 3, "message": "second"}
    assert run.result == {"waited": True, "attempt": 1, "id": run.id, "deadline": True}
    lines = [(line.level, line.event, line.fields) for line in scheduler.logs(run)]
    assert lines == [("info", "step", {"n": 1}), ("warning", "careful", {"who": "me"})]


def test_progress_is_visible_while_it_runs(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """What a run says of its progress can be read before it ends."""
    scheduler = scheduler_on(dsn, start=True)

    def run(ctx: Any) -> None:
        ctx.progress(1, 2)
        gate(ctx)

    record = scheduler.schedule(Call(JobConfig.one_time("long"), run))
    eventually(lambda: scheduler.get_job(record).progress == {"done": 1, "total": 2, "message": None})
    gate.open()
    assert scheduler.wait(record, 10).progress == {"done": 1, "total": 2, "message": None}


def test_log_lines_are_capped_per_run(dsn: str, scheduler_on: Any) -> None:
    """However long a run lives, no more than a thousand of its log lines are kept, and the rest is counted."""
    scheduler = scheduler_on(dsn, start=True)

    def run(ctx: Any) -> None:
        for _ in range(3):
            for n in range(600):
                ctx.log.debug("line", n=n)
            ctx.wait(1.2)  # long enough for a write in between

    record = scheduler.schedule(Call(JobConfig.one_time("chatty"), run))
    assert scheduler.wait(record, 30).state is JobState.COMPLETED
    lines = scheduler.logs(scheduler.runs(record)[0])
    assert sum(line.event == "line" for line in lines) == 1000
    assert lines[-1].event == "800 lines dropped"


@pytest.mark.parametrize("way", ["check", "wait"])
def test_a_cancelled_run_hears_it(dsn: str, scheduler_on: Any, way: str) -> None:
    """ctx.wait ends early and ctx.check raises when the run is cancelled; the reason is told."""
    scheduler = scheduler_on(dsn, start=True)
    started = threading.Event()
    heard: list[Any] = []

    def run(ctx: Any) -> None:
        started.set()
        if way == "wait":
            heard.append((ctx.wait(30), ctx.cancel_reason))
            return
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.005)
            ctx.check()

    record = scheduler.schedule(Call(JobConfig.one_time("listens"), run))
    assert started.wait(10)
    scheduler.cancel(record)
    assert scheduler.wait(record, 10).state is JobState.CANCELLED
    assert heard == ([(False, "cancelled")] if way == "wait" else [])


# --- timeouts ---------------------------------------------------------------------------------------------


class Endless(Job):
    """Does not end by itself, and in a process does not listen either."""

    def run(self, ctx: Any) -> None:
        if self.config.isolation == "process":
            time.sleep(60)
        assert not ctx.wait(60)


class AsyncEndless(Job):
    """A coroutine that does not end."""

    async def run(self, ctx: Any) -> None:
        await asyncio.sleep(60)


@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_timeout(dsn: str, scheduler_on: Any, isolation: str) -> None:
    """A run that exceeds its timeout ends as timed_out and counts as a failure; its job may be tried again."""
    scheduler = scheduler_on(dsn, start=True)
    kind = AsyncEndless if isolation == "async" else Endless
    config = JobConfig.one_time("endless", timeout=0.3, retries=1, backoff=SHORT, isolation=isolation)
    record = scheduler.schedule(kind(config))
    assert scheduler.wait(record, 30).state is JobState.FAILED
    runs = scheduler.runs(record)
    assert [(r.outcome, r.reason) for r in runs] == [(Outcome.TIMED_OUT, "timeout")] * 2
    assert all(r.duration < timedelta(seconds=20) for r in runs)


def test_expired_job_does_not_run(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """A one-time job that could not start within expires_in fails as expired and is not run."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    ran: list[int] = []
    record = scheduler.schedule(
        Call(JobConfig.one_time("fresh", expires_in=MINUTE), lambda ctx: ran.append(1))
    )
    clock(NOON + 2 * MINUTE)
    scheduler.run_pending()
    assert ran == []
    assert [(r.outcome, r.reason) for r in scheduler.runs(record)] == [(Outcome.FAILED, "expired")]


# --- schedules --------------------------------------------------------------------------------------------


def test_jitter_is_fixed_per_occurrence(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """Jitter moves the start within its bound, differently for each occurrence and the same for one; not the occurrence."""
    clock(NOON)
    config = JobConfig.recurring("spread", "0 * * * *", jitter=600)
    scheduler = scheduler_on(dsn)
    first = scheduler.schedule(Call(config))
    assert scheduler_on(dsn).schedule(Call(config)).run_at == first.run_at
    offsets = []
    for _ in range(6):
        record = scheduler.get_job(first)
        offset = record.run_at - record.scheduled_at
        assert timedelta(0) <= offset < timedelta(minutes=10)
        assert record.scheduled_at.minute == 0
        offsets.append(offset)
        clock(record.run_at)
        scheduler.run_pending()
    assert len(set(offsets)) > 1
    times = [r.scheduled_at for r in scheduler.runs(first)]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("verb", ["resume", "reschedule"])
def test_jitter_also_after_resume_and_reschedule(dsn: str, scheduler_on: Any, clock: Any, verb: str) -> None:
    """A job that was resumed or given another schedule starts within its jitter, not with all others on the hour."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    offsets = set()
    for n in range(4):
        record = scheduler.schedule(Call(JobConfig.recurring("spread", "0 0 * * *", key=f"k{n}", jitter=600)))
        if verb == "resume":
            scheduler.pause(record)
            record = scheduler.resume(record)
        else:
            record = scheduler.reschedule(record, schedule="0 1 * * *")
        assert timedelta(0) <= record.run_at - record.scheduled_at < timedelta(minutes=10)
        offsets.add(record.run_at - record.scheduled_at)
    assert len(offsets) > 1


class FirstOfTwo:
    """A schedule of one's own: every seven minutes from midnight, until an end."""

    def __init__(self, end: datetime) -> None:
        self.end = end

    def next_after(self, instant: datetime) -> datetime | None:
        step = 420
        found = datetime.fromtimestamp((int(instant.timestamp()) // step + 1) * step, UTC)
        return found if found < self.end else None


def test_custom_schedule(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """Anything with next_after is a schedule; when it has no more occurrence the job ends."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    seen: list[datetime] = []
    config = JobConfig.recurring("mine", FirstOfTwo(NOON + timedelta(minutes=14)))
    record = scheduler.schedule(Call(config, lambda ctx: seen.append(ctx.scheduled_at)))
    for _ in range(2):
        clock(scheduler.get_job(record).run_at)
        scheduler.run_pending()
    assert len(seen) == 2
    assert seen[1] - seen[0] == timedelta(minutes=7)
    assert scheduler.jobs() == []
    with pytest.raises(InvalidValueError, match="no occurrence left"):
        scheduler.schedule(Call(JobConfig.recurring("over", FirstOfTwo(NOON))))


def test_custom_schedule_is_only_advanced_by_those_who_know_it(
    dsn: str, scheduler_on: Any, clock: Any
) -> None:
    """A node that registered the name without the schedule gives the job back, and it is not lost."""
    clock(NOON)
    knows = scheduler_on(dsn)
    seen: list[str] = []
    record = knows.schedule(
        Call(JobConfig.recurring("mine", FirstOfTwo(NOON + HOUR)), lambda ctx: seen.append("knows"))
    )
    stranger = scheduler_on(
        dsn, register=(Call(JobConfig(name="mine"), lambda ctx: seen.append("stranger")),)
    )
    clock(knows.get_job(record).run_at)
    stranger.run_pending()
    assert seen == []
    clock(by=knows.get_job(record).run_at - datetime.now(UTC) + MINUTE)
    knows.run_pending()
    assert seen == ["knows"]


def test_every(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """Every(interval) counts from the last occurrence, so a late start does not make it drift."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.recurring("steady", Every(MINUTE))))
    for _ in range(3):
        clock(scheduler.get_job(record).run_at + timedelta(seconds=20))
        scheduler.run_pending()
    times = sorted(r.scheduled_at for r in scheduler.runs(record))
    assert times == [NOON + n * MINUTE for n in (1, 2, 3)]


def test_cron_lines_are_utc_and_strictly_later() -> None:
    """A five-field line is UTC and its next time is later than now; a six-field one has seconds first."""
    at = datetime(2023, 5, 1, 10, 0, tzinfo=UTC)
    assert Cron("* * * * *").next_after(at) == at + MINUTE
    assert Cron("0/30 * * * * *").next_after(at) == at + timedelta(seconds=30)
    with pytest.raises(ValueError):
        JobConfig.recurring("never", "0 0 30 2 *")


def test_metadata_and_policies_round_trip(dsn: str, scheduler_on: Any) -> None:
    """Metadata and the policies that differ from the defaults come back from the database."""
    scheduler = scheduler_on(dsn)
    record = scheduler.enqueue("any", metadata={"team": "blå", "n": [1]}, retries=2, timeout=9.5)
    assert scheduler.get_job(record).options == {
        "metadata": {"team": "blå", "n": [1]},
        "retries": 2,
        "timeout": 9.5,
    }
    assert scheduler.get_job(scheduler.enqueue("any")).options is None


# --- cleaning, fencing, shutting down ---------------------------------------------------------------------


def test_finished_one_time_jobs_leave_the_live_table_and_answer_by_key_for_a_while(
    dsn: str, scheduler_on: Any, clock: Any
) -> None:
    """An ended one-time job has no live row; it answers to its key for the configured interval, to its id longer."""
    clock(NOON)
    scheduler = scheduler_on(dsn, failed_and_completed_one_time_job_interval=60)
    record = scheduler.schedule(Call(JobConfig.one_time("once", key="k")))
    scheduler.run_pending()
    assert scheduler.jobs() == []
    assert scheduler.get_job(("once", "k")).state is JobState.COMPLETED
    clock(NOON + 2 * MINUTE)
    with pytest.raises(JobNotFoundError):
        scheduler.get_job(("once", "k"))
    assert scheduler.get_job(record.id).state is JobState.COMPLETED


def test_a_locked_row_does_not_hold_up_the_others(dsn: str, scheduler_on: Any) -> None:
    """While somebody holds one job's row locked, the other jobs are claimed at once."""
    scheduler = scheduler_on(dsn)
    first = scheduler.schedule(Call(JobConfig.one_time("job")))
    second = scheduler.schedule(Call(JobConfig.one_time("job")))
    with psycopg.connect(dsn) as connection:
        connection.execute("select from pgscheduler_jobs where id = %s for update", [first.id])
        assert scheduler.run_pending().claimed == 1
        assert scheduler.get_job(second).state is JobState.COMPLETED
    assert scheduler.run_pending().claimed == 1


def test_a_stolen_claim_is_not_written(dsn: str, db: Any, scheduler_on: Any, quiet: Quiet) -> None:
    """A run whose claim was taken over in the meantime changes nothing; it is logged and counted."""
    scheduler = scheduler_on(dsn, logger=quiet)

    def run(ctx: Any) -> None:
        db.execute("update pgscheduler_jobs set token = 42, heartbeat_at = now() where id = %s", [ctx.job_id])

    record = scheduler.schedule(Call(JobConfig.one_time("stolen"), run))
    assert scheduler.run_pending().claimed == 1
    assert db.execute("select state, token from pgscheduler_jobs where id = %s", [record.id]).fetchone() == (
        "running",
        42,
    )
    assert scheduler.runs(record) == []
    assert scheduler.node_stats()["lost"] == 1
    assert "claim lost" in quiet.events()


def test_heartbeats_go_on_during_init_and_run(dsn: str, scheduler_on: Any) -> None:
    """The claim's heartbeat advances while a slow init and a slow run are at work."""
    seen: dict[str, list[Any]] = {"init": [], "run": []}

    class Slow(Job):
        def look(self, hook: str) -> None:
            began = scheduler.get_job(record.id).heartbeat_at
            seen[hook] = [eventually(lambda: scheduler.get_job(record.id).heartbeat_at > began)]

        def init(self, ctx: Any) -> None:
            self.look("init")

        def run(self, ctx: Any) -> None:
            self.look("run")

    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Slow(JobConfig.one_time("slow")))
    scheduler.start()
    assert scheduler.wait(record, 30).state is JobState.COMPLETED
    assert seen == {"init": [True], "run": [True]}


def test_loops_outlive_cut_connections(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """After every backend was terminated all loops live on, heartbeats too, and the run is recorded once."""
    from tests.support.postgres import terminate_backends

    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(Call(JobConfig.one_time("during"), gate))
    gate.wait_for(1)
    terminate_backends(dsn)
    before = scheduler.get_job(record).heartbeat_at
    eventually(lambda: scheduler.get_job(record).heartbeat_at > before, timeout=20)
    gate.open()
    assert scheduler.wait(record, 20).state is JobState.COMPLETED
    assert len(scheduler.runs(record)) == 1
    assert all(loop["alive"] for loop in scheduler.node_stats()["loops"].values())


def test_graceful_shutdown_records_what_ends_in_time(dsn: str, scheduler_on: Any, quiet: Quiet) -> None:
    """Shutdown waits for a run that is about to end, writes its outcome, answers True and says so."""
    scheduler = scheduler_on(dsn, start=True, logger=quiet)
    started = threading.Event()

    def run(ctx: Any) -> str:
        started.set()
        time.sleep(0.5)
        return "kept"

    record = scheduler.schedule(Call(JobConfig.one_time("brief"), run))
    assert started.wait(10)
    assert scheduler.shutdown() is True
    other = scheduler_on(dsn)
    assert other.get_job(record).result == "kept"
    assert "all jobs completed gracefully" in quiet.events()


def test_shutdown_timeout_is_kept_and_told(dsn: str, scheduler_on: Any, gate: Gate, quiet: Quiet) -> None:
    """Shutdown returns False soon after its timeout when a job ignores it, names the job, and leaves no double owner."""
    release = threading.Event()
    scheduler = scheduler_on(dsn, start=True, logger=quiet)
    started = threading.Event()

    def run(ctx: Any) -> None:
        started.set()
        release.wait(30)

    record = scheduler.schedule(Call(JobConfig.one_time("deaf"), run))
    assert started.wait(10)
    began = time.monotonic()
    assert scheduler.shutdown(0.3) is False
    assert time.monotonic() - began < 10
    (fields,) = [
        f for _, e, f in quiet.lines if e == "shutdown timeout exceeded, some jobs may not have completed"
    ]
    assert fields["jobs"] == ["deaf"]
    other = scheduler_on(dsn)
    assert other.get_job(record).state is JobState.RUNNING
    release.set()
    eventually(lambda: other.get_job(record).state is JobState.COMPLETED)


# --- configuration ----------------------------------------------------------------------------------------


def test_config_defaults() -> None:
    """The documented defaults are the defaults."""
    config = SchedulerConfig(dsn="dbname=x")
    found = {
        name: getattr(config, name)
        for name in (
            "max_concurrent_jobs",
            "create_schema",
            "run_immediately",
            "table_prefix",
            "schema",
            "listen",
            "logger",
        )
    }
    assert found == {
        "max_concurrent_jobs": 10, "create_schema": False, "run_immediately": False, "table_prefix": "pgscheduler_",
        "schema": "public", "listen": True, "logger": None,
    }  # fmt: skip
    assert (config.job_check_interval, config.orphaned_job_timeout) == (MINUTE, timedelta(days=14))
    assert (config.heartbeat_interval, config.no_heartbeat_timeout) == (
        timedelta(seconds=30),
        timedelta(minutes=5),
    )
    assert (config.shutdown_timeout, config.failed_and_completed_one_time_job_interval) == (
        timedelta(seconds=30),
        HOUR,
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dsn", None), ("dsn", ""), ("dsn", 5), ("dsn", "nonsense=1"),
        ("max_concurrent_jobs", 0), ("max_concurrent_jobs", -1), ("max_concurrent_jobs", True), ("max_concurrent_jobs", 1.5),
        ("job_check_interval", 0), ("heartbeat_interval", -1), ("no_heartbeat_timeout", timedelta(seconds=30)),
        ("no_heartbeat_timeout", timedelta(seconds=60)), ("orphaned_job_timeout", timedelta(minutes=1)),
        ("shutdown_timeout", -1), ("history_retention", 0), ("failed_and_completed_one_time_job_interval", 0),
        ("table_prefix", 'x"; drop table jobs; --'), ("table_prefix", "my-app_"), ("table_prefix", "MyApp_"),
        ("table_prefix", "a" * 41),
        ("table_prefix", "pg_"), ("schema", ""), ("schema", "pg_catalog"), ("schema", "x.y"),
        ("create_schema", 1), ("logger", object()),
        ("heartbeat_interval", float("nan")), ("job_check_interval", float("inf")), ("pool_size", 0), ("listen", "yes"),
    ],
)  # fmt: skip
def test_config_refuses(field: str, value: Any) -> None:
    """Each bad setting is refused, and the error names the field."""
    with pytest.raises((ValueError, TypeError)) as caught:
        SchedulerConfig(**{"dsn": "dbname=x", field: value})
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: JobConfig.recurring("", "* * * * *"), "name cannot be empty"),
        (lambda: JobConfig.recurring("x", "nonsense"), "invalid cron schedule"),
        (lambda: JobConfig.one_time(""), "name cannot be empty"),
        (lambda: JobConfig.one_time("x", retries=-1), "retries must be non-negative"),
        (lambda: JobConfig.one_time("x", priority=-1), "priority must be non-negative"),
        (lambda: JobConfig.one_time("x", timeout=0), "timeout must be > 0"),
        (lambda: JobConfig.one_time("x", run_at=datetime(2031, 1, 1)), "run_at must have a time zone"),
        (lambda: JobConfig.recurring("x", "* * * * *", run_at=NOON), "run_at is for one-time jobs"),
        (lambda: Every(timedelta(0)), "interval must be whole seconds"),
    ],
)
def test_job_config_refuses(make: Any, text: str) -> None:
    """A job's settings are checked where they are written, with a text that says what is wrong."""
    with pytest.raises(ValueError, match=text):
        make()


def test_two_prefixes_in_one_database_do_not_meet(empty_dsn: str, scheduler_on: Any) -> None:
    """Two schedulers with two prefixes share a database and see neither jobs nor wake-ups of each other."""
    seen: list[str] = []
    nodes = {}
    for prefix in ("shop_", "crm_"):
        node = scheduler_on(
            empty_dsn,
            create_schema=True,
            table_prefix=prefix,
            register=(Call(JobConfig(name="mail"), lambda ctx, p=prefix: seen.append(p)),),
        )
        node.start()
        nodes[prefix] = node
    record = nodes["crm_"].enqueue("mail")
    assert nodes["crm_"].wait(record, 10).state is JobState.COMPLETED
    assert seen == ["crm_"]
    assert nodes["shop_"].runs() == []
    assert nodes["shop_"]._store.names.channel != nodes["crm_"]._store.names.channel
    nodes["crm_"].shutdown()
    again = nodes["shop_"].enqueue("mail")
    assert nodes["shop_"].wait(again, 10).state is JobState.COMPLETED


@pytest.mark.parametrize("verb", ["cancel", "delete"])
def test_cancel_and_delete_meet_a_heartbeat(dsn: str, scheduler_on: Any, gate: Gate, verb: str) -> None:
    """A cancel or delete that had to wait for somebody's write to the same row is not forgotten."""
    scheduler = scheduler_on(dsn, start=True, heartbeat_interval=30, no_heartbeat_timeout=90, listen=False)
    record = scheduler.schedule(Call(JobConfig.one_time("busy"), gate))
    gate.wait_for(1)
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(getattr(scheduler_on(dsn), verb)(record)))
    with psycopg.connect(dsn) as writer, psycopg.connect(dsn, autocommit=True) as db:
        writer.execute("update pgscheduler_jobs set heartbeat_at = now() where id = %s", [record.id])
        thread.start()
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        eventually(lambda: db.execute(waiting).fetchone() == (1,))
        writer.commit()
        thread.join(10)
        assert answers == ["requested"]
        assert db.execute(
            "select cancel_requested from pgscheduler_jobs where id = %s", [record.id]
        ).fetchone() == (True,)


@pytest.mark.parametrize("first", [True, False])
def test_a_job_that_comes_due_between_claim_and_sleep_is_not_overslept(
    dsn: str, db: Any, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """A job that falls due after a claim looked and before the node asks how long it may sleep still runs at once."""
    node = scheduler_on(
        dsn,
        listen=False,
        job_check_interval=60,
        register=(Call(JobConfig(name="job")), Call(JobConfig(name="other"))),
    )
    if not first:
        node.start()
        assert node.wait(node.enqueue("other"), 10).state is JobState.COMPLETED
    ask, stored = node._store.next_due, threading.Event()

    def asked_too_late(*arguments: Any) -> Any:
        if not stored.is_set():
            db.execute("select pgscheduler_enqueue('job', key => 'k', notify => false)")
            stored.set()
        return ask(*arguments)

    monkeypatch.setattr(node._store, "next_due", asked_too_late)
    if first:
        node.start()
    else:
        node._node.dispatcher.look()
    assert stored.wait(10)
    eventually(lambda: node.get_job(("job", "k")).state is JobState.COMPLETED)
