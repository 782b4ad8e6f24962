"""Without threads: `run_pending()` runs what is due in the caller's thread, and returns.

For a serverless function, a cron line of the operating system, or a test: there is no `start()`, and
nothing is left running.
"""

from datetime import timedelta

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig


class Tidy(Job):
    """Does a little; one of them fails."""

    def run(self, ctx: RunContext) -> None:
        if ctx.parameters["room"] == "attic":
            raise FileNotFoundError("no ladder")
        print("tidied the", ctx.parameters["room"])


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.register(Tidy)
        rooms = [("kitchen", 0), ("attic", 0), ("garden", 3600)]
        stored = scheduler.schedule_many(
            Tidy(JobConfig.one_time("tidy", {"room": room}, delay=timedelta(seconds=seconds)))
            for room, seconds in rooms
        )
        print("stored:", stored)
        print(scheduler.run_pending(limit=100))
        print(scheduler.run_pending(limit=100))
        print("still to come:", [job.parameters["room"] for job in scheduler.jobs(name="tidy")])


if __name__ == "__main__":
    main()
