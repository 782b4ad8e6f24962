"""The benchmark's program for Procrastinate; see `contestant.py` for the verbs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # at the end, where no file beside this one hides a package

from _protocol import DSN, SETTING, count, end_of_work, enqueued, main, orders, report, say, stopped
from procrastinate import App, PsycopgConnector

POOL: dict[str, dict[str, Any]] = {
    "concurrency 30, deleting": {"max_size": 31},
    "concurrency 30": {"max_size": 31},
    "default": {},
}
WORKER: dict[str, dict[str, Any]] = {
    "concurrency 30, deleting": {"concurrency": 30, "delete_jobs": "always"},
    "concurrency 30": {"concurrency": 30},
    "default": {},
}


class Connector(PsycopgConnector):
    """Tells when the worker listens, which it begins beside its first look for jobs."""

    def __init__(self) -> None:
        super().__init__(conninfo=DSN, **POOL[SETTING])
        self.listens = asyncio.Event()

    async def _loop_notify(self, *args: Any, **kwargs: Any) -> None:
        self.listens.set()
        await super()._loop_notify(*args, **kwargs)


connector = Connector()
app = App(connector=connector)


@app.task(name="bench")
async def bench(n: int, sleep_ms: float, at: int) -> None:
    start = time.monotonic_ns()
    if sleep_ms:
        await asyncio.sleep(sleep_ms / 1000)
    count(start, n, at)


async def one(n: int, sleep_ms: float) -> None:
    await bench.defer_async(n=n, sleep_ms=sleep_ms, at=time.monotonic_ns())


async def many(first: int, jobs: int, sleep_ms: float) -> None:
    at = time.monotonic_ns()
    await bench.batch_defer_async(
        *({"n": n, "sleep_ms": sleep_ms, "at": at} for n in range(first, first + jobs))
    )


async def prepare() -> None:
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def enqueue(mode: str, jobs: int, sleep_ms: float) -> None:
    async with app.open_async():
        with enqueued(jobs):
            if mode == "bulk":
                await many(0, jobs, sleep_ms)
            else:
                for n in range(jobs):
                    await one(n, sleep_ms)


async def produce() -> None:
    async with app.open_async():
        for n, jobs in orders():
            if jobs == 1:
                await one(n, 0)
            else:
                await many(n, jobs, 0)


async def work() -> None:
    end = end_of_work()
    async with app.open_async():
        worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False, **WORKER[SETTING]))
        await connector.listens.wait()
        say(ready=time.monotonic_ns())
        reporter = asyncio.create_task(report())
        await asyncio.wait([worker, asyncio.create_task(end.wait())], return_when=asyncio.FIRST_COMPLETED)
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
        reporter.cancel()
    stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(prepare, enqueue, produce, work, asyncio.run)
