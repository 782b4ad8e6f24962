"""P1 Durable: what schedule() or a commit has answered survives any crash, and recorded work is not done again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from pgscheduler import Job, JobConfig, Scheduler, ScheduleUnknownError
from tests.promises.node_scripts import history, quiet_config, settled
from tests.support.postgres import PrivateServer, apply_schema, execute
from tests.support.proxy import Proxy

# The log is written only when a commit waits for it, so that a commit which does not wait is lost in a crash.
LAZY = {"wal_writer_delay": "10s"}


class Counted(Job):
    """Counts its runs in this process."""

    def __init__(self, config: JobConfig, ran: list[int]) -> None:
        super().__init__(config)
        self.ran = ran

    def run(self, ctx: Any) -> Any:
        self.ran.append(ctx.job_id)
        return ctx.parameters.get("result")


@contextmanager
def client(dsn: str, **settings: Any) -> Iterator[Scheduler]:
    with Scheduler(quiet_config(dsn, **settings)) as scheduler:
        yield scheduler


@pytest.fixture
def crashing(own_server: Callable[..., PrivateServer]) -> PrivateServer:
    server = own_server(LAZY)
    apply_schema(server.dsn)
    return server


@pytest.mark.parametrize("key", [None, "k"])
def test_a_scheduled_job_survives_a_crash(crashing: PrivateServer, key: str | None) -> None:
    """When schedule() or enqueue() has returned, the job is there after PostgreSQL crashed in that instant."""
    with client(crashing.dsn) as scheduler:
        first = scheduler.schedule(Counted(JobConfig(name="counted", key=key, delay=3600), []))
        crashing.crash()
        crashing.start()
        second = scheduler.enqueue("counted", delay=None, key=key and "other")
        crashing.crash()
    crashing.start()

    stored = execute(crashing.dsn, "select id from pgscheduler_jobs order by id")

    assert [(first.id,), (second.id,)] == stored


def test_bulk_and_recurring_jobs_survive_a_crash(crashing: PrivateServer) -> None:
    """When schedule_many() has returned, all its jobs are there after a crash, recurring ones as well."""
    with client(crashing.dsn) as scheduler:
        scheduler.schedule(Counted(JobConfig.recurring("daily", "0 9 * * *"), []))
        crashing.crash()
        crashing.start()
        scheduler.schedule_many([Counted(JobConfig(name="bulk", delay=3600), []) for _ in range(50)])
        crashing.crash()
    crashing.start()

    stored = execute(crashing.dsn, "select name, count(*) from pgscheduler_jobs group by name order by name")

    assert stored == [("bulk", 50), ("daily", 1)]


def test_a_committed_transaction_survives_a_crash(crashing: PrivateServer) -> None:
    """When the caller's transaction has committed, the job that it scheduled is there after a crash."""
    with client(crashing.dsn) as scheduler, psycopg.connect(crashing.dsn) as mine:
        stored = scheduler.enqueue("counted", connection=mine)
        mine.commit()
        crashing.crash()
    crashing.start()

    assert [(stored.id,)] == execute(crashing.dsn, "select id from pgscheduler_jobs")


@pytest.mark.parametrize("result", [None, {"rows": 3}])
def test_recorded_work_is_never_started_again(crashing: PrivateServer, result: Any) -> None:
    """Once a run is seen as completed, a crash in that instant does not make its work start again."""
    ran: list[int] = []
    with client(crashing.dsn) as scheduler:
        scheduler.register(Counted(JobConfig(name="counted"), ran))
        scheduler.start()
        job = scheduler.enqueue("counted", {"result": result})
        scheduler.wait(job, 30)
        crashing.crash()
    crashing.start()

    with client(crashing.dsn) as scheduler:
        scheduler.register(Counted(JobConfig(name="counted"), ran))
        again = scheduler.run_pending()
        record = scheduler.get_job(job)

    assert (0, [job.id], "completed") == (again.claimed, ran, record.state)


def test_a_callers_transaction_decides(dsn: str, eventually: Callable[..., Any]) -> None:
    """A job scheduled in the caller's transaction is not run before its commit, and never after a rollback."""
    ran: list[int] = []
    with client(dsn) as scheduler, psycopg.connect(dsn) as mine:
        scheduler.register(Counted(JobConfig(name="counted"), ran))
        scheduler.start()

        forgotten = scheduler.enqueue("counted", connection=mine)
        # Another job, stored later and run meanwhile: the node has looked while the transaction was open.
        scheduler.wait(scheduler.enqueue("counted"), 30)
        during = list(ran)
        mine.rollback()
        kept = scheduler.enqueue("counted", connection=mine)
        mine.commit()
        scheduler.wait(kept, 30)

        assert forgotten.id not in during
        assert forgotten.id not in ran
        assert kept.id in ran
        assert scheduler.runs(forgotten.id) == []


def test_a_lost_commit_is_unknown_and_a_retry_gives_one_job(
    dsn: str,
    db: psycopg.Connection[Any],
    proxy_to: Callable[[str], Proxy],
    eventually: Callable[..., Any],
) -> None:
    """A connection lost in COMMIT raises ScheduleUnknownError; the same again under its key leaves one job."""
    proxy = proxy_to(dsn)
    raised: list[BaseException] = []

    with client(proxy.dsn) as scheduler:
        scheduler.stats()  # a connection lies ready in the pool

        def schedule() -> None:
            try:
                scheduler.enqueue("counted", key="once", delay=None)
            except BaseException as error:
                raised.append(error)

        proxy.stall("down")
        thread = threading.Thread(target=schedule)
        thread.start()
        query = "select id from pgscheduler_jobs where key = 'once'"
        ((first,),) = eventually(lambda: db.execute(query).fetchall(), describe="the job is stored")
        proxy.reset()
        thread.join(30)
        proxy.heal()
        again = scheduler.enqueue("counted", key="once")

    assert [ScheduleUnknownError] == [type(error) for error in raised]
    assert first == again.id
    assert [(first,)] == db.execute("select id from pgscheduler_jobs").fetchall()


def test_a_request_that_never_arrived_is_unknown_and_stored_once_when_repeated(
    dsn: str,
    db: psycopg.Connection[Any],
    proxy_to: Callable[[str], Proxy],
    eventually: Callable[..., Any],
) -> None:
    """The same error when the request itself was lost; repeating it stores the job, whichever way it went."""
    proxy = proxy_to(dsn)
    raised: list[BaseException] = []
    with client(proxy.dsn) as scheduler:
        scheduler.stats()

        def schedule() -> None:
            try:
                scheduler.enqueue("counted", key="once")
            except BaseException as error:
                raised.append(error)

        proxy.stall("up")
        thread = threading.Thread(target=schedule)
        thread.start()
        eventually(lambda: proxy.held, describe="the request to have left")
        proxy.reset()
        thread.join(30)
        proxy.heal()
        stored = db.execute("select id from pgscheduler_jobs").fetchall()
        again = scheduler.enqueue("counted", key="once")

    assert [ScheduleUnknownError] == [type(error) for error in raised]
    assert stored == []
    assert [(again.id,)] == db.execute("select id from pgscheduler_jobs").fetchall()


def test_a_server_that_is_away_is_a_definite_no(
    dsn: str, db: psycopg.Connection[Any], proxy_to: Callable[[str], Proxy]
) -> None:
    """When the request could not even be sent, the error says so, and nothing was stored."""
    proxy = proxy_to(dsn)
    with client(proxy.dsn, connect_timeout=2) as scheduler:
        proxy.refuse()
        with pytest.raises(ConnectionError) as raised:
            scheduler.enqueue("counted", key="once")
        proxy.heal()

    assert not isinstance(raised.value, ScheduleUnknownError)
    assert db.execute("select id from pgscheduler_jobs").fetchall() == []


def test_an_outcome_whose_answer_was_lost_is_recorded_once(
    dsn: str, db: psycopg.Connection[Any], proxy_to: Callable[[str], Proxy], eventually: Callable[..., Any]
) -> None:
    """When the connection breaks after an outcome was committed, it stays recorded once and is not run again."""
    proxy = proxy_to(dsn)
    ran: list[int] = []
    gate = threading.Event()

    class Gated(Counted):
        def run(self, ctx: Any) -> Any:
            super().run(ctx)
            gate.wait(30)

    with client(proxy.dsn) as scheduler:
        scheduler.register(Gated(JobConfig(name="gated"), ran))
        scheduler.start()
        job = scheduler.enqueue("gated")
        eventually(lambda: ran and settled(scheduler))
        proxy.stall("down")
        gate.set()
        eventually(lambda: history(db, job.id), describe="the outcome is committed")
        proxy.reset()
        proxy.heal()
        eventually(lambda: scheduler.node_stats()["held"] == 0, timeout=30)
        lost = scheduler.node_stats()["lost"]

    assert (len(ran), [outcome for outcome, _ in history(db, job.id)], lost) == (1, ["completed"], 0)
