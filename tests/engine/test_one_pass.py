"""`run_pending()`: one pass, in the caller's thread, whatever becomes of the connection meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgscheduler import DatabaseUnavailableError, JobConfig
from pgscheduler._recorder import Recorder
from tests.engine.conftest import Call
from tests.support.postgres import execute


def test_a_connection_that_breaks_in_a_pass_is_replaced(
    dsn: str, db: Any, scheduler_on: Callable[..., Any]
) -> None:
    """The job's outcome is written all the same, and the pass goes on."""
    ran: list[int] = []

    def job(ctx: Any) -> None:
        ran.append(ctx.parameters["n"])
        if len(ran) == 2:
            execute(
                dsn,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and application_name like 'pgscheduler/%'"
                " and pid <> pg_backend_pid()",  # a pooler may have lent us such a one
            )

    node = scheduler_on(dsn, register=(Call(JobConfig(name="job"), job),))
    node.enqueue_many("job", [{"n": n} for n in range(4)])

    done = node.run_pending(10)

    assert (done.claimed, done.completed, done.failed) == (4, 4, 0)
    assert ran == [0, 1, 2, 3]
    assert db.execute("select outcome, count(*) from pgscheduler_runs group by 1").fetchall() == [
        ("completed", 4)
    ]


def test_an_outcome_that_a_pass_could_not_write_is_kept_for_the_next(
    dsn: str, db: Any, proxy_to: Callable[[str], Any], scheduler_on: Callable[..., Any]
) -> None:
    """The job does not run again, and nothing is held for ever."""
    proxy = proxy_to(dsn)
    ran: list[int] = []

    def job(ctx: Any) -> None:
        ran.append(ctx.parameters["n"])
        if len(ran) == 1:
            proxy.refuse()
            proxy.reset()

    node = scheduler_on(proxy.dsn, register=(Call(JobConfig(name="job"), job),), connect_timeout=2)
    node.enqueue_many("job", [{"n": n} for n in range(2)])
    with pytest.raises(DatabaseUnavailableError):
        node.run_pending(10)
    proxy.heal()

    done = node.run_pending(10)

    assert (done.claimed, done.completed) == (1, 1)
    assert ran == [0, 1]
    assert db.execute("select outcome, count(*) from pgscheduler_runs group by 1").fetchall() == [
        ("completed", 2)
    ]
    assert node.node_stats()["held"] == node.node_stats()["unwritten"] == 0


def test_a_pass_takes_what_was_due_when_it_began(dsn: str, scheduler_on: Callable[..., Any]) -> None:
    """A job that asks to run again at once does so in the next pass."""
    node = scheduler_on(dsn)

    def job(ctx: Any) -> None:
        node.enqueue("job")

    node.register(Call(JobConfig(name="job"), job))
    node.enqueue("job")
    assert [node.run_pending(10).claimed for _ in range(3)] == [1, 1, 1]


def test_a_node_of_passes_alone_says_when_it_ends(
    dsn: str, db: psycopg.Connection[Any], scheduler_on: Any
) -> None:
    """It lives while it may run more, and is not counted among the living after its shutdown."""
    node = scheduler_on(dsn, register=(Call(JobConfig(name="job")),))
    node.run_pending()
    query = "select stopped_at is null from pgscheduler_nodes"
    assert db.execute(query).fetchall() == [(True,)]
    assert node.shutdown()
    assert db.execute(query).fetchall() == [(False,)]


@pytest.mark.parametrize("result", [None, {"n": 1}])
def test_a_pass_writes_what_was_locked_for_a_moment(
    dsn: str, db: Any, scheduler_on: Any, monkeypatch: pytest.MonkeyPatch, result: Any
) -> None:
    """`run_pending()` has no later step: a heartbeat, or another node's claim, must not leave its outcome unwritten."""
    real, others = Recorder.step, []

    def step(recorder: Recorder) -> float:
        """As if the row were locked until the first try is over."""
        if not recorder.unwritten or others:
            return real(recorder)
        others.append(psycopg.connect(dsn))
        with others[0] as other:
            other.execute("select from pgscheduler_jobs for update")
            return real(recorder)

    monkeypatch.setattr(Recorder, "step", step)
    node = scheduler_on(dsn, register=(Call(JobConfig(name="job"), lambda ctx: result),))
    node.enqueue("job")
    done = node.run_pending()

    assert (len(others), done.completed, db.execute("select count(*) from pgscheduler_runs").fetchone()) == (
        1,
        1,
        (1,),
    )
    assert (node.node_stats()["unwritten"], node.node_stats()["held"]) == (0, 0)
