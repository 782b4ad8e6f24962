"""The benchmark's program for Oban for Python; see `contestant.py` for the verbs."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # at the end, where no file beside this one hides a package

import uvloop
from _protocol import (
    DSN,
    SETTING,
    count,
    end_of_work,
    enqueued,
    main,
    orders,
    parameters,
    report,
    say,
    stopped,
)
from oban import Job, Oban, worker
from oban.schema import install

QUEUES: dict[str, dict[str, Any]] = {"limit 100": {"default": 100}, "default": {"default": {}}}


@worker(queue="default")
class Bench:
    async def process(self, job: Job) -> None:
        start = time.monotonic_ns()
        given = job.args
        if given["sleep_ms"]:
            await asyncio.sleep(given["sleep_ms"] / 1000)
        count(start, given["n"], given["at"])


@asynccontextmanager
async def pool() -> AsyncIterator[Any]:
    it = await Oban.create_pool(DSN)
    try:
        yield it
    finally:
        await it.close()


async def prepare() -> None:
    async with pool() as connections:
        await install(connections)


async def enqueue(mode: str, jobs: int, sleep_ms: float) -> None:
    async with pool() as connections:
        it = Oban(pool=connections)
        with enqueued(jobs):
            if mode == "bulk":
                await it.enqueue_many(Bench.new(parameters(n, sleep_ms)) for n in range(jobs))
            else:
                for n in range(jobs):
                    await Bench.enqueue(parameters(n, sleep_ms))


async def produce() -> None:
    async with pool() as connections:
        it = Oban(pool=connections)
        for n, jobs in orders():
            if jobs == 1:
                await Bench.enqueue(parameters(n, 0))
            else:
                await it.enqueue_many([Bench.new(parameters(n + i, 0)) for i in range(jobs)])


async def work() -> None:
    end = end_of_work()
    async with pool() as connections:
        async with Oban(pool=connections, queues=QUEUES[SETTING]):
            say(ready=time.monotonic_ns())
            reporter = asyncio.create_task(report())
            await end.wait()
        reporter.cancel()
    stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(prepare, enqueue, produce, work, uvloop.run)
