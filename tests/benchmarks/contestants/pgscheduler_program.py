"""The benchmark's program for pgscheduler; see `contestant.py` for the verbs."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))  # the package of this tree, without installing it
sys.path.append(str(Path(__file__).parent))  # at the end, where no file beside this one hides a package

import structlog
from _protocol import DSN, SETTING, count, enqueued, main, orders, parameters, report_until_end, say, stopped

from pgscheduler import Job, RunContext, Scheduler, SchedulerConfig

SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "100 slots": {"max_concurrent_jobs": 100}}


class Bench(Job):
    taking_turns = threading.Lock()

    def run(self, ctx: RunContext) -> None:
        start = time.monotonic_ns()
        given = ctx.parameters
        if given["sleep_ms"]:
            time.sleep(given["sleep_ms"] / 1000)
        with Bench.taking_turns:
            # Jobs of which only the cost is measured have neither.
            count(start, given.get("n", 0), given.get("at", start))


def scheduler(**more: Any) -> Scheduler:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return Scheduler(SchedulerConfig(dsn=DSN, **SETTINGS[SETTING], **more))


def prepare() -> None:
    with scheduler(create_schema=True):
        pass


def enqueue(mode: str, jobs: int, sleep_ms: float) -> None:
    with scheduler() as it:
        it.stats()  # the connection is open
        with enqueued(jobs):
            if mode == "bulk":
                it.enqueue_many("bench", [parameters(n, sleep_ms) for n in range(jobs)])
            else:
                for n in range(jobs):
                    it.enqueue("bench", parameters(n, sleep_ms))


def produce() -> None:
    with scheduler() as it:
        it.stats()
        for n, jobs in orders():
            if jobs == 1:
                it.enqueue("bench", parameters(n, 0))
            else:
                it.enqueue_many("bench", [parameters(n + i, 0) for i in range(jobs)])


def work() -> None:
    # By default a node waits job_check_interval before its first look at what was due before it started.
    with scheduler(run_immediately=True) as it:
        it.register(Bench)
        it.start()
        say(ready=time.monotonic_ns())
        report_until_end()
    stopped()


if __name__ == "__main__":
    main(prepare, enqueue, produce, work)
