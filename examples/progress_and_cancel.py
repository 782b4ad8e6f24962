"""A long job says how far it is, keeps a log with its run, and stops when it is asked to.

`ctx.wait` is a sleep that ends early when the run should stop; `ctx.check()` raises. Both learn of a
cancel, a timeout, a shutdown, and of the loss of the claim.
"""

import time

from _database import database

from pgscheduler import Job, JobConfig, RunContext, Scheduler, SchedulerConfig

PAGES = 1000
reasons: list[str | None] = []


class Import(Job):
    """Reads page after page."""

    config = JobConfig.one_time("import")

    def run(self, ctx: RunContext) -> None:
        for page in range(PAGES):
            ctx.progress(page, PAGES, f"page {page}")
            if page % 5 == 0:
                ctx.log.info("page read", page=page)
            ctx.wait(0.05)
            ctx.check()  # raises JobCancelled; everything is consistent at this point

    def shutdown(self, ctx: RunContext) -> None:
        reasons.append(ctx.cancel_reason)


def main() -> None:
    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        scheduler.start()
        job = scheduler.schedule(Import())
        while (seen := scheduler.get_job(job)).progress is None:
            time.sleep(0.1)
        print("while it runs:", seen.state, "with", sorted(seen.progress))

        print("cancel:", scheduler.cancel(job))  # from any process
        ended = scheduler.wait(job, timeout=10)
        run = scheduler.runs(ended.id)[0]
        print("the job was told:", *reasons)
        print("in the end:", ended.state, "- got anywhere:", run.progress["done"] > 0)
        for line in scheduler.logs(run)[:2]:
            print(f"its log: {line.level} {line.event} {dict(line.fields)}")


if __name__ == "__main__":
    main()
