"""A job that kills its process ends as failed, and takes none of its neighbours with it.

Whatever a node holds when it dies counts as a stall, for nobody can tell what had begun. Run as a program, this file is
the node that dies.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgscheduler import Job, JobConfig, Scheduler
from pgscheduler._sql import Names
from pgscheduler._store import ClaimRequest, Store, new_token
from tests.promises.node_scripts import quiet_config
from tests.support.processes import NodeProcess

NEIGHBOURS = 400
DEATH = 70


class Poison(Job):
    """What a fault in a C library, or too much memory, does to a process."""

    config = JobConfig(name="poison")

    def run(self, ctx: Any) -> None:
        os._exit(DEATH)


class Good(Job):
    """Counts how often it ran."""

    config = JobConfig(name="good")
    ran = 0
    counting = threading.Lock()

    def run(self, ctx: Any) -> None:
        with Good.counting:
            Good.ran += 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["one slot", "many slots", "one pass"])
def test_neighbours_of_a_poison_job_are_run(
    dsn: str, db: psycopg.Connection[Any], nodes: Callable[..., NodeProcess], how: str
) -> None:
    """Jobs that were claimed beside one that kills each node are completed, all of them; it alone has failed."""
    with Scheduler(quiet_config(dsn)) as client:
        client.enqueue_many("good", [{}] * (NEIGHBOURS // 2))
        client.enqueue("poison")
        client.enqueue_many("good", [{}] * (NEIGHBOURS // 2))

    for _ in range(8):
        node = nodes(__name__, dsn, how)
        if node.wait(timeout=90) == 0:
            break
        # Nobody has to wait for the dead: whatever they hold is overdue now.
        db.execute("update pgscheduler_nodes set no_heartbeat_timeout = interval '0'")
    else:
        pytest.fail(node.report())

    ends = "select name, outcome, count(*) from pgscheduler_runs where outcome <> 'stalled' group by 1, 2 order by 1"
    assert db.execute(ends).fetchall() == [("good", "completed", NEIGHBOURS), ("poison", "failed", 1)]
    stalls = "select count(*) from pgscheduler_runs where outcome = 'stalled' and name = 'poison'"
    assert db.execute(stalls).fetchone() == (3,)
    assert db.execute("select * from pgscheduler_jobs").fetchall() == []


@pytest.mark.parametrize(("once", "often"), [(0, 0), (2, 0), (2, 1), (0, 1), (9, 9)])
def test_a_claim_brings_no_more_survivors_than_it_asks_for(
    dsn: str, db: psycopg.Connection[Any], once: int, often: int
) -> None:
    """Jobs that have seen deaths stand first in line, and what is new behind them is found all the same."""
    for deaths, times in ((2, 5), (1, 5), (0, 5)):
        db.execute(
            "insert into pgscheduler_jobs (name, stalls, run_at, scheduled_at, created_at)"
            " select 'good', %s, at, at, at from (select now() - %s * interval '1 hour' - n * interval '1 second' as at"
            " from generate_series(1, %s) n) line",
            [deaths, deaths, times],
        )
    store = Store(dsn, Names("public", "pgscheduler_"))
    with store.connect() as connection:
        node = "00000000-0000-0000-0000-000000000007"
        found: list[int] = []
        while True:
            # As the dispatcher asks: what is claimed already is deducted.
            more = ClaimRequest(
                6, ["good"], {}, True, max(once - found.count(1), 0), max(often - found.count(2), 0)
            )
            claims = store.claim(connection, node, more, new_token())
            if not claims:
                break
            found += [claim.stalls for claim in claims]
    assert sorted(found) == [0] * 5 + [1] * min(once, 5) + [2] * min(often, 5)


def main() -> None:
    dsn, how = sys.argv[1:]
    slots = 8 if how == "many slots" else 1
    with Scheduler(
        quiet_config(dsn, max_concurrent_jobs=slots, heartbeat_interval=0.5, no_heartbeat_timeout=60)
    ) as node:
        node.register(Good)
        node.register(Poison)
        if how == "one pass":
            while node.run_pending(100).claimed:
                pass
            return
        node.start()
        done = threading.Event()
        node.subscribe(lambda _: done.set())
        while node.stats()["states"]:
            done.wait(0.5)
            done.clear()


if __name__ == "__main__":
    main()
