"""P3 One at a time: at most one live claim per job, and a recurring job never overlaps itself."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgscheduler import Every, Job, JobConfig, Scheduler
from pgscheduler._sql import Names
from pgscheduler._store import ClaimRequest, Store, new_token
from tests.promises.node_scripts import Work, create_ledger, live, overlaps, quiet_config, start_node
from tests.support.processes import NodeProcess

Connection = psycopg.Connection[Any]


class Plain(Job):
    def run(self, ctx: Any) -> None: ...


@pytest.fixture
def client(dsn: str) -> Iterator[Scheduler]:
    with Scheduler(quiet_config(dsn)) as scheduler:
        scheduler.register(Plain)
        yield scheduler


def test_no_job_overlaps_itself_on_several_nodes(
    dsn: str,
    db: Connection,
    nodes: Callable[..., NodeProcess],
    client: Scheduler,
    eventually: Callable[..., Any],
) -> None:
    """With three nodes, a recurring job longer than its period and one-time jobs never run twice at a time."""
    create_ledger(dsn)
    # The nodes are healthy throughout; a long timeout keeps a busy machine from making one look dead.
    for _ in range(3):
        start_node(nodes, dsn, names=["slow", "work"], beat=2, timeout=20)
    recurring = JobConfig.recurring("slow", Every(timedelta(seconds=1)), parameters={"seconds": 1.3})
    slow = client.schedule(Work(recurring, dsn))
    jobs = [client.enqueue("work", {"seconds": 0.05}) for _ in range(60)]
    for job in jobs:
        client.wait(job, 60)
    # All three wake for each occurrence; which of them gets it is chance, and may always be the same.
    query = "select count(*) > 4 from ledger where job = %s"
    eventually(lambda: db.execute(query, [slow.id]).fetchone() == (True,), timeout=60)

    runs = dict(db.execute("select job, count(*) from ledger where name = 'work' group by job").fetchall())

    assert overlaps(db) == []
    assert {job.id: 1 for job in jobs} == runs


def test_a_running_job_is_not_claimed_again(dsn: str, client: Scheduler, db: Connection) -> None:
    """While a claim is held, no other claim gets the job, however long it is overdue."""
    job = client.enqueue("plain")
    client.enqueue("plain", delay=3600)  # so that there is something to look for
    store = Store(dsn, Names("public", "pgscheduler_"))
    with store.connect() as connection:
        request = ClaimRequest(10, ["plain"], {}, True)
        first = store.claim(connection, str(uuid.uuid4()), request, new_token())
        second = store.claim(connection, str(uuid.uuid4()), request, new_token())

    assert ([job.id], []) == ([claim.id for claim in first], second)
    assert first[0].token == live(db, job.id)["token"]  # type: ignore[index]


def test_two_claims_at_the_same_moment_share_nothing(dsn: str, client: Scheduler) -> None:
    """A claim that is not yet committed keeps its jobs from every other, which does not wait for it."""
    for _ in range(10):
        client.enqueue("plain")
    store = Store(dsn, Names("public", "pgscheduler_"))
    taken: list[set[int]] = []
    with store.connect() as one, store.connect() as other:
        one.execute("begin")
        other.execute("begin")
        for connection, slots in ((one, 6), (other, 10)):
            values = {
                "everything": True, "priorities": "{}", "marks": [], "names": ["plain"],
                "slots": slots, "once": slots, "often": slots, "until": None, "token": new_token(), "node": str(uuid.uuid4()),
            }  # fmt: skip
            taken.append({row[0] for row in connection.execute(store.sql["claim"], values).fetchall()})
        one.execute("commit")
        other.execute("commit")

    assert (6, 4, set()) == (len(taken[0]), len(taken[1]), taken[0] & taken[1])


def test_a_locked_row_blocks_no_other(client: Scheduler, dsn: str, db: Connection) -> None:
    """A job whose row another session has locked is passed over, and taken when it is free."""
    locked, free = client.enqueue("plain", priority=0), client.enqueue("plain")
    with psycopg.connect(dsn) as session:
        session.execute("select from pgscheduler_jobs where id = %s for update", [locked.id])
        during = client.run_pending().completed
        waiting = live(db, locked.id)["state"]  # type: ignore[index]
    client.run_pending()

    assert (during, waiting) == (1, "pending")
    assert "completed" == client.get_job(free).state == client.get_job(locked).state


def test_the_table_itself_refuses_a_running_job_without_a_token(client: Scheduler, db: Connection) -> None:
    """A row is running if and only if it carries a claim's token; no statement can make it otherwise."""
    job = client.enqueue("plain", delay=3600)
    for change in ("state = 'running'", "token = 1", "state = 'done'"):
        with pytest.raises(psycopg.errors.CheckViolation):
            db.execute(f"update pgscheduler_jobs set {change} where id = %s", [job.id])
