"""The benchmark's program for Chancy; see `contestant.py` for the verbs."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent))  # at the end, where no file beside this one hides a package

from _protocol import DSN, SETTING, count, end_of_work, enqueued, main, orders, report, say, stopped
from chancy import Chancy, Job, Queue, Worker

ASYNC: dict[str, Any] = {"executor": Chancy.Executor.Async, "eager_polling": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "async, concurrency 1000": ASYNC | {"concurrency": 1000},
    "async, concurrency 100": ASYNC | {"concurrency": 100},
    "default": {},
}
NOTE = struct.Struct("qqq")  # start, n and at: what a job in another process tells of itself
NOTES = "BENCH_NOTES"  # names the pipe that takes these notes


async def bench(*, n: int, sleep_ms: float, at: int) -> None:
    start = time.monotonic_ns()
    if sleep_ms:
        await asyncio.sleep(sleep_ms / 1000)
    count(start, n, at)


def bench_in_process(*, n: int, sleep_ms: float, at: int) -> None:
    start = time.monotonic_ns()
    if sleep_ms:
        time.sleep(sleep_ms / 1000)
    os.write(notes(), NOTE.pack(start, n, at))  # too short to be torn


@functools.cache
def notes() -> int:
    return os.open(os.environ[NOTES], os.O_WRONLY)


FUNCTION = bench if SETTINGS[SETTING] else bench_in_process


def chancy() -> Chancy:
    log = logging.getLogger("bench")
    log.setLevel(logging.WARNING)
    return Chancy(DSN, log=log)


def job(n: int, sleep_ms: float) -> Job:
    return Job.from_func(FUNCTION, kwargs={"n": n, "sleep_ms": sleep_ms, "at": time.monotonic_ns()})


async def many(it: Chancy, first: int, jobs: int, sleep_ms: float) -> None:
    async for _ in it.push_many([job(n, sleep_ms) for n in range(first, first + jobs)]):
        pass


async def prepare() -> None:
    async with chancy() as it:
        await it.migrate()
        await it.declare(Queue("default", **SETTINGS[SETTING]))


async def enqueue(mode: str, jobs: int, sleep_ms: float) -> None:
    async with chancy() as it:
        await it.pool.wait()
        with enqueued(jobs):
            if mode == "bulk":
                await many(it, 0, jobs, sleep_ms)
            else:
                for n in range(jobs):
                    await it.push(job(n, sleep_ms))


async def produce() -> None:
    async with chancy() as it:
        await it.pool.wait()
        for n, jobs in orders():
            if jobs == 1:
                await it.push(job(n, 0))
            else:
                await many(it, n, jobs, 0)


def hear_of_processes(directory: str) -> None:
    """Count, on this thread, what jobs in other processes note."""
    os.environ[NOTES] = str(Path(directory, "notes"))
    os.mkfifo(os.environ[NOTES])
    pipe = os.open(os.environ[NOTES], os.O_RDWR)  # its own writer too, so that it never ends

    def hear() -> None:
        while True:
            for start, n, at in NOTE.iter_unpack(os.read(pipe, 100 * NOTE.size)):
                count(start, n, at)

    threading.Thread(target=hear, daemon=True).start()


async def work() -> None:
    end, looks = end_of_work(), asyncio.Event()
    with tempfile.TemporaryDirectory() as directory:
        if FUNCTION is bench_in_process:
            hear_of_processes(directory)
        async with chancy() as it:
            worker = Worker(it, register_signal_handlers=False)
            worker.hub.on("worker.queue.started", lambda _: looks.set())
            async with worker:
                await looks.wait()
                say(ready=time.monotonic_ns())
                reporter = asyncio.create_task(report())
                await end.wait()
            reporter.cancel()
    stopped()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(prepare, enqueue, produce, work, asyncio.run)
