"""A job that comes back: by a cron line in a time zone, or every so often.

The occurrence that a run is for is `ctx.scheduled_at`. It is exact, whenever the run really started, so
reports and idempotency keys should use it instead of the clock.
"""

import queue
from datetime import timedelta

from _database import database

from pgscheduler import Every, Job, JobConfig, RunContext, Scheduler, SchedulerConfig

ticks: queue.SimpleQueue[str] = queue.SimpleQueue()


class DailyReport(Job):
    """At nine on weekdays, Berlin time, in summer and in winter."""

    config = JobConfig.recurring("daily_report", "0 9 * * 1-5", timezone="Europe/Berlin", retries=3)

    def run(self, ctx: RunContext) -> None:
        print("report of", ctx.scheduled_at.date())


class Heartbeat(Job):
    """Every second, to have something to look at."""

    config = JobConfig.recurring("heartbeat", Every(timedelta(seconds=1)))

    def run(self, ctx: RunContext) -> None:
        ticks.put(f"{ctx.scheduled_at:%H:%M:%S.%f}")


def main() -> None:
    with (
        database() as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, create_schema=True, run_immediately=True)) as scheduler,
    ):
        report = scheduler.schedule(DailyReport())
        scheduler.schedule(Heartbeat())
        scheduler.start()
        for number in (1, 2, 3):
            print(f"heartbeat {number} was due at", ticks.get(timeout=10))
        print("the next report is due on a", f"{report.run_at:%A at %H:%M} UTC")


if __name__ == "__main__":
    main()
