"""P8: whatever one run of a recurring job meets, the next occurrence still comes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog

from pgscheduler import (
    Backoff,
    Cancel,
    Every,
    Fail,
    Job,
    JobConfig,
    JobNotFoundError,
    JobState,
    Retry,
    Scheduler,
    SchedulerConfig,
)

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
AT_ONCE = Backoff(initial=timedelta(0), jitter=0.0)
HOURLY = "0 * * * *"


@pytest.fixture
def travel(db: Any) -> Callable[[timedelta], None]:
    """Move the clock that decides by so much, in addition to what it has been moved.

    It is half past when a test begins: an hour that came in the middle of it would bring an occurrence too many.
    """
    (hour,) = db.execute("select clock_timestamp() - date_trunc('hour', clock_timestamp())").fetchone()
    total = timedelta(minutes=30) - hour

    def move(by: timedelta) -> None:
        nonlocal total
        total += by
        db.execute(
            "create or replace function pgscheduler_now() returns timestamptz language plpgsql stable as"
            f" $$ begin return clock_timestamp() + interval '{total.total_seconds()} seconds'; end $$"
        )

    move(timedelta(0))
    return move


def config(dsn: str, **more: Any) -> SchedulerConfig:
    given = {
        "logger": SILENT,
        "run_immediately": True,
        "heartbeat_interval": 0.2,
        "no_heartbeat_timeout": 60,  # nobody's death is waited for here
        "shutdown_timeout": 5,
    }
    return SchedulerConfig(dsn=dsn, **{**given, **more})


@pytest.fixture
def scheduler(dsn: str) -> Iterator[Scheduler]:
    with Scheduler(config(dsn)) as scheduler:
        yield scheduler


class Recurring(Job):
    """Does what the test says, once per run."""

    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.next: Any = None
        self.seen: list[Any] = []

    def run(self, ctx: Any) -> None:
        self.seen.append(ctx.scheduled_at)
        if isinstance(self.next, BaseException):
            raise self.next


ENDINGS = {
    "completed": (None, "completed"),
    "error": (ValueError("x"), "failed"),
    "exit": (SystemExit(1), "failed"),
    "fail": (Fail("for good"), "failed"),
    "cancel": (Cancel("not today"), "cancelled"),
    "retry without retries": (Retry(0), "failed"),
}


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_the_next_occurrence_comes_however_a_run_ends(
    scheduler: Scheduler, travel: Callable[[timedelta], None], ending: str
) -> None:
    """After each way in which a run can end, the job waits for its next occurrence, with its counts at zero."""
    job = Recurring(JobConfig.recurring("hourly", HOURLY))
    first = scheduler.schedule(job)
    job.next, outcome = ENDINGS[ending]

    for n in range(3):
        travel(timedelta(hours=1))
        scheduler.run_pending()
        record = scheduler.get_job("hourly")
        assert record.id == first.id
        assert (record.state, record.failures, record.stalls) == (JobState.PENDING, 0, 0)
        assert record.scheduled_at == first.scheduled_at + timedelta(hours=n + 1)
    assert [str(run.outcome) for run in scheduler.runs("hourly")] == [outcome] * 3
    assert job.seen == [first.scheduled_at + timedelta(hours=n) for n in range(3)]


def test_exhausted_retries_end_the_occurrence_not_the_job(
    scheduler: Scheduler, travel: Callable[[timedelta], None]
) -> None:
    """When all retries of one occurrence have failed, the next one comes, with all its retries."""
    job = Recurring(JobConfig.recurring("hourly", HOURLY, retries=2, backoff=AT_ONCE))
    first = scheduler.schedule(job)
    job.next = ValueError("always")

    for n in (1, 2):
        travel(timedelta(hours=1))
        for _ in range(5):
            scheduler.run_pending()
        runs = scheduler.runs("hourly")
        assert [run.attempt for run in runs[:3]] == [3, 2, 1]
        assert {run.scheduled_at for run in runs[:3]} == {first.scheduled_at + timedelta(hours=n - 1)}
        assert len(runs) == 3 * n
        assert scheduler.get_job("hourly").scheduled_at == first.scheduled_at + timedelta(hours=n)


def test_consecutive_failures_are_counted_and_forgotten_at_the_first_success(
    scheduler: Scheduler, travel: Callable[[timedelta], None]
) -> None:
    """consecutive_failures goes 1, 2, 3 over occurrences, and a success sets it to 0."""
    job = Recurring(JobConfig.recurring("hourly", HOURLY))
    scheduler.schedule(job)
    found = []
    for error in (ValueError(1), ValueError(2), ValueError(3), None):
        job.next = error
        travel(timedelta(hours=1))
        scheduler.run_pending()
        found.append(scheduler.get_job("hourly").consecutive_failures)

    assert found == [1, 2, 3, 0]


class Dies(Job):
    config = JobConfig.recurring("dies", HOURLY, isolation="process", max_stalls=1)

    def run(self, ctx: Any) -> None:
        os._exit(3)


def test_a_process_that_dies_ends_the_occurrence_not_the_job(
    scheduler: Scheduler, travel: Callable[[timedelta], None]
) -> None:
    """A recurring job whose process dies max_stalls times has failed for this occurrence; the next one comes."""
    first = scheduler.schedule(Dies())
    for n in (1, 2):
        travel(timedelta(hours=1))
        scheduler.run_pending()
        scheduler.run_pending()
        record = scheduler.get_job("dies")
        assert (record.state, record.stalls) == (JobState.PENDING, 0)
        assert record.scheduled_at == first.scheduled_at + timedelta(hours=n)
    assert [str(run.outcome) for run in reversed(scheduler.runs("dies"))] == ["stalled", "failed"] * 2


class Held(Job):
    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.started = threading.Semaphore(0)
        self.runs: list[int] = []

    def run(self, ctx: Any) -> None:
        self.runs.append(ctx.token)
        self.started.release()
        if len(self.runs) == 1:
            ctx.wait(60)
            ctx.check()


@pytest.mark.parametrize("how", ["cancel", "shutdown", "lost"])
def test_a_run_that_is_stopped_does_not_stop_the_job(dsn: str, db: Any, eventually: Any, how: str) -> None:
    """Cancelled, interrupted by a shutdown, or its claim lost mid-run: the job runs again."""
    job = Held(JobConfig.recurring("held", Every(timedelta(seconds=1))))
    with Scheduler(config(dsn)) as node:
        node.schedule(job)
        node.start()
        assert job.started.acquire(timeout=15)
        if how == "cancel":
            assert node.cancel("held") == "requested"
        elif how == "shutdown":
            assert node.shutdown() is True
        else:
            db.execute("update pgscheduler_jobs set state = 'pending', token = null")
        if how != "shutdown":
            assert job.started.acquire(timeout=15)

    if how == "shutdown":
        with Scheduler(config(dsn)) as node:
            node.schedule(job)
            node.start()
            assert job.started.acquire(timeout=15)
    assert len(job.runs) >= 2
    with Scheduler(config(dsn)) as client:
        assert client.get_job("held").state is JobState.PENDING
        if how == "cancel":
            # Cancelling one run ended that run and nothing else.
            assert [str(run.outcome) for run in client.runs("held")].count("cancelled") == 1


NODE = """
import os, sys
from datetime import timedelta
import structlog
from pgscheduler import Every, Job, JobConfig, Scheduler, SchedulerConfig
from tests.support.processes import commands, emit

class Tick(Job):
    config = JobConfig.recurring("tick", Every(timedelta(seconds=1)))
    def run(self, ctx):
        emit("tick", at=ctx.scheduled_at.isoformat(), attempt=ctx.attempt)
        if sys.argv[2] == "hang":
            ctx.wait(600)

silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
scheduler = Scheduler(SchedulerConfig(dsn=sys.argv[1], logger=silent, run_immediately=True,
                                      heartbeat_interval=0.2, no_heartbeat_timeout=3.0))
scheduler.init()
scheduler.schedule(Tick())
scheduler.start()
for order in commands():
    pass
"""


def test_a_crash_of_the_node_mid_run_does_not_stop_the_job(dsn: str, nodes: Any) -> None:
    """kill -9 during a run: another node runs that occurrence again, and then the next ones."""
    victim = nodes(NODE, dsn, "hang")
    hung = victim.wait_for("tick", timeout=20)
    victim.kill()

    heir = nodes(NODE, dsn, "go")
    again = heir.wait_for("tick", timeout=20)
    following = [heir.wait_for("tick", timeout=20) for _ in range(2)]

    assert (again["at"], again["attempt"]) == (hung["at"], 2)
    assert all(tick["at"] > hung["at"] and tick["attempt"] == 1 for tick in following)


def test_only_pause_and_delete_stop_it(scheduler: Scheduler, travel: Callable[[timedelta], None]) -> None:
    """A paused job does not run until it is resumed, and goes on then; a deleted one is gone."""
    job = Recurring(JobConfig.recurring("hourly", HOURLY))
    scheduler.schedule(job)
    scheduler.pause("hourly")
    travel(timedelta(hours=3))
    assert scheduler.run_pending().claimed == 0
    scheduler.resume("hourly")
    assert scheduler.run_pending().claimed == 0  # the next occurrence is ahead
    travel(timedelta(hours=1))
    assert scheduler.run_pending().completed == 1

    scheduler.delete("hourly")
    travel(timedelta(hours=1))
    assert scheduler.run_pending().claimed == 0
    with pytest.raises(JobNotFoundError):
        scheduler.trigger("hourly")
