"""A node with recurring jobs, or with jobs that only wait; started by `recurring.py`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import structlog

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig


def say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Tick(Job):
    """Notes how late it is, by the clock of the machine, which is also that of the server."""

    late: list[float] = []  # noqa: RUF012

    def run(self, ctx: RunContext) -> None:
        Tick.late.append(time.time() - ctx.scheduled_at.timestamp())


class Hold(Job):
    running = 0
    lock = threading.Lock()

    async def run(self, ctx: RunContext) -> None:
        Hold.running += 1  # on the one event loop
        await asyncio.sleep(3600)


def scheduler(**more: Any) -> Scheduler:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return Scheduler(SchedulerConfig(dsn=os.environ["BENCH_DSN"], **more))


def store(*lines: str) -> None:
    with scheduler() as it:
        for number, line in enumerate(lines):
            it.schedule(Tick(JobConfig.recurring(f"tick{number}", line, misfire="run_once")))


def run(seconds: float, names: list[str]) -> None:
    with scheduler(run_immediately=True) as it:
        for name in names:
            it.register(Tick(JobConfig(name=name)))
        it.start()
        say(ready=time.monotonic_ns())
        begun = time.monotonic()
        while not Tick.late and time.monotonic() - begun < 120:
            time.sleep(0.001)
        first = time.monotonic()
        time.sleep(max(seconds, 0))
        spent = time.monotonic() - first
        late = sorted(Tick.late)
        say(
            started=len(late),
            spent=spent,
            p50_ms=round(late[len(late) // 2] * 1000, 1),
            p99_ms=round(late[int(len(late) * 0.99)] * 1000, 1),
            last_ms=round(late[-1] * 1000, 1),
        )
        sys.stdin.read()


def hold(count: int) -> None:
    with scheduler(
        run_immediately=True, max_concurrent_jobs=count, shutdown_timeout=timedelta(seconds=1)
    ) as it:
        it.register(Hold)
        it.schedule_many([Hold(JobConfig.one_time("hold")) for _ in range(count)])
        it.start()
        while Hold.running < count:
            time.sleep(0.1)
        say(holding=count)
        sys.stdin.read()
        os._exit(0)  # nothing of these jobs is worth an orderly end


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "store":
        store(*arguments)
    elif verb == "run":
        run(float(arguments[0]), arguments[1:])
    else:
        hold(int(arguments[0]))
