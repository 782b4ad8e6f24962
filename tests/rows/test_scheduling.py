"""When jobs run, and which first: one test for each feature, by its number in `test_all_rows`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgscheduler import (
    Cron,
    DuplicateJobError,
    Every,
    InvalidCronError,
    JobConfig,
    JobNotFoundError,
    JobState,
    Outcome,
    Scheduler,
    definitions,
)
from tests.engine.conftest import Call, Gate
from tests.rows.conftest import WORKS
from tests.support import eventually
from tests.support.processes import NodeProcess

Made = Callable[..., Scheduler]
Node = Callable[..., tuple[NodeProcess, dict[str, Any]]]

HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)
NOON = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)

#: Kronii's ten lines, and when each comes next after 12:07:12 on the first of March 2027.
KRONII = {
    "0/30 * * * * *": ["01 12:07:30", "01 12:08:00", "01 12:08:30"],
    "0 */1 * * * *": ["01 12:08:00", "01 12:09:00", "01 12:10:00"],
    "0 0 */1 * * *": ["01 13:00:00", "01 14:00:00", "01 15:00:00"],
    "0 15 * * * *": ["01 12:15:00", "01 13:15:00", "01 14:15:00"],
    "0 0 0 * * *": ["02 00:00:00", "03 00:00:00", "04 00:00:00"],
    "0/45 * * * * *": ["01 12:07:45", "01 12:08:00", "01 12:08:45"],
    "0 0 1 * * *": ["02 01:00:00", "03 01:00:00", "04 01:00:00"],
    "0/20 * * * * *": ["01 12:07:20", "01 12:07:40", "01 12:08:00"],
    "0 0 3 * * *": ["02 03:00:00", "03 03:00:00", "04 03:00:00"],
    "0/10 * * * * *": ["01 12:07:20", "01 12:07:30", "01 12:07:40"],
}

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(
        -1e15, 1e15
    )  # beyond that PostgreSQL writes a whole number as digits, and it comes back as an int
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def test_row_18_five_field_cron_in_utc(command: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Five fields, in UTC whatever the machine's zone is, strictly later than now (go-pg-scheduler, Laki, Cron Service)."""
    ten = datetime(2023, 5, 1, 10, 0, tzinfo=UTC)
    for line, expected in {
        "* * * * *": ten + MINUTE,
        "*/5 * * * *": ten + 5 * MINUTE,
        "30 15 * * *": ten.replace(hour=15, minute=30),
        "30 9 * * *": ten.replace(day=2, hour=9, minute=30),
        "0 10 * * *": ten.replace(day=2),
    }.items():
        assert Cron(line).next_after(ten) == expected
    with pytest.raises(InvalidCronError):
        Cron("invalid cron")

    said = command(
        "cron", "0 9 * * *", "--from", "2027-03-01T00:00:00Z", "--json", env={"TZ": "Asia/Kolkata"}
    )
    assert json.loads(said.stdout)["occurrences"][0]["utc"] == "2027-03-01T09:00:00Z"


def test_row_19_six_field_cron_with_seconds_first(scheduler: Scheduler, clock: Any) -> None:
    """Six fields, the seconds first: all ten lines of Kronii's README, from a file as it has them (Kronii).

    A seventh field, for years, is refused: nobody could tell it from other meanings of seven fields.
    """
    now = datetime(2027, 3, 1, 12, 7, 12, tzinfo=UTC)
    clock(now)
    lines = "".join(f'  - {{name: "{line}", cron: "{line}"}}\n' for line in KRONII)
    scheduler.apply(definitions.parse(f"jobs:\n{lines}", "kronii"))
    assert len(scheduler.jobs()) == 10
    for line, expected in KRONII.items():
        found = [scheduler.get_job(line).scheduled_at]
        while len(found) < 3:
            found.append(Cron(line).next_after(found[-1]) or now)
        assert [f"{at:%d %H:%M:%S}" for at in found] == expected, line
    with pytest.raises(InvalidCronError):
        Cron("0 0 0 1 1 * 2027")


def test_row_24_parameters(dsn: str, scheduler_on: Made, call: type[Call]) -> None:
    """Any JSON reaches the run as it was given, of recurring jobs too; what is none is refused (go-pg-scheduler, Bildad,
    Laki, Cron Service)."""
    seen: list[Any] = []
    scheduler = scheduler_on(dsn)
    scheduler.register(call(JobConfig(name="work"), lambda ctx: seen.append(ctx.parameters)))

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(st.lists(JSON, min_size=1, max_size=8))
    def same(values: list[Any]) -> None:
        seen.clear()
        for value in values:
            scheduler.enqueue("work", {"value": value})
        scheduler.run_pending()
        assert seen == [{"value": value} for value in values]

    same()
    seen.clear()
    config = JobConfig.recurring(
        "daily", "@daily", parameters={"region": "Köln 北", "limits": [None, 10**20]}
    )
    scheduler.trigger(scheduler.schedule(call(config, lambda ctx: seen.append(ctx.parameters))))
    scheduler.run_pending()
    assert seen == [{"region": "Köln 北", "limits": [None, 10**20]}]
    for wrong in (object(), {1, 2}, float("nan"), b"bytes"):
        with pytest.raises((TypeError, ValueError)):
            scheduler.enqueue("work", {"value": wrong})
    assert scheduler.jobs(name="work") == []


def test_row_28_catch_up(dsn: str, scheduler_on: Made, clock: Any, call: type[Call]) -> None:
    """After a downtime the missed times make one run, then the rhythm goes on (go-pg-scheduler, Kronii's README)."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    runs: list[datetime] = []
    job = scheduler.schedule(
        call(JobConfig.recurring("tick", "* * * * *"), lambda ctx: runs.append(ctx.scheduled_at))
    )
    clock(NOON + HOUR)
    while scheduler.run_pending().claimed:
        pass
    assert runs == [NOON + HOUR]
    assert scheduler.get_job(job).scheduled_at == NOON + HOUR + MINUTE
    for minute in (1, 2):
        clock(NOON + HOUR + minute * MINUTE)
        scheduler.run_pending()
    assert runs == [NOON + HOUR, NOON + HOUR + MINUTE, NOON + HOUR + 2 * MINUTE]
    # Nothing vanishes silently: the others are on record as skipped.
    assert scheduler.count_runs(job, outcome="skipped") == 59


def test_row_30_one_run_per_tick_on_all_nodes(
    node: Node, scheduler: Scheduler, db: psycopg.Connection[Any]
) -> None:
    """Fifty jobs of each second on four processes: no time of any of them is run twice, or left out (go-pg-scheduler,
    Kronii, Laki, Cron Service)."""
    processes = [node("worker", WORKS, ready=False)[0] for _ in range(4)]
    for process in processes:
        process.wait_for("started", timeout=60)
    jobs = [scheduler.schedule_by_name("mark", "* * * * * *", key=f"job {n}") for n in range(50)]
    done = "select count(*) from (select job_id from pgscheduler_runs group by 1 having count(*) >= 3) three"
    eventually(lambda: db.execute(done).fetchone() == (50,), timeout=60)
    for process in processes:
        process.terminate()
    assert [process.wait() for process in processes] == [0] * 4

    twice = "select job_id, scheduled_at from pgscheduler_runs group by 1, 2 having count(*) > 1"
    assert db.execute(twice).fetchall() == []
    assert len({run.node_id for run in scheduler.runs(limit=1000)}) > 1
    for job in jobs[::10]:
        ran = [run.scheduled_at for run in scheduler.runs(job, limit=1000)]
        begun = job.scheduled_at
        assert sorted(ran) == [begun + n * SECOND for n in range(len(ran))]


def test_row_31_never_early(
    dsn: str, scheduler_on: Made, db: psycopg.Connection[Any], call: type[Call]
) -> None:
    """No run begins before the time that it is for; a job that is stored today does not run until its hour comes
    (where Cron Service runs the next time at once)."""
    scheduler = scheduler_on(dsn, start=True)
    scheduler.schedule(call(JobConfig.recurring("seconds", "* * * * * *")))
    far = scheduler.schedule(
        call(JobConfig.recurring("yearly", (datetime.now(UTC) - HOUR).strftime("%M %H %d %m *")))
    )
    soon = scheduler.enqueue("later", delay=HOUR)
    eventually(lambda: scheduler.count_runs(name="seconds") >= 3)
    early = "select * from pgscheduler_runs where started_at < scheduled_at"
    assert db.execute(early).fetchall() == []
    assert scheduler.runs(far) == scheduler.runs(soon) == []


def test_row_34_enable_and_disable(
    dsn: str, scheduler_on: Made, clock: Any, call: type[Call], gate: Gate, client_of: Any
) -> None:
    """A disabled job is not started, what runs of it goes on; enabled, it comes at its next time from now (Bildad, Laki,
    Cron Service)."""
    clock(NOON)
    scheduler = scheduler_on(dsn)
    api: httpx.Client = client_of(scheduler)
    job = scheduler.schedule(call(JobConfig.recurring("tick", "* * * * *")))
    path = f"/api/v1/jobs/{job.id}"
    assert api.post(f"{path}/disable").json()["is_active"] is False
    clock(NOON + 30 * MINUTE)
    assert scheduler.run_pending().claimed == 0
    assert api.post(f"{path}/enable").json()["is_active"] is True
    assert scheduler.get_job(job).scheduled_at == NOON + 31 * MINUTE
    assert scheduler.run_pending().claimed == 0

    for verb in (scheduler.pause, scheduler.resume):
        with pytest.raises(JobNotFoundError):
            verb("nobody")
    assert api.post("/api/v1/jobs/999999/disable").status_code == 404
    assert api.post("/api/v1/jobs/999999/enable").status_code == 404

    clock(by=timedelta(0))
    node = scheduler_on(dsn, start=True)
    long = node.schedule(call(JobConfig.recurring("long", "@yearly"), gate))
    node.trigger(long)
    gate.wait_for(1)
    node.pause(long)
    gate.open()
    eventually(lambda: node.get_job(long).state is JobState.PAUSED)
    assert [run.outcome for run in node.runs(long)] == [Outcome.COMPLETED]


def test_row_35_crud_by_name(scheduler: Scheduler, clock: Any, api: httpx.Client, call: type[Call]) -> None:
    """Jobs are made, read, changed, listed and deleted by their names; a changed line counts at once (Laki, Cron Service).

    By default a deleted job's history stays; `history=True`, and REST always, deletes it too.
    """
    clock(NOON)
    for name in ("a", "b"):
        scheduler.schedule_by_name(name, "0 9 * * *")
        scheduler.register(call(JobConfig(name=name)))
    with pytest.raises(DuplicateJobError):
        scheduler.schedule_by_name("a", "0 9 * * *")
    assert sorted(job.name for job in scheduler.jobs(recurring=True)) == ["a", "b"]
    assert scheduler.get_job("a").scheduled_at == NOON + 21 * HOUR

    assert scheduler.update("a", schedule="30 * * * *").scheduled_at == NOON + 30 * MINUTE
    with pytest.raises(ValueError, match="invalid cron schedule"):
        scheduler.update("a", schedule="30 * * *")
    job = scheduler.get_job("b")
    changed = api.patch(f"/api/v1/jobs/{job.id}", json={"cron_expression": "15 * * * *"}).json()
    assert changed["cron_expression"] == "15 * * * *"
    assert scheduler.get_job("b").scheduled_at == NOON + 15 * MINUTE

    runs = []
    for name in ("a", "b"):
        scheduler.trigger(name)
        scheduler.run_pending()
        runs += scheduler.runs(name=name)
    assert len(runs) == 2
    scheduler.delete("a")
    assert {run.reason for run in scheduler.runs(name="a")} == {"deleted", None}
    assert api.delete(f"/api/v1/jobs/{job.id}").status_code == 200
    assert scheduler.runs(name="b") == []
    assert scheduler.jobs() == []
    with pytest.raises(JobNotFoundError):
        scheduler.get_job("b")
    with pytest.raises(JobNotFoundError):
        scheduler.delete("b")
    with pytest.raises(JobNotFoundError):
        scheduler.update("b", priority=1)
    assert api.get(f"/api/v1/jobs/{job.id}").status_code == 404


def test_row_36_priority(dsn: str, scheduler_on: Made, call: type[Call]) -> None:
    """Smaller first, 5 if nothing is said, and within one priority the first that came (Bildad)."""
    order: list[Any] = []
    scheduler = scheduler_on(dsn, max_concurrent_jobs=1)
    for given_priority in (9, 5, 1, None, 5, 1):
        more = {} if given_priority is None else {"priority": given_priority}
        job = scheduler.enqueue("work", {"given": given_priority, "n": len(scheduler.jobs())}, **more)
        assert job.priority == (5 if given_priority is None else given_priority)
    scheduler.register(
        call(JobConfig(name="work"), lambda ctx: order.append((ctx.parameters["given"], ctx.parameters["n"])))
    )
    scheduler.start()
    eventually(lambda: len(order) == 6)
    assert order == [(1, 2), (1, 5), (5, 1), (None, 3), (5, 4), (9, 0)]


def test_row_37_queue_position_and_count(scheduler: Scheduler, api: httpx.Client) -> None:
    """Which place a waiting job has, from 1; none if it is unknown; and how many wait (Bildad)."""
    jobs = {priority: scheduler.enqueue("work", priority=priority) for priority in (9, 1, 5)}
    assert [scheduler.queue_position(jobs[priority]) for priority in (1, 5, 9)] == [1, 2, 3]
    assert scheduler.queue_position(10**9) is None
    assert scheduler.queue_position(("work", "nobody")) is None
    assert (
        scheduler.count_jobs(),
        scheduler.count_jobs(due=True),
        scheduler.count_jobs(state="running"),
    ) == (3, 3, 0)
    assert api.get(f"/api/v1/jobs/{jobs[9].id}/position").json()["position"] == 3
    scheduler.cancel(jobs[1])
    assert scheduler.queue_position(jobs[1]) is None
    assert scheduler.queue_position(jobs[9]) == 2


def test_row_38_caller_chosen_identifier(
    scheduler: Scheduler, db: psycopg.Connection[Any], api: httpx.Client, call: type[Call]
) -> None:
    """The caller's own key makes a request that is sent twice harmless, also when its job has ended (Bildad)."""
    scheduler.register(call(JobConfig(name="work")))
    job = scheduler.enqueue("work", {"n": 1}, key="order 17", if_exists="error")
    assert scheduler.get_job(("work", "order 17")).id == job.id
    again = {"name": "work", "key": "order 17", "parameters": {"n": 2}}
    for _ in ("waiting", "ended"):
        with pytest.raises(DuplicateJobError):
            scheduler.enqueue("work", {"n": 2}, key="order 17", if_exists="error")
        assert (said := api.post("/api/v1/jobs", json=again)).status_code == 409, said.text
        scheduler.run_pending()
    assert [run.parameters for run in scheduler.runs(name="work")] == [{"n": 1}]
    assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (0,)


def test_row_39_enqueue_and_run_now(dsn: str, scheduler_on: Made, call: type[Call], gate: Gate) -> None:
    """To run now: the best priority goes past all that waits, and takes a slot like any other; `trigger` makes a job of
    the future due at once (Bildad)."""
    order: list[Any] = []
    scheduler = scheduler_on(dsn, start=True, max_concurrent_jobs=1, job_check_interval=HOUR)
    scheduler.register(call(JobConfig(name="held"), gate))
    scheduler.register(call(JobConfig(name="work"), lambda ctx: order.append(ctx.parameters["n"])))
    scheduler.enqueue("held", priority=0)
    gate.wait_for(1)
    later = scheduler.enqueue("work", {"n": "later"}, delay=HOUR, priority=9)
    scheduler.enqueue("work", {"n": "usual"})
    first = scheduler.enqueue("work", {"n": "now"}, priority=0)
    assert scheduler.trigger(later).run_at <= scheduler.get_job(first).run_at + MINUTE
    assert (order, gate.inside) == ([], 1)
    gate.open()
    eventually(lambda: len(order) == 3)
    assert order == ["now", "usual", "later"]


def test_row_40_batch_size(dsn: str, scheduler_on: Made, call: type[Call], client_of: Any) -> None:
    """One pass starts at most ten jobs, from Python or by REST; the next pass takes the rest (Bildad)."""
    scheduler = scheduler_on(dsn)
    scheduler.register(call(JobConfig(name="work")))
    for _ in range(30):
        scheduler.enqueue("work")
    assert scheduler.run_pending().claimed == 10
    api: httpx.Client = client_of(scheduler)
    passes = [api.post("/jobs/engine/run").json()["start"]["ok_count"] for _ in range(3)]
    assert passes == [10, 10, 0]


def test_row_41_interval_key_notification_and_callback(
    direct_dsn: str, scheduler_on: Made, call: type[Call], gate: Gate
) -> None:
    """Fixed intervals, several jobs of one name, cancels and news that need no poll, and a callback for each change
    (go-pg-scheduler's later versions)."""
    node = scheduler_on(
        direct_dsn, start=True, job_check_interval=HOUR, heartbeat_interval=60, no_heartbeat_timeout=600
    )
    changes: list[Any] = []
    node.subscribe(lambda change: changes.append((change.name, change.old, change.new)))
    node.register(call(JobConfig(name="work"), gate))
    other = scheduler_on(direct_dsn)
    first, second = (other.enqueue("work", key=key) for key in ("one", "two"))
    gate.wait_for(2)  # both, and nobody polled
    assert other.cancel(first) == "requested"
    assert other.wait(first, 30).state is JobState.CANCELLED
    gate.open()
    assert other.wait(second, 30).state is JobState.COMPLETED

    once = node.schedule(call(JobConfig.one_time("once")))
    eventually(lambda: ("once", JobState.RUNNING, JobState.COMPLETED) in changes)
    assert [(old, new) for name, old, new in changes if name == "once"] == [
        (None, JobState.PENDING),
        (JobState.PENDING, JobState.RUNNING),
        (JobState.RUNNING, JobState.COMPLETED),
    ]
    node.wait(once, 30)
    # Each of them, also what a busy machine is late for.
    often = node.schedule(call(JobConfig.recurring("often", Every(timedelta(seconds=1)), misfire="run_all")))
    eventually(lambda: len(node.runs(often)) >= 3)
    later, earlier = (run.scheduled_at for run in node.runs(often)[:2])
    assert later - earlier == SECOND
