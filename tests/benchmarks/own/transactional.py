"""Storing jobs in a caller's transaction: what it costs beside a plain INSERT, and whether producers wait for each other."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import psycopg

from pgscheduler import Scheduler, SchedulerConfig
from tests.benchmarks.arena import Entry, Results
from tests.benchmarks.server import Server

PLAIN = "create table plain (id bigint generated always as identity primary key, name text, at timestamptz, data jsonb)"
INSERT = "insert into plain (name, at, data) values (%s, now(), %s::jsonb) returning id"
PARAMETERS = {"n": 1}


def commits(server: Server, results: Results, entry: Entry, pairs: int, seconds: float = 3.0) -> None:
    """Commits a second of clients that store a plain row, and of clients that store a job, in turn."""
    for clients in (1, 8, 16):
        with server.database() as dsn:
            entry.run(dsn, "prepare")
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(PLAIN)
            ratios = []
            for pair in range(pairs):
                rates = {}
                for what in ("plain", "job"):
                    server.checkpoint()
                    rates[what] = _rate(entry, dsn, what, clients, seconds)
                    results.add(
                        "transactional",
                        clients=clients,
                        what=what,
                        pair=pair,
                        commits_per_s=round(rates[what]),
                    )
                ratios.append(rates["job"] / rates["plain"])
            results.add(
                "ratio",
                workload=f"transactional enqueue, {clients} clients",
                figure="commits_per_s",
                ours=entry.label,
                label="plain one-row INSERT",
                ratios=[round(r, 3) for r in ratios],
                median=round(statistics.median(ratios), 3),
            )


def _rate(entry: Entry, dsn: str, what: str, clients: int, seconds: float) -> float:
    """All clients, each a process with one connection, work for the same seconds."""
    argv = [entry.argv[0], "-m", "tests.benchmarks.own.transactional", dsn, what, str(seconds)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    workers = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(clients)
    ]
    for worker in workers:
        assert worker.stdout is not None
        worker.stdout.readline()  # it is connected
    begin = f"{time.time() + 0.2}\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(begin)
        worker.stdin.flush()
    return sum(json.loads(worker.communicate()[0])["commits"] for worker in workers) / seconds


def _client(dsn: str, what: str, seconds: float) -> None:
    with Scheduler(SchedulerConfig(dsn=dsn)) as scheduler, psycopg.connect(dsn) as connection:
        count = 0
        data = json.dumps(PARAMETERS)
        connection.execute("select 1")
        connection.commit()
        print("connected", flush=True)
        start = float(sys.stdin.readline())
        time.sleep(max(start - time.time(), 0))
        end = start + seconds
        while time.time() < end:
            with connection.transaction():
                if what == "plain":
                    connection.execute(INSERT, ["bench", data]).fetchone()
                else:
                    scheduler.enqueue("bench", PARAMETERS, connection=connection)
            count += 1
    print(json.dumps({"commits": count}))


def open_transaction(server: Server, results: Results, entry: Entry) -> None:
    """One producer keeps its transaction open for three seconds: how long does another wait at most?"""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        with (
            Scheduler(SchedulerConfig(dsn=dsn)) as scheduler,
            psycopg.connect(dsn) as slow,
            psycopg.connect(dsn) as other,
        ):
            scheduler.enqueue("bench", PARAMETERS, connection=slow)
            waits: list[float] = []
            until = time.monotonic() + 3
            while time.monotonic() < until:
                begun = time.monotonic()
                with other.transaction():
                    scheduler.enqueue("bench", PARAMETERS, connection=other)
                waits.append(time.monotonic() - begun)
            slow.commit()
    results.add(
        "open transaction",
        label=entry.label,
        others=len(waits),
        longest_ms=round(max(waits) * 1000, 1),
        median_ms=round(statistics.median(waits) * 1000, 2),
    )


def opposite_order(server: Server, results: Results, entry: Entry, transactions: int = 10_000) -> None:
    """Pairs of transactions that store the same two names in opposite order: none may deadlock."""
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        deadlocks: list[str] = []
        with Scheduler(SchedulerConfig(dsn=dsn)) as scheduler:

            def produce(names: list[str]) -> None:
                chance = random.Random(names[0])
                with psycopg.connect(dsn) as connection:
                    for _ in range(transactions):
                        try:
                            with connection.transaction():
                                for name in names:
                                    scheduler.enqueue(
                                        name, PARAMETERS, priority=chance.randrange(10), connection=connection
                                    )
                        except psycopg.errors.DeadlockDetected as error:
                            deadlocks.append(str(error))

            threads = [threading.Thread(target=produce, args=[order]) for order in (["a", "b"], ["b", "a"])]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        with psycopg.connect(dsn) as connection:
            row: Any = connection.execute("select count(*) from pgscheduler_jobs").fetchone()
    results.add(
        "opposite order", label=entry.label, pairs=transactions, deadlocks=len(deadlocks), stored=row[0]
    )


if __name__ == "__main__":
    _client(sys.argv[1], sys.argv[2], float(sys.argv[3]))
