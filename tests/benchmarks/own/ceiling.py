"""What PostgreSQL itself can do: pgbench with the same SQL, and with its own, and what Python can do."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

import psycopg

from pgscheduler._sql import Names, Statements
from pgscheduler.bench import BATCH, same_sql_drain
from tests.benchmarks.arena import Entry, Results
from tests.benchmarks.measure import Meter
from tests.benchmarks.own.growth import seed
from tests.benchmarks.own.transactional import INSERT, PLAIN
from tests.benchmarks.server import Server


def same_sql(server: Server, entry: Entry, jobs: int, clients: int) -> dict[str, Any]:
    """Jobs a second that pgbench claims and completes, with the scheduler's own two statements."""
    rounds = jobs // BATCH // clients
    with server.database() as dsn:
        entry.run(dsn, "prepare")
        seed(dsn, rounds * BATCH * clients, 1)
        server.checkpoint()
        statements = Statements(Names("public", "pgscheduler_"))
        meter = Meter(dsn, server.pid, [])
        rate = same_sql_drain(str(server.bin / "pgbench"), dsn, statements, "bench", rounds, clients)
        cost = meter.stop(jobs)
        with psycopg.connect(dsn) as connection:
            row: Any = connection.execute("select count(*) from pgscheduler_runs").fetchone()
    assert row == (rounds * BATCH * clients,), row
    return {"per_s": round(rate), "jobs": row[0], "clients": clients, "batch": BATCH, "cost": cost.as_dict()}


def bare_insert(server: Server, seconds: float = 2.0) -> dict[str, Any]:
    """One-row INSERTs a second on one connection, one commit each, from psycopg."""
    with server.database() as dsn, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(PLAIN)
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.execute(INSERT, ["bench", '{"n": 1, "sleep_ms": 0, "at": 12345678901234}']).fetchone()
            count += 1
    return {"per_s": round(count / seconds)}


BARE_THREADS = """
import sys, threading, time

slots, seconds, jobs = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])

def work():
    for _ in range(jobs // slots):
        time.sleep(seconds)

threads = [threading.Thread(target=work) for _ in range(slots)]
begun = time.perf_counter()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(jobs / (time.perf_counter() - begun))
"""


def bare_threads(slots: int, sleep_ms: float, jobs: int) -> dict[str, Any]:
    """Sleeps a second that Python's threads do with nothing around them: what no scheduler in threads can pass."""
    output = _run([sys.executable, "-c", BARE_THREADS, slots, sleep_ms / 1000, jobs])
    return {"per_s": round(float(output)), "jobs": jobs, "sleep_ms": sleep_ms}


def calibrate(server: Server, results: Results) -> None:
    """How fast the machine is at this minute: pgbench's simple update, and a loop in Python."""
    with server.database() as dsn:
        _run([server.bin / "pgbench", "-i", "-q", "-s", "10", dsn])
        output = _run([server.bin / "pgbench", "-N", "-c", "4", "-T", "3", "-n", dsn])
    tps = float(re.search(r"tps = ([\d.]+)", output).group(1))  # type: ignore[union-attr]
    begun = time.perf_counter()
    total = 0
    for number in range(5_000_000):
        total += number
    results.add(
        "calibration",
        pgbench_simple_update_tps=round(tps),
        python_loop_ms=round((time.perf_counter() - begun) * 1000),
    )


def _run(argv: list[Any]) -> str:
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False)
    if done.returncode != 0 or "aborted" in done.stderr:
        raise RuntimeError(f"{argv[0]} failed: {done.stderr[-1500:]}")
    return done.stdout
