"""The acceptance suites of the scheduler that this one continues, row by row, in our words.

Each test is named after the row; where our vocabulary differs, its docstring says how. The first generation's
rows come first, then its second and third.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import (
    Backoff,
    Cron,
    DuplicateJobError,
    Every,
    InvalidCronError,
    InvalidValueError,
    JobConfig,
    JobNotFoundError,
    JobRunningError,
    JobState,
    Outcome,
    SchedulerConfig,
)
from tests.engine.conftest import Call, Gate, Quiet
from tests.support import eventually
from tests.support.pooler import needs_notifications
from tests.support.postgres import terminate_backends

HOUR = timedelta(hours=1)
QUICK = Backoff(initial=timedelta(milliseconds=10), factor=1, jitter=0)
NEVER_SEEN = "'00000000-0000-0000-0000-000000000000'"


def due_now(scheduler: Any, name: str, function: Any = lambda ctx: None, **policies: Any) -> Any:
    """A recurring job whose next occurrence has just come."""
    record = scheduler.schedule(Call(JobConfig.recurring(name, Every(HOUR), **policies), function))
    return scheduler.trigger(record)


def make_stale(db: Any, name: str, minutes: int = 5, **more: Any) -> None:
    """As a node that vanished leaves it: running, its last heartbeat long ago."""
    db.execute(
        f"update pgscheduler_jobs set state = 'running', token = 7, node_id = {NEVER_SEEN},"
        " claimed_at = now() - %s * interval '1 minute',"
        " heartbeat_at = now() - %s * interval '1 minute' where name = %s",
        [minutes, minutes, name],
    )


# --- the first generation ---------------------------------------------------------------------------------


def test_new_scheduler(dsn: str, db: Any, scheduler_on: Any) -> None:
    """TestNewScheduler. The table is the prefix and a name: ours is `jobs`."""
    scheduler = scheduler_on(dsn, table_prefix="test_", create_schema=True)
    assert scheduler._store.names.table("jobs") == '"public"."test_jobs"'
    assert db.execute("select to_regclass('public.test_jobs') is not null").fetchone() == (True,)


def test_schedule_job(dsn: str, db: Any, scheduler_on: Any) -> None:
    """TestScheduleJob. A recurring job scheduled is exactly one row."""
    scheduler_on(dsn).schedule(Call(JobConfig.recurring("test_job", "*/5 * * * *")))
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (1,)


def test_acquire_lock_and_run(dsn: str, scheduler_on: Any) -> None:
    """TestAcquireLockAndRun. Two due recurring jobs and room for two: both are claimed. No quota per type here."""
    scheduler = scheduler_on(dsn)
    records = [due_now(scheduler, name) for name in ("one", "two")]
    summary = scheduler.run_pending(2)
    assert (summary.claimed, summary.completed) == (2, 2)
    assert all(scheduler.get_job(record).last_success for record in records)


def test_check_and_reset_timed_out_jobs(dsn: str, db: Any, scheduler_on: Any) -> None:
    """TestCheckAndResetTimedOutJobs. A silent claim is pending again. A stall is counted apart: no retry is used up."""
    scheduler = scheduler_on(dsn)
    record = scheduler.enqueue("vanished", retries=2)
    make_stale(db, "vanished")
    scheduler.run_pending()  # this node does not know the name; it resets all the same
    found = scheduler.get_job(record)
    assert (found.state, found.stalls, found.failures, found.retries_left) == (JobState.PENDING, 1, 0, 2)
    assert [run.outcome for run in scheduler.runs(record)] == [Outcome.STALLED]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", datetime(2023, 5, 1, 10, 1, tzinfo=UTC)),
        ("*/5 * * * *", datetime(2023, 5, 1, 10, 5, tzinfo=UTC)),
        ("30 15 * * *", datetime(2023, 5, 1, 15, 30, tzinfo=UTC)),
        ("30 9 * * *", datetime(2023, 5, 2, 9, 30, tzinfo=UTC)),
    ],
)
def test_calculate_next_run(expression: str, expected: datetime) -> None:
    """TestCalculateNextRun. The next time after 2023-05-01 10:00 UTC."""
    assert Cron(expression).next_after(datetime(2023, 5, 1, 10, 0, tzinfo=UTC)) == expected


def test_calculate_next_run_of_an_invalid_line() -> None:
    """TestCalculateNextRun, last case. An invalid line is an error, here already where it is written."""
    with pytest.raises(InvalidCronError, match="invalid cron schedule"):
        Cron("invalid cron")


def test_new_recurring_job_config() -> None:
    """TestNewRecurringJobConfig. Name and schedule are kept; recurring is what has a schedule."""
    config = JobConfig.recurring("test_job", "*/5 * * * *")
    assert (config.name, config.schedule, config.retries, config.parameters) == (
        "test_job",
        Cron("*/5 * * * *"),
        0,
        {},
    )


def test_new_one_time_job_config() -> None:
    """TestNewOneTimeJobConfig. No schedule, parameters and retries kept; negative retries are an error."""
    config = JobConfig.one_time("test_job", {"key": "value"}, retries=3)
    assert (config.schedule, config.parameters, config.retries) == (None, {"key": "value"}, 3)
    with pytest.raises(InvalidValueError, match="retries must be non-negative"):
        JobConfig.one_time("test_job", retries=-1)


def test_get_job_key(dsn: str, scheduler_on: Any) -> None:
    """TestGetJobKey. A recurring job's key is its name. A one-time job needs none here: its id tells it apart."""
    scheduler = scheduler_on(dsn)
    assert scheduler.schedule(Call(JobConfig.recurring("rec", "* * * * *"))).key == "rec"
    one, two = (scheduler.schedule(Call(JobConfig.one_time("once"))) for _ in range(2))
    assert (one.key, two.key) == (None, None)
    assert one.id != two.id


def test_run_job(dsn: str, scheduler_on: Any) -> None:
    """TestRunJob. After its run a recurring job is pending, unclaimed, next in the future, with time and success noted."""
    scheduler = scheduler_on(dsn)
    record = due_now(scheduler, "test_job", lambda ctx: time.sleep(0.01))
    scheduler.run_pending()
    found = scheduler.get_job(record)
    assert (found.state, found.node_id, found.claimed_at) == (JobState.PENDING, None, None)
    assert found.run_at > datetime.now(UTC)
    assert found.execution_time_ms is not None
    assert found.execution_time_ms > 0
    assert found.last_success is not None


def fail(ctx: Any) -> None:
    raise RuntimeError("test error")


def test_mark_job_failed_recurring(dsn: str, scheduler_on: Any) -> None:
    """TestMarkJobFailed, recurring. Failure, time and count are noted; the job is pending, not failed: it never dies."""
    scheduler = scheduler_on(dsn)
    record = due_now(scheduler, "test_job", lambda ctx: (time.sleep(0.01), fail(ctx)))
    scheduler.run_pending()
    found = scheduler.get_job(record)
    assert (found.state, found.consecutive_failures) == (JobState.PENDING, 1)
    assert found.execution_time_ms is not None
    assert found.execution_time_ms >= 10
    assert found.last_failure is not None
    assert [run.outcome for run in scheduler.runs(record)] == [Outcome.FAILED]


def test_mark_job_failed_one_time(dsn: str, scheduler_on: Any) -> None:
    """TestMarkJobFailed, one-time with two retries. Pending with one retry left and one consecutive failure."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("test_job", retries=2), fail))
    scheduler.run_pending()
    found = scheduler.get_job(record)
    assert (found.state, found.retries_left, found.consecutive_failures) == (JobState.PENDING, 1, 1)


def test_mark_job_failed_exhausted(dsn: str, scheduler_on: Any) -> None:
    """TestMarkJobFailed, the branch that was never tested. Without retries it is failed, and leaves the live table."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("test_job"), fail))
    scheduler.run_pending()
    assert scheduler.get_job(record).state is JobState.FAILED
    assert scheduler.jobs() == []


def test_remove_job(dsn: str, db: Any, scheduler_on: Any) -> None:
    """TestRemoveJob. The row is gone. Ours leaves a record."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.recurring("test_job", "* * * * *")))
    scheduler.delete(record)
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (0,)


def test_update_heartbeat(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """TestUpdateHeartbeat. A running job's heartbeat is set and recent, and is renewed."""
    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(Call(JobConfig.one_time("test_job"), gate))
    gate.wait_for(1)
    first = scheduler.get_job(record)
    assert first.heartbeat_at is not None
    eventually(lambda: scheduler.get_job(record).heartbeat_at > first.heartbeat_at)


def test_shutdown_empties_the_registry(dsn: str, scheduler_on: Any) -> None:
    """TestShutdown. One job in the registry before, none after. The registry is the scheduler's own."""
    scheduler = scheduler_on(dsn, start=True)
    scheduler.schedule(Call(JobConfig.recurring("test_job", "0 0 1 1 *")))
    assert len(scheduler._registry) == 1
    scheduler.shutdown()
    assert len(scheduler._registry) == 0


def test_failed_one_time_job_cleaner(dsn: str, db: Any, scheduler_on: Any) -> None:
    """TestFailedOneTimeJobCleaner. A failed one-time row is gone at once, and only its record stays, until retention."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("test_job"), fail))
    scheduler.run_pending()
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (0,)
    assert [run.outcome for run in scheduler.runs(record)] == [Outcome.FAILED]


def test_process_jobs(dsn: str, scheduler_on: Any) -> None:
    """TestProcessJobs. A recurring and a one-time job, both due: both run in one pass."""
    scheduler = scheduler_on(dsn)
    recurring = due_now(scheduler, "rec")
    once = scheduler.schedule(Call(JobConfig.one_time("once")))
    assert scheduler.run_pending().completed == 2
    assert scheduler.get_job(recurring).last_success is not None
    assert scheduler.get_job(once).state is JobState.COMPLETED


def test_orphaned_job_monitor(dsn: str, db: Any, scheduler_on: Any) -> None:
    """TestOrphanedJobMonitor. A name unknown for longer than the timeout is retired, with a record; a known one stays."""
    scheduler = scheduler_on(dsn)
    known = scheduler.schedule(Call(JobConfig.recurring("known", "0 0 1 1 *")))
    orphan = scheduler.enqueue("unknown")
    db.execute("update pgscheduler_jobs set created_at = now() - interval '2 hours'")
    keeper = scheduler_on(dsn, orphaned_job_timeout=3600, register=(Call(JobConfig(name="known")),))
    keeper.start()
    eventually(lambda: [job.id for job in keeper.jobs()] == [known.id])
    assert [run.outcome for run in keeper.runs(orphan)] == [Outcome.ORPHANED]


# --- the second generation --------------------------------------------------------------------------------


def test_new_scheduler_with_custom_schema(empty_dsn: str, scheduler_on: Any) -> None:
    """TestNewSchedulerWithCustomSchema. The tables live in the schema that was named."""
    scheduler = scheduler_on(empty_dsn, schema="custom", table_prefix="test_", create_schema=True)
    assert scheduler._store.names.table("jobs") == '"custom"."test_jobs"'
    with psycopg.connect(empty_dsn) as connection:
        found = connection.execute(
            "select nspname, count(*) from pg_class c join pg_namespace n on n.oid = relnamespace"
            " where relname like 'test\\_%' group by 1"
        ).fetchall()
    assert [name for name, _ in found] == ["custom"]


def test_schedule_job_with_custom_schema(empty_dsn: str, scheduler_on: Any) -> None:
    """TestScheduleJobWithCustomSchema. Scheduling there is one row there, and it runs."""
    scheduler = scheduler_on(empty_dsn, schema="custom", create_schema=True)
    due_now(scheduler, "test_job")
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("select count(*) from custom.pgscheduler_jobs").fetchone() == (1,)
    assert scheduler.run_pending().completed == 1


# --- the third generation ---------------------------------------------------------------------------------


def test_register_and_schedule_job(dsn: str, scheduler_on: Any) -> None:
    """TestRegisterAndScheduleJob. schedule() registers by itself here; the row is unclaimed and has no heartbeat."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("test_job")))
    assert "test_job" in scheduler._registry
    assert (record.state, record.claimed_at, record.heartbeat_at) == (JobState.PENDING, None, None)


def test_schedule_different_job_keys(dsn: str, scheduler_on: Any) -> None:
    """TestScheduleDifferentJobKeys. One name under two keys is two rows."""
    scheduler = scheduler_on(dsn)
    for key in ("key1", "key2"):
        scheduler.schedule(Call(JobConfig.recurring("test_job", "* * * * *", key=key)))
    assert sorted(job.key for job in scheduler.jobs()) == ["key1", "key2"]


def test_register_duplicate_job(dsn: str, scheduler_on: Any) -> None:
    """TestRegisterDuplicateJob. A second registration of the name is refused; of the very same object it changes nothing."""
    scheduler = scheduler_on(dsn)
    job = Call(JobConfig(name="test_job"))
    assert scheduler.register(job) == scheduler.register(job) == "test_job"
    with pytest.raises(DuplicateJobError, match="already registered"):
        scheduler.register(Call(JobConfig(name="test_job")))


def test_duplicate_recurring_job(dsn: str, scheduler_on: Any) -> None:
    """ScheduleJob's documented error. A second object under a recurring name is refused here, and fine on another node."""
    scheduler = scheduler_on(dsn)
    scheduler.schedule(Call(JobConfig.recurring("test_job", "* * * * *")))
    with pytest.raises(DuplicateJobError, match="recurring job already exists in job registry: test_job"):
        scheduler.schedule(Call(JobConfig.recurring("test_job", "* * * * *")))
    scheduler_on(dsn).schedule(Call(JobConfig.recurring("test_job", "* * * * *")))
    assert len(scheduler.jobs()) == 1


def test_job_execution(dsn: str, scheduler_on: Any) -> None:
    """TestJobExecution. After the tick: unclaimed, success and time noted, pending."""
    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(
        Call(JobConfig.recurring("test_job", "* * * * * *"), lambda ctx: time.sleep(0.01))
    )
    eventually(lambda: scheduler.get_job(record).last_success)
    scheduler.pause(record)
    eventually(lambda: scheduler.get_job(record).state is JobState.PAUSED)
    found = scheduler.resume(record)  # asked a moment later, it may run again
    assert (found.state, found.claimed_at) == (JobState.PENDING, None)
    assert found.execution_time_ms is not None
    assert found.execution_time_ms > 0


def test_retry_logic(dsn: str, scheduler_on: Any) -> None:
    """TestRetryLogic. Always failing with two retries: failed within ten seconds, nothing left, unclaimed; three runs."""
    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(Call(JobConfig.one_time("test_job", retries=2, backoff=QUICK), fail))
    found = scheduler.wait(record, 10)
    assert (found.state, found.retries_left, found.claimed_at) == (JobState.FAILED, 0, None)
    assert found.last_failure is not None
    assert found.consecutive_failures > 0
    assert [run.attempt for run in scheduler.runs(record)] == [3, 2, 1]


def test_job_cancellation(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """TestJobCancellation. Re-scheduling a running job is refused; cancelled, it ends, as `cancelled` and not as failed."""
    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(Call(JobConfig.one_time("test_job", key="k"), gate))
    gate.wait_for(1)
    with pytest.raises(JobRunningError):
        scheduler.schedule(Call(JobConfig.one_time("test_job", key="k")))
    scheduler.cancel(record)
    found = scheduler.wait(record, 10)
    assert (found.state, found.claimed_at, found.cancel_requested) == (JobState.CANCELLED, None, False)
    assert scheduler.jobs() == []


def test_cancel_non_existent_job(dsn: str, scheduler_on: Any) -> None:
    """TestCancelNonExistentJob. A job that never was is not found."""
    with pytest.raises(JobNotFoundError, match="job not found"):
        scheduler_on(dsn).cancel("nothing")


def test_cancel_running_job_from_different_node(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """TestCancelRunningJobFromDifferentNode. The request reaches the node that runs it; nothing of it stays."""
    owner, other = scheduler_on(dsn, start=True), scheduler_on(dsn, start=True)
    record = owner.schedule(Call(JobConfig.one_time("test_job"), gate))
    gate.wait_for(1)
    assert other.cancel(record) == "requested"
    assert other.wait(record, 10).state is JobState.CANCELLED
    assert other.jobs() == []


def test_concurrent_job_processing(dsn: str, scheduler_on: Any) -> None:
    """TestConcurrentJobProcessing. Five jobs all succeed, and then nothing is held."""
    scheduler = scheduler_on(dsn, start=True)
    records = [scheduler.schedule(Call(JobConfig.one_time(f"job{n}"))) for n in range(5)]
    assert {scheduler.wait(record, 10).state for record in records} == {JobState.COMPLETED}
    eventually(lambda: scheduler.node_stats()["held"] == 0)


def test_heartbeat_monitoring(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """TestHeartbeatMonitoring. No heartbeat (here null, there 1970) before, one after the start."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("test_job"), gate))
    assert record.heartbeat_at is None
    scheduler.start()
    gate.wait_for(1)
    assert scheduler.get_job(record).heartbeat_at is not None


def test_heartbeat_timeout(dsn: str, db: Any, scheduler_on: Any) -> None:
    """TestHeartbeatTimeout. A stale running row, recurring or one-time, whatever its retries, is pending and unclaimed."""
    scheduler = scheduler_on(dsn)
    scheduler.enqueue("once")
    scheduler.schedule(Call(JobConfig.recurring("rec", "0 0 1 1 *")))
    for name in ("once", "rec"):
        make_stale(db, name)
    reaper = scheduler_on(dsn, start=True)
    eventually(lambda: reaper.stats()["states"] == {"pending": 2})
    assert [(job.claimed_at, job.stalls) for job in reaper.jobs()] == [(None, 1)] * 2


def test_failed_and_completed_job_cleanup(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """TestFailedAndCompletedJobCleanup. What has ended is forgotten under its key after the interval, never before."""
    clock(by=timedelta(0))
    scheduler = scheduler_on(dsn, failed_and_completed_one_time_job_interval=600)
    scheduler.schedule(Call(JobConfig.one_time("bad", key="k"), fail))
    scheduler.schedule(Call(JobConfig.one_time("good", key="k")))
    scheduler.run_pending()
    clock(by=timedelta(minutes=9))
    assert scheduler.get_job(("bad", "k")).state is JobState.FAILED
    assert scheduler.get_job(("good", "k")).state is JobState.COMPLETED
    clock(by=timedelta(minutes=11))
    for name in ("bad", "good"):
        with pytest.raises(JobNotFoundError):
            scheduler.get_job((name, "k"))


def test_orphaned_job_cleanup(dsn: str, db: Any, scheduler_on: Any) -> None:
    """TestOrphanedJobCleanup. A never-run orphan is retired when it is old enough, a fresh one of another service is not."""
    store = scheduler_on(dsn)
    old, fresh = store.enqueue("gone"), store.enqueue("other_service")
    db.execute("update pgscheduler_jobs set created_at = now() - interval '2 hours' where id = %s", [old.id])
    node = scheduler_on(dsn, start=True, orphaned_job_timeout=3600)
    eventually(lambda: node.runs(old))
    assert [job.id for job in node.jobs()] == [fresh.id]


def test_scheduler_shutdown(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """TestSchedulerShutdown. Three running jobs, shutdown in under ten seconds, nothing held, registry empty."""
    scheduler = scheduler_on(dsn, start=True)
    for n in range(3):
        scheduler.schedule(Call(JobConfig.one_time(f"job{n}"), gate))
    gate.wait_for(3)
    began = time.monotonic()
    assert scheduler.shutdown() is True
    assert time.monotonic() - began < 10
    assert (scheduler.node_stats()["held"], len(scheduler._registry)) == (0, 0)


def test_scheduler_max_running_jobs(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """TestSchedulerMaxRunningJobs. Limit two and four jobs: two run, never more, and in the end all have succeeded."""
    scheduler = scheduler_on(dsn, start=True, max_concurrent_jobs=2)
    records = [scheduler.schedule(Call(JobConfig.one_time("test_job"), gate)) for _ in range(4)]
    gate.wait_for(2)
    assert gate.inside == 2
    gate.open()
    assert {scheduler.wait(record, 10).state for record in records} == {JobState.COMPLETED}
    assert gate.most == 2
    eventually(lambda: scheduler.node_stats()["held"] == 0)


@needs_notifications
def test_pgln_job_ready_notification(dsn: str, scheduler_on: Any) -> None:
    """TestPGLNJobReadyNotification. With a poll of 100 s a job runs soon after schedule, by any process."""
    node = scheduler_on(dsn, start=True, job_check_interval=100, register=(Call(JobConfig(name="test_job")),))
    assert node.wait(scheduler_on(dsn).enqueue("test_job"), 30).state is JobState.COMPLETED


@needs_notifications
def test_pgln_cancel_notification(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """TestPGLNCancelNotification. With long intervals a cancel reaches the run before any of them is over."""
    node = scheduler_on(
        dsn, start=True, job_check_interval=100, heartbeat_interval=60, no_heartbeat_timeout=300
    )
    record = node.schedule(Call(JobConfig.one_time("test_job"), gate))
    gate.wait_for(1)
    scheduler_on(dsn).cancel(record)
    assert node.wait(record, 30).state is JobState.CANCELLED


@needs_notifications
def test_pgln_out_of_sync(dsn: str, scheduler_on: Any) -> None:
    """TestPGLNOutOfSync. After every backend was terminated, what is stored meanwhile and afterwards still runs soon."""
    node = scheduler_on(dsn, start=True, job_check_interval=100, register=(Call(JobConfig(name="test_job")),))
    other = scheduler_on(dsn)
    assert terminate_backends(dsn) > 0
    records = [other.enqueue("test_job") for _ in range(3)]
    for record in records:
        assert node.wait(record, 30).state is JobState.COMPLETED


def test_status_change_callback(dsn: str, scheduler_on: Any) -> None:
    """TestStatusChangeCallback. New to pending, pending to running, running to completed, in order, and nothing more."""
    scheduler = scheduler_on(dsn)
    heard: list[tuple[Any, Any]] = []
    scheduler.subscribe(lambda change: heard.append((change.old, change.new)))
    done = threading.Event()
    scheduler.schedule(Call(JobConfig.one_time("test_job")))
    scheduler.run_pending()
    scheduler.subscribe(lambda change: done.set() if change.name == "marker" else None)
    scheduler.enqueue("marker")
    assert done.wait(10)
    assert heard == [(None, "pending"), ("pending", "running"), ("running", "completed"), (None, "pending")]


# --- the settings and texts that were promised ------------------------------------------------------------


def test_database_is_required() -> None:
    """Without a database there is no scheduler, and the text says so."""
    with pytest.raises(InvalidValueError, match="database connection is required"):
        SchedulerConfig()


def test_logger_has_four_levels(quiet: Quiet) -> None:
    """Any logger with the four levels will do; one without is refused."""
    assert SchedulerConfig(dsn="dbname=x", logger=quiet).logger is quiet
    with pytest.raises(TypeError, match="must have debug, info, warning and error"):
        SchedulerConfig(dsn="dbname=x", logger="print")
