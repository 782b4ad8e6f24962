"""Jobs that are stored can be changed, found, asked for their place, kept from being stored twice, and run again.

All of it works from any process, without `start()` and without the jobs' classes; here one process does it all.
"""

from _database import database

from pgscheduler import DuplicateJobError, Job, JobConfig, RunContext, Scheduler, SchedulerConfig


class Invoice(Job):
    """Fails unless somebody said who is to pay."""

    def run(self, ctx: RunContext) -> None:
        print(f"invoice {ctx.key} goes to", ctx.parameters["customer"])


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.register(Invoice)

        # A request that arrives twice makes one job, even if the first has ended meanwhile.
        scheduler.enqueue("invoice", {"customer": "Ada"}, key="2027-001", if_exists="error")
        try:
            scheduler.enqueue("invoice", {"customer": "Ada"}, key="2027-001", if_exists="error")
        except DuplicateJobError as error:
            print("refused:", error)

        # Whoever is more important goes first: smaller is sooner.
        second = scheduler.enqueue("invoice", {"customer": "Bob"}, key="2027-002")
        print("the second's place:", scheduler.queue_position(second))
        scheduler.update(second, priority=1, parameters={"customer": "Bob, 2nd floor"})
        print("and now:", scheduler.queue_position(second), "of", scheduler.count_jobs(due=True))
        scheduler.run_pending()

        # What a program says when it starts need not undo what somebody has changed.
        nightly = Invoice(JobConfig.recurring("nightly", "0 3 * * *", retries=1, timeout=60))
        scheduler.schedule(nightly)
        scheduler.update("nightly", schedule="0 5 * * *", retries=5)
        kept = scheduler.schedule(nightly, if_exists="keep")
        print("nightly comes at", f"{kept.scheduled_at:%H:%M}", "with", kept.options)

        # All that went wrong, once more.
        for number in range(101, 104):
            scheduler.enqueue("invoice", {}, key=f"2027-{number}")
        scheduler.run_pending()
        failed = scheduler.runs(outcome="failed")
        print("failed:", len(failed))
        for job in scheduler.retry_many(failed):
            scheduler.update(job, parameters={"customer": "Eve"})
        scheduler.run_pending()
        print("completed:", scheduler.count_runs(name="invoice", outcome="completed"))


if __name__ == "__main__":
    main()
