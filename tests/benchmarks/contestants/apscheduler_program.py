"""The benchmark's program for APScheduler 4; see `contestant.py` for the verbs."""

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

from _protocol import DSN, SETTING, count, end_of_work, enqueued, main, report, say, stopped
from apscheduler import AsyncScheduler
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.eventbrokers.asyncpg import AsyncpgEventBroker
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

TASK: dict[str, dict[str, Any]] = {"unlimited runs": {"max_running_jobs": None}, "default": {}}
CALLERS = 10  # tasks that store jobs at the same time, for want of a call that stores many


async def bench(n: int, sleep_ms: float, at: int) -> None:
    start = time.monotonic_ns()
    if sleep_ms:
        await asyncio.sleep(sleep_ms / 1000)
    count(start, n, at)


@asynccontextmanager
async def scheduler() -> AsyncIterator[AsyncScheduler]:
    engine = create_async_engine(make_url(DSN).set(drivername="postgresql+asyncpg"))
    try:
        async with AsyncScheduler(
            SQLAlchemyDataStore(engine), AsyncpgEventBroker.from_async_sqla_engine(engine)
        ) as it:
            await it.configure_task("bench", func=bench, **TASK[SETTING])
            yield it
    finally:
        await engine.dispose()


async def one(it: AsyncScheduler, n: int, sleep_ms: float) -> None:
    await it.add_job("bench", kwargs={"n": n, "sleep_ms": sleep_ms, "at": time.monotonic_ns()})


async def many(it: AsyncScheduler, first: int, jobs: int, sleep_ms: float) -> None:
    left = iter(range(first, first + jobs))

    async def call() -> None:
        for n in left:
            await one(it, n, sleep_ms)

    await asyncio.gather(*(call() for _ in range(CALLERS)))


async def prepare() -> None:
    async with scheduler():
        pass


async def enqueue(mode: str, jobs: int, sleep_ms: float) -> None:
    async with scheduler() as it:
        with enqueued(jobs):
            if mode == "bulk":
                await many(it, 0, jobs, sleep_ms)
            else:
                for n in range(jobs):
                    await one(it, n, sleep_ms)


async def produce() -> None:
    async with scheduler() as it:
        say(ready=time.monotonic_ns())
        n = 0
        # Read on a thread: the broker tells the workers from a task of this loop, after the call has returned.
        while line := await asyncio.to_thread(sys.stdin.readline):
            jobs = int(line)
            if jobs == 1:
                await one(it, n, 0)
            else:
                await many(it, n, jobs, 0)
            say(committed=time.monotonic_ns())
            n += jobs


async def work() -> None:
    end = end_of_work()
    async with scheduler() as it:
        await it.start_in_background()
        say(ready=time.monotonic_ns())
        reporter = asyncio.create_task(report())
        await end.wait()
        await it.stop()
        await it.wait_until_stopped()
        reporter.cancel()
    stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(prepare, enqueue, produce, work, asyncio.run)
