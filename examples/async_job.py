"""Hooks may be coroutines: those of all jobs of a node share one event loop, beside the threads.

Cancelling, a timeout or a shutdown cancels the coroutine where it awaits. `max_concurrent_jobs` bounds
threads, coroutines and processes together.
"""

import asyncio
import time

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig


class Fetch(Job):
    """Stands for a call to a slow service."""

    async def init(self, ctx: RunContext) -> None:
        self.url = f"https://example.org/{ctx.parameters['page']}"  # private to this run

    async def run(self, ctx: RunContext) -> str:
        await asyncio.sleep(0.5)
        return f"fetched {self.url}"


class TooSlow(Job):
    """Is cancelled by its timeout."""

    config = JobConfig.one_time("too_slow", timeout=0.3)

    async def run(self, ctx: RunContext) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            print("too_slow cleans up")


def main() -> None:
    with (
        database() as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, create_schema=True, max_concurrent_jobs=50)) as scheduler,
    ):
        scheduler.register(Fetch)
        scheduler.start()
        began = time.monotonic()
        jobs = [scheduler.enqueue("fetch", {"page": page}) for page in range(20)]
        results = [scheduler.wait(job, timeout=20).result for job in jobs]
        print(results[0])
        print(f"{len(results)} fetches at the same time:", time.monotonic() - began < 20 * 0.5)

        slow = scheduler.wait(scheduler.schedule(TooSlow()), timeout=10)
        print("too_slow ended as", scheduler.runs(slow.id)[0].outcome)


if __name__ == "__main__":
    main()
