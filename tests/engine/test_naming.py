"""Recurring jobs by name, from a process that lacks their class; and a job that goes with its history."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import (
    Cron,
    DuplicateJobError,
    Every,
    InvalidTypeError,
    InvalidValueError,
    JobConfig,
    JobKindError,
    JobNotFoundError,
    JobRunningError,
    JobState,
)
from tests.engine.conftest import Call, Gate
from tests.support import eventually


class Own:
    """A schedule of somebody's own."""

    def next_after(self, instant: Any) -> Any:
        return instant + timedelta(hours=1)


def test_stored_by_name_and_run_by_the_class(dsn: str, scheduler_on: Any) -> None:
    """One process says when, another knows how: the class's policies apply where none were given."""
    store, node = scheduler_on(dsn), scheduler_on(dsn)
    seen: list[Any] = []
    node.register(Call(JobConfig(name="report", retries=2), lambda ctx: seen.append(ctx.parameters)))
    job = store.schedule_by_name(
        "report", Cron("0 9 * * *", "Europe/Berlin"), {"region": "north"}, key="north"
    )
    assert (job.name, job.key, job.state, job.options) == ("report", "north", JobState.PENDING, None)
    assert job.schedule["cron"] == "0 9 * * *"
    store.trigger(job)
    node.run_pending()
    assert seen == [{"region": "north"}]
    assert store.get_job(job).state == JobState.PENDING


def test_paused_from_the_first_moment(dsn: str, scheduler_on: Any) -> None:
    """A job that is stored paused waits for resume."""
    store = scheduler_on(dsn)
    job = store.schedule_by_name("report", "* * * * *", paused=True, retries=1)
    assert (job.state, job.options) == (JobState.PAUSED, {"retries": 1})
    assert store.resume(job).state == JobState.PENDING


def test_what_if_it_exists(dsn: str, scheduler_on: Any) -> None:
    """Refused, kept, or changed; the same schedule keeps its next occurrence."""
    store = scheduler_on(dsn)
    first = store.schedule_by_name("report", Every(timedelta(hours=1)), {"a": 1}, retries=1)
    with pytest.raises(DuplicateJobError):
        store.schedule_by_name("report", "* * * * *")
    assert store.schedule_by_name("report", "* * * * *", if_exists="keep") == first
    same = store.schedule_by_name("report", Every(timedelta(hours=1)), priority=2, if_exists="update")
    assert (same.id, same.priority, same.scheduled_at) == (first.id, 2, first.scheduled_at)
    assert (same.parameters, same.options) == ({"a": 1}, {"retries": 1})
    other = store.schedule_by_name("report", "0 9 * * *", if_exists="update", paused=True)
    assert (other.id, other.state, other.schedule["cron"]) == (first.id, JobState.PAUSED, "0 9 * * *")


def test_wrong_ones(dsn: str, scheduler_on: Any) -> None:
    """What cannot be stored by name is refused, and nothing is."""
    store = scheduler_on(dsn)
    for arguments, options, error in (
        (("", "* * * * *"), {}, InvalidValueError),
        (("a", "never"), {}, ValueError),
        (("a", Own()), {}, InvalidValueError),
        (("a", None), {}, InvalidValueError),
        (("a", "* * * * *"), {"if_exists": "replace"}, InvalidValueError),
        (("a", "* * * * *"), {"paused": 1}, InvalidTypeError),
        (("a", "* * * * *"), {"run_at": 5}, InvalidTypeError),
        (("a", "* * * * *", {"a": {1}}), {}, InvalidTypeError),
    ):
        with pytest.raises(error):
            store.schedule_by_name(*arguments, **options)
    store.enqueue("once", key="k")
    with pytest.raises(JobKindError):
        store.schedule_by_name("once", "* * * * *")
    assert [job.name for job in store.jobs()] == ["once"]


def test_not_while_it_runs(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """An update waits for nobody: a job that runs is said to run."""
    node = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="report"), gate),))
    job = node.schedule_by_name("report", Every(timedelta(hours=1)))
    node.trigger(job)
    gate.wait_for(1)
    with pytest.raises(JobRunningError):
        node.schedule_by_name("report", "* * * * *", if_exists="update")


def test_delete_with_history(dsn: str, scheduler_on: Any, db: psycopg.Connection[Any]) -> None:
    """The runs and logs of that job go with it, and no others."""
    scheduler = scheduler_on(dsn)
    scheduler.register(Call(JobConfig(name="report"), lambda ctx: ctx.log.info("hello")))
    jobs = [scheduler.schedule_by_name("report", Every(timedelta(hours=1)), key=key) for key in ("a", "b")]
    for job in jobs:
        scheduler.trigger(job)
    scheduler.run_pending()
    run = scheduler.runs(jobs[0])[0]
    assert scheduler.get_run(run.id) == run
    assert scheduler.delete(jobs[0], history=True) == "deleted"
    assert {r.key for r in scheduler.runs()} == {"b"}
    assert db.execute("select distinct job_id from pgscheduler_run_logs").fetchall() == [(jobs[1].id,)]
    with pytest.raises(JobNotFoundError):
        scheduler.get_run(run.id)
    with pytest.raises(JobNotFoundError):
        scheduler.delete(jobs[0], history=True)
    assert scheduler.delete(jobs[1]) == "deleted"
    assert [r.reason for r in scheduler.runs(jobs[1])] == ["deleted", None]


def test_delete_with_history_while_it_runs(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """A job that runs is asked to stop; what it becomes is still recorded."""
    node = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="report"), gate),))
    job = node.enqueue("report")
    gate.wait_for(1)
    assert node.delete(job, history=True) == "requested"
    eventually(lambda: [r.outcome for r in node.runs(job)] == ["cancelled"])


def test_a_pass_says_how_many_it_gave_back(dsn: str, scheduler_on: Any, db: psycopg.Connection[Any]) -> None:
    """Jobs of a dead node are given back before the pass claims, and counted."""
    scheduler = scheduler_on(dsn, register=(Call(JobConfig(name="report")),))
    scheduler.enqueue("report")
    db.execute(
        "update pgscheduler_jobs set state = 'running', token = 1, claimed_at = now() - interval '1 hour',"
        " heartbeat_at = now() - interval '1 hour', node_id = gen_random_uuid()"
    )
    done = scheduler.run_pending()
    assert (done.reset, done.claimed, done.completed) == (1, 1, 1)
    assert scheduler.run_pending().reset == 0


def test_one_time_jobs_without_a_key_do_not_keep_a_name_from_becoming_recurring(
    dsn: str, scheduler_on: Any
) -> None:
    """They are not looked for, and run; from then on the name is recurring: no other is added, through any door."""
    node = scheduler_on(dsn)
    waiting = node.enqueue("report")
    daily = node.schedule_by_name("report", "@daily")
    for call in (lambda: node.enqueue("report"), lambda: node.enqueue("report", key="k")):
        with pytest.raises(JobKindError, match="recurring"):
            call()
    with psycopg.connect(dsn) as connection, pytest.raises(psycopg.errors.DuplicateObject, match="recurring"):
        connection.execute("select pgscheduler_enqueue('report')")
    assert {job.id for job in node.jobs()} == {waiting.id, daily.id}
    node.register(Call(JobConfig(name="report"), lambda _: "done"))
    node.run_pending()
    assert node.get_job(waiting).state is JobState.COMPLETED
    assert node.get_job("report").recurring
    # The reverse, which jobs with a key tell.
    node.enqueue("mail", key="k", delay=60)
    with pytest.raises(JobKindError, match="one-time"):
        node.schedule_by_name("mail", "@daily")


@dataclasses.dataclass
class Mail:
    user: int


def test_parameters_are_checked_by_whoever_knows_the_class(dsn: str, scheduler_on: Any) -> None:
    """`enqueue` by name asks the class that is registered here, before anything is stored; elsewhere the run does."""
    knows, knows_not = scheduler_on(dsn), scheduler_on(dsn)
    knows.register(Call(JobConfig(name="mail", parameters_schema=Mail)))
    wrong: tuple[dict[str, Any], ...] = ({}, {"user": 1, "other": 2})
    for options in ({}, {"key": "k"}, {"retries": 2}):
        for parameters in wrong:
            with pytest.raises(InvalidValueError, match="do not fit Mail"):
                knows.enqueue("mail", parameters, **options)
        with pytest.raises(InvalidValueError, match="do not fit Mail"):
            knows.enqueue("mail", **options)
    assert knows.jobs() == []

    fine = knows.enqueue("mail", {"user": 1})
    given = knows.enqueue("mail", Mail(2))
    unknown = knows_not.enqueue("mail", {})
    done = knows.run_pending()
    assert (done.completed, done.failed) == (2, 1)
    assert [knows.get_job(job).state for job in (fine, given, unknown)] == [
        JobState.COMPLETED, JobState.COMPLETED, JobState.FAILED,
    ]  # fmt: skip


def test_a_schedule_of_ones_own_comes_with_its_class_only(dsn: str, scheduler_on: Any) -> None:
    """No verb by name takes one: nodes would go by the class that they have registered, and not by this."""
    node = scheduler_on(dsn)
    job = node.schedule_by_name("report", "@daily")
    for change in (node.reschedule, node.update):
        with pytest.raises(InvalidValueError, match="comes with its class"):
            change(job, schedule=Own())
    assert node.get_job(job) == job
