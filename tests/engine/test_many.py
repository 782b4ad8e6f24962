"""Many jobs in one transaction: all of them or none, and whoever waits for them hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import (
    DuplicateJobError,
    Every,
    InvalidTypeError,
    InvalidValueError,
    JobConfig,
    JobKindError,
    JobRunningError,
)
from tests.engine.conftest import Call
from tests.support import eventually
from tests.support.pooler import needs_notifications

HOUR = timedelta(hours=1)


@dataclass
class Mail:
    """The parameters of a job."""

    to: str


def test_schedule_many_with_keys_and_recurring(dsn: str, scheduler_on: Any) -> None:
    """schedule_many stores plain, keyed and recurring jobs together, and updates what has a key."""
    scheduler = scheduler_on(dsn)
    tick = Call(JobConfig.recurring("tick", Every(HOUR)))
    jobs = [Call(JobConfig.one_time("plain", {"n": n})) for n in range(5)]
    jobs += [Call(JobConfig.one_time("keyed", {"n": n}, key=str(n))) for n in range(5)] + [tick]
    assert scheduler.schedule_many(jobs) == 11
    assert (
        scheduler.schedule_many([Call(JobConfig.one_time("keyed", {"n": 10}, key="1", priority=2)), tick])
        == 2
    )
    assert len(scheduler.jobs()) == 11
    assert (scheduler.get_job(("keyed", "1")).parameters, scheduler.get_job(("keyed", "1")).priority) == (
        {"n": 10},
        2,
    )


@pytest.mark.parametrize(
    "bad", ["parameters", "recurring name", "keyed under a recurring name", "twice", "running", "no job"]
)
def test_schedule_many_is_all_or_nothing(dsn: str, db: Any, scheduler_on: Any, bad: str) -> None:
    """One job that cannot be stored, and none of them is; the error is one of ours."""
    other = scheduler_on(dsn)
    other.schedule(Call(JobConfig.recurring("tick", Every(HOUR))))
    other.enqueue("busy", key="b")
    db.execute(
        "update pgscheduler_jobs set state = 'running', token = 1, claimed_at = now() where name = 'busy'"
    )
    scheduler = scheduler_on(dsn)
    good = [Call(JobConfig.one_time("good", key="g"))]
    if bad != "keyed under a recurring name":
        good.append(Call(JobConfig.one_time("good")))
    culprit: list[Any] = {
        "parameters": [Call(JobConfig.one_time("good", {"x": {1, 2}}))],
        "recurring name": [Call(JobConfig.one_time("tick"))],
        "keyed under a recurring name": [Call(JobConfig.one_time("tick", key="other"))],
        "twice": [Call(JobConfig.one_time("good", key="g"))],
        "running": [Call(JobConfig.one_time("busy", key="b"))],
        "no job": ["good"],
    }[bad]
    expected = {
        "parameters": TypeError,
        "recurring name": JobKindError,
        "keyed under a recurring name": JobKindError,
        "twice": DuplicateJobError,
        "running": JobRunningError,
        "no job": TypeError,
    }[bad]
    with pytest.raises(expected):
        scheduler.schedule_many([*good, *culprit])
    assert sorted(job.name for job in scheduler.jobs()) == ["busy", "tick"]


def test_enqueue_many(dsn: str, db: Any, scheduler_on: Any) -> None:
    """A job for each of the parameters, under one name and priority; the policies are the class's."""
    scheduler = scheduler_on(dsn)
    texts = ["plain", "tab\t", "line\nline", "back\\slash", "\\N", "grüße 🎉", ""]
    before = db.execute("select now()").fetchone()[0]
    assert scheduler.enqueue_many("mail", ({"text": text} for text in texts), priority=3, delay=HOUR) == 7
    assert scheduler.enqueue_many("mail", [{}, None, [1], "one", {"n": 2**70, "in": {"x": [1.5, None]}}]) == 5
    assert scheduler.enqueue_many("mail", []) == 0
    jobs = scheduler.jobs(limit=100)
    assert [job.parameters["text"] for job in sorted(jobs, key=lambda job: job.id)[:7]] == texts
    assert [job.parameters for job in sorted(jobs, key=lambda job: job.id)[7:]] == [
        {}, {}, [1], "one", {"n": 2**70, "in": {"x": [1.5, None]}}
    ]  # fmt: skip
    later = [job for job in jobs if job.priority == 3]
    assert len(later) == 7
    assert all(before + HOUR <= job.run_at <= before + 2 * HOUR for job in later)
    assert db.execute("select count(*) from pgscheduler_jobs where options is null").fetchone() == (12,)
    assert [job.run_at == job.scheduled_at == job.created_at for job in jobs if job.priority == 5] == [
        True
    ] * 5


@pytest.mark.parametrize("bad", ["last", "generator", "recurring name", "schema"])
def test_enqueue_many_is_all_or_nothing(dsn: str, db: Any, scheduler_on: Any, bad: str) -> None:
    """What cannot be stored undoes everything, also what the server was given before it, and says why."""
    scheduler = scheduler_on(dsn, register=(Call(JobConfig(name="typed", parameters_schema=Mail)),))
    scheduler.schedule(Call(JobConfig.recurring("tick", Every(HOUR))))
    good = [{"n": n} for n in range(3000)]

    def broken() -> Any:
        yield from good
        raise KeyError("the caller's own")

    calls: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
        "last": (InvalidTypeError, lambda: scheduler.enqueue_many("good", [*good, {"x": {1, 2}}])),
        "generator": (KeyError, lambda: scheduler.enqueue_many("good", broken())),
        "recurring name": (JobKindError, lambda: scheduler.enqueue_many("tick", good)),
        "schema": (InvalidValueError, lambda: scheduler.enqueue_many("typed", [{"to": "a"}, {"from": "b"}])),
    }
    expected, call = calls[bad]
    with pytest.raises(expected):
        call()
    assert [job.name for job in scheduler.jobs()] == ["tick"]
    with psycopg.connect(dsn) as connection:
        kept = scheduler.enqueue("kept", connection=connection)
        if bad == "last":
            with pytest.raises(InvalidTypeError):
                scheduler.enqueue_many("good", [*good, {"x": {1, 2}}], connection=connection)
        connection.commit()
    assert {job.name for job in scheduler.jobs()} == {"tick", "kept"}
    assert scheduler.get_job(kept).name == "kept"


@needs_notifications
@pytest.mark.parametrize("verb", ["enqueue_many", "schedule_many"])
def test_many_in_a_callers_transaction_wake_the_nodes(dsn: str, scheduler_on: Any, verb: str) -> None:
    """Another process's node, which looks once a minute, hears of them soon after the commit."""
    scheduler_on(dsn, start=True, job_check_interval=60, register=(Call(JobConfig(name="mail")),))
    client = scheduler_on(dsn)
    with psycopg.connect(dsn) as connection:
        if verb == "enqueue_many":
            client.enqueue_many("mail", [{}, {}], connection=connection)
        else:
            client.schedule_many([Call(JobConfig.one_time("mail")) for _ in range(2)], connection=connection)
        connection.commit()
        eventually(lambda: client.count_runs(outcome="completed") == 2)
