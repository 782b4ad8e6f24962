"""How jobs run, fail and are remembered: one test for each feature, by its number in `test_all_rows`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from pgscheduler import (
    Backoff,
    Job,
    JobConfig,
    JobNotFoundError,
    JobNotRunningError,
    JobState,
    Outcome,
    Scheduler,
)
from tests.engine.conftest import Call, Gate
from tests.rows.conftest import WORKS
from tests.support import eventually
from tests.support.postgres import PrivateServer, apply_schema, execute
from tests.support.processes import NodeProcess

Made = Callable[..., Scheduler]
Node = Callable[..., tuple[NodeProcess, dict[str, Any]]]

HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
NOON = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
AT_ONCE = Backoff(initial=timedelta(0), jitter=0)

HISTORY = """
insert into pgscheduler_runs (job_id, token, scheduled_at, finished_at, attempt, outcome, name)
select n, n, now() - interval '2 hours', now() - interval '2 hours' + n * interval '1 millisecond', 1, %s, 'work'
from generate_series(1, %s) n
"""
STALE = """
update pgscheduler_jobs set state = 'running', token = 1, claimed_at = now() - interval '1 hour',
       node_id = '00000000-0000-0000-0000-000000000001'
"""


def fail(ctx: Any) -> None:
    raise ValueError(f"attempt {ctx.attempt}")


def test_row_42_concurrency_limit(dsn: str, scheduler_on: Made, call: type[Call], gate: Gate) -> None:
    """So many jobs run at the same time on a node and never more; a slot that is free is filled at once (go-pg-scheduler,
    Kronii, Cron Service)."""
    two = scheduler_on(dsn, start=True, max_concurrent_jobs=2, job_check_interval=HOUR)
    two.register(call(JobConfig(name="held"), gate))
    jobs = [two.enqueue("held") for _ in range(4)]
    gate.wait_for(2)
    assert two.count_jobs(due=True) == 2
    gate.open()
    assert [two.wait(job, 30).state for job in jobs] == [JobState.COMPLETED] * 4
    assert gate.most == 2
    two.shutdown()

    lock, inside, most = threading.Lock(), 0, 0
    full = threading.Event()  # the first five wait for each other

    def count(ctx: Any) -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            if most == 5:
                full.set()
        full.wait(30)
        ctx.wait(0.02)
        with lock:
            inside -= 1

    five = scheduler_on(dsn, max_concurrent_jobs=5, job_check_interval=HOUR)
    five.register(call(JobConfig(name="short"), count))
    for _ in range(30):
        five.enqueue("short")
    five.start()
    eventually(lambda: five.count_runs(name="short", outcome="completed") == 30, timeout=60)
    assert (most, inside) == (5, 0)


def test_row_43_pick_up(dsn: str, scheduler_on: Made, call: type[Call], db: psycopg.Connection[Any]) -> None:
    """A row that somebody has locked holds up no other, and a job is committed as running before it starts
    (go-pg-scheduler's later versions)."""
    seen: list[Any] = []
    state = "select state, token is not null from pgscheduler_jobs where id = %s"
    scheduler = scheduler_on(dsn)
    scheduler.register(
        call(JobConfig(name="work"), lambda ctx: seen.append(db.execute(state, [ctx.job_id]).fetchone()))
    )
    locked, *free = (scheduler.enqueue("work") for _ in range(4))
    with psycopg.connect(dsn) as other:
        other.execute("select from pgscheduler_jobs where id = %s for update", [locked.id])
        scheduler.start()
        assert [scheduler.wait(job, 30).state for job in free] == [JobState.COMPLETED] * 3
        assert scheduler.get_job(locked).state is JobState.PENDING
    scheduler.trigger(locked)
    scheduler.wait(locked, 30)
    assert seen == [("running", True)] * 4


def test_row_48_retries(dsn: str, scheduler_on: Made, clock: Any, call: type[Call]) -> None:
    """N retries are N + 1 attempts, each twice as long after the last one; between them the job waits, and at the end it
    has failed, with its error (go-pg-scheduler, Bildad, Kronii, Cron Service)."""
    now = NOON
    clock(now)
    scheduler = scheduler_on(dsn)
    backoff = Backoff(initial=5 * SECOND, jitter=0)
    job = scheduler.schedule(call(JobConfig.one_time("bad", retries=3, backoff=backoff), fail))
    for failures, delay in enumerate((5, 10, 20), 1):
        assert scheduler.run_pending().failed == 1
        assert scheduler.run_pending().claimed == 0
        waiting = scheduler.get_job(job)
        assert (waiting.state, waiting.retries_left) == (JobState.PENDING, 3 - failures)
        assert f"attempt {failures}" in (waiting.last_error or "")
        assert delay <= (waiting.run_at - now).total_seconds() < delay + 2
        now = waiting.run_at
        clock(now)
    assert scheduler.run_pending().failed == 1
    ended = scheduler.get_job(job)
    assert (ended.state, ended.retries_left) == (JobState.FAILED, 0)
    assert "attempt 4" in (ended.last_error or "")
    assert scheduler.run_pending().claimed == 0
    assert [run.attempt for run in scheduler.runs(job)] == [4, 3, 2, 1]


@pytest.mark.parametrize("hook", ["init", "run"])
def test_row_50_exceptions_of_all_kinds(dsn: str, scheduler_on: Made, hook: str) -> None:
    """Whatever a hook raises, the attempt has failed, its error is kept, and the node goes on (go-pg-scheduler's later
    versions)."""

    class Raises(Job):
        def __init__(self, config: JobConfig, error: BaseException) -> None:
            super().__init__(config)
            self.error = error

        def init(self, ctx: Any) -> None:
            if hook == "init":
                raise self.error

        def run(self, ctx: Any) -> None:
            raise self.error

    scheduler = scheduler_on(dsn, start=True)
    for error in (
        ValueError("x" * 1_000_000),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        AssertionError("\x00"),
    ):
        name = type(error).__name__
        job = scheduler.wait(scheduler.schedule(Raises(JobConfig.one_time(name), error)), 30)
        assert (job.state, name in (job.last_error or "")) == (JobState.FAILED, True)
        assert len(job.last_error or "") < 10_000


def test_row_51_per_job_timeout(dsn: str, scheduler_on: Made, call: type[Call]) -> None:
    """An attempt that takes too long fails as timed out; a thread is asked to stop, and as long as it does not it keeps
    its slot (Bildad, Kronii, Cron Service)."""
    begun, told, deaf = (threading.Event() for _ in range(3))

    def run(ctx: Any) -> None:
        begun.set()
        while not ctx.cancelled:
            ctx.wait(1)
        assert ctx.cancel_reason == "timeout"
        told.set()
        deaf.wait(60)

    scheduler = scheduler_on(dsn, start=True, max_concurrent_jobs=1)
    scheduler.register(call(JobConfig(name="next")))
    job = scheduler.schedule(call(JobConfig.one_time("slow", timeout=0.3), run))
    assert begun.wait(30)
    following = scheduler.enqueue("next")
    try:
        assert told.wait(30)
        assert scheduler.get_job(following).state is JobState.PENDING
    finally:
        deaf.set()
    assert scheduler.wait(following, 30).state is JobState.COMPLETED
    (ended,) = scheduler.runs(job)
    assert (ended.outcome, ended.reason) == (Outcome.TIMED_OUT, "timeout")
    assert scheduler.get_job(job).state is JobState.FAILED


def test_row_52_expiry(
    dsn: str, scheduler_on: Made, clock: Any, db: psycopg.Connection[Any], call: type[Call]
) -> None:
    """What is too late ends as failed, expired; so does the job of a node that vanished (Bildad).

    A vanished node is found by its missing heartbeats within minutes, so no run is waited for for 30 days.
    """
    clock(by=timedelta(0))
    scheduler = scheduler_on(dsn)
    ran: list[str] = []
    scheduler.register(call(JobConfig(name="work"), lambda ctx: ran.append(ctx.key)))
    fresh = scheduler.enqueue("work", key="waited", expires_in=HOUR)
    clock(by=2 * HOUR)
    scheduler.run_pending()
    (run,) = scheduler.runs(fresh)
    assert (run.outcome, run.reason, run.error) == (Outcome.FAILED, "expired", "Expired")

    clock(by=timedelta(0))
    for key, more in (("again", {}), ("expired", {"expires_in": HOUR}), ("poison", {"max_stalls": 1})):
        scheduler.enqueue("work", key=key, **more)
    db.execute(STALE)
    clock(by=2 * HOUR)
    assert scheduler.run_pending().reset == 3
    ended = {key: [run.outcome for run in scheduler.runs(key=key)] for key in ("again", "expired", "poison")}
    assert ended["again"] == [Outcome.COMPLETED, Outcome.STALLED]
    assert ended["expired"] == ended["poison"] == [Outcome.FAILED, Outcome.STALLED]
    assert scheduler.runs(key="expired")[0].reason == "expired"
    assert ran == ["again"]


def test_row_53_stop_and_cancel(node: Node, scheduler: Scheduler) -> None:
    """A run is stopped from another process, and not tried again; a recurring job keeps its schedule (go-pg-scheduler's
    later versions, Bildad)."""
    process, said = node("worker", WORKS)

    def begun(job: Any) -> None:
        eventually(lambda: scheduler.get_job(job).progress, timeout=60)

    once = scheduler.enqueue("long")  # its class has three retries
    begun(once)
    assert scheduler.cancel(once) == "requested"
    assert scheduler.wait(once, 30).state is JobState.CANCELLED
    (run,) = scheduler.runs(once)
    assert (run.outcome, run.node_id) == (Outcome.CANCELLED, said["node"])
    with pytest.raises((JobNotRunningError, JobNotFoundError)):
        scheduler.cancel(once)
    with pytest.raises(JobNotFoundError):
        scheduler.cancel(10**9)
    waiting = scheduler.enqueue("mark", delay=HOUR)  # what has not begun is cancelled at once
    assert scheduler.cancel(waiting) == "cancelled"
    assert scheduler.get_job(waiting).state is JobState.CANCELLED
    process.terminate()
    assert process.wait() == 0


def test_row_53_stop_of_a_recurring_job(dsn: str, scheduler_on: Made, call: type[Call], gate: Gate) -> None:
    """Only this run ends; between two runs there is nothing to stop (go-pg-scheduler's later versions, Bildad)."""
    node = scheduler_on(dsn, start=True)
    job = node.schedule(call(JobConfig.recurring("tick", "@yearly"), gate))
    with pytest.raises(JobNotRunningError):
        node.cancel(job)
    node.trigger(job)
    gate.wait_for(1)
    scheduler_on(dsn).cancel(job)
    eventually(lambda: node.runs(job))
    found = node.get_job(job)
    assert (found.state, found.scheduled_at) == (JobState.PENDING, job.scheduled_at)


def test_row_54_execution_history(
    dsn: str, scheduler_on: Made, call: type[Call], client_of: Callable[..., httpx.Client]
) -> None:
    """A line for each attempt: what, when, where, how it ended, what it said; newest first, in pages, counted (Bildad,
    Laki, Cron Service)."""

    def work(ctx: Any) -> Any:
        ctx.log.info("trying", attempt_no=ctx.attempt)
        if ctx.attempt < 3:
            fail(ctx)
        return {"rows": 7}

    scheduler = scheduler_on(dsn, start=True)
    job = scheduler.schedule(call(JobConfig.one_time("work", retries=2, backoff=AT_ONCE), work))
    scheduler.wait(job, 30)
    runs = scheduler.runs(job)
    assert [(run.attempt, run.outcome) for run in runs] == [
        (3, Outcome.COMPLETED),
        (2, Outcome.FAILED),
        (1, Outcome.FAILED),
    ]
    good, bad = runs[0], runs[1]
    assert (good.result, good.error, good.node_id) == ({"rows": 7}, None, scheduler.id)
    assert "ValueError: attempt 2" in (bad.error or "")
    assert job.scheduled_at == good.scheduled_at <= good.started_at <= good.finished_at
    assert [(line.event, line.fields) for line in scheduler.logs(bad)] == [("trying", {"attempt_no": 2})]

    scheduler.register(call(JobConfig(name="quick")))
    for _ in range(57):
        scheduler.enqueue("quick")
    eventually(lambda: scheduler.count_runs() == 60)
    assert len(scheduler.runs()) == 50
    pages = [scheduler.runs(limit=25, offset=25 * page) for page in range(4)]
    assert [len(page) for page in pages] == [25, 25, 10, 0]
    ended = [run.finished_at for page in pages for run in page]
    assert ended == sorted(ended, reverse=True)
    assert scheduler.count_runs(outcome="failed") == len(scheduler.runs(outcome="failed")) == 2

    # In Cron Service's words by REST; what waits or runs is in the list of jobs.
    api = client_of(scheduler)
    told = api.get("/api/v1/runs", params={"jobId": job.id}).json()
    assert [run["status"] for run in told] == ["SUCCESS", "FAILED", "FAILED"]


def test_row_58_history_retention(dsn: str, db: psycopg.Connection[Any], scheduler_on: Made) -> None:
    """The newest thousand good runs and so many bad ones are kept, if the configuration says so (Cron Service).

    Off by default: whole days are dropped after `history_retention`, which costs nothing.
    """
    db.execute(HISTORY, ["completed", 1010])
    db.execute(HISTORY, ["failed", 60])
    scheduler_on(dsn, start=True).shutdown()
    assert execute(dsn, "select count(*) from pgscheduler_runs") == [(1070,)]

    scheduler = scheduler_on(dsn, start=True, history_keep_completed=1000, history_keep_failed=50)
    kept = "select count(*), min(job_id), max(job_id) from pgscheduler_runs where outcome = %s"
    eventually(lambda: scheduler.count_runs() == 1050)
    assert db.execute(kept, ["completed"]).fetchone() == (1000, 11, 1010)
    assert db.execute(kept, ["failed"]).fetchone() == (50, 11, 60)


def test_row_60_database_outage(
    own_server: Callable[..., PrivateServer], scheduler_on: Made, call: type[Call]
) -> None:
    """The database goes away under load and comes back: no loop ends, all jobs are done once (weak in all of them)."""
    server = own_server()
    apply_schema(server.dsn)
    scheduler = scheduler_on(server.dsn, max_concurrent_jobs=4, no_heartbeat_timeout=120, connect_timeout=2)
    work = call(JobConfig(name="work"), lambda ctx: time.sleep(0.005))
    scheduler.schedule_many(Call(work.config) for _ in range(400))
    scheduler.register(work)
    scheduler.start()
    eventually(lambda: scheduler.node_stats()["recorded"] >= 50, timeout=30)
    server.outage(0.5)

    def done() -> bool:
        try:
            return execute(server.dsn, "select count(*) from pgscheduler_jobs") == [(0,)]
        except psycopg.OperationalError:
            return False

    eventually(done, timeout=90)
    lines = "select count(*), count(distinct job_id) from pgscheduler_runs where outcome = 'completed'"
    assert execute(server.dsn, lines) == [(400, 400)]
    assert execute(server.dsn, "select count(*) from pgscheduler_runs where outcome <> 'completed'") == [(0,)]
    assert all(loop["alive"] for loop in scheduler.node_stats()["loops"].values())
