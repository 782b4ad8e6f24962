"""The benchmark's program for awa; see `contestant.py` for the verbs."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # at the end, where no file beside this one hides a package

import awa
from _protocol import DSN, SETTING, count, end_of_work, enqueued, main, orders, report, say, stopped

QUEUE = "bench"
# setting → (what a queue gets, what start gets, what a client gets)
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "1024 workers": (
        {"max_workers": 1024, "claim_batch_size": 512, "claimers": 1, "deadline_duration_ms": 0},
        {"poll_interval_ms": 50},
        {"max_connections": 50},
    ),
    "256 workers": ({"max_workers": 256}, {"poll_interval_ms": 50}, {"max_connections": 50}),
    "default": ({"max_workers": 50}, {}, {}),  # Python must be told a number; this is the default of the core
}
BULK = 10_000  # jobs in one call, as the copy scenario of its own benchmark_runtime.py stores them


@dataclass
class Bench:
    n: int
    sleep_ms: float
    at: int


def client() -> awa.AsyncClient:
    return awa.AsyncClient(DSN, **SETTINGS[SETTING][2])


def job(n: int, sleep_ms: float) -> Bench:
    return Bench(n, sleep_ms, time.monotonic_ns())


async def store(it: awa.AsyncClient, first: int, jobs: int, sleep_ms: float) -> None:
    """What the documentation names for producers of many: COPY straight into the queue's storage."""
    for begin in range(first, first + jobs, BULK):
        ns = range(begin, min(begin + BULK, first + jobs))
        await it.enqueue_many_copy([job(n, sleep_ms) for n in ns], queue=QUEUE)


async def prepare() -> None:
    async with client() as it:
        await it.migrate()

        @it.task(Bench, queue=QUEUE)
        async def bench(job: awa.Job) -> None:
            pass

        await it.start([(QUEUE, 1)])  # the first worker on a fresh schema switches it to the queue storage
        await it.shutdown()


async def enqueue(mode: str, jobs: int, sleep_ms: float) -> None:
    async with client() as it:
        await it.queue_stats()  # a connection is open
        with enqueued(jobs):
            if mode == "bulk":
                await store(it, 0, jobs, sleep_ms)
            else:
                for n in range(jobs):
                    await it.insert(job(n, sleep_ms), queue=QUEUE)


async def produce() -> None:
    async with client() as it:
        await it.queue_stats()
        for n, jobs in orders():
            if jobs == 1:
                await it.insert(job(n, 0), queue=QUEUE)
            else:
                await store(it, n, jobs, 0)


async def work() -> None:
    it = client()

    @it.task(Bench, queue=QUEUE)
    async def bench(job: awa.Job) -> None:
        start = time.monotonic_ns()
        given = job.args
        if given.sleep_ms:
            await asyncio.sleep(given.sleep_ms / 1000)
        count(start, given.n, given.at)

    end = end_of_work()
    reporter = asyncio.create_task(report())
    queue, runtime, _ = SETTINGS[SETTING]
    await it.start([{"name": QUEUE, **queue}], **runtime)
    say(ready=time.monotonic_ns())
    await end.wait()
    await it.shutdown()
    await it.close()
    reporter.cancel()
    stopped()


if __name__ == "__main__":
    main(prepare, enqueue, produce, work, asyncio.run)
