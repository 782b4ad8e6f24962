"""P6 Every occurrence once: none early, none twice, and what is missed is treated as the policy says, on record."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import Cron, Every, Job, JobConfig, Scheduler, Snooze
from tests.promises.node_scripts import accounted, live, quiet_config, travel

Connection = psycopg.Connection[Any]
MINUTE = timedelta(minutes=1)


class Minutely(Job):
    """Notes the occurrences that it ran for, and ends as the test says."""

    def __init__(self, config: JobConfig, end: Callable[[Any], Any] = lambda ctx: None) -> None:
        super().__init__(config)
        self.ran: list[datetime] = []
        self.end = end

    def run(self, ctx: Any) -> Any:
        self.ran.append(ctx.scheduled_at)
        return self.end(ctx)


class Dying(Job):
    """Kills its process at the first attempt."""

    def run(self, ctx: Any) -> None:
        if ctx.attempt == 1:
            os._exit(3)


@pytest.fixture
def node(dsn: str) -> Iterator[Scheduler]:
    with Scheduler(quiet_config(dsn)) as scheduler:
        yield scheduler


def every(schedule: Any, first: datetime, until: datetime) -> list[datetime]:
    """All occurrences from the first one up to an instant."""
    found = [first]
    while (following := schedule.next_after(found[-1])) <= until:
        found.append(following)
    return found


def now_of(db: Connection) -> datetime:
    row = db.execute("select pgscheduler_now()").fetchone()
    assert row is not None
    return row[0].astimezone(UTC)


def occurrence_of(db: Connection, job: int) -> datetime:
    row = db.execute("select scheduled_at from pgscheduler_jobs where id = %s", [job]).fetchone()
    assert row is not None
    return row[0].astimezone(UTC)


def after(db: Connection, instant: datetime) -> datetime:
    """Travel to this instant, for as long as the test takes."""
    travel(db, instant - datetime.now(UTC))
    return instant


def work_off(node: Scheduler) -> int:
    """Run until nothing is due; returns how many claims that took."""
    total = 0
    while claimed := node.run_pending().claimed:
        total += claimed
        assert total < 1000
    return total


def test_nothing_starts_early(node: Scheduler, db: Connection) -> None:
    """Up to the last moment before its occurrence a job is not run; at its occurrence it is."""
    job = Minutely(JobConfig.recurring("minutely", "0 * * * *"))
    first = node.schedule(job).scheduled_at
    after(db, first - timedelta(seconds=20))
    before = work_off(node)
    after(db, first)
    work_off(node)

    assert (0, [first]) == (before, job.ran)


@pytest.mark.parametrize("hours", [1, 5])
def test_run_once_runs_the_latest_and_records_the_others(node: Scheduler, db: Connection, hours: int) -> None:
    """After an outage of minutes or hours: one run, for the latest occurrence; each other one is on record."""
    schedule = Cron("* * * * *")
    job = Minutely(JobConfig.recurring("minutely", schedule))
    record = node.schedule(job)
    expected = every(schedule, record.scheduled_at, after(db, record.scheduled_at + timedelta(hours=hours)))

    work_off(node)

    assert expected[-1:] == job.ran
    assert dict.fromkeys(expected, 1) == accounted(db, record.id, schedule)
    assert expected[-1] + MINUTE == occurrence_of(db, record.id)
    lines = db.execute("select count(*) from pgscheduler_runs where outcome = 'skipped'").fetchone()
    assert lines is not None
    assert lines[0] == min(len(expected) - 1, 101), "the oldest of many skipped ones share a line"


def test_skip_runs_none_that_is_late(node: Scheduler, db: Connection) -> None:
    """Later than the grace, all missed occurrences are recorded as skipped, and the next one is waited for."""
    schedule = Cron("*/5 * * * *")
    job = Minutely(JobConfig.recurring("minutely", schedule, misfire="skip", misfire_grace=60))
    record = node.schedule(job)
    first = record.scheduled_at
    expected = every(schedule, first, after(db, first + 12 * MINUTE))

    work_off(node)
    skipped = (list(job.ran), accounted(db, record.id, schedule))
    due = after(db, first + 15 * MINUTE + timedelta(seconds=30))
    work_off(node)

    assert ([], dict.fromkeys(expected, 1)) == skipped
    assert [first + 15 * MINUTE] == job.ran, "within the grace it runs"
    assert dict.fromkeys(every(schedule, first, due), 1) == accounted(db, record.id, schedule)


def test_skip_of_a_single_late_occurrence(node: Scheduler, db: Connection) -> None:
    """The same when only one was missed."""
    schedule = Cron("0 * * * *")
    job = Minutely(JobConfig.recurring("minutely", schedule, misfire="skip", misfire_grace=60))
    record = node.schedule(job)
    after(db, record.scheduled_at + 2 * MINUTE)

    work_off(node)

    assert ([], {record.scheduled_at: 1}) == (job.ran, accounted(db, record.id, schedule))
    assert record.scheduled_at + timedelta(hours=1) == occurrence_of(db, record.id)


def test_run_all_runs_every_one_in_order(node: Scheduler, db: Connection) -> None:
    """Every missed occurrence runs, oldest first."""
    schedule = Cron("* * * * *")
    job = Minutely(JobConfig.recurring("minutely", schedule, misfire="run_all"))
    record = node.schedule(job)
    expected = every(schedule, record.scheduled_at, after(db, record.scheduled_at + 10 * MINUTE))

    work_off(node)

    assert expected == job.ran
    assert dict.fromkeys(expected, 1) == accounted(db, record.id, schedule)


def test_run_all_is_bounded_by_catchup(node: Scheduler, db: Connection) -> None:
    """Of more than `catchup` missed occurrences the latest ones run; the others share one skipped line."""
    schedule = Cron("* * * * *")
    job = Minutely(JobConfig.recurring("minutely", schedule, misfire="run_all", catchup=4))
    record = node.schedule(job)
    expected = every(schedule, record.scheduled_at, after(db, record.scheduled_at + 30 * MINUTE))

    work_off(node)
    (line,) = db.execute("select result from pgscheduler_runs where outcome = 'skipped'").fetchall()

    assert expected[-4:] == job.ran
    assert dict.fromkeys(expected, 1) == accounted(db, record.id, schedule)
    assert [expected[0], expected[-4]] == [
        datetime.fromisoformat(line[0][name]) for name in ("from", "before")
    ]


def test_what_falls_into_a_long_run_is_recorded(node: Scheduler, db: Connection) -> None:
    """A job never overlaps itself: the occurrences that its own run covered are skipped, with that reason."""
    schedule = Cron("* * * * *")

    class Long(Minutely):
        def run(self, ctx: Any) -> Any:
            super().run(ctx)
            ctx._claim.received -= 600  # ten minutes pass for the node …
            travel(db, self.arrive - datetime.now(UTC) + timedelta(minutes=10))  # … and for the database

        arrive: datetime

    job = Long(JobConfig.recurring("minutely", schedule))
    record = node.schedule(job)
    Long.arrive = after(db, record.scheduled_at)
    node.run_pending(1)
    reasons = db.execute("select distinct reason from pgscheduler_runs where outcome = 'skipped'").fetchall()

    assert [record.scheduled_at] == job.ran
    assert reasons == [("overlap",)]
    expected = every(schedule, record.scheduled_at, record.scheduled_at + 10 * MINUTE)
    assert dict.fromkeys(expected, 1) == accounted(db, record.id, schedule)


def test_a_retried_catch_up_loses_no_record(node: Scheduler, db: Connection) -> None:
    """When the run of a caught-up occurrence fails or snoozes first, the skipped ones before it stay on record."""
    for name, end in {"failing": ValueError, "snoozing": Snooze}.items():
        tries: list[int] = []

        def misbehave(ctx: Any, end: Any = end, tries: list[int] = tries) -> Any:
            tries.append(ctx.attempt)
            if len(tries) > 1:
                return None
            if end is Snooze:
                return Snooze(timedelta(0))
            raise ValueError("first")

        travel(db, timedelta(0))
        schedule = Cron("* * * * *")
        config = JobConfig.recurring(name, schedule, retries=1, backoff=lambda failures, error: timedelta(0))
        job = Minutely(config, misbehave)
        record = node.schedule(job)
        expected = every(schedule, record.scheduled_at, after(db, record.scheduled_at + 10 * MINUTE))
        work_off(node)
        runs = db.execute(
            "select count(*) from pgscheduler_runs where job_id = %s and outcome in ('completed', 'skipped')",
            [record.id],
        ).fetchone()

        assert 2 * expected[-1:] == job.ran, name
        assert (len(expected),) == runs, name
        final = accounted(db, record.id, schedule)
        final[expected[-1]] = 1  # the failed attempt is a line of its own
        assert dict.fromkeys(expected, 1) == final, name


def test_a_process_that_dies_while_catching_up_loses_no_record(node: Scheduler, db: Connection) -> None:
    """The same when the run's process dies."""
    schedule = Cron("* * * * *")
    record = node.schedule(Dying(JobConfig.recurring("dying", schedule, isolation="process")))
    expected = every(schedule, record.scheduled_at, after(db, record.scheduled_at + 10 * MINUTE))

    work_off(node)

    assert dict.fromkeys(expected, 1) == accounted(db, record.id, schedule)
    ends = "select outcome from pgscheduler_runs where outcome <> 'skipped' order by attempt"
    assert db.execute(ends).fetchall() == [("stalled",), ("completed",)]


@pytest.mark.parametrize("policy", [{}, {"misfire": "run_all", "catchup": 3}])
def test_a_catch_up_that_stalls_is_tried_again_for_its_own_occurrence(
    node: Scheduler, dsn: str, db: Connection, policy: dict[str, Any]
) -> None:
    """The row says which of the missed ones runs before it begins, so whoever takes it over runs the same."""
    schedule = Cron("* * * * *")
    tries: list[tuple[int, datetime]] = []
    later: list[datetime] = []

    def stall(ctx: Any) -> None:
        tries.append((ctx.attempt, ctx.scheduled_at))
        if len(tries) == 1:
            later.append(
                after(db, ctx.scheduled_at + 20 * MINUTE)
            )  # nobody has heard of this node for as long
            with Scheduler(quiet_config(dsn)) as other:
                other.register(Minutely(config, stall))
                assert other.run_pending(1).claimed == 1

    config = JobConfig.recurring("minutely", schedule, **policy)
    record = node.schedule(Minutely(config, stall))
    expected = every(schedule, record.scheduled_at, after(db, record.scheduled_at + 10 * MINUTE))
    assert node.run_pending(1).claimed == 1

    chosen = expected[-3] if policy else expected[-1]
    assert tries == [(1, chosen), (2, chosen)]
    lines = db.execute(
        "select scheduled_at, outcome, attempt from pgscheduler_runs where outcome <> 'skipped' order by attempt"
    ).fetchall()
    assert lines == [(chosen, "stalled", 1), (chosen, "completed", 2)]
    counted = accounted(db, record.id, schedule)
    assert all(counted[occurrence] == 1 for occurrence in every(schedule, expected[0], chosen))


def test_a_catch_up_that_cannot_be_written_is_not_begun(node: Scheduler, db: Connection) -> None:
    """The job goes back untouched, and runs when the row can be written again."""
    job = Minutely(JobConfig.recurring("minutely", "* * * * *"))
    record = node.schedule(job)
    after(db, record.scheduled_at + 10 * MINUTE)
    db.execute(
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'not now'; end $$"
    )
    db.execute(
        "create trigger refuse before insert on pgscheduler_runs for each row execute function refuse()"
    )
    assert node.run_pending().completed == 0
    db.execute("drop trigger refuse on pgscheduler_runs")

    assert job.ran == []
    row = live(db, record.id)
    assert row is not None
    assert (row["state"], row["stalls"], row["failures"]) == ("pending", 0, 0)
    assert node.run_pending().completed == 1
    assert len(job.ran) == 1


@pytest.mark.parametrize("overdue", [False, True])
def test_a_redeploy_with_the_same_schedule_postpones_nothing(dsn: str, db: Connection, overdue: bool) -> None:
    """Scheduling an unchanged job again, by a new process, keeps its next occurrence, even one that is overdue."""
    config = JobConfig.recurring("minutely", "0 * * * *", parameters={"version": 1})
    with Scheduler(quiet_config(dsn)) as old:
        first = old.schedule(Minutely(config))
    if overdue:
        after(db, first.scheduled_at + 150 * MINUTE)
    for version in (1, 2):
        with Scheduler(quiet_config(dsn)) as new:
            again = new.schedule(
                Minutely(JobConfig.recurring("minutely", "0 * * * *", parameters={"version": version}))
            )
            assert (first.id, first.run_at, first.scheduled_at) == (
                again.id,
                again.run_at,
                again.scheduled_at,
            )
            assert {"version": version} == again.parameters

    assert db.execute("select count(*) from pgscheduler_jobs").fetchall() == [(1,)]


def test_a_changed_schedule_takes_effect_at_once(dsn: str, db: Connection) -> None:
    """A redeploy with another schedule moves the next occurrence now, without an extra run."""
    with Scheduler(quiet_config(dsn)) as old:
        first = old.schedule(Minutely(JobConfig.recurring("minutely", "0 0 1 1 *")))
    with Scheduler(quiet_config(dsn)) as new:
        job = Minutely(JobConfig.recurring("minutely", "*/7 * * * *"))
        changed = new.schedule(job)
        at_once = work_off(new) if changed.scheduled_at > now_of(db) + timedelta(seconds=5) else 0
        after(db, changed.scheduled_at)
        work_off(new)

    assert first.id == changed.id
    assert Cron("*/7 * * * *").next_after(changed.scheduled_at - timedelta(seconds=1)) == changed.scheduled_at
    assert changed.scheduled_at < first.scheduled_at
    assert (0, [changed.scheduled_at]) == (at_once, job.ran)


def test_an_occurrence_is_recorded_once_however_many_look(dsn: str, db: Connection) -> None:
    """Several nodes that look one after the other, and again, run one occurrence once between them."""
    jobs = []
    with Scheduler(quiet_config(dsn)) as one, Scheduler(quiet_config(dsn)) as two:
        for scheduler in (one, two):
            job = Minutely(JobConfig.recurring("minutely", Every(timedelta(hours=1))))
            record = scheduler.schedule(job)
            jobs.append(job)
        after(db, record.scheduled_at + MINUTE)
        for _ in range(3):
            for scheduler in (one, two):
                scheduler.run_pending()

    assert [record.scheduled_at] == jobs[0].ran + jobs[1].ran
    assert {record.scheduled_at: 1} == accounted(db, record.id, Every(timedelta(hours=1)))


def test_a_trigger_is_an_occurrence_of_its_own(node: Scheduler, db: Connection) -> None:
    """A job that is triggered runs now, and its next occurrence still comes, unmoved and not early."""
    job = Minutely(JobConfig.recurring("minutely", "0 * * * *"))
    record = node.schedule(job)
    after(db, record.scheduled_at - timedelta(minutes=30))
    node.trigger(record)
    work_off(node)
    row = live(db, record.id)

    assert row is not None
    assert len(job.ran) == 1
    assert job.ran[0] < record.scheduled_at
    assert record.scheduled_at == datetime.fromisoformat(row["scheduled_at"])
