"""P16: inside ctx.transaction() the job's own SQL and its completion commit together, exactly once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import structlog

from pgscheduler import Every, Job, JobConfig, JobState, RunLostError, Scheduler, SchedulerConfig

SILENT = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))

# Each job writes one line per occurrence. On the first attempt it meets, in its transaction, what the test says.
NODE = """
import asyncio, os, signal, sys
from datetime import timedelta
import psycopg, structlog
from pgscheduler import Backoff, Every, Job, JobConfig, RunLostError, Scheduler, SchedulerConfig
from tests.support.processes import commands, emit

EFFECT = "insert into effects values (%s, %s, %s)"

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def trap(connection, commit, how):
    # Called inside the transaction; replaces or spoils the commit.
    if how == "killed before":
        connection.commit = die
    elif how == "exit before":
        connection.commit = lambda: os._exit(9)
    elif how == "cut before":
        with psycopg.connect(sys.argv[1], autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s)", [connection.info.backend_pid])
    elif how == "answer lost":
        connection.commit = commit

class Once(Job):
    config = JobConfig(name="once", retries=2, backoff=Backoff(initial=timedelta(0), jitter=0.0), max_stalls=5)

    def run(self, ctx):
        how = ctx.parameters["how"] if ctx.attempt == 1 else "nothing"
        emit("begun", attempt=ctx.attempt, at=ctx.scheduled_at.isoformat())
        try:
            with ctx.transaction() as connection:
                connection.execute(EFFECT, [ctx.job_id, ctx.scheduled_at, ctx.attempt])
                real = connection.commit
                def lost():
                    real()
                    raise psycopg.OperationalError("the answer was lost")
                trap(connection, lost, how)
                if how == "hold":
                    emit("holding")
                    ctx.wait(600)
        except RunLostError:
            emit("lost", attempt=ctx.attempt, why=ctx.cancel_reason)
            raise
        if how == "killed after":
            die()
        if how == "exit after":
            os._exit(9)
        if how == "raises after":
            raise ValueError("after the commit")

class OnceAsync(Job):
    config = JobConfig(name="once_async", retries=2, backoff=Backoff(initial=timedelta(0), jitter=0.0), max_stalls=5)

    async def run(self, ctx):
        how = ctx.parameters["how"] if ctx.attempt == 1 else "nothing"
        emit("begun", attempt=ctx.attempt, at=ctx.scheduled_at.isoformat())
        try:
            async with ctx.transaction() as connection:
                await connection.execute(EFFECT, [ctx.job_id, ctx.scheduled_at, ctx.attempt])
                real = connection.commit
                async def lost():
                    await real()
                    raise psycopg.OperationalError("the answer was lost")
                trap(connection, lost, how)
                if how == "hold":
                    emit("holding")
                    await ctx.sleep(600)
        except RunLostError:
            emit("lost", attempt=ctx.attempt, why=ctx.cancel_reason)
            raise
        if how == "killed after":
            die()
        if how == "exit after":
            os._exit(9)
        if how == "raises after":
            raise ValueError("after the commit")

if __name__ == "__main__":
    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
    scheduler = Scheduler(SchedulerConfig(dsn=sys.argv[1], logger=silent, run_immediately=True,
                                          heartbeat_interval=0.2, no_heartbeat_timeout=3.0, shutdown_timeout=5))
    scheduler.init()
    scheduler.register(Once)
    scheduler.register(OnceAsync)
    scheduler.start()
    emit("ready")
    for order in commands():
        pass
"""

KILLS = ["killed before", "exit before", "killed after", "exit after"]
OTHERS = ["cut before", "answer lost", "raises after", "nothing"]
KINDS = [("once", "thread"), ("once_async", "async"), ("once", "process")]


def config(dsn: str) -> SchedulerConfig:
    return SchedulerConfig(dsn=dsn, logger=SILENT, heartbeat_interval=0.2, no_heartbeat_timeout=60)


@pytest.fixture
def effects(db: Any) -> Any:
    """The table that jobs write to; answers its lines by occurrence."""
    db.execute("create table effects (job bigint, at timestamptz, attempt int)")
    return lambda: [row[0] for row in db.execute("select count(*) from effects group by job, at").fetchall()]


@pytest.mark.parametrize("how", KILLS + OTHERS)
@pytest.mark.parametrize(("name", "isolation"), KINDS)
def test_the_effect_and_the_completion_are_both_or_neither(
    dsn: str, nodes: Any, effects: Any, name: str, isolation: str, how: str
) -> None:
    """Killed right before the commit or right after it, cut off, its answer lost, or failed after it: the effect
    is there once, and the job is completed."""
    with Scheduler(config(dsn)) as client:
        job = client.enqueue(name, {"how": how}, isolation=isolation, retries=2, max_stalls=5)
        node = nodes(NODE, dsn)
        node.wait_for("begun", timeout=30)
        if how in KILLS and isolation != "process":
            node.wait(20)
            heir = nodes(NODE, dsn)
        else:
            heir = node

        ended = client.wait(job, timeout=60)

        assert ended.state is JobState.COMPLETED
        assert effects() == [1]
        assert str(client.runs(job.id)[0].outcome) == "completed"
        assert [str(run.outcome) for run in client.runs(job.id)].count("completed") == 1
        if how.endswith("after"):
            # What was committed is only recorded: its code is not started again.
            assert len(heir.seen("begun")) == (1 if heir is node else 0)


@pytest.mark.parametrize("how", ["exit after", "answer lost", "raises after", "exit before"])
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_recurring_job_goes_on_with_its_next_occurrence(
    dsn: str, db: Any, nodes: Any, effects: Any, eventually: Any, isolation: str, how: str
) -> None:
    """The same for one occurrence of a recurring job: once each, and the next ones come, with no failure counted
    for what was committed."""

    class Once(Job):
        def run(self, ctx: Any) -> None:
            raise AssertionError("this process only schedules")

    with Scheduler(config(dsn)) as client:
        # Each occurrence is run, however late a busy machine is: with fewer, a second attempt may be for another one.
        policies: dict[str, Any] = {"isolation": isolation, "max_stalls": 5, "parameters": {"how": how}}
        policies["misfire"] = "run_all"
        schedule = Every(timedelta(seconds=1))
        client.schedule(Once(JobConfig(name="once", key="one", schedule=schedule, **policies)))
        node = nodes(NODE, dsn)
        first = node.wait_for("begun", timeout=30)
        if isolation == "thread" and how.startswith("exit"):
            node.wait(20)
        # From here on it behaves.
        eventually(lambda: _rewrite(db), timeout=20)
        heir = nodes(NODE, dsn) if not node.is_alive else node
        eventually(lambda: len(effects()) >= 3, timeout=60, describe=heir.report)

        assert set(effects()) == {1}
        run = client.runs(("once", "one"), limit=1000)
        of_first = [r for r in run if r.scheduled_at.isoformat() == first["at"]]
        assert [str(r.outcome) for r in of_first].count("completed") == 1
        assert client.get_job(("once", "one")).consecutive_failures == 0


def _rewrite(db: Any) -> bool:
    db.execute("""update pgscheduler_jobs set parameters = '{"how": "nothing"}'""")
    return True


@pytest.mark.parametrize(("name", "isolation"), KINDS)
def test_a_claim_that_was_stolen_meanwhile_rolls_back(
    dsn: str, db: Any, nodes: Any, effects: Any, eventually: Any, name: str, isolation: str
) -> None:
    """A node that was frozen inside the transaction, while another ran the job, gets RunLostError when it leaves
    the block (or its coroutine or process is ended there), and its effect is rolled back."""
    with Scheduler(config(dsn)) as client:
        job = client.enqueue(name, {"how": "hold"}, isolation=isolation, retries=2)
        frozen = nodes(NODE, dsn)
        frozen.wait_for("holding", timeout=30)
        frozen.pause()
        heir = nodes(NODE, dsn)
        assert heir.wait_for("begun", timeout=30)["attempt"] == 2
        assert client.wait(job, timeout=30).state is JobState.COMPLETED

        frozen.resume()

        if isolation == "thread":
            assert frozen.wait_for("lost", timeout=30)["why"] == "lost"
        # A coroutine is cancelled, and a process killed, when the node finds its claim gone.
        eventually(lambda: _open_transactions(db) == 0, timeout=30)
        assert db.execute("select attempt from effects").fetchall() == [(2,)]
        assert [str(run.outcome) for run in client.runs(job.id)].count("completed") == 1


def _open_transactions(db: Any) -> int:
    found = db.execute(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and state like 'idle in transaction%'"
    ).fetchone()
    return int(found[0])


class Local(Job):
    def __init__(self, config: JobConfig, between: Any) -> None:
        super().__init__(config)
        self.between = between
        self.errors: list[type[BaseException]] = []

    def run(self, ctx: Any) -> Any:
        try:
            with ctx.transaction({"answer": 42}) as connection:
                connection.execute("insert into effects values (%s, %s, 1)", [ctx.job_id, ctx.scheduled_at])
                self.between(ctx)
        except BaseException as error:
            self.errors.append(type(error))
            raise
        return "the transaction's result counts"


@pytest.mark.parametrize("how", ["other token", "gone", "raises"])
def test_leaving_the_block_without_the_claim_commits_nothing(
    dsn: str, db: Any, effects: Any, how: str
) -> None:
    """Under another token, without a row, or by an exception, the block commits nothing of its own."""

    def between(ctx: Any) -> None:
        if how == "other token":
            db.execute("update pgscheduler_jobs set token = token # 1")
        elif how == "gone":
            db.execute("delete from pgscheduler_jobs")
        else:
            raise ValueError("in the block")

    with Scheduler(config(dsn)) as node:
        job = Local(JobConfig(name="local"), between)
        node.schedule(job)
        node.run_pending()

        assert job.errors == [ValueError if how == "raises" else RunLostError]
        assert effects() == []
        assert (
            db.execute("select completed_at from pgscheduler_jobs where completed_at is not null").rowcount
            == 0
        )


def test_the_result_of_the_transaction_is_the_runs_result(dsn: str, effects: Any) -> None:
    """What ctx.transaction(result) was given is committed with it, and is what the record shows."""
    with Scheduler(config(dsn)) as node:
        record = node.schedule(Local(JobConfig(name="local"), lambda ctx: None))
        node.run_pending()

        ended = node.get_job(record)
        assert (ended.state, ended.result, effects()) == (JobState.COMPLETED, {"answer": 42}, [1])
