"""Laki's jobs: a module, a function and its arguments, stored under a name with a cron line.

Any process may store one. It runs on nodes that register `CallJob` with that module in its list, and nowhere else.
"""

from _database import database

from pgscheduler import JobNotFoundError, JobRecord, Scheduler, SchedulerConfig
from pgscheduler.jobs import CallJob


def create_simple_job(
    scheduler: Scheduler, name: str, cron: str, module: str, function: str, *args: object
) -> JobRecord:
    call = {"module": module, "function": function, "args": list(args)}
    return scheduler.schedule_by_name("call_job", cron, call, key=name, metadata={"team": "ops"})


def main() -> None:
    with (
        database() as dsn,
        Scheduler(SchedulerConfig(dsn=dsn, create_schema=True, run_immediately=True)) as scheduler,
    ):
        scheduler.register(CallJob(modules=["statistics"]))  # what this node may call
        job = create_simple_job(scheduler, "average", "0 9 * * *", "statistics", "fmean", [1, 2, 6])
        print(f"{job.key} is {job.state}, next at {job.run_at:%H:%M}, {(job.options or {})['metadata']}")
        with Scheduler(SchedulerConfig(dsn=dsn)) as elsewhere:  # it has no list; here it would be refused now
            create_simple_job(elsewhere, "hostile", "0 9 * * *", "os", "system", "id")

        # It runs at nine; nobody waits that long here.
        for name in ("average", "hostile"):
            scheduler.trigger(("call_job", name))
        scheduler.run_pending()
        for name in ("average", "hostile"):
            (execution,) = scheduler.runs(("call_job", name), limit=50)
            error = (execution.error or "").strip().splitlines()[-1:]
            print(f"{name}: {execution.outcome}, result {execution.result}", *error)

        # disable_job, enable_job, update_job
        print("disabled:", scheduler.pause(("call_job", "average")).state)
        print("enabled:", scheduler.resume(("call_job", "average")).state)
        changed = {"module": "statistics", "function": "median", "args": [[1, 2, 6]]}
        job = scheduler.update(("call_job", "average"), schedule="30 6 * * 1", parameters=changed)
        print(f"updated: next on a {job.run_at:%A at %H:%M}")
        scheduler.trigger(job)
        scheduler.run_pending()
        print("executions, newest first:", [run.result for run in scheduler.runs(job)])

        # delete_job: its executions go with it
        print("listed:", sorted(job.key or "" for job in scheduler.jobs(name="call_job")))
        for name in ("average", "hostile"):
            scheduler.delete(("call_job", name), history=True)
        try:
            scheduler.get_job(("call_job", "average"))
        except JobNotFoundError as error:
            print("gone:", error)
        print("executions left:", scheduler.count_runs())


if __name__ == "__main__":
    main()
