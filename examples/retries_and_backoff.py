"""A job that fails is tried again, after a delay that grows; what it raises or returns may say otherwise.

`retries=3` means at most four counted failures. Every attempt leaves a line in the history.
"""

from datetime import timedelta

from _database import database

from pgscheduler import Backoff, Fail, Job, JobConfig, RunContext, Scheduler, SchedulerConfig, Snooze

quickly = Backoff(initial=timedelta(milliseconds=100), factor=2.0, maximum=timedelta(seconds=5))


class Flaky(Job):
    """Fails twice, then works."""

    config = JobConfig.one_time("flaky", retries=3, backoff=quickly)

    def run(self, ctx: RunContext) -> str:
        if ctx.attempt < 3:
            raise ConnectionError(f"no answer at attempt {ctx.attempt}")
        return "worked"


class Decides(Job):
    """Waits without burning an attempt, then gives up although retries are left."""

    config = JobConfig.one_time("decides", retries=3, backoff=quickly)
    asked = 0

    def run(self, ctx: RunContext) -> Snooze:
        Decides.asked += 1
        if Decides.asked == 1:
            return Snooze(timedelta(milliseconds=100), "the partner is down for maintenance")
        raise Fail("the account was closed")


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.start()
        for job in (Flaky(), Decides()):
            ended = scheduler.wait(scheduler.schedule(job), timeout=20)
            print(f"{ended.name} ended as {ended.state}")
            for run in reversed(scheduler.runs(ended.id)):
                said = run.reason or (run.error or str(run.result)).strip().splitlines()[-1]
                print(f"  attempt {run.attempt}: {run.outcome}: {said}")


if __name__ == "__main__":
    main()
