"""The first program of go-pg-scheduler: a recurring job with its three hooks, and a one-time job with parameters.

What is another here: the hooks get one `ctx`, `start` is a call of its own, and parameters are in `ctx.parameters`.
"""

import threading
from datetime import timedelta

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig

twice = threading.Semaphore(0)


class Cleanup(Job):
    """Recurring: from `NewRecurringJobConfig("cleanup", …)`, here with seconds, so that nobody has to wait."""

    config = JobConfig.recurring("cleanup", "* * * * * *")

    def init(self, ctx: RunContext) -> None:
        self.found = ["a.tmp", "b.tmp"]  # only this run sees it

    def run(self, ctx: RunContext) -> int:
        return len(self.found)

    def shutdown(self, ctx: RunContext) -> None:
        self.found.clear()
        twice.release()


class Mail(Job):
    """One-time: its parameters come from whoever schedules it."""

    def run(self, ctx: RunContext) -> str:
        if ctx.attempt == 1:
            raise ConnectionError("the mail server is busy")
        return f"told {ctx.parameters['to']} about {ctx.parameters['about']}"


def main() -> None:
    with database() as dsn:
        config = SchedulerConfig(
            dsn=dsn,
            max_concurrent_jobs=10,
            job_check_interval=timedelta(minutes=1),
            orphaned_job_timeout=timedelta(days=14),
            heartbeat_interval=timedelta(seconds=30),
            no_heartbeat_timeout=timedelta(minutes=5),
            create_schema=True,
            run_immediately=True,
            table_prefix="example_",
            shutdown_timeout=timedelta(seconds=30),
        )
        scheduler = Scheduler(config)
        scheduler.init()
        scheduler.schedule(Cleanup())
        scheduler.register(Mail)
        scheduler.start()

        config_of_mail = JobConfig.one_time("mail", {"to": "Ada", "about": "tea"}, retries=3)
        mail = scheduler.wait(scheduler.schedule(Mail(config_of_mail)), timeout=20)
        print(f"mail: {mail.state} at attempt {scheduler.runs(mail)[0].attempt}: {mail.result}")

        for _ in range(2):
            twice.acquire(timeout=20)
        first = scheduler.runs("cleanup")[-1]
        print(f"cleanup: {first.outcome}, found {first.result}, was due at a whole second:", end=" ")
        print(first.scheduled_at.microsecond == 0)
        print("all jobs completed gracefully:", scheduler.shutdown())


if __name__ == "__main__":
    main()
