"""P7: at most retries + 1 counted failures; stalls are counted apart and bounded too; a shutdown burns neither."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import structlog

from pgscheduler import (
    Backoff,
    Fail,
    Job,
    JobConfig,
    JobState,
    Outcome,
    Retry,
    Scheduler,
    SchedulerConfig,
    Snooze,
)

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
AT_ONCE = Backoff(initial=timedelta(0), jitter=0.0)


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
        scheduler.start()
        yield scheduler


def history(scheduler: Scheduler, job: Any) -> list[tuple[int, str]]:
    """(attempt, outcome) of each run, in order."""
    return [(run.attempt, str(run.outcome)) for run in reversed(scheduler.runs(job.id))]


class Fails(Job):
    def run(self, ctx: Any) -> None:
        kind = ctx.parameters
        if kind == "retry":
            raise Retry(0)
        if kind == "returned retry":
            return Retry(0)  # type: ignore[return-value]
        if kind == "timeout":
            ctx.wait(30)
        if kind == "fail":
            raise Fail("for good")
        raise ValueError(kind)


@pytest.mark.parametrize("how", ["error", "retry", "returned retry", "timeout"])
@pytest.mark.parametrize("isolation", ["thread", "async", "process"])
def test_three_retries_are_exactly_four_attempts(scheduler: Scheduler, isolation: Any, how: str) -> None:
    """A job with retries=3 that always fails is attempted four times, numbered 1 to 4, and has then failed."""
    timeout = timedelta(seconds=0.1) if how == "timeout" else None
    policies: dict[str, Any] = {"retries": 3, "backoff": AT_ONCE, "isolation": isolation, "timeout": timeout}
    job = scheduler.schedule(Fails(JobConfig.one_time("fails", how, **policies)))

    ended = scheduler.wait(job, timeout=30)

    outcome = "timed_out" if how == "timeout" else "failed"
    assert history(scheduler, job) == [(n, outcome) for n in (1, 2, 3, 4)]
    assert ended.state is JobState.FAILED


def test_no_retries_is_one_attempt_and_fail_ends_at_once(scheduler: Scheduler) -> None:
    """retries=0 is one attempt; Fail ends the job whatever retries are left."""
    once = scheduler.schedule(Fails(JobConfig.one_time("fails", "error")))
    final = scheduler.schedule(Fails(JobConfig.one_time("fails", "fail", retries=3)))

    assert {scheduler.wait(job, timeout=20).state for job in (once, final)} == {JobState.FAILED}
    assert history(scheduler, once) == history(scheduler, final) == [(1, "failed")]


class Snoozes(Job):
    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.left = [Snooze(0)] * 5
        self.attempts: list[int] = []

    def run(self, ctx: Any) -> None:
        self.attempts.append(ctx.attempt)
        if self.left:
            raise self.left.pop()
        raise ValueError("now it fails")


def test_a_snooze_burns_no_attempt(scheduler: Scheduler) -> None:
    """Five snoozes later it is still the first attempt, and all retries are left."""
    job = Snoozes(JobConfig(name="snoozes", retries=1, backoff=AT_ONCE))
    record = scheduler.schedule(job)

    assert scheduler.wait(record, timeout=20).state is JobState.FAILED
    assert history(scheduler, record) == [(1, "interrupted")] * 5 + [(1, "failed"), (2, "failed")]
    assert job.attempts == [1] * 6 + [2]


class Waits(Job):
    def __init__(self, config: JobConfig) -> None:
        super().__init__(config)
        self.started = threading.Event()

    def run(self, ctx: Any) -> int:
        self.started.set()
        if ctx.parameters == "short":
            return int(ctx.attempt)
        ctx.wait(60)
        ctx.check()
        raise AssertionError("nobody asked it to stop")


def test_a_shutdown_burns_no_attempt(dsn: str) -> None:
    """A job that three shutdowns interrupt is still at its first attempt, with all its retries."""
    for _ in range(3):
        with Scheduler(config(dsn)) as node:
            job = Waits(JobConfig(name="waits", key="one", parameters="long"))
            node.schedule(job)
            node.start()
            assert job.started.wait(10)
            assert node.shutdown() is True

    with Scheduler(config(dsn)) as client:
        (record,) = client.jobs(name="waits")
        assert (record.state, record.failures, record.stalls, record.attempt) == (JobState.PENDING, 0, 0, 1)
        assert history(client, record) == [(1, "interrupted")] * 3
        assert {run.reason for run in client.runs(record.id)} == {"shutdown"}


NODE = """
import os, sys, threading
import structlog
from pgscheduler import Job, Scheduler, SchedulerConfig
from tests.support.processes import commands, emit

class Poison(Job):
    def run(self, ctx):
        emit("started", attempt=ctx.attempt)
        os._exit(9)

class Mild(Job):
    def run(self, ctx):
        emit("mild")

if __name__ == "__main__":
    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
    config = SchedulerConfig(dsn=sys.argv[1], logger=silent, run_immediately=True, heartbeat_interval=0.2,
                             no_heartbeat_timeout=3.0, shutdown_timeout=5)
    scheduler = Scheduler(config)
    scheduler.init()
    scheduler.register(Poison)
    scheduler.register(Mild)
    scheduler.start()
    emit("ready")
    for order in commands():
        pass
"""


def test_a_job_that_kills_its_node_ends_as_failed(dsn: str, nodes: Any, eventually: Any) -> None:
    """A job that ends its node's process each time has failed after max_stalls deaths, with the reason; the node
    after that lives and runs other jobs."""
    with Scheduler(config(dsn)) as client:
        job = client.enqueue("poison", max_stalls=2, retries=5)
        for death in (1, 2):
            node = nodes(NODE, dsn)
            assert node.wait_for("started", timeout=20)["attempt"] == death
            assert node.wait(20) == 9

        survivor = nodes(NODE, dsn)
        ended = client.wait(job, timeout=60)
        assert ended.state is JobState.FAILED
        assert history(client, job) == [(1, "stalled"), (2, "stalled"), (3, "failed")]
        assert "stalled 2 times" in (ended.last_error or "")
        assert client.runs(job.id, outcome=Outcome.FAILED)[0].started_at is None

        client.enqueue("mild")
        survivor.wait_for("mild")
        assert survivor.seen("started") == []
        assert survivor.is_alive


def test_a_job_that_kills_its_own_process_ends_as_failed_and_the_node_lives(dsn: str, nodes: Any) -> None:
    """With isolation="process" the same job kills only its own process, and is counted and bounded just so."""
    node = nodes(NODE, dsn)
    node.wait_for("ready")
    with Scheduler(config(dsn)) as client:
        job = client.enqueue("poison", isolation="process")

        ended = client.wait(job, timeout=40)

        assert ended.state is JobState.FAILED
        assert history(client, job) == [(1, "stalled"), (2, "stalled"), (3, "stalled"), (4, "failed")]
        assert "stalled 3 times" in (ended.last_error or "")
        assert {run.reason for run in client.runs(job.id, outcome="stalled")} == {
            "the job's process died (exit code 9)"
        }
        mild = client.enqueue("mild")
        assert client.wait(mild, timeout=20).state is JobState.COMPLETED
        assert node.is_alive


def test_a_program_without_main_guard_is_told_so(dsn: str, nodes: Any) -> None:
    """A process job's process, importing a main module that starts a scheduler, does not become a second node: it
    ends with the hint, which counts as a death of the process."""
    unguarded = NODE.replace('if __name__ == "__main__":', "if True:")
    node = nodes(unguarded, dsn)
    node.wait_for("ready")
    with Scheduler(config(dsn)) as client:
        job = client.enqueue("mild", isolation="process", max_stalls=1)

        assert client.wait(job, timeout=40).state is JobState.FAILED
        assert history(client, job) == [(1, "stalled"), (2, "failed")]
        assert len(client.nodes()) == 1
    assert "__main__" in node.stderr()
    assert len(node.seen("ready")) == 1


def test_stalls_and_failures_are_counted_apart(dsn: str, db: Any) -> None:
    """A stall takes no retry away: after two stalls a job with retries=1 still has two failures."""
    with Scheduler(config(dsn)) as node:
        node.register(Fails)
        job = node.enqueue("fails", "error", retries=1, backoff=AT_ONCE)
        for _ in range(2):
            # A claim whose node is silent: what a crash leaves behind.
            db.execute(
                "update pgscheduler_jobs set state = 'running', token = 1, claimed_at = now() - interval '1 hour'"
            )
            node._node.maintenance.step()
            node._node.maintenance._due = dict.fromkeys(node._node.maintenance._due, 0.0)
        record = node.get_job(job)
        assert (record.state, record.failures, record.stalls) == (JobState.PENDING, 0, 2)

        node.run_pending()
        node.run_pending()

        assert node.get_job(job).state is JobState.FAILED
        outcomes = [outcome for _, outcome in history(node, job)]
        assert outcomes == ["stalled", "stalled", "failed", "failed"]
