"""The faults that the systems before this one had, by their numbers: none of them is here.

Those whose proof is a promise's own test are left to it: 1, 4 and 21 (tests/promises, stalls and detection),
8 and 9 (one at a time, fencing), 30 (shutdown). Here is a short test of each all the same where one suffices.
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
    Cancel,
    DuplicateJobError,
    Every,
    Job,
    JobConfig,
    JobKindError,
    JobRunningError,
    JobState,
    Outcome,
    SchedulerConfig,
)
from tests.engine.conftest import Call, Gate, Quiet
from tests.support import eventually

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
NOON = datetime(2031, 3, 1, 12, 0, 30, tzinfo=UTC)
AT_ONCE = Backoff(initial=timedelta(0), factor=1, jitter=0)


def fail(ctx: Any) -> None:
    raise RuntimeError("as planned")


def abandon(db: Any, record: Any, **more: Any) -> None:
    """Leave a job as a node that died leaves it: claimed, and silent for an hour."""
    db.execute(
        "update pgscheduler_jobs set state = 'running', token = 7, claimed_at = pgscheduler_now() - interval '1 hour',"
        " heartbeat_at = null where id = %s",
        [record.id],
    )
    for column, value in more.items():
        db.execute(f"update pgscheduler_jobs set {column} = %s where id = %s", [value, record.id])


def test_01_a_completed_job_is_never_executed_again(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """1: what has completed is no live row any more, so no stall scan can revive it."""
    clock(NOON)
    ran: list[int] = []
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("once", retries=3), lambda ctx: ran.append(1)))
    for hours in range(3):
        clock(NOON + hours * HOUR)
        scheduler.run_pending()
    assert ran == [1]
    assert scheduler.get_job(record.id).state is JobState.COMPLETED


@pytest.mark.parametrize("retries", [1, 2, 3])
def test_02_retries_happen(dsn: str, scheduler_on: Any, retries: int) -> None:
    """2: N retries are N + 1 attempts, one after the other, without any stall in between."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("hard", retries=retries, backoff=AT_ONCE), fail))
    for _ in range(retries + 3):
        scheduler.run_pending()
    assert [run.outcome for run in scheduler.runs(record)] == [Outcome.FAILED] * (retries + 1)


def test_03_a_failure_does_not_kill_a_recurring_job(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """3: after a failure the next occurrence comes, and the one after it."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.recurring("tick", "* * * * *"), fail))
    for minutes in (1, 2, 3):
        clock(NOON + minutes * MINUTE)
        assert scheduler.run_pending().failed == 1
    assert scheduler.get_job(record).consecutive_failures == 3


@pytest.mark.parametrize("recurring", [True, False])
def test_04_a_crashed_node_kills_no_job(dsn: str, db: Any, scheduler_on: Any, recurring: bool) -> None:
    """4: a silent claim is reset whether it recurs or not, also with no retries."""
    scheduler = scheduler_on(dsn)
    config = JobConfig.recurring("job", Every(HOUR)) if recurring else JobConfig.one_time("job")
    record = scheduler.schedule(Call(config))
    abandon(db, record)
    assert scheduler.run_pending().completed == 1


def test_05_an_exhausted_job_is_marked_failed(dsn: str, db: Any, scheduler_on: Any) -> None:
    """5: a job without attempts left ends as failed, and nothing of it stays behind."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("hard"), fail))
    scheduler.run_pending()
    assert scheduler.get_job(record).state is JobState.FAILED
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (0,)


def test_06_a_stalled_job_with_one_retry_is_not_deleted(dsn: str, db: Any, scheduler_on: Any) -> None:
    """6: a stall uses up no retry: after it the job has its one failure and its one retry."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("hard", retries=1, backoff=AT_ONCE), fail))
    abandon(db, record)
    for _ in range(3):
        scheduler.run_pending()
    assert [run.outcome for run in scheduler.runs(record)] == [
        Outcome.FAILED,
        Outcome.FAILED,
        Outcome.STALLED,
    ]


def test_07_the_limit_is_of_running_jobs(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """7: looking again and again claims no more than the slots; an odd limit is used whole, by any kind of job."""
    scheduler = scheduler_on(dsn, max_concurrent_jobs=3, job_check_interval=0.05)
    scheduler.schedule_many([Call(JobConfig(name="slow"), gate) for _ in range(9)])
    scheduler.start()
    gate.wait_for(3)
    time.sleep(0.3)  # several looks
    assert (gate.inside, gate.most) == (3, 3)
    gate.open()
    eventually(lambda: gate.entered == 9)
    assert gate.most == 3


def test_08_a_job_starts_after_its_claim_is_committed(dsn: str, db: Any, scheduler_on: Any) -> None:
    """8: the run finds its own row running, seen from another connection."""
    scheduler = scheduler_on(dsn)
    seen: list[Any] = []
    look = "select state, token from pgscheduler_jobs where id = %s"
    scheduler.schedule(
        Call(
            JobConfig(name="job"),
            lambda ctx: seen.append((ctx.token, db.execute(look, [ctx.job_id]).fetchone())),
        )
    )
    scheduler.run_pending()
    ((token, row),) = seen
    assert row == ("running", token)


@pytest.mark.parametrize("end", ["succeed", "fail"])
def test_09_a_lost_claim_writes_nothing(dsn: str, db: Any, scheduler_on: Any, end: str) -> None:
    """9: whatever the former owner's run ends with, the new owner's row is untouched."""
    scheduler = scheduler_on(dsn)

    def run(ctx: Any) -> None:
        db.execute("update pgscheduler_jobs set token = 8, heartbeat_at = now() where id = %s", [ctx.job_id])
        if end == "fail":
            fail(ctx)

    record = scheduler.schedule(Call(JobConfig.recurring("job", Every(HOUR)), run))
    scheduler.trigger(record)
    scheduler.run_pending()
    assert db.execute("select state, token, failures, last_run from pgscheduler_jobs").fetchone() == (
        "running",
        8,
        0,
        None,
    )
    assert scheduler.runs(record) == []


class SlowInit(Job):
    """Waits in init."""

    def __init__(self, config: JobConfig, gate: Gate) -> None:
        super().__init__(config)
        self.gate = gate

    def init(self, ctx: Any) -> None:
        self.gate(ctx)

    def run(self, ctx: Any) -> str:
        return "done"


def test_10_a_slow_init_keeps_its_claim(dsn: str, scheduler_on: Any, gate: Gate) -> None:
    """10: an init that takes longer than no_heartbeat_timeout is neither stolen nor forgotten by shutdown."""
    scheduler = scheduler_on(dsn, start=True, heartbeat_interval=0.3, no_heartbeat_timeout=3)
    other = scheduler_on(dsn, start=True, heartbeat_interval=0.3, no_heartbeat_timeout=3)
    record = scheduler.schedule(SlowInit(JobConfig.one_time("slow"), gate))
    gate.wait_for(1)
    time.sleep(4)  # longer than the timeout
    assert other.get_job(record).stalls == 0
    threading.Timer(0.3, gate.open).start()
    assert scheduler.shutdown() is True
    assert other.get_job(record).state in (JobState.COMPLETED, JobState.PENDING)
    assert Outcome.STALLED not in {run.outcome for run in other.runs(record)}


def test_13_registries_are_not_shared(dsn: str, scheduler_on: Any) -> None:
    """12, 13: what one scheduler knows the other does not, and shutting one down empties only its own."""
    one, two = scheduler_on(dsn), scheduler_on(dsn)
    one.register(Call(JobConfig(name="a")))
    two.register(Call(JobConfig(name="a")))
    one.shutdown()
    assert two.run_pending().claimed == 0
    record = two.enqueue("a")
    assert two.run_pending().completed == 1
    assert two.get_job(record).state is JobState.COMPLETED


def test_14_one_name_is_of_one_kind(dsn: str, scheduler_on: Any) -> None:
    """14: neither kind takes a name from the other in one process, and what was refused left no row."""
    scheduler = scheduler_on(dsn)
    scheduler.schedule(Call(JobConfig.recurring("rec", "* * * * *")))
    with pytest.raises(JobKindError):
        scheduler.schedule(Call(JobConfig.one_time("rec")))
    scheduler.schedule(Call(JobConfig.one_time("once")))
    with pytest.raises((JobKindError, DuplicateJobError)):
        scheduler.schedule(Call(JobConfig.recurring("once", "* * * * *")))
    assert sorted(job.name for job in scheduler.jobs()) == ["once", "rec"]


class Opens(Job):
    """Opens in init, closes in shutdown; breaks where it is told to."""

    def __init__(self, config: JobConfig, seen: list[str], broken: str) -> None:
        super().__init__(config)
        self.seen, self.broken = seen, broken

    def run(self, ctx: Any) -> None:
        self.seen.append("run")
        if self.broken == "run":
            fail(ctx)

    def shutdown(self, ctx: Any) -> None:
        self.seen.append("shutdown")
        if self.broken == "shutdown":
            fail(ctx)


@pytest.mark.parametrize(("broken", "outcome"), [("run", "failed"), ("shutdown", "completed")])
def test_15_shutdown_hook(dsn: str, scheduler_on: Any, broken: str, outcome: str) -> None:
    """15: shutdown follows a failed run, and its own error does not make good work be done again."""
    scheduler = scheduler_on(dsn)
    seen: list[str] = []
    record = scheduler.schedule(Opens(JobConfig.one_time("opens"), seen, broken))
    scheduler.run_pending()
    assert seen == ["run", "shutdown"]
    assert [run.outcome for run in scheduler.runs(record)] == [outcome]


class Meets(Job):
    """Two runs at once, which both write to self."""

    def __init__(self, config: JobConfig, barrier: threading.Barrier, seen: list[tuple[int, int]]) -> None:
        super().__init__(config)
        self.barrier, self.seen = barrier, seen

    def run(self, ctx: Any) -> None:
        self.mine = ctx.parameters["n"]
        self.barrier.wait(15)
        self.seen.append((self.mine, ctx.parameters["n"]))


def test_16_runs_do_not_share_an_instance(dsn: str, scheduler_on: Any) -> None:
    """16: two runs of one name at once each have a self of their own."""
    scheduler = scheduler_on(dsn, start=True)
    seen: list[tuple[int, int]] = []
    barrier = threading.Barrier(2)
    for n in range(2):
        scheduler.schedule(Meets(JobConfig.one_time("meets", {"n": n}), barrier, seen))
    eventually(lambda: len(seen) == 2)
    assert sorted(seen) == [(0, 0), (1, 1)]


def test_18_nodes_do_not_queue_behind_each_other(dsn: str, scheduler_on: Any) -> None:
    """18: a claim under way (rows locked) makes no other claim wait: it takes what is free."""
    scheduler = scheduler_on(dsn)
    scheduler.schedule_many([Call(JobConfig(name="job")) for _ in range(4)])
    with psycopg.connect(dsn) as other:
        other.execute("select from pgscheduler_jobs order by id limit 2 for update")
        assert scheduler.run_pending().claimed == 2


def test_20_a_foreign_services_fresh_rows_survive(dsn: str, db: Any, scheduler_on: Any) -> None:
    """20: a node with a short orphan timeout retires what is old and unknown, never-run rows too, and nothing fresh."""
    store = scheduler_on(dsn)
    old, fresh = store.enqueue("old"), store.enqueue("fresh")
    known_elsewhere = store.enqueue("known")
    db.execute("update pgscheduler_jobs set created_at = now() - interval '1 day' where id <> %s", [fresh.id])
    other_service = scheduler_on(dsn, max_concurrent_jobs=1)
    gate = Gate()
    other_service.register(Call(JobConfig(name="known"), gate))
    other_service.pause(known_elsewhere)
    other_service.start()
    node = scheduler_on(dsn, start=True, orphaned_job_timeout=3600)
    eventually(lambda: node.runs(old))
    assert {job.id for job in node.jobs()} == {fresh.id, known_elsewhere.id}


def test_22_times_carry_their_zone(db: Any) -> None:
    """22: every time is a timestamptz, and what is due is decided by the database's function."""
    found = db.execute(
        "select distinct data_type from information_schema.columns"
        " where table_name like 'pgscheduler_%' and data_type like 'timestamp%'"
    ).fetchall()
    assert found == [("timestamp with time zone",)]


def test_23_an_impossible_cron_is_refused() -> None:
    """23: a line that never fires is refused where it is written."""
    with pytest.raises(ValueError, match="invalid cron schedule"):
        JobConfig.recurring("never", "0 0 30 2 *")


@pytest.mark.parametrize("prefix", ["my-app_", "MyApp_", 'x"; drop table y; --', "x" * 41, "1x", "x y"])
def test_24_a_bad_prefix_is_refused(prefix: str) -> None:
    """24: what could not be an identifier as it is written, or would be cut, is refused."""
    with pytest.raises(ValueError, match="table_prefix"):
        SchedulerConfig(dsn="dbname=x", table_prefix=prefix)


def test_26_failures_leave_their_mark(dsn: str, scheduler_on: Any) -> None:
    """25, 26: last run, error text and time are kept after a failure, in the row and in history."""
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.recurring("job", Every(HOUR)), fail))
    scheduler.trigger(record)
    scheduler.run_pending()
    found, (run,) = scheduler.get_job(record), scheduler.runs(record)
    assert found.last_run is not None
    assert found.execution_time_ms is not None
    assert "as planned" in found.last_error
    assert "as planned" in run.error


def test_26_execution_time_does_not_overflow(db: Any) -> None:
    """26: 25 days in milliseconds do not fit an int; the column is a bigint."""
    query = (
        "select data_type from information_schema.columns"
        " where column_name = 'execution_time_ms' and table_name = 'pgscheduler_jobs'"
    )
    assert db.execute(query).fetchone() == ("bigint",)


def test_27_retries_back_off(dsn: str, scheduler_on: Any, clock: Any) -> None:
    """27: each retry waits longer than the last, within the default's tenth of jitter."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    record = scheduler.schedule(Call(JobConfig.one_time("hard", retries=4), fail))
    now = NOON
    for seconds in (1, 2, 4, 8):
        scheduler.run_pending()
        delay = (scheduler.get_job(record).run_at - now).total_seconds()
        assert seconds * 0.9 <= delay <= seconds * 1.1
        now = scheduler.get_job(record).run_at
        clock(now)


def test_31_a_row_keeps_its_own_parameters_and_policies(dsn: str, scheduler_on: Any) -> None:
    """31: a failure writes back nothing of the registered instance: the row's parameters and retries stay its own."""
    scheduler = scheduler_on(dsn)
    seen: list[Any] = []

    def run(ctx: Any) -> None:
        seen.append(ctx.parameters)
        fail(ctx)

    scheduler.register(Call(JobConfig(name="job", parameters={"who": "registered"}, retries=0), run))
    record = scheduler.schedule(
        Call(JobConfig.one_time("job", {"who": "row"}, key="k", retries=2, backoff=AT_ONCE), run)
    )
    for _ in range(5):
        scheduler.run_pending()
    assert seen == [{"who": "row"}] * 3
    assert {run.parameters["who"] for run in scheduler.runs(record)} == {"row"}


@pytest.mark.parametrize("way", ["verb", "signal"])
def test_33_cancelling_a_run_keeps_the_schedule(dsn: str, scheduler_on: Any, way: str) -> None:
    """33: a cancelled run of a recurring job, by verb or by its own decision, is one run; the job comes back."""
    scheduler = scheduler_on(dsn, start=True)
    entered = threading.Event()

    def run(ctx: Any) -> None:
        entered.set()
        if way == "signal":
            raise Cancel("enough")
        assert not ctx.wait(30)

    record = scheduler.schedule(Call(JobConfig.recurring("job", Every(HOUR)), run))
    scheduler.trigger(record)
    assert entered.wait(10)
    if way == "verb":
        scheduler.cancel(record)
    eventually(lambda: scheduler.runs(record, outcome="cancelled"))
    found = scheduler.get_job(record)
    assert (found.state, found.cancel_requested) == (JobState.PENDING, False)
    assert found.run_at > datetime.now(UTC) + MINUTE


@pytest.mark.parametrize("way", ["schedule", "schedule_many", "enqueue", "sql", "reschedule"])
def test_34_an_old_cancel_does_not_meet_a_new_job(dsn: str, db: Any, scheduler_on: Any, way: str) -> None:
    """34: a cancel or delete that a dead node never carried out does not end what was scheduled again after it."""
    scheduler = scheduler_on(dsn)
    ran: list[int] = []
    job = Call(JobConfig.one_time("job", key="k", parameters={}), lambda ctx: ran.append(ctx.attempt))
    record = scheduler.schedule(job)
    abandon(db, record)
    scheduler.delete(record) if way != "reschedule" else scheduler.cancel(record)
    scheduler_on(dsn).run_pending()  # resets it, and cannot run it
    assert scheduler.get_job(record).cancel_requested is True
    if way == "schedule":
        scheduler.schedule(job)
    elif way == "schedule_many":
        scheduler.schedule_many([job])
    elif way == "enqueue":
        scheduler.enqueue("job", key="k")
    elif way == "sql":
        db.execute("select pgscheduler_enqueue('job', key => 'k')")
    else:
        scheduler.reschedule(record, delay=timedelta(0))
    assert scheduler.run_pending().completed == 1
    assert ran == [1]


def test_34_a_cancel_survives_the_death_of_its_node(dsn: str, db: Any, scheduler_on: Any) -> None:
    """34, the other way round: nobody scheduled it again, so the job does not run; it ends as cancelled."""
    scheduler = scheduler_on(dsn)
    ran: list[int] = []
    record = scheduler.schedule(Call(JobConfig.one_time("job"), lambda ctx: ran.append(1)))
    abandon(db, record)
    assert scheduler.cancel(record) == "requested"
    scheduler.run_pending()
    assert ran == []
    assert scheduler.get_job(record).state is JobState.CANCELLED


def test_work_done_is_not_mistaken_for_a_new_job(dsn: str, db: Any, scheduler_on: Any) -> None:
    """A job whose transaction completed it, and whose node died before the record, takes no new job under its key."""
    scheduler = scheduler_on(dsn)
    ran: list[Any] = []
    job = Call(JobConfig.one_time("job", {"n": 1}, key="k"), lambda ctx: ran.append(ctx.parameters))
    record = scheduler.schedule(job)
    abandon(db, record, completed_at=datetime.now(UTC))
    scheduler_on(dsn).run_pending()
    with pytest.raises(JobRunningError):
        scheduler.schedule(Call(JobConfig.one_time("job", {"n": 2}, key="k"), job.function))
    assert scheduler.run_pending().completed == 1  # the record, not the run
    assert ran == []
    scheduler.schedule(Call(JobConfig.one_time("job", {"n": 2}, key="k"), job.function))
    scheduler.run_pending()
    assert ran == [{"n": 2}]


@pytest.mark.parametrize("verb", ["resume", "trigger", "reschedule"])
def test_work_done_is_recorded_for_its_own_occurrence(
    dsn: str, db: Any, scheduler_on: Any, clock: Any, verb: str
) -> None:
    """What a transaction completed stays the occurrence that it was for, whatever is asked before its record."""
    scheduler = scheduler_on(dsn)
    clock(NOON)
    ran: list[Any] = []
    record = scheduler.schedule(
        Call(JobConfig.recurring("hourly", "0 * * * *"), lambda ctx: ran.append(ctx.scheduled_at))
    )
    clock(NOON + HOUR)
    abandon(db, record, completed_at=NOON + HOUR)
    scheduler.pause(record)
    scheduler_on(dsn).run_pending()
    clock(NOON + HOUR + MINUTE)
    if verb == "reschedule":
        with pytest.raises(JobRunningError):
            scheduler.reschedule(record, schedule="30 * * * *")
        scheduler.resume(record)
    else:
        getattr(scheduler, verb)(record)
    scheduler.run_pending()
    assert [(r.outcome, r.scheduled_at) for r in scheduler.runs(record)] == [
        (Outcome.COMPLETED, record.scheduled_at)
    ]
    assert ran == []
    assert scheduler.get_job(record).scheduled_at == record.scheduled_at + HOUR


def test_a_late_occurrence_that_its_transaction_completed(
    dsn: str, db: Any, scheduler_on: Any, clock: Any
) -> None:
    """A run of the latest of several missed occurrences, completed by its transaction, is recorded as that one."""
    scheduler = scheduler_on(dsn)
    clock(NOON)
    ran: list[Any] = []

    def work(ctx: Any) -> None:
        ran.append(ctx.scheduled_at)
        with ctx.transaction() as connection:
            connection.execute("select 1")
        abandon(db, record)  # its node dies before it can write the record

    record = scheduler.schedule(Call(JobConfig.recurring("hourly", "0 * * * *"), work))
    clock(NOON + 3 * HOUR)
    scheduler.run_pending()
    scheduler.run_pending()
    first = record.scheduled_at
    assert ran == [first + 2 * HOUR]
    assert sorted((r.scheduled_at, r.outcome) for r in scheduler.runs(record)) == [
        (first, Outcome.SKIPPED),
        (first + HOUR, Outcome.SKIPPED),
        (first + 2 * HOUR, Outcome.COMPLETED),
    ]


def test_what_is_to_be_deleted_is_not_put_off(dsn: str, db: Any, scheduler_on: Any) -> None:
    """A delete that a dead node never carried out is not undone by another time for the job."""
    scheduler = scheduler_on(dsn)
    ran: list[int] = []
    record = scheduler.schedule(Call(JobConfig.one_time("job"), lambda ctx: ran.append(1)))
    abandon(db, record)
    other = scheduler_on(dsn)
    assert other.delete(record) == "requested"
    other.run_pending()
    with pytest.raises(JobRunningError):
        other.reschedule(record, delay=timedelta(0))
    scheduler.run_pending()
    assert scheduler.get_job(record).state is JobState.CANCELLED
    assert ran == []


def test_37_a_poison_job_ends(dsn: str, db: Any, scheduler_on: Any) -> None:
    """37: a job whose node dies each time ends as failed with the reason after max_stalls, without another run."""
    scheduler = scheduler_on(dsn)
    ran: list[int] = []
    record = scheduler.schedule(
        Call(JobConfig.one_time("poison", max_stalls=2, retries=9), lambda ctx: ran.append(1))
    )
    idle = scheduler_on(dsn)
    for _ in range(2):
        abandon(db, record)
        idle.run_pending()
    scheduler.run_pending()
    assert ran == []
    assert scheduler.get_job(record).state is JobState.FAILED
    assert "stalled 2 times" in scheduler.runs(record)[0].reason


def test_38_channels_carry_schema_and_prefix(empty_dsn: str, scheduler_on: Any) -> None:
    """38: two schemas, and two prefixes, do not hear each other."""
    channels = {
        scheduler_on(empty_dsn, create_schema=True, schema=schema, table_prefix=prefix)._store.names.channel
        for schema, prefix in [("a", "b_"), ("a", "c_"), ("b", "b_"), ("public", "pgscheduler_")]
    }
    assert len(channels) == 4


@pytest.mark.parametrize("interval", [timedelta(0), timedelta(seconds=-1), timedelta(milliseconds=10)])
def test_39_no_interval_spins(interval: timedelta) -> None:
    """39: an interval of nothing, or less, is refused."""
    with pytest.raises(ValueError, match="interval"):
        Every(interval)


def test_11_17_19_are_elsewhere() -> None:
    """11: exceptions of all kinds, test_features; 17 and 19: lifecycle guards and empty registry, test_process_shape;
    28: eight at once, test_migrate; 29: the README's programs are run by its own test; 32: test_05; 35, 36: one
    statement per cycle, nothing between claim and hand-over can fail alone, test_status_change_callback."""
    from tests.engine import test_features, test_migrate, test_process_shape, test_upstream

    assert callable(test_features.test_every_kind_of_exception_is_a_failed_attempt)
    assert callable(test_process_shape.test_start_twice)
    assert callable(test_process_shape.test_an_empty_registry_is_safe)
    assert callable(test_migrate.test_eight_processes_create_the_schema_at_once)
    assert callable(test_upstream.test_status_change_callback)
    assert Quiet


REFUSAL = """
create or replace function refuse() returns trigger language plpgsql as $$ begin {body}; end $$;
create or replace trigger refuse before insert on pgscheduler_runs for each row execute function refuse();
"""


def refuse(db: Any, state: str | None) -> None:
    """From now on nothing can be written to history, with this error; None: it can again."""
    body = "return new" if state is None else f"raise exception 'no' using errcode = '{state}'"
    db.execute(REFUSAL.format(body=body))


def test_a_failed_attempt_is_logged(dsn: str, scheduler_on: Any) -> None:
    """Who reads only the log sees each failed attempt: a warning if another follows, an error if it was the last."""

    def fail(ctx: Any) -> None:
        raise ValueError("no such account")

    scheduler = scheduler_on(dsn)
    job = Call(JobConfig.one_time("work", retries=1, backoff=lambda failures, error: timedelta(0)), fail)
    record = scheduler.schedule(job)
    assert scheduler.run_pending().failed == 1
    assert scheduler.run_pending().failed == 1
    told = [
        (level, facts["job"], facts["job_id"], facts["attempt"], facts["retry_in"], facts["error"])
        for level, event, facts in scheduler.log.lines
        if event == "run failed"
    ]
    assert told == [
        ("warning", "work", record.id, 1, 0.0, "ValueError: no such account"),
        ("error", "work", record.id, 2, None, "ValueError: no such account"),
    ]


def test_a_logged_error_leaves_the_terminal_alone(dsn: str, scheduler_on: Any) -> None:
    """What a job raises cannot clear the screen of whoever reads the log, or turn round its line."""

    def fail(ctx: Any) -> None:
        raise ValueError("first\n\x1b[2J\u202egone")

    scheduler = scheduler_on(dsn)
    scheduler.schedule(Call(JobConfig.one_time("work"), fail))
    assert scheduler.run_pending().failed == 1
    (told,) = [facts["error"] for _, event, facts in scheduler.log.lines if event == "run failed"]
    assert told == r"\x1b[2J\u202egone"


def test_an_outcome_waits_until_the_disk_has_room(dsn: str, db: Any, scheduler_on: Any) -> None:
    """What a full disk refuses is written when there is room again, and the job is held until then."""
    refuse(db, "53100")
    scheduler = scheduler_on(dsn, start=True)
    record = scheduler.schedule(Call(JobConfig.one_time("work"), lambda ctx: {"done": True}))
    eventually(lambda: scheduler.node_stats()["loops"]["recorder"]["failures"] > 2)
    held = scheduler.node_stats()["held"]
    refuse(db, None)
    scheduler.wait(record, 15)
    ends = [(run.outcome, run.result) for run in scheduler.runs(record)]
    assert (held, ends) == (1, [(Outcome.COMPLETED, {"done": True})])


def test_an_outcome_that_is_refused_for_good_frees_its_job(dsn: str, db: Any, scheduler_on: Any) -> None:
    """A record that the server never takes does not keep its job in the hands of its node."""
    refuse(db, "22000")
    scheduler = scheduler_on(dsn, start=True, no_heartbeat_timeout=3)
    record = scheduler.schedule(Call(JobConfig.one_time("work"), lambda ctx: {"done": True}))
    eventually(lambda: "outcome refused by the server" in scheduler.log.events())
    eventually(lambda: scheduler.node_stats()["held"] == 0)
    refuse(db, None)
    scheduler.wait(record, 60)
    ends = [run.outcome for run in scheduler.runs(record)]
    assert ends == [Outcome.COMPLETED, Outcome.STALLED]
