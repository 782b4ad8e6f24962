"""The verbs that change, filter, count, keep and retry: each does what it says, and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import (
    Backoff,
    Cron,
    DatabaseUnavailableError,
    DuplicateJobError,
    Every,
    InvalidTypeError,
    InvalidValueError,
    Job,
    JobConfig,
    JobKindError,
    JobNotFoundError,
    JobRecord,
    JobRunningError,
    JobState,
    Outcome,
    Scheduler,
    SchemaError,
)
from pgscheduler import _maintenance as maintenance
from tests.engine.conftest import Call, Gate
from tests.support import eventually
from tests.support.pooler import needs_notifications

NOON = datetime(2031, 3, 1, 12, 0, 30, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOW_OR_NEVER = Backoff(initial=timedelta(0), factor=1, jitter=0)
(HISTORY,) = maintenance.LONG
NODE = "11111111-1111-1111-1111-111111111111"


class Plain(Job):
    """A job whose class says something of its own."""

    config = JobConfig(name="plain", retries=4, timeout=MINUTE)

    def run(self, ctx: Any) -> None: ...


class Own:
    """A schedule of somebody's own."""

    def next_after(self, instant: datetime) -> datetime:
        return instant + HOUR


def difference(before: JobRecord, after: JobRecord) -> dict[str, Any]:
    """The fields of the second that are not as in the first."""
    was = dataclasses.asdict(before)
    return {name: value for name, value in dataclasses.asdict(after).items() if was[name] != value}


def row(db: psycopg.Connection[Any], job: JobRecord) -> Any:
    """The job's row as it is, to the last column."""
    return db.execute("select j::text from pgscheduler_jobs j where id = %s", [job.id]).fetchone()


def seize(db: psycopg.Connection[Any], job: JobRecord) -> None:
    """Make it look as if some node ran it."""
    db.execute(
        "update pgscheduler_jobs set state = 'running', token = 7, claimed_at = now(), node_id = %s where id = %s",
        [NODE, job.id],
    )


# --- update -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"parameters": {"b": [2]}}, {"parameters": {"b": [2]}}),
        ({"parameters": {}}, {"parameters": {}}),
        ({"priority": 0}, {"priority": 0}),
        ({"retries": 0}, {"options": {"timeout": 9.0, "metadata": {"team": "a"}}}),
        ({"timeout": None}, {"options": {"retries": 2, "metadata": {"team": "a"}}}),
        ({"timeout": 1.5}, {"options": {"retries": 2, "timeout": 1.5, "metadata": {"team": "a"}}}),
        ({"metadata": {"x": 1}}, {"options": {"retries": 2, "timeout": 9.0, "metadata": {"x": 1}}}),
        ({"metadata": {}}, {"options": {"retries": 2, "timeout": 9.0}}),
        (
            {"backoff": Backoff(initial=SECOND, factor=1, maximum=SECOND, jitter=0), "max_stalls": 1, "jitter": MINUTE},
            {
                "options": {
                    "retries": 2, "timeout": 9.0, "metadata": {"team": "a"}, "backoff": [1.0, 1, 1.0, 0], "max_stalls": 1,
                    "jitter": 60.0,
                }
            },
        ),
        ({"priority": 5, "retries": 2, "timeout": 9}, {}),
    ],
    ids=lambda value: " ".join(value),
)  # fmt: skip
@pytest.mark.parametrize("recurring", [True, False], ids=["recurring", "one-time"])
def test_update_changes_what_is_given(
    dsn: str, scheduler_on: Any, recurring: bool, given: Any, changed: Any
) -> None:
    """One call, one change: everything else of the job is as it was."""
    scheduler = scheduler_on(dsn)
    policies: Any = {"parameters": {"a": 1}, "retries": 2, "timeout": 9, "metadata": {"team": "a"}}
    if recurring:
        job = scheduler.schedule(Call(JobConfig.recurring("job", "@daily", **policies)))
    else:
        job = scheduler.enqueue("job", delay=HOUR, key="k", **policies)
    answer = scheduler.update(job, **given)
    assert difference(job, answer) == changed
    assert difference(job, scheduler.get_job(job)) == changed


def test_update_writes_policies_as_schedule_does(dsn: str, db: Any, scheduler_on: Any) -> None:
    """The stored text is the one that the same policies, scheduled, would have: an unchanged redeploy stays one."""
    scheduler = scheduler_on(dsn)
    policies: Any = {"timeout": 9, "retries": 2, "metadata": {"b": 1, "a": "ü"}, "isolation": "process"}
    left = scheduler.schedule(Call(JobConfig.recurring("left", "@daily")))
    scheduler.schedule(Call(JobConfig.recurring("right", "@daily", **policies)))
    for name, value in policies.items():
        scheduler.update(left, **{name: value})
    texts = db.execute("select distinct options from pgscheduler_jobs").fetchall()
    assert len(texts) == 1


def test_a_changed_schedule_takes_effect_and_an_unchanged_one_postpones_nothing(
    dsn: str, scheduler_on: Any, clock: Any
) -> None:
    """A new schedule computes the next occurrence from now; the same one keeps it, even if it is overdue."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    job = scheduler.schedule(Call(JobConfig.recurring("job", "@daily")))
    assert job.scheduled_at == NOON.replace(day=2, hour=0, second=0)
    hourly = scheduler.update("job", schedule="0 * * * *")
    assert (hourly.scheduled_at, hourly.run_at) == (NOON.replace(hour=13, second=0),) * 2
    clock(NOON + 3 * HOUR)
    assert scheduler.update("job", schedule=Cron("0 * * * *")).scheduled_at == hourly.scheduled_at
    every = scheduler.update("job", schedule=Every(MINUTE), priority=1)
    assert NOON + 3 * HOUR < every.scheduled_at <= NOON + 3 * HOUR + MINUTE
    assert every.schedule == {"every": 60.0}


def test_a_changed_schedule_spreads_by_the_jitter_that_comes_with_it(
    dsn: str, scheduler_on: Any, clock: Any
) -> None:
    """The new occurrence's offset is that of the new policies."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    job = scheduler.schedule(Call(JobConfig.recurring("job", "@daily")))
    answer = scheduler.update(job, schedule="0 * * * *", jitter=MINUTE)
    assert timedelta(0) < answer.run_at - answer.scheduled_at <= MINUTE


def test_only_another_time_forgets_failures(dsn: str, scheduler_on: Any) -> None:
    """What was counted belongs to the occurrence: another priority keeps it, another schedule or time does not."""
    scheduler = scheduler_on(dsn)
    backoff = Backoff(initial=HOUR, jitter=0)

    def fail(ctx: Any) -> None:
        raise ValueError("no")

    once = scheduler.schedule(Call(JobConfig.one_time("once", retries=3, backoff=backoff), fail))
    often = scheduler.schedule(Call(JobConfig.recurring("often", "@daily", retries=3, backoff=backoff), fail))
    scheduler.trigger(often)
    assert scheduler.run_pending().failed == 2
    assert scheduler.update(once, priority=1).failures == 1
    assert scheduler.update(often, priority=1, schedule="@daily").failures == 1
    assert scheduler.update(once, delay=MINUTE).failures == 0
    assert scheduler.update(often, schedule="@hourly").failures == 0


def test_update_moves_a_one_time_job(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """`run_at` is a moment, `delay` counts from now by the database's clock; a scheduled job is the one that moved."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    job = scheduler.enqueue("job", delay=DAY)
    moved = scheduler.update(job, run_at=NOON + HOUR)
    assert (moved.run_at, moved.scheduled_at) == (NOON + HOUR,) * 2
    clock(NOON + MINUTE)
    moved = scheduler.update(job, delay=MINUTE, parameters={"a": 1})
    assert (moved.run_at, moved.scheduled_at, moved.parameters) == (
        NOON + 2 * MINUTE,
        NOON + 2 * MINUTE,
        {"a": 1},
    )


def test_a_paused_job_can_be_updated_and_stays_paused(dsn: str, scheduler_on: Any) -> None:
    """Another time does not wake a paused job."""
    scheduler = scheduler_on(dsn)
    job = scheduler.pause(scheduler.schedule(Call(JobConfig.recurring("job", "@daily"))))
    assert scheduler.update(job, schedule="* * * * * *", retries=1).state is JobState.PAUSED


def test_the_next_run_goes_by_what_was_updated(dsn: str, scheduler_on: Any) -> None:
    """Parameters and policies of an update are those of the run after it."""
    scheduler = scheduler_on(dsn)
    seen: list[Any] = []

    def run(ctx: Any) -> None:
        seen.append(ctx.parameters)
        raise ValueError("no")

    scheduler.register(Call(JobConfig(name="job"), run))
    job = scheduler.enqueue("job", {"n": 1}, retries=9, backoff=NOW_OR_NEVER)
    scheduler.update(job, parameters={"n": 2}, retries=1)
    while scheduler.run_pending().claimed:
        pass
    assert seen == [{"n": 2}] * 2
    assert scheduler.get_job(job).state is JobState.FAILED


@needs_notifications
def test_an_update_wakes_the_nodes(dsn: str, scheduler_on: Any) -> None:
    """A job that is due by an update starts at once, also on a node that slept until much later."""
    other = scheduler_on(dsn)
    job = other.enqueue("job", delay=HOUR)
    node = scheduler_on(dsn, start=True, register=(Call(JobConfig(name="job")),), job_check_interval=300)
    loop = "dispatcher"
    eventually(
        lambda: (node.node_stats()["loops"][loop]["last_success_seconds"] or 0) > 1, describe="it to sleep"
    )
    other.update(job, delay=0)
    assert node.wait(job, 30).state is JobState.COMPLETED


def test_policies_of_a_job_that_had_none(dsn: str, scheduler_on: Any) -> None:
    """The policies that are not given stay the class's where that is known; elsewhere they are the defaults."""
    knows, stranger = scheduler_on(dsn), scheduler_on(dsn)
    knows.register(Plain)
    first, second = knows.enqueue("plain"), knows.enqueue("plain")
    assert first.options is None
    assert knows.update(first, priority=1).options is None
    assert knows.update(first, max_stalls=1).options == {"retries": 4, "timeout": 60.0, "max_stalls": 1}
    assert stranger.update(second, max_stalls=1).options == {"max_stalls": 1}


def test_other_metadata_does_not_take_a_job_from_its_source(dsn: str, db: Any, scheduler_on: Any) -> None:
    """Who declared a job, and what it was made from, is not lost with metadata that somebody gives."""
    scheduler = scheduler_on(dsn)
    job = scheduler.schedule(Call(JobConfig.recurring("job", "@daily")))
    marks = {"definitions_source": "shop", "job_template": "MONTHLY"}
    options = json.dumps({"metadata": {**marks, "a": 1}})
    db.execute("update pgscheduler_jobs set options = %s", [options])
    assert scheduler.update(job, metadata={"b": 2}).options == {"metadata": {**marks, "b": 2}}
    assert scheduler.update(job, metadata={}).options == {"metadata": marks}


def test_parameters_are_checked_by_the_class_that_is_known(dsn: str, db: Any, scheduler_on: Any) -> None:
    """What `schedule` would refuse `update` refuses too, before it writes."""

    @dataclasses.dataclass
    class Shape:
        size: int

    scheduler = scheduler_on(dsn)
    config = JobConfig.recurring("job", "@daily", parameters={"size": 1}, parameters_schema=Shape)
    job = scheduler.schedule(Call(config))
    before = row(db, job)
    with pytest.raises(InvalidValueError, match="parameters do not fit"):
        scheduler.update(job, parameters={"weight": 1})
    assert row(db, job) == before
    assert scheduler.update(job, parameters={"size": 2}).parameters == {"size": 2}


@pytest.mark.parametrize(
    ("kind", "given", "error", "field"),
    [
        ("both", {}, InvalidValueError, "changes"),
        ("both", {"priority": -1}, InvalidValueError, "priority"),
        ("both", {"priority": "high"}, InvalidTypeError, "priority"),
        ("both", {"retries": -1}, InvalidValueError, "retries"),
        ("both", {"timeout": 0}, InvalidValueError, "timeout"),
        ("both", {"metadata": 1}, InvalidTypeError, "metadata"),
        ("both", {"metadata": {"a": "x" * 20_000}}, InvalidValueError, "metadata"),
        ("both", {"parameters": {"a": object()}}, InvalidTypeError, "parameters"),
        ("both", {"parameters": {"a": "x" * 70_000}}, InvalidValueError, "parameters"),
        ("both", {"name": "other"}, InvalidValueError, "name"),
        ("both", {"key": "other"}, InvalidValueError, "key"),
        ("both", {"parameters_schema": {}}, InvalidValueError, "parameters_schema"),
        ("both", {"colour": "red"}, InvalidTypeError, "colour"),
        ("recurring", {"schedule": "nonsense"}, InvalidValueError, None),
        ("recurring", {"schedule": 5}, InvalidTypeError, "schedule"),
        ("recurring", {"schedule": Own()}, InvalidValueError, "schedule"),
        ("recurring", {"run_at": NOON}, InvalidValueError, "run_at"),
        ("recurring", {"delay": 5}, InvalidValueError, "delay"),
        ("recurring", {"expires_in": 5}, InvalidValueError, "expires_in"),
        ("one-time", {"schedule": "@daily"}, JobKindError, None),
        ("one-time", {"run_at": NOON, "delay": 5}, InvalidValueError, "delay"),
        ("one-time", {"run_at": datetime(2031, 1, 1)}, InvalidValueError, "run_at"),
        ("one-time", {"delay": -1}, InvalidValueError, "delay"),
    ],
)  # fmt: skip
def test_update_refuses(
    dsn: str, db: Any, scheduler_on: Any, kind: str, given: Any, error: type[Exception], field: str | None
) -> None:
    """Bad input gets an error that names the field, and the row is untouched."""
    scheduler = scheduler_on(dsn)
    jobs = [
        scheduler.schedule(Call(JobConfig.recurring("tick", "@daily"))),
        scheduler.enqueue("once", delay=HOUR, retries=1),
    ]
    for job in jobs:
        if kind == ("one-time" if job.recurring else "recurring"):
            continue
        before = row(db, job)
        with pytest.raises(error) as caught:
            scheduler.update(job, **given)
        assert getattr(caught.value, "field", None) == field or field is None
        assert row(db, job) == before


def test_update_of_what_is_not_there(dsn: str, scheduler_on: Any) -> None:
    """A job that never was, was deleted, or has ended cannot be changed any more."""
    scheduler = scheduler_on(dsn)
    deleted = scheduler.schedule(Call(JobConfig.recurring("tick", "@daily")))
    scheduler.delete(deleted)
    ended = scheduler.schedule(Call(JobConfig.one_time("once", key="k")))
    scheduler.run_pending()
    for job in (2**40, "nobody", ("once", "other"), deleted, "tick", ended, ("once", "k")):
        with pytest.raises(JobNotFoundError):
            scheduler.update(job, priority=1)


@pytest.mark.parametrize("how", ["runs", "deleted while it ran", "completed in its own transaction"])
@pytest.mark.parametrize("recurring", [True, False], ids=["recurring", "one-time"])
def test_update_of_a_job_that_runs(dsn: str, db: Any, scheduler_on: Any, recurring: bool, how: str) -> None:
    """A job that runs, is on its way out, or whose work is done and waits for its record, is not touched."""
    scheduler = scheduler_on(dsn)
    if recurring:
        job = scheduler.schedule(Call(JobConfig.recurring("job", "@daily")))
    else:
        job = scheduler.enqueue("job", key="k", retries=1)
    if how == "runs":
        seize(db, job)
    elif how == "deleted while it ran":
        db.execute("update pgscheduler_jobs set after_run = 'delete', cancel_requested = true")
    else:
        db.execute("update pgscheduler_jobs set completed_at = now()")
    before = row(db, job)
    for given in ({"priority": 1}, {"retries": 3}, {"schedule": "@hourly"} if recurring else {"delay": 60}):
        with pytest.raises(JobRunningError):
            scheduler.update(job, **given)
    assert row(db, job) == before


def blocked(db: psycopg.Connection[Any]) -> None:
    """Wait until a statement in this database waits for a lock."""
    query = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    eventually(lambda: db.execute(query).fetchone() == (1,), describe="a statement to wait for the row")


def test_a_claim_that_was_first_wins_over_an_update(dsn: str, db: Any, scheduler_on: Any) -> None:
    """An update that found the job pending, and waits for a claim of it to commit, is refused and changes nothing."""
    scheduler = scheduler_on(dsn)
    job = scheduler.enqueue("job", {"n": 1})
    with psycopg.connect(dsn) as claim, ThreadPoolExecutor(1) as pool:
        claim.execute("update pgscheduler_jobs set state = 'running', token = 7, claimed_at = now()")
        answer = pool.submit(scheduler.update, job, parameters={"n": 2}, retries=1)
        blocked(db)
        claim.commit()
        with pytest.raises(JobRunningError):
            answer.result(20)
    found = scheduler.get_job(job)
    assert (found.parameters, found.options) == ({"n": 1}, None)


def test_an_update_that_was_first_wins_over_another(dsn: str, db: Any, scheduler_on: Any) -> None:
    """Two updates of different policies at one moment: both are in the end, whichever was first."""
    scheduler = scheduler_on(dsn)
    job = scheduler.enqueue("job", retries=1)
    with psycopg.connect(dsn) as other, ThreadPoolExecutor(1) as pool:
        other.execute("update pgscheduler_jobs set options = %s", ['{"max_stalls":7,"retries":1}'])
        answer = pool.submit(scheduler.update, job, timeout=5)
        blocked(db)
        other.commit()
        assert answer.result(20).options == {"max_stalls": 7, "retries": 1, "timeout": 5.0}


def test_no_run_sees_half_of_an_update(dsn: str, db: Any, scheduler_on: Any) -> None:
    """While nodes claim as fast as they can: a job ran with what an update gave it exactly if the update said so."""
    scheduler = scheduler_on(dsn, max_concurrent_jobs=4)
    seen: dict[int, int] = {}
    scheduler.register(
        Call(JobConfig(name="job"), lambda ctx: seen.update({ctx.parameters["job"]: ctx.parameters["n"]}))
    )
    jobs = {
        n: scheduler.enqueue("job", {"job": n, "n": 1}, metadata={"n": 1}, priority=n % 3) for n in range(150)
    }
    said: dict[int, int] = {}

    def change(n: int) -> None:
        try:
            scheduler.update(jobs[n], parameters={"job": n, "n": 2}, metadata={"n": 2})
            said[n] = 2
        except (JobRunningError, JobNotFoundError):
            said[n] = 1

    scheduler.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(change, reversed(range(150))))
    eventually(lambda: scheduler.count_runs(outcome="completed") == 150, timeout=60)
    assert seen == said
    rows = db.execute(
        "select parameters, options::json -> 'metadata' -> 'n' from pgscheduler_runs"
    ).fetchall()
    assert {parameters["job"]: n for parameters, n in rows} == said


# --- filters, counts, the queue -----------------------------------------------------------------------------


@pytest.fixture
def several(dsn: str, db: Any, scheduler_on: Any) -> tuple[Scheduler, dict[str, JobRecord]]:
    """A scheduler with one live job of each sort."""
    scheduler = scheduler_on(dsn)
    jobs = {
        "due": scheduler.enqueue("mail", key="Anna_1"),
        "later": scheduler.enqueue("mail", key="anna%2", delay=HOUR),
        "plain": scheduler.enqueue("Mailing"),
        "tick": scheduler.schedule(Call(JobConfig.recurring("tick", "@daily"))),
        "paused": scheduler.pause(scheduler.enqueue("other", key="p")),
        "running": scheduler.enqueue("other", key="r"),
    }
    seize(db, jobs["running"])
    return scheduler, jobs


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, "due later plain tick paused running"),
        ({"due": True}, "due plain"),
        ({"due": False}, "later tick paused running"),
        ({"due": False, "state": "pending"}, "later tick"),
        ({"due": True, "recurring": True}, ""),
        ({"search": "mail"}, "due later plain"),
        ({"search": "MAIL", "due": True}, "due plain"),
        ({"search": "ANNA"}, "due later"),
        ({"search": "a_"}, "due"),
        ({"search": "%"}, "later"),
        ({"search": "\\"}, ""),
        ({"search": "k"}, "tick"),
        ({"name": "mail", "key": "Anna_1"}, "due"),
    ],
)
def test_jobs_are_filtered_and_counted_alike(several: Any, filters: Any, found: str) -> None:
    """What `jobs` lists is what `count_jobs` counts; a search is for the characters as they stand."""
    scheduler, jobs = several
    names = {job.id: name for name, job in jobs.items()}
    assert sorted(names[job.id] for job in scheduler.jobs(**filters)) == sorted(found.split())
    assert scheduler.count_jobs(**filters) == len(found.split())


def test_runs_are_filtered_and_counted_alike(dsn: str, db: Any, scheduler_on: Any) -> None:
    """`since` is the first moment that counts, `until` the first that does not; `node` is who ran it."""
    scheduler = scheduler_on(dsn)
    for n in range(4):
        db.execute(
            "insert into pgscheduler_runs (job_id, token, scheduled_at, finished_at, attempt, outcome, name, key, node_id)"
            " values (%s, %s, %s, %s, 1, %s, %s, 'k', %s)",
            [
                n + 1,
                n,
                NOON,
                NOON + n * HOUR,
                ["completed", "failed"][n % 2],
                "ab"[n // 2],
                NODE if n else None,
            ],
        )

    for filters, found in (
        ({}, [3, 2, 1, 0]),
        ({"until": NOON + 2 * HOUR}, [1, 0]),
        ({"since": NOON + HOUR, "until": NOON + 2 * HOUR}, [1]),
        ({"node": NODE}, [3, 2, 1]),
        ({"node": NODE.upper(), "outcome": "failed"}, [3, 1]),
        ({"name": "a", "node": NODE}, [1]),
        ({"job": 4}, [3]),
        ({"job": ("a", "k")}, [1, 0]),
    ):
        assert [run.token for run in scheduler.runs(**filters)] == found, filters
        assert scheduler.count_runs(**filters) == len(found), filters


@pytest.mark.parametrize(
    ("verb", "filters"),
    [
        ("jobs", {"due": "yes"}), ("jobs", {"search": ""}), ("jobs", {"search": 5}), ("count_jobs", {"state": "gone"}),
        ("runs", {"until": datetime(2031, 1, 1)}), ("runs", {"node": "me"}), ("count_runs", {"node": 5}),
        ("count_runs", {"outcome": "good"}),
    ],
)  # fmt: skip
def test_a_filter_that_cannot_be_is_refused(dsn: str, scheduler_on: Any, verb: str, filters: Any) -> None:
    """A filter of the wrong kind is an error that names it, not an empty list."""
    with pytest.raises((InvalidValueError, InvalidTypeError)) as caught:
        getattr(scheduler_on(dsn), verb)(**filters)
    assert caught.value.field == next(iter(filters))


def test_queue_position_is_the_order_of_claims(dsn: str, db: Any, scheduler_on: Any, clock: Any) -> None:
    """Due jobs by priority and time, then the one-time jobs of the future by time; it shrinks as jobs are run."""
    clock(NOON)
    scheduler = scheduler_on(dsn, max_concurrent_jobs=1)
    order: list[str] = []

    def enqueue(label: str, ago: timedelta, priority: int) -> JobRecord:
        config = JobConfig.one_time("job", {"label": label}, run_at=NOON - ago, priority=priority)
        record: JobRecord = scheduler.schedule(
            Call(config, lambda ctx: order.append(ctx.parameters["label"]))
        )
        return record

    given = [
        ("e", HOUR, 9), ("c", MINUTE, 5), ("b", HOUR, 5), ("a", MINUTE, 1), ("d", MINUTE, 5), ("g", -DAY, 0), ("f", -HOUR, 9),
    ]  # fmt: skip
    jobs = {label: enqueue(label, ago, priority) for label, ago, priority in given}
    scheduler.schedule(
        Call(JobConfig.recurring("tick", "* * * * *"))
    )  # of the future, and for ever: not in line
    places = {label: scheduler.queue_position(job) for label, job in jobs.items()}
    assert places == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6, "g": 7}
    scheduler.run_pending(limit=2)
    assert scheduler.queue_position(jobs["c"]) == 1
    assert scheduler.queue_position(jobs["a"]) is None
    clock(NOON + MINUTE)
    assert (
        scheduler.queue_position("tick") == 3
    )  # due like any other now, and as important as the two before it
    assert scheduler.queue_position(jobs["e"]) == 4
    while scheduler.run_pending(limit=1).claimed:
        pass
    assert order == ["a", "b", "c", "d", "e"]


def test_only_what_waits_has_a_place(dsn: str, db: Any, scheduler_on: Any) -> None:
    """Unknown, running, paused and ended jobs are in no queue."""
    scheduler = scheduler_on(dsn)
    running, paused, ended = (scheduler.enqueue("job", key=key) for key in "rpe")
    seize(db, running)
    scheduler.pause(paused)
    scheduler.cancel(ended)
    assert [scheduler.queue_position(job) for job in (running, paused, ended, ("job", "x"), 2**40)] == [
        None
    ] * 5


# --- retry_many ---------------------------------------------------------------------------------------------


def test_retry_many(dsn: str, db: Any, scheduler_on: Any) -> None:
    """Ended jobs come back as new ones, live ones are due; one job per job, in the order given."""
    scheduler = scheduler_on(dsn)
    fail = [True]

    def run(ctx: Any) -> None:
        if fail:
            raise ValueError("no")

    scheduler.register(Call(JobConfig(name="job"), run))
    ended = [scheduler.enqueue("job", {"n": n}, retries=1, backoff=NOW_OR_NEVER) for n in range(3)]
    waiting = scheduler.enqueue("job", {"n": 3}, retries=1, backoff=Backoff(initial=HOUR))
    while scheduler.run_pending().claimed:
        pass
    runs = [scheduler.runs(job)[n].id for job in (ended[2], ended[0], ended[1]) for n in (1, 0)]
    again = scheduler.retry_many([*runs, scheduler.runs(waiting)[0]])
    assert [job.parameters for job in again] == [{"n": 2}, {"n": 0}, {"n": 1}, {"n": 3}]
    assert again[3].id == waiting.id
    assert {job.id for job in again[:3]}.isdisjoint(job.id for job in ended)
    assert again[0].options == ended[0].options
    fail.clear()
    assert scheduler.run_pending().completed == 4
    assert scheduler.jobs() == []
    assert scheduler.retry_many([]) == []


def test_retry_many_does_all_or_nothing(dsn: str, db: Any, scheduler_on: Any) -> None:
    """One that runs, or is unknown, and none is retried."""
    scheduler = scheduler_on(dsn)

    def fail(ctx: Any) -> None:
        raise ValueError("no")

    scheduler.register(Call(JobConfig(name="job"), fail))
    ended = scheduler.enqueue("job")
    tick = scheduler.schedule(Call(JobConfig.recurring("tick", "@daily"), fail))
    scheduler.trigger(tick)
    scheduler.run_pending()
    runs = [scheduler.runs(job)[0] for job in (ended, tick)]
    seize(db, tick)
    with pytest.raises(JobRunningError):
        scheduler.retry_many(runs)
    assert [job.id for job in scheduler.jobs()] == [tick.id]
    with pytest.raises(JobNotFoundError):
        scheduler.retry_many([runs[0], f"{2**40}-{1:016x}"])
    assert [job.id for job in scheduler.jobs()] == [tick.id]
    for wrong in (runs[0], runs[0].id, None):
        with pytest.raises(InvalidTypeError, match="runs"):
            scheduler.retry_many(wrong)


def test_retry_tells_why_a_key_cannot_come_back(dsn: str, db: Any, scheduler_on: Any) -> None:
    """A key that another job has taken and runs under: the error names it, also with one connection in the pool."""
    scheduler = scheduler_on(dsn, pool_size=1)
    first = scheduler.schedule(Call(JobConfig.one_time("job", key="k")))
    scheduler.run_pending()
    seize(db, scheduler.enqueue("job", key="k"))
    with pytest.raises(JobRunningError, match=r"'job', 'k'"):
        scheduler.retry_many(scheduler.runs(first.id))


# --- if_exists ----------------------------------------------------------------------------------------------


def way(name: str, scheduler: Scheduler, dsn: str) -> Callable[..., JobRecord]:
    """`enqueue` on a connection of ours, or in a caller's transaction of one kind, committed whatever it says."""
    if name == "own":
        return scheduler.enqueue

    def sync(*args: Any, **given: Any) -> JobRecord:
        with psycopg.connect(dsn) as connection:
            try:
                return scheduler.enqueue(*args, connection=connection, **given)  # type: ignore[no-any-return]
            finally:
                connection.commit()

    def alchemy(*args: Any, **given: Any) -> JobRecord:
        sqlalchemy = pytest.importorskip("sqlalchemy")
        engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
        try:
            with engine.connect() as connection:
                try:
                    return scheduler.enqueue(*args, connection=connection, **given)  # type: ignore[no-any-return]
                finally:
                    connection.commit()
        finally:
            engine.dispose()

    def awaited(*args: Any, **given: Any) -> JobRecord:
        async def go() -> JobRecord:
            async with await psycopg.AsyncConnection.connect(dsn) as connection:
                try:
                    return await scheduler.enqueue(*args, connection=connection, **given)  # type: ignore[no-any-return]
                finally:
                    await connection.commit()

        return asyncio.run(go())

    return {"psycopg": sync, "sqlalchemy": alchemy, "async": awaited}[name]


@pytest.mark.parametrize("connection", ["own", "psycopg", "sqlalchemy", "async"])
def test_if_exists(dsn: str, db: Any, scheduler_on: Any, clock: Any, connection: str) -> None:
    """`keep` leaves a live job alone and answers with it; `error` refuses, also for one that has just ended."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    scheduler.register(Call(JobConfig(name="job")))
    enqueue = way(connection, scheduler, dsn)
    first = enqueue("job", {"n": 1}, key="k", if_exists="error")
    assert enqueue("job", {"n": 2}, key="k", if_exists="keep", priority=1) == first
    with pytest.raises(DuplicateJobError, match=r"'job' with key 'k' exists already"):
        enqueue("job", {"n": 3}, key="k", if_exists="error")
    assert enqueue("job", {"n": 4}, key="k", if_exists="update").id == first.id
    seize(db, first)
    kept = enqueue("job", {"n": 5}, key="k", if_exists="keep")
    assert (kept.id, kept.state, kept.parameters) == (first.id, JobState.RUNNING, {"n": 4})
    db.execute("update pgscheduler_jobs set state = 'pending', token = null")
    assert scheduler.run_pending().completed == 1
    with pytest.raises(DuplicateJobError, match="has ended already: completed"):
        enqueue("job", {"n": 6}, key="k", if_exists="error")
    assert scheduler.jobs() == []
    clock(NOON + HOUR + SECOND)  # nobody remembers
    again = enqueue("job", {"n": 7}, key="k", if_exists="error")
    assert again.id != first.id
    assert scheduler.run_pending().completed == 1
    assert (
        enqueue("job", {"n": 8}, key="k", if_exists="keep").state is JobState.PENDING
    )  # only the living are kept
    assert [job.parameters for job in scheduler.jobs()] == [{"n": 8}]


def test_if_exists_of_a_recurring_job(dsn: str, scheduler_on: Any) -> None:
    """A program that starts with `keep` leaves what people made of its job; the run is its own."""
    scheduler, other = scheduler_on(dsn), scheduler_on(dsn)
    ran: list[int] = []
    first = other.schedule(Call(JobConfig.recurring("job", "@daily")), if_exists="keep")
    other.pause(other.update(first, schedule="@hourly", retries=3))
    kept = scheduler.schedule(
        Call(JobConfig.recurring("job", "@daily", retries=1), lambda ctx: ran.append(1)), if_exists="keep"
    )
    assert kept.schedule == {"cron": "@hourly", "timezone": "UTC"}
    assert (kept.options, kept.state) == ({"retries": 3}, JobState.PAUSED)
    with pytest.raises(DuplicateJobError):
        scheduler_on(dsn).schedule(Call(JobConfig.recurring("job", "@hourly", retries=3)), if_exists="error")
    scheduler.trigger("job")
    assert scheduler.run_pending().completed == 1
    assert ran == [1]
    scheduler.delete("job")
    again = scheduler_on(dsn).schedule(Call(JobConfig.recurring("job", "@daily")), if_exists="error")
    assert again.state is JobState.PENDING  # a recurring job does not end; one that was deleted is gone


def test_if_exists_needs_a_word_and_a_key(dsn: str, db: Any, scheduler_on: Any) -> None:
    """Another word, no key, or a job of the other kind is an error, and stores nothing."""
    scheduler = scheduler_on(dsn)
    with pytest.raises(InvalidValueError, match="if_exists must be one of"):
        scheduler.enqueue("job", key="k", if_exists="replace")
    with pytest.raises(InvalidValueError, match="if_exists needs a key"):
        scheduler.enqueue("job", if_exists="keep")
    with pytest.raises(InvalidValueError, match="if_exists needs a key"):
        scheduler.schedule(Call(JobConfig.one_time("job")), if_exists="error")
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (0,)
    other = scheduler_on(dsn)
    other.schedule(Call(JobConfig.recurring("tick", "@daily")))
    other.enqueue("once", key="once")
    for word in ("keep", "error"):
        for key in ("tick", "k"):
            with pytest.raises(JobKindError):
                scheduler.enqueue("tick", key=key, if_exists=word)
        with pytest.raises(JobKindError):
            scheduler.schedule(Call(JobConfig.recurring("once", "@daily")), if_exists=word)
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (2,)


@pytest.mark.parametrize("word", ["keep", "error"])
def test_if_exists_at_one_moment(dsn: str, scheduler_on: Any, word: Any) -> None:
    """Eight processes' worth of threads store one key at once: there is one job, and one of them has made it."""
    schedulers = [scheduler_on(dsn) for _ in range(4)]
    start = threading.Barrier(8)

    def enqueue(n: int) -> int | None:
        start.wait(20)
        try:
            record: JobRecord = schedulers[n % 4].enqueue("job", {"n": n}, key="k", if_exists=word)
        except DuplicateJobError:
            return None
        return record.id

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(enqueue, range(8)))
    (job,) = schedulers[0].jobs()
    assert answers.count(job.id) == (8 if word == "keep" else 1)
    assert set(answers) <= {job.id, None}


@pytest.mark.parametrize("connection", ["own", "psycopg"])
def test_a_job_that_ends_meanwhile_is_still_seen(
    dsn: str, db: Any, scheduler_on: Any, connection: str
) -> None:
    """The key was taken when `error` began and is free when it stores: it notices how that came, and takes it back."""
    scheduler = scheduler_on(dsn)
    scheduler.enqueue("job", key="k")
    enqueue = way(connection, scheduler, dsn)
    with psycopg.connect(dsn) as node, ThreadPoolExecutor(1) as pool:
        node.execute(
            "with gone as (delete from pgscheduler_jobs returning *)"
            " insert into pgscheduler_runs (job_id, token, scheduled_at, finished_at, attempt, outcome, name, key)"
            " select id, 7, scheduled_at, now(), 1, 'completed', name, key from gone"
        )
        answer = pool.submit(enqueue, "job", key="k", if_exists="error")
        blocked(db)
        node.commit()
        with pytest.raises(DuplicateJobError, match="has ended already: completed"):
            answer.result(20)
    assert scheduler.jobs() == []


def test_a_caller_that_rolls_back_has_stored_nothing(dsn: str, db: Any, scheduler_on: Any) -> None:
    """In the caller's transaction it is the caller's word; after a refusal the transaction goes on."""
    scheduler = scheduler_on(dsn)
    scheduler.enqueue("job", key="old")
    with psycopg.connect(dsn) as connection:
        scheduler.enqueue("job", key="new", connection=connection, if_exists="error")
        with pytest.raises(DuplicateJobError):
            scheduler.enqueue("job", key="old", connection=connection, if_exists="error")
        assert connection.execute("select count(*) from pgscheduler_jobs").fetchone() == (2,)
        connection.rollback()
    assert [job.key for job in scheduler.jobs()] == ["old"]


# --- history limits -----------------------------------------------------------------------------------------


def remember(
    db: psycopg.Connection[Any], name: str, outcomes: str, *, key: str | None = None, first: int = 1
) -> None:
    """Runs of two days ago, oldest first, one letter each; recurring ones if they have a key. Each with a log line."""
    words = {
        "c": "completed",
        "f": "failed",
        "t": "timed_out",
        "s": "stalled",
        "x": "cancelled",
        "i": "skipped",
    }
    for n, letter in enumerate(outcomes):
        db.execute(
            "insert into pgscheduler_runs"
            " (job_id, token, scheduled_at, finished_at, attempt, outcome, name, key, schedule, reason)"
            " values (%(job)s, %(n)s, now(), now() - interval '2 days' + %(n)s * interval '1 s', 1, %(outcome)s, %(name)s,"
            " %(key)s, %(schedule)s, %(letter)s)",
            {
                "job": first if key else first + n, "n": n, "outcome": words[letter], "name": name, "key": key,
                "schedule": '{"every":60.0}' if key else None, "letter": f"{letter}{n}",
            },
        )  # fmt: skip
        db.execute(
            "insert into pgscheduler_run_logs values (%s, %s, now(), 'info', 'said', null)",
            [first if key else first + n, n],
        )


def remembered(db: psycopg.Connection[Any], name: str) -> str:
    rows = db.execute(
        "select reason from pgscheduler_runs where name = %s order by key, finished_at", [name]
    ).fetchall()
    return " ".join(row[0] for row in rows)


def test_history_keeps_the_newest_of_each_job(dsn: str, db: Any, scheduler_on: Any) -> None:
    """So many completed and so many failed ones of each recurring job, and of a name's one-time jobs together."""
    scheduler = scheduler_on(dsn, history_keep_completed=2, history_keep_failed=1)
    remember(db, "tick", "xccfctcsxi", key="a")
    remember(db, "tick", "cc", key="b", first=50)
    remember(db, "once", "cfcfcxc", first=100)
    remember(db, "rare", "f", first=200)
    assert not scheduler._node.maintenance.do(HISTORY)
    assert remembered(db, "tick") == "x0 c4 c6 s7 x8 i9 c0 c1"
    assert remembered(db, "once") == "f3 c4 x5 c6"
    assert remembered(db, "rare") == "f0"
    logged = "select job_id, token from pgscheduler_run_logs order by 1, 2"
    lines = "select job_id, token from pgscheduler_runs order by 1, 2"
    assert db.execute(logged).fetchall() == db.execute(lines).fetchall()
    assert not scheduler._node.maintenance.do(HISTORY)
    assert scheduler.count_runs() == 13


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({}, "c0 f1 c2 f3"),
        ({"history_keep_completed": 1}, "f1 c2 f3"),
        ({"history_keep_failed": 1}, "c0 c2 f3"),
        ({"history_keep_completed": 0}, "f1 f3"),
        ({"history_keep_completed": 2, "history_keep_failed": 9}, "c0 f1 c2 f3"),
    ],
)
def test_history_limits_are_apart_and_off(
    dsn: str, db: Any, scheduler_on: Any, limits: Any, left: str
) -> None:
    """Without a limit nothing goes; each limit is for its own kind; 0 keeps none."""
    scheduler = scheduler_on(dsn, **limits)
    remember(db, "job", "cfcf")
    scheduler._node.maintenance.do(HISTORY)
    assert remembered(db, "job") == left


def test_history_goes_in_batches(
    dsn: str, db: Any, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass deletes so many at most, and says whether there is more."""
    assert HISTORY.batch == maintenance.TRIM_BATCH
    monkeypatch.setattr(maintenance, "TRIM_BATCH", 4)
    chore = dataclasses.replace(HISTORY, batch=4)
    scheduler = scheduler_on(dsn, history_keep_completed=1)
    remember(db, "job", "c" * 10)
    seen = [(scheduler._node.maintenance.do(chore), scheduler.count_runs()) for _ in range(4)]
    assert seen == [(True, 6), (True, 2), (False, 1), (False, 1)]


def test_history_that_must_still_answer_stays(dsn: str, db: Any, scheduler_on: Any, clock: Any) -> None:
    """A job that has just ended is still found, however many did; an hour later it may go."""
    scheduler = scheduler_on(dsn, history_keep_completed=0)
    job = scheduler.schedule(Call(JobConfig.one_time("job", key="k")))
    scheduler.run_pending()
    scheduler._node.maintenance.do(HISTORY)
    assert scheduler.get_job(job).state is JobState.COMPLETED
    assert [run.outcome for run in scheduler.runs(job)] == [Outcome.COMPLETED]
    clock(by=HOUR + MINUTE)
    scheduler._node.maintenance.do(HISTORY)
    assert scheduler.runs(job) == []


def test_a_node_keeps_the_limits_by_itself(dsn: str, db: Any, scheduler_on: Any) -> None:
    """A started node with a limit needs no one to remind it."""
    remember(db, "job", "ccc")
    scheduler = scheduler_on(dsn, start=True, history_keep_completed=1)
    eventually(lambda: scheduler.count_runs() == 1)
    assert remembered(db, "job") == "c2"


# --- ping ---------------------------------------------------------------------------------------------------


def test_ping(dsn: str, db: Any, scheduler_on: Any, proxy_to: Any) -> None:
    """It takes as long as the way there and back; a database that is away is an error, one that is back an answer."""
    proxy = proxy_to(dsn)
    scheduler = scheduler_on(proxy.dsn, connect_timeout=2)
    assert timedelta(0) < scheduler.ping() < 10 * SECOND
    proxy.delay(0.1)
    assert scheduler.ping() >= timedelta(seconds=0.2)
    proxy.heal()
    proxy.refuse()
    with pytest.raises(DatabaseUnavailableError):
        scheduler.ping()
    proxy.heal()

    def answers() -> bool:
        # The pool tries again now and then: the first question may come between two of its tries.
        with suppress(DatabaseUnavailableError):
            return bool(scheduler.ping() < 10 * SECOND)
        return False

    eventually(answers, timeout=60)
    db.execute("alter function pgscheduler_now() rename to gone")
    with pytest.raises(SchemaError):
        scheduler.ping()


def test_a_running_job_is_not_held_up_by_the_verbs(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """While a job runs it can be listed, counted and found in no queue; when it has ended it can be retried."""
    scheduler = scheduler_on(dsn, start=True)
    job = scheduler.schedule(Call(JobConfig.one_time("slow"), gate))
    gate.wait_for(1)
    assert [found.id for found in scheduler.jobs(state="running", due=False)] == [job.id]
    assert (scheduler.count_jobs(state="running"), scheduler.queue_position(job)) == (1, None)
    with pytest.raises(JobRunningError):
        scheduler.update(job, priority=0)
    gate.open()
    scheduler.wait(job, 20)
    assert scheduler.wait(scheduler.retry_many(scheduler.runs(job))[0], 20).state is JobState.COMPLETED
