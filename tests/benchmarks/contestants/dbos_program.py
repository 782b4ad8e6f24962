"""The benchmark's program for DBOS; see `contestant.py` for the verbs."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # at the end, where no file beside this one hides a package

import sqlalchemy as sa
from _protocol import DSN, SETTING, count, enqueued, main, orders, parameters, report_until_end, say, stopped
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions

SETTINGS: dict[str, dict[str, Any]] = {
    "poll 0.05 s": {"polling_interval_sec": 0.05, "worker_concurrency": 1000},
    "default": {},
}
APPLICATION = "bench"
BENCH: EnqueueOptions = {"queue_name": "bench", "workflow_name": "bench"}
BULK = 1_000  # jobs in one transaction

taking_turns = threading.Lock()


@DBOS.workflow(name="bench")
def bench(given: dict[str, Any]) -> None:
    start = time.monotonic_ns()
    if given["sleep_ms"]:
        time.sleep(given["sleep_ms"] / 1000)
    with taking_turns:
        count(start, given["n"], given["at"])


def launch() -> None:
    config: DBOSConfig = {
        "name": APPLICATION,
        "system_database_url": DSN,
        "application_version": "1",
        "executor_id": f"bench-{os.getpid()}",  # processes of one application must differ
        "log_level": "WARNING",
    }
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue("bench", **SETTINGS[SETTING])


def prepare() -> None:
    launch()
    DBOS.destroy()


def producer() -> tuple[DBOSClient, sa.Engine]:
    client = DBOSClient(system_database_url=DSN, application_name=APPLICATION)
    engine = sa.create_engine(DSN.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.connect() as connection:
        connection.execute(sa.text("select 1"))
    return client, engine


def store(client: DBOSClient, engine: sa.Engine, first: int, jobs: int, sleep_ms: float) -> None:
    """Many at once: there is no call for it, but calls can share a transaction."""
    for begin in range(first, first + jobs, BULK):
        with engine.begin() as connection:
            for n in range(begin, min(begin + BULK, first + jobs)):
                client.enqueue_in_transaction(connection, BENCH, parameters(n, sleep_ms))


def enqueue(mode: str, jobs: int, sleep_ms: float) -> None:
    client, engine = producer()
    with enqueued(jobs):
        if mode == "bulk":
            store(client, engine, 0, jobs, sleep_ms)
        else:
            for n in range(jobs):
                client.enqueue(BENCH, parameters(n, sleep_ms))
    client.destroy()


def produce() -> None:
    client, engine = producer()
    for n, jobs in orders():
        if jobs == 1:
            client.enqueue(BENCH, parameters(n, 0))
        else:
            store(client, engine, n, jobs, 0)
    client.destroy()


def work() -> None:
    launch()
    say(ready=time.monotonic_ns())
    report_until_end()
    DBOS.destroy(workflow_completion_timeout_sec=5)
    stopped()


if __name__ == "__main__":
    main(prepare, enqueue, produce, work)
