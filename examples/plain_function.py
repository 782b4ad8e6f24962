"""A plain function as a job, without a class for each: one small Job that carries a function.

The name in the database is the one that you give, not the function's path: renaming or moving the function
breaks no stored job, and no row can make a node call something else.
"""

from collections.abc import Callable
from typing import Any

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig


class Call(Job):
    """Calls a function with the job's parameters as keywords; what it returns is the result."""

    def __init__(self, function: Callable[..., Any], config: JobConfig) -> None:
        super().__init__(config)
        self.function = function

    def run(self, ctx: RunContext) -> Any:
        return self.function(**ctx.parameters)


def resize(width: int, height: int) -> str:
    return f"resized to {width} x {height}"


def cleanup(older_than_days: int = 30) -> str:
    return f"removed what is older than {older_than_days} days"


def main() -> None:
    with (
        database() as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, create_schema=True, run_immediately=True)) as scheduler,
    ):
        scheduler.register(Call(resize, JobConfig(name="resize", retries=2)))
        scheduler.schedule(Call(cleanup, JobConfig.recurring("cleanup", "0 3 * * *")))
        scheduler.start()

        job = scheduler.enqueue("resize", {"width": 640, "height": 480})
        print(scheduler.wait(job, timeout=10).result)

        wrong = scheduler.enqueue("resize", {"depth": 3}, retries=0)
        print((scheduler.wait(wrong, timeout=10).last_error or "").strip().splitlines()[-1])
        print("cleanup comes at", f"{scheduler.get_job('cleanup').run_at:%H:%M}")


if __name__ == "__main__":
    main()
