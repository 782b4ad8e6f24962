"""P15: orphans, expired, cancelled and deleted jobs become records, and only retention removes records."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import structlog

from pgscheduler import Job, JobConfig, JobNotFoundError, JobState, Scheduler, SchedulerConfig
from pgscheduler._maintenance import CHORES

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
DAY = timedelta(days=1)
CHORE = {chore.name: chore for chore in CHORES}


def config(dsn: str, **more: Any) -> SchedulerConfig:
    return SchedulerConfig(dsn=dsn, logger=SILENT, **more)


@pytest.fixture
def travel(db: Any) -> Callable[[timedelta], None]:
    """Set the clock that decides to so long from now."""

    def move(by: timedelta) -> None:
        db.execute(
            "create or replace function pgscheduler_now() returns timestamptz language plpgsql stable as"
            f" $$ begin return clock_timestamp() + interval '{by.total_seconds()} seconds'; end $$"
        )

    return move


class Known(Job):
    def run(self, ctx: Any) -> str:
        return "ran"


class Hourly(Job):
    config = JobConfig.recurring("hourly", "0 * * * *")

    def run(self, ctx: Any) -> None: ...


def records(db: Any) -> list[tuple[str, str, str]]:
    """(name, outcome, reason) of all history."""
    return db.execute("select name, outcome, reason from pgscheduler_runs order by name, outcome").fetchall()


def test_an_expired_job_is_recorded_and_not_run(dsn: str, db: Any, travel: Any) -> None:
    """A job that could not start within expires_in fails as expired; in time it runs."""
    with Scheduler(config(dsn)) as node:
        node.register(Known)
        late = node.enqueue("known", expires_in=timedelta(minutes=5))
        good = node.enqueue("known", expires_in=timedelta(minutes=50))
        travel(timedelta(minutes=10))

        node.run_pending()

        assert [(str(run.outcome), run.reason) for run in node.runs(late.id)] == [("failed", "expired")]
        assert [str(run.outcome) for run in node.runs(good.id)] == ["completed"]
        assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (0,)


def test_cancelled_and_deleted_jobs_are_recorded(dsn: str, db: Any) -> None:
    """Cancelling or deleting what has not started leaves a record with its parameters."""
    with Scheduler(config(dsn)) as node:
        cancelled = node.enqueue("somewhere", {"n": 1})
        deleted = node.enqueue("somewhere", {"n": 2})
        node.schedule(Hourly())
        node.cancel(cancelled)
        node.delete(deleted)
        node.delete("hourly")

        assert records(db) == [
            ("hourly", "cancelled", "deleted"),
            ("somewhere", "cancelled", "cancelled"),
            ("somewhere", "cancelled", "deleted"),
        ]
        assert node.get_job(cancelled).state is JobState.CANCELLED
        assert [run.parameters for run in node.runs(deleted.id)] == [{"n": 2}]


def test_an_orphan_is_recorded_and_what_a_living_node_knows_is_not_touched(
    dsn: str, db: Any, travel: Any
) -> None:
    """After the timeout a job whose name nobody registered becomes a record; one that any living node knows,
    not only the cleaning one, stays, however old."""
    with Scheduler(config(dsn)) as owner, Scheduler(config(dsn)) as cleaner:
        owner.register(Known)
        owner.schedule(Hourly())
        cleaner.enqueue("nobodys", {"n": 1})
        pause = cleaner.enqueue("nobodys_paused")
        cleaner.pause(pause)
        cleaner.enqueue("known", delay=400 * DAY)
        live = {row[0] for row in db.execute("select name from pgscheduler_jobs").fetchall()}
        assert live == {"known", "hourly", "nobodys", "nobodys_paused"}

        travel(13 * DAY)
        owner._node.heartbeat.step()
        cleaner._node.heartbeat.step()
        cleaner._node.maintenance.do(CHORE["orphans"])
        assert db.execute("select count(*) from pgscheduler_jobs").fetchone() == (4,)

        travel(15 * DAY)
        owner._node.heartbeat.step()
        cleaner._node.maintenance.do(CHORE["orphans"])

        live = {row[0] for row in db.execute("select name from pgscheduler_jobs").fetchall()}
        assert live == {"known", "hourly"}
        text = "no node has registered this name"
        assert records(db) == [("nobodys", "orphaned", text), ("nobodys_paused", "orphaned", text)]
        assert cleaner.runs(name="nobodys")[0].parameters == {"n": 1}
        owner._node.heartbeat.close()
        cleaner._node.heartbeat.close()


def test_orphan_cleanup_never_touches_a_running_row_nor_a_young_one(dsn: str, db: Any, travel: Any) -> None:
    """A running job of an unknown name stays, and so does one that was stored within the timeout, also when no
    node at all has ever been seen."""
    with Scheduler(config(dsn)) as cleaner:
        running = cleaner.enqueue("unknown")
        db.execute("update pgscheduler_jobs set state = 'running', token = 7, claimed_at = now()")
        travel(20 * DAY)
        young = cleaner.enqueue("unknown")
        cleaner._node.maintenance.do(CHORE["orphans"])
        assert db.execute("select count(*) from pgscheduler_nodes").fetchone() == (0,)

        assert {job.id for job in cleaner.jobs()} == {running.id, young.id}
        travel(40 * DAY)
        cleaner._node.maintenance.do(CHORE["orphans"])
        assert {job.id for job in cleaner.jobs()} == {running.id}


def test_a_dead_node_keeps_its_names_for_the_whole_timeout(dsn: str, db: Any, travel: Any) -> None:
    """The timeout counts from the last sign of life of any node that knew the name, not from the job's birth."""
    with Scheduler(config(dsn)) as node, Scheduler(config(dsn)) as cleaner:
        node.register(Known)
        cleaner.enqueue("known", delay=400 * DAY)
        travel(10 * DAY)
        node._node.heartbeat.step()
        node._node.heartbeat.close()

        travel(23 * DAY)
        cleaner._node.maintenance.do(CHORE["orphans"])
        assert len(cleaner.jobs()) == 1
        travel(25 * DAY)
        cleaner._node.maintenance.do(CHORE["orphans"])
        assert cleaner.jobs() == []
        assert [row[1] for row in records(db)] == ["orphaned"]


def test_history_goes_by_retention_and_by_nothing_else(dsn: str, db: Any, travel: Any) -> None:
    """Each chore leaves all records within the retention alone; beyond it whole days go, live jobs never do."""
    with Scheduler(config(dsn, history_retention=30 * DAY)) as node:
        node.register(Known)
        for days in (0, 10, 20):
            travel(days * DAY)
            node._node.maintenance.do(CHORE["partitions"])
            node.enqueue("known")
            assert node.run_pending().completed == 1
        kept = node.enqueue("known", delay=400 * DAY)

        for days, left in ((29, 3), (32, 2), (39, 2), (42, 1), (52, 0)):
            travel(days * DAY)
            # Several rounds, of every chore: no other one removes history either.
            node._node.heartbeat.step()
            for chore in (*CHORES, *CHORES):
                node._node.maintenance.do(chore)
            assert len(node.runs(name="known")) == left, days
        assert node.get_job(kept).state is JobState.PENDING
        node._node.heartbeat.close()


def test_records_without_a_partition_are_kept_and_retired_too(dsn: str, db: Any, travel: Any) -> None:
    """When no node made a day's partition in time, its records are kept all the same, and go by retention."""
    with Scheduler(config(dsn, history_retention=30 * DAY)) as node:
        node.register(Known)
        travel(200 * DAY)  # far beyond any partition that was made ahead
        node.enqueue("known")
        assert node.run_pending().completed == 1
        assert db.execute("select count(*) from pgscheduler_runs_default").fetchone() == (1,)

        for days, left in ((229, 1), (232, 0)):
            travel(days * DAY)
            node._node.maintenance.do(CHORE["partitions"])
            assert len(node.runs(name="known")) == left


def test_a_finished_job_answers_until_it_is_history_only(dsn: str, travel: Any) -> None:
    """A one-time job that ended is found by its key for an hour, and its record stays after that."""
    with Scheduler(config(dsn)) as node:
        node.register(Known)
        node.enqueue("known", key="k")
        node.run_pending()
        assert node.get_job(("known", "k")).state is JobState.COMPLETED

        travel(timedelta(hours=2))

        with pytest.raises(JobNotFoundError):
            node.get_job(("known", "k"))
        assert len(node.runs(("known", "k"))) == 1
