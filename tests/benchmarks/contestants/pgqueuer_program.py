"""The benchmark's program for PgQueuer; see `contestant.py` for the verbs."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # at the end, where no file beside this one hides a package

import asyncpg
import psycopg
import uvloop
from _protocol import DSN, SETTING, count, end_of_work, enqueued, main, orders, report, say, stopped
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, PsycopgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

SETTINGS: dict[str, dict[str, Any]] = {
    "asyncpg, batch 1000": {"batch_size": 1000},
    "asyncpg, batch 100": {"batch_size": 100},
    "psycopg, batch 100": {"batch_size": 100},
    "default": {},
}
RUN = SETTINGS[SETTING]
BULK = 50_000  # jobs in one call, as the drain strategy of its own tools/benchmark.py stores them


class Ready:
    """A driver that says when its worker has begun to listen, which is just before the first look for jobs."""

    said = False

    async def add_listener(self, channel: str, callback: Any) -> None:
        await super().add_listener(channel, callback)  # type: ignore[misc]
        if not Ready.said:
            Ready.said = True
            say(ready=time.monotonic_ns())


class Asyncpg(Ready, AsyncpgDriver):
    pass


class Psycopg(Ready, PsycopgDriver):
    pass


@asynccontextmanager
async def driver() -> AsyncIterator[Any]:
    if SETTING.startswith("psycopg"):
        async with await psycopg.AsyncConnection.connect(DSN, autocommit=True) as connection:
            yield Psycopg(connection)
    else:
        connection = await asyncpg.connect(DSN)
        try:
            yield Asyncpg(connection)
        finally:
            await connection.close()


def payload(n: int, sleep_ms: float) -> bytes:
    return json.dumps({"n": n, "sleep_ms": sleep_ms, "at": time.monotonic_ns()}).encode()


async def store(queries: Queries, first: int, jobs: int, sleep_ms: float) -> None:
    """The documented call for many: lists instead of single values."""
    for begin in range(first, first + jobs, BULK):
        ns = range(begin, min(begin + BULK, first + jobs))
        await queries.enqueue(["bench"] * len(ns), [payload(n, sleep_ms) for n in ns], [0] * len(ns))


async def prepare() -> None:
    async with driver() as it:
        queries = Queries(it)
        await queries.install()
        if SETTING != "default":
            await queries.optimize_autovacuum()  # what `pgq autovac` does


async def enqueue(mode: str, jobs: int, sleep_ms: float) -> None:
    async with driver() as it:
        queries = Queries(it)
        with enqueued(jobs):
            if mode == "bulk":
                await store(queries, 0, jobs, sleep_ms)
            else:
                for n in range(jobs):
                    await queries.enqueue("bench", payload(n, sleep_ms))


async def produce() -> None:
    async with driver() as it:
        queries = Queries(it)
        for n, jobs in orders():
            if jobs == 1:
                await queries.enqueue("bench", payload(n, 0))
            else:
                await store(queries, n, jobs, 0)


async def work() -> None:
    async with driver() as it:
        pgq = PgQueuer(it)

        @pgq.entrypoint("bench")
        async def bench(job: Job) -> None:
            start = time.monotonic_ns()
            given = json.loads(job.payload or b"")
            if given["sleep_ms"]:
                await asyncio.sleep(given["sleep_ms"] / 1000)
            count(start, given["n"], given["at"])

        end_of_work(pgq.shutdown)
        reporter = asyncio.create_task(report())
        await pgq.run(**RUN)
        reporter.cancel()
    stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(prepare, enqueue, produce, work, uvloop.run)
