"""P2 Nothing is lost: a due job is run as long as some live node knows its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from pgscheduler import Job, Scheduler
from tests.promises.node_scripts import create_ledger, history, live, quiet_config, settled, start_node
from tests.support.processes import NodeProcess

Nodes = Callable[..., NodeProcess]
Connection = psycopg.Connection[Any]


def test_the_job_of_a_killed_node_runs_on_another(
    dsn: str, db: Connection, nodes: Nodes, eventually: Callable[..., Any]
) -> None:
    """A node that is killed in the middle of a run loses nothing: another one runs the job to its end."""
    create_ledger(dsn)
    with Scheduler(quiet_config(dsn)) as client:
        first = start_node(nodes, dsn)
        job = client.enqueue("work", {"seconds": 60, "again": 0.1})
        began = first.wait_for("started", job=job.id)
        second = start_node(nodes, dsn)
        first.kill()
        retried = second.wait_for("started", timeout=30, job=job.id)
        second.wait_for("ended", job=job.id)
        client.wait(job, 30)

    assert (began["attempt"], retried["attempt"]) == (1, 2)
    assert [("stalled", began["token"]), ("completed", retried["token"])] == history(db, job.id)
    assert live(db, job.id) is None


def test_what_a_killed_node_had_taken_but_not_started_runs(dsn: str, db: Connection, nodes: Nodes) -> None:
    """All jobs of a killed node run, also those that waited behind others in it."""
    create_ledger(dsn)
    with Scheduler(quiet_config(dsn)) as client:
        first = start_node(nodes, dsn, slots=2)
        jobs = [client.enqueue("work", {"seconds": 0.3}) for _ in range(12)]
        first.wait_for("ended")
        first.kill()
        start_node(nodes, dsn)
        for job in jobs:
            client.wait(job, 30)

    done = db.execute(
        "select job_id, count(*) from pgscheduler_runs where outcome = 'completed' group by job_id order by job_id"
    ).fetchall()
    assert [(job.id, 1) for job in jobs] == done


def test_a_name_that_a_node_does_not_know_is_left_for_one_that_does(
    dsn: str, db: Connection, nodes: Nodes
) -> None:
    """A node takes only the names that it knows; the others wait, in no one's way, for a node that knows them."""
    create_ledger(dsn)
    with Scheduler(quiet_config(dsn)) as client:
        foreign = [client.enqueue("theirs", priority=0) for _ in range(30)]
        start_node(nodes, dsn, names=["ours"])
        client.wait(client.enqueue("ours", priority=9), 30)
        before = {live(db, job.id)["state"] for job in foreign}  # type: ignore[index]
        attempts = db.execute("select count(*) from pgscheduler_runs where name = 'theirs'").fetchone()
        start_node(nodes, dsn, names=["theirs"])
        for job in foreign:
            client.wait(job, 30)

    assert ({"pending"}, (0,)) == (before, attempts)
    assert {"completed"} == {outcome for job in foreign for outcome, _ in history(db, job.id)}


def test_a_killed_process_is_counted_apart_from_failures(dsn: str, db: Connection, nodes: Nodes) -> None:
    """A job without retries still runs again when its node was killed: that was not its failure."""
    create_ledger(dsn)
    with Scheduler(quiet_config(dsn)) as client:
        first = start_node(nodes, dsn)
        job = client.enqueue("work", {"seconds": 60, "again": 0}, retries=0)
        first.wait_for("started", job=job.id)
        first.kill()
        start_node(nodes, dsn)
        record = client.wait(job, 30)

    assert (
        record.state,
        [outcome for outcome, _ in history(db, job.id)],
    ) == ("completed", ["stalled", "completed"])


def test_a_claim_whose_answer_was_lost_is_run(
    dsn: str, db: Connection, proxy_to: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    """A job whose claim was committed, but whose node never heard of it, runs without waiting to be stalled."""
    ran: list[int] = []

    class Seen(Job):
        def run(self, ctx: Any) -> Any:
            ran.append(ctx.attempt)

    proxy = proxy_to(dsn)
    with Scheduler(quiet_config(proxy.dsn)) as node, Scheduler(quiet_config(dsn)) as client:
        node.register(Seen)
        node.start()
        client.wait(client.enqueue("seen"), 30)
        eventually(lambda: not node.node_stats()["held"] and settled(node))
        proxy.stall("down")
        job = client.enqueue("seen", delay=None)
        node._node.dispatcher.look()  # the notification is held back too
        eventually(lambda: live(db, job.id)["state"] == "running", describe="the claim is committed")  # type: ignore[index]
        proxy.reset()
        proxy.heal()
        client.wait(job, 30)

    assert (ran, [outcome for outcome, _ in history(db, job.id)]) == ([1, 1], ["completed"])
