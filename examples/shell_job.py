"""A command as a job: `ShellJob`. Off unless you turn it on, for whoever may write a job may then run anything.

A timeout ends the command together with everything that it started. A list is a program and its arguments; only
a line that is called `shell` is given to a shell.
"""

from _database import database

from pgscheduler import InvalidValueError, JobConfig, Scheduler, SchedulerConfig
from pgscheduler.jobs import ShellJob


def main() -> None:
    try:
        ShellJob()
    except InvalidValueError as error:
        print("not by default:", error)

    with database() as dsn, Scheduler(SchedulerConfig(dsn=dsn, create_schema=True)) as scheduler:
        shell = ShellJob(enabled=True, environment={"GREETING": "hello"})
        scheduler.register(shell)
        scheduler.start()

        # Nothing in a list means anything to a shell.
        done = scheduler.wait(
            scheduler.enqueue("shell_job", {"command": ["echo", "$GREETING; *"]}), timeout=20
        )
        print(done.result["exit_code"], done.result["output"].strip())

        done = scheduler.wait(
            scheduler.enqueue("shell_job", {"shell": "echo $GREETING | tr a-z A-Z"}), timeout=20
        )
        print(done.result["exit_code"], done.result["output"].strip())

        failed = scheduler.wait(scheduler.enqueue("shell_job", {"shell": "echo no disk; exit 3"}), timeout=20)
        print("; ".join((failed.last_error or "").strip().splitlines()[-2:]))

        config = JobConfig.one_time("shell_job", {"shell": "echo begun; sleep 60 & sleep 60"}, timeout=0.5)
        slow = scheduler.wait(scheduler.schedule(shell.with_config(config)), timeout=20)
        print("the slow one:", scheduler.runs(slow.id)[0].outcome)


if __name__ == "__main__":
    main()
